//! What happened in each scope, counted by each CPU for itself.

use aya_ebpf::{macros::map, maps::LruPerCpuHashMap};
use throttle_common::{
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
    let blank = Words([const { Word::new(0) }; TALLIES]);
    let _ = TABLE.insert(scope, &blank, BPF_NOEXIST);
    // SAFETY: as above.
    unsafe { TABLE.get(scope) }
}
