//! The table of unanswered attempts.

use aya_ebpf::{macros::map, maps::LruHashMap};
use throttle_common::flow::{Flow, FlowKey, Phase};

use crate::{BPF_F_NO_COMMON_LRU, BPF_NOEXIST};

/// Values are shared, only the LRU lists are per CPU: an answer is often
/// handled by another CPU than the SYN. Sized when loaded.
#[map(name = "FLOWS")]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

/// Attempts that were admitted uncounted. They are in a table of their own, so
/// that many of them, which no limit bounds, cannot throw out one that is counted
/// or waits.
#[map(name = "UNCOUNTED")]
static UNCOUNTED: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

/// The attempt with this key.
///
/// The memory may be given to another attempt while it is looked at; the phase
/// word makes changes on behalf of the old one fail.
#[inline(always)]
#[must_use]
pub fn get(key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: values of a preallocated map stay mapped; see above for reuse.
    unsafe { FLOWS.get(key).or_else(|| UNCOUNTED.get(key)) }
}

/// Puts a new attempt into its table. `false` if one with this key is there
/// already, or no room could be made.
#[inline(always)]
#[must_use]
pub fn insert(key: &FlowKey, flow: &Flow, is_counted: bool) -> bool {
    let table = if is_counted { &FLOWS } else { &UNCOUNTED };
    table.insert(key, flow, BPF_NOEXIST).is_ok()
}

/// Takes an attempt that has ended out of the table.
///
/// It may be gone already, and another CPU may have put a new attempt with the
/// same addresses and ports in its place. That one stays: taken out, it would
/// count until it times out, and nothing could end it.
#[inline(always)]
pub fn remove(key: &FlowKey) {
    if get(key).is_none_or(|flow| flow.phase() != Phase::Ended) {
        return;
    }
    if FLOWS.remove(key).is_err() {
        let _ = UNCOUNTED.remove(key);
    }
}
