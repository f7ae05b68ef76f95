//! Frames of any length and any layout in memory, sent through a real device.

use nix::libc;
use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use throttle_tests::wait_until;

/// Room for one frame in the ring.
const SLOT: usize = 16 << 10;
/// All of them.
const RING: usize = 64 << 10;
/// Where a frame begins in its slot: behind `struct tpacket2_hdr` of
/// linux/if_packet.h, aligned.
const FRAME_AT: usize = 32;

/// A packet socket whose frames are handed over by a shared ring: the kernel
/// copies the link header alone, and refers to the rest where it lies
/// (`tpacket_fill_skb` in net/packet/af_packet.c). So only the first 14 bytes
/// are in the linear part.
pub(crate) struct Ring {
    socket: OwnedFd,
    memory: NonNull<c_void>,
    next: usize,
}

fn check(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

/// A packet socket that sends by a device of the calling thread's namespace.
pub(crate) fn socket(ifindex: u32) -> OwnedFd {
    // Protocol 0: it receives nothing.
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) });
    // SAFETY: just opened, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: integers only.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_ifindex = i32::try_from(ifindex).unwrap();
    let len = u32::try_from(size_of_val(&address)).unwrap();
    // SAFETY: address and length belong together.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), len) });
    socket
}

/// Sends a frame as it is, in one piece.
pub(crate) fn send(socket: &OwnedFd, frame: &[u8]) {
    // SAFETY: buffer and length belong together.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    assert_eq!(
        sent,
        isize::try_from(frame.len()).unwrap(),
        "{}",
        io::Error::last_os_error()
    );
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) {
    let len = u32::try_from(size_of::<T>()).unwrap();
    let fd = socket.as_raw_fd();
    // SAFETY: value and length belong together.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            option,
            (&raw const *value).cast(),
            len,
        )
    });
}

impl Ring {
    pub(crate) fn new(ifindex: u32) -> Self {
        let socket = socket(ifindex);
        set(
            &socket,
            libc::PACKET_VERSION,
            &libc::tpacket_versions::TPACKET_V2,
        );
        let number = |n: usize| u32::try_from(n).unwrap();
        let request = libc::tpacket_req {
            tp_block_size: number(RING),
            tp_block_nr: 1,
            tp_frame_size: number(SLOT),
            tp_frame_nr: number(RING / SLOT),
        };
        set(&socket, libc::PACKET_TX_RING, &request);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = socket.as_raw_fd();
        // SAFETY: a mapping of its own, where the kernel likes.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), RING, access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(memory, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let memory = NonNull::new(memory).unwrap();
        Self {
            socket,
            memory,
            next: 0,
        }
    }

    /// Sends a frame as it is, all but its first 14 bytes outside of the linear
    /// part.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        assert!(frame.len() <= SLOT - FRAME_AT);
        // SAFETY: the slot lies within the mapping, which is page aligned, and
        // is ours: its last frame has been given back. The header begins with
        // its status, and its length follows.
        let status = unsafe {
            let slot = self.memory.cast::<u8>().add(self.next * SLOT);
            slot.add(4)
                .cast::<u32>()
                .write(u32::try_from(frame.len()).unwrap());
            slot.add(FRAME_AT)
                .copy_from_nonoverlapping(NonNull::from(frame).cast(), frame.len());
            slot.cast::<AtomicU32>().as_ref()
        };
        self.next = (self.next + 1) % (RING / SLOT);
        status.store(libc::TP_STATUS_SEND_REQUEST, Ordering::SeqCst);
        // SAFETY: nothing is handed over but what is in the ring.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), std::ptr::null(), 0, 0) };
        assert_eq!(
            sent,
            isize::try_from(frame.len()).unwrap(),
            "{}",
            io::Error::last_os_error()
        );
        wait_until(
            "the kernel to give a slot back",
            Duration::from_secs(5),
            || status.load(Ordering::SeqCst) == libc::TP_STATUS_AVAILABLE,
        );
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nobody refers to it.
        check(unsafe { libc::munmap(self.memory.as_ptr(), RING) });
    }
}
