//! From reading a packet to deciding about it.
//!
//! The two are separate programs, joined by a tail call. What reads is small and
//! runs for every packet; what decides runs for few. Apart, each has a stack of
//! its own, and the verifier need not walk the one for every path through the
//! other.

use aya_ebpf::{macros::map, maps::ProgramArray};
use throttle_common::record::{STEPS, Step, Unhandled};

use crate::{skb::Skb, unhandled};

/// The deciding programs, put in by the loader before anything is attached.
#[map(name = "NEXT_STEP")]
static NEXT_STEP: ProgramArray = ProgramArray::with_max_entries(STEPS, 0);

/// Goes on to decide about the packet that was noted. Comes back only if the
/// program is not there; the packet passes then, and is counted.
#[inline(always)]
pub fn go_on(skb: &Skb, step: Step) {
    // SAFETY: whatever the program returns ends this one.
    unsafe { NEXT_STEP.tail_call(&skb.context(), step as u32) }
    unhandled::count(Unhandled::StepMissing);
}
