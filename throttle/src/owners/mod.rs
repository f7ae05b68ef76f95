//! Who is behind attempts: processes, control groups and users by name.
//!
//! The kernel records a process when it connects. What it does not record is read
//! from /proc, if the process still lives when it is looked at; what was read once
//! is known from then on, even after the process has ended.
//!
//! This blocks, on /proc and on whatever the machine asks for the names of users:
//! it is for a thread of its own. Executables, network namespaces and files of
//! other users' processes show only with `CAP_SYS_PTRACE`, paths of control groups
//! by their id only with `CAP_DAC_READ_SEARCH`. Process ids are those of the
//! initial pid namespace, and /proc must be that namespace's.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use throttle_common::{
    process::Process as Known,
    subject::{Subject, SubjectKind},
};
use uuid::Uuid;

use crate::{
    clock,
    event::{Cgroup, Process, Thread, User, Who},
    name::Name,
};

mod cgroup;
mod container;
mod proc;
mod recent;

pub use container::container_of;
pub(crate) use proc::{Live, process_of_thread};

use cgroup::{Found, Hierarchy, Members};
use recent::Recent;

/// Most processes that are remembered.
const PROCESSES: usize = 4_096;
/// Most control groups that are remembered.
const CGROUPS: usize = 1_024;
/// The id of no user, as the kernel has it (`INVALID_UID` of
/// include/linux/uidgid.h): it is not known whose a process is.
pub const NO_USER: u32 = u32::MAX;

/// Most users that are remembered.
const USERS: usize = 1_024;
/// Most control groups whose candidates are remembered.
const SEARCHES: usize = 256;

/// How long the name of a user is believed: it may get one, or another one.
const USER_FOR: Duration = Duration::from_secs(300);
/// How long candidates are believed.
const SEARCH_FOR: Duration = Duration::from_secs(1);

/// Most processes that are looked at in a search for candidates.
const SEARCHED_PROCESSES: usize = 16_384;
/// Most files of one process, and of all, that are looked at in such a search. It
/// takes some 4 µs a file.
const SEARCHED_FILES: (usize, usize) = (8_192, 65_536);

/// Where the cgroup v2 hierarchy is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// The mount point.
    pub point: Name,
    /// Whether all of the hierarchy is there: in a container it is a part.
    pub is_whole: bool,
}

impl CgroupMount {
    /// Looks for it. None if it is not mounted.
    #[must_use]
    pub fn find() -> Option<Self> {
        let found = Hierarchy::find()?;
        Some(Self {
            point: Name::new(&found.point),
            is_whole: found.root == b"/",
        })
    }
}

/// Names, and what is remembered of them.
#[derive(Debug)]
pub struct Names {
    with_args: bool,
    boot: Uuid,
    hierarchy: Option<Hierarchy>,
    processes: Recent<(u32, u64), Facts>,
    cgroups: Recent<u64, Cgroup>,
    users: Recent<u32, (Instant, Option<Name>)>,
    candidates: Recent<u64, (Instant, Vec<Process>)>,
}

/// What /proc told of a process.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// The name it had when it was looked at.
    name: Option<Name>,
    executable: Option<Name>,
    args: Option<Vec<Name>>,
    parent: Option<crate::event::Parent>,
    /// When it started, in clock ticks since boot, which /proc and the kernel's
    /// record agree on.
    start_ticks: Option<u64>,
    /// When it started, in nanoseconds since 1970. It is worked out once: a clock
    /// that is set moves nothing.
    start_ns: Option<u64>,
    has_exited: bool,
}

impl Facts {
    /// What can be read of it now.
    fn of(live: &Live, with_args: bool) -> Self {
        Self {
            name: live.name(),
            executable: live.executable(),
            args: with_args.then(|| live.args()).flatten(),
            parent: live.parent(),
            start_ticks: Some(live.start_ticks()),
            start_ns: Some(clock::calendar_of_boot_ns(nanos_of(live.start_ticks()))),
            // Last: what was read before was read of this process.
            has_exited: !live.still_lives(),
        }
    }

    /// This, and what was found out `before` of the same process, which was called
    /// `recorded` when it connected.
    fn since(self, before: Self, recorded: &Name) -> Self {
        // If it runs another program now, what it ran then is what connected.
        let was_it = before.name.as_ref() == Some(recorded);
        let is_it = self.name.as_ref() == Some(recorded);
        let (name, executable, args) = if was_it && !is_it {
            (before.name, before.executable, before.args)
        } else {
            (
                self.name.or(before.name),
                self.executable.or(before.executable),
                self.args.or(before.args),
            )
        };
        Self {
            name,
            executable,
            args,
            parent: self.parent.or(before.parent),
            start_ticks: self.start_ticks.or(before.start_ticks),
            start_ns: before.start_ns.or(self.start_ns),
            has_exited: self.has_exited,
        }
    }
}

impl Names {
    /// Nothing is known yet. Arguments of processes often carry what is nobody's
    /// business, so they are read only `with_args`.
    #[must_use]
    pub fn new(with_args: bool) -> Self {
        Self {
            with_args,
            boot: boot_id(),
            hierarchy: Hierarchy::find(),
            processes: Recent::new(PROCESSES),
            cgroups: Recent::new(CGROUPS),
            users: Recent::new(USERS),
            candidates: Recent::new(SEARCHES),
        }
    }

    /// A process that the kernel recorded.
    ///
    /// What has the same number in /proc is taken for it only if it started at the
    /// same time.
    pub fn process(&mut self, known: &Known) -> Process {
        let (facts, live) = self.look(known);
        let thread = (known.tid != known.tgid).then(|| Thread {
            id: known.tid,
            name: Name::of_field(&known.thread_name),
        });
        Process {
            pid: known.tgid,
            thread,
            name: Some(recorded_name(known))
                .filter(|name| !name.is_empty())
                .or(facts.name)
                .unwrap_or_default(),
            executable: facts.executable,
            args: facts.args,
            start_ns: facts.start_ns,
            entity_id: self.entity_id(known.tgid, facts.start_ticks),
            user: self.user(match (known.uid, &live) {
                (NO_USER, Some(live)) => live.user().unwrap_or(NO_USER),
                (uid, _) => uid,
            }),
            parent: facts.parent,
            cgroup: (known.cgroup != 0).then(|| self.cgroup_of(known.cgroup, live.as_ref())),
            has_exited: facts.has_exited,
        }
    }

    /// Finds out what there is to know of a process, unless that has been done.
    /// The sooner this is called, the more likely the process still lives.
    pub fn remember(&mut self, known: &Known) {
        let seen = self.processes.get((known.tgid, known.start_ns));
        let is_remembered = seen.is_some_and(|facts| {
            facts.has_exited || facts.name.as_ref() == Some(&recorded_name(known))
        });
        if known.is_known() && known.start_ns != 0 && !is_remembered {
            let (_, live) = self.look(known);
            if known.cgroup != 0 {
                self.cgroup_of(known.cgroup, live.as_ref());
            }
        }
    }

    /// The process `pid` as it is now, seen through `live`. None if it has ended.
    pub(crate) fn now(&mut self, pid: u32, live: &Live) -> Option<Process> {
        let cgroup = live.cgroup().map(|path| self.cgroup_at(&path));
        self.running(pid, live, cgroup)
    }

    /// The control group of this id.
    pub fn cgroup(&mut self, id: u64) -> Cgroup {
        self.cgroup_of(id, None)
    }

    /// The processes of the control group `id` that hold raw or packet sockets, by
    /// their process ids: at most [`Who::CANDIDATES`]. Groups below it do not
    /// count. The answer may be a second old.
    pub fn candidates(&mut self, id: u64) -> Vec<Process> {
        if let Some((at, found)) = self.candidates.get(id)
            && at.elapsed() < SEARCH_FOR
        {
            return found.clone();
        }
        let found = self.search(id);
        self.candidates.insert(id, (Instant::now(), found.clone()));
        found
    }

    /// The user of this id.
    pub fn user(&mut self, id: u32) -> User {
        if let Some((at, name)) = self.users.get(id)
            && at.elapsed() < USER_FOR
        {
            let name = name.clone();
            return User { id, name };
        }
        let user = nix::unistd::User::from_uid(id.into()).ok().flatten();
        let name = user.map(|user| Name::new(user.name));
        self.users.insert(id, (Instant::now(), name.clone()));
        User { id, name }
    }

    /// The name of a scope that is a control group (its path), a user or a process
    /// (its program). None for others, and for what has none.
    pub fn scope(&mut self, subject: &Subject) -> Option<Name> {
        let number = subject.number();
        let name = match SubjectKind::from_raw(subject.kind)? {
            SubjectKind::Cgroup => self.cgroup(number).path?,
            SubjectKind::User => self.user(u32::try_from(number).ok()?).name?,
            SubjectKind::Process => {
                let tgid = u32::try_from(number).ok()?;
                let known = Known {
                    tgid,
                    tid: tgid,
                    uid: NO_USER,
                    start_ns: subject.start_ns(),
                    ..Known::default()
                };
                self.process(&known).name
            }
            SubjectKind::Interface | SubjectKind::Source => return None,
        };
        (!name.is_empty()).then_some(name)
    }

    /// What is known of a process, and the process if it lives.
    fn look(&mut self, known: &Known) -> (Facts, Option<Live>) {
        let recorded = recorded_name(known);
        let start_ticks = (known.start_ns != 0).then(|| ticks_of(known.start_ns));
        let live = Live::open(known.tgid)
            .filter(|live| start_ticks.is_none_or(|ticks| ticks == live.start_ticks()));
        let mut facts = match &live {
            Some(live) => Facts::of(live, self.with_args),
            None => Facts {
                has_exited: true,
                ..Facts::default()
            },
        };
        if start_ticks.is_none() && facts.name.as_ref() != Some(&recorded) {
            // Nothing else says that it is the same process.
            facts = Facts {
                has_exited: true,
                ..Facts::default()
            };
        }
        if start_ticks.is_some() {
            // More exact than what /proc says.
            facts.start_ticks = start_ticks;
            facts.start_ns = Some(clock::calendar_of_boot_ns(known.start_ns));
            let key = (known.tgid, known.start_ns);
            if let Some(before) = self.processes.get(key) {
                facts = facts.since(before.clone(), &recorded);
            }
            self.processes.insert(key, facts.clone());
        }
        let live = live.filter(|_| !facts.has_exited);
        (facts, live)
    }

    /// The control group `id`, in which `live` was when it connected.
    fn cgroup_of(&mut self, id: u64, live: Option<&Live>) -> Cgroup {
        // The path of a group never changes, and its id is not given again.
        if let Some(cgroup) = self.cgroups.get(id) {
            return cgroup.clone();
        }
        let path = match self.find(id) {
            Found::Here(group) => Some(group.path),
            Found::Gone => None,
            // The process may have moved on: its word counts only if it is for
            // this group, or if nothing can be held against it.
            Found::Unknown => live.and_then(Live::cgroup).filter(|path| {
                let hierarchy = self.hierarchy.as_ref();
                hierarchy.is_none_or(|hierarchy| hierarchy.is_path_of(path, id))
            }),
        };
        let cgroup = Cgroup {
            id,
            container: path.as_deref().and_then(container_of),
            path: path.map(Name::new),
        };
        if cgroup.path.is_some() {
            self.cgroups.insert(id, cgroup.clone());
        }
        cgroup
    }

    /// The control group of this path. Its id is 0 if there is no telling.
    fn cgroup_at(&mut self, path: &[u8]) -> Cgroup {
        let hierarchy = self.hierarchy.as_ref();
        Cgroup {
            id: hierarchy.and_then(|h| h.id_of(path)).unwrap_or(0),
            container: container_of(path),
            path: Some(Name::new(path)),
        }
    }

    fn find(&self, id: u64) -> Found {
        self.hierarchy
            .as_ref()
            .map_or(Found::Unknown, |hierarchy| hierarchy.group(id))
    }

    fn search(&mut self, id: u64) -> Vec<Process> {
        let Found::Here(group) = self.find(id) else {
            return Vec::new();
        };
        let members: BTreeSet<u32> = match group.members() {
            Some(Members::Processes(ids)) => ids.into_iter().collect(),
            Some(Members::Threads(ids)) => ids
                .into_iter()
                .take(SEARCHED_PROCESSES)
                .filter_map(process_of_thread)
                .collect(),
            None => return Vec::new(),
        };
        let mut networks = HashMap::new();
        let (files_each, mut files) = SEARCHED_FILES;
        let mut found = Vec::new();
        for pid in members.into_iter().take(SEARCHED_PROCESSES) {
            if found.len() == Who::CANDIDATES || files == 0 {
                break;
            }
            let Some(live) = Live::open(pid) else {
                continue;
            };
            let Some(network) = live.network() else {
                continue;
            };
            let sockets = networks
                .entry(network)
                .or_insert_with(|| live.raw_sockets_of_network());
            // Mostly there are none, and its files need not be looked at.
            if sockets.is_empty() {
                continue;
            }
            let (holds, seen) = live.holds(sockets, files_each.min(files));
            files -= seen;
            if holds && let Some(process) = self.member(pid, &live, id) {
                found.push(process);
            }
        }
        found
    }

    /// A process that the kernel has not recorded, of the control group `cgroup`.
    fn member(&mut self, pid: u32, live: &Live, cgroup: u64) -> Option<Process> {
        let cgroup = self.cgroup_of(cgroup, Some(live));
        self.running(pid, live, Some(cgroup))
    }

    /// A process as /proc has it.
    fn running(&mut self, pid: u32, live: &Live, cgroup: Option<Cgroup>) -> Option<Process> {
        let user = live.user()?;
        let facts = Facts::of(live, self.with_args);
        Some(Process {
            pid,
            thread: None,
            name: facts.name?,
            executable: facts.executable,
            args: facts.args,
            start_ns: facts.start_ns,
            entity_id: self.entity_id(pid, facts.start_ticks),
            user: self.user(user),
            parent: facts.parent,
            cgroup,
            has_exited: facts.has_exited,
        })
    }

    fn entity_id(&self, pid: u32, start_ticks: Option<u64>) -> String {
        let boot = self.boot;
        start_ticks.map_or_else(
            || format!("{boot}-{pid}"),
            |ticks| format!("{boot}-{pid}-{ticks}"),
        )
    }
}

/// The name of a process that the kernel recorded.
fn recorded_name(known: &Known) -> Name {
    let name = Name::of_field(&known.name);
    if name.is_empty() {
        Name::of_field(&known.thread_name)
    } else {
        name
    }
}

/// The id of this boot of this machine.
pub(crate) fn boot_id() -> Uuid {
    std::fs::read("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| Uuid::try_parse_ascii(text.trim_ascii()).ok())
        .unwrap_or_default()
}

const NANOS: u64 = 1_000_000_000;

/// Nanoseconds since boot as the clock ticks in which /proc tells them
/// (`nsec_to_clock_t` in kernel/time/time.c).
pub(crate) fn ticks_of(boot_ns: u64) -> u64 {
    boot_ns / (NANOS / procfs::ticks_per_second())
}

/// Clock ticks since boot as nanoseconds.
pub(crate) fn nanos_of(ticks: u64) -> u64 {
    ticks.saturating_mul(NANOS / procfs::ticks_per_second())
}

#[cfg(test)]
mod tests;
