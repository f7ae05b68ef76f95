//! Forged answers, as somebody on the way could send them.

use crate::{frame::Syn, netns::Namespace, sys};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};
use nix::libc;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
};

/// Sends frames of its own making from a device.
#[derive(Debug)]
pub struct Forger {
    socket: OwnedFd,
    ifindex: u32,
}

/// An ICMP error. Type and code are those of the family of the attempt it is
/// sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Destination unreachable: no way to the host.
    HostUnreachable,
    /// Destination unreachable: forbidden.
    Prohibited,
    /// Destination unreachable: port.
    PortUnreachable,
    /// The hop limit was reached.
    TimeExceeded,
    /// Something is wrong with the header.
    ParameterProblem,
    /// Not the end of an attempt: the path wants smaller packets.
    TooBig,
    /// Not an error at all.
    EchoReply,
}

impl IcmpError {
    /// Every one that ends an attempt.
    pub const ENDING: [Self; 5] = [
        Self::HostUnreachable,
        Self::Prohibited,
        Self::PortUnreachable,
        Self::TimeExceeded,
        Self::ParameterProblem,
    ];

    /// Type and code.
    fn number(self, v4: bool) -> (u8, u8) {
        match (self, v4) {
            (Self::HostUnreachable, true) => (3, 1),
            (Self::HostUnreachable, false) => (1, 0),
            (Self::Prohibited, true) => (3, 13),
            (Self::Prohibited, false) => (1, 1),
            (Self::PortUnreachable, true) => (3, 3),
            (Self::PortUnreachable, false) => (1, 4),
            (Self::TimeExceeded, true) => (11, 0),
            (Self::TimeExceeded, false) => (3, 0),
            (Self::ParameterProblem, true) => (12, 0),
            (Self::ParameterProblem, false) => (4, 0),
            (Self::TooBig, true) => (3, 4),
            (Self::TooBig, false) => (2, 0),
            (Self::EchoReply, true) => (0, 0),
            (Self::EchoReply, false) => (129, 0),
        }
    }

    /// The four bytes after the checksum: the next hop's MTU, if it is about
    /// that.
    fn rest(self) -> [u8; 4] {
        if self == Self::TooBig {
            1280u32.to_be_bytes()
        } else {
            [0; 4]
        }
    }
}

impl Forger {
    /// A forger that sends by `device`.
    ///
    /// # Panics
    /// When there is no such device, or without CAP_NET_RAW.
    #[track_caller]
    pub fn new(namespace: &Namespace, device: &str) -> Self {
        let ifindex = namespace.ifindex(device);
        let socket = namespace
            .run(sys::sending_socket)
            .unwrap_or_else(|e| panic!("open a packet socket: {e}"));
        Self { socket, ifindex }
    }

    /// An answer to this attempt, right in everything unless told otherwise.
    pub fn answer<'a>(&'a self, syn: &'a Syn) -> Answer<'a> {
        Answer {
            forger: self,
            syn,
            isn: syn.isn(),
            source: None,
            quote: usize::MAX,
        }
    }

    /// Sends a frame as it is; `protocol` is its EtherType.
    ///
    /// # Panics
    /// When the device does not take it.
    #[track_caller]
    pub fn send(&self, protocol: u16, frame: &[u8]) {
        sys::send_frame(self.socket.as_fd(), self.ifindex, protocol, frame)
            .unwrap_or_else(|e| panic!("send a forged frame: {e}"));
    }

    /// Sends an IP packet to where `syn` came from.
    #[track_caller]
    fn send_packet(&self, syn: &Syn, packet: &[u8]) {
        let protocol = if syn.dst.is_ipv4() {
            libc::ETH_P_IP
        } else {
            libc::ETH_P_IPV6
        } as u16;
        let mut frame = Vec::with_capacity(14 + packet.len());
        if let Some((theirs, ours)) = syn.macs {
            frame.extend(theirs);
            frame.extend(ours);
            frame.extend(protocol.to_be_bytes());
        }
        frame.extend(packet);
        self.send(protocol, &frame);
    }
}

/// A forged answer, not yet sent.
#[derive(Clone, Copy, Debug)]
#[must_use = "an answer is sent by saying which kind it is"]
pub struct Answer<'a> {
    forger: &'a Forger,
    syn: &'a Syn,
    isn: u32,
    source: Option<IpAddr>,
    quote: usize,
}

impl Answer<'_> {
    /// As somebody who does not know the initial sequence number.
    pub fn guessing_the_isn(mut self) -> Self {
        self.isn ^= 0x5555_5555;
        self
    }

    /// As if the initial sequence number were this one.
    pub fn to_isn(mut self, isn: u32) -> Self {
        self.isn = isn;
        self
    }

    /// From this address, not from the destination.
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// An ICMP error that quotes only this much of the TCP header.
    pub fn quoting(mut self, bytes: usize) -> Self {
        self.quote = bytes;
        self
    }

    /// Sends SYN-ACK.
    ///
    /// # Panics
    /// When the device does not take it.
    #[track_caller]
    pub fn syn_ack(self) {
        self.tcp(true, false, Some(self.isn.wrapping_add(1)));
    }

    /// Sends RST with ACK.
    ///
    /// # Panics
    /// When the device does not take it.
    #[track_caller]
    pub fn rst(self) {
        self.tcp(false, true, Some(self.isn.wrapping_add(1)));
    }

    /// Sends RST without ACK, which no attempt may believe.
    ///
    /// # Panics
    /// When the device does not take it.
    #[track_caller]
    pub fn rst_without_ack(self) {
        self.tcp(false, true, None);
    }

    #[track_caller]
    fn tcp(self, syn: bool, rst: bool, ack: Option<u32>) {
        let mut header = etherparse::TcpHeader::new(
            self.syn.dst.port(),
            self.syn.src.port(),
            if ack.is_some() {
                0x1234_5678
            } else {
                self.isn.wrapping_add(1)
            },
            64_240,
        );
        header.syn = syn;
        header.rst = rst;
        header.ack = ack.is_some();
        header.acknowledgment_number = ack.unwrap_or_default();
        let builder = PacketBuilder::ip(self.ip_headers()).tcp_header(header);
        let mut packet = Vec::new();
        builder.write(&mut packet, &[]).unwrap();
        self.forger.send_packet(self.syn, &packet);
    }

    /// Sends an ICMP error that quotes the attempt.
    ///
    /// # Panics
    /// When the device does not take it.
    #[track_caller]
    pub fn icmp(self, error: IcmpError) {
        let v4 = self.syn.dst.is_ipv4();
        let (kind, code) = error.number(v4);
        let builder = PacketBuilder::ip(self.ip_headers());
        let builder = |quote: &[u8]| {
            let mut packet = Vec::new();
            if v4 {
                builder
                    .icmpv4_raw(kind, code, error.rest())
                    .write(&mut packet, quote)
                    .unwrap();
            } else {
                builder
                    .icmpv6_raw(kind, code, error.rest())
                    .write(&mut packet, quote)
                    .unwrap();
            }
            packet
        };
        let packet = builder(&self.quoted());
        self.forger.send_packet(self.syn, &packet);
    }

    /// The attempt as an ICMP error quotes it.
    fn quoted(&self) -> Vec<u8> {
        let mut quote = self.syn.packet.clone();
        let tcp = tcp_offset(&quote);
        quote[tcp + 4..tcp + 8].copy_from_slice(&self.isn.to_be_bytes());
        quote.truncate(tcp.saturating_add(self.quote));
        quote
    }

    fn ip_headers(&self) -> IpHeaders {
        let source = self.source.unwrap_or(self.syn.dst.ip());
        match (source, self.syn.src.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("an answer to {} cannot come from {source}", self.syn.src)
            }
        }
    }
}

/// Protocol and length are filled in by the packet builder.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr) -> IpHeaders {
    let (from, to) = (source.octets(), destination.octets());
    IpHeaders::Ipv4(
        Ipv4Header::new(0, 64, IpNumber::TCP, from, to).unwrap(),
        etherparse::Ipv4Extensions::default(),
    )
}

/// See [`ipv4`].
fn ipv6(source: Ipv6Addr, destination: Ipv6Addr) -> IpHeaders {
    let header = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: 0,
        next_header: IpNumber::TCP,
        hop_limit: 64,
        source: source.octets(),
        destination: destination.octets(),
    };
    IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
}

/// Where the TCP header begins; the lab's clients send no extension headers.
fn tcp_offset(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 {
        usize::from(packet[0] & 0x0f) * 4
    } else {
        40
    }
}
