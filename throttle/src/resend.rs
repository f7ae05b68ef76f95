//! How a deferred SYN gets out: the packet socket, and what is mended in the
//! frame before it leaves.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use etherparse::checksum::Sum16BitWords;
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
};
use throttle_common::record::{Deferred, FRAME_MAX};

use crate::{Error, Result};

#[expect(clippy::cast_possible_truncation, reason = "17, in a field of 16 bits")]
const AF_PACKET: libc::sa_family_t = libc::AF_PACKET as libc::sa_family_t;

/// The length of a socket address or option.
#[expect(clippy::cast_possible_truncation, reason = "they are a few bytes long")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

const MAC_ADDRESSES_LEN: usize = 12;
const VLAN_TAG_LEN: usize = 4;

/// The frame of a deferred SYN, and what it takes to send it as it would have
/// left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    network_offset: usize,
    transport_offset: usize,
    /// Index of the device.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
    vlan: u32,
}

impl Frame {
    /// The frame that a record carries. None if it carries none, or the record
    /// does not fit together.
    #[must_use]
    pub fn new(record: &Deferred) -> Option<Self> {
        let len = usize::try_from(record.frame_len).ok()?;
        let network_offset = usize::try_from(record.network_offset).ok()?;
        let transport_offset = usize::try_from(record.transport_offset).ok()?;
        let fits = len > 0
            && len <= FRAME_MAX
            && network_offset < transport_offset
            && transport_offset.checked_add(20)? <= len
            && (record.vlan == 0 || network_offset >= MAC_ADDRESSES_LEN + 2);
        fits.then(|| Self {
            bytes: Bytes::copy_from_slice(&record.frame[..len]),
            network_offset,
            transport_offset,
            ifindex: record.ifindex,
            mark: record.mark,
            priority: record.priority,
            vlan: record.vlan,
        })
    }

    /// The frame as it leaves after `waited_ms` milliseconds: its TCP timestamp
    /// moved on by the wait, so that the connection starts with the path's
    /// round-trip time and not with the wait; its TCP checksum complete, which
    /// at TC egress is often left to the device; its VLAN tag in the frame.
    #[must_use]
    pub fn mended(&self, waited_ms: u32) -> BytesMut {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        if self.can_be_summed() {
            if let Some(at) = self.timestamp_offset() {
                let value =
                    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                bytes[at..at + 4].copy_from_slice(&value.wrapping_add(waited_ms).to_be_bytes());
            }
            if let Some(checksum) = self.checksum(&bytes) {
                let at = self.transport_offset + 16;
                bytes[at..at + 2].copy_from_slice(&checksum);
            }
        }
        if self.vlan != 0 {
            let mut tagged = BytesMut::with_capacity(bytes.len() + VLAN_TAG_LEN);
            tagged.put_slice(&bytes[..MAC_ADDRESSES_LEN]);
            tagged.put_u32(self.vlan);
            tagged.put_slice(&bytes[MAC_ADDRESSES_LEN..]);
            bytes = tagged;
        }
        bytes
    }

    /// The protocol of the frame, for `sll_protocol`.
    fn protocol(&self, bytes: &[u8]) -> u16 {
        if self.network_offset == 0 {
            return if bytes.first().is_some_and(|first| first >> 4 == 6) {
                u16::try_from(libc::ETH_P_IPV6).unwrap_or(0)
            } else {
                u16::try_from(libc::ETH_P_IP).unwrap_or(0)
            };
        }
        match bytes.get(MAC_ADDRESSES_LEN..MAC_ADDRESSES_LEN + 2) {
            Some([high, low]) => u16::from_be_bytes([*high, *low]),
            _ => 0,
        }
    }

    /// Whether the TCP checksum follows from what is in the frame. A first
    /// fragment lacks the rest of the segment, and behind an IPv6 routing header
    /// the checksum is over another destination (RFC 8200, 8.1): these leave as
    /// they came.
    fn can_be_summed(&self) -> bool {
        const MORE_FRAGMENTS: u8 = 0x20;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        let ip = &self.bytes[self.network_offset..self.transport_offset];
        match (ip.first().map(|first| first >> 4), ip.get(6)) {
            (Some(4), Some(flags)) => flags & MORE_FRAGMENTS == 0,
            (Some(6), Some(&next)) => {
                let (mut next, mut at) = (next, 40);
                while let Some(&[following, len]) = ip.get(at..at + 2) {
                    if next == ROUTING || next == FRAGMENT {
                        return false;
                    }
                    let units = usize::from(len);
                    at += if next == AUTHENTICATION {
                        (units + 2) * 4
                    } else {
                        (units + 1) * 8
                    };
                    next = following;
                }
                true
            }
            _ => false,
        }
    }

    /// Where the value of the TCP timestamp option is (RFC 7323, 3.2).
    fn timestamp_offset(&self) -> Option<usize> {
        const END: u8 = 0;
        const NO_OPERATION: u8 = 1;
        const TIMESTAMP: u8 = 8;
        let header_len = usize::from(self.bytes[self.transport_offset + 12] >> 4) * 4;
        let end = (self.transport_offset + header_len).min(self.bytes.len());
        let mut at = self.transport_offset + 20;
        while at < end {
            match self.bytes[at] {
                END => return None,
                NO_OPERATION => at += 1,
                kind => {
                    let len = usize::from(*self.bytes.get(at + 1)?);
                    if len < 2 || at + len > end {
                        return None;
                    }
                    if kind == TIMESTAMP && len == 10 {
                        return Some(at + 2);
                    }
                    at += len;
                }
            }
        }
        None
    }

    /// The TCP checksum of the frame `bytes`, in network order. None if the IP
    /// packet is not whole.
    fn checksum(&self, bytes: &[u8]) -> Option<[u8; 2]> {
        const TCP: u8 = 6;
        let ip = &bytes[self.network_offset..];
        let be16 = |at: usize| {
            Some(usize::from(u16::from_be_bytes([
                *ip.get(at)?,
                *ip.get(at + 1)?,
            ])))
        };
        let (packet_len, pseudo) = match ip.first()? >> 4 {
            4 => (
                be16(2)?,
                Sum16BitWords::new()
                    .add_4bytes(ip.get(12..16)?.try_into().ok()?)
                    .add_4bytes(ip.get(16..20)?.try_into().ok()?),
            ),
            6 => (
                40 + be16(4)?,
                Sum16BitWords::new()
                    .add_16bytes(ip.get(8..24)?.try_into().ok()?)
                    .add_16bytes(ip.get(24..40)?.try_into().ok()?),
            ),
            _ => return None,
        };
        let segment = bytes.get(self.transport_offset..self.network_offset + packet_len)?;
        let len = u16::try_from(segment.len()).ok()?;
        let checksum = pseudo
            .add_2bytes([0, TCP])
            .add_2bytes(len.to_be_bytes())
            .add_slice(segment.get(..16)?)
            .add_slice(segment.get(18..)?)
            .ones_complement();
        // The sum was taken of the words as they lie in memory.
        Some(checksum.to_ne_bytes())
    }
}

/// The socket through which deferred SYNs get out. The programs know its
/// packets by its cookie.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    cookie: u64,
    mark: u32,
    priority: u32,
}

impl PacketSocket {
    /// Opens it, in the caller's network namespace. It receives nothing.
    ///
    /// # Errors
    ///
    /// When the caller may not.
    pub fn open() -> Result<Self> {
        let what = "open a packet socket";
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(|error| Error::failed(what, error))?;
        let cookie = cookie_of(&socket).map_err(|error| Error::failed(what, error))?;
        Ok(Self {
            socket,
            cookie,
            mark: 0,
            priority: 0,
        })
    }

    /// What the programs know it by.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Sends the frame, as after a wait of `waited_ms` milliseconds. When this
    /// returns, the programs have decided about it.
    ///
    /// # Errors
    ///
    /// When the device is gone or down, or has no room.
    pub fn send(&mut self, frame: &Frame, waited_ms: u32) -> io::Result<()> {
        if self.mark != frame.mark {
            setsockopt(&self.socket, sockopt::Mark, &frame.mark)?;
            self.mark = frame.mark;
        }
        if self.priority != frame.priority {
            setsockopt(
                &self.socket,
                sockopt::Priority,
                &frame.priority.cast_signed(),
            )?;
            self.priority = frame.priority;
        }
        let bytes = frame.mended(waited_ms);
        // SAFETY: sockaddr_ll is made of numbers; all zero is a value of it.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = AF_PACKET;
        to.sll_protocol = frame.protocol(&bytes).to_be();
        to.sll_ifindex = i32::try_from(frame.ifindex).unwrap_or(i32::MAX);
        // SAFETY: both pointers are valid for the lengths that go with them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                length_of::<libc::sockaddr_ll>(),
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// The cookie of a socket (`SO_COOKIE`, since Linux 4.12), which no other
/// socket of this machine has had since it booted.
fn cookie_of(socket: &OwnedFd) -> io::Result<u64> {
    let (mut cookie, mut len) = (0u64, length_of::<u64>());
    // SAFETY: both pointers are valid for the lengths that go with them.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
    use proptest::prelude::*;

    const TSVAL: u32 = u32::MAX - 1_000;

    fn record(bytes: &[u8], network: u32, transport: u32, vlan: u32) -> Deferred {
        // SAFETY: made of numbers; all zero is a value of it.
        let mut record: Deferred = unsafe { std::mem::zeroed() };
        record.frame[..bytes.len()].copy_from_slice(bytes);
        record.frame_len = u32::try_from(bytes.len()).unwrap();
        (record.network_offset, record.transport_offset, record.vlan) = (network, transport, vlan);
        record
    }

    /// A SYN as Linux sends it, its checksum left to the device.
    fn syn(v6: bool) -> (Vec<u8>, u32, u32) {
        let options = [
            TcpOptionElement::MaximumSegmentSize(1460),
            TcpOptionElement::SelectiveAcknowledgementPermitted,
            TcpOptionElement::Timestamp(TSVAL, 0),
            TcpOptionElement::Noop,
            TcpOptionElement::WindowScale(7),
        ];
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = if v6 {
            ethernet.ipv6([1; 16], [2; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let builder = builder
            .tcp(40_000, 80, 7, 64_240)
            .syn()
            .options(&options)
            .unwrap();
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &[]).unwrap();
        let transport = 14 + if v6 { 40 } else { 20 };
        bytes[transport + 16] ^= 0x5a;
        (bytes, 14, u32::try_from(transport).unwrap())
    }

    fn check(bytes: &[u8], waited_ms: u32) {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            panic!("no TCP")
        };
        let header = tcp.to_header();
        let checksum = match packet.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => {
                header.calc_checksum_ipv4(&ip.header().to_header(), &[])
            }
            etherparse::NetSlice::Ipv6(ip) => {
                header.calc_checksum_ipv6(&ip.header().to_header(), &[])
            }
            etherparse::NetSlice::Arp(_) => panic!("no IP"),
        };
        assert_eq!(header.checksum, checksum.unwrap());
        let stamp = header.options_iterator().flatten().find_map(|option| {
            if let TcpOptionElement::Timestamp(value, _) = option {
                Some(value)
            } else {
                None
            }
        });
        assert_eq!(stamp, Some(TSVAL.wrapping_add(waited_ms)));
    }

    #[test]
    fn a_mended_syn_has_a_right_checksum_and_a_timestamp_of_now() {
        for v6 in [false, true] {
            let (bytes, network, transport) = syn(v6);
            let frame = Frame::new(&record(&bytes, network, transport, 0)).unwrap();
            for waited_ms in [0, 1, 3_000, 60_000] {
                check(&frame.mended(waited_ms), waited_ms);
            }
        }
    }

    #[test]
    fn a_tag_beside_the_frame_gets_into_it() {
        let (bytes, network, transport) = syn(false);
        let frame = Frame::new(&record(&bytes, network, transport, 0x8100_0007)).unwrap();
        let mended = frame.mended(5);
        assert_eq!(mended[12..16], [0x81, 0x00, 0x00, 0x07]);
        assert_eq!(frame.protocol(&mended), 0x8100);
        check(&mended, 5);
    }

    #[test]
    fn a_fragment_and_a_routed_packet_leave_as_they_came() {
        let (mut fragment, network, transport) = syn(false);
        fragment[14 + 6] |= 0x20;
        let frame = Frame::new(&record(&fragment, network, transport, 0)).unwrap();
        assert_eq!(frame.mended(5), fragment);
        let (plain, ..) = syn(true);
        for (kind, leaves_alone) in [(0, false), (60, false), (43, true), (44, true)] {
            let mut routed = plain.clone();
            routed[14 + 6] = kind;
            routed[14 + 5] += 8;
            routed.splice(54..54, [6, 0, 0, 0, 0, 0, 0, 0]);
            let frame = Frame::new(&record(&routed, 14, 62, 0)).unwrap();
            assert_eq!(frame.mended(5) == routed, leaves_alone, "{kind}");
        }
    }

    #[test]
    fn padding_behind_the_packet_is_not_summed() {
        let (mut bytes, network, transport) = syn(false);
        bytes.extend_from_slice(&[0xff; 7]);
        let frame = Frame::new(&record(&bytes, network, transport, 0)).unwrap();
        let mended = frame.mended(5);
        check(&mended[..mended.len() - 7], 5);
    }

    #[test]
    fn a_record_that_does_not_fit_together_is_refused() {
        let (bytes, network, transport) = syn(false);
        assert!(Frame::new(&record(&bytes, network, transport, 0)).is_some());
        assert!(Frame::new(&record(&[], network, transport, 0)).is_none());
        assert!(Frame::new(&record(&bytes, transport, network, 0)).is_none());
        assert!(Frame::new(&record(&bytes, 0, 250, 0)).is_none());
        assert!(Frame::new(&record(&bytes, 0, 20, 0x8100_0007)).is_none());
        let mut long = record(&bytes, network, transport, 0);
        long.frame_len = 257;
        assert!(Frame::new(&long).is_none());
    }

    #[test]
    fn a_packet_that_ends_within_its_tcp_header_leaves_as_it_came() {
        for v6 in [false, true] {
            let (mut bytes, network, transport) = syn(v6);
            for len in 0..18 {
                let of_packet = u8::try_from(transport - 14 + len - if v6 { 40 } else { 0 });
                bytes[14 + if v6 { 5 } else { 3 }] = of_packet.unwrap();
                let frame = Frame::new(&record(&bytes, network, transport, 0)).unwrap();
                let transport = usize::try_from(transport).unwrap();
                let mended = frame.mended(0);
                assert_eq!(
                    mended[transport..transport + 18],
                    bytes[transport..transport + 18]
                );
            }
        }
    }

    #[test]
    fn odd_options_are_left_alone() {
        let (mut bytes, network, transport) = syn(false);
        let at = usize::try_from(transport).unwrap() + 20;
        for (kind, len) in [(3, 0), (3, 1), (8, 200), (8, 9), (0, 0)] {
            (bytes[at], bytes[at + 1]) = (kind, len);
            let frame = Frame::new(&record(&bytes, network, transport, 0)).unwrap();
            assert_eq!(frame.timestamp_offset(), None, "{kind} {len}");
            let _ = frame.mended(5);
        }
    }

    /// Offsets and lengths as they are, a little off, or anything.
    fn near(right: u32) -> impl Strategy<Value = u32> {
        prop_oneof![
            4 => Just(right),
            2 => (0u32..16).prop_map(move |off| right.wrapping_add(off).wrapping_sub(8)),
            1 => 0u32..300,
            1 => any::<u32>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn any_record_is_refused_or_mended_in_its_checksum_and_timestamp_alone(
            v6 in any::<bool>(),
            damage in prop::collection::vec((0usize..FRAME_MAX, any::<u8>()), 0..12),
            (len, network, transport) in (near(90), near(14), near(34)),
            vlan in prop_oneof![Just(0u32), any::<u32>()],
            waited_ms in any::<u32>(),
        ) {
            let (bytes, ..) = syn(v6);
            let mut record = record(&bytes, network, transport, vlan);
            record.frame_len = len;
            for (at, byte) in damage {
                record.frame[at] = byte;
            }
            let Some(frame) = Frame::new(&record) else {
                return Ok(());
            };
            let mended = frame.mended(waited_ms);
            let _ = frame.protocol(&mended);
            let len = usize::try_from(len).unwrap();
            let transport = usize::try_from(transport).unwrap();
            let tag = if vlan == 0 { 0 } else { VLAN_TAG_LEN };
            prop_assert_eq!(mended.len(), len + tag);
            let mut untagged = mended.to_vec();
            untagged.drain(MAC_ADDRESSES_LEN..MAC_ADDRESSES_LEN + tag);
            let timestamp = frame.timestamp_offset();
            if let Some(at) = timestamp {
                prop_assert!(at >= transport + 20 && at + 4 <= len);
            }
            for (at, (before, after)) in record.frame[..len].iter().zip(&untagged).enumerate() {
                let is_checksum = (transport + 16..transport + 18).contains(&at);
                let is_timestamp = timestamp.is_some_and(|from| (from..from + 4).contains(&at));
                prop_assert!(before == after || is_checksum || is_timestamp, "byte {}", at);
            }
        }
    }
}
