//! Interfaces, qdiscs and filters, as the kernel's routing netlink lists them
//! (include/uapi/linux/rtnetlink.h). Numbers are in the byte order of the host.
//!
//! Only what is needed is read, and any bytes are taken for a name: an interface
//! with an odd one must not be missed.

use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;
use serde::Serialize;

use crate::name::Name;

/// `struct ifinfomsg` and `struct tcmsg`, in bytes.
const IFINFOMSG: usize = 16;
const TCMSG: usize = 20;

/// `TC_H_ROOT` and `TC_H_INGRESS`, which is `TC_H_CLSACT` too, of
/// include/uapi/linux/pkt_sched.h.
const ROOT: u32 = 0xffff_ffff;
const CLSACT: u32 = 0xffff_fff1;
/// The parents of filters on what comes in and on what goes out:
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `TC_H_MIN_EGRESS`.
const DIRECTIONS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    /// `ARPHRD_…` of include/uapi/linux/if_arp.h.
    pub(super) kind: u16,
    pub(super) is_up: bool,
    pub(super) is_loopback: bool,
    pub(super) name: Vec<u8>,
    /// The root qdisc.
    pub(super) qdisc: Option<Name>,
}

/// A qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qdisc {
    pub(crate) index: u32,
    pub(crate) kind: Name,
    pub(crate) place: Place,
    /// Of an fq, in microseconds: what departs later than so far ahead it drops.
    pub(crate) horizon_us: Option<u32>,
}

/// Where a qdisc is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is the first that packets meet.
    Root,
    /// It takes filters on both directions, or on what comes in.
    Slot,
    /// It is below another one.
    Leaf,
}

/// What is in the place of the clsact qdisc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// That one.
    Clsact,
    /// The older one, for what comes in alone.
    Ingress,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Its chain; packets begin in chain 0.
    pub chain: u32,
    /// Its priority; the lowest number comes first.
    pub priority: u16,
    /// What kind it is: `bpf`, `flower`, `matchall` …
    pub kind: Name,
    /// The name of its program.
    pub name: Option<Vec<u8>>,
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

/// The attributes that can be read, each with its number.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .filter_map(|nla| {
            // The header is four bytes.
            let at = 4..usize::from(nla.length());
            Some((nla.kind(), nla.into_inner().get(at)?))
        })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// Without the zero that ends it.
fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

impl Link {
    fn read(message: &[u8]) -> Option<Self> {
        const IFLA_IFNAME: u16 = 3;
        const IFLA_QDISC: u16 = 6;
        const UP: u32 = libc::IFF_UP.cast_unsigned();
        const LOOPBACK: u32 = libc::IFF_LOOPBACK.cast_unsigned();
        // family, padding, type, index, flags, change
        let kind = message.get(2..4)?.try_into().ok()?;
        let flags = number(message, 8)?;
        let rest = message.get(IFINFOMSG..)?;
        Some(Self {
            index: number(message, 4)?,
            kind: u16::from_ne_bytes(kind),
            is_up: flags & UP != 0,
            is_loopback: flags & LOOPBACK != 0,
            name: text(attribute(rest, IFLA_IFNAME)?).to_vec(),
            qdisc: attribute(rest, IFLA_QDISC).map(Name::of_field),
        })
    }
}

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

impl Qdisc {
    fn read(message: &[u8]) -> Option<Self> {
        /// Of include/uapi/linux/pkt_sched.h.
        const TCA_FQ_HORIZON: u16 = 14;
        // family, padding, index, handle, parent, info
        let rest = message.get(TCMSG..)?;
        let kind = Name::of_field(attribute(rest, TCA_KIND)?);
        let options = attribute(rest, TCA_OPTIONS).filter(|_| kind.as_str() == "fq");
        let horizon = options.and_then(|options| attribute(options, TCA_FQ_HORIZON));
        Some(Self {
            horizon_us: horizon.and_then(|horizon| number(horizon, 0)),
            index: number(message, 4)?,
            place: match number(message, 12)? {
                ROOT => Place::Root,
                CLSACT => Place::Slot,
                _ => Place::Leaf,
            },
            kind,
        })
    }
}

impl Filter {
    fn read(message: &[u8]) -> Option<Self> {
        const TCA_CHAIN: u16 = 11;
        const TCA_BPF_NAME: u16 = 7;
        let rest = message.get(TCMSG..)?;
        let kind = text(attribute(rest, TCA_KIND)?);
        let options = attribute(rest, TCA_OPTIONS).filter(|_| kind == b"bpf");
        let name = options.and_then(|options| attribute(options, TCA_BPF_NAME));
        Some(Self {
            chain: attribute(rest, TCA_CHAIN)
                .and_then(|chain| number(chain, 0))
                .unwrap_or(0),
            // The priority, then the protocol.
            priority: u16::try_from(number(message, 16)? >> 16).ok()?,
            kind: Name::new(kind),
            name: name.map(|name| text(name).to_vec()),
        })
    }
}

/// The filters in the order they run, each once: the kernel lists a priority, and
/// then what is in it.
fn in_order(mut filters: Vec<Filter>) -> Vec<Filter> {
    filters.sort_by_key(|filter| (filter.chain, filter.priority));
    let mut kept: Vec<Filter> = Vec::new();
    for filter in filters {
        match kept.last_mut() {
            Some(last)
                if (last.chain, last.priority) == (filter.chain, filter.priority)
                    && (last.name.is_none() || filter.name.is_none()) =>
            {
                last.name = last.name.take().or(filter.name);
            }
            _ => kept.push(filter),
        }
    }
    kept
}

/// All interfaces of the caller's network namespace.
///
/// # Errors
///
/// When the kernel does not tell.
pub(super) fn links() -> io::Result<Vec<Link>> {
    let messages = dump(libc::RTM_GETLINK, &[0; IFINFOMSG])?;
    Ok(messages.iter().filter_map(|it| Link::read(it)).collect())
}

/// The qdiscs of all of them.
///
/// # Errors
///
/// When the kernel does not tell.
pub(crate) fn qdiscs() -> io::Result<Vec<Qdisc>> {
    let messages = dump(libc::RTM_GETQDISC, &[0; TCMSG])?;
    Ok(messages.iter().filter_map(|it| Qdisc::read(it)).collect())
}

/// The filters on what comes in to an interface, or on what goes out.
///
/// # Errors
///
/// When the kernel does not tell.
pub(super) fn filters(index: u32, direction: usize) -> io::Result<Vec<Filter>> {
    let mut request = [0; TCMSG];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    request[12..16].copy_from_slice(&DIRECTIONS[direction].to_ne_bytes());
    let messages = dump(libc::RTM_GETTFILTER, &request)?;
    let found = messages.iter().filter_map(|it| Filter::read(it));
    Ok(in_order(found.collect()))
}

/// Has the kernel list something, and returns what the messages carry.
fn dump(kind: u16, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    /// How often a list is asked for again that changed while it was made.
    const TRIES: u32 = 5;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut number = 0;
    loop {
        number += 1;
        match dump_once(&socket, kind, number, request)? {
            (messages, changed) if !changed || number == TRIES => return Ok(messages),
            _ => {}
        }
    }
}

/// The list, and whether it changed meanwhile.
fn dump_once(
    socket: &Socket,
    kind: u16,
    number: u32,
    request: &[u8],
) -> io::Result<(Vec<Vec<u8>>, bool)> {
    const HEADER: usize = 16;
    /// `NLM_F_REQUEST` and `NLM_F_DUMP` of include/uapi/linux/netlink.h.
    const FLAGS: u16 = 0x301;
    /// `NLM_F_DUMP_INTR`.
    const CHANGED: u16 = 0x10;
    /// `NLMSG_ERROR` and `NLMSG_DONE`.
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let len = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(request);
    socket.send(&message, 0)?;
    let (mut messages, mut changed) = (Vec::new(), false);
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let payload = message.payload();
            if message.sequence_number() == number {
                changed |= message.flags() & CHANGED != 0;
                match message.message_type() {
                    kind @ (DONE | ERROR) => {
                        // An error's number, negative, comes first in both.
                        let code = payload.get(..4).and_then(|code| code.try_into().ok());
                        let code = i32::from_ne_bytes(code.unwrap_or_default());
                        if code < 0 {
                            return Err(io::Error::from_raw_os_error(-code));
                        }
                        if kind == DONE {
                            return Ok((messages, changed));
                        }
                    }
                    _ => messages.push(payload.to_vec()),
                }
            }
            let len = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tc(index: u32, parent: u32, info: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let words = [0, index, 0, parent, info];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn the_loopback_device_is_listed_with_its_qdisc() {
        let links = links().unwrap();
        let lo = links.iter().find(|link| link.name == b"lo").unwrap();
        assert!(lo.is_loopback && lo.index > 0, "{lo:?}");
        assert!(lo.qdisc.is_some(), "{lo:?}");
    }

    #[test]
    fn qdiscs_and_filters_can_be_listed() {
        for qdisc in qdiscs().unwrap() {
            assert!(qdisc.index > 0 && !qdisc.kind.is_empty(), "{qdisc:?}");
        }
        // Nobody filters there.
        assert_eq!(filters(1, 0).unwrap_or_default(), []);
    }

    #[test]
    fn an_interface_may_be_called_anything() {
        let mut message = vec![0, 0, 1, 0];
        if cfg!(target_endian = "big") {
            message = vec![0, 0, 0, 1];
        }
        message.extend(7u32.to_ne_bytes());
        message.extend(1u32.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(nla(3, b"\xff\x1b\0"));
        message.extend(nla(6, b"fq\0"));
        let link = Link::read(&message).unwrap();
        assert_eq!((link.index, link.kind, link.is_up), (7, 1, true));
        assert_eq!(link.name, b"\xff\x1b");
        assert_eq!(link.qdisc, Some("fq".into()));
    }

    #[test]
    fn a_qdisc_is_the_root_below_it_or_in_the_place_of_clsact() {
        let place = |parent: u32| {
            let message = tc(2, parent, 1, &[nla(TCA_KIND, b"x\0")]);
            Qdisc::read(&message).unwrap().place
        };
        assert_eq!(place(0xffff_ffff), Place::Root);
        assert_eq!(place(0xffff_fff1), Place::Slot);
        // Below an mq that the kernel put there itself, and below one with a
        // handle.
        assert_eq!(place(1), Place::Leaf);
        assert_eq!(place(0x8001_0002), Place::Leaf);
    }

    #[test]
    fn the_horizon_of_an_fq_is_read_and_of_no_other() {
        let horizon = nla(2, &nla(14, &2_000_000u32.to_ne_bytes()));
        for (kind, expected) in [(&b"fq\0"[..], Some(2_000_000)), (b"x\0", None)] {
            let message = tc(2, 0xffff_ffff, 1, &[nla(TCA_KIND, kind), horizon.clone()]);
            assert_eq!(Qdisc::read(&message).unwrap().horizon_us, expected);
        }
    }

    #[test]
    fn a_filter_is_listed_once_and_the_lowest_priority_first() {
        let filter = |priority: u32, kind: &[u8], name: Option<&[u8]>| {
            let mut attributes = vec![nla(TCA_KIND, kind)];
            attributes.extend(name.map(|name| nla(2, &nla(7, name))));
            let info = priority << 16 | 0x0003;
            Filter::read(&tc(2, 0xffff_fff3, info, &attributes)).unwrap()
        };
        let found = in_order(vec![
            filter(49_152, b"bpf\0", None),
            filter(49_152, b"bpf\0", Some(b"a\0")),
            filter(49_152, b"bpf\0", Some(b"b\0")),
            filter(7, b"flower\0", None),
            filter(7, b"flower\0", None),
        ]);
        let shown: Vec<_> = found
            .iter()
            .map(|it| (it.priority, it.kind.as_str(), it.name.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [
                (7, "flower", None),
                (49_152, "bpf", Some(&b"a"[..])),
                (49_152, "bpf", Some(&b"b"[..])),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Link::read(&bytes), Qdisc::read(&bytes), Filter::read(&bytes));
        }

        #[test]
        fn a_message_that_is_cut_short_can_be_read(cut in 0usize..100) {
            let options = nla(2, &nla(7, b"program\0"));
            let mut message = tc(2, 0xffff_fff3, 1 << 16, &[nla(TCA_KIND, b"bpf\0"), options, nla(11, &[1, 0, 0, 0])]);
            message.truncate(cut);
            let _ = Filter::read(&message);
        }
    }
}
