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
const REVISION: u32 = 1;

/// A number that is another one whenever what the maps hold is laid out, or
/// meant, in another way. Never 0.
pub const LAYOUT: u32 = {
    let sizes = [
        size_of::<FlowKey>(),
        size_of::<Flow>(),
        size_of::<Endpoint>(),
        size_of::<Subject>(),
        size_of::<LineKey>(),
        size_of::<Scope>(),
        size_of::<Line>(),
        size_of::<Policy>(),
        size_of::<Daemon>(),
        size_of::<Socket>(),
        size_of::<Destination>(),
        size_of::<Deferred>(),
        size_of::<LimitReached>(),
        size_of::<Room>(),
        TALLIES,
        UNHANDLED as usize,
    ];
    // FNV-1a, 32 bits.
    let (mut hash, mut at) = ((0x811c_9dc5 ^ REVISION).wrapping_mul(0x0100_0193), 0);
    while at < sizes.len() {
        hash = (hash ^ sizes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    if hash == 0 { 1 } else { hash }
};
