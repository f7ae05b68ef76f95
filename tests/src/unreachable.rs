//! A router that knows no way on, and says so each time.
//!
//! The kernel's own answer for an IPv4 `unreachable` route will not do: it is
//! limited to one per second and source (`ip_error` in net/ipv4/route.c), and
//! the limit is one for all namespaces.

use crate::{
    netns::Namespace,
    sys::{self, TunKind},
};
use etherparse::{Ipv4HeaderSlice, PacketBuilder};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
};

/// The device towards the router.
const DEVICE: &str = "nowhere";
/// The address it sends its errors from.
const ROUTER: [u8; 4] = [10, 79, 0, 1];
/// How much of a packet an error quotes (RFC 1812, 4.3.2.3: 576 bytes in all).
const QUOTED: usize = 548;

/// The router. It ends when dropped.
#[derive(Debug)]
pub(crate) struct Router {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Answers for `prefix`, behind `namespace`.
    pub(crate) fn start(namespace: &Namespace, prefix: &str) -> Self {
        let device = namespace
            .run(|| sys::open_tun(DEVICE, TunKind::Tun))
            .unwrap_or_else(|e| panic!("make the tun device {DEVICE}: {e}"));
        namespace.ip(&format!("link set {DEVICE} up"));
        namespace.ip(&format!("route add {prefix} dev {DEVICE}"));
        let stop = Arc::new(EventFd::new().unwrap());
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || answer(&device, &stopped));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(device: &OwnedFd, stop: &EventFd) {
    let mut packet = [0; 2048];
    loop {
        let mut waiting =
            [device.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut waiting, PollTimeout::NONE);
        let [_, stopped] = waiting;
        if stopped.any() == Some(true) {
            return;
        }
        while let Ok(len) = nix::unistd::read(device, &mut packet) {
            if let Some(error) = host_unreachable(&packet[..len]) {
                // Fails only when the device goes down.
                let _ = nix::unistd::write(device, &error);
            }
        }
    }
}

/// The error that answers an IPv4 packet; nothing for any other.
fn host_unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let builder = PacketBuilder::ipv4(ROUTER, header.source(), 64).icmpv4_raw(3, 1, [0; 4]);
    let mut error = Vec::new();
    builder
        .write(&mut error, &packet[..packet.len().min(QUOTED)])
        .ok()?;
    Some(error)
}
