//! What a captured frame says. Decoded with a library of its own, so that the
//! project's parser does not vouch for itself.

use etherparse::{
    EtherType, LinkExtSlice, NetSlice, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice,
};
use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
};

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub protocol: u16,
    /// Priority, drop eligibility and VLAN id, as in the frame.
    pub tci: u16,
}

impl Tag {
    /// The VLAN id.
    pub fn id(self) -> u16 {
        self.tci & 0x0fff
    }
}

/// The state of a TCP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It is right.
    Good,
    /// It is the hardware's to complete; what is there is no checksum yet.
    Pending,
    /// It is wrong.
    Wrong,
    /// Not all of the segment was captured.
    Unknown,
}

/// A TCP segment as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When it was captured, ns of `CLOCK_REALTIME`.
    pub at_ns: u64,
    /// Where it comes from.
    pub src: SocketAddr,
    /// Where it goes to.
    pub dst: SocketAddr,
    /// Sequence number; of a SYN, the ISN.
    pub seq: u32,
    /// Acknowledgement number, if there is one.
    pub ack: Option<u32>,
    /// SYN flag.
    pub syn: bool,
    /// RST flag.
    pub rst: bool,
    /// FIN flag.
    pub fin: bool,
    /// ECE and CWR flags.
    pub ecn: (bool, bool),
    /// Window, unscaled.
    pub window: u16,
    /// Value and echo of the timestamp option.
    pub timestamps: Option<(u32, u32)>,
    /// Maximum segment size option.
    pub mss: Option<u16>,
    /// The options as they are.
    pub options: Vec<u8>,
    /// Bytes of data.
    pub payload: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN bits.
    pub tos: u8,
    /// VLAN tags, the outermost first, wherever they were kept.
    pub tags: Vec<Tag>,
    /// Source and destination MAC addresses, unless from an L3 device.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// Whether the TCP checksum is right.
    pub checksum: Checksum,
    /// The packet from its IP header on.
    pub packet: Vec<u8>,
}

impl Segment {
    /// A SYN without ACK: an attempt.
    pub fn is_attempt(&self) -> bool {
        self.syn && self.ack.is_none()
    }

    /// The VLAN ids, the outermost first.
    pub fn vlan_ids(&self) -> Vec<u16> {
        self.tags.iter().map(|tag| tag.id()).collect()
    }

    /// The value of the timestamp option.
    pub fn tsval(&self) -> Option<u32> {
        self.timestamps.map(|(value, _)| value)
    }
}

/// A SYN without ACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syn {
    /// Whether it is the first with this flow and ISN, not a retransmission.
    pub first: bool,
    /// What it says.
    pub segment: Segment,
}

impl Syn {
    /// The initial sequence number.
    pub fn isn(&self) -> u32 {
        self.segment.seq
    }
}

impl Deref for Syn {
    type Target = Segment;
    fn deref(&self) -> &Segment {
        &self.segment
    }
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// When it was captured, ns of `CLOCK_REALTIME`.
    pub at_ns: u64,
    /// Whose message it is.
    pub src: IpAddr,
    /// For whom.
    pub dst: IpAddr,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// TCP.
    Tcp(Box<Segment>),
    /// ICMP.
    Icmp(Icmp),
    /// Anything else: ARP, fragments, what could not be decoded.
    Other,
}

/// What the kernel says beside a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    pub(crate) at_ns: u64,
    pub(crate) ethernet: bool,
    pub(crate) tag: Option<Tag>,
    pub(crate) checksum_pending: bool,
    pub(crate) cut: bool,
}

/// Decodes a frame.
pub(crate) fn decode(frame: &[u8], beside: Beside) -> Content {
    let sliced = if beside.ethernet {
        SlicedPacket::from_ethernet(frame)
    } else {
        SlicedPacket::from_ip(frame)
    };
    let Ok(sliced) = sliced else {
        return Content::Other;
    };
    let (src, dst, ttl, tos, at): (IpAddr, IpAddr, u8, u8, usize) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let tos = header.dcp().value() << 2 | header.ecn().value();
            let (src, dst) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (src, dst, header.ttl(), tos, offset(frame, header.slice()))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (src, dst) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            let at = offset(frame, header.slice());
            (src, dst, header.hop_limit(), header.traffic_class(), at)
        }
        Some(NetSlice::Arp(_)) | None => return Content::Other,
    };
    let tcp = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp,
        Some(TransportSlice::Icmpv4(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            return Content::Icmp(Icmp {
                at_ns: beside.at_ns,
                src,
                dst,
                kind,
                code,
            });
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            return Content::Icmp(Icmp {
                at_ns: beside.at_ns,
                src,
                dst,
                kind,
                code,
            });
        }
        Some(TransportSlice::Udp(_) | TransportSlice::Igmp(_)) | None => return Content::Other,
    };
    let mut tags: Vec<Tag> = beside.tag.into_iter().collect();
    let mut protocol = u16::from_be_bytes([frame[12], frame[13]]);
    for extension in &sliced.link_exts {
        if let LinkExtSlice::Vlan(vlan) = extension {
            let [high, low] = [vlan.slice()[0], vlan.slice()[1]];
            tags.push(Tag {
                protocol,
                tci: u16::from_be_bytes([high, low]),
            });
            let EtherType(inner) = vlan.ether_type();
            protocol = inner;
        }
    }
    let mut timestamps = None;
    let mut mss = None;
    for option in tcp.options_iterator().flatten() {
        match option {
            TcpOptionElement::Timestamp(value, echo) => timestamps = Some((value, echo)),
            TcpOptionElement::MaximumSegmentSize(size) => mss = Some(size),
            TcpOptionElement::Noop
            | TcpOptionElement::WindowScale(_)
            | TcpOptionElement::SelectiveAcknowledgementPermitted
            | TcpOptionElement::SelectiveAcknowledgement(..) => {}
        }
    }
    Content::Tcp(Box::new(Segment {
        at_ns: beside.at_ns,
        src: SocketAddr::new(src, tcp.source_port()),
        dst: SocketAddr::new(dst, tcp.destination_port()),
        seq: tcp.sequence_number(),
        ack: tcp.ack().then(|| tcp.acknowledgment_number()),
        syn: tcp.syn(),
        rst: tcp.rst(),
        fin: tcp.fin(),
        ecn: (tcp.ece(), tcp.cwr()),
        window: tcp.window_size(),
        timestamps,
        mss,
        options: tcp.options().to_vec(),
        payload: tcp.payload().len(),
        ttl,
        tos,
        tags,
        macs: beside
            .ethernet
            .then(|| (mac(&frame[6..12]), mac(&frame[..6]))),
        checksum: checksum(tcp, src, dst, beside),
        packet: frame[at..].to_vec(),
    }))
}

/// Where `part`, a slice of `whole`, begins.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

fn mac(bytes: &[u8]) -> [u8; 6] {
    bytes.try_into().unwrap()
}

fn checksum(tcp: &TcpSlice<'_>, src: IpAddr, dst: IpAddr, beside: Beside) -> Checksum {
    if beside.checksum_pending {
        return Checksum::Pending;
    }
    if beside.cut {
        return Checksum::Unknown;
    }
    let right = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            tcp.calc_checksum_ipv4(src.octets(), dst.octets()).ok()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            tcp.calc_checksum_ipv6(src.octets(), dst.octets()).ok()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    };
    if right == Some(tcp.checksum()) {
        Checksum::Good
    } else {
        Checksum::Wrong
    }
}
