//! What the daemon is told, through the ring buffer. It never blocks: what does
//! not fit is counted.

use aya_ebpf::{macros::map, maps::RingBuf};
use throttle_common::{
    flow::{Attempt, Flow},
    policy::Policy,
    process::Process,
    record::{Deferred, FRAME_MAX, LimitReached, RecordKind, Room, Unhandled},
    scope::Scope,
    subject::Subject,
};

use crate::{scratch::Seen, skb::Skb, sockets, unhandled};

/// Room for a frame in a record, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "it is a few hundred")]
const FRAME_ROOM: u32 = FRAME_MAX as u32;

/// Sized when loaded.
#[map(name = "EVENTS")]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Reserves a record, has it filled, and submits it if `fill` says so. `false`
/// if there was no room or nothing was submitted.
#[inline(always)]
fn send<T: 'static>(fill: impl FnOnce(*mut T) -> bool) -> bool {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        unhandled::count(Unhandled::RingFull);
        return false;
    };
    if fill(entry.as_mut_ptr()) {
        entry.submit(0);
        true
    } else {
        entry.discard(0);
        false
    }
}

/// An attempt was deferred: hands its frame to the daemon. `false` if the
/// daemon does not get it.
#[inline(always)]
pub fn deferred(skb: &Skb, seen: &Seen, flow: &Flow, now_ns: u64) -> bool {
    let len = skb.len();
    if len == 0 || len > FRAME_ROOM || flow.too_long != 0 {
        unhandled::count(Unhandled::FrameTooLong);
        return false;
    }
    send(|record: *mut Deferred| {
        // SAFETY: the ring buffer reserved room for a whole record, which
        // nobody else sees before it is submitted. Every field is written.
        unsafe {
            (&raw mut (*record).kind).write(RecordKind::Deferred as u32);
            (&raw mut (*record).frame_len).write(len);
            (&raw mut (*record).first_ns).write(flow.first_ns);
            (&raw mut (*record).seen_ns).write(now_ns);
            (&raw mut (*record).scope).write(flow.scope);
            (&raw mut (*record).owner).write(flow.owner);
            write_process(skb, &raw mut (*record).process, flow.cookie);
            (&raw mut (*record).key).write(seen.key);
            (&raw mut (*record).isn).write(flow.isn);
            (&raw mut (*record).ifindex).write(skb.ifindex());
            (&raw mut (*record).mark).write(skb.mark());
            (&raw mut (*record).priority).write(skb.priority());
            (&raw mut (*record).vlan).write(skb.vlan());
            (&raw mut (*record).network_offset).write(seen.network_offset);
            (&raw mut (*record).transport_offset).write(seen.transport_offset);
            // The record's memory was another record's: no byte of that shows.
            (&raw mut (*record).frame).write([0; FRAME_MAX]);
            skb.copy_frame((&raw mut (*record).frame).cast(), FRAME_ROOM, len)
        }
    })
}

/// Writes down who has the socket `cookie`.
///
/// # Safety
///
/// `to` must be valid for writes.
#[inline(always)]
unsafe fn write_process(skb: &Skb, to: *mut Process, cookie: u64) {
    match sockets::process_of(cookie) {
        // SAFETY: as promised by the caller.
        Some(process) => unsafe { to.write(*process) },
        // SAFETY: as above.
        None => unsafe { to.write(Process::unknown(skb.is_of_tcp_socket())) },
    }
}

/// An episode began in the scope of `attempt`, with that. `false` if that could
/// not be told.
#[inline(always)]
pub fn limit_reached(
    skb: &Skb,
    policy: &Policy,
    scope: &Scope,
    attempt: &Attempt,
    seen: &Seen,
    now_ns: u64,
) -> bool {
    send(|record: *mut LimitReached| {
        // SAFETY: as in `deferred`.
        unsafe {
            (&raw mut (*record).kind).write(RecordKind::LimitReached as u32);
            (&raw mut (*record).ifindex).write(attempt.ifindex);
            (&raw mut (*record).at_ns).write(now_ns);
            (&raw mut (*record).scope).write(attempt.scope);
            (&raw mut (*record).owner).write(attempt.owner);
            write_process(skb, &raw mut (*record).process, attempt.cookie);
            (&raw mut (*record).half_open).write(scope.half_open.total());
            (&raw mut (*record).queued).write(scope.queued.total());
            (&raw mut (*record).limit).write(policy.limit);
            (&raw mut (*record).interval_ns).write(policy.interval_ns);
            (&raw mut (*record).mode).write(policy.mode);
            (&raw mut (*record).key).write(seen.key);
        }
        true
    })
}

/// There is room in a scope where somebody waits. `false` if that could not be
/// told.
#[inline(always)]
pub fn room(subject: &Subject) -> bool {
    send(|record: *mut Room| {
        // SAFETY: as in `deferred`.
        unsafe {
            (&raw mut (*record).kind).write(RecordKind::Room as u32);
            (&raw mut (*record).reserved).write(0);
            (&raw mut (*record).scope).write(*subject);
        }
        true
    })
}
