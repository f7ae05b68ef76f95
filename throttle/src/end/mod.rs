//! Ending the program behind attempts: that one process, and no other.
//!
//! A number is not enough to name a process, since it is given again. So
//! everything is done by a handle on the process (a pidfd), after it was
//! compared, by its start, with what the kernel noted of the one that connected.
//! `judge` decides, without looking at anything itself; [`Prepared`] holds what
//! was found and does it; `tell` has the words.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use nix::{libc, sys::signal::Signal};
use throttle_common::{
    process::Process as Known,
    subject::{Subject, SubjectKind},
};

use crate::{
    Error, Result,
    attempts::{self, Unanswered},
    clock, error,
    event::{self, Process, Scope},
    instance::Instance,
    maps::Maps,
    name::Name,
    object,
    owners::{self, Live, Names},
};

mod judge;

mod sockets;
mod tell;

pub use judge::{Refusal, Wanted};
pub use tell::{plan_text, refusal_json, report_json, report_text};

use crate::pidfd::Pidfd;
use judge::{Certainty, Facts, Owner, Running, Start, judge};

/// How long a process may take to end by SIGKILL, at least: it has a say in nothing,
/// but its memory is to be given back.
const KILL_TAKES: Duration = Duration::from_secs(5);

/// How a process is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long it may take to end after a signal; after SIGKILL it gets at least
    /// 5 s.
    pub wait: Duration,
    /// Whether it gets SIGKILL when it has not ended by SIGTERM.
    pub force: bool,
    /// Whether it is ended although it is not certain that it is the one behind
    /// the attempts ([`Plan::is_certain`]).
    pub uncertain_too: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(5),
            force: false,
            uncertain_too: false,
        }
    }
}

/// Why a process was not ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not to be ended, and nothing was done.
    #[error("{0}")]
    Refused(Refusal),
    /// Something did not work.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => Self::Refused(refusal.to_string()),
            Failure::Failed(error) => error,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What is going to be done, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The process as it is now.
    pub process: Process,
    /// Its name when it connected, if that was another.
    pub connected_as: Option<Name>,
    /// Whether it is certain that it is the one behind the attempts. If not, it
    /// has its number and its name.
    pub is_certain: bool,
    /// Whether it is the first process of a container's pid namespace, all of
    /// which ends with it.
    pub is_first_of_namespace: bool,
    /// Whether it is stopped, and so heeds no SIGTERM.
    pub is_stopped: bool,
    /// Its unanswered attempts.
    pub attempts: Vec<Attempts>,
    /// How many sockets it has that wait for an answer (SYN_SENT): its half-open
    /// and its deferred attempts.
    pub sockets: usize,
    /// Its children that have unanswered attempts, too. They are left alone.
    pub children: Vec<Child>,
    /// What could not be looked at, and why.
    pub problems: Vec<String>,
}

/// Unanswered attempts in one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    /// The throttle that counts them.
    pub throttle: Name,
    /// The scope.
    pub scope: Scope,
    /// Those whose SYN is on the wire.
    pub half_open: u64,
    /// Those that are held back.
    pub deferred: u64,
    /// How many addresses and ports they go to.
    pub destinations: usize,
    /// One of these.
    pub example: std::net::SocketAddr,
}

/// A child of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub name: Name,
    /// Its unanswered attempts, half-open and deferred.
    pub attempts: u64,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether the process has ended.
    pub has_ended: bool,
    /// How many of its sockets were closed while it ran.
    pub closed: usize,
    /// How many more were closed after its end: others held them as well.
    pub closed_after: usize,
    /// The signals that it got, in this order.
    pub signals: Vec<Signal>,
    /// How long it took from the first signal on.
    pub took: Duration,
    /// Whether it was stopped in the end, and so had not heeded SIGTERM.
    pub is_stopped: bool,
    /// Its half-open and its deferred attempts that are left; none if no throttle
    /// could be asked.
    pub left: Option<(u64, u64)>,
    /// What did not work on the way, and why.
    pub problems: Vec<String>,
}

impl Wanted {
    /// The process `tgid` that started at `start_ns` (nanoseconds since boot; 0 if
    /// that is not known), as the kernel side has them.
    #[must_use]
    pub fn process(tgid: u32, start_ns: u64) -> Self {
        Self {
            pid: tgid,
            start_ticks: (start_ns != 0).then(|| owners::ticks_of(start_ns)),
            boot: None,
        }
    }
}

/// Ends the process `tgid` that started at `start_ns` (see [`Wanted::process`]),
/// and says nothing of it. It may take as long as [`Options::wait`] allows.
///
/// # Errors
///
/// As [`Prepared::new`] and [`Prepared::carry_out`].
pub fn end(tgid: u32, start_ns: u64, options: &Options) -> Result<(Plan, Report), Failure> {
    let prepared = Prepared::new(&Wanted::process(tgid, start_ns))?;
    let report = prepared.carry_out(options)?;
    Ok((prepared.plan, report))
}

/// A process that can be ended, by a handle that no other one comes to stand for.
pub struct Prepared {
    target: Target,
    handle: Pidfd,
    live: Live,
    /// Where its sockets may be.
    spaces: Vec<Space>,
    throttles: Vec<(Name, Maps)>,
    plan: Plan,
}

/// The process that is to be ended.
#[derive(Debug, Clone, Copy)]
struct Target {
    pid: u32,
    start_ticks: u64,
    certainty: Certainty,
}

impl Target {
    /// Whether a process that the kernel noted is this one.
    fn is(&self, tgid: u32, start_ns: u64) -> bool {
        tgid == self.pid
            && match (start_ns, self.certainty) {
                (0, Certainty::Name) => true,
                (0, Certainty::Start) => false,
                (start_ns, _) => owners::ticks_of(start_ns) == self.start_ticks,
            }
    }

    /// Whether these attempts are its own.
    fn has(&self, attempts: &Unanswered) -> bool {
        process_of(&attempts.owner).is_some_and(|(tgid, start_ns)| self.is(tgid, start_ns))
    }

    /// Whether a socket is to be closed: whom the throttles say to have connected
    /// it, and whether it is among the process's files. One that another process
    /// connected is that one's, whoever holds it.
    fn owns(&self, connected_by: &[Known], is_held: bool) -> bool {
        let mut known = connected_by
            .iter()
            .filter(|by| by.is_known() && by.start_ns != 0)
            .peekable();
        if known.peek().is_none() {
            return is_held;
        }
        known.any(|by| self.is(by.tgid, by.start_ns))
    }
}

impl Prepared {
    /// Looks for the process and at all that is to be known of it. Nothing is
    /// changed yet.
    ///
    /// # Errors
    ///
    /// When it is not to be ended, when the caller may not end it or may not look
    /// whether to, or when the kernel has no pidfd (Linux 5.3).
    pub fn new(wanted: &Wanted) -> Result<Self, Failure> {
        if !object::sees_all_processes() {
            return Err(Refusal::OtherPids.into());
        }
        let pid = wanted.pid;
        let handle = open(pid)?;
        let live = handle.as_ref().and_then(|_| Live::open(pid));
        let hidden = || Error::Denied {
            what: format!("look at process {pid}"),
            reason: "/proc does not show it".into(),
            remedy: "run it as root, for example with sudo".into(),
        };
        let has_ended = match &handle {
            // If this is still there, no other one had the number meanwhile, and
            // what was read was read of this one.
            Some(handle) => handle.has_ended().map_err(|e| failed(pid, e))?,
            None => true,
        };
        let found = match (handle, live) {
            (Some(handle), Some(live)) if !has_ended => Some((handle, live)),
            (Some(_), None) if !has_ended => return Err(hidden().into()),
            _ => None,
        };
        let mut throttles = Throttles::look(wanted.start_ticks.is_some())?;
        let owners = throttles.owners();
        let facts = Facts {
            boot: owners::boot_id(),
            own: std::process::id(),
            daemons: std::mem::take(&mut throttles.daemons),
            running: found.as_ref().map(|(_, live)| running(live)),
            owners: owners
                .iter()
                .filter_map(|(_, attempts)| owner(pid, attempts))
                .collect(),
            throttles: throttles.all.len(),
            unasked: throttles.problems.clone(),
        };
        let certainty = judge(wanted, &facts)?;
        let (Some((handle, live)), Some(running)) = (found, facts.running) else {
            let has_attempts = false;
            return Err(Refusal::Ended { pid, has_attempts }.into());
        };
        let target = Target {
            pid,
            start_ticks: running.start.ticks,
            certainty,
        };
        // Before anything is done.
        handle.send(None).map_err(|error| failed(pid, error))?;
        let mut plan = throttles.plan(&target, &owners, &live)?;
        let spaces = Space::of(&live, &mut plan.problems);
        let mut prepared = Self {
            target,
            handle,
            live,
            spaces,
            throttles: throttles.all,
            plan,
        };
        let mut problems = Vec::new();
        let sockets = prepared.sockets(&mut problems);
        prepared.plan.sockets = sockets.iter().map(|(_, found)| found.len()).sum();
        prepared.plan.problems.append(&mut problems);
        Ok(prepared)
    }

    /// What is going to be done.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Closes the sockets that wait for an answer, sends SIGTERM, and waits for
    /// the process to end; sends SIGKILL if that is wanted and it does not.
    /// Whether it has ended is in the report.
    ///
    /// # Errors
    ///
    /// When the caller may not, or has not accepted that it is not certain.
    pub fn carry_out(&self, options: &Options) -> Result<Report, Failure> {
        let pid = self.target.pid;
        if !self.plan.is_certain && !options.uncertain_too {
            return Err(Refusal::Uncertain(pid).into());
        }
        let mut report = Report {
            has_ended: false,
            closed: 0,
            closed_after: 0,
            signals: Vec::new(),
            took: Duration::ZERO,
            is_stopped: false,
            left: None,
            problems: Vec::new(),
        };
        report.closed = self.close(&mut report.problems);
        let begun = Instant::now();
        let signals = [
            Some(Signal::SIGTERM),
            options.force.then_some(Signal::SIGKILL),
        ];
        let mut at_most = Duration::ZERO;
        for signal in signals.into_iter().flatten().map(Some).chain([None]) {
            let ended = self.handle.has_ended_within(at_most);
            report.has_ended = ended.map_err(|error| failed(pid, error))?;
            let Some(signal) = signal.filter(|_| !report.has_ended) else {
                break;
            };
            match self.handle.send(Some(signal)) {
                Ok(()) => report.signals.push(signal),
                // It has just ended, and was waited for.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(failed(pid, error).into()),
            }
            at_most = if signal == Signal::SIGKILL {
                options.wait.max(KILL_TAKES)
            } else {
                options.wait
            };
        }
        report.took = begun.elapsed();
        if report.has_ended {
            // Those that it opened meanwhile went with it, unless others hold
            // them.
            report.closed_after = self.close(&mut report.problems);
        } else {
            report.is_stopped = self.live.is_stopped();
        }
        // Each is said once.
        report.problems.dedup();
        report
            .problems
            .retain(|problem| !self.plan.problems.contains(problem));
        report.left = self.left();
        Ok(report)
    }

    /// Closes the sockets that wait for an answer; says how many.
    fn close(&self, problems: &mut Vec<String>) -> usize {
        let mut closed = 0;
        for (space, found) in self.sockets(problems) {
            if found.is_empty() {
                continue;
            }
            let closing = space.within(|| Ok(sockets::close(&found)));
            let closing = closing.unwrap_or_else(|error| sockets::Closing {
                closed: 0,
                failed: Some((found.len(), error)),
            });
            closed += closing.closed;
            if let Some((left, error)) = closing.failed {
                let remedy = sockets::remedy(&error);
                let sockets = if left == 1 { "socket" } else { "sockets" };
                problems.push(format!("{left} {sockets} were not closed: {error}{remedy}"));
            }
        }
        closed
    }

    /// Its sockets that wait for an answer, by network namespace.
    fn sockets(&self, problems: &mut Vec<String>) -> Vec<(&Space, Vec<sockets::Unanswered>)> {
        let held = self.live.sockets().unwrap_or_else(|error| {
            // Of one that has ended there is nothing to tell.
            if !self.handle.has_ended().unwrap_or(false) {
                problems.push(format!(
                    "of its sockets only those are found that a throttle has noted: look at its \
                     files: {error} (it needs CAP_SYS_PTRACE)"
                ));
            }
            HashSet::new()
        });
        let mut all = Vec::new();
        for space in &self.spaces {
            match space.within(sockets::unanswered) {
                Ok(mut found) => {
                    found.retain(|socket| {
                        let by = self.connected_by(socket.cookie());
                        self.target.owns(&by, held.contains(&socket.inode))
                    });
                    all.push((space, found));
                }
                Err(error) => problems.push(format!(
                    "its sockets are left to end with it: look for them: {error}{}",
                    sockets::remedy(&error)
                )),
            }
        }
        all
    }

    /// Who connected the socket `cookie`, as each throttle has it.
    fn connected_by(&self, cookie: u64) -> Vec<Known> {
        let throttles = self.throttles.iter();
        throttles
            .filter_map(|(_, maps)| maps.process_of(cookie))
            .collect()
    }

    /// How many of its attempts are unanswered now: half-open ones, deferred ones.
    fn left(&self) -> Option<(u64, u64)> {
        if self.throttles.is_empty() {
            return None;
        }
        let all = self.throttles.iter();
        let all = all.flat_map(|(_, maps)| attempts::unanswered(maps));
        Some(all.filter(|attempts| self.target.has(attempts)).fold(
            (0, 0),
            |(half_open, deferred), attempts| {
                (half_open + attempts.half_open, deferred + attempts.deferred)
            },
        ))
    }
}

/// A network namespace; none is the caller's.
#[derive(Debug)]
struct Space(Option<File>);

impl Space {
    /// The caller's, and the process's if that is another.
    fn of(live: &Live, problems: &mut Vec<String>) -> Vec<Self> {
        let own = live.network_namespace();
        if let Err(error) = &own {
            problems.push(format!(
                "its sockets are looked for in this network namespace alone: look at its own: \
                 {error} (it needs CAP_SYS_PTRACE)"
            ));
        }
        let own = own.ok().filter(is_another).map(|space| Self(Some(space)));
        [Self(None)].into_iter().chain(own).collect()
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.0 {
            None => work(),
            Some(space) => sockets::inside(space, work),
        }
    }
}

/// Whether a network namespace is not the caller's.
fn is_another(space: &File) -> bool {
    let own = std::fs::metadata("/proc/thread-self/ns/net").ok();
    let both = own.zip(space.metadata().ok());
    both.is_none_or(|(own, space)| (own.dev(), own.ino()) != (space.dev(), space.ino()))
}

/// The throttles of this network namespace, as far as they can be looked into.
#[derive(Default)]
struct Throttles {
    all: Vec<(Name, Maps)>,
    daemons: Vec<u32>,
    /// Why others cannot.
    problems: Vec<String>,
}

impl Throttles {
    /// Looks for them. That none can be looked into is an error, unless they are
    /// `dispensable`.
    fn look(dispensable: bool) -> Result<Self> {
        let mut found = Self::default();
        let instances = match Instance::all() {
            Ok(instances) => instances,
            Err(error) if dispensable => {
                found.problems.push(in_a_line(&error));
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        let mut errors = Vec::new();
        for instance in instances {
            found
                .daemons
                .extend(instance.daemon.as_ref().map(|daemon| daemon.pid));
            match instance.maps() {
                Ok(maps) => found.all.push((Name::new(&instance.name), maps)),
                Err(error) => errors.push(error),
            }
        }
        if found.all.is_empty() && !dispensable && !errors.is_empty() {
            return Err(errors.swap_remove(0));
        }
        found.problems.extend(errors.iter().map(in_a_line));
        Ok(found)
    }

    /// All who have unanswered attempts, each with the place of its throttle.
    fn owners(&self) -> Vec<(usize, Unanswered)> {
        let all = self.all.iter().enumerate();
        all.flat_map(|(at, (_, maps))| {
            let unanswered = attempts::unanswered(maps);
            unanswered.into_iter().map(move |attempts| (at, attempts))
        })
        .collect()
    }

    /// The plan, but for the sockets.
    fn plan(
        &self,
        target: &Target,
        owners: &[(usize, Unanswered)],
        live: &Live,
    ) -> Result<Plan, Failure> {
        let mut names = Names::new(false);
        let pid = target.pid;
        let Some(process) = names.now(pid, live) else {
            let has_attempts = false;
            return Err(Refusal::Ended { pid, has_attempts }.into());
        };
        let own = || owners.iter().filter(|(_, attempts)| target.has(attempts));
        let connected_as = own()
            .map(|(_, attempts)| Name::of_field(&attempts.process.name))
            .find(|name| !name.is_empty() && *name != process.name);
        let mut attempts: Vec<Attempts> = own()
            .map(|(at, attempts)| Attempts {
                throttle: self.all[*at].0.clone(),
                scope: scope(&mut names, &attempts.scope),
                half_open: attempts.half_open,
                deferred: attempts.deferred,
                destinations: attempts.destinations,
                example: event::ends(&attempts.example).1,
            })
            .collect();
        attempts.sort_by(|a, b| (&a.throttle, &a.scope.name).cmp(&(&b.throttle, &b.scope.name)));
        Ok(Plan {
            process,
            connected_as,
            is_certain: target.certainty == Certainty::Start,
            is_first_of_namespace: live.is_first_of_namespace(),
            is_stopped: live.is_stopped(),
            attempts,
            sockets: 0,
            children: children(pid, owners),
            problems: self.problems.clone(),
        })
    }
}

/// What an error says, without what to do about it.
fn in_a_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Which of the processes that have attempts are children of `pid`.
fn children(pid: u32, owners: &[(usize, Unanswered)]) -> Vec<Child> {
    let mut by_process: HashMap<(u32, u64), u64> = HashMap::new();
    for (_, attempts) in owners {
        if let Some(process) = process_of(&attempts.owner).filter(|(_, start_ns)| *start_ns != 0) {
            *by_process.entry(process).or_default() += attempts.half_open + attempts.deferred;
        }
    }
    let mut children: Vec<Child> = by_process
        .into_iter()
        .filter_map(|((child, start_ns), attempts)| {
            let live = Live::open(child)?;
            let is_child =
                live.start_ticks() == owners::ticks_of(start_ns) && live.parent_id() == pid;
            is_child.then(|| Child {
                pid: child,
                name: live.name().unwrap_or_default(),
                attempts,
            })
        })
        .collect();
    children.sort_by_key(|child| child.pid);
    children
}

/// A scope with the name that it has now.
fn scope(names: &mut Names, subject: &Subject) -> Scope {
    let number = u32::try_from(subject.number()).ok();
    let name = match SubjectKind::from_raw(subject.kind) {
        Some(SubjectKind::Interface) => number
            .and_then(|index| nix::net::if_::if_indextoname(index).ok())
            .map(|name| Name::new(name.to_bytes())),
        Some(SubjectKind::Cgroup) => names.cgroup(subject.number()).path,
        Some(SubjectKind::User) => number.and_then(|uid| names.user(uid).name),
        Some(SubjectKind::Process) => number
            .and_then(Live::open)
            .filter(|live| live.start_ticks() == owners::ticks_of(subject.start_ns()))
            .and_then(|live| live.name()),
        Some(SubjectKind::Source) | None => None,
    };
    Scope::new(subject, name)
}

/// The process that an owner is, with its start in nanoseconds since boot; none if
/// it is something else.
fn process_of(owner: &Subject) -> Option<(u32, u64)> {
    let is_process = SubjectKind::from_raw(owner.kind) == Some(SubjectKind::Process);
    let tgid = u32::try_from(owner.number()).ok();
    tgid.filter(|_| is_process)
        .map(|tgid| (tgid, owner.start_ns()))
}

/// Who has the attempts, if that is a process of the number `pid`.
fn owner(pid: u32, attempts: &Unanswered) -> Option<Owner> {
    let (tgid, start_ns) = process_of(&attempts.owner)?;
    (tgid == pid).then(|| Owner {
        start: (start_ns != 0).then(|| Start {
            ticks: owners::ticks_of(start_ns),
            at_ns: clock::calendar_of_boot_ns(start_ns),
        }),
        name: Name::of_field(&attempts.process.name),
    })
}

fn running(live: &Live) -> Running {
    let ticks = live.start_ticks();
    Running {
        start: Start {
            ticks,
            at_ns: clock::calendar_of_boot_ns(owners::nanos_of(ticks)),
        },
        name: live.name().unwrap_or_default(),
        is_kernel_thread: live.is_kernel_thread(),
    }
}

/// A handle on the process `pid`; none if there is no such process.
fn open(pid: u32) -> Result<Option<Pidfd>, Failure> {
    let error = match Pidfd::open(pid) {
        Ok(handle) => return Ok(Some(handle)),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::ESRCH) => Ok(None),
        Some(libc::EINVAL | libc::ENOENT) => {
            match owners::process_of_thread(pid).filter(|of| *of != pid) {
                Some(of) => Err(Refusal::Thread { tid: pid, of }.into()),
                // It has ended meanwhile.
                None => Ok(None),
            }
        }
        _ => Err(Error::needs(
            format!("get hold of process {pid}"),
            error,
            "pidfd_open",
            "throttle end needs Linux 5.3 or later; until then use kill",
        )
        .into()),
    }
}

/// What the kernel said when the process was to be ended.
fn failed(pid: u32, error: io::Error) -> Error {
    let what = format!("end process {pid}");
    match error::errno_of(&error) {
        Some(libc::EPERM) => Error::Denied {
            what,
            reason: error.into(),
            remedy: "another user's process can be ended only with CAP_KILL: run it as root, for \
                     example with sudo"
                .into(),
        },
        _ => Error::needs(
            what,
            error,
            "pidfd_send_signal",
            "throttle end needs Linux 5.3 or later; until then use kill",
        ),
    }
}

#[cfg(test)]
mod tests;
