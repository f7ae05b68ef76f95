//! How many events may come, however much there is to tell.

use std::collections::HashMap;

use throttle_common::NANOS_PER_SEC;

/// A bound on events: 100 a second, and 1,000 at once after a quiet time; a
/// quarter of that for each group, so that one that floods leaves room for the
/// others.
#[derive(Debug, Clone, Default)]
pub(super) struct Flood {
    all: Bucket<100, 1_000>,
    groups: HashMap<u64, Bucket<25, 250>>,
}

/// Most groups that are told apart. When there are more, all have a rest.
const GROUPS_MAX: usize = 1_024;

impl Flood {
    /// Whether an event of `group` may come at `now_ns`. If so, it counts.
    pub(super) fn admits(&mut self, group: u64, now_ns: u64) -> bool {
        if self.groups.len() >= GROUPS_MAX {
            self.groups.clear();
        }
        self.groups.entry(group).or_default().admits(now_ns) && self.all.admits(now_ns)
    }
}

/// So many events a second, and so many at once after a quiet time (GCRA, the
/// generic cell rate algorithm).
///
/// Once it has refused one, it refuses all until a second's worth may come
/// again. So in a flood the losses come in lumps, and telling of them does not add a
/// line to each event that gets through.
#[derive(Debug, Clone, Default)]
struct Bucket<const PER_SECOND: u64, const BURST: u64> {
    /// From when on a whole burst may come again.
    rested_ns: u64,
    refusing: bool,
}

impl<const PER_SECOND: u64, const BURST: u64> Bucket<PER_SECOND, BURST> {
    /// Events that must be free to come before one does after a refusal.
    const LUMP: u64 = PER_SECOND;

    const INTERVAL_NS: u64 = NANOS_PER_SEC / PER_SECOND;

    fn admits(&mut self, now_ns: u64) -> bool {
        let free = if self.refusing { Self::LUMP } else { 1 };
        let taken_ns = self.rested_ns.saturating_sub(now_ns);
        self.refusing = taken_ns > (BURST - free) * Self::INTERVAL_NS;
        if !self.refusing {
            self.rested_ns = self.rested_ns.max(now_ns) + Self::INTERVAL_NS;
        }
        !self.refusing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLI: u64 = throttle_common::NANOS_PER_MILLI;

    fn admitted(flood: &mut Bucket<100, 1_000>, times: impl IntoIterator<Item = u64>) -> u64 {
        times
            .into_iter()
            .map(|at| u64::from(flood.admits(at)))
            .sum()
    }

    #[test]
    fn a_group_that_floods_leaves_room_for_others() {
        let mut flood = Flood::default();
        let through = (0..50_000).filter(|_| flood.admits(1, 5)).count();
        assert_eq!(through, 250);
        assert!(flood.admits(2, 5));
        // However many groups there are, all together are bounded.
        let through = (0..50_000).filter(|n| flood.admits(*n, 5)).count();
        assert!(through < 1_000, "{through}");
    }

    #[test]
    fn a_burst_may_come_at_once_and_no_more() {
        let mut flood = Bucket::<100, 1_000>::default();
        assert_eq!(admitted(&mut flood, [5; 3_000]), 1_000);
    }

    #[test]
    fn a_hundred_a_second_may_come_for_ever() {
        let mut flood = Bucket::<100, 1_000>::default();
        let times = (0..100_000).map(|n| n * 10 * MILLI);
        assert_eq!(admitted(&mut flood, times), 100_000);
    }

    #[test]
    fn after_a_rest_a_whole_burst_may_come_again() {
        let mut flood = Bucket::<100, 1_000>::default();
        assert_eq!(admitted(&mut flood, [0; 2_000]), 1_000);
        assert_eq!(admitted(&mut flood, [10_000 * MILLI; 2_000]), 1_000);
    }

    #[test]
    fn a_flood_gets_through_at_the_rate_in_lumps_of_a_second() {
        let mut flood = Bucket::<100, 1_000>::default();
        // One each millisecond for 100 s.
        let through: Vec<bool> = (0..100_000).map(|at| flood.admits(at * MILLI)).collect();
        let count = through.iter().filter(|admitted| **admitted).count();
        assert!((10_900..=11_000).contains(&count), "{count}");
        let lumps = through
            .windows(2)
            .filter(|pair| !pair[0] && pair[1])
            .count();
        assert!((80..=100).contains(&lumps), "{lumps}");
    }

    proptest! {
        #[test]
        fn no_span_of_time_has_more_than_a_burst_and_the_rate(
            steps in prop::collection::vec(0..15 * MILLI, 1..4_000),
            from in 0usize..2_000,
        ) {
            let mut flood = Bucket::<100, 1_000>::default();
            let mut now = 0;
            let mut times = Vec::new();
            for step in steps {
                now += step;
                if flood.admits(now) {
                    times.push(now);
                }
            }
            if let Some(span) = times.get(from..).filter(|span| !span.is_empty()) {
                let lasted = span[span.len() - 1] - span[0];
                let most = 1_000 + lasted / (NANOS_PER_SEC / 100);
                prop_assert!(u64::try_from(span.len()).unwrap() <= most);
            }
        }
    }
}
