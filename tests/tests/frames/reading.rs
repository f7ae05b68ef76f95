//! What a frame is read as: by the core on the host, and by a program.

use super::bench::Entry;
use throttle_common::{
    flow::FlowKey,
    frame::{self, Headers, Kind, Link, Quoted},
};
use throttle_ebpf::{inbound::Incoming, scratch::Seen};

/// What a frame is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Syn {
        key: FlowKey,
        isn: u32,
        data_len: u32,
        network_offset: u32,
        transport_offset: u32,
    },
    SynAck(FlowKey, u32),
    Reset(FlowKey, u32),
    Error(FlowKey, u32),
    Other,
    Unparsed,
}

impl Reading {
    /// By the core, over all of the frame.
    pub(crate) fn on_the_host(frame: &[u8], link: Link) -> Self {
        Self::by_the_core(frame, link, |_| true)
    }

    /// The same for an entry, which goes no further into what does not concern
    /// it.
    pub(crate) fn for_entry(frame: &[u8], link: Link, entry: Entry) -> Self {
        Self::by_the_core(frame, link, |kind| match kind {
            Kind::SynAck | Kind::Reset | Kind::IcmpError => !entry.looks_outward(),
            Kind::Syn | Kind::Other | Kind::Unparsed => true,
        })
    }

    fn by_the_core(frame: &[u8], link: Link, concerns: impl Fn(Kind) -> bool) -> Self {
        let layout = match frame::headers(frame, link) {
            Headers::Found(layout) => layout,
            Headers::Other => return Self::Other,
            Headers::Unparsed => return Self::Unparsed,
        };
        let kind = frame::kind(frame, &layout);
        if !concerns(kind) {
            return Self::Other;
        }
        let read = match kind {
            Kind::Syn => frame::syn(frame, &layout).map(|syn| Self::Syn {
                key: syn.key,
                isn: syn.isn,
                data_len: syn.data_len,
                network_offset: layout.network_offset,
                transport_offset: layout.transport_offset,
            }),
            Kind::SynAck => frame::answer(frame, &layout).map(|a| Self::SynAck(a.key, a.ack)),
            Kind::Reset => frame::answer(frame, &layout).map(|a| Self::Reset(a.key, a.ack)),
            Kind::IcmpError => match frame::quote(frame, &layout) {
                Quoted::Tcp(quote) => Some(Self::Error(quote.key, quote.seq)),
                Quoted::Other => Some(Self::Other),
                Quoted::Unparsed => None,
            },
            Kind::Other => Some(Self::Other),
            Kind::Unparsed => None,
        };
        read.unwrap_or(Self::Unparsed)
    }

    /// By the program that has just run.
    pub(crate) fn in_the_kernel(seen: Option<Seen>, unparsed: u64) -> Self {
        const OF_SYN: u32 = Incoming::Syn as u32;
        const OF_SYN_ACK: u32 = Incoming::SynAck as u32;
        const OF_RESET: u32 = Incoming::Reset as u32;
        const OF_ERROR: u32 = Incoming::IcmpError as u32;
        match (seen, unparsed) {
            (None, 0) => Self::Other,
            (None, 1) => Self::Unparsed,
            (Some(seen), 0) => match seen.incoming {
                OF_SYN => Self::Syn {
                    key: seen.key,
                    isn: seen.number,
                    data_len: seen.data_len,
                    network_offset: seen.network_offset,
                    transport_offset: seen.transport_offset,
                },
                OF_SYN_ACK => Self::SynAck(seen.key, seen.number),
                OF_RESET => Self::Reset(seen.key, seen.number),
                OF_ERROR => Self::Error(seen.key, seen.number),
                other => panic!("noted as {other}"),
            },
            (seen, unparsed) => {
                panic!("{unparsed} unparsed, noted: {}", seen.is_some())
            }
        }
    }
}

/// Whether the kernel's own runner may refuse a frame: it wants something behind
/// the Ethernet header (`convert___skb_to_skb` in net/bpf/test_run.c) and, from
/// Linux 6.18 on, a whole IP header if it sees one announced. Behind a VLAN tag,
/// and without an Ethernet header, it sees none.
pub(crate) fn is_refused_by_the_runner(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14 + 1,
    };
    frame.len() < least
}
