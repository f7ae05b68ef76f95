//! Endpoints that answered a SYN with SYN-ACK, and when.

use aya_ebpf::{macros::map, maps::LruHashMap};
use throttle_common::{flow::Endpoint, word::Word};

use crate::{BPF_ANY, BPF_F_NO_COMMON_LRU, unhandled};

/// When each answered last, in monotonic nanoseconds; 0 if it no longer does.
#[map(name = "ENDPOINTS")]
static ENDPOINTS: LruHashMap<Endpoint, Word> = LruHashMap::with_max_entries(1, BPF_F_NO_COMMON_LRU);

#[inline(always)]
fn answered_at(endpoint: &Endpoint) -> Option<&'static Word> {
    // SAFETY: values of a preallocated map stay mapped; a word that is reused
    // for another endpoint costs at most one wrong guess about that one.
    unsafe { ENDPOINTS.get(endpoint) }
}

/// Whether the endpoint answered within the last `known_for_ns`.
#[inline(always)]
#[must_use]
pub fn is_known(endpoint: &Endpoint, known_for_ns: u64, now_ns: u64) -> bool {
    known_for_ns > 0
        && answered_at(endpoint).is_some_and(|word| {
            let at_ns = word.load();
            at_ns != 0 && now_ns.saturating_sub(at_ns) < known_for_ns
        })
}

/// The endpoint answered.
#[inline(always)]
pub fn remember(endpoint: &Endpoint, now_ns: u64) {
    // An update of a key that is there may evict another one.
    if let Some(word) = answered_at(endpoint) {
        word.swap(now_ns);
    } else if ENDPOINTS
        .insert(endpoint, Word::new(now_ns), BPF_ANY)
        .is_err()
    {
        unhandled::count(throttle_common::record::Unhandled::Forgotten);
    }
}

/// The endpoint left a SYN of `since_ns` unanswered. If it has answered another
/// one after that, the SYN was lost, or nobody waits for its answer.
#[inline(always)]
pub fn forget(endpoint: &Endpoint, since_ns: u64) {
    if let Some(word) = answered_at(endpoint) {
        let at_ns = word.load();
        if at_ns <= since_ns {
            // If it answers in this moment, that counts.
            word.replace(at_ns, 0);
        }
    }
}
