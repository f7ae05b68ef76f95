//! The settings, as the kernel reads them at each SYN.

use crate::{NANOS_PER_SEC, subject::SubjectKind};

/// What is done with an attempt over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Its SYN is held back.
    Enforce = 0,
    /// It is counted, queued and reported the same way, and passes.
    Monitor = 1,
}

/// Who lets deferred attempts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Pacing {
    /// The daemon re-sends; without it, as with [`Fq`](Self::Fq).
    Auto = 0,
    /// The daemon re-sends; without it, as with [`Retransmit`](Self::Retransmit).
    Resend = 1,
    /// The senders' own retransmissions only.
    Retransmit = 2,
    /// The senders' own retransmissions, which leave a device with fq when their
    /// release is due.
    Fq = 3,
}

impl Pacing {
    /// The pacing behind the number that crosses the boundary.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Auto),
            1 => Some(Self::Resend),
            2 => Some(Self::Retransmit),
            3 => Some(Self::Fq),
            _ => None,
        }
    }
}

/// The settings that an operator chooses. Written by user space only, read by
/// the programs at each SYN, so a change is live.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Half-open attempts a scope may have at once.
    pub limit: u64,
    /// Nanoseconds between two releases of a scope: 1/rate.
    pub interval_ns: u64,
    /// For how long an attempt counts at most, in nanoseconds.
    pub attempt_timeout_ns: u64,
    /// For how long a deferred attempt of which nothing more is heard keeps its
    /// place in the queue's count, in nanoseconds.
    pub max_delay_ns: u64,
    /// For how long an endpoint that answered stays known, in nanoseconds; 0
    /// means that none is ever known.
    pub known_for_ns: u64,
    /// Deferred attempts that fit one line: rate x max-delay, at least 1.
    pub line_capacity: u64,
    /// Deferred attempts that fit all lines of a scope together. However many
    /// owners there are, the tables and the daemon's memory stay bounded.
    pub queue_capacity: u64,
    /// A [`Mode`].
    pub mode: u32,
    /// A [`SubjectKind`]: what the limit applies to.
    pub scope: u32,
    /// A [`Pacing`]: who lets deferred attempts out.
    pub pacing: u32,
    /// [`LAYOUT`](crate::layout::LAYOUT) of whoever wrote it: maps that were
    /// laid out differently are of no use.
    pub layout: u32,
}

impl Policy {
    /// The mode; anything unknown observes only.
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> Mode {
        if self.mode == Mode::Enforce as u32 {
            Mode::Enforce
        } else {
            Mode::Monitor
        }
    }

    /// Whether releases may be given ahead of their time, for departure at it.
    /// Where every packet passes at once there is nothing to depart later.
    #[inline(always)]
    #[must_use]
    pub const fn may_depart_ahead(&self) -> bool {
        matches!(self.mode(), Mode::Enforce)
            && (self.pacing == Pacing::Auto as u32 || self.pacing == Pacing::Fq as u32)
    }

    /// How many attempts a line holds: what is released in `max_delay_ns`.
    #[must_use]
    pub const fn capacity(interval_ns: u64, max_delay_ns: u64) -> u64 {
        let whole = max_delay_ns / if interval_ns == 0 { 1 } else { interval_ns };
        if whole == 0 { 1 } else { whole }
    }

    /// How many attempts a scope holds in lines of `line_capacity`: sixteen full
    /// lines, but at least 1,024 and, unless one line is longer, at most 16,384.
    #[must_use]
    pub const fn whole_queue(line_capacity: u64) -> u64 {
        const LINES: u64 = 16;
        const LEAST: u64 = 1 << 10;
        const MOST: u64 = 1 << 14;
        let lines = LINES * line_capacity;
        if lines < LEAST {
            LEAST
        } else if lines <= MOST {
            lines
        } else if line_capacity > MOST {
            line_capacity
        } else {
            MOST
        }
    }
}

impl Default for Policy {
    /// Limit 50, 10 releases a second, the interface as the scope.
    fn default() -> Self {
        let interval_ns = NANOS_PER_SEC / 10;
        let max_delay_ns = 60 * NANOS_PER_SEC;
        Self {
            limit: 50,
            interval_ns,
            attempt_timeout_ns: 30 * NANOS_PER_SEC,
            max_delay_ns,
            known_for_ns: 600 * NANOS_PER_SEC,
            line_capacity: Self::capacity(interval_ns, max_delay_ns),
            queue_capacity: Self::whole_queue(Self::capacity(interval_ns, max_delay_ns)),
            mode: Mode::Enforce as u32,
            scope: SubjectKind::Interface as u32,
            pacing: Pacing::Auto as u32,
            layout: crate::layout::LAYOUT,
        }
    }
}

/// What the programs know of the daemon. Written by the daemon only: at its
/// start, and as a heartbeat.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Daemon {
    /// Which daemon this is; 0 is none. A deferred attempt that was handed to
    /// another one is handed over again.
    pub generation: u64,
    /// The socket cookie of its packet socket; 0 is none.
    pub cookie: u64,
    /// Until when it counts as alive, on the monotonic clock in nanoseconds.
    pub alive_until_ns: u64,
}

impl Daemon {
    /// Whether somebody keeps the queue at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn is_alive(&self, now_ns: u64) -> bool {
        now_ns < self.alive_until_ns
    }
}

/// Index of [`Daemon`] and [`Policy`] in their maps of one entry each.
pub const ONLY: u32 = 0;
