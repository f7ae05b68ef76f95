//! The fixed rate at which a full scope's queue is resolved.
//!
//! `next_release` is the time from which the next release may be given; giving
//! one moves it on by one interval, by compare-and-swap, so no release is given
//! twice. A bounded lateness is made up for (`burst`): a daemon that wakes a
//! little late keeps its place on the time line instead of drifting.
//!
//! Where a device lets packets go at their departure times (fq), a release may be
//! given before its time: the packet carries the time and waits in the device.

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

/// How many releases of a scope are given ahead of their time at most. Their
/// packets wait in the device, whose qdisc has room for 10,000 by default
/// (`fq_init` in net/sched/sch_fq.c), and drops everybody's beyond.
const AHEAD_MAX: u64 = 1_000;

/// So long an interval is longer than anything is given ahead: a minute.
const LONG_NS: u64 = 60 * NANOS_PER_SEC;

/// When releases may be given. All zero has given none.
#[repr(C)]
#[derive(Debug)]
pub struct Releases {
    next_ns: Word,
    /// The latest departure of those that were given ahead of their time.
    departs_ns: Word,
}

impl Default for Releases {
    fn default() -> Self {
        Self::new()
    }
}

/// A release that was given. It can be handed back if it could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// When it may be used, on the clock of whoever gave it: now, or later if it
    /// was given ahead of its time.
    pub at_ns: u64,
    before_ns: u64,
    after_ns: u64,
}

impl Releases {
    /// Releases of which none has been given.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next_ns: Word::new(0),
            departs_ns: Word::new(0),
        }
    }

    /// The time from which the next release may be given.
    #[inline(always)]
    pub fn next_ns(&self) -> u64 {
        self.next_ns.load()
    }

    /// When it is worth offering again, by a reader who looks at `now_ns`: at
    /// the time of the next release, or at once (0) if that was planned by a
    /// longer interval than the one in force. Such an offer has the plan brought
    /// forward.
    #[must_use]
    pub fn offer_at_ns(&self, interval_ns: u64, now_ns: u64) -> u64 {
        let next_ns = self.next_ns.load();
        if next_ns > self.latest(interval_ns, now_ns) {
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

    /// The latest the next release can be: one interval from now, or from the
    /// last that was given ahead of its time. If it is planned for later, the
    /// interval has become shorter: it is brought forward, so a change from 1/m
    /// to 10/s need not wait the minute out.
    #[inline(always)]
    fn latest(&self, interval_ns: u64, now_ns: u64) -> u64 {
        let departs_ns = self.departs_ns.load();
        let from_ns = if departs_ns > now_ns {
            departs_ns
        } else {
            now_ns
        };
        from_ns.saturating_add(interval_ns)
    }

    /// Gives a release if one is due.
    #[inline(always)]
    pub fn give(&self, interval_ns: u64, burst_ns: u64, now_ns: u64) -> Option<Release> {
        self.give_ahead(interval_ns, burst_ns, 0, now_ns)
    }

    /// Gives a release if one is due within `ahead_ns` from now, and no more than
    /// a thousand releases ahead. The packet has to leave at
    /// [`at_ns`](Release::at_ns).
    #[inline(always)]
    pub fn give_ahead(
        &self,
        interval_ns: u64,
        burst_ns: u64,
        ahead_ns: u64,
        now_ns: u64,
    ) -> Option<Release> {
        // An interval is a minute at most; longer ones would not fit a word (and
        // BPF has no multiplication that says so).
        let most_ns = interval_ns.wrapping_mul(AHEAD_MAX);
        let ahead_ns = if interval_ns >= LONG_NS || ahead_ns < most_ns {
            ahead_ns
        } else {
            most_ns
        };
        for _ in 0..4 {
            // In this order: whoever moves the next release on to behind a
            // departure has noted the departure before.
            let held_ns = self.next_ns.load();
            let latest_ns = self.latest(interval_ns, now_ns);
            let before_ns = if held_ns > latest_ns {
                latest_ns
            } else {
                held_ns
            };
            if now_ns.saturating_add(ahead_ns) < before_ns {
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
            let at_ns = if from_ns > now_ns { from_ns } else { now_ns };
            if at_ns > now_ns {
                self.departs_ns.raise_to(at_ns);
            }
            if self.next_ns.replace(held_ns, after_ns) {
                return Some(Release {
                    at_ns,
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
        let releases = Releases::new();
        releases.begin(60 * NANOS_PER_SEC, 0);
        assert_eq!(releases.offer_at_ns(INTERVAL, NANOS_PER_SEC), 0);
        let (releases, soon) = (Releases::new(), NANOS_PER_SEC + INTERVAL);
        releases.begin(INTERVAL, NANOS_PER_SEC);
        assert_eq!(releases.offer_at_ns(INTERVAL, NANOS_PER_SEC), soon);
    }

    #[test]
    fn releases_ahead_of_their_time_leave_one_interval_apart() {
        let (releases, now, ahead) = (Releases::new(), 7 * NANOS_PER_SEC, NANOS_PER_SEC);
        releases.begin(INTERVAL, now);
        let give = || releases.give_ahead(INTERVAL, INTERVAL, ahead, now);
        for turn in 1..=5 {
            assert_eq!(
                give().expect("within a second").at_ns,
                now + turn * INTERVAL
            );
        }
        assert_eq!(
            give(),
            None,
            "the sixth would leave after more than a second"
        );
        // Who cannot have it leave later has to wait for it.
        assert_eq!(releases.give(INTERVAL, INTERVAL, now + 5 * INTERVAL), None);
        let due = now + 6 * INTERVAL;
        assert_eq!(releases.give(INTERVAL, INTERVAL, due).unwrap().at_ns, due);
    }

    #[test]
    fn a_plan_behind_departures_is_not_brought_forward() {
        let (releases, now) = (Releases::new(), NANOS_PER_SEC);
        releases.begin(NANOS_PER_SEC, now);
        for _ in 0..4 {
            assert!(
                releases
                    .give_ahead(NANOS_PER_SEC, 0, 4 * NANOS_PER_SEC, now)
                    .is_some()
            );
        }
        // The last leaves at five seconds. With a shorter interval the next comes
        // that much after it, and not before.
        assert_eq!(releases.offer_at_ns(INTERVAL, now), 0);
        assert_eq!(releases.give(INTERVAL, INTERVAL, now), None);
        let soon = 5 * NANOS_PER_SEC + INTERVAL;
        assert_eq!(releases.next_ns(), soon);
        assert_eq!(releases.offer_at_ns(INTERVAL, now), soon);
        assert_eq!(releases.give(INTERVAL, INTERVAL, soon - 1), None);
        assert!(releases.give(INTERVAL, INTERVAL, soon).is_some());
    }

    #[test]
    fn a_device_is_not_filled_with_releases() {
        let (releases, interval) = (Releases::new(), NANOS_PER_MILLI / 100);
        releases.begin(interval, 0);
        let mut given = 0;
        while releases
            .give_ahead(interval, 0, 8 * NANOS_PER_SEC, 0)
            .is_some()
        {
            given += 1;
        }
        assert_eq!(given, AHEAD_MAX);
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

        #[test]
        fn departures_keep_the_rate_line_whoever_asks_and_however_the_rate_changes(
            steps in prop::collection::vec((0u64..3_000, 0u64..9, any::<bool>()), 1..300),
        ) {
            let releases = Releases::new();
            let start = 100 * NANOS_PER_SEC;
            releases.begin(INTERVAL, start);
            let (mut now, mut given) = (start, Vec::new());
            for (step, ahead, faster) in steps {
                now += step * NANOS_PER_MILLI / 4;
                let interval = if faster { INTERVAL } else { 5 * INTERVAL };
                let ahead_ns = ahead * NANOS_PER_SEC;
                if let Some(release) = releases.give_ahead(interval, INTERVAL, ahead_ns, now) {
                    prop_assert!(release.at_ns >= now && release.at_ns <= now + ahead_ns);
                    given.push(release.at_ns);
                }
            }
            prop_assert!(given.is_sorted());
            for (i, from) in given.iter().enumerate() {
                for (j, to) in given.iter().enumerate().skip(i) {
                    prop_assert!((j - i) as u64 <= (to - from + INTERVAL) / INTERVAL + 1);
                }
            }
        }
    }
}
