//! Whom a limit or a line belongs to.

/// What kind of thing a [`Subject`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SubjectKind {
    /// A network interface; the id is its index.
    Interface = 1,
    /// A control group; the id is the cgroup v2 id of the socket.
    Cgroup = 2,
    /// A user; the id is the uid.
    User = 3,
    /// A process; the id is the tgid, and when it started (see
    /// [`Subject::process`]).
    Process = 4,
    /// A source address; the id is the address (IPv4 mapped into IPv6).
    Source = 5,
}

impl SubjectKind {
    /// The kind behind the number that crosses the boundary.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Interface),
            2 => Some(Self::Cgroup),
            3 => Some(Self::User),
            4 => Some(Self::Process),
            5 => Some(Self::Source),
            _ => None,
        }
    }
}

/// An interface, cgroup, user, process or source address, as a map key.
///
/// A scope is a subject that has a limit; a line belongs to the subject that
/// owns the attempts in it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Subject {
    /// A [`SubjectKind`]; 0 is nobody.
    pub kind: u32,
    /// Always 0: a key has no padding.
    pub reserved: u32,
    /// A number in host order in the first eight bytes, or an address.
    pub id: [u8; 16],
}

impl Subject {
    /// The subject with a number for its id.
    #[inline(always)]
    #[must_use]
    pub const fn numbered(kind: SubjectKind, number: u64) -> Self {
        let n = number.to_ne_bytes();
        Self {
            kind: kind as u32,
            reserved: 0,
            id: [
                n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        }
    }

    /// The process `tgid` that started at `start_ns` (nanoseconds since boot; 0
    /// if that is unknown): one that gets the same number later is another.
    #[inline(always)]
    #[must_use]
    pub const fn process(tgid: u32, start_ns: u64) -> Self {
        let mut subject = Self::numbered(SubjectKind::Process, tgid as u64);
        let start = start_ns.to_ne_bytes();
        let mut at = 0;
        while at < start.len() {
            subject.id[8 + at] = start[at];
            at += 1;
        }
        subject
    }

    /// The source address `address` (IPv4 mapped into IPv6).
    #[inline(always)]
    #[must_use]
    pub const fn source(address: [u8; 16]) -> Self {
        Self {
            kind: SubjectKind::Source as u32,
            reserved: 0,
            id: address,
        }
    }

    /// When the process started, in nanoseconds since boot; meaningless for
    /// anything else.
    #[inline(always)]
    #[must_use]
    pub const fn start_ns(&self) -> u64 {
        let i = &self.id;
        u64::from_ne_bytes([i[8], i[9], i[10], i[11], i[12], i[13], i[14], i[15]])
    }

    /// The numeric id; for a source address the number is meaningless.
    #[inline(always)]
    #[must_use]
    pub const fn number(&self) -> u64 {
        let i = &self.id;
        u64::from_ne_bytes([i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7]])
    }
}

/// One line of one scope, as a map key.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LineKey {
    /// The scope the line waits in.
    pub scope: Subject,
    /// Whose attempts stand in it.
    pub owner: Subject,
}

const _: () = assert!(size_of::<Subject>() == 24 && size_of::<LineKey>() == 48);
