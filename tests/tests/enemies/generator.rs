//! SYNs as fast as two CPUs send them.

use super::{
    build::{Dial, Numbers},
    runner::{stay_on, two_cpus},
    wire,
};
use nix::libc;
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long a flood lasts.
pub(crate) const LASTS: Duration = Duration::from_secs(2);

/// Frames that are sent together.
pub(crate) struct Batch {
    frames: Vec<Vec<u8>>,
    sent: u64,
}

impl Batch {
    const SIZE: usize = 64;

    pub(crate) fn new() -> Self {
        Self {
            frames: Vec::with_capacity(Self::SIZE),
            sent: 0,
        }
    }

    /// One more. It leaves when there are enough.
    pub(crate) fn add(&mut self, socket: &OwnedFd, frame: &[u8]) {
        self.frames.push(frame.to_vec());
        if self.frames.len() == Self::SIZE {
            self.flush(socket);
        }
    }

    /// How many have been sent, after the last ones have.
    pub(crate) fn finish(mut self, socket: &OwnedFd) -> u64 {
        self.flush(socket);
        self.sent
    }

    fn flush(&mut self, socket: &OwnedFd) {
        let mut pieces: Vec<libc::iovec> = self
            .frames
            .iter_mut()
            .map(|frame| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = pieces
            .iter_mut()
            .map(|piece| {
                // SAFETY: numbers and pointers, for which zero is a value.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = piece;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut from = 0;
        while from < messages.len() {
            let rest = &mut messages[from..];
            let count = libc::c_uint::try_from(rest.len()).unwrap();
            // SAFETY: the messages, their pieces and frames live until it returns.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            let error = io::Error::last_os_error();
            match usize::try_from(sent) {
                Ok(sent) => {
                    from += sent;
                    self.sent += sent as u64;
                }
                // Room on the socket comes back as frames leave the device.
                Err(_) if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
                Err(_) => panic!("send: {error}"),
            }
        }
        self.frames.clear();
    }
}

/// A SYN, of which addresses, ports and number are drawn anew each time.
pub(crate) struct RandomSyn {
    frame: Vec<u8>,
    /// Of each field where it is and how long.
    fields: &'static [(usize, usize)],
}

impl RandomSyn {
    pub(crate) fn v4() -> Self {
        Self {
            frame: Dial::v4(0).syn().ether(),
            fields: &[(14 + 12, 8), (14 + 20, 8)],
        }
    }

    pub(crate) fn v6() -> Self {
        Self {
            frame: Dial::v6(0).syn().ether(),
            fields: &[
                (14 + 8, 8),
                (14 + 16, 8),
                (14 + 24, 8),
                (14 + 32, 8),
                (14 + 40, 8),
            ],
        }
    }

    pub(crate) fn next(&mut self, numbers: &mut Numbers) -> &[u8] {
        for (at, len) in self.fields {
            self.frame[*at..at + len].copy_from_slice(&numbers.next().to_le_bytes());
        }
        &self.frame
    }
}

/// Stops the flood, also when a look at it has failed.
pub(crate) struct StopWhenDropped<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends by `ifindex` from two CPUs until it is told to stop, one with each
/// family. Meanwhile runs `look`. How many frames were sent.
pub(crate) fn flood(ifindex: u32, mut look: impl FnMut()) -> u64 {
    let stop = AtomicBool::new(false);
    let families: [fn() -> RandomSyn; 2] = [RandomSyn::v4, RandomSyn::v6];
    thread::scope(|threads| {
        let senders: Vec<_> = (11..)
            .zip(two_cpus())
            .zip(families)
            .map(|((seed, cpu), syn)| {
                // Opened here: a new thread is in the same namespace.
                let (socket, stop) = (wire::socket(ifindex), &stop);
                threads.spawn(move || {
                    stay_on(cpu);
                    let (mut syn, mut numbers) = (syn(), Numbers(seed));
                    let mut batch = Batch::new();
                    while !stop.load(Ordering::Relaxed) {
                        batch.add(&socket, syn.next(&mut numbers));
                    }
                    batch.finish(&socket)
                })
            })
            .collect();
        let until_here = StopWhenDropped(&stop);
        let began = Instant::now();
        while began.elapsed() < LASTS {
            look();
            thread::sleep(Duration::from_millis(5));
        }
        drop(until_here);
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .sum()
    })
}
