//! TCP sockets that wait for an answer to their SYN: found and closed by the
//! kernel's socket diagnosis (`NETLINK_SOCK_DIAG`).
//!
//! Whether an attempt is half-open or held back, its socket is in SYN_SENT.

use std::{fs::File, io, thread};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::{
    libc,
    sched::{CloneFlags, setns},
};

/// The most that the kernel puts into one datagram of a dump (`netlink_dump` in
/// net/netlink/af_netlink.c: 32 KiB), and more.
const DATAGRAM_MAX: usize = 1 << 16;

/// A socket in SYN_SENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unanswered {
    family: u8,
    id: SocketId,
    /// The number of its inode, by which it shows among a process's files.
    pub(super) inode: u64,
}

impl Unanswered {
    /// Its cookie: the number by which the programs know it too.
    pub(super) const fn cookie(&self) -> u64 {
        // Two words, the low one first (`sock_diag_save_cookie` in
        // net/core/sock_diag.c), each in the machine's order.
        let [a, b, c, d, e, f, g, h] = self.id.cookie;
        let (low, high) = (
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
        );
        (high as u64) << 32 | low as u64
    }
}

/// What became of sockets that were to be closed. Those that were gone already
/// are in neither number.
#[derive(Debug, Default)]
pub(super) struct Closing {
    /// How many were closed.
    pub(super) closed: usize,
    /// How many were not, and why the first one was not.
    pub(super) failed: Option<(usize, io::Error)>,
}

/// Does `work` in the network namespace `space`, on a thread of its own.
///
/// # Errors
///
/// When the caller may not enter it (CAP_SYS_ADMIN), and what `work` says.
pub(super) fn inside<T: Send>(
    space: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(space, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        let failed = |_| Err(io::Error::other("the thread for it did not end well"));
        inside.join().unwrap_or_else(failed)
    })
}

/// All TCP sockets in SYN_SENT of the calling thread's network namespace.
///
/// # Errors
///
/// When the kernel has no socket diagnosis, or does not tell.
pub(super) fn unanswered() -> io::Result<Vec<Unanswered>> {
    let mut found = Vec::new();
    for (family, id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let mut asked = Asked::new()?;
        asked.send(
            SockDiagMessage::InetRequest(request(family, id)),
            NLM_F_DUMP,
        )?;
        while let Some(message) = asked.next()? {
            if let SockDiagMessage::InetResponse(socket) = message {
                found.push(Unanswered {
                    family,
                    id: socket.header.socket_id,
                    inode: socket.header.inode.into(),
                });
            }
        }
    }
    Ok(found)
}

/// Closes `sockets`, which are in the calling thread's network namespace: whoever
/// waits for one to connect gets ECONNABORTED.
pub(super) fn close(sockets: &[Unanswered]) -> Closing {
    let mut closing = Closing::default();
    let mut asked = match Asked::new() {
        Ok(asked) => asked,
        Err(error) => {
            closing.failed = Some((sockets.len(), error));
            return closing;
        }
    };
    for (at, socket) in sockets.iter().enumerate() {
        match close_one(&mut asked, socket) {
            Ok(()) => closing.closed += 1,
            // It has gone, or is another one's now.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
            // The next one would fare no better.
            Err(error) => {
                closing.failed = Some((sockets.len() - at, error));
                break;
            }
        }
    }
    closing
}

fn close_one(asked: &mut Asked, socket: &Unanswered) -> io::Result<()> {
    let request = request(socket.family, socket.id.clone());
    let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    asked.send(message, NLM_F_ACK)?;
    asked.next().map(|_| ())
}

/// What to do about an error of this module's, if there is something.
pub(super) fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => " (this kernel was built without CONFIG_INET_DIAG_DESTROY)",
        Some(libc::EPROTONOSUPPORT | libc::ENOENT) => {
            " (this kernel has no CONFIG_INET_TCP_DIAG, or may not load tcp_diag)"
        }
        Some(libc::EPERM | libc::EACCES) => {
            " (it needs CAP_NET_ADMIN, and CAP_SYS_ADMIN in another network namespace)"
        }
        _ => "",
    }
}

fn request(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::SYN_SENT,
        socket_id,
    }
}

/// A request, and the messages that answer it.
struct Asked {
    socket: Socket,
    buffer: Vec<u8>,
    /// What is not yet read of the buffer.
    unread: std::ops::Range<usize>,
}

impl Asked {
    fn new() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
            unread: 0..0,
        })
    }

    fn send<T>(&self, message: T, flags: u16) -> io::Result<()>
    where
        T: NetlinkSerializable + Into<NetlinkPayload<T>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// The next message; none after the last.
    fn next(&mut self) -> io::Result<Option<SockDiagMessage>> {
        loop {
            if self.unread.is_empty() {
                self.buffer.clear();
                self.buffer.reserve(DATAGRAM_MAX);
                let len = self.socket.recv(&mut self.buffer, 0)?;
                self.unread = 0..len.min(self.buffer.len());
            }
            let bytes = &self.buffer[self.unread.clone()];
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            // Each begins where a multiple of four is (NLMSG_ALIGN).
            let len = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            let next = self.unread.start.saturating_add(len.next_multiple_of(4));
            self.unread.start = next.min(self.unread.end);
            match message.payload {
                NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                NetlinkPayload::Done(_) => return Ok(None),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(None),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => {
                    return Err(io::Error::other("the kernel lost a part of its answer"));
                }
                // Nothing, and what nobody sends.
                NetlinkPayload::Noop | _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_an_answer_is_found_by_its_inode_and_its_cookie() {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, getsockname,
            listen, socket,
        };
        use std::os::{fd::AsRawFd as _, unix::fs::MetadataExt as _};

        let new = |flags| socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        // A listener whose backlog of one is full answers no SYN.
        let listener = new(SockFlag::SOCK_CLOEXEC);
        bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let to: SockaddrIn = getsockname(listener.as_raw_fd()).unwrap();
        let filler = new(SockFlag::SOCK_CLOEXEC);
        connect(filler.as_raw_fd(), &to).unwrap();
        let waiting = new(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
        let error = connect(waiting.as_raw_fd(), &to).unwrap_err();
        assert_eq!(error, nix::errno::Errno::EINPROGRESS);

        let path = format!("/proc/self/fd/{}", waiting.as_raw_fd());
        let inode = std::fs::metadata(path).unwrap().ino();
        let mut cookie = 0u64;
        let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap();
        // SAFETY: both pointers are valid for the lengths that go with them.
        let got = unsafe {
            libc::getsockopt(
                waiting.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        assert_eq!(got, 0);
        let found = unanswered().unwrap();
        let socket = found.iter().find(|socket| socket.inode == inode);
        assert_eq!(socket.map(Unanswered::cookie), Some(cookie), "{found:?}");
        let filled = format!("/proc/self/fd/{}", filler.as_raw_fd());
        let filled = std::fs::metadata(filled).unwrap().ino();
        assert!(found.iter().all(|socket| socket.inode != filled));
    }
}
