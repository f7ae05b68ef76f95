//! SYNs that leave their device at a time that they carry, where it can do that.

use aya_ebpf::{helpers::bpf_skb_set_tstamp, macros::map, maps::HashMap};
use throttle_common::{
    NANOS_PER_MILLI,
    decision::{Context, Device, Offer},
    departure,
    flow::Flow,
};

use crate::{outbound::Hook, scratch::Seen, skb::Skb};

/// The clock of departure times: `BPF_SKB_CLOCK_MONOTONIC`, which was called
/// `BPF_SKB_TSTAMP_DELIVERY_MONO` before (include/uapi/linux/bpf.h).
const MONOTONIC: u32 = 1;

/// 1 if the kernel has the helper that sets a departure time (Linux 5.18). User
/// space asks it, and writes the answer here before the program is loaded: with 0
/// the verifier never comes by the call, and does not miss the helper.
#[unsafe(no_mangle)]
static SETS_DEPARTURES: u32 = 0;

/// How often TCP asks again before it begins to double the time
/// (`tcp_syn_linear_timeouts`). Written like [`SETS_DEPARTURES`].
#[unsafe(no_mangle)]
static LINEAR_TIMEOUTS: u32 = 0;

/// For each device whose qdisc lets packets go at their departure times, how far
/// ahead these may be, in nanoseconds. Others are not in it. Written by user space,
/// which follows their qdiscs. Sized when loaded.
#[map(name = "INTERFACES")]
static INTERFACES: HashMap<u32, u64> = HashMap::with_max_entries(1, 0);

/// What user space wrote into one of the above.
#[inline(always)]
fn written(into: &'static u32) -> u32 {
    // SAFETY: a valid reference. Volatile, since the compiler would take the
    // number for the one that stands here.
    unsafe { core::ptr::from_ref(into).read_volatile() }
}

/// Where the SYN of an attempt is seen again, and how far ahead of its time that
/// may be let go from there.
///
/// Only the packet of a TCP socket may wait in the device: fq has a queue for each
/// socket, and the kernel sends it no second time meanwhile. All others share some
/// queues, and one that waits there delays strangers (`fq_classify` in
/// net/sched/sch_fq.c).
#[inline(always)]
#[must_use]
pub fn device(skb: &Skb, context: &Context<'_>, syn: &Seen, flow: &Flow, offer: Offer) -> Device {
    let mut device = Device::plain(skb.ifindex());
    if written(&SETS_DEPARTURES) == 0
        || offer != Offer::Sender
        || Hook::from_raw(syn.hook) != Hook::Egress
    {
        return device;
    }
    let wanted_ns = departure::ahead_ns(context, flow, written(&LINEAR_TIMEOUTS));
    // The helper takes no other packets (`bpf_skb_set_tstamp` in
    // net/core/filter.c).
    if wanted_ns == 0 || !skb.is_ip() || !skb.is_of_tcp_socket() {
        return device;
    }
    // SAFETY: an aligned number, which may be another one the next time.
    if let Some(most_ns) = unsafe { INTERFACES.get(device.ifindex) } {
        let most_ns = *most_ns;
        device.ahead_ns = if wanted_ns < most_ns {
            wanted_ns
        } else {
            most_ns
        };
    }
    device
}

/// Has the SYN leave its device at `at_ns`. Its TCP timestamp becomes that of then:
/// the connection starts with the round-trip time of the path, and not with the
/// wait.
#[inline(always)]
pub fn depart(skb: &Skb, syn: &Seen, at_ns: u64, now_ns: u64) {
    if written(&SETS_DEPARTURES) == 0 {
        return;
    }
    // Later, if its socket wanted that.
    let wanted_ns = skb.departs_ns();
    let at_ns = if wanted_ns > at_ns { wanted_ns } else { at_ns };
    skb.add_to_timestamp(
        syn.transport_offset,
        at_ns.saturating_sub(now_ns) / NANOS_PER_MILLI,
    );
    // SAFETY: a valid context. It does not fail: the packet is IP.
    unsafe {
        bpf_skb_set_tstamp(skb.as_ptr(), at_ns, MONOTONIC);
    }
}
