//! Whether the maps that one build made are of use to another.

use crate::{
    exempt::Destination,
    flow::{Endpoint, Flow, FlowKey},
    policy::{Daemon, Policy},
    process::Socket,
    record::{Deferred, LimitReached, Room, TALLIES, UNHANDLED},
    scope::{Line, Scope},
    subject::{LineKey, Subject},
};

/// Raised by hand when a field changes its meaning and no type its size.
const REVISION: u64 = 4;

/// A number that is another one whenever what the maps hold is laid out, or
/// meant, in another way. Never 0.
pub const LAYOUT: u32 = {
    let sizes: [u64; 16] = [
        size_of::<FlowKey>() as u64,
        size_of::<Flow>() as u64,
        size_of::<Endpoint>() as u64,
        size_of::<Subject>() as u64,
        size_of::<LineKey>() as u64,
        size_of::<Scope>() as u64,
        size_of::<Line>() as u64,
        size_of::<Policy>() as u64,
        size_of::<Daemon>() as u64,
        size_of::<Socket>() as u64,
        size_of::<Destination>() as u64,
        size_of::<Deferred>() as u64,
        size_of::<LimitReached>() as u64,
        size_of::<Room>() as u64,
        TALLIES as u64,
        UNHANDLED as u64,
    ];
    // FNV-1a, 64 bits, the upper half of it.
    const PRIME: u64 = 0x100_0000_01b3;
    let (mut hash, mut at) = ((0xcbf2_9ce4_8422_2325 ^ REVISION).wrapping_mul(PRIME), 0);
    while at < sizes.len() {
        hash = (hash ^ sizes[at]).wrapping_mul(PRIME);
        at += 1;
    }
    (hash >> 32) as u32 | 1
};
