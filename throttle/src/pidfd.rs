//! A handle on a process, which no other process can come to stand for.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

/// A process, by a descriptor (pidfd, since Linux 5.3). The number of a process
/// that has ended can be given to another one; a descriptor stays with its own.
#[derive(Debug)]
pub(crate) struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process that has the number `pid` now.
    ///
    /// # Errors
    ///
    /// ESRCH when there is none, EINVAL or ENOENT when `pid` is a thread of one,
    /// ENOSYS when the kernel has no such handles.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: numbers only.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(opened) {
            // SAFETY: just opened, and nobody else's.
            Ok(fd @ 0..) => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            Ok(_) | Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Sends it a signal; with none, only looks whether the caller might.
    ///
    /// # Errors
    ///
    /// EPERM when the caller may not, ESRCH when it has ended and was waited for.
    pub(crate) fn send(&self, signal: Option<Signal>) -> io::Result<()> {
        let number = signal.map_or(0, |signal| signal as libc::c_int);
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo the kernel fills one in as kill(2) does.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                number,
                no_info,
                0,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits until it has ended, for `at_most`; says whether it has. A zombie has.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub(crate) fn has_ended_within(&self, at_most: Duration) -> io::Result<bool> {
        let until = Instant::now() + at_most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: never woken just too early, to turn in a circle.
            let millis = left.as_nanos().div_ceil(1_000_000);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= until => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it has ended.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        self.has_ended_within(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn waiting() -> Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read line"]).stdin(Stdio::piped());
        command.spawn().unwrap()
    }

    #[test]
    fn the_end_of_a_process_is_seen_and_a_zombie_has_ended() {
        let mut child = waiting();
        let handle = Pidfd::open(child.id()).unwrap();
        assert!(!handle.has_ended_within(Duration::from_millis(1)).unwrap());
        handle.send(None).unwrap();
        handle.send(Some(Signal::SIGTERM)).unwrap();
        assert!(handle.has_ended_within(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(handle.has_ended().unwrap());
        let error = handle.send(Some(Signal::SIGKILL)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn who_is_not_there_has_no_handle() {
        let mut child = waiting();
        child.kill().unwrap();
        child.wait().unwrap();
        let error = Pidfd::open(child.id()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_thread_is_not_taken_for_a_process() {
        let thread = std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw().unsigned_abs();
            Pidfd::open(tid).map(|_| ()).unwrap_err().raw_os_error()
        });
        let errno = thread.join().unwrap();
        assert!(
            matches!(errno, Some(libc::EINVAL | libc::ENOENT)),
            "{errno:?}"
        );
    }
}
