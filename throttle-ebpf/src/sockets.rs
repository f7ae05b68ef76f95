//! Sockets that connect: whose they are, and which attempt they have.

use aya_ebpf::{macros::map, maps::LruHashMap};
use throttle_common::{
    flow::FlowKey,
    process::{Process, Socket},
    record::Unhandled,
};

use crate::{BPF_ANY, BPF_F_NO_COMMON_LRU, unhandled};

/// By cookie, since NAT changes a packet's addresses, and at the socket they
/// are still the old ones. Only the tracepoint puts entries in and takes them
/// out: without it there are none, and sockets that do not connect (raw and
/// packet sockets) never have one.
#[map(name = "SOCKETS")]
static SOCKETS: LruHashMap<u64, Socket> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

/// The socket `cookie` is being connected by `process`.
#[inline(always)]
pub fn connects(cookie: u64, process: Process) {
    let socket = Socket {
        process,
        ..Socket::default()
    };
    if SOCKETS.insert(cookie, socket, BPF_ANY).is_err() {
        unhandled::count(Unhandled::Forgotten);
    }
}

/// Who connects the socket `cookie`, if that is known.
#[inline(always)]
#[must_use]
pub fn process_of(cookie: u64) -> Option<&'static Process> {
    if cookie == 0 {
        return None;
    }
    // SAFETY: values of a preallocated map stay mapped. If the entry is given to
    // another socket in this moment, an attempt may stand in the wrong line.
    let socket = unsafe { SOCKETS.get(cookie) }?;
    Some(&socket.process)
}

/// The socket `cookie` has the attempt `key`.
#[inline(always)]
pub fn remember(cookie: u64, key: &FlowKey) {
    if cookie == 0 {
        return;
    }
    if let Some(socket) = SOCKETS.get_ptr_mut(cookie) {
        // SAFETY: values of a preallocated map stay mapped. A socket's SYN and
        // the end of its attempt are both handled with the socket locked, so
        // nobody reads the key meanwhile; if the entry is another socket's by
        // now, its reader compares the cookie that the flow holds.
        unsafe {
            (&raw mut (*socket).key).write(*key);
        }
    }
}

/// The attempt of the socket `cookie`.
#[inline(always)]
#[must_use]
pub fn attempt_of(cookie: u64) -> Option<FlowKey> {
    // SAFETY: copied at once; a reused entry is caught by comparing the cookie
    // that the flow holds.
    unsafe { SOCKETS.get(cookie) }.map(|socket| socket.key)
}

/// The socket no longer connects.
#[inline(always)]
pub fn forget(cookie: u64) {
    let _ = SOCKETS.remove(cookie);
}
