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
    /// A process; the id is the tgid.
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
