//! What is really on the wire, and when.

use crate::{
    frame::{self, Beside, Content, Icmp, Segment, Syn, Tag},
    netns::Namespace,
    sys,
    wait::{self, wait_for},
};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};
use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How much of a frame is kept: more than any SYN with data.
const KEPT: usize = 2048;

/// What a capture keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Arriving,
    Leaving,
}

/// A running capture of one direction of a device.
#[derive(Debug)]
pub struct Capture {
    socket: Arc<OwnedFd>,
    stop: Arc<EventFd>,
    frames: Arc<Mutex<Frames>>,
    thread: Option<JoinHandle<()>>,
}

/// What a capture has seen.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    syns: Vec<Syn>,
    first_syns: usize,
    segments: Vec<Segment>,
    icmp: Vec<Icmp>,
    others: usize,
    flows: HashSet<(SocketAddr, SocketAddr, u32)>,
}

impl Frames {
    fn add(&mut self, content: Content) {
        match content {
            Content::Tcp(segment) if segment.is_attempt() => {
                let first = self.flows.insert((segment.src, segment.dst, segment.seq));
                self.first_syns += usize::from(first);
                self.syns.push(Syn {
                    first,
                    segment: *segment,
                });
            }
            Content::Tcp(segment) => self.segments.push(*segment),
            Content::Icmp(icmp) => self.icmp.push(icmp),
            Content::Other => self.others += 1,
        }
    }

    /// All SYNs without ACK, retransmissions included, as they came.
    pub fn syns(&self) -> &[Syn] {
        &self.syns
    }

    /// The first SYN of each attempt, as they came.
    pub fn first_syns(&self) -> Vec<Syn> {
        self.syns.iter().filter(|syn| syn.first).cloned().collect()
    }

    /// The SYNs that follow a first one with the same flow and ISN.
    pub fn repeated_syns(&self) -> Vec<Syn> {
        self.syns.iter().filter(|syn| !syn.first).cloned().collect()
    }

    /// All SYNs to one endpoint.
    pub fn syns_to(&self, dst: SocketAddr) -> Vec<Syn> {
        self.syns
            .iter()
            .filter(|syn| syn.dst == dst)
            .cloned()
            .collect()
    }

    /// All TCP segments that are no attempts.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// All ICMP and ICMPv6 messages.
    pub fn icmp(&self) -> &[Icmp] {
        &self.icmp
    }

    /// How many frames were none of these.
    pub fn others(&self) -> usize {
        self.others
    }

    /// How many attempts appeared in each second, counted from the first.
    /// Seconds in which none did are there too.
    pub fn per_second(&self) -> Vec<u32> {
        let first_syns = self.syns.iter().filter(|syn| syn.first);
        let times: Vec<u64> = first_syns.map(|syn| syn.at_ns).collect();
        per_second(&times)
    }

    /// Time between each attempt's first SYN and the one before.
    pub fn intervals(&self) -> Vec<Duration> {
        let firsts: Vec<u64> = self
            .syns
            .iter()
            .filter(|syn| syn.first)
            .map(|syn| syn.at_ns)
            .collect();
        firsts
            .windows(2)
            .map(|pair| Duration::from_nanos(pair[1] - pair[0]))
            .collect()
    }
}

/// How many of `times` (ns) are in each second, counted from the first.
pub fn per_second(times: &[u64]) -> Vec<u32> {
    let Some(&start) = times.iter().min() else {
        return Vec::new();
    };
    let mut seconds = BTreeMap::<usize, u32>::new();
    for at in times {
        *seconds
            .entry(((at - start) / 1_000_000_000) as usize)
            .or_default() += 1;
    }
    let last = seconds.keys().next_back().copied().unwrap_or_default();
    (0..=last)
        .map(|second| seconds.get(&second).copied().unwrap_or_default())
        .collect()
}

impl Capture {
    /// Captures what `device` receives.
    ///
    /// # Panics
    /// When there is no such device, or without CAP_NET_RAW.
    #[track_caller]
    pub fn arriving(namespace: &Namespace, device: &str) -> Self {
        Self::start(namespace, device, Side::Arriving)
    }

    /// Captures what `device` sends, as it is after TC.
    ///
    /// # Panics
    /// When there is no such device, or without CAP_NET_RAW.
    #[track_caller]
    pub fn leaving(namespace: &Namespace, device: &str) -> Self {
        Self::start(namespace, device, Side::Leaving)
    }

    #[track_caller]
    fn start(namespace: &Namespace, device: &str, side: Side) -> Self {
        let ifindex = namespace.ifindex(device);
        let socket = namespace
            .run(|| sys::packet_socket(ifindex))
            .unwrap_or_else(|e| panic!("capture at {device} in {namespace:?}: {e}"));
        let socket = Arc::new(socket);
        let stop = Arc::new(EventFd::new().unwrap());
        let frames = Arc::new(Mutex::new(Frames::default()));
        let thread = {
            let (socket, stop, frames) = (socket.clone(), stop.clone(), frames.clone());
            thread::spawn(move || collect(&socket, &stop, &frames, side))
        };
        Self {
            socket,
            stop,
            frames,
            thread: Some(thread),
        }
    }

    /// What was captured so far.
    ///
    /// # Panics
    /// Never, in practice.
    pub fn so_far(&self) -> Frames {
        self.frames.lock().unwrap().clone()
    }

    /// How many attempts have shown up so far.
    ///
    /// # Panics
    /// Never, in practice.
    pub fn attempts(&self) -> usize {
        self.frames.lock().unwrap().first_syns
    }

    /// Waits until this many attempts have shown up, and returns the first
    /// SYN of each.
    ///
    /// # Panics
    /// When they do not within `timeout`.
    #[track_caller]
    pub fn wait_for_attempts(&self, count: usize, timeout: Duration) -> Vec<Syn> {
        let timeout = timeout * wait::slowness();
        let enough = || (self.attempts() >= count).then_some(());
        if wait::wait_at_most(timeout, enough).is_none() {
            panic!(
                "{} of {count} attempts on the wire after {timeout:?}",
                self.attempts()
            );
        }
        self.so_far().first_syns()
    }

    /// Waits for the first SYN to `dst`.
    ///
    /// # Panics
    /// When it does not come within `timeout`.
    #[track_caller]
    pub fn wait_for_syn_to(&self, dst: SocketAddr, timeout: Duration) -> Syn {
        wait_for(&format!("a SYN to {dst} on the wire"), timeout, || {
            self.frames
                .lock()
                .unwrap()
                .syns
                .iter()
                .find(|syn| syn.dst == dst)
                .cloned()
        })
    }

    /// Ends the capture, and returns all of it.
    ///
    /// # Panics
    /// When the kernel had to drop a frame: then the capture proves nothing.
    #[track_caller]
    pub fn finish(mut self) -> Frames {
        self.end();
        let dropped = sys::dropped_frames(self.socket.as_fd()).unwrap();
        assert_eq!(dropped, 0, "the capture missed frames");
        std::mem::take(&mut *self.frames.lock().unwrap())
    }

    fn end(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            assert!(thread::panicking(), "the capture failed");
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn collect(socket: &OwnedFd, stop: &EventFd, frames: &Mutex<Frames>, side: Side) {
    let mut buffer = [0; KEPT];
    loop {
        let mut waiting =
            [socket.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut waiting, PollTimeout::NONE);
        let [_, stopped] = waiting;
        let stopped = stopped.any() == Some(true);
        // What had arrived before the end belongs to the capture.
        while let Some(received) = sys::receive(socket.as_fd(), &mut buffer).unwrap() {
            if received.outgoing != (side == Side::Leaving) {
                continue;
            }
            let beside = Beside {
                at_ns: received.at_ns,
                ethernet: received.hardware != libc::ARPHRD_NONE,
                tag: received.tag.map(|(protocol, tci)| Tag { protocol, tci }),
                checksum_pending: received.checksum_pending,
                cut: received.stored == KEPT,
            };
            let content = frame::decode(&buffer[..received.stored], beside);
            frames.lock().unwrap().add(content);
        }
        if stopped {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::per_second;

    #[test]
    fn empty_seconds_are_counted_too() {
        assert_eq!(per_second(&[]), Vec::<u32>::new());
        let second = 1_000_000_000;
        assert_eq!(
            per_second(&[7, 8, 7 + second - 1, 7 + 3 * second]),
            [3, 0, 0, 1]
        );
    }
}
