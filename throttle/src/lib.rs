//! A limit on half-open outbound TCP connections, enforced in the kernel.
//!
//! Read the modules in this order: [`settings`] (what an operator chooses),
//! [`interface`] (what a device is), [`layout`] (where the kernel keeps things),
//! [`object`] (the eBPF programs and maps, loaded), [`attach`] (the programs on a device), [`maps`] (typed access to the
//! maps), [`resend`] (the packet socket and what is mended in a frame before it
//! leaves), [`queue`] (the lines, and who is offered a release), [`owners`] (who
//! is behind attempts), [`episodes`] and [`watch`] (what goes on in a scope),
//! [`event`] and [`encode`] (what is told of it), [`teller`] and [`output`] (how it
//! gets out), [`daemon`] (all of it running), [`doctor`] (whether it can run here).

pub mod attach;
pub mod attempts;
pub mod clock;
pub mod daemon;
pub mod doctor;
pub mod encode;
pub mod episodes;
pub mod error;
pub mod event;
pub mod exempt;
pub mod instance;
pub mod interface;
pub mod layout;
pub mod maps;
pub mod name;
pub mod object;
pub mod output;
pub mod owners;
pub mod pins;
pub mod queue;
pub mod resend;
pub mod settings;
pub mod teller;
pub mod watch;

pub use error::{Error, Result};
pub use settings::Settings;
