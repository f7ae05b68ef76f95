//! VLAN devices, also on kernels without them.
//!
//! Where the kernel has no 802.1Q, a macvlan stands in: two BPF programs of
//! a few instructions push the tags on what it sends and pop them from what
//! it receives. On the wire, and on the device below, the two are the same:
//! the last tag is kept beside the frame, as a NIC with VLAN offload has it.

use crate::{
    netns::Namespace,
    sys::{self, Hook},
};
use std::os::fd::OwnedFd;

/// A device that adds tags. Keeps the stand-in's programs attached.
#[derive(Debug)]
pub struct Tagged {
    /// Its name.
    pub device: String,
    _links: Vec<OwnedFd>,
}

/// The protocol of a tag: the outer one of two is a service tag.
fn protocol(index: usize, count: usize) -> u16 {
    if index + 1 < count { 0x88a8 } else { 0x8100 }
}

/// The name of that device.
pub(crate) fn device_name(lower: &str, ids: &[u16]) -> String {
    ids.iter()
        .fold(lower.to_owned(), |name, id| format!("{name}.{id}"))
}

/// Makes the device that adds `ids` (the outermost first) to what leaves by `lower`:
/// `lower` and the ids, with dots between them.
///
/// # Panics
/// When there is no such device.
pub fn add_device(namespace: &Namespace, lower: &str, ids: &[u16], mac: &str) -> Tagged {
    let mut below = lower.to_owned();
    for (index, id) in ids.iter().enumerate() {
        let device = format!("{below}.{id}");
        let kind = if protocol(index, ids.len()) == 0x8100 {
            "802.1Q"
        } else {
            "802.1ad"
        };
        let add = format!("link add link {below} name {device} type vlan proto {kind} id {id}");
        let added = namespace.program("ip").args(add.split(' ')).output();
        if !added.status.success() {
            assert_eq!(index, 0, "`{}`: {}", added.line, added.stderr);
            return add_stand_in(namespace, lower, ids, mac);
        }
        namespace.ip(&format!("link set {device} address {mac} up"));
        below = device;
    }
    Tagged {
        device: below,
        _links: Vec::new(),
    }
}

fn add_stand_in(namespace: &Namespace, lower: &str, ids: &[u16], mac: &str) -> Tagged {
    let device = device_name(lower, ids);
    namespace.ip(&format!(
        "link add link {lower} name {device} address {mac} type macvlan mode private"
    ));
    let ifindex = namespace.ifindex(&device);
    let tags: Vec<(u16, u16)> = ids
        .iter()
        .enumerate()
        .map(|(index, &id)| (protocol(index, ids.len()), id))
        .collect();
    let links = [
        (Hook::Egress, pusher(&tags)),
        (Hook::Ingress, popper(tags.len())),
    ]
    .map(|(hook, code)| namespace.run(|| sys::attach_tcx(&code, ifindex, hook)))
    .map(|link| link.unwrap_or_else(|e| panic!("attach the tags of {device}: {e}")));
    namespace.ip(&format!("link set {device} up"));
    Tagged {
        device,
        _links: links.into(),
    }
}

/// One BPF instruction: opcode, destination, source and immediate operand.
const fn op(code: u8, dst: u8, src: u8, imm: i32) -> u64 {
    code as u64 | (dst as u64) << 8 | (src as u64) << 12 | (imm as u32 as u64) << 32
}

const MOVE_REGISTER: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `bpf_skb_vlan_push`, `bpf_skb_vlan_pop`.
const VLAN_PUSH: i32 = 18;
const VLAN_POP: i32 = 19;
/// `TCX_NEXT`: other programs of the hook run as well.
const NEXT: i32 = -1;

/// Pushes `tags` (protocol and id, the outermost first).
fn pusher(tags: &[(u16, u16)]) -> Vec<u64> {
    let mut code = vec![op(MOVE_REGISTER, 6, 1, 0)];
    for &(protocol, id) in tags.iter().rev() {
        code.extend([
            op(MOVE_REGISTER, 1, 6, 0),
            op(MOVE_NUMBER, 2, 0, i32::from(protocol.to_be())),
            op(MOVE_NUMBER, 3, 0, i32::from(id)),
            op(CALL, 0, 0, VLAN_PUSH),
        ]);
    }
    code.extend([op(MOVE_NUMBER, 0, 0, NEXT), op(EXIT, 0, 0, 0)]);
    code
}

/// Pops `count` tags.
fn popper(count: usize) -> Vec<u64> {
    let mut code = vec![op(MOVE_REGISTER, 6, 1, 0)];
    for _ in 0..count {
        code.extend([op(MOVE_REGISTER, 1, 6, 0), op(CALL, 0, 0, VLAN_POP)]);
    }
    code.extend([op(MOVE_NUMBER, 0, 0, NEXT), op(EXIT, 0, 0, 0)]);
    code
}
