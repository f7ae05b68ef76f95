//! A wire in user space: carries frames between two tun or tap devices. It can
//! hold each of them for a while, as a long cable does, and all of one direction
//! until it is told.

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};
use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The largest frame that goes over the wire.
const FRAME_MAX: usize = 65_536;

/// A running wire. It ends when dropped.
#[derive(Debug)]
pub(crate) struct Pump {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// What is wanted of the wire.
#[derive(Debug)]
struct Control {
    /// Its end.
    stop: AtomicBool,
    /// That nothing is delivered to the one end.
    hold: AtomicBool,
    /// Says that one of these has changed.
    changed: EventFd,
}

impl Control {
    fn set(&self, wish: &AtomicBool, to: bool) {
        wish.store(to, Ordering::Release);
        // Fails only after 2^64 changes that nobody has looked at.
        let _ = self.changed.write(1);
    }
}

/// While this is there, nothing that is sent from now on arrives at the one end of a
/// wire. All of it does when this, or another one of the same wire, is dropped.
#[derive(Debug)]
#[must_use = "nothing is held back longer than this is kept"]
pub struct Held<'a>(&'a Control);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(&self.0.hold, false);
    }
}

impl Pump {
    /// Joins the two, each frame arriving `delay` after it was sent.
    pub(crate) fn join(one: OwnedFd, other: OwnedFd, delay: Duration) -> Self {
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            hold: AtomicBool::new(false),
            changed: EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
        });
        let wanted = Arc::clone(&control);
        let thread = thread::spawn(move || carry(&one, &other, delay, &wanted));
        Self {
            control,
            thread: Some(thread),
        }
    }

    /// Holds back what is sent to the one end.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.control.set(&self.control.hold, true);
        Held(&self.control)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.control.set(&self.control.stop, true);
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
    /// When the next one arrives.
    fn due(&self) -> Option<Instant> {
        self.on_the_way.front().map(|(due, _)| *due)
    }

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

fn carry(one: &OwnedFd, other: &OwnedFd, delay: Duration, wanted: &Control) {
    let mut buffer = vec![0; FRAME_MAX];
    let [mut out, mut back] = [(one, other), (other, one)].map(|(from, to)| Direction {
        from,
        to,
        on_the_way: VecDeque::new(),
    });
    while !wanted.stop.load(Ordering::Acquire) {
        let held = wanted.hold.load(Ordering::Acquire);
        out.take_in(&mut buffer, delay);
        back.take_in(&mut buffer, delay);
        out.deliver();
        if !held {
            back.deliver();
        }
        let back_due = if held { None } else { back.due() };
        let due = [out.due(), back_due].into_iter().flatten().min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let mut waiting = [one.as_fd(), other.as_fd(), wanted.changed.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Interrupted or not, what is there is looked at.
        let _ = ppoll(&mut waiting, timeout.map(TimeSpec::from), None);
        // Read so that it does not wake us again; nothing is there most times.
        let _ = wanted.changed.read();
    }
}
