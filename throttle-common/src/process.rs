//! Who has a socket: what the kernel knows of a process when it connects.

use crate::{flow::FlowKey, subject::Subject};

/// Length of a thread's name (`TASK_COMM_LEN` in include/linux/sched.h).
pub const NAME_LEN: usize = 16;

/// A process and one of its threads, as they were when the thread connected.
/// All zero is nobody.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Process {
    /// Process id (tgid), in the initial pid namespace.
    pub tgid: u32,
    /// Thread id, in the initial pid namespace.
    pub tid: u32,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// If nobody is known: whether the socket is one that connects all the same
    /// (1), because what was noted of it is gone, or because it is older than the
    /// throttle. Else 0.
    pub is_forgotten: u32,
    /// Cgroup v2 id of the thread.
    pub cgroup: u64,
    /// When the process started, in nanoseconds since boot (`start_boottime` of
    /// the main thread); 0 if the kernel does not tell.
    pub start_ns: u64,
    /// Name of the process: comm of its main thread, padded with zeros. Any byte
    /// may be in it.
    pub name: [u8; NAME_LEN],
    /// Name of the thread: its own comm.
    pub thread_name: [u8; NAME_LEN],
}

impl Process {
    /// Whether it is known who it is.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.tgid != 0
    }

    /// Nobody, of a socket that connects if `is_forgotten`.
    #[inline(always)]
    #[must_use]
    pub const fn unknown(is_forgotten: bool) -> Self {
        Self {
            tgid: 0,
            tid: 0,
            uid: 0,
            is_forgotten: is_forgotten as u32,
            cgroup: 0,
            start_ns: 0,
            name: [0; NAME_LEN],
            thread_name: [0; NAME_LEN],
        }
    }

    /// The process as a scope, or as the owner of a line.
    #[inline(always)]
    #[must_use]
    pub const fn subject(&self) -> Subject {
        Subject::process(self.tgid, self.start_ns)
    }
}

/// What is kept of a socket that connects, by its cookie.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Socket {
    /// Who connects it.
    pub process: Process,
    /// Its attempt; all zero until its SYN has been seen.
    pub key: FlowKey,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Process>() == 64 && size_of::<Socket>() == 104);
