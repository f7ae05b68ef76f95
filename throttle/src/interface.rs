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
    packet_route::{RouteNetlinkMessage, link::LinkLayerType, tc::TcAttribute},
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

impl Interface {
    /// The interface called `name`.
    ///
    /// # Errors
    ///
    /// When there is none, or its frames start with neither Ethernet nor IP.
    pub async fn find(name: &str) -> Result<Self> {
        let what = format!("find interface {name}");
        if !can_be_name(name) {
            return Err(Error::Usage(format!(
                "{what}: this cannot be the name of an interface; `ip link` lists those there are"
            )));
        }
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
        let kind = message.header.link_layer_type;
        let link = link_of(kind).ok_or_else(|| {
            Error::Refused(format!(
                "{what}: its frames are of type {kind:?}; throttle reads Ethernet and plain IP only. \
                 Attach to the device above or below it"
            ))
        })?;
        Ok(Self {
            index: message.header.index,
            name: name.to_owned(),
            link,
        })
    }
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

/// The indices of interfaces that vanish from this network namespace, as they
/// do.
///
/// # Errors
///
/// When the kernel does not let itself be listened to.
pub fn vanishing() -> Result<BoxStream<'static, u32>> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .map_err(|error| Error::failed("listen for interfaces that vanish", error))?;
    tokio::spawn(connection);
    Ok(Box::pin(messages.filter_map(
        async |(message, _)| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                Some(link.header.index)
            }
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
    let handle = connect()?;
    let index = i32::try_from(index).unwrap_or(i32::MAX);
    for ingress in [true, false] {
        let mut filters = handle.traffic_filter(index);
        let request = filters.get();
        let request = if ingress {
            request.ingress()
        } else {
            request.egress()
        };
        let found: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|error| Error::failed("list the filters of an interface", error))?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
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
