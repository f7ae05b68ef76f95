//! The kernel side's part of the episodes: its records and its tables, read into
//! [`Episodes`].

use std::collections::{HashMap, HashSet, hash_map::Entry};

use throttle_common::{
    flow::{FlowKey, Phase},
    policy::Policy,
    process::Process,
    record::{Deferred, LimitReached, RecordKind},
    scope::Scope,
    subject::Subject,
};

use crate::{
    clock,
    episodes::{Attempt, Beginning, Episodes, Report, State},
    event,
    maps::Maps,
};

/// After a look at all attempts, how much longer than the look it takes at least
/// until the next one: the daemon has a queue to keep.
const PAUSE: u64 = 20;

/// Most attempts that are kept until the look, of all episodes together.
const MEANWHILE_MAX: usize = 1 << 15;

/// How long an episode waits for records that were not read yet: 50 ms.
const MORE_NS: u64 = 50 * throttle_common::NANOS_PER_MILLI;

/// Most processes that are remembered because records told of them.
const TOLD_MAX: usize = 4_096;

/// Most entries that are read in one look.
const LOOK_MAX: usize = 1 << 17;

/// Follows the episodes.
#[derive(Debug, Default)]
pub struct Watch {
    episodes: Episodes,
    /// Episodes that have begun, and wait for a look at the attempts.
    begun: Vec<Beginning>,
    /// Attempts of theirs that records told of meanwhile.
    meanwhile: HashMap<Subject, Vec<(FlowKey, Attempt)>>,
    /// How many these are.
    kept: usize,
    /// For how many there was no room.
    not_kept: u64,
    /// Processes that records told of: some have ended when they are looked for.
    told: HashMap<Subject, Process>,
    /// From when on there may be another look, in monotonic nanoseconds.
    next_look_ns: u64,
}

/// After how many records that wait for a look it is not put off any longer.
const BEGUN_MAX: usize = 4_096;

impl Watch {
    /// A scope has reached its limit. The process if it was not known before.
    pub fn reached(&mut self, record: LimitReached) -> Option<Process> {
        let start_ns = clock::calendar_ns(record.at_ns);
        self.meanwhile.entry(record.scope).or_default();
        self.begun.push(Beginning {
            id: event::new_id(start_ns),
            start_ns,
            record,
            is_resumed: false,
        });
        if self.begun.len() >= BEGUN_MAX {
            self.next_look_ns = 0;
        }
        self.remember(&record.owner, &record.process)
    }

    /// An attempt was deferred. The process if it was not known before.
    pub fn deferred(&mut self, record: &Deferred) -> Option<Process> {
        let process = self.remember(&record.owner, &record.process);
        // Else it was handed over again, later.
        if record.seen_ns == record.first_ns {
            let attempt = Attempt {
                owner: record.owner,
                process: record.process,
                endpoint: record.key.endpoint(),
                first_ns: record.first_ns,
            };
            match self.meanwhile.get_mut(&record.scope) {
                Some(waiting) if self.kept < MEANWHILE_MAX => {
                    waiting.push((record.key, attempt));
                    self.kept += 1;
                }
                Some(_) => self.not_kept += 1,
                None => self.episodes.deferred(&record.scope, &attempt),
            }
        }
        process
    }

    /// Notes who is behind a line. The process if it was not known before.
    fn remember(&mut self, owner: &Subject, process: &Process) -> Option<Process> {
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        match self.told.entry(*owner) {
            Entry::Vacant(entry) => {
                entry.insert(*process);
                process.is_known().then_some(*process)
            }
            Entry::Occupied(mut entry) => {
                if !entry.get().is_known() {
                    entry.insert(*process);
                }
                None
            }
        }
    }

    /// What there was no room for: episodes of which only the beginning is told,
    /// and attempts that their program's number lacks.
    #[must_use]
    pub fn unhandled(&self) -> [(&'static str, u64); 2] {
        [
            ("episodes_not_followed", self.episodes.not_followed()),
            ("attempts_not_kept", self.not_kept),
        ]
    }

    /// Whether an episode in `scope` is followed.
    #[must_use]
    pub fn follows(&self, scope: &Subject) -> bool {
        self.episodes.follows(scope)
    }

    /// When somebody waits for a look at all attempts, in monotonic nanoseconds.
    #[must_use]
    pub fn next_look_ns(&self) -> Option<u64> {
        (!self.begun.is_empty()).then_some(self.next_look_ns)
    }

    /// Reports the episodes that have begun, if the time for it has come.
    /// `are_more`: whether there are records that were not read yet; they may tell
    /// of the same episodes, so there is a moment for them.
    pub fn begin(&mut self, maps: &Maps, are_more: bool) -> Vec<Report> {
        let Some(first) = self.begun.first() else {
            return Vec::new();
        };
        let now_ns = clock::monotonic_ns();
        let is_young = now_ns.saturating_sub(first.record.at_ns) < MORE_NS;
        if now_ns < self.next_look_ns || are_more && is_young {
            return Vec::new();
        }
        let begun = std::mem::take(&mut self.begun);
        let meanwhile = std::mem::take(&mut self.meanwhile);
        self.kept = 0;
        let mut attempts: HashMap<Subject, Vec<Attempt>> = begun
            .iter()
            .map(|beginning| (beginning.record.scope, Vec::new()))
            .collect();
        let mut processes: HashMap<Subject, Process> = HashMap::new();
        let mut seen = HashSet::new();
        // When an entry goes in the middle of it, the kernel begins again.
        for (key, flow) in maps.counted().take(LOOK_MAX) {
            let Some(of_scope) = attempts.get_mut(&flow.scope) else {
                continue;
            };
            match flow.phase() {
                Phase::Deferred | Phase::Counted(_) => {}
                Phase::Known | Phase::Ended => continue,
            }
            if !seen.insert(key) {
                continue;
            }
            let process = processes.entry(flow.owner).or_insert_with(|| {
                let told = self.told.get(&flow.owner).copied();
                told.or_else(|| maps.process_of(flow.cookie))
                    .unwrap_or_default()
            });
            of_scope.push(Attempt {
                owner: flow.owner,
                process: *process,
                endpoint: key.endpoint(),
                first_ns: flow.first_ns,
            });
        }
        // Those that have ended already.
        for (scope, told) in meanwhile {
            if let Some(of_scope) = attempts.get_mut(&scope) {
                let ended = told.into_iter().filter(|(key, _)| !seen.contains(key));
                of_scope.extend(ended.map(|(_, attempt)| attempt));
            }
        }
        let done_ns = clock::monotonic_ns();
        self.next_look_ns = done_ns + PAUSE * (done_ns - now_ns);
        let policy = maps.policy().ok();
        let mut reports = Vec::new();
        for beginning in begun {
            let scope = beginning.record.scope;
            let there = attempts.remove(&scope).unwrap_or_default();
            let state = state_of(maps, policy.as_ref(), &scope);
            reports.extend(self.episodes.begin(&beginning, now_ns, state, there));
        }
        reports
    }

    /// Goes on with the episodes that began before this daemon, of which nothing has
    /// been told to it.
    pub fn resume(&mut self, maps: &Maps) -> Vec<Report> {
        let (now_ns, Ok(policy)) = (clock::monotonic_ns(), maps.policy()) else {
            return Vec::new();
        };
        let mut left: HashMap<Subject, Scope> = maps
            .scopes()
            .filter(|(subject, scope)| {
                scope.episode_ns() != 0
                    && !scope.has_recovered(&policy, now_ns)
                    && !self.follows(subject)
                    && !self.meanwhile.contains_key(subject)
            })
            .collect();
        if left.is_empty() {
            return Vec::new();
        }
        // Any attempt that waits may stand for the one that met the limit.
        for (key, flow) in maps.counted().take(LOOK_MAX) {
            if flow.phase() != Phase::Deferred {
                continue;
            }
            let Some(scope) = left.remove(&flow.scope) else {
                continue;
            };
            let start_ns = clock::calendar_ns(scope.episode_ns());
            self.meanwhile.entry(flow.scope).or_default();
            self.begun.push(Beginning {
                id: event::new_id(start_ns),
                start_ns,
                is_resumed: true,
                record: LimitReached {
                    kind: RecordKind::LimitReached as u32,
                    ifindex: flow.ifindex,
                    at_ns: scope.episode_ns(),
                    scope: flow.scope,
                    owner: flow.owner,
                    process: maps.process_of(flow.cookie).unwrap_or_default(),
                    half_open: scope
                        .half_open
                        .live(Scope::half_open_window(&policy), now_ns),
                    queued: scope.queued.live(Scope::queue_window(&policy), now_ns),
                    limit: policy.limit,
                    interval_ns: policy.interval_ns,
                    mode: policy.mode,
                    key,
                },
            });
        }
        self.begin(maps, false)
    }

    /// Looks at the episodes that go on.
    pub fn look(&mut self, maps: &Maps) -> Vec<Report> {
        let policy = maps.policy().ok();
        let begins = |scope: &Subject| self.meanwhile.contains_key(scope);
        self.episodes.look(clock::monotonic_ns(), begins, |scope| {
            state_of(maps, policy.as_ref(), scope)
        })
    }

    /// The throttle ends: reports what has begun, and that all is over.
    pub fn stop(&mut self, maps: &Maps) -> Vec<Report> {
        self.next_look_ns = 0;
        let mut reports = self.begin(maps, false);
        let policy = maps.policy().ok();
        reports.extend(self.episodes.stop(clock::monotonic_ns(), |scope| {
            state_of(maps, policy.as_ref(), scope)
        }));
        reports
    }
}

fn state_of(maps: &Maps, policy: Option<&Policy>, scope: &Subject) -> Option<State> {
    // Both before the state is read: if the state says that the episode is over,
    // nothing of a next one is in the tallies, and no quiet time was cut short.
    let now_ns = clock::monotonic_ns();
    let tallies = maps.tallies(scope);
    let policy = policy?;
    let state = maps.scope(scope)?;
    // What has timed out is forgotten only when the next SYN comes.
    let half_open = state
        .half_open
        .live(Scope::half_open_window(policy), now_ns);
    let queued = state.queued.live(Scope::queue_window(policy), now_ns);
    Some(State {
        half_open,
        queued,
        has_recovered: state.has_recovered(policy, now_ns),
        tallies,
    })
}
