//! What goes on in each scope that has reached its limit, and what is reported
//! of it: once when it begins, now and then while it lasts, once when it is over.
//!
//! Pure: the time and the state of the kernel side are parameters.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use throttle_common::{
    NANOS_PER_SEC,
    flow::Endpoint,
    process::Process,
    record::{LimitReached, Tallies, Tally},
    subject::Subject,
};

use uuid::Uuid;

use crate::event::{Count, Ending, Episode};

/// How often an episode that goes on is reported: every 30 s.
pub const ONGOING_NS: u64 = 30 * NANOS_PER_SEC;

/// Most episodes that are followed at once, more than there are scopes. Of those
/// beyond, only the beginning is reported.
const EPISODES_MAX: usize = 2_048;
/// Most programs that are told apart in one episode.
const PROGRAMS_EACH: usize = 256;
/// From how many programs in all episodes on each has only its share.
const PROGRAMS_MAX: usize = 65_536;
/// The share of an episode.
const PROGRAMS_SHARE: usize = 16;
/// From how many destinations in all episodes on each has only its share.
const DESTINATIONS_MAX: usize = 65_536;
/// The share of an episode.
const DESTINATIONS_SHARE: usize = 64;

/// What the kernel side knows of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Half-open attempts.
    pub half_open: u64,
    /// Deferred attempts.
    pub queued: u64,
    /// Whether nobody waits, and nobody has met the limit for a while.
    pub has_recovered: bool,
    /// What has happened in it so far.
    pub tallies: Tallies,
}

/// An attempt of an episode.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Whose line it stands in.
    pub owner: Subject,
    /// The process, if that is known.
    pub process: Process,
    /// Where it goes.
    pub endpoint: Endpoint,
    /// When it was first seen, in monotonic nanoseconds.
    pub first_ns: u64,
}

/// An episode that begins.
#[derive(Debug, Clone, Copy)]
pub struct Beginning {
    /// The id that all its events carry.
    pub id: Uuid,
    /// When it begins, in nanoseconds since 1970. Kept, since the calendar may be
    /// set meanwhile.
    pub start_ns: u64,
    /// What the kernel side told.
    pub record: LimitReached,
    /// Whether an earlier daemon told of its beginning: it goes on.
    pub is_resumed: bool,
}

/// At which point of an episode a report is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// It begins.
    Reached,
    /// It goes on.
    Ongoing,
    /// It is over.
    Cleared(Ending),
}

/// What is reported of an episode, before anything has a name. Times are in
/// monotonic nanoseconds.
#[derive(Debug, Clone)]
pub struct Report {
    /// At which point.
    pub point: Point,
    /// When it is made.
    pub at_ns: u64,
    /// The episode's id.
    pub id: Uuid,
    /// When it began, in nanoseconds since 1970.
    pub start_ns: u64,
    /// What the kernel side told when it began.
    pub reached: LimitReached,
    /// Half-open attempts now.
    pub half_open: u64,
    /// Deferred attempts now.
    pub queued: u64,
    /// Most half-open attempts that were seen.
    pub peak_half_open: u64,
    /// Most deferred attempts that were seen.
    pub peak_queued: u64,
    /// What happened in the scope since it began.
    pub totals: Tallies,
    /// The most active programs, most attempts first.
    pub suspects: Vec<Suspect>,
    /// How many programs there are in all.
    pub programs: Count,
    /// How many destinations there are in all.
    pub destinations: Count,
    /// Some of the destinations.
    pub examples: Vec<Endpoint>,
}

/// A program in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Whose line its attempts stand in.
    pub owner: Subject,
    /// The process, if that is known.
    pub process: Process,
    /// Its attempts.
    pub attempts: u64,
    /// How many destinations they have.
    pub destinations: Count,
}

#[derive(Debug)]
struct Program {
    process: Process,
    attempts: u64,
    /// Attempts of the one whose room it got: it may have had as many before.
    inherited: u64,
    destinations: HashSet<Endpoint>,
    more_destinations: bool,
}

impl Program {
    const fn weight(&self) -> u64 {
        self.attempts + self.inherited
    }
}

#[derive(Debug)]
struct Ongoing {
    /// Its number among all of this run.
    number: u64,
    id: Uuid,
    start_ns: u64,
    reached: LimitReached,
    before: Tallies,
    /// How its scope was at the last look.
    last: Option<State>,
    peak_half_open: u64,
    peak_queued: u64,
    told_ns: u64,
    /// Attempts that were first seen before are counted already.
    counted_until_ns: u64,
    programs: HashMap<Subject, Program>,
    more_programs: bool,
    destinations: HashSet<Endpoint>,
    more_destinations: bool,
}

/// All episodes that are going on.
#[derive(Debug, Default)]
pub struct Episodes {
    ongoing: HashMap<Subject, Ongoing>,
    begun: u64,
    not_followed: u64,
    /// How the tallies of scopes stood when their last episode was over, and which
    /// episode was the latest then.
    settled: HashMap<Subject, (u64, Tallies)>,
    /// Programs and destinations that are remembered, in all episodes together.
    programs: usize,
    destinations: usize,
}

impl Episodes {
    /// Whether there is one in `scope` that is followed.
    #[must_use]
    pub fn follows(&self, scope: &Subject) -> bool {
        self.ongoing.contains_key(scope)
    }

    /// Of how many only the beginning was reported, since there was no room for more.
    #[must_use]
    pub const fn not_followed(&self) -> u64 {
        self.not_followed
    }

    /// How many are going on.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ongoing.len()
    }

    /// Whether none is going on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ongoing.is_empty()
    }

    /// An episode begins. `state` is that of its scope at `now_ns`, `attempts` are
    /// those of the scope that are known by now.
    ///
    /// If there was one in that scope already it was over, and is reported first.
    pub fn begin(
        &mut self,
        beginning: &Beginning,
        now_ns: u64,
        state: Option<State>,
        attempts: impl IntoIterator<Item = Attempt>,
    ) -> Vec<Report> {
        let Beginning {
            id,
            start_ns,
            record: reached,
            is_resumed,
        } = *beginning;
        let mut reports = Vec::new();
        if let Some(old) = self.remove(&reached.scope) {
            // What the scope is like now is the new one's.
            self.settle(reached.scope, old.last);
            let over = old.last.map(|last| State { queued: 0, ..last });
            let ending = Point::Cleared(Ending::Recovered);
            reports.push(self.report(&old, ending, reached.at_ns, over));
        }
        self.begun += 1;
        let mut ongoing = Ongoing {
            number: self.begun,
            id,
            start_ns,
            reached,
            before: state.map_or_else(Tallies::default, |state| state.tallies),
            last: state,
            peak_half_open: reached.half_open,
            peak_queued: reached.queued.max(state.map_or(0, |state| state.queued)),
            told_ns: reached.at_ns,
            counted_until_ns: now_ns,
            programs: HashMap::new(),
            more_programs: false,
            destinations: HashSet::new(),
            more_destinations: false,
        };
        for attempt in attempts {
            if attempt.first_ns <= now_ns {
                self.count(&mut ongoing, &attempt);
            }
        }
        self.leave_out_the_first(&mut ongoing);
        if ongoing.programs.is_empty() {
            // What met the limit has ended already, or was not remembered.
            let endpoint = reached.key.endpoint();
            self.count(
                &mut ongoing,
                &Attempt {
                    owner: reached.owner,
                    process: reached.process,
                    endpoint,
                    first_ns: reached.at_ns,
                },
            );
        }
        let (point, at_ns) = if is_resumed {
            (Point::Ongoing, now_ns)
        } else {
            (Point::Reached, reached.at_ns)
        };
        ongoing.told_ns = at_ns;
        reports.push(self.report(&ongoing, point, at_ns, state));
        if self.ongoing.len() < EPISODES_MAX {
            self.ongoing.insert(reached.scope, ongoing);
        } else {
            self.not_followed += 1;
            self.forget(&ongoing);
        }
        reports
    }

    /// An attempt was deferred in `scope`.
    pub fn deferred(&mut self, scope: &Subject, attempt: &Attempt) {
        if let Some(mut ongoing) = self.ongoing.remove(scope) {
            if attempt.first_ns > ongoing.counted_until_ns {
                self.count(&mut ongoing, attempt);
            }
            self.ongoing.insert(*scope, ongoing);
        }
    }

    /// Looks at all of them: what has changed, what is over, what is to be
    /// reported again. Those of which `is_over_already` are left as they were: what
    /// their scope is like now is the next one's.
    pub fn look(
        &mut self,
        now_ns: u64,
        is_over_already: impl Fn(&Subject) -> bool,
        state_of: impl Fn(&Subject) -> Option<State>,
    ) -> Vec<Report> {
        let mut reports = Vec::new();
        let scopes = self.ongoing.keys().copied();
        let scopes: Vec<Subject> = scopes.filter(|scope| !is_over_already(scope)).collect();
        for scope in scopes {
            let Some(mut ongoing) = self.ongoing.remove(&scope) else {
                continue;
            };
            let state = state_of(&scope);
            let ending = match state {
                None => Some(Ending::Forgotten),
                Some(state) if state.has_recovered => Some(Ending::Recovered),
                Some(state) => {
                    ongoing.last = Some(state);
                    ongoing.peak_half_open = ongoing.peak_half_open.max(state.half_open);
                    ongoing.peak_queued = ongoing.peak_queued.max(state.queued);
                    None
                }
            };
            if let Some(ending) = ending {
                self.forget(&ongoing);
                self.settle(scope, state.or(ongoing.last));
                let report = self.report(&ongoing, Point::Cleared(ending), now_ns, state);
                reports.push((ongoing.number, report));
                continue;
            }
            if now_ns.saturating_sub(ongoing.told_ns) >= ONGOING_NS {
                ongoing.told_ns = now_ns;
                let report = self.report(&ongoing, Point::Ongoing, now_ns, state);
                reports.push((ongoing.number, report));
            }
            self.ongoing.insert(scope, ongoing);
        }
        // In the order in which they began.
        reports.sort_by_key(|(number, _)| *number);
        reports.into_iter().map(|(_, report)| report).collect()
    }

    /// The throttle ends, and with it all episodes.
    pub fn stop(
        &mut self,
        now_ns: u64,
        state_of: impl Fn(&Subject) -> Option<State>,
    ) -> Vec<Report> {
        let ended: Vec<_> = std::mem::take(&mut self.ongoing).into_iter().collect();
        let mut reports: Vec<_> = ended
            .into_iter()
            .map(|(scope, ongoing)| {
                self.forget(&ongoing);
                let ending = Point::Cleared(Ending::Stopped);
                let report = self.report(&ongoing, ending, now_ns, state_of(&scope));
                (ongoing.number, report)
            })
            .collect();
        reports.sort_by_key(|(number, _)| *number);
        reports.into_iter().map(|(_, report)| report).collect()
    }

    /// The tallies were read a moment after the episode had begun: leaves out of
    /// `before` what happened in between.
    ///
    /// Whatever was deferred belongs to some episode, so what was since the last
    /// one belongs to this one.
    fn leave_out_the_first(&self, ongoing: &mut Ongoing) {
        let settled = self.settled.get(&ongoing.reached.scope);
        let settled = settled.map_or_else(Tallies::default, |(_, settled)| *settled);
        let mut since = 0;
        for tally in [Tally::Deferred, Tally::Overflowed, Tally::Released] {
            let before = &mut ongoing.before.0[tally as usize];
            let settled = match settled.get(tally) {
                settled if settled <= *before => settled,
                // The kernel has begun its table anew.
                _ => 0,
            };
            if tally != Tally::Released {
                since += *before - settled;
            }
            *before = settled;
        }
        let attempts = &mut ongoing.before.0[Tally::Attempts as usize];
        *attempts = attempts.saturating_sub(since);
    }

    /// Notes how the tallies stand when an episode is over.
    fn settle(&mut self, scope: Subject, state: Option<State>) {
        let Some(state) = state else { return };
        if self.settled.len() >= EPISODES_MAX {
            // The kernel has forgotten those that have been quiet for longest.
            let oldest = self.begun.saturating_sub(EPISODES_MAX as u64 / 2);
            self.settled.retain(|_, (number, _)| *number > oldest);
        }
        self.settled.insert(scope, (self.begun, state.tallies));
    }

    fn remove(&mut self, scope: &Subject) -> Option<Ongoing> {
        let ongoing = self.ongoing.remove(scope)?;
        self.forget(&ongoing);
        Some(ongoing)
    }

    /// Gives back what was remembered of an episode.
    fn forget(&mut self, ongoing: &Ongoing) {
        let of_programs = ongoing.programs.values().map(|p| p.destinations.len());
        self.destinations -= ongoing.destinations.len() + of_programs.sum::<usize>();
        self.programs -= ongoing.programs.len();
    }

    /// Counts an attempt. There is room for so many programs; a new one gets the
    /// room of the least active, and its weight too, so that whoever goes on comes
    /// to the top (the space-saving algorithm).
    fn count(&mut self, ongoing: &mut Ongoing, attempt: &Attempt) {
        let Attempt {
            owner,
            process,
            endpoint,
            ..
        } = *attempt;
        let programs = &mut ongoing.programs;
        if !programs.contains_key(&owner) {
            let is_full = programs.len() >= PROGRAMS_EACH
                || programs.len() >= PROGRAMS_SHARE && self.programs >= PROGRAMS_MAX;
            let least = if is_full {
                ongoing.more_programs = true;
                let least = programs.iter().min_by_key(|(_, program)| program.weight());
                let least = least.map(|(owner, _)| *owner);
                least.and_then(|owner| programs.remove(&owner))
            } else {
                self.programs += 1;
                None
            };
            let inherited = least.map_or(0, |least| {
                self.destinations -= least.destinations.len();
                least.weight()
            });
            programs.insert(
                owner,
                Program {
                    process,
                    attempts: 0,
                    inherited,
                    destinations: HashSet::new(),
                    more_destinations: false,
                },
            );
        }
        let room = &mut self.destinations;
        let mut remember = |set: &mut HashSet<Endpoint>, share: usize, more: &mut bool| {
            if *room < DESTINATIONS_MAX || set.len() < share {
                *room += usize::from(set.insert(endpoint));
            } else if !set.contains(&endpoint) {
                *more = true;
            }
        };
        remember(
            &mut ongoing.destinations,
            DESTINATIONS_SHARE,
            &mut ongoing.more_destinations,
        );
        if let Some(program) = programs.get_mut(&owner) {
            program.attempts += 1;
            if !program.process.is_known() {
                if process.is_known() {
                    program.process = process;
                } else {
                    // One of them may be a raw or packet socket's.
                    program.process.is_forgotten &= process.is_forgotten;
                }
            }
            remember(&mut program.destinations, 1, &mut program.more_destinations);
        }
    }

    fn report(&self, ongoing: &Ongoing, point: Point, at_ns: u64, state: Option<State>) -> Report {
        let count = |number: usize, or_more: bool| Count {
            number: number as u64,
            or_more,
        };
        // Who met the limit comes first among equals.
        let met = ongoing.reached.owner;
        let mut suspects: Vec<_> = ongoing.programs.iter().collect();
        suspects
            .sort_by_key(|(owner, program)| (Reverse(program.weight()), **owner != met, owner.id));
        let suspects = suspects
            .into_iter()
            .take(Episode::PROGRAMS)
            .map(|(owner, program)| Suspect {
                owner: *owner,
                process: program.process,
                attempts: program.attempts,
                destinations: count(program.destinations.len(), program.more_destinations),
            })
            .collect();
        let examples = ongoing.destinations.iter().take(Episode::DESTINATIONS);
        let mut examples: Vec<_> = examples.copied().collect();
        examples.sort_by_key(|endpoint| (endpoint.address, endpoint.port));
        let (half_open, queued) = match (point, state) {
            (Point::Reached, _) => (ongoing.reached.half_open, ongoing.reached.queued),
            (Point::Ongoing | Point::Cleared(_), Some(state)) => (state.half_open, state.queued),
            (Point::Ongoing | Point::Cleared(_), None) => (0, 0),
        };
        // If the kernel has thrown the scope or its tallies out: as they were seen
        // last.
        let since = |state: &State| {
            let mut totals = Tallies::default();
            let each = state.tallies.0.iter().zip(ongoing.before.0);
            for (total, (now, before)) in totals.0.iter_mut().zip(each) {
                *total = now.checked_sub(before)?;
            }
            Some(totals)
        };
        let now = state.as_ref().and_then(since);
        let mut totals = now
            .or_else(|| ongoing.last.as_ref().and_then(since))
            .unwrap_or_default();
        // An attempt is counted a moment before what becomes of it.
        let known = [Tally::Passed, Tally::Deferred, Tally::Overflowed].map(|of| totals.get(of));
        let attempts = &mut totals.0[Tally::Attempts as usize];
        *attempts = (*attempts).max(known.iter().sum());
        Report {
            point,
            at_ns,
            id: ongoing.id,
            start_ns: ongoing.start_ns,
            reached: ongoing.reached,
            half_open,
            queued,
            peak_half_open: ongoing.peak_half_open.max(half_open),
            peak_queued: ongoing.peak_queued.max(queued),
            totals,
            suspects,
            programs: count(ongoing.programs.len(), ongoing.more_programs),
            destinations: count(ongoing.destinations.len(), ongoing.more_destinations),
            examples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use throttle_common::{flow::FlowKey, subject::SubjectKind};

    const SCOPE: Subject = Subject::numbered(SubjectKind::Interface, 2);
    const SEC: u64 = NANOS_PER_SEC;

    fn key(destination: u16) -> FlowKey {
        let mut key = FlowKey::default();
        key.destination[14..].copy_from_slice(&destination.to_be_bytes());
        key
    }

    fn process(tgid: u32) -> Process {
        Process {
            tgid,
            ..Process::default()
        }
    }

    fn reached(scope: Subject, at_ns: u64) -> Beginning {
        let record = LimitReached {
            kind: 2,
            ifindex: 2,
            at_ns,
            scope,
            owner: Subject::process(7, 0),
            process: process(7),
            half_open: 50,
            queued: 1,
            limit: 50,
            interval_ns: SEC,
            mode: 0,
            key: key(1),
        };
        Beginning {
            is_resumed: false,
            id: id(at_ns),
            start_ns: at_ns,
            record,
        }
    }

    fn id(at_ns: u64) -> Uuid {
        Uuid::from_u128(at_ns.into())
    }

    fn attempt(tgid: u32, destination: u16, first_ns: u64) -> Attempt {
        Attempt {
            owner: Subject::process(tgid, 0),
            process: process(tgid),
            endpoint: key(destination).endpoint(),
            first_ns,
        }
    }

    fn state(half_open: u64, queued: u64, deferred: u64) -> State {
        let mut tallies = Tallies::default();
        tallies.0[Tally::Deferred as usize] = deferred;
        State {
            half_open,
            queued,
            has_recovered: half_open == 0 && queued == 0,
            tallies,
        }
    }

    #[test]
    fn an_episode_is_reported_once_then_now_and_then_then_once() {
        let mut episodes = Episodes::default();
        let first = episodes.begin(&reached(SCOPE, SEC), SEC, Some(state(50, 1, 0)), []);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].point, first[0].half_open), (Point::Reached, 50));
        let mut points = Vec::new();
        for second in 2..100 {
            let now = if second < 80 {
                state(60, 9, 100)
            } else {
                state(0, 0, 140)
            };
            for report in episodes.look(second * SEC, |_| false, |_| Some(now)) {
                points.push((second, report.point, report.peak_queued));
            }
        }
        let cleared = Point::Cleared(Ending::Recovered);
        assert_eq!(
            points,
            [
                (31, Point::Ongoing, 9),
                (61, Point::Ongoing, 9),
                (80, cleared, 9)
            ]
        );
        assert!(episodes.is_empty());
    }

    #[test]
    fn who_is_most_active_comes_first() {
        let mut episodes = Episodes::default();
        let there = (0..50)
            .map(|n| attempt(9, n, 1))
            .chain([attempt(7, 1, SEC)]);
        let reports = episodes.begin(&reached(SCOPE, SEC), SEC + 5, None, there);
        let suspects = &reports[0].suspects;
        assert_eq!(
            (suspects[0].owner, suspects[0].attempts),
            (Subject::process(9, 0), 50)
        );
        assert_eq!(suspects[0].destinations.number, 50);
        assert_eq!((suspects[1].process.tgid, suspects[1].attempts), (7, 1));
        assert_eq!(
            reports[0].destinations.number, 50,
            "one of them is dialled by both"
        );
        assert_eq!(reports[0].examples.len(), 50);
        // Seen when it began, and told of again by its record.
        episodes.deferred(&SCOPE, &attempt(7, 1, SEC));
        episodes.deferred(&SCOPE, &attempt(11, 3, SEC + 6));
        episodes.deferred(&SCOPE, &attempt(11, 3, SEC + 7));
        let reports = episodes.look(40 * SEC, |_| false, |_| Some(state(9, 9, 0)));
        let of = |tgid| {
            reports[0]
                .suspects
                .iter()
                .find(|s| s.process.tgid == tgid)
                .unwrap()
        };
        assert_eq!((of(11).attempts, of(11).destinations.number), (2, 1));
        assert_eq!(of(7).attempts, 1);
        assert_eq!(reports[0].programs.number, 3);
    }

    #[test]
    fn what_met_the_limit_is_named_even_if_it_has_ended() {
        let reports = Episodes::default().begin(&reached(SCOPE, SEC), SEC, None, []);
        assert_eq!(reports[0].suspects[0].process.tgid, 7);
        assert_eq!(reports[0].destinations.number, 1);
    }

    #[test]
    fn an_episode_that_was_over_unnoticed_is_closed_first() {
        let mut episodes = Episodes::default();
        episodes.begin(&reached(SCOPE, SEC), SEC, None, []);
        let reports = episodes.begin(&reached(SCOPE, 20 * SEC), 20 * SEC, None, []);
        let points: Vec<_> = reports.iter().map(|r| (r.id, r.point)).collect();
        assert_eq!(
            points,
            [
                (id(SEC), Point::Cleared(Ending::Recovered)),
                (id(20 * SEC), Point::Reached)
            ]
        );
        assert_eq!(episodes.len(), 1);
    }

    #[test]
    fn totals_are_those_since_it_began() {
        let mut episodes = Episodes::default();
        let mut counts = state(50, 3, 3);
        let mut count = |tally: Tally, n: u64| {
            counts.tallies.0[tally as usize] = n;
            counts
        };
        // Three of the 53 were deferred by the time the tallies were read.
        let now = count(Tally::Attempts, 53);
        episodes.begin(&reached(SCOPE, SEC), 2 * SEC, Some(now), []);
        count(Tally::Attempts, 60);
        let now = State {
            has_recovered: true,
            ..count(Tally::Deferred, 10)
        };
        let totals = episodes.look(9 * SEC, |_| false, |_| Some(now))[0].totals;
        assert_eq!(
            (totals.get(Tally::Attempts), totals.get(Tally::Deferred)),
            (10, 10)
        );
        // In peace a hundred more; then one is deferred.
        count(Tally::Attempts, 161);
        let now = count(Tally::Deferred, 11);
        episodes.begin(&reached(SCOPE, 30 * SEC), 30 * SEC, Some(now), []);
        let reports = episodes.stop(31 * SEC, |_| Some(now));
        let totals = reports[0].totals;
        assert_eq!(
            (totals.get(Tally::Attempts), totals.get(Tally::Deferred)),
            (1, 1)
        );
        assert_eq!(reports[0].point, Point::Cleared(Ending::Stopped));
        assert!(episodes.is_empty());
    }

    #[test]
    fn totals_stay_true_when_a_scope_was_forgotten() {
        let mut episodes = Episodes::default();
        let other = Subject::numbered(SubjectKind::User, 9);
        episodes.begin(&reached(other, SEC), SEC, None, []);
        episodes.look(2 * SEC, |_| false, |_| None);
        episodes.begin(&reached(SCOPE, 3 * SEC), 3 * SEC, Some(state(5, 1, 4)), []);
        let reports = episodes.stop(9 * SEC, |_| Some(state(5, 1, 7)));
        assert_eq!(reports[0].totals.get(Tally::Deferred), 7);
    }

    #[test]
    fn what_the_next_episode_did_is_not_booked_on_the_one_before() {
        let mut episodes = Episodes::default();
        episodes.begin(&reached(SCOPE, SEC), SEC, Some(state(5, 4, 4)), []);
        episodes.look(2 * SEC, |_| false, |_| Some(state(5, 4, 4)));
        // The next one has begun, and waits for a look at the attempts.
        let now = state(9, 6, 10);
        episodes.look(12 * SEC, |scope| *scope == SCOPE, |_| Some(now));
        let reports = episodes.begin(&reached(SCOPE, 12 * SEC), 12 * SEC, Some(now), []);
        let of = |n: usize| {
            (
                reports[n].totals.get(Tally::Deferred),
                reports[n].peak_queued,
            )
        };
        assert_eq!((of(0), of(1)), ((4, 4), (6, 6)));
        assert_eq!(reports[0].queued, 0);
    }

    #[test]
    fn a_scope_that_the_kernel_forgot_is_cleared() {
        let mut episodes = Episodes::default();
        episodes.begin(&reached(SCOPE, SEC), SEC, None, []);
        let reports = episodes.look(2 * SEC, |_| false, |_| None);
        assert_eq!(reports[0].point, Point::Cleared(Ending::Forgotten));
    }

    #[test]
    fn who_goes_on_comes_to_the_top_however_many_come_once() {
        let mut episodes = Episodes::default();
        episodes.begin(&reached(SCOPE, SEC), SEC, None, []);
        let mut next = 100..;
        let mut once = |episodes: &mut Episodes, count: usize| {
            for tgid in next.by_ref().take(count) {
                let at_ns = 2 * SEC + u64::from(tgid);
                episodes.deferred(&SCOPE, &attempt(tgid, 1, at_ns));
            }
        };
        once(&mut episodes, 20_000);
        for n in 0..400 {
            let worm = attempt(99, n, 3 * SEC + u64::from(n));
            episodes.deferred(&SCOPE, &worm);
            once(&mut episodes, 10);
        }
        let reports = episodes.stop(9 * SEC, |_| None);
        assert_eq!(reports[0].suspects[0].process.tgid, 99);
        assert!(reports[0].programs.or_more);
        // What it had before it got its room is not claimed.
        assert!((300..=400).contains(&reports[0].suspects[0].attempts));
    }

    #[test]
    fn an_episode_has_its_share_however_full_the_others_are() {
        let mut episodes = Episodes::default();
        let other = |n: u64| Subject::numbered(SubjectKind::User, n);
        for n in 0..300_u32 {
            let scope = other(n.into());
            episodes.begin(&reached(scope, SEC), SEC, None, []);
            for tgid in 0..300 {
                episodes.deferred(&scope, &attempt(1_000 + tgid, 1, 2 * SEC));
            }
        }
        assert!(episodes.programs >= PROGRAMS_MAX);
        let late = other(1_000);
        let there = (0..9).map(|n| attempt(5, n, 1));
        let reports = episodes.begin(&reached(late, 3 * SEC), 3 * SEC, None, there);
        assert_eq!(
            (
                reports[0].suspects[0].process.tgid,
                reports[0].suspects[0].attempts
            ),
            (5, 9)
        );
        assert_eq!(reports[0].destinations.number, 9);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut episodes = Episodes::default();
        let scope = |n: u64| Subject::numbered(SubjectKind::Source, n);
        for n in 0..6_000 {
            let begun = episodes.begin(&reached(scope(n), SEC), SEC, None, []);
            assert_eq!(begun.len(), 1, "each is reported");
        }
        assert_eq!(episodes.len(), EPISODES_MAX);
        assert_eq!(episodes.not_followed(), 6_000 - EPISODES_MAX as u64);
        for n in 0..120_000_u32 {
            let destination = u16::try_from(n % 60_000).unwrap();
            let at_ns = 2 * SEC + u64::from(n);
            let to = scope(u64::from(n) % 512);
            episodes.deferred(&to, &attempt(100 + n, destination, at_ns));
        }
        let shares = EPISODES_MAX * PROGRAMS_SHARE;
        assert!(episodes.programs <= PROGRAMS_MAX + shares);
        let shares = EPISODES_MAX * (DESTINATIONS_SHARE + PROGRAMS_EACH);
        assert!(episodes.destinations <= DESTINATIONS_MAX + shares);
        let reports = episodes.stop(9 * SEC, |_| None);
        assert!(reports[0].programs.or_more && reports[0].destinations.or_more);
        assert_eq!((episodes.programs, episodes.destinations), (0, 0));
    }

    proptest! {
        #[test]
        fn each_attempt_is_counted_once(attempts in prop::collection::vec((1u32..5, 0u16..20, 0u64..100), 1..200), at_ns in 1u64..100) {
            // Those up to the look are seen in the table; all of them have records.
            let mut episodes = Episodes::default();
            let all: Vec<_> = attempts.iter().map(|(tgid, to, ns)| attempt(*tgid, *to, *ns)).collect();
            episodes.begin(&reached(SCOPE, 1), at_ns, None, all.iter().copied());
            for attempt in &all {
                episodes.deferred(&SCOPE, attempt);
            }
            let reports = episodes.stop(1_000, |_| None);
            let counted: u64 = reports[0].suspects.iter().map(|s| s.attempts).sum();
            let phantom = u64::from(all.iter().all(|a| a.first_ns > at_ns));
            prop_assert_eq!(counted, all.len() as u64 + phantom);
        }
    }
}
