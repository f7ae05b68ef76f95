//! Destinations that no limit applies to.

use aya_ebpf::{
    macros::map,
    maps::{LpmTrie, lpm_trie::Key},
};
use throttle_common::{
    exempt::{ALL_BITS, Destination},
    flow::Endpoint,
};

/// Written by user space only; read at each SYN, so a change is live. Sized when
/// loaded.
#[map(name = "EXEMPT")]
static EXEMPT: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(1, 0);

/// Whether no limit applies to attempts to `endpoint`.
#[inline(always)]
#[must_use]
pub fn is_exempt(endpoint: &Endpoint) -> bool {
    EXEMPT
        .get(Key::new(ALL_BITS, Destination::at_any_port(endpoint)))
        .is_some()
        || EXEMPT
            .get(Key::new(ALL_BITS, Destination::at_port(endpoint)))
            .is_some()
}
