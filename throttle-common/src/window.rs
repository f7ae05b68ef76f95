//! How time is cut into buckets.
//!
//! A window of `span` nanoseconds is cut into buckets whose width is a power of
//! two, chosen so that at most half of a counter's slots are live at a time.
//! A [`Label`] names one bucket: its width and its number. The width is part of
//! the name, so a changed span never mistakes an old bucket for a new one.

/// Bits of a label that hold the bucket's number.
const EPOCH_BITS: u32 = 34;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;

/// Bits of a whole label: six for the width, the rest for the number.
pub const LABEL_BITS: u32 = 6 + EPOCH_BITS;

/// The name of one bucket: `log2(width in ns)` and `time / width`, the latter
/// modulo 2^34. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(u64);

impl Label {
    /// Unpacks a label from the low [`LABEL_BITS`] bits of `bits`.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << LABEL_BITS) - 1))
    }

    /// The label as a number below 2^[`LABEL_BITS`].
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The number of the bucket, modulo 2^34.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(self) -> u64 {
        self.0 & EPOCH_MASK
    }

    #[inline(always)]
    const fn shift(self) -> u32 {
        ((self.0 >> EPOCH_BITS) & 63) as u32
    }

    /// Nanoseconds since the bucket began. A bucket of the future (a clock that
    /// stepped back) has age 0.
    #[inline(always)]
    #[must_use]
    pub const fn age_ns(self, now_ns: u64) -> u64 {
        let shift = self.shift();
        let epochs = (now_ns >> shift).wrapping_sub(self.epoch()) & EPOCH_MASK;
        if epochs > EPOCH_MASK / 2 {
            return 0;
        }
        let whole = epochs << shift;
        // Old labels of wide buckets: what shifts out is older than anything.
        if whole >> shift != epochs {
            return u64::MAX;
        }
        whole.saturating_add(now_ns & ((1 << shift) - 1))
    }
}

/// A span of time and how a counter of a given size cuts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    span_ns: u64,
    shift: u32,
}

/// Shortest window: one second. The settings refuse less.
pub const MIN_SPAN_NS: u64 = crate::NANOS_PER_SEC;
/// Longest window: one day. The settings refuse more.
pub const MAX_SPAN_NS: u64 = 86_400 * crate::NANOS_PER_SEC;

impl Window {
    /// A window of `span_ns` nanoseconds for a counter of `slots` slots.
    ///
    /// The width is the smallest power of two of which `slots / 2` cover the
    /// span.
    #[inline(always)]
    #[must_use]
    pub const fn new(span_ns: u64, slots: usize) -> Self {
        let span_ns = if span_ns < MIN_SPAN_NS {
            MIN_SPAN_NS
        } else if span_ns > MAX_SPAN_NS {
            MAX_SPAN_NS
        } else {
            span_ns
        };
        let least = span_ns / (slots as u64 / 2);
        Self {
            span_ns,
            shift: 64 - least.leading_zeros(),
        }
    }

    /// The span in nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn span_ns(self) -> u64 {
        self.span_ns
    }

    /// Width of a bucket in nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn width_ns(self) -> u64 {
        1 << self.shift
    }

    /// How long a sweep may be put off: an eighth of a bucket. Buckets age that
    /// much earlier, so nothing counts for longer than the span.
    #[inline(always)]
    #[must_use]
    pub const fn patience_ns(self) -> u64 {
        self.width_ns() / 8
    }

    /// The bucket of `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn label(self, now_ns: u64) -> Label {
        Label(((self.shift as u64) << EPOCH_BITS) | ((now_ns >> self.shift) & EPOCH_MASK))
    }

    /// Whether everything counted in this bucket has had its time, or would
    /// have it before the next sweep.
    #[inline(always)]
    #[must_use]
    pub const fn has_aged(self, label: Label, now_ns: u64) -> bool {
        label.age_ns(now_ns).saturating_add(self.patience_ns()) >= self.span_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn thirty_seconds_in_sixty_four_slots_are_twenty_eight_buckets() {
        let window = Window::new(30 * crate::NANOS_PER_SEC, 64);
        assert_eq!(window.width_ns(), 1 << 30);
        assert_eq!(30 * crate::NANOS_PER_SEC / window.width_ns(), 27);
    }

    proptest! {
        #[test]
        fn at_most_half_the_slots_and_one_are_live(span in MIN_SPAN_NS..=MAX_SPAN_NS, slots in prop_oneof![Just(16usize), Just(64)]) {
            let window = Window::new(span, slots);
            prop_assert!(window.width_ns() * (slots as u64 / 2) >= span);
            prop_assert!(span / window.width_ns() <= slots as u64 / 2);
            // Not needlessly coarse either.
            prop_assert!(window.width_ns() / 2 * (slots as u64 / 2) <= span);
        }

        #[test]
        fn a_bucket_ages_within_the_span_and_not_two_buckets_early(
            span in MIN_SPAN_NS..=MAX_SPAN_NS, counted_at in 0u64..(1 << 58), waited in 0u64..(2 * MAX_SPAN_NS),
        ) {
            let window = Window::new(span, 64);
            let label = window.label(counted_at);
            let aged = window.has_aged(label, counted_at + waited);
            if waited >= span { prop_assert!(aged); }
            if waited + 2 * window.width_ns() < span { prop_assert!(!aged); }
        }

        #[test]
        fn a_label_survives_packing(span in MIN_SPAN_NS..=MAX_SPAN_NS, now in any::<u64>()) {
            let label = Window::new(span, 64).label(now);
            prop_assert_eq!(Label::from_bits(label.bits()), label);
            prop_assert!(label.bits() != 0);
        }

        #[test]
        fn the_epoch_may_wrap(span in MIN_SPAN_NS..=MAX_SPAN_NS, back in 0u64..MIN_SPAN_NS) {
            // Around the point where the bucket's number starts again at 0.
            let window = Window::new(span, 64);
            let wrap = 1u128 << (EPOCH_BITS + window.width_ns().trailing_zeros());
            if let Ok(wrap) = u64::try_from(wrap) {
                let label = window.label(wrap - 1 - back);
                prop_assert!(!window.has_aged(label, wrap - 1 - back) || window.patience_ns() >= span);
                prop_assert!(label.age_ns(wrap + back) >= back);
                prop_assert!(label.age_ns(wrap + back) <= 2 * back + 1 + window.width_ns());
            }
        }

        #[test]
        fn a_clock_that_steps_back_ages_nothing(span in MIN_SPAN_NS..=MAX_SPAN_NS, now in (1u64 << 50)..(1 << 58), step in 0u64..(1 << 40)) {
            let window = Window::new(span, 64);
            prop_assert!(window.label(now).age_ns(now - step) < window.width_ns());
        }
    }
}
