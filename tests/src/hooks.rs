//! What is attached and loaded, to compare before with after.

use crate::{
    netns::Namespace,
    sys::{self, BpfKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

pub use crate::sys::Hook;

/// What sits at the devices of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// `tc qdisc show`.
    pub qdiscs: String,
    /// `tc filter show` of each device and direction that has any.
    pub filters: BTreeMap<(String, Hook), String>,
    /// Ids of the TCX programs of each device and direction that has any.
    pub tcx: BTreeMap<(String, Hook), Vec<u32>>,
}

impl HookState {
    /// What sits at the devices of `namespace` now.
    ///
    /// # Panics
    /// Without `tc`.
    #[track_caller]
    pub fn of(namespace: &Namespace) -> Self {
        let qdiscs = namespace.tc("qdisc show");
        let mut filters = BTreeMap::new();
        let mut tcx = BTreeMap::new();
        for device in namespace.devices() {
            let ifindex = namespace.ifindex(&device);
            for (hook, name) in [(Hook::Ingress, "ingress"), (Hook::Egress, "egress")] {
                let place = (device.clone(), hook);
                let shown = namespace
                    .program("tc")
                    .args(["filter", "show", "dev", &device, name])
                    .output();
                // It fails where there is no clsact qdisc.
                if !shown.stdout.trim().is_empty() {
                    filters.insert(place.clone(), shown.stdout);
                }
                let programs = namespace.run(|| sys::tcx_programs(ifindex, hook));
                if let Some(programs) = programs.filter(|programs| !programs.is_empty()) {
                    tcx.insert(place, programs);
                }
            }
        }
        Self {
            qdiscs,
            filters,
            tcx,
        }
    }
}

/// Attaches a program without a name by TCX, after those that are there, that
/// lets everything pass. It is there until the link is closed.
///
/// # Panics
/// When the kernel does not take it.
#[track_caller]
pub fn attach_passing(namespace: &Namespace, device: &str, hook: Hook) -> OwnedFd {
    // r0 = TCX_NEXT; exit
    const PASS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let ifindex = namespace.ifindex(device);
    namespace
        .run(|| sys::attach_tcx(&PASS, ifindex, hook))
        .unwrap_or_else(|e| panic!("attach a program to {device}: {e}"))
}

/// The BPF objects of the whole machine. Others may add to them meanwhile,
/// so compare names, or what one's own programs are called.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BpfObjects {
    /// Names of the programs by id.
    pub programs: BTreeMap<u32, String>,
    /// Names of the maps by id.
    pub maps: BTreeMap<u32, String>,
    /// Ids of the links.
    pub links: BTreeSet<u32>,
}

impl BpfObjects {
    /// What is loaded now.
    pub fn now() -> Self {
        Self {
            programs: named(BpfKind::Program),
            maps: named(BpfKind::Map),
            links: ids(BpfKind::Link).collect(),
        }
    }

    /// What is there that was not there `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let fresh = |now: &BTreeMap<u32, String>, old: &BTreeMap<u32, String>| {
            now.iter()
                .filter(|(id, _)| !old.contains_key(id))
                .map(|(&id, name)| (id, name.clone()))
                .collect()
        };
        Self {
            programs: fresh(&self.programs, &before.programs),
            maps: fresh(&self.maps, &before.maps),
            links: self.links.difference(&before.links).copied().collect(),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn ids(kind: BpfKind) -> impl Iterator<Item = u32> {
    std::iter::successors(sys::next_bpf_id(kind, 0), move |&id| {
        sys::next_bpf_id(kind, id)
    })
}

fn named(kind: BpfKind) -> BTreeMap<u32, String> {
    // What ended between the two questions is not there.
    ids(kind)
        .filter_map(|id| Some((id, sys::bpf_name(kind, id)?)))
        .collect()
}

/// Ids of the TCX programs at one hook of a device; none if there is no such
/// device.
pub fn tcx_programs(namespace: &Namespace, ifindex: u32, hook: Hook) -> Vec<u32> {
    let found = namespace.run(|| sys::tcx_programs(ifindex, hook));
    found.unwrap_or_default()
}
