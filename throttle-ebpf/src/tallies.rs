//! What happened in each scope, counted by each CPU for itself.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruPerCpuHashMap},
};
use throttle_common::{
    policy::ONLY,
    record::{TALLIES, Tally},
    subject::Subject,
    word::Word,
};

use crate::BPF_NOEXIST;

/// [`throttle_common::record::Tallies`], as words: a tracepoint in a process's
/// context may be interrupted by a packet on the same CPU.
#[repr(C)]
struct Words([Word; TALLIES]);

#[map(name = "TALLIES")]
static TABLE: LruPerCpuHashMap<Subject, Words> = LruPerCpuHashMap::with_max_entries(1, 0);

/// Tallies of nothing: what a new entry starts as.
#[map(name = "NO_TALLIES")]
static NO_TALLIES: Array<Words> = Array::with_max_entries(1, 0);

/// Adds `n` to one tally of `scope`.
#[inline(always)]
pub fn add(scope: &Subject, tally: Tally, n: u64) {
    if let Some(words) = get_or_make(scope) {
        words.0[tally as usize].add(n);
    }
}

/// Adds one.
#[inline(always)]
pub fn count(scope: &Subject, tally: Tally) {
    add(scope, tally, 1);
}

#[inline(always)]
fn get_or_make(scope: &Subject) -> Option<&'static Words> {
    // SAFETY: values of a preallocated map stay mapped.
    if let Some(found) = unsafe { TABLE.get(scope) } {
        return Some(found);
    }
    let _ = TABLE.insert(scope, NO_TALLIES.get(ONLY)?, BPF_NOEXIST);
    // SAFETY: as above.
    unsafe { TABLE.get(scope) }
}
