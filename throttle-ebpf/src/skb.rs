//! The socket buffer, as a TC program sees it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::{
        bpf_get_socket_cookie, bpf_get_socket_uid, bpf_l4_csum_replace, bpf_redirect,
        bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
    programs::TcContext,
};

use crate::packet::Bytes;

/// `IPPROTO_TCP` of linux/in.h.
const IPPROTO_TCP: u32 = 6;
/// `ETH_P_IP` and `ETH_P_IPV6` of linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// `SOCK_STREAM` of linux/net.h.
const SOCK_STREAM: u32 = 1;

/// How much of a packet is made linear when its headers are not: as much as a
/// record carries, and more than an ICMP error must quote.
const PULL_MAX: u32 = 256;

/// A socket buffer at TC.
#[derive(Clone, Copy)]
pub struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    /// The socket buffer of a TC program's context.
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        Self {
            skb: context.as_ptr().cast(),
        }
    }

    /// The context again, for a log line.
    #[inline(always)]
    pub fn context(&self) -> TcContext {
        TcContext::new(self.skb)
    }

    #[inline(always)]
    fn field<T>(&self, read: impl FnOnce(&__sk_buff) -> T) -> T {
        // SAFETY: the kernel hands the program a valid context for as long as
        // it runs; the verifier turns field reads into reads of the sk_buff.
        read(unsafe { &*self.skb })
    }

    /// The linear part of the packet.
    #[inline(always)]
    pub fn packet(&self) -> Bytes {
        let data = self.field(|skb| skb.data) as usize;
        let data_end = self.field(|skb| skb.data_end) as usize;
        // SAFETY: data and data_end bound the packet; the verifier refuses any
        // use of them after a helper that could move it.
        unsafe { Bytes::new(data, data_end) }
    }

    /// Length of the whole packet in bytes.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.field(|skb| skb.len)
    }

    /// Whether it has no bytes.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the device the packet is on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.field(|skb| skb.ifindex)
    }

    /// The buffer itself, for a helper.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut __sk_buff {
        self.skb
    }

    /// Whether its protocol is IP, be it IPv4 or IPv6.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is 16 bits wide in the sk_buff"
    )]
    pub fn is_ip(&self) -> bool {
        let protocol = u16::from_be(self.field(|skb| skb.protocol) as u16);
        protocol == ETH_P_IP || protocol == ETH_P_IPV6
    }

    /// When its socket wants it to leave, in monotonic nanoseconds. Of a packet
    /// that is not of a TCP socket it may be anything.
    #[inline(always)]
    pub fn departs_ns(&self) -> u64 {
        self.field(|skb| skb.tstamp)
    }

    /// Adds `more_ms` to the TCP timestamp (RFC 7323) of a SYN that a socket of
    /// this host made, whose TCP header begins at `transport_offset`. Linux counts
    /// them in milliseconds.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "timestamps wrap (RFC 7323, 5.4)"
    )]
    pub fn add_to_timestamp(&self, transport_offset: u32, more_ms: u64) {
        // From the header's length to the timestamp's value: Linux has the option
        // behind the first one and two bytes more (`tcp_options_write` in
        // net/ipv4/tcp_output.c). If there is something else it stays as it is.
        const FROM: u32 = 12;
        const CHECKSUM: u32 = 16;
        const OPTION: usize = 26 - FROM as usize;
        const VALUE: u32 = 28;
        const TIMESTAMP: [u8; 2] = [8, 10];
        /// Words in a header that has the value.
        const WORDS: u8 = 8;
        let mut header = [0u8; 20];
        let at = transport_offset.wrapping_add(FROM);
        // SAFETY: a valid context; there is room for as many bytes.
        let failed =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), at, header.as_mut_ptr().cast(), 20) != 0 };
        if failed || header[0] >> 4 < WORDS || [header[OPTION], header[OPTION + 1]] != TIMESTAMP {
            return;
        }
        let before = [header[16], header[17], header[18], header[19]];
        let after = u32::from_be_bytes(before)
            .wrapping_add(more_ms as u32)
            .to_be_bytes();
        // SAFETY: a valid context, and four bytes to read; no packet pointer is
        // used across the calls.
        unsafe {
            let at = transport_offset.wrapping_add(VALUE);
            if bpf_skb_store_bytes(self.skb, at, after.as_ptr().cast(), 4, 0) == 0 {
                bpf_l4_csum_replace(
                    self.skb,
                    transport_offset.wrapping_add(CHECKSUM),
                    u64::from(u32::from_ne_bytes(before)),
                    u64::from(u32::from_ne_bytes(after)),
                    4,
                );
            }
        }
    }

    /// The packet's mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        self.field(|skb| skb.mark)
    }

    /// The packet's priority.
    #[inline(always)]
    pub fn priority(&self) -> u32 {
        self.field(|skb| skb.priority)
    }

    /// The VLAN tag kept beside the packet: protocol in the upper half, tag
    /// control information in the lower, in host order; 0 if there is none.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both are 16 bits wide in the sk_buff"
    )]
    pub fn vlan(&self) -> u32 {
        if self.field(|skb| skb.vlan_present) == 0 {
            return 0;
        }
        let protocol = self.field(|skb| skb.vlan_proto) as u16;
        let tci = self.field(|skb| skb.vlan_tci) as u16;
        (u32::from(u16::from_be(protocol)) << 16) | u32::from(tci)
    }

    /// Makes the headers linear if they are not. `false` if that was not the
    /// trouble, or cannot be helped.
    #[inline(always)]
    pub fn pull(&self) -> bool {
        let len = self.len();
        let want = if len < PULL_MAX { len } else { PULL_MAX };
        if self.packet().len() >= want as usize {
            return false;
        }
        // SAFETY: a valid context; no packet pointer is used across the call.
        unsafe { bpf_skb_pull_data(self.skb, want) == 0 }
    }

    /// The cookie of the socket that sent the packet; 0 if it has none here.
    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: a valid context.
        unsafe { bpf_get_socket_cookie(self.skb.cast()) }
    }

    /// The cgroup v2 id of the socket that sent the packet; 0 if it has none
    /// here.
    #[inline(always)]
    pub fn cgroup_id(&self) -> u64 {
        // SAFETY: a valid context.
        unsafe { bpf_skb_cgroup_id(self.skb) }
    }

    /// Whether a TCP socket of this host sent the packet.
    #[inline(always)]
    pub fn is_of_tcp_socket(&self) -> bool {
        // SAFETY: the verifier has both pointers checked before they are used.
        unsafe {
            let socket = self.field(|skb| skb.__bindgen_anon_2.sk);
            if socket.is_null() {
                return false;
            }
            let socket = bpf_sk_fullsock(socket);
            // A raw socket may be one for TCP.
            !socket.is_null() && (*socket).type_ == SOCK_STREAM && (*socket).protocol == IPPROTO_TCP
        }
    }

    /// The user whose socket sent the packet; none if it has no socket here.
    #[inline(always)]
    pub fn socket_uid(&self) -> Option<u32> {
        if self.socket_cookie() == 0 {
            return None;
        }
        // SAFETY: a valid context.
        Some(unsafe { bpf_get_socket_uid(self.skb) })
    }

    /// Copies the first `len` bytes of the frame to `to`. `false` if there are none,
    /// or more than `room`, or the packet is shorter.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `room` bytes.
    #[inline(always)]
    pub unsafe fn copy_frame(&self, to: *mut u8, room: u32, len: u32) -> bool {
        // The verifier must see the bounds of the very register that it is given. A
        // compiler that has looked at `len` before does so by a value made of it, or
        // keeps `len` on the stack meanwhile: those of 6.1 and 6.12 then know nothing.
        let beyond_first = known_anew(u64::from(len).wrapping_sub(1));
        if beyond_first >= u64::from(room) {
            return false;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below `room`, which is a u32"
        )]
        let len = (beyond_first + 1) as u32;
        // SAFETY: `to` has room for as many, as promised by the caller.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, to.cast(), len) == 0 }
    }

    /// Sends the packet to a device that does not exist: it vanishes, and TCP
    /// takes it for sent. Returns the program's return code.
    ///
    /// TCX knows no `TC_ACT_STOLEN`: it would let the packet pass
    /// (`tcx_action_code` in include/net/tcx.h).
    #[inline(always)]
    pub fn vanish(&self) -> i32 {
        redirect(0, 0)
    }

    /// Turns the packet round: it comes in on the device that it was about to
    /// leave by. Returns the program's return code.
    #[inline(always)]
    pub fn turn_round(&self) -> i32 {
        redirect(self.ifindex(), u64::from(BPF_F_INGRESS))
    }
}

/// Hides from the compiler what it knows about `number`, from here on.
#[inline(always)]
fn known_anew(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let out;
        // Not `pure`: it stays where it is, behind the calls before it.
        // SAFETY: its result is its operand.
        unsafe {
            core::arch::asm!("{0} = {0}", inlateout(reg) number => out, options(nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "return codes are 32 bits wide"
)]
fn redirect(ifindex: u32, flags: u64) -> i32 {
    // SAFETY: a helper that takes two numbers.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}
