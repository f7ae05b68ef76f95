//! What the kernel tells the daemon, and what it counts.

use crate::{flow::FlowKey, process::Process, subject::Subject};

/// Longest frame that a record carries, in bytes. A SYN without data is at most
/// 14 + 8 (two tags) + 60 (IPv4 with options) + 60 (TCP) = 142 bytes; IPv6
/// extension headers get the rest.
pub const FRAME_MAX: usize = 256;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// An attempt was deferred: a [`Deferred`].
    Deferred = 1,
    /// An episode began: a [`LimitReached`].
    LimitReached = 2,
    /// Somebody waits and there is room: a [`Room`].
    Room = 3,
}

impl RecordKind {
    /// The kind behind the number that crosses the boundary.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Deferred),
            2 => Some(Self::LimitReached),
            3 => Some(Self::Room),
            _ => None,
        }
    }
}

/// An attempt was deferred, and this is its SYN.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Deferred {
    /// [`RecordKind::Deferred`].
    pub kind: u32,
    /// Bytes of `frame` that are used; 0 if the frame did not fit.
    pub frame_len: u32,
    /// When its first SYN was deferred, in monotonic nanoseconds.
    pub first_ns: u64,
    /// When this SYN was seen, in monotonic nanoseconds. Its TCP timestamp is
    /// of this moment.
    pub seen_ns: u64,
    /// The scope it waits in.
    pub scope: Subject,
    /// Whose line it stands in.
    pub owner: Subject,
    /// The process whose socket it is, if that is known.
    pub process: Process,
    /// Its addresses and ports.
    pub key: FlowKey,
    /// Its initial sequence number.
    pub isn: u32,
    /// Index of the interface it was seen on.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
    /// A VLAN tag kept beside the frame: the protocol in the upper half, the
    /// tag control information in the lower, both in host order; 0 if none.
    pub vlan: u32,
    /// Where the IP header begins in `frame`.
    pub network_offset: u32,
    /// Where the TCP header begins in `frame`.
    pub transport_offset: u32,
    /// The frame as it would have left.
    pub frame: [u8; FRAME_MAX],
}

/// A scope has reached its limit: an episode began.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitReached {
    /// [`RecordKind::LimitReached`].
    pub kind: u32,
    /// Index of the interface.
    pub ifindex: u32,
    /// When, in monotonic nanoseconds.
    pub at_ns: u64,
    /// The scope.
    pub scope: Subject,
    /// Whose attempt it was.
    pub owner: Subject,
    /// The process whose socket it was, if that is known.
    pub process: Process,
    /// Half-open attempts counted then.
    pub half_open: u64,
    /// Deferred attempts then, this one included.
    pub queued: u64,
    /// The limit then.
    pub limit: u64,
    /// Nanoseconds between two releases then.
    pub interval_ns: u64,
    /// The [`Mode`](crate::policy::Mode) then.
    pub mode: u32,
    /// The attempt that met the limit, as an example.
    pub key: FlowKey,
}

/// Somebody waits in this scope and there is room.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// [`RecordKind::Room`].
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
    /// The scope.
    pub scope: Subject,
}

const _: () = {
    // No padding: every byte that crosses the boundary is somebody's.
    assert!(size_of::<Deferred>() == 8 + 16 + 48 + 64 + 36 + 7 * 4 + FRAME_MAX);
    assert!(size_of::<LimitReached>() == 16 + 48 + 64 + 32 + 4 + 36);
    assert!(size_of::<Room>() == 32);
};

/// What is counted for each scope, by each CPU for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Tally {
    /// New attempts seen.
    Attempts = 0,
    /// Attempts that passed at once.
    Passed,
    /// Of those: attempts that were not counted, their endpoint being known.
    Known,
    /// Attempts that were deferred.
    Deferred,
    /// Deferred attempts that were released.
    Released,
    /// SYNs swallowed because their line was full.
    Overflowed,
    /// Attempts answered with SYN-ACK.
    Answered,
    /// Attempts answered with RST.
    Refused,
    /// Attempts ended by an ICMP error.
    Unreachable,
    /// Attempts ended by their own side.
    Aborted,
    /// Counted attempts that nobody ended within the timeout.
    Expired,
    /// Episodes of which the daemon was told.
    Episodes,
}

/// How many [`Tally`] there are.
pub const TALLIES: usize = 12;

/// The tallies of one scope on one CPU; index with a [`Tally`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tallies(pub [u64; TALLIES]);

impl Tallies {
    /// The names of the tallies, in the order of their index.
    pub const NAMES: [&'static str; TALLIES] = [
        "attempts",
        "passed",
        "known",
        "deferred",
        "released",
        "overflowed",
        "answered",
        "refused",
        "unreachable",
        "aborted",
        "expired",
        "episodes",
    ];

    /// Those that count attempts, with their names: all but the episodes.
    pub fn of_attempts(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let all = Self::NAMES.into_iter().zip(self.0);
        all.take(Tally::Episodes as usize)
    }

    /// One of them.
    #[must_use]
    pub const fn get(&self, tally: Tally) -> u64 {
        self.0[tally as usize]
    }
}

/// What could not be handled the usual way, counted for the whole throttle.
/// What is not handled passes, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Unhandled {
    /// Packets that could not be parsed.
    Unparsed = 0,
    /// Attempts that found the table of flows full.
    FlowTableFull,
    /// Attempts that found the table of scopes or lines full.
    ScopeTableFull,
    /// Attempts whose count could not be kept.
    Unaccountable,
    /// Records that found the ring buffer full: an attempt is handed over at
    /// its next retransmission, a limit-reached event is raised at the next
    /// deferral, a note of room is given at the next end.
    RingFull,
    /// Deferred attempts whose frame is too long for a record, or has a tag beside
    /// it and two inside: they wait for their sender.
    FrameTooLong,
    /// Copies that the daemon sent for attempts that were gone: swallowed.
    NotNeeded,
    /// Endpoints, or sockets that connect, that could not be remembered.
    Forgotten,
    /// Packets for which the deciding program was not there.
    StepMissing,
}

/// How many [`Unhandled`] there are.
pub const UNHANDLED: u32 = 9;

/// The names of [`Unhandled`], in the order of their index.
pub const UNHANDLED_NAMES: [&str; UNHANDLED as usize] = [
    "unparsed",
    "flow_table_full",
    "scope_table_full",
    "unaccountable",
    "ring_full",
    "frame_too_long",
    "not_needed",
    "forgotten",
    "step_missing",
];

/// The programs that decide about a packet, as indices of the table by which
/// the programs before them find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// A SYN on its way out: is its attempt in the table?
    Syn = 0,
    /// It is a new attempt: is there room?
    Admit,
    /// There is none: it gets into its line.
    Defer,
    /// What may end an attempt.
    Answer,
}

/// How many [`Step`] there are.
pub const STEPS: u32 = 4;

/// The names of the programs of each [`Step`], in the order of their index.
pub const STEP_PROGRAMS: [&str; STEPS as usize] = ["syn", "admit", "defer", "answer"];
