//! How many events may come, however much there is to tell.

use throttle_common::NANOS_PER_SEC;

/// A bound on events: 100 a second, and 1,000 at once after a quiet time
/// (GCRA, the generic cell rate algorithm).
///
/// Once it has refused one, it refuses all until a second's worth may come
/// again. So in a flood the losses come in lumps, and telling of them adds one
/// line a second, not one for each event that gets through.
#[derive(Debug, Clone, Default)]
pub(super) struct Flood {
    /// From when on a whole burst may come again.
    rested_ns: u64,
    refusing: bool,
}

impl Flood {
    /// Events a second that may come all the time.
    pub(super) const PER_SECOND: u64 = 100;
    /// Events that may come at once.
    pub(super) const BURST: u64 = 1_000;
    /// Events that must be free to come before one does after a refusal.
    const LUMP: u64 = Self::PER_SECOND;

    const INTERVAL_NS: u64 = NANOS_PER_SEC / Self::PER_SECOND;

    /// Whether an event may come at `now_ns`. If so, it counts.
    pub(super) fn admits(&mut self, now_ns: u64) -> bool {
        let free = if self.refusing { Self::LUMP } else { 1 };
        let taken_ns = self.rested_ns.saturating_sub(now_ns);
        self.refusing = taken_ns > (Self::BURST - free) * Self::INTERVAL_NS;
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

    fn admitted(flood: &mut Flood, times: impl IntoIterator<Item = u64>) -> u64 {
        times
            .into_iter()
            .map(|at| u64::from(flood.admits(at)))
            .sum()
    }

    #[test]
    fn a_burst_may_come_at_once_and_no_more() {
        let mut flood = Flood::default();
        assert_eq!(admitted(&mut flood, [5; 3_000]), Flood::BURST);
    }

    #[test]
    fn a_hundred_a_second_may_come_for_ever() {
        let mut flood = Flood::default();
        let times = (0..100_000).map(|n| n * 10 * MILLI);
        assert_eq!(admitted(&mut flood, times), 100_000);
    }

    #[test]
    fn after_a_rest_a_whole_burst_may_come_again() {
        let mut flood = Flood::default();
        assert_eq!(admitted(&mut flood, [0; 2_000]), Flood::BURST);
        assert_eq!(admitted(&mut flood, [10_000 * MILLI; 2_000]), Flood::BURST);
    }

    #[test]
    fn a_flood_gets_through_at_the_rate_in_lumps_of_a_second() {
        let mut flood = Flood::default();
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
            let mut flood = Flood::default();
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
                let most = Flood::BURST + lasted / Flood::INTERVAL_NS;
                prop_assert!(u64::try_from(span.len()).unwrap() <= most);
            }
        }
    }
}
