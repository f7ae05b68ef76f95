//! What a device is: asked over netlink, in the network namespace of the
//! caller. /sys may belong to another one.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's enums have dozens of variants that say nothing to us"
)]

use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkLayerType, LinkMessage},
        tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
    },
};
use throttle_common::frame::Link;

use crate::{Error, Result};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name, when it was asked for.
    pub name: String,
    /// How its frames start.
    pub link: Link,
}

/// A connection to the kernel's routing netlink, with its driver task.
fn connect() -> Result<rtnetlink::Handle> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| Error::failed("open netlink", error))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Why a device cannot be attached to: its frames start with neither Ethernet nor
/// IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(String);

impl Interface {
    /// What a message says of a device. None if it does not say what it is called.
    fn of(message: &LinkMessage) -> Option<Result<Self, (u32, String, Unreadable)>> {
        let name = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
        let index = message.header.index;
        let kind = message.header.link_layer_type;
        let Some(link) = link_of(kind) else {
            return Some(Err((index, name, Unreadable(format!("{kind:?}")))));
        };
        Some(Ok(Self { index, name, link }))
    }

    /// The interface called `name`.
    ///
    /// # Errors
    ///
    /// When there is none, or its frames start with neither Ethernet nor IP.
    pub async fn find(name: &str) -> Result<Self> {
        let what = format!("find interface {name}");
        check_name(name)?;
        let handle = connect()?;
        let found = handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await;
        let message = match found {
            Ok(Some(message)) => message,
            Ok(None) => return Err(unknown(&what)),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -nix::libc::ENODEV =>
            {
                return Err(unknown(&what));
            }
            Err(error) => return Err(Error::failed(what, error)),
        };
        match Self::of(&message) {
            Some(Ok(interface)) => Ok(interface),
            Some(Err((_, _, Unreadable(kind)))) => Err(Error::Refused(format!(
                "{what}: its frames are of type {kind}; throttle reads Ethernet and plain IP only. \
                 Attach to the device above or below it"
            ))),
            None => Err(unknown(&what)),
        }
    }
}

/// Refuses what cannot be the name of an interface.
fn check_name(name: &str) -> Result<()> {
    if can_be_name(name) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "find interface {name}: this cannot be the name of an interface; `ip link` lists those there \
         are"
    )))
}

/// Whether an interface can be called so.
#[must_use]
pub fn can_be_name(name: &str) -> bool {
    // IFNAMSIZ of include/uapi/linux/if.h, with its closing NUL.
    !name.is_empty() && name.len() < 16 && !name.contains(['/', '\0'])
}

/// How the frames of a device of this kind start. None if throttle cannot read
/// them.
#[must_use]
pub const fn link_of(kind: LinkLayerType) -> Option<Link> {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => Some(Link::Ethernet),
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ppp
        | LinkLayerType::Rawip => Some(Link::Ip),
        _ => None,
    }
}

fn unknown(what: &str) -> Error {
    Error::Refused(format!(
        "{what}: there is none in this network namespace; `ip link` lists those there are"
    ))
}

/// What the kernel tells of the interfaces of this network namespace.
async fn links() -> Result<Vec<LinkMessage>> {
    connect()?
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::failed("list the interfaces", error))
}

/// All interfaces of this network namespace that can be attached to.
///
/// # Errors
///
/// When the kernel does not tell.
pub async fn all() -> Result<Vec<Interface>> {
    let messages = links().await?;
    let readable = messages.iter().filter_map(Interface::of);
    Ok(readable.filter_map(Result::ok).collect())
}

/// What all interfaces of this network namespace are called, by index, also those
/// that cannot be attached to.
///
/// # Errors
///
/// When the kernel does not tell.
pub async fn names() -> Result<Vec<(u32, String)>> {
    let messages = links().await?;
    let named = messages.iter().filter_map(Interface::of);
    Ok(named
        .map(|found| match found {
            Ok(Interface { index, name, .. }) | Err((index, name, _)) => (index, name),
        })
        .collect())
}

/// Whether this is a pattern, and no name.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The interfaces that an operator wants: by name, or all that fit a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    names: Vec<String>,
    patterns: Vec<glob::Pattern>,
}

impl Wanted {
    /// What is wanted by these words. One with `*`, `?` or `[` in it is a pattern.
    ///
    /// # Errors
    ///
    /// When a word can be neither a name nor a pattern, or there is none.
    pub fn new(words: &[String]) -> Result<Self> {
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        for word in words {
            if is_pattern(word) {
                patterns.push(glob::Pattern::new(word).map_err(|error| {
                    Error::Usage(format!(
                        "interface pattern {word}: {}; write for example 'veth*'",
                        error.msg
                    ))
                })?);
            } else {
                check_name(word)?;
                names.push(word.clone());
            }
        }
        if names.is_empty() && patterns.is_empty() {
            return Err(Error::Usage(
                "which interface? name one with -i; `ip link` lists those there are".into(),
            ));
        }
        Ok(Self { names, patterns })
    }

    /// Those that are wanted by name.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether some are wanted that need not be there yet.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// Whether an interface of this name is wanted. The loopback interface is so
    /// only by its name.
    #[must_use]
    pub fn includes(&self, name: &str) -> bool {
        self.names.iter().any(|wanted| wanted == name)
            || name != "lo" && self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// Those that are there: each that is wanted by name, and all that fit a
    /// pattern.
    ///
    /// # Errors
    ///
    /// When one that is wanted by name is not there or cannot be attached to.
    pub async fn find(&self) -> Result<Vec<Interface>> {
        self.find_but(&[]).await
    }

    /// As [`find`](Self::find); those of `before` that are wanted by name may be
    /// missing for now.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn find_but(&self, before: &[String]) -> Result<Vec<Interface>> {
        let mut found: Vec<Interface> = Vec::new();
        for name in &self.names {
            let interface = match Interface::find(name).await {
                Ok(interface) => interface,
                Err(Error::Refused(_)) if before.contains(name) => continue,
                Err(error) => return Err(error),
            };
            // Named twice is still attached once.
            if !found.contains(&interface) {
                found.push(interface);
            }
        }
        if self.is_open() {
            for interface in all().await? {
                if self.includes(&interface.name) && !found.contains(&interface) {
                    found.push(interface);
                }
            }
        }
        Ok(found)
    }
}

/// What happens to the interfaces of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// One is there: it has appeared, or something about it has changed.
    There(Interface),
    /// One is there whose frames cannot be read.
    Unreadable(String),
    /// One has vanished: deleted, or moved elsewhere.
    Gone(u32),
    /// Something about a qdisc has changed.
    Qdisc,
    /// So much has happened that some of it was missed.
    Missed,
}

/// What happens to the interfaces of this network namespace, as it does.
///
/// # Errors
///
/// When the kernel does not let itself be listened to.
pub fn changes() -> Result<BoxStream<'static, Change>> {
    let (connection, _, messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link, MulticastGroup::Tc])
            .map_err(|error| Error::failed("listen for interfaces that come and go", error))?;
    tokio::spawn(connection);
    Ok(Box::pin(messages.filter_map(
        async |(message, _)| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                // A bridge tells so of a port that leaves it (AF_BRIDGE).
                (link.header.interface_family == AddressFamily::Unspec)
                    .then_some(Change::Gone(link.header.index))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                match Interface::of(&link)? {
                    Ok(interface) => Some(Change::There(interface)),
                    Err((_, name, _)) => Some(Change::Unreadable(name)),
                }
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewQueueDiscipline(_)
                | RouteNetlinkMessage::DelQueueDiscipline(_),
            ) => Some(Change::Qdisc),
            NetlinkPayload::Overrun(_) => Some(Change::Missed),
            _ => None,
        },
    )))
}

/// Whether this interface has a clsact qdisc. In its place there can be an
/// ingress qdisc, which takes filters for egress as well, and runs them at
/// ingress (`ingress_tcf_block` in net/sched/sch_ingress.c).
///
/// # Errors
///
/// When the kernel does not tell.
pub async fn has_clsact(index: u32) -> Result<bool> {
    let handle = connect()?;
    let index = i32::try_from(index).unwrap_or(i32::MAX);
    let found: Vec<_> = handle
        .qdisc()
        .get()
        .index(index)
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::failed("list the qdiscs of an interface", error))?;
    // Old kernels list those of all interfaces.
    Ok(found.iter().any(|qdisc| {
        qdisc.header.index == index
            && qdisc
                .attributes
                .contains(&TcAttribute::Kind("clsact".to_owned()))
    }))
}

/// Whether any filter hangs on the clsact qdisc of this interface.
///
/// # Errors
///
/// When the kernel does not tell.
pub async fn has_filters(index: u32) -> Result<bool> {
    Ok(!filters(index).await?.is_empty())
}

/// The filters on the clsact qdisc of this interface, and whether each is on ingress.
async fn filters(index: u32) -> Result<Vec<(bool, TcMessage)>> {
    let handle = connect()?;
    let index = i32::try_from(index).unwrap_or(i32::MAX);
    let mut all = Vec::new();
    for is_ingress in [true, false] {
        let mut filters = handle.traffic_filter(index);
        let request = filters.get();
        let request = if is_ingress {
            request.ingress()
        } else {
            request.egress()
        };
        let found: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|error| Error::failed("list the filters of an interface", error))?;
        all.extend(found.into_iter().map(|filter| (is_ingress, filter)));
    }
    Ok(all)
}

/// Removes the clsact qdisc of this interface.
///
/// # Errors
///
/// When the kernel does not do it.
pub async fn remove_clsact(index: u32) -> Result<()> {
    // TC_H_CLSACT and the handle ffff: of include/uapi/linux/pkt_sched.h.
    const CLSACT: u32 = 0xffff_fff1;
    const HANDLE: u32 = 0xffff_0000;
    let handle = connect()?;
    let mut request = handle.qdisc().del(i32::try_from(index).unwrap_or(i32::MAX));
    let header = &mut request.message_mut().header;
    header.parent = CLSACT.into();
    header.handle = HANDLE.into();
    request
        .execute()
        .await
        .map_err(|error| Error::failed("remove the clsact qdisc that throttle had added", error))
}

/// A BPF filter on a clsact qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfFilter {
    /// Whether it is on ingress, else on egress.
    pub is_ingress: bool,
    /// What it is called: with those of aya, the name of the program.
    pub name: String,
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// The id of its program, if the kernel tells.
    pub program: Option<u32>,
}

/// The BPF filters on the clsact qdisc of this interface.
///
/// # Errors
///
/// When the kernel does not tell.
pub async fn bpf_filters(index: u32) -> Result<Vec<BpfFilter>> {
    let all = filters(index).await?.into_iter();
    Ok(all
        .filter_map(|(is_ingress, filter)| {
            Some(BpfFilter {
                is_ingress,
                name: filter.attributes.iter().find_map(bpf_name)?,
                // TC_H_MAJ of `tcm_info` (include/uapi/linux/pkt_sched.h).
                priority: u16::try_from(filter.header.info >> 16).unwrap_or(0),
                handle: filter.header.handle.into(),
                program: filter.attributes.iter().find_map(bpf_program),
            })
        })
        .collect())
}

/// The id of the program of a BPF filter, if this attribute has it.
fn bpf_program(attribute: &TcAttribute) -> Option<u32> {
    let TcAttribute::Options(options) = attribute else {
        return None;
    };
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

/// The name of a BPF filter, if this attribute has it.
fn bpf_name(attribute: &TcAttribute) -> Option<String> {
    let TcAttribute::Options(options) = attribute else {
        return None;
    };
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(words: &[&str]) -> Result<Wanted> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Wanted::new(&words)
    }

    #[test]
    fn a_pattern_wants_all_that_fit_and_the_loopback_only_by_name() {
        let wanted_ = wanted(&["eth0", "veth*", "cali[0-9a-f]?"]).unwrap();
        for name in ["eth0", "veth", "veth12ab", "calif1"] {
            assert!(wanted_.includes(name), "{name}");
        }
        for name in ["eth1", "xveth", "calig1", "lo"] {
            assert!(!wanted_.includes(name), "{name}");
        }
        assert!(wanted_.is_open());
        assert!(!wanted(&["*"]).unwrap().includes("lo"));
        assert!(wanted(&["lo"]).unwrap().includes("lo"));
    }

    #[test]
    fn what_is_neither_a_name_nor_a_pattern_is_refused() {
        for words in [&[][..], &[""], &["a/b"], &["sixteencharacters"], &["veth["]] {
            assert!(matches!(wanted(words), Err(Error::Usage(_))), "{words:?}");
        }
    }
}
