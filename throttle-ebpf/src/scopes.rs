//! The state of scopes and lines.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap},
};
use throttle_common::{
    policy::ONLY,
    scope::{Line, Scope},
    subject::{LineKey, Subject},
};

use crate::BPF_NOEXIST;

// With the common LRU list: there are few scopes and lines, and a list for each
// CPU would leave each CPU only its share of the table.
#[map(name = "SCOPES")]
static SCOPES: LruHashMap<Subject, Scope> = LruHashMap::with_max_entries(1, 0);

#[map(name = "LINES")]
static LINES: LruHashMap<LineKey, Line> = LruHashMap::with_max_entries(1, 0);

/// A scope where nothing happened: what a new entry starts as. It is too large
/// for a program's stack.
#[map(name = "BLANK")]
static BLANK: Array<Blank> = Array::with_max_entries(1, 0);

/// A scope and a line, both empty.
#[repr(C)]
struct Blank {
    scope: Scope,
    line: Line,
}

/// The state of `scope`, if it has any.
#[inline(always)]
#[must_use]
pub fn get(scope: &Subject) -> Option<&'static Scope> {
    // SAFETY: values of a preallocated map stay mapped. The entry could only be
    // given to another scope in this moment if a thousand others had come since
    // its last packet; then a unit of that one may stay counted.
    unsafe { SCOPES.get(scope) }
}

/// The state of `scope`, made if need be. None if no room could be made.
#[inline(always)]
#[must_use]
pub fn get_or_make(scope: &Subject) -> Option<&'static Scope> {
    if let Some(found) = get(scope) {
        return Some(found);
    }
    // Another CPU may make it in this moment: whichever is there counts.
    let _ = SCOPES.insert(scope, &BLANK.get(ONLY)?.scope, BPF_NOEXIST);
    get(scope)
}

/// The state of a line, if it has any.
#[inline(always)]
#[must_use]
pub fn line(key: &LineKey) -> Option<&'static Line> {
    // SAFETY: as for `get`.
    unsafe { LINES.get(key) }
}

/// The state of a line, made if need be. None if no room could be made.
#[inline(always)]
#[must_use]
pub fn line_or_make(key: &LineKey) -> Option<&'static Line> {
    if let Some(found) = line(key) {
        return Some(found);
    }
    let _ = LINES.insert(key, &BLANK.get(ONLY)?.line, BPF_NOEXIST);
    line(key)
}
