//! A limit on half-open outbound TCP connections, enforced in the kernel.
//!
//! Read the modules in this order: [`settings`] (what an operator chooses),
//! [`config`] (by flags and a file), [`interface`] (what a device is), [`layout`] (where the kernel keeps things),
//! [`object`] (the eBPF programs and maps, loaded), [`attach`] (the programs on a device), [`maps`] (typed access to the
//! maps), [`resend`] (the packet socket and what is mended in a frame before it
//! leaves), [`queue`] (the lines, and who is offered a release), [`owners`] (who
//! is behind attempts), [`episodes`] and [`watch`] (what goes on in a scope),
//! [`event`] and [`encode`] (what is told of it), [`teller`] and [`output`] (how it
//! gets out), [`privileges`] (what the daemon may do), [`notify`] (what a service
//! manager is told), [`daemon`] (all of it running), [`detach`] (removed again),
//! [`top`] (who has attempts, for people at a terminal), [`end`] (a program is
//! ended), [`doctor`] (whether it can run here).

pub mod attach;
pub mod attempts;
pub mod clock;
pub mod config;
pub mod daemon;
mod departures;
pub mod detach;
pub mod doctor;
pub mod encode;
pub mod end;
pub mod episodes;
pub mod error;
pub mod event;
pub mod exempt;
pub mod instance;
pub mod interface;
pub mod layout;
pub mod maps;
pub mod name;
pub mod notify;
pub mod object;
pub mod output;
pub mod owners;
mod pidfd;
pub mod pins;
pub mod privileges;
pub mod queue;
pub mod resend;
pub mod settings;
pub mod teller;
pub mod top;
pub mod watch;

pub use error::{Error, Result};
pub use settings::Settings;
