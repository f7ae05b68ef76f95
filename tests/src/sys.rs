//! System calls that nix has no safe form of, one small function each.

use nix::libc;
use std::{
    ffi::{c_int, c_void},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An all-zero value of a plain C struct.
///
/// # Safety
/// All zeroes must be a valid `T`.
unsafe fn zeroed<T>() -> T {
    // SAFETY: the caller's promise.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

// ---- devices --------------------------------------------------------------

fn ifreq(device: &str) -> libc::ifreq {
    // SAFETY: a struct of integers.
    let mut request: libc::ifreq = unsafe { zeroed() };
    assert!(
        device.len() < request.ifr_name.len(),
        "device name too long: {device}"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Which frames a tun or tap device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunKind {
    /// IP packets.
    Tun,
    /// Ethernet frames.
    Tap,
}

/// Makes a tun or tap device in the calling thread's namespace. It lives as
/// long as the descriptor, which is the other end of its wire.
pub(crate) fn open_tun(device: &str, kind: TunKind) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string.
    let fd = checked(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) })?;
    // SAFETY: just opened, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = ifreq(device);
    let mode = match kind {
        TunKind::Tun => libc::IFF_TUN,
        TunKind::Tap => libc::IFF_TAP,
    };
    request.ifr_ifru.ifru_flags = (mode | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF takes an ifreq.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(fd)
}

/// Turns off what makes a device see unfinished or oversized frames.
pub(crate) fn turn_offload_off(device: &str) -> io::Result<()> {
    /// `ETHTOOL_STXCSUM`, `STSO`, `SGSO` and `SGRO` of linux/ethtool.h.
    const SETTINGS: [u32; 4] = [0x17, 0x1f, 0x24, 0x2c];
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for cmd in SETTINGS {
        let mut value = Value { cmd, data: 0 };
        let mut request = ifreq(device);
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        let fd = socket.as_raw_fd();
        // SAFETY: SIOCETHTOOL takes an ifreq that points to the command.
        checked(unsafe { libc::ioctl(fd, libc::SIOCETHTOOL as _, &raw mut request) })?;
    }
    Ok(())
}

// ---- packet sockets -------------------------------------------------------

/// One frame from a packet socket, with what the kernel says beside it.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes that were stored in the buffer.
    pub(crate) stored: usize,
    /// Time of arrival, ns of `CLOCK_REALTIME`.
    pub(crate) at_ns: u64,
    /// The frame was sent from here.
    pub(crate) outgoing: bool,
    /// `ARPHRD_*` of the device.
    pub(crate) hardware: u16,
    /// Tag kept beside the frame: protocol and TCI.
    pub(crate) tag: Option<(u16, u16)>,
    /// The transport checksum is left to the hardware.
    pub(crate) checksum_pending: bool,
}

/// A packet socket on a device of the calling thread's namespace.
pub(crate) fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing arrives before the socket is bound to its device.
    // SAFETY: no pointers.
    let fd = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: just opened, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // 64 MiB: a burst may wait for a scheduler that is busy with the burst.
    set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    set_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    let address = link_address(ifindex, libc::ETH_P_ALL as u16);
    let len = size_of_val(&address) as u32;
    // SAFETY: address and length belong together.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(fd)
}

/// A packet socket for sending only: it receives nothing.
pub(crate) fn sending_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd =
        checked(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just opened, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn link_address(ifindex: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: a struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    address
}

fn set_option(fd: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let len = size_of_val(&value) as u32;
    // SAFETY: value and length belong together.
    let set =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    checked(set).map(drop)
}

fn get_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as u32;
    // SAFETY: value and length belong together; only plain C structs are asked for.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    checked(got).map(drop)
}

/// Takes the next frame, if there is one.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    // u64: control messages are aligned like it.
    let mut control = [0u64; 32];
    let mut from = link_address(0, 0);
    let mut data = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: a struct of integers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as u32;
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of the message is to a buffer of the stated length.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
    if len < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // ENETDOWN is told once when the device goes down.
            Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
            _ => Err(error),
        };
    }
    let mut received = Received {
        stored: len as usize,
        at_ns: 0,
        outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        hardware: from.sll_hatype,
        tag: None,
        checksum_pending: false,
    };
    // SAFETY: the message was filled by the kernel.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the CMSG functions return null or a whole header in `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: as above.
        let payload: *const c_void = unsafe { libc::CMSG_DATA(next) }.cast();
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: the kernel put a timespec there.
                let at: libc::timespec = unsafe { ptr::read_unaligned(payload.cast()) };
                received.at_ns = at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64;
            }
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                // SAFETY: the kernel put a tpacket_auxdata there.
                let aux: libc::tpacket_auxdata = unsafe { ptr::read_unaligned(payload.cast()) };
                if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                    received.tag = Some((aux.tp_vlan_tpid, aux.tp_vlan_tci));
                }
                received.checksum_pending = aux.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
            }
            _ => {}
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok(Some(received))
}

/// How many frames found no room since the last time this was asked.
pub(crate) fn dropped_frames(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: a struct of integers.
    let mut stats: libc::tpacket_stats = unsafe { zeroed() };
    get_option(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)?;
    Ok(stats.tp_drops)
}

/// Sends a frame as it is.
pub(crate) fn send_frame(
    fd: BorrowedFd<'_>,
    ifindex: u32,
    protocol: u16,
    frame: &[u8],
) -> io::Result<()> {
    let address = link_address(ifindex, protocol);
    let len = size_of_val(&address) as u32;
    // SAFETY: both buffers have the stated lengths.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            len,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What TCP knows about a connection.
pub(crate) fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: a struct of integers.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(info)
}

// ---- bpf(2) ---------------------------------------------------------------

/// Which kind of BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BpfKind {
    Program,
    Map,
    Link,
}

/// bpf(2) with an attribute of 32-bit words.
fn bpf(command: u32, attr: &mut [u32]) -> io::Result<c_int> {
    let len = size_of_val(attr);
    // SAFETY: attribute and length belong together; what its pointers point
    // to is kept alive by the callers below.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), len) };
    checked(result as c_int)
}

fn bpf_fd(command: u32, attr: &mut [u32]) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn words(pointer: *const u8) -> [u32; 2] {
    let address = pointer as u64;
    let bytes = address.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}

/// The id after `id` of the objects that exist, in the whole machine.
pub(crate) fn next_bpf_id(kind: BpfKind, id: u32) -> Option<u32> {
    // BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, BPF_LINK_GET_NEXT_ID.
    let command = match kind {
        BpfKind::Program => 11,
        BpfKind::Map => 12,
        BpfKind::Link => 31,
    };
    // start_id, next_id, open_flags
    let mut attr = [id, 0, 0];
    bpf(command, &mut attr).ok().map(|_| attr[1])
}

/// The name of an object, if it still exists and has one.
pub(crate) fn bpf_name(kind: BpfKind, id: u32) -> Option<String> {
    // BPF_PROG_GET_FD_BY_ID and BPF_MAP_GET_FD_BY_ID; where the name is in
    // bpf_prog_info and bpf_map_info of linux/bpf.h.
    let (by_id, name_at) = match kind {
        BpfKind::Program => (13, 64),
        BpfKind::Map => (14, 24),
        BpfKind::Link => return None,
    };
    let fd = bpf_fd(by_id, &mut [id, 0, 0]).ok()?;
    let mut info = [0u8; 80];
    let [low, high] = words(info.as_mut_ptr());
    // BPF_OBJ_GET_INFO_BY_FD: bpf_fd, info_len, info
    bpf(
        15,
        &mut [fd.as_raw_fd() as u32, info.len() as u32, low, high],
    )
    .ok()?;
    let name = &info[name_at..name_at + 16];
    let end = name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(name.len());
    Some(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Where in a device's traffic a TCX program sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What the device receives.
    Ingress,
    /// What the device sends.
    Egress,
}

impl Hook {
    /// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS` of linux/bpf.h.
    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// Ids of the TCX programs at a device of the calling thread's namespace, in
/// the order they run. None where the kernel has no TCX.
pub(crate) fn tcx_programs(ifindex: u32, hook: Hook) -> Option<Vec<u32>> {
    let mut ids = [0u32; 64];
    let [low, high] = words(ids.as_mut_ptr().cast());
    // BPF_PROG_QUERY: target, attach_type, query_flags, attach_flags,
    // prog_ids, count, pad, prog_attach_flags, link_ids, link_attach_flags,
    // revision
    let mut attr = [0u32; 16];
    attr[..7].copy_from_slice(&[
        ifindex,
        hook.attach_type(),
        0,
        0,
        low,
        high,
        ids.len() as u32,
    ]);
    bpf(16, &mut attr).ok()?;
    Some(ids[..attr[6] as usize].to_vec())
}

/// Loads a TC classifier and attaches it with TCX to a device of the calling
/// thread's namespace. It works until the link is closed.
pub(crate) fn attach_tcx(code: &[u64], ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let licence = c"GPL";
    let [code_low, code_high] = words(code.as_ptr().cast());
    let [licence_low, licence_high] = words(licence.as_ptr().cast());
    // BPF_PROG_LOAD: prog_type, insn_cnt, insns, license, log_level,
    // log_size, log_buf, kern_version, prog_flags
    let mut load = [0u32; 12];
    load[..6].copy_from_slice(&[
        BPF_PROG_TYPE_SCHED_CLS,
        code.len() as u32,
        code_low,
        code_high,
        licence_low,
        licence_high,
    ]);
    let program = bpf_fd(5, &mut load)?;
    // BPF_LINK_CREATE: prog_fd, target_ifindex, attach_type, flags
    let mut create = [0u32; 8];
    create[..3].copy_from_slice(&[program.as_raw_fd() as u32, ifindex, hook.attach_type()]);
    bpf_fd(28, &mut create)
}
