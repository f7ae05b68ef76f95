//! What the measurements say, and whether it is as expected.
//!
//! On a busy machine things take longer, and that is no fault of the
//! throttle. So what is judged are things that time does not excuse (a SYN
//! that came too early, a connect() that failed), and times only against what
//! a deferral would cost.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::Value;
use throttle_tests::{dial::Outcome, process::Finished};

use crate::{
    page::Page,
    programs::{AT_ONCE, LIVE, server},
    stage::{INTERVAL, LIMIT, Measured},
};

/// A SYN that arrives this long after its connect() was held back: half of
/// what one over the limit waits at least, and far more than any other.
const HELD_BACK: Duration = Duration::from_millis(100);
/// The wall clock by which both ends are timed may be set meanwhile. One SYN
/// too many would be four times as early.
const CLOCK_SLACK: Duration = Duration::from_millis(50);
/// In this time even a busy machine sends 60 SYNs.
const MOMENT: Duration = Duration::from_secs(1);
/// What a newcomer may wait: its turn is the next, or the one after it. The
/// rest is for a busy machine.
const NEWCOMER_WAIT: Duration = Duration::from_secs(2);

/// Connect times of the talker.
#[derive(Clone, Copy, Debug)]
struct Talk {
    connects: usize,
    failed: usize,
    median: Duration,
    most: Duration,
    held_back: usize,
}

impl Talk {
    fn of(measured: &Measured) -> Self {
        let mut times: Vec<Duration> = measured.talked.iter().map(|talked| talked.took).collect();
        times.sort_unstable();
        let mut arrived: HashMap<SocketAddr, Vec<u64>> = HashMap::new();
        let syns = measured.frames.syns().iter();
        for syn in syns.filter(|syn| syn.first && syn.dst == server()) {
            arrived.entry(syn.src).or_default().push(syn.at_ns);
        }
        let held_back = measured.talked.iter().filter(|talked| {
            let Some(local) = talked.local else {
                return false;
            };
            // A port may have been used before.
            let syns = arrived.get(&local).into_iter().flatten();
            let waited = syns
                .filter_map(|at_ns| at_ns.checked_sub(talked.at_ns))
                .min();
            waited.is_none_or(|ns| Duration::from_nanos(ns) > HELD_BACK)
        });
        Self {
            connects: times.len(),
            failed: measured
                .talked
                .iter()
                .filter(|talked| talked.local.is_none())
                .count(),
            median: part(&times, 50),
            most: part(&times, 99),
            held_back: held_back.count(),
        }
    }
}

/// The time that `percent` of these sorted times do not exceed.
fn part(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    let at = rank.saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// How the attempts over the limit went out.
#[derive(Clone, Debug, Default)]
struct Releases {
    /// How many have gone out, and how many were due.
    count: usize,
    due: usize,
    /// Time from each to the next, sorted.
    apart: Vec<Duration>,
    /// How long after its time each was, sorted.
    late: Vec<Duration>,
    /// How long before its time the earliest was.
    early: Duration,
    /// Those of the dialer, and how many of them came after one of a later
    /// connect().
    dialled: usize,
    overtaken: usize,
}

impl Releases {
    fn of(measured: &Measured) -> Self {
        // The first over the limit waits one interval.
        let Some(first_deferred) = measured.dialled.get(LIMIT) else {
            return Self::default();
        };
        let in_time = measured.start_ns..measured.end_ns;
        let syns = measured.frames.syns().iter();
        let out: Vec<(u64, SocketAddr)> = syns
            .filter(|syn| syn.first && syn.dst != server() && in_time.contains(&syn.at_ns))
            .map(|syn| (syn.at_ns, syn.dst))
            .collect();
        let released = out.get(LIMIT..).unwrap_or_default();
        let mut releases = Self {
            count: released.len(),
            ..Self::default()
        };
        let interval_ns = u64::try_from(INTERVAL.as_nanos()).unwrap_or(u64::MAX);
        releases.due = usize::try_from((measured.end_ns - first_deferred.at_ns) / interval_ns)
            .unwrap_or_default();
        for (n, &(at_ns, _)) in (1..).zip(released) {
            let due_ns = first_deferred.at_ns + n * interval_ns;
            releases
                .late
                .push(Duration::from_nanos(at_ns.saturating_sub(due_ns)));
            let early = Duration::from_nanos(due_ns.saturating_sub(at_ns));
            releases.early = releases.early.max(early);
        }
        let apart = released.windows(2);
        releases.apart = apart
            .map(|pair| Duration::from_nanos(pair[1].0.saturating_sub(pair[0].0)))
            .collect();
        let place = |dst| {
            measured
                .dialled
                .iter()
                .position(|dialled| dialled.dst == dst)
        };
        let mut last = 0;
        for place in released.iter().filter_map(|&(_, dst)| place(dst)) {
            releases.dialled += 1;
            releases.overtaken += usize::from(place < last);
            last = last.max(place);
        }
        releases.apart.sort_unstable();
        releases.late.sort_unstable();
        releases
    }
}

/// What the measurements say.
#[derive(Debug)]
pub(crate) struct Verdict<'a> {
    with: &'a Measured,
    talk: [Talk; 2],
    releases: Releases,
    newcomer: [Option<Duration>; 2],
    unexpected: Vec<String>,
}

impl<'a> Verdict<'a> {
    pub(crate) fn new(
        without: &Measured,
        with: &'a Measured,
        event: &Value,
        left: &Finished,
    ) -> Self {
        let mut verdict = Self {
            with,
            talk: [Talk::of(without), Talk::of(with)],
            releases: Releases::of(with),
            newcomer: [without, with].map(newcomer),
            unexpected: Vec::new(),
        };
        verdict.judge_setting(without, event, left);
        verdict.judge_talker();
        verdict.judge_rate();
        verdict.judge_dialer();
        verdict
    }

    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.unexpected.push(otherwise());
        }
    }

    fn judge_setting(&mut self, without: &Measured, event: &Value, left: &Finished) {
        let mut firsts: Vec<u64> = without
            .frames
            .syns()
            .iter()
            .filter(|syn| syn.first && syn.dst != server())
            .map(|syn| syn.at_ns)
            .collect();
        firsts.truncate(AT_ONCE);
        let took = firsts
            .last()
            .map(|&last| Duration::from_nanos(last.saturating_sub(without.start_ns)));
        self.expect(firsts.len() == AT_ONCE && took < Some(MOMENT), || {
            format!(
                "without the throttle the first {AT_ONCE} SYNs took {}",
                took.map_or_else(|| "for ever".into(), shown)
            )
        });
        self.expect(event["event"]["code"] == "4226", || {
            format!("the event has the code {}", event["event"]["code"])
        });
        self.expect(left.code() == Some(0), || {
            format!("throttle ended with {}: {}", left.status, left.stderr)
        });
    }

    fn judge_talker(&mut self) {
        let [without, with] = self.talk;
        for talk in [without, with] {
            self.expect(talk.connects > 0 && talk.failed == 0, || {
                format!(
                    "{} of the talker's {} connects failed",
                    talk.failed, talk.connects
                )
            });
        }
        // One in a hundred may have met a machine that was busy elsewhere.
        let held_back = with.held_back.saturating_sub(without.held_back);
        self.expect(held_back * 100 <= with.connects, || {
            format!("{held_back} connects of the talker were held back")
        });
        for (what, before, now) in [
            ("half", without.median, with.median),
            ("99 %", without.most, with.most),
        ] {
            self.expect(now <= before + HELD_BACK, || {
                format!(
                    "{what} of the talker's connects took up to {}, {} without the throttle",
                    shown(now),
                    shown(before)
                )
            });
        }
        let [_, newcomer] = self.newcomer;
        self.expect(
            newcomer.is_some_and(|took| took <= NEWCOMER_WAIT),
            || match newcomer {
                Some(took) => format!("a connect to a server not met before took {}", shown(took)),
                None => "a connect to a server not met before did not come about".into(),
            },
        );
    }

    fn judge_rate(&mut self) {
        let Releases {
            count, due, early, ..
        } = self.releases;
        self.expect(early <= CLOCK_SLACK, || {
            format!("a SYN over the limit was {} too early", shown(early))
        });
        // Slower is allowed to a machine that is busy, but not by far.
        self.expect(due > 0 && count * 5 >= due * 4, || {
            format!("only {count} SYNs over the limit went out; {due} were due")
        });
    }

    fn judge_dialer(&mut self) {
        // A daemon that gets no time for a second is not waited for, which
        // costs the order only.
        let Releases {
            dialled, overtaken, ..
        } = self.releases;
        self.expect(overtaken * 10 <= dialled, || {
            format!("{overtaken} of {dialled} SYNs of the dialer were overtaken by later ones")
        });
        let failed = self.failed();
        self.expect(failed.is_empty(), || {
            let first = failed.first().copied().unwrap_or_default();
            format!(
                "{} connects of the dialer failed, the first with {first}",
                failed.len(),
            )
        });
        // The last of the first 60 is due after 10 of 20 seconds.
        let connected = self.connected().len();
        self.expect(connected == LIVE.len(), || {
            format!(
                "{connected} of {} servers among the dialer's addresses were reached",
                LIVE.len()
            )
        });
    }

    fn failed(&self) -> Vec<&'a str> {
        let dialled = self.with.dialled.iter();
        dialled
            .filter_map(|dialled| dialled.failed.as_deref())
            .collect()
    }

    /// How long those connects of the dialer took that were answered, sorted.
    fn connected(&self) -> Vec<Duration> {
        let dialled = self.with.dialled.iter();
        let mut times: Vec<Duration> = dialled.filter_map(|dialled| dialled.connected).collect();
        times.sort_unstable();
        times
    }

    /// The connect times of the program that talks to a server.
    pub(crate) fn show_talker(&self, page: &mut Page) -> Result<()> {
        let mut table = String::from(
            "                           connects   failed   held back      median        99 %\n",
        );
        for (name, talk) in ["without the throttle", "with the throttle"]
            .iter()
            .zip(self.talk)
        {
            table += &format!(
                "   {name:<22}  {:>8}  {:>7}  {:>10}  {:>10}  {:>10}\n",
                talk.connects,
                talk.failed,
                talk.held_back,
                shown(talk.median),
                shown(talk.most),
            );
        }
        page.lines(&table)?;
        page.text(&format!(
            "Held back: the SYN arrived more than {} after connect() was called. The server has \
             answered before, so the limit is not for it.",
            shown(HELD_BACK)
        ))?;
        if let [Some(before), Some(now)] = self.newcomer {
            page.text(&format!(
                "In the middle of it another program connected to a server that nobody had talked \
                 to yet. That took {}, {} without the throttle: programs take turns, so it did not \
                 wait behind all that the dialer had in the queue.",
                shown(now),
                shown(before),
            ))?;
        }
        Ok(())
    }

    /// What became of the program that dials.
    pub(crate) fn show_dialer(&self, page: &mut Page) -> Result<()> {
        let connected = self.connected();
        let Releases {
            count,
            due,
            apart,
            late,
            overtaken,
            ..
        } = &self.releases;
        let times = match connected.as_slice() {
            [first, .., last] => format!(", after {} to {}", shown(*first), shown(*last)),
            _ => String::new(),
        };
        let rows = [
            ("connect() called", self.with.dialled.len().to_string()),
            ("connect() failed", self.failed().len().to_string()),
            (
                "answered",
                format!(
                    "{} of the {} live servers among its addresses{times}",
                    connected.len(),
                    LIVE.len()
                ),
            ),
            (
                "over the limit, let out",
                format!("{count} of {due} that were due"),
            ),
            ("overtaken by a later one", overtaken.to_string()),
            (
                "time from one to the next",
                format!(
                    "median {}, from {} to {}",
                    shown(part(apart, 50)),
                    shown(part(apart, 0)),
                    shown(part(apart, 100))
                ),
            ),
            (
                "distance from the due time",
                format!(
                    "median {}, worst {}",
                    shown(part(late, 50)),
                    shown(part(late, 100))
                ),
            ),
        ];
        let rows = rows.map(|(name, value)| format!("   {name:<28}{value}\n"));
        page.lines(&rows.concat())?;
        page.text(
            "The others wait, as every connect() does to an address that does not answer. None \
             of them is refused.",
        )
    }

    /// Whether all was as expected, and what was not.
    pub(crate) fn show_result(&self, page: &mut Page) -> Result<bool> {
        if self.unexpected.is_empty() {
            page.heading("All of this was as expected. What was set up is gone again.")?;
        } else {
            page.heading("Not all of this was as expected:")?;
            for what in &self.unexpected {
                page.text(&format!("- {what}"))?;
            }
        }
        Ok(self.unexpected.is_empty())
    }
}

/// How long the connect to a server took that nobody had talked to.
fn newcomer(measured: &Measured) -> Option<Duration> {
    match measured.newcomer.as_ref()?.outcome {
        Outcome::Connected { after } => Some(after),
        Outcome::Pending | Outcome::Failed { .. } | Outcome::Closed => None,
    }
}

/// A time as people read it.
fn shown(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    match millis {
        ..10.0 => format!("{millis:.2} ms"),
        ..1000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(part(&times, 0), times[0]);
        assert_eq!(part(&times, 50), Duration::from_millis(100));
        assert_eq!(part(&times, 99), Duration::from_millis(198));
        assert_eq!(part(&times, 100), Duration::from_millis(200));
        assert_eq!(part(&[], 99), Duration::ZERO);
    }

    #[test]
    fn times_are_shown_with_a_fitting_unit() {
        let shown = |micros| shown(Duration::from_micros(micros));
        assert_eq!(shown(87), "0.09 ms");
        assert_eq!(shown(200_040), "200 ms");
        assert_eq!(shown(3_960_000), "4.0 s");
    }
}
