//! What is told: one struct for every output.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use throttle_common::{
    flow::FlowKey,
    policy::Mode as RawMode,
    record::LimitReached,
    subject::{Subject, SubjectKind},
};

use crate::{clock, settings::Mode, settings::Rate};

/// What the original's event said.
pub const MESSAGE: &str = "TCP/IP has reached the security limit imposed on the number of \
                           concurrent (incomplete) TCP connect attempts.";

/// A scope or an owner, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What kind of thing it is: `interface`, `cgroup`, `user`, `process`,
    /// `source`.
    pub kind: &'static str,
    /// Its number or address.
    pub id: String,
    /// Its name, where it has one; else its id.
    pub name: String,
}

impl Named {
    /// `subject`, and its name if the caller knows one.
    #[must_use]
    pub fn new(subject: &Subject, name: Option<String>) -> Self {
        let (kind, id) = match SubjectKind::from_raw(subject.kind) {
            Some(SubjectKind::Interface) => ("interface", subject.number().to_string()),
            Some(SubjectKind::Cgroup) => ("cgroup", subject.number().to_string()),
            Some(SubjectKind::User) => ("user", subject.number().to_string()),
            Some(SubjectKind::Process) => ("process", subject.number().to_string()),
            Some(SubjectKind::Source) => ("source", address(subject.id).to_string()),
            None => ("unknown", subject.number().to_string()),
        };
        Self {
            kind,
            name: name.unwrap_or_else(|| id.clone()),
            id,
        }
    }
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

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// Its number among the events of this run, from 1 on.
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
    /// Events were lost, because nobody took them.
    Lost {
        /// How many.
        events: u64,
    },
}

/// The beginning of an episode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// The scope.
    pub scope: Named,
    /// Whose attempt met the limit.
    pub owner: Named,
    /// The interface it was seen on.
    pub interface: Named,
    /// Half-open attempts a scope may have.
    pub limit: u64,
    /// Half-open attempts it has.
    pub half_open: u64,
    /// Attempts that are deferred.
    pub queued: u64,
    /// How fast they are released.
    pub rate: Rate,
    /// Whether they are held back, or only watched.
    pub mode: Mode,
    /// The source of the attempt that met the limit.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
}

impl Event {
    /// The event `what` of `at_ns`, the `sequence`th.
    #[must_use]
    pub fn new(at_ns: u64, sequence: u64, what: What) -> Self {
        let time = uuid::Timestamp::from_unix(
            uuid::NoContext,
            at_ns / 1_000_000_000,
            u32::try_from(at_ns % 1_000_000_000).unwrap_or(0),
        );
        Self {
            at_ns,
            sequence,
            id: uuid::Uuid::new_v7(time),
            what,
        }
    }
}

impl Episode {
    /// What a record of the kernel side tells. `name_of` names subjects.
    pub fn new(record: &LimitReached, name_of: impl Fn(&Subject) -> Option<String>) -> Self {
        let (source, destination) = ends(&record.key);
        let named = |subject: &Subject| Named::new(subject, name_of(subject));
        Self {
            scope: named(&record.scope),
            owner: named(&record.owner),
            interface: named(&Subject::numbered(
                SubjectKind::Interface,
                u64::from(record.ifindex),
            )),
            limit: record.limit,
            half_open: record.half_open,
            queued: record.queued,
            rate: Rate::from_interval(record.interval_ns),
            mode: if record.mode == RawMode::Enforce as u32 {
                Mode::Enforce
            } else {
                Mode::Monitor
            },
            source,
            destination,
        }
    }
}

/// When a record of the kernel side was written, in nanoseconds since 1970.
#[must_use]
pub fn calendar_ns(record: &LimitReached) -> u64 {
    clock::calendar_ns(record.at_ns)
}
