//! A count that is exact, and heals itself.
//!
//! A counter is a total and a ring of buckets. Each unit is added to the total
//! and to the bucket of its time; a bucket word packs (label, count). A unit
//! that ends is taken from its bucket *if the bucket still carries its label*,
//! and only then from the total. A bucket that has aged is swapped out and what
//! was left in it is taken from the total. So the total is the sum of the live
//! buckets, nothing is taken away twice, and a unit that nobody ever ends is
//! forgiven after one span.

use crate::{
    place::Place,
    window::{LABEL_BITS, Label, Window},
    word::Word,
};

/// Largest count of one bucket: what is left of a word beside the label.
pub const BUCKET_MAX: u64 = (1 << (64 - LABEL_BITS)) - 1;

/// How often a lost race for one bucket is tried again. Losing one means that
/// another CPU got its change in; to lose them all, this many changes must hit
/// one bucket while one CPU runs a dozen instructions.
const TRIES: usize = 16;

/// A bucket's word: label above, count below.
#[derive(Clone, Copy)]
struct Bucket(u64);

impl Bucket {
    const EMPTY: Self = Self(0);

    #[inline(always)]
    const fn new(label: Label, count: u64) -> Self {
        Self((label.bits() << (64 - LABEL_BITS)) | (count & BUCKET_MAX))
    }

    #[inline(always)]
    const fn label(self) -> Label {
        Label::from_bits(self.0 >> (64 - LABEL_BITS))
    }

    #[inline(always)]
    const fn count(self) -> u64 {
        self.0 & BUCKET_MAX
    }
}

/// What came of asking for a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// One unit, and its receipt.
    Place(Place),
    /// The limit is reached; nothing was changed.
    Full,
    /// No bucket could be had (a race lost too often, or every bucket is held
    /// by labels of other widths); nothing was changed.
    Contended,
}

/// What came of adding to one bucket.
enum Filing {
    Done(Place),
    /// Another CPU changed the bucket in this moment.
    Raced,
    /// It holds live units of another label, or as many as fit.
    Occupied,
}

/// A total and the ring of `N` buckets that it is the sum of. `N` is a power of
/// two, at most 256. All zero is a counter of nothing.
#[repr(C)]
#[derive(Debug)]
pub struct Counter<const N: usize> {
    total: Word,
    swept_at_ns: Word,
    ring: [Word; N],
}

impl<const N: usize> Default for Counter<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Counter<N> {
    const SLOT_MASK: usize = {
        assert!(
            N.is_power_of_two() && N <= 256,
            "a slot must fit its mask and a place"
        );
        N - 1
    };

    /// The slot of a label's epoch.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the mask leaves eight bits at most"
    )]
    const fn slot_of(label: Label) -> usize {
        (label.epoch() & Self::SLOT_MASK as u64) as usize
    }

    /// A counter of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            total: Word::new(0),
            swept_at_ns: Word::new(0),
            ring: [const { Word::new(0) }; N],
        }
    }

    /// How `span_ns` is cut for a counter of this size.
    #[inline(always)]
    #[must_use]
    pub const fn window(span_ns: u64) -> Window {
        Window::new(span_ns, N)
    }

    /// The units counted now.
    #[inline(always)]
    pub fn total(&self) -> u64 {
        self.total.load()
    }

    /// The sum of the buckets that have not aged at `now_ns`: what
    /// [`total`](Self::total) will be after the next sweep.
    pub fn live(&self, window: Window, now_ns: u64) -> u64 {
        let mut sum = 0;
        for slot in &self.ring {
            let bucket = Bucket(slot.load());
            if bucket.count() > 0 && !window.has_aged(bucket.label(), now_ns) {
                sum += bucket.count();
            }
        }
        sum
    }

    /// Takes one unit if fewer than `limit` are counted.
    #[inline(always)]
    pub fn take(&self, limit: u64, window: Window, now_ns: u64) -> Taken {
        // Add first, look afterwards: two CPUs can never both get the last one.
        if self.total.add(1) >= limit {
            self.total.sub(1);
            return Taken::Full;
        }
        self.file(window.label(now_ns))
    }

    /// Takes one unit, whatever is counted already.
    #[inline(always)]
    pub fn put(&self, window: Window, now_ns: u64) -> Option<Place> {
        self.total.add(1);
        match self.file(window.label(now_ns)) {
            Taken::Place(place) => Some(place),
            Taken::Full | Taken::Contended => None,
        }
    }

    /// Takes one unit in exchange for that of `old`, which the caller ends once it has
    /// put the new one in its place: whatever is counted, if the old one still counts;
    /// if it has been forgiven, only if fewer than `limit` are. None if it has to stay
    /// without.
    #[inline(always)]
    pub fn renew(&self, old: Place, limit: u64, window: Window, now_ns: u64) -> Option<Place> {
        let limit = if self.counts(old) { u64::MAX } else { limit };
        match self.take(limit, window, now_ns) {
            Taken::Place(place) => Some(place),
            Taken::Full | Taken::Contended => None,
        }
    }

    /// Whether the unit of this place, which nobody has ended, has not been retired.
    #[inline(always)]
    fn counts(&self, place: Place) -> bool {
        let bucket = Bucket(self.ring[place.slot() & Self::SLOT_MASK].load());
        bucket.label() == place.label() && bucket.count() > 0
    }

    /// Files a unit that is in the total already under `label`, or takes it out
    /// of the total again.
    #[inline(always)]
    fn file(&self, label: Label) -> Taken {
        #[cfg(target_arch = "bpf")]
        let place = kernel::file(self, label);
        #[cfg(not(target_arch = "bpf"))]
        let place = self.file_now(label);
        match place {
            Some(place) => Taken::Place(place),
            None => Taken::Contended,
        }
    }

    #[inline(always)]
    fn file_now(&self, label: Label) -> Option<Place> {
        // The slot of its epoch is free or carries the label already, unless the
        // span was changed and it holds live units of another width.
        let first = Self::slot_of(label);
        for _ in 0..TRIES {
            match self.file_in(first, label) {
                Filing::Done(place) => return Some(place),
                Filing::Raced => {}
                Filing::Occupied => return self.file_elsewhere(first, label),
            }
        }
        self.total.sub(1);
        None
    }

    #[inline(always)]
    fn file_elsewhere(&self, first: usize, label: Label) -> Option<Place> {
        for probe in 1..N {
            let slot = first.wrapping_add(probe) & Self::SLOT_MASK;
            if let Filing::Done(place) = self.file_in(slot, label) {
                return Some(place);
            }
        }
        self.total.sub(1);
        None
    }

    /// Adds one to the bucket in `slot` if that carries `label` or is free.
    #[inline(always)]
    fn file_in(&self, slot: usize, label: Label) -> Filing {
        let word = &self.ring[slot & Self::SLOT_MASK];
        let bucket = Bucket(word.load());
        let count = if bucket.label() == label {
            bucket.count()
        } else {
            0
        };
        if (bucket.label() != label && bucket.count() > 0) || count == BUCKET_MAX {
            return Filing::Occupied;
        }
        if word.replace(bucket.0, Bucket::new(label, count + 1).0) {
            Filing::Done(Place::new(slot, label))
        } else {
            Filing::Raced
        }
    }

    /// Ends one unit. `false` if it had been retired already.
    #[inline(always)]
    pub fn end(&self, place: Place) -> bool {
        #[cfg(target_arch = "bpf")]
        return kernel::end(self, place);
        #[cfg(not(target_arch = "bpf"))]
        self.end_now(place)
    }

    #[inline(always)]
    fn end_now(&self, place: Place) -> bool {
        let word = &self.ring[place.slot() & Self::SLOT_MASK];
        for _ in 0..TRIES {
            let bucket = Bucket(word.load());
            if bucket.label() != place.label() || bucket.count() == 0 {
                return false;
            }
            if word.replace(bucket.0, Bucket::new(bucket.label(), bucket.count() - 1).0) {
                self.total.sub(1);
                return true;
            }
        }
        // Lost every race: the unit stays until its bucket ages.
        false
    }

    /// Retires the buckets that have aged; the number of units forgiven.
    ///
    /// Cheap when called often: it looks at the ring once in an eighth of a
    /// bucket's width.
    #[inline(always)]
    pub fn retire(&self, window: Window, now_ns: u64) -> u64 {
        let swept_at_ns = self.swept_at_ns.load();
        // A sweep time of the future is a clock that stepped back: sweep.
        if now_ns >= swept_at_ns && now_ns - swept_at_ns < window.patience_ns() {
            return 0;
        }
        self.swept_at_ns.swap(now_ns);
        #[cfg(target_arch = "bpf")]
        return kernel::sweep(self, window, now_ns);
        #[cfg(not(target_arch = "bpf"))]
        self.sweep_now(window, now_ns)
    }

    #[inline(always)]
    fn sweep_now(&self, window: Window, now_ns: u64) -> u64 {
        let mut forgiven = 0;
        for slot in 0..N {
            let word = &self.ring[slot];
            for _ in 0..2 {
                let bucket = Bucket(word.load());
                if bucket.count() == 0 || !window.has_aged(bucket.label(), now_ns) {
                    break;
                }
                // Exchanged only if unchanged: a blind swap could take out the
                // fresh units of a bucket that was retired and reused meanwhile.
                if word.replace(bucket.0, Bucket::EMPTY.0) {
                    self.total.sub(bucket.count());
                    forgiven += bucket.count();
                    break;
                }
            }
        }
        forgiven
    }
}

/// The loops, as functions that the verifier looks at on their own.
///
/// It walks a *global* function once, whatever its callers know; it would walk
/// a loop inside its caller once for every state the caller can be in, and give
/// up. Global functions take pointers since Linux 5.12 (`btf_prepare_func_args`
/// in kernel/bpf/btf.c); they must look for NULL themselves.
#[cfg(target_arch = "bpf")]
mod kernel {
    use super::Counter;
    use crate::{
        place::Place,
        scope::{LINE_SLOTS, SCOPE_SLOTS},
        window::{Label, Window},
    };

    macro_rules! global_functions {
        ($slots:expr, $file:ident, $end:ident, $sweep:ident) => {
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $file(counter: *const Counter<$slots>, label: u64) -> u64 {
                // SAFETY: NULL, or a value of a map, which the verifier checks
                // at each call.
                let Some(counter) = (unsafe { counter.as_ref() }) else {
                    return 0;
                };
                counter
                    .file_now(Label::from_bits(label))
                    .map_or(0, Place::bits)
            }

            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $end(counter: *const Counter<$slots>, place: u64) -> u64 {
                // SAFETY: as above.
                let Some(counter) = (unsafe { counter.as_ref() }) else {
                    return 0;
                };
                Place::from_bits(place).map_or(0, |place| u64::from(counter.end_now(place)))
            }

            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $sweep(
                counter: *const Counter<$slots>,
                span_ns: u64,
                now_ns: u64,
            ) -> u64 {
                // SAFETY: as above.
                let Some(counter) = (unsafe { counter.as_ref() }) else {
                    return 0;
                };
                counter.sweep_now(Window::new(span_ns, $slots), now_ns)
            }
        };
    }

    global_functions!(
        SCOPE_SLOTS,
        scope_counter_file,
        scope_counter_end,
        scope_counter_sweep
    );
    global_functions!(
        LINE_SLOTS,
        line_counter_file,
        line_counter_end,
        line_counter_sweep
    );

    #[inline(always)]
    pub(super) fn file<const N: usize>(counter: &Counter<N>, label: Label) -> Option<Place> {
        let pointer: *const Counter<N> = counter;
        Place::from_bits(if N == SCOPE_SLOTS {
            scope_counter_file(pointer.cast(), label.bits())
        } else {
            const { assert!(N == SCOPE_SLOTS || N == LINE_SLOTS) };
            line_counter_file(pointer.cast(), label.bits())
        })
    }

    #[inline(always)]
    pub(super) fn end<const N: usize>(counter: &Counter<N>, place: Place) -> bool {
        let pointer: *const Counter<N> = counter;
        let ended = if N == SCOPE_SLOTS {
            scope_counter_end(pointer.cast(), place.bits())
        } else {
            const { assert!(N == SCOPE_SLOTS || N == LINE_SLOTS) };
            line_counter_end(pointer.cast(), place.bits())
        };
        ended != 0
    }

    #[inline(always)]
    pub(super) fn sweep<const N: usize>(counter: &Counter<N>, window: Window, now_ns: u64) -> u64 {
        let pointer: *const Counter<N> = counter;
        if N == SCOPE_SLOTS {
            scope_counter_sweep(pointer.cast(), window.span_ns(), now_ns)
        } else {
            const { assert!(N == SCOPE_SLOTS || N == LINE_SLOTS) };
            line_counter_sweep(pointer.cast(), window.span_ns(), now_ns)
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::NANOS_PER_SEC;
    use proptest::prelude::*;

    const SPAN: u64 = 30 * NANOS_PER_SEC;
    type Ring = Counter<64>;

    fn take(counter: &Ring, limit: u64, now: u64) -> Place {
        match counter.take(limit, Ring::window(SPAN), now) {
            Taken::Place(place) => place,
            other @ (Taken::Full | Taken::Contended) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_limit_is_never_passed_by_taking() {
        let counter = Ring::new();
        for _ in 0..10 {
            take(&counter, 10, 5);
        }
        assert_eq!(counter.take(10, Ring::window(SPAN), 5), Taken::Full);
        assert_eq!(counter.total(), 10);
    }

    #[test]
    fn putting_does_not_ask_for_the_limit() {
        let counter = Ring::new();
        take(&counter, 1, 5);
        assert!(counter.put(Ring::window(SPAN), 5).is_some());
        assert_eq!(counter.total(), 2);
    }

    #[test]
    fn a_unit_that_counts_is_renewed_and_one_that_was_forgiven_is_taken_anew() {
        let counter = Ring::new();
        let window = Ring::window(SPAN);
        let place = take(&counter, 1, 5);
        let fresh = counter.renew(place, 0, window, 5 + SPAN / 2).unwrap();
        assert!(counter.end(place));
        assert_eq!(counter.total(), 1);
        assert_eq!(counter.retire(window, 5 + 2 * SPAN), 1);
        let newcomer = take(&counter, 1, 5 + 2 * SPAN);
        assert_eq!(counter.renew(fresh, 1, window, 5 + 2 * SPAN), None, "full");
        assert!(counter.end(newcomer));
        assert!(counter.renew(fresh, 1, window, 5 + 2 * SPAN).is_some());
        assert_eq!(counter.total(), 1);
    }

    #[test]
    fn a_unit_ends_once() {
        let counter = Ring::new();
        let place = take(&counter, 1, 5);
        assert!(counter.end(place));
        assert!(!counter.end(place));
        assert_eq!(counter.total(), 0);
    }

    #[test]
    fn a_retired_unit_cannot_end() {
        let counter = Ring::new();
        let place = take(&counter, 1, 5);
        assert_eq!(counter.retire(Ring::window(SPAN), 5 + SPAN), 1);
        assert!(!counter.end(place));
        assert_eq!(counter.total(), 0);
    }

    #[test]
    fn a_changed_span_keeps_the_old_units_and_finds_room_for_new_ones() {
        let counter = Ring::new();
        let old: Vec<_> = (0..28)
            .map(|s| take(&counter, 100, s * NANOS_PER_SEC))
            .collect();
        let shorter = Ring::window(10 * NANOS_PER_SEC);
        let now = 28 * NANOS_PER_SEC;
        let place = counter.put(shorter, now).expect("a slot is free");
        assert_eq!(counter.total(), 29);
        assert!(old.into_iter().all(|p| counter.end(p)));
        assert!(counter.end(place));
        assert_eq!(counter.total(), 0);
    }

    #[test]
    fn a_full_bucket_moves_on_to_another_slot() {
        let counter = Ring::new();
        let window = Ring::window(SPAN);
        let label = window.label(5);
        counter.ring[Ring::slot_of(label)].swap(Bucket::new(label, BUCKET_MAX).0);
        counter.total.swap(BUCKET_MAX);
        let place = counter.put(window, 5).expect("the next slot is free");
        assert_ne!(place.slot(), Ring::slot_of(label));
        assert_eq!(counter.total(), BUCKET_MAX + 1);
    }

    #[test]
    fn when_no_bucket_can_be_had_nothing_is_counted() {
        let counter = Ring::new();
        // Every slot held by live units of another width.
        let other = Ring::window(86_400 * NANOS_PER_SEC);
        for slot in 0..64 {
            counter.ring[slot].swap(Bucket::new(other.label(5), 1).0);
        }
        counter.total.swap(64);
        assert_eq!(counter.take(100, Ring::window(SPAN), 5), Taken::Contended);
        assert_eq!(counter.total(), 64);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take,
        Put,
        End(usize),
        Forget(usize),
        Wait(u64),
        Span(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Take),
            1 => Just(Step::Put),
            3 => any::<usize>().prop_map(Step::End),
            1 => any::<usize>().prop_map(Step::Forget),
            3 => (0..40 * NANOS_PER_SEC).prop_map(Step::Wait),
            1 => (1..120u64).prop_map(|s| Step::Span(s * NANOS_PER_SEC)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn the_total_is_the_sum_of_the_buckets(steps in prop::collection::vec(step(), 1..200), limit in 1u64..20) {
            let counter = Ring::new();
            let mut held: Vec<(Place, u64)> = Vec::new();
            let (mut now, mut span) = (NANOS_PER_SEC, SPAN);
            let mut span_changed_at = 0;
            for step in steps {
                let window = Ring::window(span);
                counter.retire(window, now);
                match step {
                    Step::Take => {
                        let before = counter.total();
                        match counter.take(limit, window, now) {
                            Taken::Place(place) => { prop_assert!(before < limit); held.push((place, now)); }
                            Taken::Full => prop_assert!(before >= limit),
                            Taken::Contended => {}
                        }
                    }
                    Step::Put => held.extend(counter.put(window, now).map(|place| (place, now))),
                    Step::End(i) if !held.is_empty() => {
                        let (place, since) = held.swap_remove(i % held.len());
                        // What was forgiven had its time, or its time was cut
                        // short; what was not, counts.
                        if !counter.end(place) { prop_assert!(now > since || span_changed_at == now); }
                    }
                    Step::Forget(i) if !held.is_empty() => { held.swap_remove(i % held.len()); }
                    Step::End(_) | Step::Forget(_) => {}
                    Step::Wait(ns) => now += ns,
                    Step::Span(ns) => (span, span_changed_at) = (ns, now),
                }
                let sum: u64 = counter.ring.iter().map(|w| Bucket(w.load()).count()).sum();
                prop_assert_eq!(counter.total(), sum);
            }
            // Whatever was forgotten is forgiven in the end.
            counter.retire(Ring::window(span), now + 120 * NANOS_PER_SEC + span);
            prop_assert_eq!(counter.total(), 0);
        }
    }
}
