//! The fixed rate at which a full scope's queue is resolved.
//!
//! `next_release` is the time from which the next release may be given; giving
//! one moves it on by one interval, by compare-and-swap, so no release is given
//! twice. A bounded lateness is made up for (`burst`): a daemon that wakes a
//! little late keeps its place on the time line instead of drifting.

use crate::{NANOS_PER_MILLI, NANOS_PER_SEC, word::Word};

/// What senders may catch up on when no daemon keeps the queue: one second's
/// worth of releases.
pub const SENDER_BURST_NS: u64 = NANOS_PER_SEC;

/// Least lateness of the daemon that is made up for: what a timer and a busy
/// CPU cost.
const MIN_BURST_NS: u64 = 20 * NANOS_PER_MILLI;

/// The lateness of the daemon that is made up for: one interval, but at least
/// 20 ms (a millisecond timer must carry high rates) and at most one second.
#[inline(always)]
#[must_use]
pub const fn daemon_burst_ns(interval_ns: u64) -> u64 {
    if interval_ns < MIN_BURST_NS {
        MIN_BURST_NS
    } else if interval_ns > NANOS_PER_SEC {
        NANOS_PER_SEC
    } else {
        interval_ns
    }
}

/// When releases may be given. All zero has given none.
#[repr(C)]
#[derive(Debug)]
pub struct Releases {
    next_ns: Word,
}

impl Default for Releases {
    fn default() -> Self {
        Self::new()
    }
}

/// A release that was given, kept only to hand it back if it could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    before_ns: u64,
    after_ns: u64,
}

impl Releases {
    /// Releases of which none has been given.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next_ns: Word::new(0),
        }
    }

    /// The time from which the next release may be given.
    #[inline(always)]
    pub fn next_ns(&self) -> u64 {
        self.next_ns.load()
    }

    /// When it is worth offering again, by a reader who sees `next_ns` at
    /// `now_ns`: then, or at once (0) if that was planned by a longer interval
    /// than the one in force. Such an offer has the plan brought forward.
    #[must_use]
    pub const fn offer_at_ns(next_ns: u64, interval_ns: u64, now_ns: u64) -> u64 {
        if next_ns > now_ns.saturating_add(interval_ns) {
            0
        } else {
            next_ns
        }
    }

    /// An attempt begins to wait in an empty queue: the next release comes one
    /// interval from now, not at once.
    #[inline(always)]
    pub fn begin(&self, interval_ns: u64, now_ns: u64) {
        self.next_ns.raise_to(now_ns.saturating_add(interval_ns));
    }

    /// The interval became shorter: what was planned by the old one is brought
    /// forward, so a change from 1/m to 10/s need not wait the minute out.
    #[inline(always)]
    fn planned(next_ns: u64, interval_ns: u64, now_ns: u64) -> u64 {
        let latest = now_ns.saturating_add(interval_ns);
        if next_ns > latest { latest } else { next_ns }
    }

    /// Gives a release if one is due.
    #[inline(always)]
    pub fn give(&self, interval_ns: u64, burst_ns: u64, now_ns: u64) -> Option<Release> {
        for _ in 0..4 {
            let held_ns = self.next_ns.load();
            let before_ns = Self::planned(held_ns, interval_ns, now_ns);
            if now_ns < before_ns {
                if held_ns != before_ns && !self.next_ns.replace(held_ns, before_ns) {
                    continue;
                }
                return None;
            }
            let earliest = now_ns.saturating_sub(burst_ns);
            let from_ns = if before_ns > earliest {
                before_ns
            } else {
                earliest
            };
            let after_ns = from_ns.saturating_add(interval_ns);
            if self.next_ns.replace(held_ns, after_ns) {
                return Some(Release {
                    before_ns: from_ns,
                    after_ns,
                });
            }
        }
        None
    }

    /// Hands back a release that could not be used, unless another one has been
    /// given since.
    #[inline(always)]
    pub fn give_back(&self, release: Release) {
        self.next_ns.replace(release.after_ns, release.before_ns);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: u64 = 200 * NANOS_PER_MILLI;

    fn drain(releases: &Releases, burst: u64, now: u64) -> u64 {
        let mut given = 0;
        while releases.give(INTERVAL, burst, now).is_some() {
            given += 1;
            assert!(given < 1_000);
        }
        given
    }

    #[test]
    fn the_first_waits_one_interval() {
        let releases = Releases::new();
        let start = 7 * NANOS_PER_SEC;
        releases.begin(INTERVAL, start);
        assert_eq!(
            releases.give(INTERVAL, INTERVAL, start + INTERVAL - 1),
            None
        );
        assert!(
            releases
                .give(INTERVAL, INTERVAL, start + INTERVAL)
                .is_some()
        );
        assert_eq!(releases.give(INTERVAL, INTERVAL, start + INTERVAL), None);
    }

    #[test]
    fn a_late_daemon_keeps_to_the_line() {
        let releases = Releases::new();
        releases.begin(INTERVAL, 0);
        for turn in 1..=100u64 {
            // Always 3 ms late, and yet the hundredth is 3 ms late, not 300.
            let now = turn * INTERVAL + 3 * NANOS_PER_MILLI;
            assert!(
                releases
                    .give(INTERVAL, daemon_burst_ns(INTERVAL), now)
                    .is_some(),
                "{turn}"
            );
        }
    }

    #[test]
    fn a_stopped_daemon_leaves_senders_one_second_of_catching_up() {
        let releases = Releases::new();
        releases.begin(INTERVAL, 0);
        assert_eq!(drain(&releases, SENDER_BURST_NS, 60 * NANOS_PER_SEC), 6);
    }

    #[test]
    fn a_shorter_interval_brings_the_next_one_forward() {
        let releases = Releases::new();
        releases.begin(60 * NANOS_PER_SEC, 0);
        assert_eq!(releases.give(INTERVAL, INTERVAL, NANOS_PER_SEC), None);
        assert!(
            releases
                .give(INTERVAL, INTERVAL, NANOS_PER_SEC + INTERVAL)
                .is_some()
        );
    }

    #[test]
    fn a_plan_by_a_longer_interval_is_worth_an_offer_at_once() {
        assert_eq!(
            Releases::offer_at_ns(60 * NANOS_PER_SEC, INTERVAL, NANOS_PER_SEC),
            0
        );
        let soon = NANOS_PER_SEC + INTERVAL;
        assert_eq!(Releases::offer_at_ns(soon, INTERVAL, NANOS_PER_SEC), soon);
    }

    #[test]
    fn what_was_handed_back_is_given_again_once() {
        let releases = Releases::new();
        let release = releases.give(INTERVAL, 0, NANOS_PER_SEC).expect("due");
        releases.give_back(release);
        assert!(releases.give(INTERVAL, 0, NANOS_PER_SEC).is_some());
        // The old receipt is worth nothing now that another one was given... and
        // if it names the same moment, only one of them can be handed back.
        releases.give_back(release);
        assert!(releases.give(INTERVAL, 0, NANOS_PER_SEC).is_some());
        assert_eq!(releases.give(INTERVAL, 0, NANOS_PER_SEC), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_line_and_the_burst(
            steps in prop::collection::vec(0u64..3_000, 1..300),
            burst in prop_oneof![Just(INTERVAL), Just(SENDER_BURST_NS)],
        ) {
            let releases = Releases::new();
            let start = 100 * NANOS_PER_SEC;
            releases.begin(INTERVAL, start);
            let (mut now, mut given) = (start, Vec::new());
            for step in steps {
                now += step * NANOS_PER_MILLI / 4;
                if releases.give(INTERVAL, burst, now).is_some() { given.push(now); }
            }
            // Between any two moments.
            for (i, from) in given.iter().enumerate() {
                for (j, to) in given.iter().enumerate().skip(i) {
                    prop_assert!((j - i) as u64 <= (to - from + burst) / INTERVAL + 1);
                }
            }
        }
    }
}
