//! Frames made by hand: every length, offset and flag is the test's own.

use throttle_common::{
    flow::FlowKey,
    frame::{Family, Link},
};

/// TCP flags.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

/// IP protocols and IPv6 extension headers.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const AUTH: u8 = 51;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const DESTINATION: u8 = 60;

/// EtherTypes.
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const QINQ: u16 = 0x88a8;

const CLIENT4: [u8; 4] = [192, 0, 2, 1];
const SERVER4: [u8; 4] = [198, 51, 100, 7];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const SERVER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// Numbers that look random and are the same in each run (SplitMix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    option_words: u8,
    data: usize,
}

impl Segment {
    /// With this many 32-bit words of options.
    pub(crate) fn options(mut self, words: u8) -> Self {
        self.option_words = words;
        self
    }

    /// With this many bytes of data.
    pub(crate) fn data(mut self, len: usize) -> Self {
        self.data = len;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([
            (5 + self.option_words) << 4,
            self.flags,
            0xfa,
            0xf0,
            0xbe,
            0xef,
            0,
            0,
        ]);
        bytes.extend(vec![1; usize::from(self.option_words) * 4]);
        bytes.extend(vec![b'd'; self.data]);
        bytes
    }
}

/// An attempt, and the packets that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) family: Family,
    /// Last byte of the address that is dialled.
    pub(crate) host: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) isn: u32,
}

impl Dial {
    /// The nth attempt over IPv4, each to an endpoint of its own.
    pub(crate) fn v4(n: u16) -> Self {
        Self {
            family: Family::V4,
            host: 7,
            ports: (40_000 + n, 1_000 + n),
            isn: 0x89ab_cdef_u32.wrapping_add(u32::from(n) << 12),
        }
    }

    /// The nth over IPv6.
    pub(crate) fn v6(n: u16) -> Self {
        Self {
            family: Family::V6,
            ..Self::v4(n)
        }
    }

    /// The same addresses and ports, begun anew.
    pub(crate) fn with_isn(self, isn: u32) -> Self {
        Self { isn, ..self }
    }

    /// To the same endpoint from another port.
    pub(crate) fn by_port(self, port: u16) -> Self {
        Self {
            ports: (port, self.ports.1),
            ..self
        }
    }

    pub(crate) fn key(self) -> FlowKey {
        let wide = |v4: [u8; 4]| {
            let mut wide = [0; 16];
            wide[10..12].fill(0xff);
            wide[12..].copy_from_slice(&v4);
            wide
        };
        let (source, mut destination) = match self.family {
            Family::V4 => (wide(CLIENT4), wide(SERVER4)),
            Family::V6 => (CLIENT6, SERVER6),
        };
        destination[15] = self.host;
        FlowKey {
            source,
            destination,
            source_port: self.ports.0.to_be_bytes(),
            destination_port: self.ports.1.to_be_bytes(),
        }
    }

    /// What its sender sends.
    pub(crate) fn asks(self, flags: u8) -> Segment {
        Segment {
            ports: self.ports,
            seq: self.isn,
            ack: 0,
            flags,
            option_words: 0,
            data: 0,
        }
    }

    /// What comes back.
    pub(crate) fn answers(self, flags: u8, ack: u32) -> Segment {
        Segment {
            ports: (self.ports.1, self.ports.0),
            seq: 0x1234_5678,
            ack,
            flags,
            option_words: 0,
            data: 0,
        }
    }

    /// An IP packet from its sender.
    pub(crate) fn out(self, protocol: u8, payload: &[u8]) -> Ip {
        Ip {
            dial: self,
            outward: true,
            protocol,
            payload: payload.to_vec(),
            option_words: 0,
            fragment: 0,
            extensions: Vec::new(),
            endless: false,
            padding: Vec::new(),
        }
    }

    /// An IP packet to its sender.
    pub(crate) fn back(self, protocol: u8, payload: &[u8]) -> Ip {
        Ip {
            outward: false,
            ..self.out(protocol, payload)
        }
    }

    pub(crate) fn syn(self) -> Ip {
        self.out(TCP, &self.asks(SYN).bytes())
    }

    pub(crate) fn syn_with_data(self, len: usize) -> Ip {
        self.out(TCP, &self.asks(SYN).data(len).bytes())
    }

    /// SYN-ACK that acknowledges `ack`.
    pub(crate) fn syn_ack(self, ack: u32) -> Ip {
        self.back(TCP, &self.answers(SYN | ACK, ack).bytes())
    }

    /// RST that acknowledges `ack`.
    pub(crate) fn reset(self, ack: u32) -> Ip {
        self.back(TCP, &self.answers(RST | ACK, ack).bytes())
    }

    /// What it waits for.
    pub(crate) fn answered(self) -> Ip {
        self.syn_ack(self.isn.wrapping_add(1))
    }

    /// An ICMP error that quotes `quoted`.
    pub(crate) fn error(self, kind: u8, code: u8, quoted: &[u8]) -> Ip {
        let protocol = match self.family {
            Family::V4 => ICMP,
            Family::V6 => ICMPV6,
        };
        self.back(
            protocol,
            &[&[kind, code, 0, 0, 0, 0, 0, 0], quoted].concat(),
        )
    }

    /// "Destination unreachable" that quotes its SYN with `seq`.
    pub(crate) fn unreachable(self, seq: u32) -> Ip {
        let quoted = self.with_isn(seq).syn().bytes();
        self.error(if self.family == Family::V4 { 3 } else { 1 }, 1, &quoted)
    }
}

/// An IP packet.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    dial: Dial,
    outward: bool,
    protocol: u8,
    payload: Vec<u8>,
    option_words: u8,
    fragment: u16,
    extensions: Vec<(u8, u8)>,
    /// Whether its length field says 0.
    endless: bool,
    /// What lies behind its end.
    padding: Vec<u8>,
}

impl Ip {
    /// With this many 32-bit words of IPv4 options.
    pub(crate) fn options(mut self, words: u8) -> Self {
        self.option_words = words;
        self
    }

    /// A fragment: offset in eights of bytes, and whether more follow.
    pub(crate) fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = match self.dial.family {
            Family::V4 => offset | u16::from(more) << 13,
            Family::V6 => offset << 3 | u16::from(more),
        };
        if self.dial.family == Family::V6 {
            self.extensions.push((FRAGMENT, 0));
        }
        self
    }

    /// With one more IPv6 extension header; `len` as its length field counts.
    pub(crate) fn extension(mut self, kind: u8, len: u8) -> Self {
        self.extensions.push((kind, len));
        self
    }

    /// With 0 in its length field, as an aggregate that is too large for it.
    pub(crate) fn endless(mut self) -> Self {
        self.endless = true;
        self
    }

    /// Ends behind `len` bytes of its payload. The rest stays where it is, and is
    /// padding.
    pub(crate) fn ends_behind(mut self, len: usize) -> Self {
        self.padding = self.payload.split_off(len);
        self
    }

    /// The packet, and what lies behind it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (mut bytes, length_at) = match self.dial.family {
            Family::V4 => (self.v4(), 2),
            Family::V6 => (self.v6(), 4),
        };
        if self.endless {
            bytes[length_at..length_at + 2].fill(0);
        }
        bytes.extend(&self.padding);
        bytes
    }

    fn v4(&self) -> Vec<u8> {
        let header_len = 20 + usize::from(self.option_words) * 4;
        let total_len = u16::try_from(header_len + self.payload.len()).unwrap();
        let server = [SERVER4[0], SERVER4[1], SERVER4[2], self.dial.host];
        let (source, destination) = if self.outward {
            (CLIENT4, server)
        } else {
            (server, CLIENT4)
        };
        let mut bytes = vec![0x45 + self.option_words, 0];
        bytes.extend(total_len.to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0xbe, 0xef]);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(vec![1; usize::from(self.option_words) * 4]);
        bytes.extend(&self.payload);
        bytes
    }

    fn v6(&self) -> Vec<u8> {
        let mut server = SERVER6;
        server[15] = self.dial.host;
        let (source, destination) = if self.outward {
            (CLIENT6, server)
        } else {
            (server, CLIENT6)
        };
        let mut behind = Vec::new();
        for (index, &(kind, len)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1);
            behind.extend([next.map_or(self.protocol, |next| next.0), len]);
            let whole = match kind {
                FRAGMENT => {
                    behind.extend(self.fragment.to_be_bytes());
                    8
                }
                AUTH => (usize::from(len) + 2) * 4,
                _ => (usize::from(len) + 1) * 8,
            };
            let rest = whole - if kind == FRAGMENT { 4 } else { 2 };
            behind.extend(vec![0; rest]);
        }
        behind.extend(&self.payload);
        let first = self
            .extensions
            .first()
            .map_or(self.protocol, |first| first.0);
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(u16::try_from(behind.len()).unwrap().to_be_bytes());
        bytes.extend([first, 64]);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(behind);
        bytes
    }

    /// The frame that carries it on an Ethernet.
    pub(crate) fn ether(&self) -> Vec<u8> {
        self.tagged(&[])
    }

    /// The same with VLAN tags, the outermost first.
    pub(crate) fn tagged(&self, protocols: &[u16]) -> Vec<u8> {
        let ethertype = match self.dial.family {
            Family::V4 => 0x0800,
            Family::V6 => 0x86dd,
        };
        ether(protocols, ethertype, &self.bytes())
    }
}

/// An Ethernet frame.
pub(crate) fn ether(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0x60, 0x07]);
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A frame with a name.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) link: Link,
    pub(crate) bytes: Vec<u8>,
}

/// Every kind of frame there is a rule about, over both families, on Ethernet
/// and on an L3 device.
pub(crate) fn table() -> Vec<Named> {
    let mut table = Vec::new();
    for (family, dial) in [("IPv4", Dial::v4(0)), ("IPv6", Dial::v6(0))] {
        for (what, packet) in packets(dial) {
            for (link, bytes) in [(Link::Ethernet, packet.ether()), (Link::Ip, packet.bytes())] {
                table.push(Named {
                    name: format!("{family}, {what}, {link:?}"),
                    link,
                    bytes,
                });
            }
        }
        for (what, tags) in [
            ("one tag", &[VLAN][..]),
            ("one service tag", &[QINQ]),
            ("two tags", &[QINQ, VLAN]),
            ("two tags of old", &[VLAN, VLAN]),
            ("three tags", &[QINQ, VLAN, VLAN]),
        ] {
            for (kind, packet) in [
                ("SYN", dial.syn()),
                ("SYN-ACK", dial.answered()),
                ("ACK", dial.out(TCP, &dial.asks(ACK).bytes())),
                ("unreachable", dial.unreachable(dial.isn)),
            ] {
                table.push(Named {
                    name: format!("{family}, {kind}, {what}"),
                    link: Link::Ethernet,
                    bytes: packet.tagged(tags),
                });
            }
        }
    }
    table.push(Named {
        name: "ARP".into(),
        link: Link::Ethernet,
        bytes: ether(&[], ARP, &[0; 28]),
    });
    table.push(Named {
        name: "tagged ARP".into(),
        link: Link::Ethernet,
        bytes: ether(&[VLAN], ARP, &[0; 28]),
    });
    table
}

fn packets(dial: Dial) -> Vec<(String, Ip)> {
    let mut packets: Vec<(String, Ip)> = Vec::new();
    let mut add = |name: &str, packet: Ip| packets.push((name.to_owned(), packet));
    let out = |segment: Segment| dial.out(TCP, &segment.bytes());
    let back = |segment: Segment| dial.back(TCP, &segment.bytes());
    let (right, wrong) = (dial.isn.wrapping_add(1), dial.isn ^ 0x5555);

    add("SYN", dial.syn());
    add("SYN with options", out(dial.asks(SYN).options(5)));
    add("SYN with all options", out(dial.asks(SYN).options(10)));
    add("SYN with ECN", out(dial.asks(SYN | ECE | CWR)));
    add("SYN with data", out(dial.asks(SYN).options(3).data(9)));
    add("SYN with much data", out(dial.asks(SYN).data(1_200)));
    add("SYN and FIN", out(dial.asks(SYN | FIN)));
    add("SYN and RST", out(dial.asks(SYN | RST)));
    add("ACK", out(dial.asks(ACK)));
    add("data", out(dial.asks(ACK | PSH).options(3).data(600)));
    add("FIN", out(dial.asks(FIN | ACK)));
    add("no flags", out(dial.asks(0)));
    add("SYN-ACK", dial.syn_ack(right));
    add(
        "SYN-ACK with options",
        back(dial.answers(SYN | ACK, right).options(5)),
    );
    add("SYN-ACK, wrong", dial.syn_ack(wrong));
    add("RST", dial.reset(right));
    add("RST, wrong", dial.reset(wrong));
    add("RST without ACK", back(dial.answers(RST, right)));
    add(
        "SYN, ACK and RST",
        back(dial.answers(SYN | ACK | RST, right)),
    );
    add("UDP", dial.out(UDP, &[0; 40]));

    // Too large for the length field, and such as never are.
    add(
        "data of no length",
        out(dial.asks(ACK | PSH).options(3).data(600)).endless(),
    );
    add("SYN of no length", dial.syn().endless());
    add("SYN-ACK of no length", dial.syn_ack(right).endless());
    add("RST of no length", dial.reset(right).endless());
    add(
        "unreachable of no length",
        dial.unreachable(dial.isn).endless(),
    );
    add(
        "echo of no length",
        dial.error(if dial.family == Family::V4 { 8 } else { 128 }, 0, &[0; 40])
            .endless(),
    );
    add("UDP of no length", dial.out(UDP, &[0; 40]).endless());

    // What lies behind a fragment's end is not part of it.
    for len in [0, 1, 12, 13, 14, 19] {
        let bytes = if len == 1 { "byte" } else { "bytes" };
        for (what, packet) in [
            ("SYN", dial.syn()),
            ("ACK", out(dial.asks(ACK))),
            ("SYN-ACK", dial.syn_ack(right)),
            ("RST", dial.reset(right)),
            ("unreachable", dial.unreachable(dial.isn)),
        ] {
            add(
                &format!("{what} in a first fragment of {len} {bytes}, padded"),
                packet.fragment(0, true).ends_behind(len),
            );
        }
    }

    // Malformed.
    let with = |packet: Ip, at: usize, value: u8| {
        let mut packet = packet;
        packet.payload[at] = value;
        packet
    };
    add("SYN with a header too short", with(dial.syn(), 12, 0x40));
    add(
        "SYN with a header beyond its end",
        with(dial.syn(), 12, 0x60),
    );
    add(
        "SYN-ACK with a header too short",
        with(dial.syn_ack(right), 12, 0),
    );
    add(
        "RST with a header beyond its end",
        with(dial.reset(right), 12, 0xf0),
    );

    for (what, kind, code) in [
        ("echo request", 8, 0),
        ("echo reply", 0, 0),
        ("echo request of version 6", 128, 0),
        ("host unreachable", 3, 1),
        ("port unreachable", 3, 3),
        ("fragmentation needed", 3, 4),
        ("forbidden", 3, 13),
        ("time exceeded", 11, 0),
        ("reassembly time exceeded", 11, 1),
        ("parameter problem", 12, 0),
        ("redirect", 5, 1),
        ("type 1", 1, 4),
        ("type 2", 2, 0),
        ("type 4", 4, 1),
    ] {
        for (which, seq) in [("right", dial.isn), ("wrong", wrong)] {
            let quoted = dial.with_isn(seq).syn().bytes();
            add(&format!("{what}, {which}"), dial.error(kind, code, &quoted));
        }
        let syn = dial.syn().bytes();
        let least = syn.len() - 12;
        add(
            &format!("{what}, eight bytes"),
            dial.error(kind, code, &syn[..least]),
        );
        add(
            &format!("{what}, seven bytes"),
            dial.error(kind, code, &syn[..least - 1]),
        );
        add(&format!("{what}, nothing"), dial.error(kind, code, &[]));
        add(
            &format!("{what} about UDP"),
            dial.error(kind, code, &dial.out(UDP, &[0; 8]).bytes()),
        );
        let nested = dial.error(kind, code, &syn).bytes();
        add(
            &format!("{what} about itself"),
            dial.error(kind, code, &nested),
        );
    }

    match dial.family {
        Family::V4 => {
            for words in [1, 5, 10] {
                add(
                    &format!("SYN, {words} words of IP options"),
                    dial.syn().options(words),
                );
                add(
                    &format!("SYN-ACK, {words} words of IP options"),
                    dial.syn_ack(right).options(words),
                );
                add(
                    &format!("unreachable, {words} words of IP options, inside too"),
                    dial.error(3, 1, &dial.syn().options(words).bytes())
                        .options(words),
                );
            }
        }
        Family::V6 => {
            let kinds = [HOP_BY_HOP, DESTINATION, ROUTING, AUTH];
            for kind in kinds {
                for len in [0, 1, 9, 255] {
                    add(
                        &format!("SYN behind {kind}/{len}"),
                        dial.syn().extension(kind, len),
                    );
                }
                add(
                    &format!("UDP behind {kind}"),
                    dial.out(UDP, &[0; 8]).extension(kind, 1),
                );
                add(
                    &format!("SYN-ACK behind {kind}"),
                    dial.syn_ack(right).extension(kind, 2),
                );
                add(
                    &format!("unreachable, quoting a SYN behind {kind}"),
                    dial.error(1, 0, &dial.syn().extension(kind, 1).bytes()),
                );
            }
            for count in 2..=8 {
                let chain = (0..count).fold(dial.syn(), |packet, n| {
                    packet.extension(kinds[n % kinds.len()], 0)
                });
                add(&format!("SYN behind {count} headers"), chain);
            }
        }
    }
    for (which, offset, more) in [
        ("first", 0, true),
        ("middle", 3, true),
        ("last", 3, false),
        ("only", 0, false),
    ] {
        add(
            &format!("SYN, {which} fragment"),
            dial.syn().fragment(offset, more),
        );
        add(
            &format!("SYN-ACK, {which} fragment"),
            dial.syn_ack(right).fragment(offset, more),
        );
        add(
            &format!("unreachable, {which} fragment"),
            dial.unreachable(dial.isn).fragment(offset, more),
        );
        add(
            &format!("unreachable, quoting the {which} fragment"),
            dial.error(
                if dial.family == Family::V4 { 3 } else { 1 },
                1,
                &dial.syn().fragment(offset, more).bytes(),
            ),
        );
    }
    packets
}
