//! One entry program for one thread, by as few system calls as can be.

use aya::programs::ProgramFd;
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

/// `BPF_PROG_TEST_RUN` of linux/bpf.h.
const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// The part of `union bpf_attr` that is about test runs.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// Runs one entry. Each thread has its own.
pub(crate) struct Runner(ProgramFd);

impl Runner {
    pub(crate) const fn new(program: ProgramFd) -> Self {
        Self(program)
    }

    /// Runs the entry over a frame on the loopback device. The error is what the
    /// kernel's own runner has against the frame.
    pub(crate) fn try_run(&self, frame: &[u8]) -> Result<u32, i32> {
        let mut attributes = Attributes {
            prog_fd: u32::try_from(self.0.as_fd().as_raw_fd()).unwrap(),
            data_size_in: u32::try_from(frame.len()).unwrap(),
            data_in: frame.as_ptr() as u64,
            ..Attributes::default()
        };
        // SAFETY: the kernel reads the frame, and writes to the attributes alone:
        // it is given no room for what comes out.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap());
        }
        Ok(attributes.retval)
    }

    /// The same over a frame that the runner takes.
    #[track_caller]
    pub(crate) fn run(&self, frame: &[u8]) -> u32 {
        match self.try_run(frame) {
            Ok(code) => code,
            Err(errno) => panic!("{}", io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The CPUs that this process may use, two of them if it may.
pub(crate) fn two_cpus() -> Vec<usize> {
    let mine = nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus = (0..CpuSet::count()).filter(|cpu| mine.is_set(*cpu).unwrap());
    let cpus: Vec<usize> = cpus.take(2).collect();
    match cpus[..] {
        // They take turns then, which is a race, too.
        [only] => vec![only, only],
        _ => cpus,
    }
}

/// Has the calling thread run on this CPU alone.
pub(crate) fn stay_on(cpu: usize) {
    const CALLING: libc::pid_t = 0;
    keep_on(CALLING, &[cpu]);
}

/// Has a thread run on these CPUs alone.
pub(crate) fn keep_on(thread: libc::pid_t, cpus: &[usize]) {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).unwrap();
    }
    sched_setaffinity(Pid::from_raw(thread), &set).unwrap();
}
