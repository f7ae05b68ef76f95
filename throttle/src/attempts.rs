//! Who has unanswered attempts at this moment.

use std::collections::{HashMap, HashSet};

use throttle_common::{
    flow::{Endpoint, Flow, FlowKey, Phase},
    process::Process,
    subject::Subject,
};

use crate::maps::Maps;

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

/// Everybody who has unanswered attempts, in no order. While entries come and
/// go, one may be missed.
#[must_use]
pub fn unanswered(maps: &Maps) -> Vec<Unanswered> {
    let all = maps.counted().chain(maps.uncounted()).take(LOOK_MAX);
    gathered(all, |cookie| maps.process_of(cookie))
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
