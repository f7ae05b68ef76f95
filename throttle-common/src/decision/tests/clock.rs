//! Edges of the clock: a day of traffic, numbers of buckets that begin again at 0,
//! and a machine that was suspended.

use std::collections::VecDeque;

use super::*;
use crate::window::{MAX_SPAN_NS, MIN_SPAN_NS};

/// SplitMix64: the same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What a stretch of traffic came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Came {
    attempts: u64,
    at_once: u64,
    released: u64,
    overflowed: u64,
    answered: u64,
    expired: u64,
}

impl Stage {
    /// One attempt each `pause_ns` on average, for `lasts_ns`. Of those that are
    /// out half are answered; the daemon offers the head of the line each 100 ms.
    fn traffic(&mut self, lasts_ns: u64, pause_ns: u64, numbers: &mut Numbers) -> Came {
        let (began_ns, mut came) = (self.now_ns, Came::default());
        let (mut out, mut line) = (VecDeque::new(), VecDeque::new());
        let mut served_ns = self.now_ns;
        while self.now_ns - began_ns < lasts_ns {
            self.now_ns += numbers.below(2 * pause_ns);
            came.expired += self.scope.retire(&self.policy, self.now_ns);
            came.attempts += 1;
            match self.admit() {
                Admission::Counted(place) => {
                    out.push_back(flow(Entry::Counted(place), self.now_ns));
                    came.at_once += 1;
                }
                Admission::Full => match self.defer() {
                    Deferral::Waits { entry, .. } => line.push_back(flow(entry, self.now_ns)),
                    Deferral::Overflow { .. } => came.overflowed += 1,
                    Deferral::Unaccountable => panic!("nobody contends here"),
                },
                Admission::Known | Admission::Unaccountable => panic!("not here"),
            }
            while served_ns + 100 * NANOS_PER_MILLI <= self.now_ns {
                served_ns += 100 * NANOS_PER_MILLI;
                if let Some(head) = line.front()
                    && self.offer(head, Offer::Daemon) == Again::Released
                {
                    out.extend(line.pop_front());
                    came.released += 1;
                }
            }
            if numbers.below(2) == 0
                && let Some(answered) = out.pop_front()
            {
                came.answered += u64::from(self.end(&answered).is_some());
            }
            // What nobody answers is out of the table in the end.
            out.truncate(1_000);
            let most = self.policy.limit + self.policy.attempt_timeout_ns / self.policy.interval_ns;
            assert!(self.half_open() <= most + 2, "{came:?}");
            let (queued, in_line) = self.queued();
            assert!(in_line <= self.policy.line_capacity, "{came:?}");
            assert!(queued <= self.policy.queue_capacity, "{came:?}");
        }
        // At the rate, and for each place that became free.
        let due = (self.now_ns - began_ns) / self.policy.interval_ns + 2;
        let free = self.policy.limit + came.answered + came.expired;
        assert!(came.at_once + came.released <= due + free, "{came:?}");
        came
    }

    /// Nothing counts after the longest of both times.
    fn heals(&mut self) {
        self.now_ns += self.policy.attempt_timeout_ns.max(self.policy.max_delay_ns);
        self.scope.retire(&self.policy, self.now_ns);
        self.line
            .queued
            .retire(Line::window(&self.policy), self.now_ns);
        assert_eq!((self.half_open(), self.queued()), (0, (0, 0)));
    }

    fn with_daemon_for_good() -> Self {
        let mut stage = Self::with_daemon();
        stage.daemon.alive_until_ns = u64::MAX;
        stage
    }
}

#[test]
fn a_day_of_traffic_leaves_nothing_behind() {
    let mut stage = Stage::with_daemon_for_good();
    let mut numbers = Numbers(1);
    let mut all = Vec::new();
    // By turns more than the rate, less, and a scanner.
    for hour in 0..24 {
        let pause_ns = [150, 2_000, 40][hour % 3] * NANOS_PER_MILLI;
        all.push(stage.traffic(3_600 * NANOS_PER_SEC, pause_ns, &mut numbers));
        stage.heals();
    }
    assert!(all.iter().all(|came| came.at_once > 0), "{all:?}");
    assert!(all[0].expired > 1_000 && all[2].answered > 1_000, "{all:?}");
    assert!(all[2].overflowed > 0 && all[2].released > 1_000, "{all:?}");
}

#[test]
fn numbers_of_buckets_may_begin_again_at_zero_under_traffic() {
    // The number of a bucket has 34 bits. With buckets of 2^25 to 2^29 ns that is
    // after 18 and more years of uptime.
    for (shift, timeout_s) in [(25, 1), (26, 2), (27, 4), (28, 8), (29, 16)] {
        let wrap_ns = 1_u64 << (34 + shift);
        let mut came = Vec::new();
        for start_ns in [START, wrap_ns - 10 * NANOS_PER_SEC] {
            let mut stage = Stage::with_daemon_for_good();
            stage.policy.attempt_timeout_ns = timeout_s * NANOS_PER_SEC;
            stage.policy.max_delay_ns = timeout_s * NANOS_PER_SEC;
            assert_eq!(
                Scope::half_open_window(&stage.policy).width_ns(),
                1 << shift
            );
            // As far into a bucket in both cases.
            stage.now_ns = start_ns / (1 << 34) * (1 << 34) + (1 << 33);
            came.push(stage.traffic(60 * NANOS_PER_SEC, 50 * NANOS_PER_MILLI, &mut Numbers(2)));
            assert!(
                start_ns == START || stage.now_ns > wrap_ns,
                "it did not wrap"
            );
            stage.heals();
        }
        assert_eq!(came[0], came[1], "as at any other time");
    }
}

/// The monotonic clock stands still while a machine sleeps, but that of a virtual
/// machine may jump when it goes on.
#[test]
fn after_a_jump_of_the_clock_nothing_is_made_up_for() {
    for jump_ns in [
        NANOS_PER_SEC,
        60 * NANOS_PER_SEC,
        3_600 * NANOS_PER_SEC,
        MAX_SPAN_NS,
        100 * MAX_SPAN_NS,
        // Half of the numbers of buckets, where old and new are hard to tell apart.
        (1 << 58) + 12_345,
    ] {
        for alive in [true, false] {
            let mut stage = Stage::with_daemon();
            stage.policy.line_capacity = 1_000;
            stage.fill();
            let waiting: Vec<Flow> = (0..50).map(|_| stage.deferred()).collect();
            stage.now_ns += jump_ns;
            stage.daemon.alive_until_ns = if alive { u64::MAX } else { 0 };
            stage.scope.retire(&stage.policy, stage.now_ns);
            let offer = if alive { Offer::Daemon } else { Offer::Sender };
            let again: Vec<Again> = waiting
                .iter()
                .map(|flow| stage.offer(flow, offer))
                .collect();
            let out = again
                .iter()
                .filter(|again| **again == Again::Released)
                .count();
            let out = u64::try_from(out).expect("a few");
            // The places of those that timed out, and the burst, whatever the time.
            let room = if jump_ns < stage.policy.attempt_timeout_ns {
                0
            } else {
                2
            };
            let burst = if alive { 2 } else { 6 };
            assert!(out <= room + burst, "{jump_ns}: {out} at once");
            assert!(out > 0, "{jump_ns}: stuck");
            // They go on at the rate, and nothing is left in the end.
            stage.now_ns += INTERVAL;
            let next = waiting
                .iter()
                .filter(|flow| stage.offer(flow, offer) == Again::Released)
                .count();
            assert!(next <= 2, "{next} an interval later");
            stage.heals();
        }
    }
}

#[test]
fn a_clock_that_two_cpus_read_differently_takes_nothing_twice() {
    // One CPU is up to 2 ms behind at the moment in which a bucket ages.
    let mut stage = Stage::new();
    for timeout_ns in [MIN_SPAN_NS, 30 * NANOS_PER_SEC, MAX_SPAN_NS] {
        stage.policy.attempt_timeout_ns = timeout_ns;
        let window = Scope::half_open_window(&stage.policy);
        for behind_ns in [0, 1, 1_000, 2 * NANOS_PER_MILLI] {
            stage.now_ns += 2 * timeout_ns;
            stage.scope.retire(&stage.policy, stage.now_ns);
            let old = stage.fill();
            let edge_ns = stage.now_ns + timeout_ns;
            for now_ns in [edge_ns, edge_ns - behind_ns, edge_ns + window.width_ns()] {
                stage.scope.retire(&stage.policy, now_ns);
                assert_eq!(stage.half_open(), 0, "they had their time");
                stage.now_ns = now_ns;
                let fresh = stage.fill();
                for flow in &old {
                    stage.end(flow);
                }
                assert_eq!(
                    stage.half_open(),
                    fresh.len() as u64,
                    "the old took from the new"
                );
                for flow in &fresh {
                    stage.end(flow);
                }
                assert_eq!(stage.half_open(), 0);
            }
        }
    }
}
