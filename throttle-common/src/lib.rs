//! The decisions of `throttle` and the records its two sides share.
//!
//! Everything here is pure: the clock, the settings and the state are
//! parameters, and every outcome is a value. There are no maps, no statics and
//! no helpers, so the same code runs in the kernel, under the tests, under a
//! concurrency model checker and over a capture file.
//!
//! Read the modules in this order: [`word`] (one shared number), [`window`]
//! (how time is cut into buckets), [`counter`] (a count that heals itself),
//! [`place`] (the receipt for one unit of a count), [`release`] (the fixed
//! rate), [`policy`] (the settings), [`subject`] (whom a count belongs to),
//! [`process`] (who has a socket),
//! [`scope`] and [`flow`] (the state of a scope and of an attempt),
//! [`exempt`]
//! (what no rule applies to), [`decision`] (the rules), [`departure`] (releases ahead of their time), [`frame`] (what a packet says), [`record`]
//! (what the kernel tells the daemon) and [`layout`] (whether two builds share their maps).
//!
//! Byte order: addresses and ports are kept as they are on the wire (network
//! order, as byte arrays); every other number is in host order.

#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "the BPF target has no stable atomics that return a value"
    )
)]

pub mod counter;
pub mod decision;
pub mod departure;
pub mod exempt;
pub mod flow;
pub mod frame;
pub mod layout;
pub mod place;
pub mod policy;
pub mod process;
pub mod record;
pub mod release;
pub mod scope;
pub mod subject;
#[cfg(feature = "std")]
pub mod turns;
pub mod window;
pub mod word;

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const NANOS_PER_MILLI: u64 = 1_000_000;
