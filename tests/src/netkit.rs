//! Pairs of netkit devices, of a mode that the `ip` of many a machine cannot say yet.

use crate::netns::Namespace;
use nix::{
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv,
        send, socket,
    },
};
use std::{fmt, fs::File, io, os::fd::AsRawFd};

/// What the frames of a pair begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ethernet: `NETKIT_L2`.
    Ethernet = 0,
    /// IP: `NETKIT_L3`.
    Ip = 1,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "L2",
            Self::Ip => "L3",
        })
    }
}

/// `IFLA_NETKIT_PEER_INFO`, `IFLA_NETKIT_MODE` of linux/if_link.h.
const PEER_INFO: u16 = 1;
const MODE: u16 = 5;
/// `struct ifinfomsg`, all zero: any device.
const ANY_DEVICE: [u8; 16] = [0; 16];

/// Makes the pair: `name` in `namespace`, `peer_name` in `peer`.
///
/// # Panics
/// When the kernel refuses.
#[track_caller]
pub fn add_pair(namespace: &Namespace, name: &str, mode: Mode, peer: &Namespace, peer_name: &str) {
    // Open until the kernel has answered.
    let peers = File::open(peer.path()).unwrap();
    let peers_fd = u32::try_from(peers.as_raw_fd()).unwrap();
    let of_peer = [
        ANY_DEVICE.to_vec(),
        attribute(libc::IFLA_IFNAME, &text(peer_name)),
        attribute(libc::IFLA_NET_NS_FD, &peers_fd.to_ne_bytes()),
    ]
    .concat();
    let data = [
        attribute(MODE, &(mode as u32).to_ne_bytes()),
        attribute(PEER_INFO, &of_peer),
    ]
    .concat();
    let kind = [
        attribute(libc::IFLA_INFO_KIND, b"netkit"),
        attribute(libc::IFLA_INFO_DATA, &data),
    ]
    .concat();
    let link = [
        ANY_DEVICE.to_vec(),
        attribute(libc::IFLA_IFNAME, &text(name)),
        attribute(libc::IFLA_LINKINFO, &kind),
    ]
    .concat();
    namespace
        .run(|| ask(libc::RTM_NEWLINK, &link))
        .unwrap_or_else(|e| panic!("make the netkit pair {name} ({mode}): {e}"));
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// An attribute of a netlink message.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [&len.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Asks for something new, and returns what the kernel says to it.
fn ask(what: u16, body: &[u8]) -> io::Result<()> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let len = u32::try_from(16 + body.len()).unwrap();
    let header = [
        &len.to_ne_bytes()[..],
        &what.to_ne_bytes(),
        &u16::try_from(flags).unwrap().to_ne_bytes(),
        // Sequence number and port.
        &[0; 8],
    ]
    .concat();
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    connect(kernel.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let message = [header, body.to_vec()].concat();
    send(kernel.as_raw_fd(), &message, MsgFlags::empty())?;
    // Its header, then an error number.
    let mut said = [0; 1024];
    let len = recv(kernel.as_raw_fd(), &mut said, MsgFlags::empty())?;
    let code = said[..len].get(16..20).map(|code| code.try_into().unwrap());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
