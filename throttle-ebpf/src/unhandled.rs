//! What could not be handled the usual way.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use throttle_common::{
    record::{UNHANDLED, Unhandled},
    word::Word,
};

#[map(name = "UNHANDLED")]
static TABLE: PerCpuArray<Word> = PerCpuArray::with_max_entries(UNHANDLED, 0);

/// Counts one; returns how many there were on this CPU before.
#[inline(always)]
pub fn count(what: Unhandled) -> u64 {
    TABLE.get(what as u32).map_or(0, |word| word.add(1))
}
