//! The table of unanswered attempts.

use core::ptr;

use crate::{BPF_F_NO_COMMON_LRU, BPF_NOEXIST};
use aya_ebpf::{macros::map, maps::LruHashMap};
use throttle_common::flow::{Flow, FlowKey, Phase, PhaseWord};

/// Values are shared, only the LRU lists are per CPU: an answer is often
/// handled by another CPU than the SYN. Sized when loaded.
#[map(name = "FLOWS")]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

/// Attempts that were admitted uncounted. They are in a table of their own, so
/// that many of them, which no limit bounds, cannot throw out one that is counted
/// or waits.
#[map(name = "UNCOUNTED")]
static UNCOUNTED: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

/// The attempt with this key, and its phase word.
///
/// The memory may be given to another attempt while it is looked at; changes on
/// behalf of the old one start from its phase word, and fail.
#[inline(always)]
#[must_use]
pub fn get(key: &FlowKey) -> Option<(&'static Flow, PhaseWord)> {
    // SAFETY: values of a preallocated map stay mapped; see above for reuse.
    let flow = unsafe { FLOWS.get(key).or_else(|| UNCOUNTED.get(key)) }?;
    Some((flow, flow.word_of(key)?))
}

/// What came of putting a new attempt into its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// It is there.
    Done,
    /// Another one with this key is: another CPU was faster.
    Taken,
    /// No room could be made.
    Full,
}

/// `ENOMEM` of asm-generic/errno-base.h, as helpers return it.
const ENOMEM: i32 = -12;

/// Puts a new attempt into its table.
#[inline(always)]
#[must_use]
pub fn insert(key: &FlowKey, flow: &Flow, is_counted: bool) -> Insertion {
    let table = if is_counted { &FLOWS } else { &UNCOUNTED };
    match table.insert(key, flow, BPF_NOEXIST) {
        Ok(()) => Insertion::Done,
        Err(ENOMEM) => Insertion::Full,
        // Or it is at that part of the table in this very moment.
        Err(_) => Insertion::Taken,
    }
}

/// Takes the attempt that `seen` is the phase word of out of its table, once it has
/// ended and unless another CPU is at it.
///
/// If the kernel throws it out meanwhile, and another CPU puts one with the same key in
/// its place, that goes instead; its count heals.
#[inline(always)]
pub fn take_out(key: &FlowKey, flow: &Flow, seen: PhaseWord) {
    if !flow.claim_entry(seen) {
        return;
    }
    // Two CPUs may have put one with this key into each of the tables; and what was
    // found under it may have got another one.
    let is_it = |found: Option<&Flow>| found.is_some_and(|found| ptr::eq(found, flow));
    // SAFETY: values of a preallocated map stay mapped.
    let table = if is_it(unsafe { FLOWS.get(key) }) {
        &FLOWS
    } else if is_it(unsafe { UNCOUNTED.get(key) }) {
        &UNCOUNTED
    } else {
        return flow.disclaim_entry(seen);
    };
    match table.remove(key) {
        // Or else the kernel had thrown it out.
        Ok(()) | Err(ENOENT) => {}
        // The kernel was busy with this very part of the table. Who finds it next
        // takes it out.
        Err(_) => flow.disclaim_entry(seen),
    }
}

/// The same, if it has ended.
#[inline(always)]
pub fn take_out_if_over(key: &FlowKey, flow: &Flow, seen: PhaseWord) {
    if flow.phase() == Phase::Ended {
        take_out(key, flow, seen);
    }
}

/// `ENOENT`, likewise.
const ENOENT: i32 = -2;
