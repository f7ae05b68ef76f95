//! A wire in user space: carries frames between two tun or tap devices, and
//! can hold each of them for a while, as a long cable does.

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{eventfd::EventFd, time::TimeSpec},
};
use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The largest frame that goes over the wire.
const FRAME_MAX: usize = 65_536;

/// A running wire. It ends when dropped.
#[derive(Debug)]
pub(crate) struct Pump {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Joins the two, each frame arriving `delay` after it was sent.
    pub(crate) fn join(one: OwnedFd, other: OwnedFd, delay: Duration) -> Self {
        let stop = Arc::new(EventFd::new().unwrap());
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || carry(&one, &other, delay, &stopped));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frames on their way in one direction. All take equally long, so they
/// arrive in the order they were sent.
struct Direction<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    on_the_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Direction<'_> {
    fn take_in(&mut self, buffer: &mut [u8], delay: Duration) {
        while let Ok(len) = nix::unistd::read(self.from, buffer) {
            self.on_the_way
                .push_back((Instant::now() + delay, buffer[..len].to_vec()));
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.on_the_way.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, frame)) = self.on_the_way.pop_front() {
                // A device that is down refuses frames: a cut cable.
                let _ = nix::unistd::write(self.to, &frame);
            }
        }
    }
}

fn carry(one: &OwnedFd, other: &OwnedFd, delay: Duration, stop: &EventFd) {
    let mut buffer = vec![0; FRAME_MAX];
    let mut directions = [(one, other), (other, one)].map(|(from, to)| Direction {
        from,
        to,
        on_the_way: VecDeque::new(),
    });
    loop {
        let due = directions
            .iter()
            .filter_map(|d| d.on_the_way.front())
            .map(|(due, _)| *due)
            .min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let mut waiting =
            [one.as_fd(), other.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Interrupted or not, what is there is looked at.
        let _ = ppoll(&mut waiting, timeout.map(TimeSpec::from), None);
        let [.., stopped] = waiting;
        if stopped.any() == Some(true) {
            return;
        }
        for direction in &mut directions {
            direction.take_in(&mut buffer, delay);
            direction.deliver();
        }
    }
}
