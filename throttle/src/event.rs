//! What is told: one struct for every output.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use throttle_common::{
    flow::FlowKey,
    record::Tallies,
    subject::{Subject, SubjectKind},
};

use crate::{
    name::Name,
    settings::{Mode, Rate},
};

/// What the original's event said.
pub const MESSAGE: &str = "TCP/IP has reached the security limit imposed on the number of \
                           concurrent (incomplete) TCP connect attempts.";

/// The number of the original's event in the Windows event log.
pub const CODE: &str = "4226";

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// Its number among the events of this run, from 1 on. Lost events have
    /// numbers too: [`What::Lost`] has that of the last one that was lost.
    pub sequence: u64,
    /// A UUIDv7 of its own.
    pub id: uuid::Uuid,
    /// What.
    pub what: What,
}

/// What an event tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A scope has reached its limit: an episode begins.
    LimitReached(Box<Episode>),
    /// The episode goes on.
    LimitOngoing(Box<Episode>),
    /// The episode is over.
    LimitCleared(Box<Episode>),
    /// Events were lost: they were too many, or nobody took them in time.
    Lost {
        /// How many.
        events: u64,
    },
}

impl What {
    /// The episode it is about, if it is about one.
    #[must_use]
    pub fn episode(&self) -> Option<&Episode> {
        match self {
            Self::LimitReached(episode)
            | Self::LimitOngoing(episode)
            | Self::LimitCleared(episode) => Some(episode),
            Self::Lost { .. } => None,
        }
    }
}

/// An episode: from a scope's first deferral until it has recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// A UUID that all events of this episode carry.
    pub id: uuid::Uuid,
    /// The scope.
    pub scope: Scope,
    /// The interface it began on.
    pub interface: Interface,
    /// Whether attempts are held back, or only watched.
    pub mode: Mode,
    /// Half-open attempts a scope may have.
    pub limit: u64,
    /// How fast attempts over the limit are released.
    pub rate: Rate,
    /// Half-open attempts now.
    pub half_open: u64,
    /// Deferred attempts now.
    pub queued: u64,
    /// Most half-open attempts that were seen in it.
    pub peak_half_open: u64,
    /// Most deferred attempts that were seen in it.
    pub peak_queued: u64,
    /// When it began, in nanoseconds since 1970.
    pub start_ns: u64,
    /// How long it has lasted, in nanoseconds.
    pub duration_ns: u64,
    /// What happened in the scope since it began.
    pub totals: Tallies,
    /// The source of the attempt that met the limit.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
    /// The most active programs, most attempts first; at most
    /// [`Episode::PROGRAMS`].
    pub programs: Vec<Active>,
    /// How many programs there are in all.
    pub program_count: Count,
    /// How many destinations (addresses and ports) there are in all.
    pub destination_count: Count,
    /// Destinations, if they were asked for; at most [`Episode::DESTINATIONS`].
    pub destinations: Vec<SocketAddr>,
    /// Why it is over, if it is.
    pub ending: Option<Ending>,
}

impl Episode {
    /// Most programs that an event tells of.
    pub const PROGRAMS: usize = 5;
    /// Most destinations that an event tells of.
    pub const DESTINATIONS: usize = 64;

    /// The program with the most attempts.
    #[must_use]
    pub fn most_active(&self) -> Option<&Active> {
        self.programs.first()
    }
}

/// Why an episode is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nobody waits, and for a while nobody met the limit.
    Recovered,
    /// The kernel gave the scope's entry to another one.
    Forgotten,
    /// The throttle ended.
    Stopped,
}

/// A number that may be only the least it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// The number.
    pub number: u64,
    /// Whether there are more, of which no account was kept.
    pub or_more: bool,
}

/// What a limit applies to, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// `interface`, `cgroup`, `user`, `process`, `source`.
    pub kind: &'static str,
    /// Its number or address.
    pub id: String,
    /// Its name, where it has one; else its id.
    pub name: Name,
}

impl Scope {
    /// `subject`, and its name if the caller knows one.
    #[must_use]
    pub fn new(subject: &Subject, name: Option<Name>) -> Self {
        let number = || subject.number().to_string();
        let (kind, id) = match SubjectKind::from_raw(subject.kind) {
            Some(SubjectKind::Interface) => ("interface", number()),
            Some(SubjectKind::Cgroup) => ("cgroup", number()),
            Some(SubjectKind::User) => ("user", number()),
            Some(SubjectKind::Process) => ("process", number()),
            Some(SubjectKind::Source) => ("source", address(subject.id).to_string()),
            None => ("unknown", number()),
        };
        Self {
            kind,
            name: name.unwrap_or_else(|| Name::new(&id)),
            id,
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name when it was attached to; else its index.
    pub name: Name,
}

/// Who is behind attempts, and how many they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// Who.
    pub who: Who,
    /// Attempts in the episode: those that were half-open when it began, and
    /// those that were deferred since.
    pub attempts: u64,
    /// To how many destinations (addresses and ports).
    pub destinations: Count,
}

impl Who {
    /// The process, if it is known.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        match self {
            Self::Process(process) => Some(process),
            Self::Cgroup { .. } | Self::Source(_) => None,
        }
    }

    /// The control group, if it is known.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Process(process) => process.cgroup.as_ref(),
            Self::Cgroup { cgroup, .. } => Some(cgroup),
            Self::Source(_) => None,
        }
    }

    /// The container, if it is in one.
    #[must_use]
    pub fn container(&self) -> Option<&Container> {
        self.cgroup()?.container.as_ref()
    }

    /// The processes that it may be, if it is not known which.
    #[must_use]
    pub fn candidates(&self) -> &[Process] {
        match self {
            Self::Cgroup { candidates, .. } => candidates,
            Self::Process(_) | Self::Source(_) => &[],
        }
    }
}

/// Who is behind attempts, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The process whose socket it is.
    Process(Box<Process>),
    /// A socket without a known process: a raw or packet socket, or one that was
    /// there before the throttle.
    Cgroup {
        /// The socket's control group.
        cgroup: Cgroup,
        /// Processes of it that hold raw or packet sockets: it may be one of
        /// them. At most [`Who::CANDIDATES`].
        candidates: Vec<Process>,
    },
    /// No socket on this host: a machine or a pod that is forwarded for.
    Source(IpAddr),
}

impl Who {
    /// Most candidates that are named.
    pub const CANDIDATES: usize = 5;
}

/// A process, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its process id (tgid), seen from the initial namespace.
    pub pid: u32,
    /// The thread that connected, if it was not the main one.
    pub thread: Option<Thread>,
    /// Its name (comm of the main thread).
    pub name: Name,
    /// Its executable, if it still ran when it was looked at.
    pub executable: Option<Name>,
    /// Its arguments, if they were asked for and it still ran.
    pub args: Option<Vec<Name>>,
    /// When it started, in nanoseconds since 1970, if that is known.
    pub start_ns: Option<u64>,
    /// A string that no other process has, on any machine: boot id, pid, start.
    pub entity_id: String,
    /// Whose it is (its real user id when it connected).
    pub user: User,
    /// Its parent, if it still ran when it was looked at.
    pub parent: Option<Parent>,
    /// Its control group when it connected.
    pub cgroup: Option<Cgroup>,
    /// Whether it had ended when it was looked at.
    pub has_exited: bool,
}

/// A thread of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its thread id.
    pub id: u32,
    /// Its name (comm).
    pub name: Name,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user id, seen from the initial namespace.
    pub id: u32,
    /// The name, if this machine has one for the id.
    pub name: Option<Name>,
}

/// A parent process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its process id.
    pub pid: u32,
    /// Its name (comm).
    pub name: Name,
}

/// A control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The cgroup v2 id.
    pub id: u64,
    /// Its path below the root of the hierarchy, starting with `/`; none if it
    /// is gone.
    pub path: Option<Name>,
    /// The container that its path tells of.
    pub container: Option<Container>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// What runs it: `containerd`, `cri-o`, `docker`, `podman`; none if the path
    /// does not tell.
    pub runtime: Option<&'static str>,
    /// The UID of its Kubernetes pod, if it belongs to one.
    pub pod_uid: Option<String>,
}

/// An address as the kernel side keeps it, as the one it is.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// Both ends of an attempt.
#[must_use]
pub fn ends(key: &FlowKey) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(address(key.source), u16::from_be_bytes(key.source_port)),
        SocketAddr::new(
            address(key.destination),
            u16::from_be_bytes(key.destination_port),
        ),
    )
}

impl Event {
    /// The event `what` of `at_ns`, the `sequence`th.
    #[must_use]
    pub fn new(at_ns: u64, sequence: u64, what: What) -> Self {
        Self {
            at_ns,
            sequence,
            id: new_id(at_ns),
            what,
        }
    }
}

/// A UUIDv7 of this moment, in nanoseconds since 1970.
#[must_use]
pub fn new_id(at_ns: u64) -> uuid::Uuid {
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix(
        uuid::NoContext,
        at_ns / 1_000_000_000,
        u32::try_from(at_ns % 1_000_000_000).unwrap_or(0),
    ))
}
