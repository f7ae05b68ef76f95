//! What was read from a packet, kept outside the stack.
//!
//! A program's stack is 512 bytes, and the verifier walks what follows the
//! parser once for every path through the parser unless the results lie where
//! it does not track them. So the parser leaves them here.
//!
//! One for each CPU is enough: a TC program runs with softirqs off, so no other
//! packet comes in between on this CPU.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use throttle_common::{
    decision::SAME_PACKET_NS,
    flow::{Attempt, Flow, FlowKey},
    policy::ONLY,
};

/// What was read from a packet.
#[repr(C)]
pub struct Seen {
    /// Addresses and ports of the attempt that it belongs to.
    pub key: FlowKey,
    /// The initial sequence number of a SYN, the acknowledgment number of an
    /// answer, the sequence number that an ICMP error quotes.
    pub number: u32,
    /// An [`Incoming`](crate::inbound::Incoming).
    pub incoming: u32,
    /// A [`Hook`](crate::outbound::Hook): where a SYN was seen.
    pub hook: u32,
    /// Bytes of data in a SYN.
    pub data_len: u32,
    /// Where the IP header begins.
    pub network_offset: u32,
    /// Where the TCP header begins.
    pub transport_offset: u32,
}

/// A SYN that passed although it is in no table.
#[repr(C)]
struct Unremembered {
    /// When, in monotonic nanoseconds.
    at_ns: u64,
    /// Addresses and ports.
    key: FlowKey,
    /// Its initial sequence number.
    isn: u32,
    /// On which device.
    ifindex: u32,
}

/// The room of one CPU.
#[repr(C)]
pub struct Scratch {
    /// What was read from the packet.
    pub seen: Seen,
    /// What is known of the attempt, if the packet is the SYN of a new one.
    attempt: Attempt,
    /// Room to put a new entry together.
    flow: Flow,
    /// The last of these SYNs.
    unremembered: Unremembered,
}

#[map(name = "SCRATCH")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Writes down what was read. `false` if there is nowhere to.
#[inline(always)]
#[must_use]
pub fn note(seen: Seen) -> bool {
    let Some(scratch) = SCRATCH.get_ptr_mut(ONLY) else {
        return false;
    };
    // SAFETY: this CPU's own, see above; nothing refers to it yet.
    unsafe {
        (&raw mut (*scratch).seen).write(seen);
    }
    true
}

/// What was read.
#[inline(always)]
#[must_use]
pub fn seen() -> Option<&'static Seen> {
    // SAFETY: this CPU's own, see above; written before the packet is decided
    // about, and not again until the next one.
    Some(unsafe { &(*SCRATCH.get_ptr(ONLY)?).seen })
}

/// Has it written down what is known of a new attempt.
#[inline(always)]
#[must_use]
pub fn note_attempt(write: impl FnOnce(*mut Attempt)) -> Option<&'static Attempt> {
    let scratch = SCRATCH.get_ptr_mut(ONLY)?;
    // SAFETY: this CPU's own, see above; nothing refers to its attempt by now.
    write(unsafe { &raw mut (*scratch).attempt });
    attempt()
}

/// What is known of the new attempt.
#[inline(always)]
#[must_use]
pub fn attempt() -> Option<&'static Attempt> {
    // SAFETY: this CPU's own, see above; written before the packet is decided
    // about, and not again until the next one.
    Some(unsafe { &(*SCRATCH.get_ptr(ONLY)?).attempt })
}

/// Puts an entry together, to be copied into the table.
#[inline(always)]
#[must_use]
pub fn flow(flow: Flow) -> Option<&'static Flow> {
    let scratch = SCRATCH.get_ptr_mut(ONLY)?;
    // SAFETY: this CPU's own, see above; nothing refers to its flow by now.
    unsafe {
        (&raw mut (*scratch).flow).write(flow);
        Some(&(*scratch).flow)
    }
}

/// Writes down that the SYN which was read passes although it is in no table: its next
/// device, if it is stacked on another one, comes before any other packet of this CPU.
#[inline(always)]
pub fn note_unremembered(ifindex: u32, now_ns: u64) {
    let Some(scratch) = SCRATCH.get_ptr_mut(ONLY) else {
        return;
    };
    // SAFETY: this CPU's own, see above; nothing refers to what is written.
    unsafe {
        (&raw mut (*scratch).unremembered.at_ns).write(now_ns);
        (&raw mut (*scratch).unremembered.key).write((*scratch).seen.key);
        (&raw mut (*scratch).unremembered.isn).write((*scratch).seen.number);
        (&raw mut (*scratch).unremembered.ifindex).write(ifindex);
    }
}

/// Whether the SYN which was read passed another device than this one a moment ago,
/// although it is in no table.
#[inline(always)]
#[must_use]
pub fn is_unremembered(ifindex: u32, now_ns: u64) -> bool {
    let Some(scratch) = SCRATCH.get_ptr(ONLY) else {
        return false;
    };
    // SAFETY: this CPU's own, see above.
    let Scratch {
        seen, unremembered, ..
    } = unsafe { &*scratch };
    seen.number == unremembered.isn
        && ifindex != unremembered.ifindex
        && now_ns.saturating_sub(unremembered.at_ns) < SAME_PACKET_NS
        && seen.key == unremembered.key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_cpu_is_a_fraction_of_a_page() {
        assert!(size_of::<Scratch>() <= 512, "{}", size_of::<Scratch>());
        // The verifier wants every access aligned.
        assert_eq!(size_of::<Seen>() % 4, 0);
        assert_eq!(core::mem::offset_of!(Scratch, flow) % 8, 0);
        assert_eq!(core::mem::offset_of!(Scratch, unremembered) % 8, 0);
    }
}
