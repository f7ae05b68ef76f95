//! Which attempt a socket has.

use aya_ebpf::{macros::map, maps::LruHashMap};
use throttle_common::{flow::FlowKey, record::Unhandled};

use crate::{BPF_ANY, BPF_F_NO_COMMON_LRU, unhandled};

/// By cookie, since NAT changes a packet's addresses, and at the socket they
/// are still the old ones.
#[map(name = "SOCKETS")]
static SOCKETS: LruHashMap<u64, FlowKey> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

/// The socket `cookie` has the attempt `key`.
#[inline(always)]
pub fn remember(cookie: u64, key: &FlowKey) {
    if cookie != 0 && SOCKETS.insert(cookie, key, BPF_ANY).is_err() {
        unhandled::count(Unhandled::Forgotten);
    }
}

/// The attempt of the socket `cookie`.
#[inline(always)]
#[must_use]
pub fn attempt_of(cookie: u64) -> Option<FlowKey> {
    // SAFETY: copied at once; a reused entry is caught by comparing the cookie
    // that the flow holds.
    unsafe { SOCKETS.get(cookie) }.copied()
}

/// The socket's attempt is over.
#[inline(always)]
pub fn forget(cookie: u64) {
    if cookie != 0 {
        let _ = SOCKETS.remove(cookie);
    }
}
