use super::*;
use etherparse::{
    IpAuthHeader, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, NetSlice, PacketBuilder, SlicedPacket,
    TcpHeader, TransportSlice, VlanHeader, VlanId,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

/// What the programs act upon after they have read a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Syn(Syn),
    SynAck(Answer),
    Reset(Answer),
    Error(Quote),
    Nothing,
    Unreadable,
}

impl Reading {
    const fn is_of_an_attempt(self) -> bool {
        match self {
            Self::Syn(_) | Self::SynAck(_) | Self::Reset(_) | Self::Error(_) => true,
            Self::Nothing | Self::Unreadable => false,
        }
    }
}

fn read(frame: &[u8], link: Link) -> Reading {
    let layout = match headers(frame, link) {
        Headers::Found(layout) => layout,
        Headers::Other => return Reading::Nothing,
        Headers::Unparsed => return Reading::Unreadable,
    };
    match kind(frame, &layout) {
        Kind::Syn => syn(frame, &layout).map_or(Reading::Unreadable, Reading::Syn),
        Kind::SynAck => answer(frame, &layout).map_or(Reading::Unreadable, Reading::SynAck),
        Kind::Reset => answer(frame, &layout).map_or(Reading::Unreadable, Reading::Reset),
        Kind::IcmpError => match quote(frame, &layout) {
            Quoted::Tcp(quote) => Reading::Error(quote),
            Quoted::Other => Reading::Nothing,
            Quoted::Unparsed => Reading::Unreadable,
        },
        Kind::Other => Reading::Nothing,
        Kind::Unparsed => Reading::Unreadable,
    }
}

// ---- One attempt, and the frames that speak of it ----

const CLIENT4: [u8; 4] = [192, 0, 2, 1];
const SERVER4: [u8; 4] = [198, 51, 100, 7];
const ROUTER4: [u8; 4] = [203, 0, 113, 254];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11];
const SERVER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x22];
const ROUTER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x33];
const CLIENT_PORT: u16 = 40_123;
const SERVER_PORT: u16 = 443;
const ISN: u32 = 0x89ab_cdef;
const PEER_ISN: u32 = 0x1234_5678;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

const UDP: u8 = 17;
const ESP: u8 = 50;
const NO_NEXT: u8 = 59;

fn attempt4() -> FlowKey {
    FlowKey {
        source: mapped(CLIENT4),
        destination: mapped(SERVER4),
        source_port: CLIENT_PORT.to_be_bytes(),
        destination_port: SERVER_PORT.to_be_bytes(),
    }
}

fn attempt6() -> FlowKey {
    FlowKey {
        source: CLIENT6,
        destination: SERVER6,
        ..attempt4()
    }
}

fn syn_of(key: FlowKey, data_len: u32) -> Reading {
    Reading::Syn(Syn {
        key,
        isn: ISN,
        data_len,
    })
}

fn answer_to(key: FlowKey) -> Answer {
    Answer {
        key,
        ack: ISN.wrapping_add(1),
    }
}

fn error_about(key: FlowKey) -> Reading {
    Reading::Error(Quote { key, seq: ISN })
}

// ---- Builders ----

fn tcp(from: u16, to: u16, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut header = Vec::with_capacity(20);
    header.extend(from.to_be_bytes());
    header.extend(to.to_be_bytes());
    header.extend(seq.to_be_bytes());
    header.extend(ack.to_be_bytes());
    header.extend([5 << 4, flags]);
    header.extend([0xfa, 0xf0, 0, 0, 0, 0]);
    header
}

/// From the client: its SYN, if SYN is among the flags.
fn asks(flags: u8) -> Vec<u8> {
    tcp(CLIENT_PORT, SERVER_PORT, ISN, 0, flags)
}

/// From the server: what it answers the SYN.
fn answers(flags: u8) -> Vec<u8> {
    tcp(
        SERVER_PORT,
        CLIENT_PORT,
        PEER_ISN,
        ISN.wrapping_add(1),
        flags,
    )
}

fn with_tcp_options(mut tcp: Vec<u8>, words: u8) -> Vec<u8> {
    tcp[12] = (5 + words) << 4;
    tcp.extend(vec![1; usize::from(words) * 4]);
    tcp
}

fn with_data(mut tcp: Vec<u8>, len: usize) -> Vec<u8> {
    tcp.extend(vec![0x55; len]);
    tcp
}

fn with_byte(mut bytes: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    bytes[offset] = value;
    bytes
}

#[derive(Clone, Copy)]
struct V4 {
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    option_words: u8,
    fragment: u16,
}

const FROM_CLIENT4: V4 = V4 {
    source: CLIENT4,
    destination: SERVER4,
    protocol: IPPROTO_TCP,
    option_words: 0,
    fragment: 0x4000,
};
const FROM_SERVER4: V4 = V4 {
    source: SERVER4,
    destination: CLIENT4,
    ..FROM_CLIENT4
};
const FROM_ROUTER4: V4 = V4 {
    source: ROUTER4,
    destination: CLIENT4,
    protocol: IPPROTO_ICMP,
    ..FROM_CLIENT4
};
const MORE_FRAGMENTS: u16 = 0x2000;

impl V4 {
    fn around(self, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + usize::from(self.option_words) * 4;
        let mut packet = vec![0x45 + self.option_words, 0];
        packet.extend(
            u16::try_from(header_len + payload.len())
                .expect("a short packet")
                .to_be_bytes(),
        );
        packet.extend([0, 1]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination);
        // Router alert, repeated: what stands in the options must not matter.
        packet.extend([0x94, 4, 0, 0].repeat(usize::from(self.option_words)));
        packet.extend(payload);
        packet
    }
}

#[derive(Clone, Copy)]
struct V6 {
    source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
}

const FROM_CLIENT6: V6 = V6 {
    source: CLIENT6,
    destination: SERVER6,
    protocol: IPPROTO_TCP,
};
const FROM_SERVER6: V6 = V6 {
    source: SERVER6,
    destination: CLIENT6,
    protocol: IPPROTO_TCP,
};
const FROM_ROUTER6: V6 = V6 {
    source: ROUTER6,
    destination: CLIENT6,
    protocol: IPPROTO_ICMPV6,
};

/// An IPv6 extension header.
#[derive(Clone, Copy)]
enum Extension {
    /// Of this protocol, with a length field that counts eights beyond the
    /// first.
    Eights(u8, u8),
    /// An authentication header with this length field.
    Auth(u8),
    /// A fragment header with this offset-and-flags field.
    Fragment(u16),
}

impl Extension {
    const fn protocol(self) -> u8 {
        match self {
            Self::Eights(protocol, _) => protocol,
            Self::Auth(_) => IPPROTO_AH,
            Self::Fragment(_) => IPPROTO_FRAGMENT,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        match self {
            Self::Eights(_, len) => {
                let mut bytes = vec![next, len];
                bytes.resize((usize::from(len) + 1) * 8, 0);
                bytes
            }
            Self::Auth(len) => {
                let mut bytes = vec![next, len];
                bytes.resize((usize::from(len) + 2) * 4, 0xaa);
                bytes
            }
            Self::Fragment(field) => {
                let field = field.to_be_bytes();
                vec![next, 0, field[0], field[1], 0, 0, 0, 9]
            }
        }
    }
}

const HOP_BY_HOP: Extension = Extension::Eights(IPPROTO_HOPOPTS, 0);
const ROUTING: Extension = Extension::Eights(IPPROTO_ROUTING, 2);
const DESTINATION: Extension = Extension::Eights(IPPROTO_DSTOPTS, 1);
const AUTH: Extension = Extension::Auth(4);
const WHOLE_AS_FRAGMENT: Extension = Extension::Fragment(0);

impl V6 {
    fn around(self, payload: &[u8]) -> Vec<u8> {
        self.behind(&[], payload)
    }

    fn behind(self, extensions: &[Extension], payload: &[u8]) -> Vec<u8> {
        let mut inside = Vec::new();
        for (at, extension) in extensions.iter().enumerate() {
            let next = extensions
                .get(at + 1)
                .map_or(self.protocol, |next| next.protocol());
            inside.extend(extension.bytes(next));
        }
        inside.extend(payload);
        let first = extensions
            .first()
            .map_or(self.protocol, |first| first.protocol());
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(
            u16::try_from(inside.len())
                .expect("a short packet")
                .to_be_bytes(),
        );
        packet.extend([first, 64]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(inside);
        packet
    }
}

fn icmp(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    message
}

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

fn ethernet(tags: &[[u8; 2]], ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    for tag in tags {
        frame.extend(tag);
        frame.extend([0x20, 42]);
    }
    frame.extend(ethertype);
    frame.extend(payload);
    frame
}

fn ether4(packet: &[u8]) -> Vec<u8> {
    ethernet(&[], ETHERTYPE_IPV4, packet)
}

fn ether6(packet: &[u8]) -> Vec<u8> {
    ethernet(&[], ETHERTYPE_IPV6, packet)
}

/// Ethernet pads to 60 bytes (without the checksum).
fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60), 0);
    frame
}

// ---- The table ----

struct Frame {
    name: String,
    link: Link,
    bytes: Vec<u8>,
    reads: Reading,
}

#[derive(Default)]
struct Table(Vec<Frame>);

impl Table {
    fn ethernet(&mut self, name: impl Into<String>, bytes: Vec<u8>, reads: Reading) {
        self.0.push(Frame {
            name: name.into(),
            link: Link::Ethernet,
            bytes,
            reads,
        });
    }

    fn ip(&mut self, name: impl Into<String>, bytes: Vec<u8>, reads: Reading) {
        self.0.push(Frame {
            name: name.into(),
            link: Link::Ip,
            bytes,
            reads,
        });
    }
}

fn frames() -> Vec<Frame> {
    let mut table = Table::default();
    plain_frames(&mut table);
    tagged_frames(&mut table);
    extended_frames(&mut table);
    fragments(&mut table);
    flags(&mut table);
    errors(&mut table);
    malformed_frames(&mut table);
    table.0
}

fn plain_frames(table: &mut Table) {
    let (syn4, syn6) = (syn_of(attempt4(), 0), syn_of(attempt6(), 0));
    let ip4 = FROM_CLIENT4.around(&asks(SYN));
    let ip6 = FROM_CLIENT6.around(&asks(SYN));
    table.ethernet("a SYN over IPv4", ether4(&ip4), syn4);
    table.ethernet("a SYN over IPv6", ether6(&ip6), syn6);
    table.ip(
        "a SYN over IPv4 on a device without Ethernet headers",
        ip4.clone(),
        syn4,
    );
    table.ip(
        "a SYN over IPv6 on a device without Ethernet headers",
        ip6,
        syn6,
    );
    table.ethernet("a SYN that Ethernet padded", padded(ether4(&ip4)), syn4);
    let noisy = with_data(ether4(&ip4), 6);
    table.ethernet("a SYN before padding that is not zero", noisy, syn4);
    for words in 1..=10 {
        let packet = V4 {
            option_words: words,
            ..FROM_CLIENT4
        }
        .around(&asks(SYN));
        table.ethernet(
            format!("a SYN behind {words} words of IPv4 options"),
            ether4(&packet),
            syn4,
        );
    }
    for words in 1..=10 {
        let packet = FROM_CLIENT4.around(&with_tcp_options(asks(SYN), words));
        table.ethernet(
            format!("a SYN with {words} words of TCP options"),
            ether4(&packet),
            syn4,
        );
    }
    let both = V4 {
        option_words: 10,
        ..FROM_CLIENT4
    };
    let packet = both.around(&with_data(with_tcp_options(asks(SYN), 10), 7));
    let reads = syn_of(attempt4(), 7);
    table.ethernet(
        "a SYN with all options there can be, and data",
        ether4(&packet),
        reads,
    );
    for len in [1, 8, 1_200] {
        let tcp = with_data(with_tcp_options(asks(SYN), 5), len);
        let data_len = u32::try_from(len).expect("a short packet");
        table.ethernet(
            format!("a SYN with {len} bytes of data over IPv4"),
            ether4(&FROM_CLIENT4.around(&tcp)),
            syn_of(attempt4(), data_len),
        );
        table.ethernet(
            format!("a SYN with {len} bytes of data over IPv6"),
            ether6(&FROM_CLIENT6.behind(&[DESTINATION], &tcp)),
            syn_of(attempt6(), data_len),
        );
    }
    let packet = padded(ether4(&FROM_CLIENT4.around(&with_data(asks(SYN), 1))));
    table.ethernet("a SYN with data and padding", packet, syn_of(attempt4(), 1));
}

fn tagged_frames(table: &mut Table) {
    let (syn4, syn6) = (syn_of(attempt4(), 0), syn_of(attempt6(), 0));
    let ip4 = FROM_CLIENT4.around(&asks(SYN));
    let ip6 = FROM_CLIENT6.around(&asks(SYN));
    const VLAN: [u8; 2] = ETHERTYPE_VLAN;
    const QINQ: [u8; 2] = ETHERTYPE_QINQ;
    let mut tagged = |name: &str, tags: &[[u8; 2]], syn4: Reading, syn6: Reading| {
        table.ethernet(
            format!("{name}, IPv4"),
            ethernet(tags, ETHERTYPE_IPV4, &ip4),
            syn4,
        );
        table.ethernet(
            format!("{name}, IPv6"),
            ethernet(tags, ETHERTYPE_IPV6, &ip6),
            syn6,
        );
    };
    tagged("a SYN behind one 802.1Q tag", &[VLAN], syn4, syn6);
    tagged("a SYN behind one 802.1ad tag", &[QINQ], syn4, syn6);
    tagged("a SYN behind two tags of QinQ", &[QINQ, VLAN], syn4, syn6);
    tagged("a SYN behind two 802.1Q tags", &[VLAN, VLAN], syn4, syn6);
    let (no, too_deep) = (Reading::Unreadable, Reading::Unreadable);
    tagged("a SYN behind three tags", &[QINQ, VLAN, VLAN], no, too_deep);
    tagged(
        "a SYN behind four tags",
        &[QINQ, QINQ, VLAN, VLAN],
        no,
        too_deep,
    );
    let back = FROM_SERVER4.around(&answers(SYN | ACK));
    table.ethernet(
        "a SYN-ACK behind two tags of QinQ",
        ethernet(&[QINQ, VLAN], ETHERTYPE_IPV4, &back),
        Reading::SynAck(answer_to(attempt4())),
    );
    let arp = ethernet(&[VLAN], [0x08, 0x06], &[0; 28]);
    table.ethernet("ARP behind a tag", arp, Reading::Nothing);
}

fn extended_frames(table: &mut Table) {
    let syn6 = syn_of(attempt6(), 0);
    let mut extended = |name: String, extensions: &[Extension], reads: Reading| {
        let packet = FROM_CLIENT6.behind(extensions, &asks(SYN));
        table.ethernet(name.clone(), ether6(&packet), reads);
        table.ip(format!("{name}, without Ethernet"), packet, reads);
    };
    let each = [
        ("hop-by-hop options", HOP_BY_HOP),
        (
            "long hop-by-hop options",
            Extension::Eights(IPPROTO_HOPOPTS, 30),
        ),
        ("a routing header", ROUTING),
        ("destination options", DESTINATION),
        (
            "the longest destination options",
            Extension::Eights(IPPROTO_DSTOPTS, 255),
        ),
        ("the shortest authentication header", Extension::Auth(1)),
        ("an authentication header", AUTH),
        ("an authentication header of odd length", Extension::Auth(5)),
        ("a fragment header of a whole packet", WHOLE_AS_FRAGMENT),
    ];
    for (name, extension) in each {
        extended(format!("a SYN behind {name}"), &[extension], syn6);
    }
    // RFC 8200, 4.1.
    let all = [
        HOP_BY_HOP,
        DESTINATION,
        ROUTING,
        WHOLE_AS_FRAGMENT,
        AUTH,
        DESTINATION,
    ];
    extended(
        "a SYN behind all extension headers in their order".into(),
        &all,
        syn6,
    );
    for len in 2..=EXTENSIONS_MAX {
        let chain = vec![DESTINATION; len];
        extended(
            format!("a SYN behind {len} destination options"),
            &chain,
            syn6,
        );
    }
    for len in [EXTENSIONS_MAX + 1, EXTENSIONS_MAX + 2, 20] {
        let chain = vec![DESTINATION; len];
        let name = format!("a SYN behind {len} destination options, too deep");
        extended(name, &chain, Reading::Unreadable);
    }

    let no_next = V6 {
        protocol: NO_NEXT,
        ..FROM_CLIENT6
    }
    .behind(&[HOP_BY_HOP], &[]);
    table.ethernet(
        "IPv6 that carries nothing",
        ether6(&no_next),
        Reading::Nothing,
    );
    let esp = V6 {
        protocol: ESP,
        ..FROM_CLIENT6
    }
    .behind(&[DESTINATION], &asks(SYN));
    table.ethernet("IPv6 that is encrypted", ether6(&esp), Reading::Nothing);
    let udp = V6 {
        protocol: UDP,
        ..FROM_CLIENT6
    }
    .behind(&[HOP_BY_HOP], &asks(SYN));
    table.ethernet(
        "UDP over IPv6 that looks like a SYN",
        ether6(&udp),
        Reading::Nothing,
    );
    let crossed = V6 {
        protocol: IPPROTO_ICMP,
        ..FROM_ROUTER6
    };
    let crossed = crossed.around(&icmp(3, 1, &FROM_CLIENT6.around(&asks(SYN))));
    table.ethernet("ICMP of IPv4 in IPv6", ether6(&crossed), Reading::Nothing);
}

fn fragments(table: &mut Table) {
    let first4 = V4 {
        fragment: MORE_FRAGMENTS,
        ..FROM_CLIENT4
    };
    let whole = with_tcp_options(asks(SYN), 1);
    let packet = first4.around(&whole);
    let syn4 = syn_of(attempt4(), 0);
    table.ethernet(
        "a first IPv4 fragment with the whole TCP header",
        ether4(&packet),
        syn4,
    );
    for len in [8, 16, 20, 23] {
        let packet = first4.around(&whole[..len]);
        // What an Ethernet pads is zero; a full buffer's remains may not be.
        let name = format!("a first IPv4 fragment with {len} bytes of the TCP header, padded");
        table.ethernet(name, padded(ether4(&packet)), Reading::Unreadable);
        let noisy = with_data(ether4(&packet[..20 + len]), 40);
        let noisy = with_byte(noisy, 14 + 20 + 13, SYN);
        let noisy = with_byte(noisy, 14 + 20 + 12, 5 << 4);
        let name = format!("a first IPv4 fragment with {len} bytes before what looks like TCP");
        if len < 20 {
            table.ethernet(name, noisy, Reading::Unreadable);
        }
    }
    // Each bit of the offset alone, and all of them.
    let offsets: Vec<u16> = (0..13).map(|bit| 1 << bit).chain([185, 0x1fff]).collect();
    for offset in &offsets {
        for more in [0, MORE_FRAGMENTS] {
            let packet = V4 {
                fragment: offset | more,
                ..FROM_CLIENT4
            }
            .around(&asks(SYN));
            let name =
                format!("a later IPv4 fragment ({offset} | {more:#x}) that looks like a SYN");
            table.ethernet(name, ether4(&packet), Reading::Nothing);
        }
    }

    let first6 = [HOP_BY_HOP, Extension::Fragment(1)];
    let syn6 = syn_of(attempt6(), 0);
    let packet = FROM_CLIENT6.behind(&first6, &whole);
    table.ethernet(
        "a first IPv6 fragment with the whole TCP header",
        ether6(&packet),
        syn6,
    );
    let packet = FROM_CLIENT6.behind(&first6, &whole[..16]);
    let name = "a first IPv6 fragment without the whole TCP header";
    table.ethernet(name, ether6(&packet), Reading::Unreadable);
    for offset in &offsets {
        for more in [0, 1] {
            let field = offset << 3 | more;
            let packet = FROM_CLIENT6.behind(&[Extension::Fragment(field)], &asks(SYN));
            let name = format!("a later IPv6 fragment ({offset} | {more}) that looks like a SYN");
            table.ethernet(name, ether6(&packet), Reading::Nothing);
        }
    }
    // Between the offset and the flag are two reserved bits: RFC 8200, 4.5.
    let packet = FROM_CLIENT6.behind(&[Extension::Fragment(6)], &asks(SYN));
    table.ethernet("reserved bits of a fragment header", ether6(&packet), syn6);

    let error = icmp(3, 1, &FROM_CLIENT4.around(&asks(SYN)));
    let packet = V4 {
        fragment: 1,
        ..FROM_ROUTER4
    }
    .around(&error);
    let name = "a later fragment that looks like an ICMP error";
    table.ethernet(name, ether4(&packet), Reading::Nothing);
}

fn flags(table: &mut Table) {
    let mut out = |name: &str, flags: u8, of: fn(FlowKey) -> Reading| {
        let (ip4, ip6) = (
            FROM_CLIENT4.around(&asks(flags)),
            FROM_CLIENT6.around(&asks(flags)),
        );
        table.ethernet(format!("{name} over IPv4"), ether4(&ip4), of(attempt4()));
        table.ethernet(format!("{name} over IPv6"), ether6(&ip6), of(attempt6()));
    };
    let syn: fn(FlowKey) -> Reading = |key| syn_of(key, 0);
    let nothing: fn(FlowKey) -> Reading = |_| Reading::Nothing;
    out("a SYN that offers ECN", SYN | ECE | CWR, syn);
    out("a SYN with FIN", SYN | FIN, syn);
    out("a SYN with PSH", SYN | PSH, syn);
    out("an ACK", ACK, nothing);
    out("data", ACK | PSH, nothing);
    out("a FIN", FIN | ACK, nothing);
    out("a RST without ACK", RST, nothing);
    out("no flags", 0, nothing);

    let mut back = |name: &str, flags: u8, of: fn(Answer) -> Reading| {
        let (ip4, ip6) = (
            FROM_SERVER4.around(&answers(flags)),
            FROM_SERVER6.around(&answers(flags)),
        );
        table.ethernet(
            format!("{name} over IPv4"),
            ether4(&ip4),
            of(answer_to(attempt4())),
        );
        table.ethernet(
            format!("{name} over IPv6"),
            ether6(&ip6),
            of(answer_to(attempt6())),
        );
        table.ip(
            format!("{name} without Ethernet"),
            ip4,
            of(answer_to(attempt4())),
        );
    };
    let nothing: fn(Answer) -> Reading = |_| Reading::Nothing;
    back("a SYN-ACK", SYN | ACK, Reading::SynAck);
    back(
        "a SYN-ACK that accepts ECN",
        SYN | ACK | ECE,
        Reading::SynAck,
    );
    back("a RST with ACK", RST | ACK, Reading::Reset);
    back("a RST with SYN and ACK", RST | SYN | ACK, Reading::Reset);
    back("a RST with FIN and ACK", RST | FIN | ACK, Reading::Reset);
    back("a RST that acknowledges nothing", RST, nothing);
    back("an ACK from the server", ACK, nothing);
    back("data from the server", ACK | PSH, nothing);

    let options = with_tcp_options(answers(SYN | ACK), 5);
    let packet = V4 {
        option_words: 3,
        ..FROM_SERVER4
    }
    .around(&options);
    let syn_ack = Reading::SynAck(answer_to(attempt4()));
    table.ethernet(
        "a SYN-ACK with options everywhere",
        ether4(&packet),
        syn_ack,
    );
    let data = with_data(answers(SYN | ACK), 100);
    let packet = FROM_SERVER6.behind(&[DESTINATION, AUTH], &data);
    let syn_ack = Reading::SynAck(answer_to(attempt6()));
    table.ethernet(
        "a SYN-ACK with data behind extension headers",
        ether6(&packet),
        syn_ack,
    );

    let udp = V4 {
        protocol: UDP,
        ..FROM_CLIENT4
    }
    .around(&asks(SYN));
    table.ethernet("UDP that looks like a SYN", ether4(&udp), Reading::Nothing);
    table.ethernet(
        "ARP",
        padded(ethernet(&[], [8, 6], &[0; 28])),
        Reading::Nothing,
    );
    table.ethernet(
        "LLDP",
        ethernet(&[], [0x88, 0xcc], &[0; 46]),
        Reading::Nothing,
    );
    let stp = ethernet(&[], [0, 38], &[0x42; 46]);
    table.ethernet("an 802.3 frame with a length", stp, Reading::Nothing);
}

/// ICMP errors that end an attempt. RFC 792, RFC 1812 (5.2.7), RFC 4443 (3).
fn ending_errors4() -> Vec<(u8, u8)> {
    let mut errors = Vec::new();
    errors.extend((0..=15).filter(|code| *code != 4).map(|code| (3, code)));
    // 11/1 is about fragments that were never whole.
    errors.push((11, 0));
    errors.extend([(12, 0), (12, 1), (12, 2)]);
    errors
}

fn ending_errors6() -> Vec<(u8, u8)> {
    let mut errors = Vec::new();
    errors.extend((0..=7).map(|code| (1, code)));
    errors.extend([(3, 0), (3, 1)]);
    errors.extend((0..=2).map(|code| (4, code)));
    errors
}

fn errors(table: &mut Table) {
    let quoted4 = FROM_CLIENT4.around(&asks(SYN));
    let quoted6 = FROM_CLIENT6.around(&asks(SYN));
    let (error4, error6) = (error_about(attempt4()), error_about(attempt6()));
    for (kind, code) in ending_errors4() {
        let packet = FROM_ROUTER4.around(&icmp(kind, code, &quoted4));
        table.ethernet(
            format!("ICMP {kind}/{code} about a SYN"),
            ether4(&packet),
            error4,
        );
    }
    for (kind, code) in ending_errors6() {
        let packet = FROM_ROUTER6.around(&icmp(kind, code, &quoted6));
        table.ethernet(
            format!("ICMPv6 {kind}/{code} about a SYN"),
            ether6(&packet),
            error6,
        );
    }
    let harmless4 = [
        ("fragmentation needed", 3, 4),
        ("an echo reply", 0, 0),
        ("an echo request", 8, 0),
        ("source quench", 4, 0),
        ("a redirect", 5, 1),
        ("a timestamp", 13, 0),
    ];
    for (name, kind, code) in harmless4 {
        let packet = FROM_ROUTER4.around(&icmp(kind, code, &quoted4));
        table.ethernet(
            format!("{name} that quotes a SYN"),
            ether4(&packet),
            Reading::Nothing,
        );
    }
    let harmless6 = [
        ("packet too big", 2, 0),
        ("an echo request over IPv6", 128, 0),
        ("an echo reply over IPv6", 129, 0),
        ("a router advertisement", 134, 0),
        ("a neighbour solicitation", 135, 0),
        ("an IPv6 redirect", 137, 0),
    ];
    for (name, kind, code) in harmless6 {
        let packet = FROM_ROUTER6.around(&icmp(kind, code, &quoted6));
        table.ethernet(
            format!("{name} that quotes a SYN"),
            ether6(&packet),
            Reading::Nothing,
        );
    }

    let mut error = |name: &str, quoted: &[u8], reads: Reading| {
        let packet = FROM_ROUTER4.around(&icmp(3, 1, quoted));
        table.ethernet(name, ether4(&packet), reads);
        table.ip(format!("{name}, without Ethernet"), packet, reads);
    };
    error(
        "an error that quotes eight bytes of TCP",
        &quoted4[..28],
        error4,
    );
    error(
        "an error that quotes seven bytes of TCP",
        &quoted4[..27],
        Reading::Unreadable,
    );
    error(
        "an error that quotes the IP header alone",
        &quoted4[..20],
        Reading::Unreadable,
    );
    error(
        "an error that quotes half an IP header",
        &quoted4[..10],
        Reading::Unreadable,
    );
    error("an error that quotes nothing", &[], Reading::Unreadable);
    for words in [1, 10] {
        let quoted = V4 {
            option_words: words,
            ..FROM_CLIENT4
        }
        .around(&asks(SYN));
        let options = 4 * usize::from(words);
        let name = format!("an error that quotes {words} words of options and eight bytes");
        error(&name, &quoted[..28 + options], error4);
        let name = format!("an error that quotes {words} words of options and seven bytes");
        error(&name, &quoted[..27 + options], Reading::Unreadable);
    }
    let udp = V4 {
        protocol: UDP,
        ..FROM_CLIENT4
    }
    .around(&asks(SYN));
    error("an error that quotes UDP", &udp, Reading::Nothing);
    let echo = V4 {
        protocol: IPPROTO_ICMP,
        ..FROM_CLIENT4
    }
    .around(&icmp(8, 0, &[0; 20]));
    error(
        "an error that quotes an echo request",
        &echo,
        Reading::Nothing,
    );
    let later = V4 {
        fragment: 1,
        ..FROM_CLIENT4
    }
    .around(&asks(SYN));
    error(
        "an error that quotes a later fragment",
        &later,
        Reading::Nothing,
    );
    let first = V4 {
        fragment: MORE_FRAGMENTS,
        ..FROM_CLIENT4
    }
    .around(&asks(SYN));
    error("an error that quotes a first fragment", &first, error4);
    error(
        "an error that quotes IPv6 in IPv4",
        &quoted6,
        Reading::Unreadable,
    );
    let zeroed = with_byte(with_byte(quoted4.clone(), 2, 0), 3, 0);
    error("an error whose quote lost its length", &zeroed, error4);
    let version = with_byte(quoted4.clone(), 0, 0x65);
    error(
        "an error whose quote has the wrong version",
        &version,
        Reading::Unreadable,
    );
    let short = with_byte(quoted4.clone(), 0, 0x44);
    error(
        "an error whose quote has a short header",
        &short,
        Reading::Unreadable,
    );

    let packet = V4 {
        option_words: 6,
        ..FROM_ROUTER4
    }
    .around(&icmp(3, 1, &quoted4));
    table.ethernet("an error behind IPv4 options", ether4(&packet), error4);
    // The quote must not be completed from what stands behind the packet.
    let short = FROM_ROUTER4.around(&icmp(3, 1, &quoted4[..27]));
    let padded_quote = with_data(ether4(&short), 40);
    let name = "an error whose quote goes on in the padding";
    table.ethernet(name, padded_quote, Reading::Unreadable);

    let mut error = |name: &str, quoted: &[u8], reads: Reading| {
        let packet = FROM_ROUTER6.around(&icmp(1, 4, quoted));
        table.ethernet(name, ether6(&packet), reads);
        let packet = FROM_ROUTER6.behind(&[HOP_BY_HOP, DESTINATION], &icmp(1, 4, quoted));
        table.ip(format!("{name}, behind extension headers"), packet, reads);
    };
    error(
        "an IPv6 error that quotes eight bytes of TCP",
        &quoted6[..48],
        error6,
    );
    error(
        "an IPv6 error that quotes seven bytes of TCP",
        &quoted6[..47],
        Reading::Unreadable,
    );
    error(
        "an IPv6 error that quotes the IP header alone",
        &quoted6[..40],
        Reading::Unreadable,
    );
    error(
        "an IPv6 error that quotes nothing",
        &[],
        Reading::Unreadable,
    );
    let deep = [
        HOP_BY_HOP,
        DESTINATION,
        ROUTING,
        WHOLE_AS_FRAGMENT,
        AUTH,
        DESTINATION,
    ];
    let quoted = FROM_CLIENT6.behind(&deep, &asks(SYN));
    error(
        "an IPv6 error that quotes all extension headers",
        &quoted,
        error6,
    );
    let cut = &quoted[..quoted.len() - 20 - 3];
    error(
        "an IPv6 error that quotes half an extension header",
        cut,
        Reading::Unreadable,
    );
    let zeroed = with_byte(with_byte(quoted.clone(), 4, 0), 5, 0);
    error("an IPv6 error whose quote lost its length", &zeroed, error6);
    let quoted = FROM_CLIENT6.behind(&[DESTINATION; EXTENSIONS_MAX + 1], &asks(SYN));
    error(
        "an IPv6 error whose quote nests too deep",
        &quoted,
        Reading::Unreadable,
    );
    let udp = V6 {
        protocol: UDP,
        ..FROM_CLIENT6
    }
    .behind(&[DESTINATION], &asks(SYN));
    error("an IPv6 error that quotes UDP", &udp, Reading::Nothing);
    let later = FROM_CLIENT6.behind(&[Extension::Fragment(8)], &asks(SYN));
    error(
        "an IPv6 error that quotes a later fragment",
        &later,
        Reading::Nothing,
    );
    error(
        "an IPv6 error that quotes IPv4",
        &quoted4,
        Reading::Unreadable,
    );
}

fn malformed_frames(table: &mut Table) {
    let ip4 = FROM_CLIENT4.around(&asks(SYN));
    let ip6 = FROM_CLIENT6.around(&asks(SYN));
    let unreadable = Reading::Unreadable;
    for words in 0..5 {
        let tcp = with_byte(asks(SYN), 12, words << 4);
        let name = format!("a SYN whose header claims {words} words");
        table.ethernet(name, ether4(&FROM_CLIENT4.around(&tcp)), unreadable);
        let tcp = with_byte(answers(SYN | ACK), 12, words << 4);
        let name = format!("a SYN-ACK whose header claims {words} words");
        table.ethernet(name, ether4(&FROM_SERVER4.around(&tcp)), unreadable);
    }
    let tcp = with_byte(asks(SYN), 12, 6 << 4);
    let name = "a SYN whose header is longer than the packet";
    table.ethernet(name, ether4(&FROM_CLIENT4.around(&tcp)), unreadable);
    table.ethernet(
        format!("{name}, IPv6"),
        ether6(&FROM_CLIENT6.around(&tcp)),
        unreadable,
    );
    let tcp = with_byte(answers(RST | ACK), 12, 0xf0);
    let name = "a RST whose header is longer than the packet";
    table.ethernet(name, ether4(&FROM_SERVER4.around(&tcp)), unreadable);
    for words in 0..5 {
        let packet = with_byte(ip4.clone(), 0, 0x40 | words);
        let name = format!("IPv4 whose header claims {words} words");
        table.ethernet(name, ether4(&packet), unreadable);
    }
    let packet = with_byte(ip4.clone(), 0, 0x4f);
    table.ethernet(
        "IPv4 whose header is longer than the packet",
        ether4(&packet),
        unreadable,
    );
    for version in [0, 3, 5, 6, 15] {
        let packet = with_byte(ip4.clone(), 0, version << 4 | 5);
        table.ethernet(
            format!("version {version} in IPv4"),
            ether4(&packet),
            unreadable,
        );
    }
    for version in [0, 4, 5, 7, 15] {
        let packet = with_byte(ip6.clone(), 0, version << 4);
        table.ethernet(
            format!("version {version} in IPv6"),
            ether6(&packet),
            unreadable,
        );
    }
    for version in [0, 1, 5, 7, 15] {
        let packet = with_byte(ip4.clone(), 0, version << 4 | 5);
        let name = format!("version {version} on a device without Ethernet headers");
        table.ip(name, packet, Reading::Nothing);
    }
    // An aggregate that is too large for its length field is no SYN.
    let aggregate = |packet: Vec<u8>, at: usize| with_byte(with_byte(packet, at, 0), at + 1, 0);
    let data4 = aggregate(FROM_CLIENT4.around(&with_data(asks(ACK), 40)), 2);
    table.ethernet("an IPv4 aggregate", ether4(&data4), Reading::Nothing);
    let data6 = aggregate(FROM_CLIENT6.around(&with_data(asks(ACK), 40)), 4);
    table.ethernet("an IPv6 aggregate", ether6(&data6), Reading::Nothing);
    for total_len in [0, 19, 20, 39] {
        let packet = with_byte(ip4.clone(), 3, total_len);
        let name = format!("IPv4 that claims to be {total_len} bytes long");
        table.ethernet(name, ether4(&packet), unreadable);
    }
    for payload_len in [0, 19] {
        let packet = with_byte(ip6.clone(), 5, payload_len);
        let name = format!("IPv6 that claims to carry {payload_len} bytes");
        table.ethernet(name, ether6(&packet), unreadable);
    }
    let packet = with_byte(FROM_CLIENT6.behind(&[DESTINATION], &asks(SYN)), 5, 8);
    let name = "extension headers that are longer than the packet";
    table.ethernet(name, ether6(&packet), unreadable);
    table.ethernet("an empty frame", Vec::new(), unreadable);
    table.ip("an empty packet", Vec::new(), unreadable);
    table.ethernet(
        "a frame that ends with its addresses",
        MACS.to_vec(),
        unreadable,
    );
    table.ethernet("an Ethernet header alone", ether4(&[]), unreadable);
}

// ---- What holds for the table ----

#[test]
fn every_frame_is_read_as_what_it_is() {
    for frame in frames() {
        assert_eq!(
            read(&frame.bytes, frame.link),
            frame.reads,
            "{}",
            frame.name
        );
    }
}

#[test]
fn every_frame_has_its_own_name() {
    let mut names: Vec<_> = frames().into_iter().map(|frame| frame.name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
    assert!(names.len() > 200, "{}", names.len());
}

#[test]
fn a_frame_that_is_cut_short_is_never_read_as_something_else() {
    for frame in frames() {
        for len in 0..frame.bytes.len() {
            let reads = read(&frame.bytes[..len], frame.link);
            assert!(
                reads == frame.reads || !reads.is_of_an_attempt(),
                "{}, cut to {len} bytes, is read as {reads:?}",
                frame.name
            );
        }
    }
}

#[test]
fn what_stands_behind_the_packet_is_never_read() {
    for frame in frames() {
        for filling in [0x00, 0x02, 0x12, 0x50, 0xff] {
            let mut longer = frame.bytes.clone();
            longer.extend([filling; 64]);
            // Bytes that were promised and are missing may be made up for, but
            // only where the packet says that it goes on.
            let reads = read(&longer, frame.link);
            if frame.reads.is_of_an_attempt() {
                assert_eq!(reads, frame.reads, "{}, then {filling:#x}", frame.name);
            } else if !promises_more(&frame) {
                assert!(
                    !reads.is_of_an_attempt(),
                    "{}, then {filling:#x}",
                    frame.name
                );
            }
        }
    }
}

/// Whether the length field of its IP header speaks of bytes that the frame does
/// not hold, or the frame ends before that field.
fn promises_more(frame: &Frame) -> bool {
    match headers(&frame.bytes[..], frame.link) {
        Headers::Found(layout) => layout.end as usize > frame.bytes.len(),
        Headers::Other | Headers::Unparsed => frame.bytes.len() < 34,
    }
}

#[test]
fn each_layout_points_at_its_headers() {
    for frame in frames() {
        let Headers::Found(layout) = headers(&frame.bytes[..], frame.link) else {
            continue;
        };
        let network = layout.network_offset as usize;
        let version = match layout.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        assert_eq!(frame.bytes[network] >> 4, version, "{}", frame.name);
        assert!(
            layout.transport_offset >= layout.network_offset + 20,
            "{}",
            frame.name
        );
        assert!(layout.end >= layout.transport_offset, "{}", frame.name);
    }
}

#[test]
fn of_all_icmp_types_and_codes_only_the_errors_end_an_attempt() {
    for kind in 0..=255 {
        for code in 0..=255 {
            let quoted4 = FROM_CLIENT4.around(&asks(SYN));
            let frame = ether4(&FROM_ROUTER4.around(&icmp(kind, code, &quoted4)));
            // Codes that are not assigned yet are errors of their type.
            let ends = matches!(kind, 3 | 11 | 12) && !matches!((kind, code), (3, 4) | (11, 1));
            let reads = if ends {
                error_about(attempt4())
            } else {
                Reading::Nothing
            };
            assert_eq!(read(&frame, Link::Ethernet), reads, "ICMP {kind}/{code}");

            let quoted6 = FROM_CLIENT6.around(&asks(SYN));
            let frame = ether6(&FROM_ROUTER6.around(&icmp(kind, code, &quoted6)));
            let ends = matches!(kind, 1 | 3 | 4);
            let reads = if ends {
                error_about(attempt6())
            } else {
                Reading::Nothing
            };
            assert_eq!(read(&frame, Link::Ethernet), reads, "ICMPv6 {kind}/{code}");
        }
    }
}

#[test]
fn of_all_flags_syn_rst_and_ack_alone_decide() {
    for flags in 0..=255 {
        let out = ether4(&FROM_CLIENT4.around(&asks(flags)));
        let layout = match headers(&out[..], Link::Ethernet) {
            Headers::Found(layout) => layout,
            other @ (Headers::Other | Headers::Unparsed) => panic!("{other:?}"),
        };
        let expected = match (flags & SYN != 0, flags & RST != 0, flags & ACK != 0) {
            (true, _, false) => Kind::Syn,
            (_, true, true) => Kind::Reset,
            (true, false, true) => Kind::SynAck,
            (false, true, false) | (false, false, _) => Kind::Other,
        };
        assert_eq!(kind(&out[..], &layout), expected, "{flags:#010b}");
    }
}

#[test]
fn an_answer_names_the_attempt_as_its_syn_does() {
    for (out, back) in [
        (
            ether4(&FROM_CLIENT4.around(&asks(SYN))),
            ether4(&FROM_SERVER4.around(&answers(SYN | ACK))),
        ),
        (
            ether6(&FROM_CLIENT6.around(&asks(SYN))),
            ether6(&FROM_SERVER6.around(&answers(SYN | ACK))),
        ),
    ] {
        let (Reading::Syn(syn), Reading::SynAck(answer)) =
            (read(&out, Link::Ethernet), read(&back, Link::Ethernet))
        else {
            panic!("not read")
        };
        assert_eq!(syn.key, answer.key);
        assert_eq!(syn.isn.wrapping_add(1), answer.ack);
    }
}

#[test]
fn a_load_past_the_end_is_refused_without_overflow() {
    let frame = [0_u8; 8];
    assert_eq!(frame[..].load::<8>(0), Some([0; 8]));
    assert_eq!(frame[..].load::<1>(8), None);
    assert_eq!(frame[..].load::<8>(1), None);
    assert_eq!(frame[..].load::<40>(u32::MAX), None);
}

// ---- Beside an independent parser ----

/// What etherparse makes of a frame, if it finds TCP in it and does not allow
/// itself more than we do: it takes an IPv6 length of 0 for a length that
/// segmentation left out, walks any number of extension headers, and looks
/// behind an authentication header in IPv4.
#[derive(Debug)]
struct Independent {
    key: FlowKey,
    header: TcpHeader,
    data_len: u32,
}

fn independent(frame: &[u8], link: Link) -> Option<Independent> {
    let packet = match link {
        Link::Ethernet => SlicedPacket::from_ethernet(frame).ok()?,
        Link::Ip => SlicedPacket::from_ip(frame).ok()?,
    };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    let (source, destination) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) if ip.extensions().auth.is_none() => (
            mapped(ip.header().source()),
            mapped(ip.header().destination()),
        ),
        Some(NetSlice::Ipv6(ip))
            if ip.header().payload_length() != 0
                && ip.extensions().clone().into_iter().count() <= EXTENSIONS_MAX =>
        {
            (ip.header().source(), ip.header().destination())
        }
        Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_) | NetSlice::Arp(_)) | None => return None,
    };
    Some(Independent {
        key: FlowKey {
            source,
            destination,
            source_port: tcp.source_port().to_be_bytes(),
            destination_port: tcp.destination_port().to_be_bytes(),
        },
        header: tcp.to_header(),
        data_len: u32::try_from(tcp.payload().len()).expect("a short packet"),
    })
}

impl Independent {
    fn reading(&self) -> Reading {
        let TcpHeader { syn, rst, ack, .. } = self.header;
        let answer = Answer {
            key: FlowKey {
                source: self.key.destination,
                destination: self.key.source,
                source_port: self.key.destination_port,
                destination_port: self.key.source_port,
            },
            ack: self.header.acknowledgment_number,
        };
        if syn && !ack {
            let isn = self.header.sequence_number;
            Reading::Syn(Syn {
                key: self.key,
                isn,
                data_len: self.data_len,
            })
        } else if rst && ack {
            Reading::Reset(answer)
        } else if syn {
            Reading::SynAck(answer)
        } else {
            Reading::Nothing
        }
    }
}

#[test]
fn an_independent_parser_agrees_about_the_table() {
    let mut agreed = 0;
    for frame in frames() {
        // It has room for one tag more than we do.
        if frame.name.contains("behind three tags") {
            continue;
        }
        if let Some(independent) = independent(&frame.bytes, frame.link) {
            assert_eq!(independent.reading(), frame.reads, "{}", frame.name);
            agreed += 1;
        }
    }
    assert!(agreed > 80, "{agreed}");
}

/// An IP header, as drawn.
#[derive(Debug, Clone)]
enum Network {
    V4 {
        source: [u8; 4],
        destination: [u8; 4],
        option_words: usize,
    },
    V6 {
        source: [u8; 16],
        destination: [u8; 16],
        extensions: Box<Ipv6Extensions>,
    },
}

fn raw_extension() -> impl Strategy<Value = Ipv6RawExtHeader> {
    // 6 bytes fill the first eight; each eight more is one step of the length.
    (0_usize..20, any::<u8>()).prop_map(|(eights, filling)| {
        let payload = vec![filling; 6 + 8 * eights];
        Ipv6RawExtHeader::new_raw(IpNumber::TCP, &payload).expect("whole eights")
    })
}

fn authentication() -> impl Strategy<Value = IpAuthHeader> {
    (any::<u32>(), any::<u32>(), 0_usize..20).prop_map(|(spi, sequence, words)| {
        IpAuthHeader::new(IpNumber::TCP, spi, sequence, &vec![7; 4 * words]).expect("whole words")
    })
}

fn extensions() -> impl Strategy<Value = Ipv6Extensions> {
    (
        prop::option::of(raw_extension()),
        prop::option::of(raw_extension()),
        prop::option::of((raw_extension(), prop::option::of(raw_extension()))),
        prop::option::of(authentication()),
    )
        .prop_map(
            |(hop_by_hop_options, destination_options, routing, auth)| Ipv6Extensions {
                hop_by_hop_options,
                destination_options,
                routing: routing.map(|(routing, final_destination_options)| {
                    Ipv6RoutingExtensions {
                        routing,
                        final_destination_options,
                    }
                }),
                fragment: None,
                auth,
            },
        )
}

fn network() -> impl Strategy<Value = Network> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<[u8; 4]>(), 0_usize..=10).prop_map(
            |(source, destination, option_words)| Network::V4 {
                source,
                destination,
                option_words
            }
        ),
        (any::<[u8; 16]>(), any::<[u8; 16]>(), extensions()).prop_map(
            |(source, destination, extensions)| Network::V6 {
                source,
                destination,
                extensions: Box::new(extensions),
            }
        ),
    ]
}

impl Network {
    fn headers(&self) -> IpHeaders {
        match self {
            Self::V4 {
                source,
                destination,
                option_words,
            } => {
                let mut header = Ipv4Header::new(0, 64, IpNumber::TCP, *source, *destination)
                    .expect("no payload fits");
                header.options =
                    Ipv4Options::try_from(&vec![1; 4 * option_words][..]).expect("whole words");
                IpHeaders::Ipv4(header, Default::default())
            }
            Self::V6 {
                source,
                destination,
                extensions,
            } => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: IpNumber::TCP,
                    hop_limit: 64,
                    source: *source,
                    destination: *destination,
                },
                (**extensions).clone(),
            ),
        }
    }

    fn addresses(&self) -> ([u8; 16], [u8; 16]) {
        match self {
            Self::V4 {
                source,
                destination,
                ..
            } => (mapped(*source), mapped(*destination)),
            Self::V6 {
                source,
                destination,
                ..
            } => (*source, *destination),
        }
    }
}

/// A TCP header and its data, as drawn.
#[derive(Debug, Clone)]
struct Segment {
    header: TcpHeader,
    data: Vec<u8>,
}

fn segment() -> impl Strategy<Value = Segment> {
    (
        any::<(u16, u16, u32, u32)>(),
        any::<(bool, bool, bool, bool, bool)>(),
        vec(any::<u8>(), 0..=40),
        vec(any::<u8>(), 0..200),
    )
        .prop_map(
            |((from, to, seq, acknowledged), (syn, ack, rst, fin, ece), options, data)| {
                let mut header = TcpHeader::new(from, to, seq, 64_240);
                header.acknowledgment_number = acknowledged;
                (header.syn, header.ack, header.rst, header.fin, header.ece) =
                    (syn, ack, rst, fin, ece);
                header.set_options_raw(&options).expect("at most 40 bytes");
                Segment { header, data }
            },
        )
}

/// The frame, and where its IP header begins.
fn built(tags: usize, network: &Network, segment: &Segment) -> (Vec<u8>, usize) {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let (outer, inner) = (
        VlanId::try_new(7).expect("twelve bits"),
        VlanId::try_new(42).expect("twelve bits"),
    );
    let ip = network.headers();
    let packet = match tags {
        0 => ethernet.ip(ip),
        1 => ethernet.single_vlan(inner).ip(ip),
        _ => ethernet.double_vlan(outer, inner).ip(ip),
    };
    let packet = packet.tcp_header(segment.header.clone());
    let mut frame = Vec::new();
    packet
        .write(&mut frame, &segment.data)
        .expect("a vector takes it");
    (frame, 14 + 4 * tags)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_frame_built_by_somebody_else_is_read_as_it_was_meant(
        tags in 0_usize..=2, network in network(), segment in segment(), padding in 0_usize..30,
    ) {
        let (mut frame, network_offset) = built(tags, &network, &segment);
        frame.resize(frame.len() + padding, 0xff);
        let (source, destination) = network.addresses();
        let meant = Independent {
            key: FlowKey {
                source,
                destination,
                source_port: segment.header.source_port.to_be_bytes(),
                destination_port: segment.header.destination_port.to_be_bytes(),
            },
            data_len: u32::try_from(segment.data.len()).expect("a short packet"),
            header: segment.header,
        };
        prop_assert_eq!(read(&frame, Link::Ethernet), meant.reading());
        prop_assert_eq!(read(&frame[network_offset..], Link::Ip), meant.reading());
    }

    #[test]
    fn an_error_built_by_somebody_else_is_read_as_it_was_meant(
        network in network(), segment in segment(), quoted_len in 0_usize..400,
        about4 in select(ending_errors4()), about6 in select(ending_errors6()),
    ) {
        let (quoted, _) = built(0, &network, &segment);
        let quoted = &quoted[14..];
        let tcp_offset = quoted.len() - segment.data.len() - segment.header.header_len();
        let quoted = &quoted[..quoted.len().min(quoted_len)];
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        match network {
            Network::V4 { .. } => {
                let packet = ethernet.ipv4(ROUTER4, CLIENT4, 60);
                let packet = packet.icmpv4_raw(about4.0, about4.1, [0; 4]);
                packet.write(&mut frame, quoted).expect("a vector takes it");
            }
            Network::V6 { .. } => {
                let packet = ethernet.ipv6(ROUTER6, CLIENT6, 60);
                let packet = packet.icmpv6_raw(about6.0, about6.1, [0; 4]);
                packet.write(&mut frame, quoted).expect("a vector takes it");
            }
        }
        let (source, destination) = network.addresses();
        let meant = if quoted.len() >= tcp_offset + 8 {
            Reading::Error(Quote {
                key: FlowKey {
                    source,
                    destination,
                    source_port: segment.header.source_port.to_be_bytes(),
                    destination_port: segment.header.destination_port.to_be_bytes(),
                },
                seq: segment.header.sequence_number,
            })
        } else {
            Reading::Unreadable
        };
        prop_assert_eq!(read(&frame, Link::Ethernet), meant);
    }

    #[test]
    fn a_third_tag_is_not_read_whatever_follows(segment in segment(), network in network()) {
        let tag = VlanId::try_new(9).expect("twelve bits");
        let (frame, _) = built(2, &network, &segment);
        let mut deeper = frame[..12].to_vec();
        deeper.extend([0x81, 0x00, 0, 9]);
        deeper.extend(&frame[12..]);
        prop_assert_eq!(read(&deeper, Link::Ethernet), Reading::Unreadable);
        // The builder's own idea of a tag is ours.
        let mut single = Vec::new();
        let vlan = VlanHeader::Single(etherparse::SingleVlanHeader {
            pcp: Default::default(),
            drop_eligible_indicator: false,
            vlan_id: tag,
            ether_type: etherparse::EtherType::IPV4,
        });
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .vlan(vlan)
            .ipv4(CLIENT4, SERVER4, 64)
            .tcp(CLIENT_PORT, SERVER_PORT, ISN, 1_000)
            .syn()
            .write(&mut single, &[]).expect("a vector takes it");
        prop_assert_eq!(read(&single, Link::Ethernet), syn_of(attempt4(), 0));
    }
}

/// A frame of the table with some bytes behind its Ethernet header changed.
fn damaged() -> impl Strategy<Value = (Vec<u8>, Link)> {
    let table: Vec<_> = frames()
        .into_iter()
        .map(|frame| (frame.bytes, frame.link))
        .collect();
    (select(table), vec((any::<Index>(), any::<u8>()), 0..6)).prop_map(
        |((mut bytes, link), changes)| {
            // Changes to the first bytes tell the most: draw from there twice as
            // often as behind.
            for (n, (index, value)) in changes.into_iter().enumerate() {
                let reach = if n % 2 == 0 {
                    bytes.len().min(64)
                } else {
                    bytes.len()
                };
                if reach > 0 {
                    let at = index.index(reach);
                    bytes[at] = value;
                }
            }
            (bytes, link)
        },
    )
}

/// Whether at most two tags of the kinds that we read lead to IP. The other
/// parser also walks MACsec, a third tag, and tags of an unofficial kind.
fn leads_to_ip(bytes: &[u8], link: Link) -> bool {
    let ethertypes = [12, 16, 20].map(|at| bytes.load::<2>(at));
    let is_ip = |e: &Option<[u8; 2]>| matches!(*e, Some(ETHERTYPE_IPV4 | ETHERTYPE_IPV6));
    let is_tag = |e: &Option<[u8; 2]>| matches!(*e, Some(ETHERTYPE_VLAN | ETHERTYPE_QINQ));
    let first = ethertypes.iter().find(|e| !is_tag(e));
    link == Link::Ip || first.is_some_and(is_ip)
}

/// All readers, whether they are meant for this packet or not.
fn read_in_every_way(bytes: &[u8], link: Link) {
    if let Headers::Found(layout) = headers(bytes, link) {
        kind(bytes, &layout);
        syn(bytes, &layout);
        answer(bytes, &layout);
        quote(bytes, &layout);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn arbitrary_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        read_in_every_way(&bytes, Link::Ethernet);
        read_in_every_way(&bytes, Link::Ip);
        for ethertype in [ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, ETHERTYPE_QINQ] {
            read_in_every_way(&ethernet(&[], ethertype, &bytes), Link::Ethernet);
        }
    }

    #[test]
    fn a_damaged_frame_is_read_as_an_independent_parser_does((bytes, link) in damaged()) {
        read_in_every_way(&bytes, Link::Ethernet);
        read_in_every_way(&bytes, Link::Ip);
        let reads = read(&bytes, link);
        if let Some(independent) = independent(&bytes, link)
            && leads_to_ip(&bytes, link)
        {
            prop_assert_eq!(reads, independent.reading());
        }
    }

    #[test]
    fn a_damaged_frame_that_is_cut_is_never_read_as_something_else(
        (bytes, link) in damaged(), len in any::<Index>(),
    ) {
        let whole = read(&bytes, link);
        let cut = read(&bytes[..len.index(bytes.len() + 1)], link);
        prop_assert!(cut == whole || !cut.is_of_an_attempt(), "{:?}, cut {:?}", whole, cut);
    }
}
