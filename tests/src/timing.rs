//! When attempts went out, against when they were due.

use crate::{
    dial::Attempt,
    frame::Syn,
    netns::Namespace,
    throttle_cmd::{Running, Throttle},
    wait::slowness,
};
use std::{fmt, net::SocketAddr, time::Duration};

/// How close to its time a release must be.
const CLOSE: Duration = Duration::from_millis(20);
/// The same on a machine however slow: less than the intervals that tests go by, else
/// one release could be taken for another.
const NOT_FARTHER: Duration = Duration::from_millis(50);
/// The same on this machine.
fn close() -> Duration {
    (CLOSE * slowness()).min(NOT_FARTHER)
}

/// Of so many one may be farther off: a machine that others share is away for a while
/// now and then. A daemon that something else keeps busy for a while each second is late
/// more often than that.
const FEW: usize = 6;
/// How much the clock of the captures, which is being disciplined, may differ
/// from the kernel's monotonic one over an interval.
const CLOCKS_DIFFER: Duration = Duration::from_millis(1);

/// So many at once, then so many a second.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many may be half-open.
    pub limit: usize,
    /// How many are released a second.
    pub per_second: u32,
}

impl Pace {
    /// `limit` at once, then `per_second`.
    pub fn new(limit: usize, per_second: u32) -> Self {
        Self { limit, per_second }
    }

    /// Starts throttle with this limit and rate, and more arguments.
    ///
    /// # Panics
    /// See [`Throttle::start`].
    #[track_caller]
    pub fn throttle(&self, namespace: &Namespace, device: &str, more: &[&str]) -> Running {
        let limit = format!("--limit={}", self.limit);
        let rate = format!("--rate={}/s", self.per_second);
        let mut args = vec!["-i", device, &limit, &rate];
        args.extend(more);
        Throttle::start(namespace, &args)
    }

    /// Time between two releases.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }

    /// How long it takes until the last of so many attempts is out.
    pub fn span(&self, attempts: usize) -> Duration {
        let releases = attempts.saturating_sub(self.limit);
        self.interval() * u32::try_from(releases).unwrap()
    }

    /// Asserts that at no time there were more of `times_ns` (in order) than
    /// the limit, the releases that were due by then, those of `burst`, and
    /// one.
    ///
    /// # Panics
    /// At the first that came too early.
    #[track_caller]
    pub fn assert_line(&self, times_ns: &[u64], burst: Duration) {
        let Some(&start_ns) = times_ns.first() else {
            return;
        };
        for (n, at_ns) in times_ns.iter().enumerate() {
            let since = Duration::from_nanos(at_ns.saturating_sub(start_ns));
            let releases = (since + burst).as_secs_f64() * f64::from(self.per_second);
            let most = self.limit as f64 + releases + 1.0;
            assert!(
                (n + 1) as f64 <= most,
                "{} attempts after {since:?}, and at most {most:.1} may be out",
                n + 1
            );
        }
    }

    /// Asserts that `attempts`, started right one after the other, went out as
    /// they should: as many as the limit at once, the others one each interval
    /// after the first of them was deferred, in order of arrival.
    ///
    /// # Panics
    /// When one did not.
    #[track_caller]
    pub fn assert_exact(&self, attempts: &[Attempt], first_syns: &[Syn]) -> Lateness {
        let ends = |src: SocketAddr, dst: SocketAddr| (src, dst);
        let started: Vec<_> = attempts.iter().map(|a| ends(a.local, a.dst)).collect();
        let seen: Vec<_> = first_syns.iter().map(|s| ends(s.src, s.dst)).collect();
        assert_eq!(seen, started, "not in order of arrival");

        let times: Vec<u64> = first_syns.iter().map(|syn| syn.at_ns).collect();
        self.assert_line(&times, Duration::ZERO);
        let (at_once, released) = times.split_at(self.limit);
        let first_deferred_ns = attempts[self.limit].started_ns;
        let interval_ns = self.interval().as_nanos() as u64;
        let first_due_ns = first_deferred_ns + interval_ns;
        let early = at_once.iter().filter(|&&at| at < first_due_ns).count();
        assert_eq!(early, self.limit, "before the first release");

        for (n, at) in (1..).zip(released) {
            let due = first_deferred_ns + n * interval_ns;
            let early = Duration::from_nanos(due.saturating_sub(*at));
            // One that came late may be followed by one that is on time.
            assert!(early <= CLOCKS_DIFFER, "a release {early:?} too early");
        }
        // The throttle saw each of them before the next was started.
        let seen_ns = |n: usize| attempts.get(n + 1).unwrap_or(&attempts[n]).started_ns;
        let mut due = Due::behind(seen_ns(self.limit), interval_ns);
        let mut before_ns = u64::MAX;
        let off = (self.limit..).zip(released).map(|(n, &came_ns)| {
            if attempts[n].started_ns > before_ns {
                due.begin(seen_ns(n));
            }
            before_ns = came_ns;
            due.lateness(came_ns)
        });
        Lateness::of(off).assert_close()
    }
}

/// When the next release of a line is due: an interval after the one before, and who
/// is late makes up for a bounded time only.
#[derive(Clone, Copy, Debug)]
struct Due {
    next_ns: u64,
    interval_ns: u64,
}

impl Due {
    /// Of a line that began, or let the first of it out, at this moment.
    const fn behind(from_ns: u64, interval_ns: u64) -> Self {
        Self {
            next_ns: from_ns + interval_ns,
            interval_ns,
        }
    }

    /// The line was empty, and somebody has joined it.
    fn begin(&mut self, seen_ns: u64) {
        self.next_ns = self.next_ns.max(seen_ns + self.interval_ns);
    }

    /// How much lateness is made up for: an interval, but at least 20 ms and at most a
    /// second.
    fn made_up_ns(self) -> u64 {
        const AT_LEAST_NS: u64 = 20_000_000;
        const AT_MOST_NS: u64 = 1_000_000_000;
        self.interval_ns.clamp(AT_LEAST_NS, AT_MOST_NS)
    }

    /// How late the next one is that came at this time. What comes earlier says that it
    /// was the one before it that was late.
    fn lateness(&mut self, came_ns: u64) -> Duration {
        let late_ns = came_ns.saturating_sub(self.next_ns);
        let earliest_ns = came_ns.saturating_sub(self.made_up_ns());
        let from_ns = self.next_ns.clamp(earliest_ns, came_ns);
        self.next_ns = from_ns + self.interval_ns;
        Duration::from_nanos(late_ns)
    }
}

/// How far from their times releases were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// How many releases.
    pub count: usize,
    /// Half of them were closer than this.
    pub median: Duration,
    /// None was farther than this.
    pub worst: Duration,
    /// How many were farther than 20 ms (50 ms on a slow machine).
    pub far: usize,
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |d: Duration| d.as_secs_f64() * 1e3;
        write!(
            f,
            "{} releases off by {:.2} ms in the median, {:.2} ms at worst, {} of them by more than {} ms",
            self.count,
            millis(self.median),
            millis(self.worst),
            self.far,
            close().as_millis()
        )
    }
}

impl Lateness {
    /// What lies between when they came and when they were due.
    ///
    /// # Panics
    /// When there are none.
    #[track_caller]
    pub fn between(came_ns: &[u64], due_ns: &[u64]) -> Self {
        assert_eq!(came_ns.len(), due_ns.len());
        let off = came_ns
            .iter()
            .zip(due_ns)
            .map(|(came, due)| came.abs_diff(*due));
        Self::of(off.map(Duration::from_nanos))
    }

    /// How late those behind the first were if it was on time, and one was due each
    /// `interval`: for when it is not known at which moment the first was due.
    ///
    /// # Panics
    /// When there are no two, or they came faster than one each interval: one may be
    /// made up for.
    #[track_caller]
    pub fn behind_the_first(came_ns: &[u64], interval: Duration) -> Self {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap();
        let [first_ns, behind @ ..] = came_ns else {
            panic!("no first")
        };
        for (n, came_ns) in (1..).zip(behind) {
            let due = (interval * n).saturating_sub(2 * interval);
            let after = Duration::from_nanos(came_ns - first_ns) + CLOCKS_DIFFER;
            assert!(after >= due, "number {n} behind the first after {after:?}");
        }
        let mut due = Due::behind(*first_ns, interval_ns);
        Self::of(behind.iter().map(|came_ns| due.lateness(*came_ns)))
    }

    #[track_caller]
    fn of(off: impl Iterator<Item = Duration>) -> Self {
        let mut off: Vec<Duration> = off.collect();
        off.sort_unstable();
        let worst = *off.last().unwrap();
        Self {
            count: off.len(),
            median: off[off.len() / 2],
            worst,
            far: off.iter().filter(|off| **off > close()).count(),
        }
    }

    /// Asserts that most were within 20 ms of their times (50 ms on a slow
    /// machine), which a machine that does nothing else keeps for all.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_close(self) -> Self {
        assert!(
            self.median <= close() && self.far <= self.count / FEW,
            "{self}"
        );
        self
    }
}

/// Milliseconds, for what tests print.
pub fn millis(from_ns: u64, to_ns: u64) -> f64 {
    (to_ns as f64 - from_ns as f64) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn nanos(millis: u64) -> u64 {
        millis * 1_000_000
    }

    fn lateness(due: &mut Due, came_ms: u64) -> u128 {
        due.lateness(nanos(came_ms)).as_millis()
    }

    #[track_caller]
    fn assert_late(came_ms: &[u64], expected: &[u128]) {
        let mut due = Due::behind(0, nanos(100));
        let late: Vec<u128> = came_ms.iter().map(|&ms| lateness(&mut due, ms)).collect();
        assert_eq!(late, expected, "{came_ms:?}");
    }

    #[test]
    fn one_that_is_late_makes_none_of_the_others_late() {
        assert_late(&[110, 200, 350, 400, 500], &[10, 0, 50, 0, 0]);
    }

    #[test]
    fn whoever_was_away_for_long_makes_up_for_one() {
        assert_late(&[450, 451, 550, 650], &[350, 1, 0, 0]);
    }

    #[test]
    fn one_that_is_always_late_is_found_to_be() {
        assert_late(&[130, 260, 390, 520], &[30, 60, 90, 120]);
    }

    #[test]
    fn in_an_empty_line_the_next_is_due_an_interval_after_it_came() {
        let mut due = Due::behind(0, nanos(100));
        assert_eq!(lateness(&mut due, 100), 0);
        due.begin(nanos(777));
        assert_eq!(lateness(&mut due, 880), 3);
    }

    #[test]
    fn if_the_first_is_late_the_others_are_not_early() {
        let late = Lateness::behind_the_first(&[150, 200, 300, 410].map(nanos), INTERVAL);
        assert_eq!((late.count, late.worst.as_millis()), (3, 10));
    }

    #[test]
    fn those_that_come_in_bursts_do_not_come_at_the_rate() {
        for came_ms in [[0, 0, 0, 0], [0, 1_000, 1_000, 1_000]] {
            let caught = std::panic::catch_unwind(|| {
                Lateness::behind_the_first(&came_ms.map(nanos), INTERVAL).assert_close()
            });
            assert!(caught.is_err(), "{came_ms:?}");
        }
    }
}
