//! What a packet says.
//!
//! The parser reads through [`Packet`], so the same code runs over a slice on
//! the host and over the packet itself in the kernel. It never reads past what
//! is there, and it says [`Headers::Unparsed`] rather than guess.

use crate::flow::FlowKey;

/// Bytes of a packet, at least from the start of its frame.
pub trait Packet {
    /// The `N` bytes at `offset`, if all of them are there. `N` is at most 40.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Packet for [u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// How the frames of a device start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// With an Ethernet header.
    Ethernet,
    /// With the IP header (tun, wireguard, ipip).
    Ip,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

/// TCP, or the ICMP of the packet's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
}

/// Where the headers of a packet are. Offsets in bytes from the frame's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The IP version.
    pub family: Family,
    /// What the IP packet carries.
    pub transport: Transport,
    /// Where the IP header begins.
    pub network_offset: u32,
    /// Where the TCP or ICMP header begins.
    pub transport_offset: u32,
    /// Where the IP packet ends, by its own length field; [`UNKNOWN_END`] if that
    /// is 0.
    pub end: u32,
}

/// What the headers of a packet come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headers {
    /// TCP or ICMP.
    Found(Layout),
    /// Something that can neither be an attempt nor end one.
    Other,
    /// Cut short, malformed, or nested too deep.
    Unparsed,
}

/// The end of a packet that is too large for its length field (BIG TCP: an
/// aggregate of up to 512 KiB before it is cut; jumbograms, RFC 2675). No SYN, no
/// answer and no ICMP error is one.
pub const UNKNOWN_END: u32 = u32::MAX;

const ETHERNET_LEN: u32 = 14;
const ETHERTYPE_OFFSET: u32 = 12;
const VLAN_TAG_LEN: u32 = 4;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// IEEE 802.1Q.
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
/// IEEE 802.1ad, the outer tag of QinQ.
const ETHERTYPE_QINQ: [u8; 2] = [0x88, 0xa8];

const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;
const TCP_LEN: u32 = 20;
const ICMP_LEN: u32 = 8;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;

/// IPv6 extension headers that are walked: RFC 8200 (4.1) names four that may
/// come before TCP, one of them twice, and AH.
const EXTENSIONS_MAX: usize = 6;

const TCP_FLAG_SYN: u8 = 0x02;
const TCP_FLAG_RST: u8 = 0x04;
const TCP_FLAG_ACK: u8 = 0x10;

/// Finds the headers of a frame.
#[inline(always)]
pub fn headers<P: Packet + ?Sized>(packet: &P, link: Link) -> Headers {
    match link {
        Link::Ip => {
            let Some([first]) = packet.load::<1>(0) else {
                return Headers::Unparsed;
            };
            match first >> 4 {
                4 => ipv4(packet, 0, true),
                6 => ipv6(packet, 0, true),
                _ => Headers::Other,
            }
        }
        Link::Ethernet => {
            let Some(mut ethertype) = packet.load::<2>(ETHERTYPE_OFFSET) else {
                return Headers::Unparsed;
            };
            let mut offset = ETHERNET_LEN;
            for _ in 0..2 {
                if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
                    break;
                }
                let Some([_, _, high, low]) = packet.load::<4>(offset) else {
                    return Headers::Unparsed;
                };
                ethertype = [high, low];
                offset += VLAN_TAG_LEN;
            }
            match ethertype {
                ETHERTYPE_IPV4 => ipv4(packet, offset, true),
                ETHERTYPE_IPV6 => ipv6(packet, offset, true),
                // A third tag.
                ETHERTYPE_VLAN | ETHERTYPE_QINQ => Headers::Unparsed,
                _ => Headers::Other,
            }
        }
    }
}

/// `whole` is false for a packet that is only quoted: its length field speaks of
/// bytes that were not quoted.
#[inline(always)]
fn ipv4<P: Packet + ?Sized>(packet: &P, offset: u32, whole: bool) -> Headers {
    let Some(ip) = packet.load::<20>(offset) else {
        return Headers::Unparsed;
    };
    let transport = match ip[9] {
        IPPROTO_TCP => Transport::Tcp,
        IPPROTO_ICMP => Transport::Icmp,
        _ => return Headers::Other,
    };
    let header_len = u32::from(ip[0] & 0x0f) * 4;
    let total_len = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    if ip[0] >> 4 != 4
        || header_len < IPV4_LEN
        || (whole && total_len != 0 && total_len < header_len)
    {
        return Headers::Unparsed;
    }
    // Only the first fragment carries the ports.
    if u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
        return Headers::Other;
    }
    Headers::Found(Layout {
        family: Family::V4,
        transport,
        network_offset: offset,
        transport_offset: offset + header_len,
        end: if total_len == 0 {
            UNKNOWN_END
        } else {
            offset + total_len
        },
    })
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized>(packet: &P, offset: u32, whole: bool) -> Headers {
    let Some(ip) = packet.load::<8>(offset) else {
        return Headers::Unparsed;
    };
    if ip[0] >> 4 != 6 {
        return Headers::Unparsed;
    }
    let payload_len = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    let end = if payload_len == 0 {
        UNKNOWN_END
    } else {
        offset + IPV6_LEN + payload_len
    };
    let mut next = ip[6];
    let mut at = offset + IPV6_LEN;
    for _ in 0..=EXTENSIONS_MAX {
        let transport = match next {
            IPPROTO_TCP => Transport::Tcp,
            IPPROTO_ICMPV6 => Transport::Icmp,
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_AH | IPPROTO_FRAGMENT => {
                let Some(extension) = packet.load::<4>(at) else {
                    return Headers::Unparsed;
                };
                let len = match next {
                    IPPROTO_FRAGMENT => {
                        if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                            return Headers::Other;
                        }
                        8
                    }
                    // RFC 4302: in units of four bytes, less two.
                    IPPROTO_AH => (u32::from(extension[1]) + 2) * 4,
                    _ => (u32::from(extension[1]) + 1) * 8,
                };
                next = extension[0];
                at += len;
                continue;
            }
            _ => return Headers::Other,
        };
        if whole && at > end {
            return Headers::Unparsed;
        }
        return Headers::Found(Layout {
            family: Family::V6,
            transport,
            network_offset: offset,
            transport_offset: at,
            end,
        });
    }
    Headers::Unparsed
}

/// What a packet is to the throttle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SYN set, ACK clear.
    Syn,
    /// SYN and ACK set, RST clear.
    SynAck,
    /// RST and ACK set. A RST without ACK ends no attempt (RFC 9293, 3.10.7.3).
    Reset,
    /// An ICMP error that may quote an attempt.
    IcmpError,
    /// Nothing of these.
    Other,
    /// It may be one of these, but it is cut short or malformed.
    Unparsed,
}

/// Tells what kind of packet it is, from the flags or the ICMP type alone. This
/// is all that most packets ever cost.
#[inline(always)]
pub fn kind<P: Packet + ?Sized>(packet: &P, layout: &Layout) -> Kind {
    match layout.transport {
        Transport::Tcp => {
            // What lies behind the packet's end is padding, not flags: a first
            // fragment may end before them.
            if layout.transport_offset + 14 > layout.end {
                return Kind::Unparsed;
            }
            let Some([flags]) = packet.load::<1>(layout.transport_offset + 13) else {
                return Kind::Unparsed;
            };
            if flags & TCP_FLAG_SYN != 0 && flags & TCP_FLAG_ACK == 0 {
                Kind::Syn
            } else if flags & (TCP_FLAG_RST | TCP_FLAG_ACK) == TCP_FLAG_RST | TCP_FLAG_ACK {
                Kind::Reset
            } else if flags & TCP_FLAG_SYN != 0 && flags & TCP_FLAG_RST == 0 {
                Kind::SynAck
            } else {
                Kind::Other
            }
        }
        Transport::Icmp => {
            if layout.transport_offset + 2 > layout.end {
                return Kind::Unparsed;
            }
            let Some(icmp) = packet.load::<2>(layout.transport_offset) else {
                return Kind::Unparsed;
            };
            // The errors that end a connect in SYN_SENT: tcp_v4_err in
            // net/ipv4/tcp_ipv4.c, tcp_v6_err in net/ipv6/tcp_ipv6.c.
            let is_error = match (layout.family, icmp) {
                // Fragmentation needed is path MTU discovery, and of fragments
                // that were never whole the kernel makes nothing (`icmp_unreach`
                // in net/ipv4/icmp.c).
                (Family::V4, [3, 4] | [11, 1]) => false,
                (Family::V4, [3 | 11 | 12, _]) | (Family::V6, [1 | 3 | 4, _]) => true,
                (Family::V4 | Family::V6, _) => false,
            };
            if is_error {
                Kind::IcmpError
            } else {
                Kind::Other
            }
        }
    }
}

/// A SYN: the attempt that it begins or repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syn {
    /// Addresses and ports.
    pub key: FlowKey,
    /// Initial sequence number.
    pub isn: u32,
    /// Bytes of data that it carries.
    pub data_len: u32,
}

/// A SYN-ACK or RST: the attempt that it answers, seen from its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Addresses and ports of the attempt.
    pub key: FlowKey,
    /// The acknowledgment number.
    pub ack: u32,
}

/// An ICMP error: the attempt that it quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// Addresses and ports of the attempt.
    pub key: FlowKey,
    /// The quoted sequence number.
    pub seq: u32,
}

#[inline(always)]
const fn mapped(a: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3],
    ]
}

/// Source and destination address.
#[inline(always)]
fn addresses<P: Packet + ?Sized>(
    packet: &P,
    family: Family,
    network_offset: u32,
) -> Option<([u8; 16], [u8; 16])> {
    match family {
        Family::V4 => Some((
            mapped(packet.load::<4>(network_offset + 12)?),
            mapped(packet.load::<4>(network_offset + 16)?),
        )),
        Family::V6 => Some((
            packet.load::<16>(network_offset + 8)?,
            packet.load::<16>(network_offset + 24)?,
        )),
    }
}

/// Reads a SYN. None if its TCP header is not whole.
#[inline(always)]
pub fn syn<P: Packet + ?Sized>(packet: &P, layout: &Layout) -> Option<Syn> {
    let tcp = packet.load::<20>(layout.transport_offset)?;
    let header_len = u32::from(tcp[12] >> 4) * 4;
    let header_end = layout.transport_offset + header_len;
    if header_len < TCP_LEN || header_end > layout.end || layout.end == UNKNOWN_END {
        return None;
    }
    let (source, destination) = addresses(packet, layout.family, layout.network_offset)?;
    Some(Syn {
        key: FlowKey {
            source,
            destination,
            source_port: [tcp[0], tcp[1]],
            destination_port: [tcp[2], tcp[3]],
        },
        isn: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        data_len: layout.end - header_end,
    })
}

/// Reads a SYN-ACK or RST. None if its TCP header is not whole.
#[inline(always)]
pub fn answer<P: Packet + ?Sized>(packet: &P, layout: &Layout) -> Option<Answer> {
    let tcp = packet.load::<20>(layout.transport_offset)?;
    let header_len = u32::from(tcp[12] >> 4) * 4;
    let header_end = layout.transport_offset + header_len;
    if header_len < TCP_LEN || header_end > layout.end || layout.end == UNKNOWN_END {
        return None;
    }
    let (source, destination) = addresses(packet, layout.family, layout.network_offset)?;
    Some(Answer {
        key: FlowKey {
            source: destination,
            destination: source,
            source_port: [tcp[2], tcp[3]],
            destination_port: [tcp[0], tcp[1]],
        },
        ack: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
    })
}

/// What an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoted {
    /// A TCP packet.
    Tcp(Quote),
    /// Something else.
    Other,
    /// Not enough of it to tell.
    Unparsed,
}

/// Reads the packet that an ICMP error quotes: the IP header and the first
/// eight bytes of TCP, which hold the ports and the sequence number (RFC 792;
/// RFC 4443, 3).
#[inline(always)]
pub fn quote<P: Packet + ?Sized>(packet: &P, layout: &Layout) -> Quoted {
    let inner_offset = layout.transport_offset + ICMP_LEN;
    if inner_offset > layout.end || layout.end == UNKNOWN_END {
        return Quoted::Unparsed;
    }
    let inner = match layout.family {
        Family::V4 => ipv4(packet, inner_offset, false),
        Family::V6 => ipv6(packet, inner_offset, false),
    };
    let inner = match inner {
        Headers::Found(inner) => inner,
        Headers::Other => return Quoted::Other,
        Headers::Unparsed => return Quoted::Unparsed,
    };
    if inner.transport != Transport::Tcp {
        return Quoted::Other;
    }
    // What is quoted must lie within the packet that quotes it.
    if inner.transport_offset + 8 > layout.end {
        return Quoted::Unparsed;
    }
    let Some(tcp) = packet.load::<8>(inner.transport_offset) else {
        return Quoted::Unparsed;
    };
    let Some((source, destination)) = addresses(packet, inner.family, inner.network_offset) else {
        return Quoted::Unparsed;
    };
    Quoted::Tcp(Quote {
        key: FlowKey {
            source,
            destination,
            source_port: [tcp[0], tcp[1]],
            destination_port: [tcp[2], tcp[3]],
        },
        seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
    })
}

#[cfg(all(test, not(shuttle)))]
mod tests;
