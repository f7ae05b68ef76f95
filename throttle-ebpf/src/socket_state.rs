//! Sockets that begin to connect, and ends that never touch the wire: a socket
//! that is closed, killed, or gives up while its attempt is unanswered.

use aya_ebpf::{helpers::bpf_get_socket_cookie, programs::BtfTracePointContext};
use throttle_common::record::Tally;

use crate::{current, flows, inbound, sockets};

/// `TCP_ESTABLISHED` of include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
/// `TCP_SYN_SENT` of include/net/tcp_states.h.
const TCP_SYN_SENT: i32 = 2;
/// `TCP_CLOSE` of include/net/tcp_states.h.
const TCP_CLOSE: i32 = 7;

/// A socket changed its state (`trace_inet_sock_set_state`, called by
/// `inet_sk_set_state` in net/ipv4/af_inet.c).
#[inline(always)]
pub fn changed(context: &BtfTracePointContext) {
    let (from, to): (i32, i32) = (context.arg(1), context.arg(2));
    if to == TCP_SYN_SENT {
        // Called by `connect()` itself, before the SYN is made.
        sockets::connects(cookie_of(context), current::process(context));
        return;
    }
    if from != TCP_SYN_SENT {
        return;
    }
    // What came in on the wire has been seen by the inbound program before, if
    // it came in where that is attached.
    let how = match to {
        TCP_CLOSE => Tally::Aborted,
        TCP_ESTABLISHED => Tally::Answered,
        _ => return,
    };
    let cookie = cookie_of(context);
    let Some(key) = sockets::attempt_of(cookie) else {
        return;
    };
    sockets::forget(cookie);
    let Some((flow, word)) = flows::get(&key) else {
        return;
    };
    if flow.cookie == cookie {
        inbound::finish(flow, word, how);
        flows::take_out(&key, flow, word);
    }
}

#[inline(always)]
fn cookie_of(context: &BtfTracePointContext) -> u64 {
    let socket: *const core::ffi::c_void = context.arg(0);
    // SAFETY: the tracepoint hands over a live socket; the verifier checks its
    // type.
    unsafe { bpf_get_socket_cookie(socket.cast_mut()) }
}
