//! What there is to show: each throttle, and a row for each owner of attempts.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use nix::net::if_::if_indextoname;
use throttle_common::{
    process::Process as Known,
    record::{TALLIES, Tallies, Tally},
    scope::Scope as RawScope,
    subject::{Subject, SubjectKind},
};

use crate::{
    Result,
    attempts::{self, Unanswered},
    clock,
    event::{self, Cgroup, Process, Scope, User, Who, address},
    instance::{Daemon, Instance},
    maps::Maps,
    name::Name,
    owners::{NO_USER, Names},
    settings::{self, Mode, Rate, Settings},
    teller::known_as,
};

/// Most scopes of a throttle that are looked at.
const SCOPES_MAX: usize = 1 << 14;

/// One look at the throttles of this network namespace.
#[derive(Debug)]
pub struct Snapshot {
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// The throttles.
    pub throttles: Vec<Throttle>,
    /// Throttles that were not asked for.
    pub others: Vec<Name>,
    /// Everybody who has unanswered attempts, in no order.
    pub rows: Vec<Row>,
}

impl Snapshot {
    /// Half-open and deferred attempts of all rows together.
    #[must_use]
    pub fn totals<'a>(rows: impl IntoIterator<Item = &'a Row>) -> (u64, u64) {
        rows.into_iter().fold((0, 0), |(half_open, deferred), row| {
            (half_open + row.half_open, deferred + row.deferred)
        })
    }
}

/// A throttle.
#[derive(Debug)]
pub struct Throttle {
    /// What it is called.
    pub name: Name,
    /// Its daemon, if one runs.
    pub daemon: Option<Daemon>,
    /// How it stands; else why it cannot be looked into.
    pub state: Result<State>,
}

/// How a throttle stands.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What is done with attempts over the limit.
    pub mode: Mode,
    /// Half-open attempts that a scope may have.
    pub limit: u64,
    /// How fast deferred attempts are released.
    pub rate: Rate,
    /// What the limit applies to.
    pub scope: settings::Scope,
    /// Whether its daemon has missed its heartbeats, though it keeps the queue.
    pub is_stalled: bool,
    /// Scopes there are.
    pub scopes: usize,
    /// Those that are at their limit: without room, or with somebody waiting.
    pub full_scopes: usize,
    /// Half-open attempts that count, of all scopes.
    pub half_open: u64,
    /// Attempts that are queued, of all scopes.
    pub queued: u64,
    /// What has happened, in all scopes.
    pub tallies: Tallies,
    /// What happened since the look before, if there was one.
    pub moved: Option<Movement>,
    /// Whether all attempts were looked at; else there are too many.
    pub is_whole: bool,
}

/// What happened in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movement {
    /// What happened.
    pub tallies: Tallies,
    /// In how long.
    pub span: Duration,
}

impl Movement {
    /// How often this happened, a second.
    #[must_use]
    pub fn per_second(&self, tally: Tally) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "it is shown to a tenth")]
        let count = self.tallies.get(tally) as f64;
        count / self.span.as_secs_f64().max(0.001)
    }
}

/// Which row it is, from one look to the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name of the throttle.
    pub throttle: Arc<str>,
    /// The scope.
    pub scope: Subject,
    /// The owner.
    pub owner: Subject,
}

/// The unanswered attempts of one owner in one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Which row it is.
    pub key: Key,
    /// The throttle.
    pub throttle: Name,
    /// The scope.
    pub scope: Scope,
    /// Whose attempts they are, as the kernel noted it.
    pub owner: Owner,
    /// The owner's control group, if it is known.
    pub cgroup: Option<Cgroup>,
    /// What the kernel noted of the process; all zero if there is none.
    pub known: Known,
    /// Half-open attempts.
    pub half_open: u64,
    /// Deferred attempts.
    pub deferred: u64,
    /// How many addresses and ports they go to.
    pub destinations: usize,
    /// For how long the oldest has been unanswered.
    pub oldest: Duration,
    /// Where one of them comes from.
    pub source: SocketAddr,
    /// Where it goes to.
    pub destination: SocketAddr,
    /// All there is to know of the owner, once it was asked for.
    pub who: Option<Who>,
}

/// Whose attempts they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A process.
    Process {
        /// Its process id (tgid).
        pid: u32,
        /// When it started, in nanoseconds since boot; 0 if that is unknown.
        start_ns: u64,
        /// Its name.
        name: Name,
        /// Whose it is, if that is known.
        user: Option<User>,
    },
    /// A control group, of a process that is not known.
    Cgroup,
    /// Another machine.
    Source(IpAddr),
}

impl Row {
    /// Notes all there is to know of the owner.
    pub fn learn(&mut self, who: Who) {
        // /proc may tell the path of a control group that is not found by its id.
        let has_path = |cgroup: &Cgroup| cgroup.path.is_some();
        if !self.cgroup.as_ref().is_some_and(has_path)
            && let Some(cgroup) = who.cgroup()
        {
            self.cgroup = Some(cgroup.clone());
        }
        self.who = Some(who);
    }

    /// Half-open and deferred attempts together.
    #[must_use]
    pub const fn attempts(&self) -> u64 {
        self.half_open + self.deferred
    }

    /// The process id, if it is a process.
    #[must_use]
    pub const fn pid(&self) -> Option<u32> {
        match &self.owner {
            Owner::Process { pid, .. } => Some(*pid),
            Owner::Cgroup | Owner::Source(_) => None,
        }
    }

    /// The process with all there is to know of it, if that was asked for.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.who.as_ref().and_then(Who::process)
    }

    /// The user, if it is known.
    #[must_use]
    pub fn user(&self) -> Option<&User> {
        let noted = match &self.owner {
            Owner::Process { user, .. } => user.as_ref(),
            Owner::Cgroup | Owner::Source(_) => None,
        };
        noted.or_else(|| {
            let process = self.process()?;
            (process.user.id != NO_USER).then_some(&process.user)
        })
    }

    /// The user's name; the number if there is none.
    #[must_use]
    pub fn user_name(&self) -> Option<Name> {
        self.user().map(|user| match &user.name {
            Some(name) => name.clone(),
            None => Name::new(user.id.to_string()),
        })
    }

    /// The program's name; of what is no program, what it is.
    #[must_use]
    pub fn program(&self) -> Name {
        match &self.owner {
            Owner::Process { pid, name, .. } => {
                let names = [Some(name), self.process().map(|process| &process.name)];
                let name = names.into_iter().flatten().find(|name| !name.is_empty());
                // It may have an empty one.
                name.cloned()
                    .unwrap_or_else(|| Name::new(format!("pid {pid}")))
            }
            Owner::Cgroup => Name::from("unknown"),
            Owner::Source(address) => Name::new(address.to_string()),
        }
    }

    /// Whether the process is known to have ended.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.process().is_some_and(|process| process.has_exited)
    }
}

/// Looks at the throttles, and asks who is behind attempts.
#[derive(Debug)]
pub struct Looker {
    names: Names,
    /// The only throttle that is asked for.
    only: Option<String>,
    before: HashMap<String, Before>,
    /// Daemons' processes: their packet sockets dial for others.
    daemons: Vec<u32>,
}

/// What an earlier look at a throttle has found.
#[derive(Debug)]
struct Before {
    at_ns: u64,
    tallies: HashMap<Subject, Tallies>,
}

impl Looker {
    /// One that looks at all throttles of the caller's network namespace, or at
    /// one `only`.
    #[must_use]
    pub fn new(only: Option<String>) -> Self {
        Self {
            names: Names::new(false),
            only,
            before: HashMap::new(),
            daemons: Vec::new(),
        }
    }

    /// Looks.
    ///
    /// # Errors
    ///
    /// When the caller may not. A single throttle that cannot be looked into is
    /// no error: the snapshot says so.
    pub fn look(&mut self) -> Result<Snapshot> {
        let all = Instance::all()?;
        let daemons = all.iter().filter_map(|instance| instance.daemon.as_ref());
        self.daemons = daemons.map(|daemon| daemon.pid).collect();
        let (wanted, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|instance| self.only.as_ref().is_none_or(|only| *only == instance.name));
        let there: HashSet<&str> = wanted.iter().map(|instance| &*instance.name).collect();
        self.before.retain(|name, _| there.contains(&**name));
        let mut rows = Vec::new();
        let mut throttles = Vec::new();
        for instance in &wanted {
            let state = instance
                .maps()
                .and_then(|maps| self.look_into(&instance.name, &maps, &mut rows));
            throttles.push(Throttle {
                name: Name::new(&instance.name),
                daemon: instance.daemon.clone(),
                state,
            });
        }
        Ok(Snapshot {
            at_ns: clock::calendar_ns(clock::monotonic_ns()),
            throttles,
            others: others.iter().map(|other| Name::new(&other.name)).collect(),
            rows,
        })
    }

    /// Looks into the throttle `name`, and adds its rows to `rows`.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell its settings.
    pub fn look_into(&mut self, name: &str, maps: &Maps, rows: &mut Vec<Row>) -> Result<State> {
        let policy = maps.policy()?;
        let settings = Settings::in_force(&policy, Vec::new(), settings::Direction::Egress);
        let heartbeat = maps.daemon()?;

        let mut seen = HashMap::new();
        let (mut full_scopes, mut half_open, mut queued) = (0, 0, 0);
        for (subject, scope) in maps.scopes().take(SCOPES_MAX) {
            // When an entry goes while the table is read, the kernel begins again.
            if seen.contains_key(&subject) {
                continue;
            }
            seen.insert(subject, maps.tallies(&subject));
            // What has timed out is forgotten only when the next SYN comes.
            let now_ns = clock::monotonic_ns();
            let counted = scope
                .half_open
                .live(RawScope::half_open_window(&policy), now_ns);
            let waiting = scope.queued.live(RawScope::queue_window(&policy), now_ns);
            half_open += counted;
            queued += waiting;
            full_scopes += usize::from(counted >= policy.limit || waiting > 0);
        }
        let scopes = seen.len();
        let tallies = sum(seen.values());
        let at_ns = clock::monotonic_ns();
        let now = Before {
            at_ns,
            tallies: seen,
        };
        let moved = self.before.get(name).map(|before| Movement {
            tallies: moved(&before.tallies, &now.tallies),
            span: Duration::from_nanos(at_ns.saturating_sub(before.at_ns)),
        });
        self.before.insert(name.to_owned(), now);

        let look = attempts::look(maps);
        let now_ns = clock::monotonic_ns();
        let throttle = Arc::from(name);
        let found = look.owners.iter();
        rows.extend(found.map(|found| self.row(&throttle, found, now_ns)));
        Ok(State {
            mode: settings.mode,
            limit: settings.limit,
            rate: settings.rate,
            scope: settings.scope,
            // One that does not keep the queue has none.
            is_stalled: heartbeat.alive_until_ns != 0 && !heartbeat.is_alive(now_ns),
            scopes,
            full_scopes,
            half_open,
            queued,
            tallies,
            moved,
            is_whole: look.is_whole && scopes < SCOPES_MAX,
        })
    }

    /// The row of `found`, from what the kernel noted: nothing is asked of /proc.
    fn row(&mut self, throttle: &Arc<str>, found: &Unanswered, now_ns: u64) -> Row {
        let known = match SubjectKind::from_raw(found.owner.kind) {
            Some(SubjectKind::Process) => known_as(&found.owner, &found.process),
            _ => Known::default(),
        };
        let (owner, cgroup) = match SubjectKind::from_raw(found.owner.kind) {
            Some(SubjectKind::Process) => {
                let owner = Owner::Process {
                    pid: known.tgid,
                    start_ns: known.start_ns,
                    name: name_of(&known),
                    user: (known.uid != NO_USER).then(|| self.names.user(known.uid)),
                };
                (owner, known.cgroup)
            }
            Some(SubjectKind::Source) => (Owner::Source(address(found.owner.id)), 0),
            // A line is a process's, a cgroup's or a source's.
            Some(SubjectKind::Cgroup | SubjectKind::Interface | SubjectKind::User) | None => {
                (Owner::Cgroup, found.owner.number())
            }
        };
        let (source, destination) = event::ends(&found.example);
        Row {
            key: Key {
                throttle: Arc::clone(throttle),
                scope: found.scope,
                owner: found.owner,
            },
            throttle: Name::new(throttle.as_bytes()),
            scope: self.scope(&found.scope, &known),
            owner,
            cgroup: (cgroup != 0).then(|| self.names.cgroup(cgroup)),
            known,
            half_open: found.half_open,
            deferred: found.deferred,
            destinations: found.destinations,
            oldest: Duration::from_nanos(now_ns.saturating_sub(found.oldest_ns)),
            source,
            destination,
            who: None,
        }
    }

    /// A scope by its name. `owner` is a process that has attempts in it.
    fn scope(&mut self, subject: &Subject, owner: &Known) -> Scope {
        let name = match SubjectKind::from_raw(subject.kind) {
            Some(SubjectKind::Interface) => interface(subject),
            Some(SubjectKind::Cgroup) => self.names.cgroup(subject.number()).path,
            Some(SubjectKind::User) => u32::try_from(subject.number())
                .ok()
                .and_then(|uid| self.names.user(uid).name),
            Some(SubjectKind::Process) => {
                Some(name_of(&known_as(subject, owner))).filter(|name| !name.is_empty())
            }
            Some(SubjectKind::Source) | None => None,
        };
        Scope::new(subject, name)
    }

    /// All there is to know of the owner of a row. This reads /proc, some files
    /// for a process, and for a control group those of its members.
    pub fn who(&mut self, row: &Row) -> Who {
        match &row.owner {
            Owner::Process { .. } => Who::Process(Box::new(self.names.process(&row.known))),
            Owner::Source(address) => Who::Source(*address),
            Owner::Cgroup => {
                let id = row.key.owner.number();
                let mut candidates = self.names.candidates(id);
                candidates.retain(|process| !self.daemons.contains(&process.pid));
                Who::Cgroup {
                    cgroup: self.names.cgroup(id),
                    candidates,
                }
            }
        }
    }
}

/// The name that the kernel noted: of the process, else of the thread.
fn name_of(known: &Known) -> Name {
    let name = Name::of_field(&known.name);
    if name.is_empty() {
        Name::of_field(&known.thread_name)
    } else {
        name
    }
}

/// The name of an interface of this network namespace.
fn interface(subject: &Subject) -> Option<Name> {
    let index = u32::try_from(subject.number()).ok()?;
    Some(Name::new(if_indextoname(index).ok()?.to_bytes()))
}

fn sum<'a>(all: impl IntoIterator<Item = &'a Tallies>) -> Tallies {
    let mut sum = [0; TALLIES];
    for each in all {
        for (total, count) in sum.iter_mut().zip(each.0) {
            *total += count;
        }
    }
    Tallies(sum)
}

/// What happened between two looks. A scope that the kernel forgot in between
/// begins at zero again, and so does one that is new.
fn moved(before: &HashMap<Subject, Tallies>, after: &HashMap<Subject, Tallies>) -> Tallies {
    let mut moved = [0; TALLIES];
    for (subject, now) in after {
        let then = before.get(subject).copied().unwrap_or_default();
        let is_same = now.0.iter().zip(then.0).all(|(now, then)| *now >= then);
        for (index, total) in moved.iter_mut().enumerate() {
            let since = if is_same { then.0[index] } else { 0 };
            *total += now.0[index] - since;
        }
    }
    Tallies(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tallies(attempts: u64, deferred: u64) -> Tallies {
        let mut tallies = Tallies::default();
        tallies.0[Tally::Attempts as usize] = attempts;
        tallies.0[Tally::Deferred as usize] = deferred;
        tallies
    }

    fn scope(index: u64) -> Subject {
        Subject::numbered(SubjectKind::Interface, index)
    }

    #[test]
    fn what_happened_in_between_is_the_difference_in_each_scope() {
        let before = HashMap::from([(scope(1), tallies(10, 2)), (scope(2), tallies(5, 5))]);
        let after = HashMap::from([
            (scope(1), tallies(13, 2)),
            // New.
            (scope(3), tallies(4, 1)),
        ]);
        assert_eq!(moved(&before, &after), tallies(7, 1));
        assert_eq!(sum(after.values()), tallies(17, 3));
    }

    #[test]
    fn a_scope_that_was_forgotten_begins_anew() {
        let before = HashMap::from([(scope(1), tallies(1_000, 900))]);
        let after = HashMap::from([(scope(1), tallies(3, 1))]);
        assert_eq!(moved(&before, &after), tallies(3, 1));
    }

    #[test]
    fn how_often_something_happens_is_told_by_the_second() {
        let movement = Movement {
            tallies: tallies(30, 0),
            span: Duration::from_secs(4),
        };
        assert!((movement.per_second(Tally::Attempts) - 7.5).abs() < 1e-9);
        let at_once = Movement {
            span: Duration::ZERO,
            ..movement
        };
        assert!(at_once.per_second(Tally::Attempts).is_finite());
    }

    #[test]
    fn what_the_kernel_noted_makes_a_row() {
        let mut looker = Looker::new(None);
        let process = Known {
            tgid: 4242,
            tid: 4242,
            uid: 0,
            start_ns: 77,
            name: *b"a\x1b[2J\0\0\0\0\0\0\0\0\0\0\0",
            ..Known::default()
        };
        let found = Unanswered {
            scope: Subject::numbered(SubjectKind::User, 0),
            owner: process.subject(),
            process,
            half_open: 3,
            deferred: 4,
            destinations: 5,
            oldest_ns: 1_000,
            example: throttle_common::flow::FlowKey::default(),
        };
        let row = looker.row(&Arc::from("eth0"), &found, 2_000_001_000);
        assert_eq!((row.pid(), row.attempts()), (Some(4242), 7));
        assert_eq!(row.program().as_str(), r"a\x1b[2J");
        assert_eq!(row.user_name().unwrap().as_str(), "root");
        assert_eq!((row.scope.kind, row.scope.name.as_str()), ("user", "root"));
        assert_eq!(row.oldest, Duration::from_secs(2));
        // A clock that is read too early makes nothing negative.
        assert_eq!(
            looker.row(&Arc::from("eth0"), &found, 0).oldest,
            Duration::ZERO
        );
    }

    #[test]
    fn an_owner_that_is_no_process_has_no_pid() {
        let mut looker = Looker::new(None);
        let found = Unanswered {
            scope: scope(1),
            owner: Subject::source([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]),
            process: Known::default(),
            half_open: 1,
            deferred: 0,
            destinations: 1,
            oldest_ns: 0,
            example: throttle_common::flow::FlowKey::default(),
        };
        let row = looker.row(&Arc::from("eth0"), &found, 0);
        assert_eq!((row.pid(), row.program().as_str()), (None, "10.0.0.2"));
        let found = Unanswered {
            owner: Subject::numbered(SubjectKind::Cgroup, u64::MAX),
            ..found
        };
        let row = looker.row(&Arc::from("eth0"), &found, 0);
        assert_eq!(
            (row.owner, row.cgroup.unwrap().id),
            (Owner::Cgroup, u64::MAX)
        );
    }
}
