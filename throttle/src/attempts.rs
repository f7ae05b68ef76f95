//! Who has unanswered attempts at this moment.

use std::collections::{HashMap, HashSet};

use throttle_common::{
    flow::{Endpoint, Flow, FlowKey, Phase},
    policy::Policy,
    process::Process,
    scope::Scope,
    subject::Subject,
};

use crate::{clock, maps::Maps};

/// Most entries that are read in one look.
const LOOK_MAX: usize = 1 << 17;

/// The unanswered attempts of one owner in one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// The scope whose limit they count against.
    pub scope: Subject,
    /// Whose they are: a process, else a cgroup, else a source address.
    pub owner: Subject,
    /// The process, if it is known.
    pub process: Process,
    /// Those whose SYN is on the wire.
    pub half_open: u64,
    /// Those that are held back.
    pub deferred: u64,
    /// How many addresses and ports they go to.
    pub destinations: usize,
    /// When the oldest was first seen, in monotonic nanoseconds.
    pub oldest_ns: u64,
    /// One of them, as an example.
    pub example: FlowKey,
}

/// Who has unanswered attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Everybody who has some, in no order.
    pub owners: Vec<Unanswered>,
    /// Whether all attempts were looked at; else there are too many.
    pub is_whole: bool,
}

/// Everybody who has unanswered attempts, in no order. While entries come and
/// go, one may be missed.
#[must_use]
pub fn unanswered(maps: &Maps) -> Vec<Unanswered> {
    look(maps).owners
}

/// As [`unanswered`], and whether that is all.
///
/// When the socket of an attempt is known, the kernel says when the attempt ends,
/// and it is there until then. Of others (of raw sockets, of other machines) only
/// the answer would show: those that have had their time, and count no more, are
/// left out.
#[must_use]
pub fn look(maps: &Maps) -> Look {
    let policy = maps.policy().ok();
    let mut looked_at = 0;
    let all = maps.counted().chain(maps.uncounted()).take(LOOK_MAX);
    // Read after the attempts are: none is from later.
    let attempts: Vec<_> = all.inspect(|_| looked_at += 1).collect();
    let now_ns = clock::monotonic_ns();
    let attempts = attempts.into_iter().filter(|(_, flow)| {
        let has_had_its_time = policy
            .as_ref()
            .is_some_and(|policy| has_had_its_time(flow, policy, now_ns));
        !has_had_its_time || maps.process_of(flow.cookie).is_some()
    });
    Look {
        owners: gathered(attempts, |cookie| maps.process_of(cookie)),
        is_whole: looked_at < LOOK_MAX,
    }
}

/// Whether an attempt counts no more, be it answered or not.
fn has_had_its_time(flow: &Flow, policy: &Policy, now_ns: u64) -> bool {
    match flow.phase() {
        Phase::Counted(place) => Scope::half_open_window(policy).has_aged(place.label(), now_ns),
        Phase::Known => now_ns.saturating_sub(flow.first_ns) >= policy.attempt_timeout_ns,
        Phase::Deferred => flow
            .queue_places()
            .0
            .is_none_or(|place| Scope::queue_window(policy).has_aged(place.label(), now_ns)),
        Phase::Ended => true,
    }
}

fn gathered(
    attempts: impl IntoIterator<Item = (FlowKey, Flow)>,
    process_of: impl Fn(u64) -> Option<Process>,
) -> Vec<Unanswered> {
    let mut owners: HashMap<(Subject, Subject), (Unanswered, HashSet<Endpoint>)> = HashMap::new();
    // When an entry goes while the table is read, the kernel begins again.
    let mut seen = HashSet::new();
    for (key, flow) in attempts {
        let is_deferred = match flow.phase() {
            Phase::Deferred => true,
            Phase::Counted(_) | Phase::Known => false,
            Phase::Ended => continue,
        };
        if !seen.insert(key) {
            continue;
        }
        let (of, destinations) = owners.entry((flow.scope, flow.owner)).or_insert_with(|| {
            let none = Unanswered {
                scope: flow.scope,
                owner: flow.owner,
                process: Process::default(),
                half_open: 0,
                deferred: 0,
                destinations: 0,
                oldest_ns: flow.first_ns,
                example: key,
            };
            (none, HashSet::new())
        });
        if is_deferred {
            of.deferred += 1;
        } else {
            of.half_open += 1;
        }
        if !of.process.is_known() {
            of.process = process_of(flow.cookie).unwrap_or_default();
        }
        of.oldest_ns = of.oldest_ns.min(flow.first_ns);
        destinations.insert(key.endpoint());
        of.destinations = destinations.len();
    }
    owners.into_values().map(|(of, _)| of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use throttle_common::{
        NANOS_PER_SEC,
        counter::Counter,
        flow::{Attempt, Entry},
        scope::SCOPE_SLOTS,
        subject::SubjectKind,
    };

    const START: u64 = 1_000 * NANOS_PER_SEC;

    fn attempt(pid: u32) -> Attempt {
        Attempt {
            isn: 1,
            data_len: 0,
            ifindex: 2,
            cookie: u64::from(pid),
            scope: Subject::numbered(SubjectKind::Interface, 2),
            owner: Subject::process(pid, 7),
            too_long: false,
        }
    }

    fn key(port: u16, destination: u8) -> FlowKey {
        FlowKey {
            source_port: port.to_be_bytes(),
            destination: [destination; 16],
            ..FlowKey::default()
        }
    }

    fn counted(pid: u32, at_ns: u64) -> Flow {
        let window = Scope::half_open_window(&Policy::default());
        let place = Counter::<SCOPE_SLOTS>::new().put(window, at_ns).unwrap();
        Flow::new(&attempt(pid), Entry::Counted(place), at_ns)
    }

    fn deferred(pid: u32, at_ns: u64) -> Flow {
        let window = Scope::queue_window(&Policy::default());
        let place = Counter::<SCOPE_SLOTS>::new().put(window, at_ns).unwrap();
        let entry = Entry::Deferred {
            queue: place,
            line: place,
            on_wire: false,
        };
        Flow::new(&attempt(pid), entry, at_ns)
    }

    #[test]
    fn attempts_are_gathered_by_owner_and_each_once() {
        let attempts = [
            (key(1, 1), counted(10, START + 5)),
            (key(2, 1), deferred(10, START + 3)),
            (key(3, 2), counted(11, START + 9)),
            // The kernel began again.
            (key(1, 1), counted(10, START + 5)),
        ];
        let process_of = |cookie| {
            Some(Process {
                tgid: u32::try_from(cookie).ok()?,
                ..Process::default()
            })
        };
        let mut owners = gathered(attempts, process_of);
        owners.sort_by_key(|owner| owner.process.tgid);
        let [ten, eleven] = &owners[..] else {
            panic!("{owners:?}")
        };
        assert_eq!((ten.half_open, ten.deferred, ten.destinations), (1, 1, 1));
        assert_eq!((ten.oldest_ns, ten.process.tgid), (START + 3, 10));
        assert_eq!((eleven.half_open, eleven.deferred), (1, 0));
    }

    #[test]
    fn an_attempt_has_its_time_while_it_counts() {
        let policy = Policy::default();
        let later = |seconds: u64| START + seconds * NANOS_PER_SEC;
        for (flow, seconds) in [
            (counted(1, START), 30),
            (deferred(1, START), 60),
            (Flow::new(&attempt(1), Entry::Known, START), 30),
        ] {
            assert!(!has_had_its_time(&flow, &policy, START));
            assert!(!has_had_its_time(&flow, &policy, later(seconds - 5)));
            assert!(has_had_its_time(&flow, &policy, later(seconds)));
        }
    }
}
