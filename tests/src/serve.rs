//! Something that answers.

use crate::netns::Namespace;
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        socket::{
            self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
        },
    },
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Keeps it open as long as the server lives.
    Hold,
    /// Closes it at once.
    Close,
    /// Resets it at once.
    Reset,
    /// Answers one HTTP request.
    Http,
    /// Reads all that is sent, and throws it away.
    Sink,
}

/// A listening socket with a thread that accepts. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn start(namespace: &Namespace, address: SocketAddr, behaviour: Behaviour) -> Self {
        let listener = namespace.run(|| listen(address));
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(EventFd::new().unwrap());
        let thread = {
            let (accepted, stop) = (Arc::clone(&accepted), Arc::clone(&stop));
            namespace.thread(move || serve(&listener, behaviour, &accepted, &stop))
        };
        Self {
            address,
            accepted,
            stop,
            thread: Some(thread),
        }
    }

    /// Listens at `port` of every local address, IPv4 and IPv6.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn everywhere(namespace: &Namespace, port: u16, behaviour: Behaviour) -> Self {
        Self::start(
            namespace,
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            behaviour,
        )
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Not the standard library's listener, whose backlog of 128 a burst
/// overruns.
fn listen(address: SocketAddr) -> TcpListener {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false).unwrap();
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .unwrap_or_else(|e| panic!("listen at {address}: {e}"));
    socket::listen(&socket, Backlog::MAXALLOWABLE).unwrap();
    socket.into()
}

fn serve(listener: &TcpListener, behaviour: Behaviour, accepted: &AtomicUsize, stop: &EventFd) {
    let mut held = Vec::new();
    loop {
        let mut waiting =
            [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut waiting, PollTimeout::NONE);
        let [_, stopped] = waiting;
        if stopped.any() == Some(true) {
            return;
        }
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // The peer may be gone already.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("accept: {e}"),
            };
            accepted.fetch_add(1, Ordering::SeqCst);
            match behaviour {
                Behaviour::Hold => held.push(stream),
                Behaviour::Close => drop(stream),
                Behaviour::Reset => {
                    let linger = libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    };
                    // Fails if the peer has reset it first.
                    let _ = setsockopt(&stream, sockopt::Linger, &linger);
                }
                Behaviour::Http => drop(thread::spawn(move || answer_http(stream))),
                Behaviour::Sink => drop(thread::spawn(move || sink(stream))),
            }
        }
    }
}

/// How long a client may take for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

fn answer_http(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    if stream.set_read_timeout(Some(REQUEST_TIMEOUT)).is_err() {
        return;
    }
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(len) if len > 0 => request.extend_from_slice(&part[..len]),
            _ => return,
        }
    }
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
    // The client may have given up.
    let _ = stream.write_all(answer.as_bytes());
}

fn sink(mut stream: TcpStream) {
    let mut part = vec![0; 1 << 16];
    while stream.read(&mut part).is_ok_and(|len| len > 0) {}
}
