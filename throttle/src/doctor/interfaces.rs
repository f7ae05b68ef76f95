//! What the facts mean for each interface.

use std::collections::HashMap;

use serde::Serialize;
use throttle_common::frame::Link;

use super::{
    Finding, Lack,
    facts::{Device, Has, Tcx},
    first_of, in_command,
    netlink::{Filter, Slot},
};
use crate::{attach, name::Name};

/// Most programs of one hook that are told in a text.
const PROGRAMS_SHOWN: usize = 6;

/// An interface, and what was found of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; none if there is no such interface.
    pub index: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// How its frames start; none if throttle cannot read them.
    pub link: Option<&'static str>,
    /// Its root qdisc.
    pub qdisc: Option<String>,
    /// Whether packets leave it at their departure times: it has fq.
    pub departure_times: bool,
    /// What is in the place of the clsact qdisc.
    pub slot: Option<Slot>,
    /// Programs on what comes in, in the order they run; none if not all could be
    /// seen.
    pub ingress: Option<Vec<Entry>>,
    /// Programs on what goes out, in the order they run; none if not all could be
    /// seen.
    pub egress: Option<Vec<Entry>>,
    /// What that means.
    pub findings: Vec<Finding>,
}

/// A program or filter on a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// By what it is attached: `tcx` or `clsact`.
    pub by: &'static str,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The id of a TCX program.
    pub id: Option<u32>,
    /// The kind of a filter.
    pub kind: Option<String>,
    /// The chain of a filter.
    pub chain: Option<u32>,
    /// The priority of a filter.
    pub priority: Option<u16>,
    /// Whether it is called like one of throttle's.
    pub ours: bool,
}

/// Interfaces of which the same is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) names: Vec<String>,
    pub(super) findings: Vec<Finding>,
}

/// How a finding speaks of the device and of its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wording {
    /// Of this one.
    One,
    /// So that it fits others like it.
    Any,
}

/// Judges all devices but the loopback one, or those in `asked`. Returns them one
/// by one, and in groups.
pub(super) fn judge(
    devices: &[Device],
    tcx: &Has,
    asked: &[String],
) -> (Vec<Interface>, Vec<Group>) {
    let mut interfaces = Vec::new();
    let mut groups: Vec<(Group, Vec<Finding>)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for device in wanted(devices, asked) {
        let one = interface(&device, tcx, !asked.is_empty());
        let any = said(&device, tcx, !asked.is_empty(), Wording::Any);
        let group = *known.entry(key(&any)).or_insert_with(|| {
            let group = Group {
                names: Vec::new(),
                findings: one.findings.clone(),
            };
            groups.push((group, any));
            groups.len() - 1
        });
        groups[group].0.names.push(one.name.clone());
        interfaces.push(one);
    }
    for name in missing(devices, asked) {
        let one = not_there(name);
        let group = Group {
            names: vec![one.name.clone()],
            findings: one.findings.clone(),
        };
        groups.push((group, Vec::new()));
        interfaces.push(one);
    }
    let groups = groups
        .into_iter()
        .map(|(group, any)| match group.names.len() {
            1 => group,
            _ => Group {
                findings: any,
                ..group
            },
        });
    (interfaces, groups.collect())
}

/// Two devices with the same key are told of together.
fn key(findings: &[Finding]) -> String {
    let parts = findings.iter().map(|it| {
        let remedy = it.remedy.as_deref().unwrap_or_default();
        format!("{:?}\0{}\0{remedy}", it.state, it.found)
    });
    parts.collect::<Vec<_>>().join("\0")
}

fn wanted(devices: &[Device], asked: &[String]) -> Vec<Device> {
    let is_wanted = |device: &&Device| match asked {
        [] => !device.is_loopback,
        _ => asked.iter().any(|name| name.as_bytes() == device.name),
    };
    devices.iter().filter(is_wanted).cloned().collect()
}

fn missing<'a>(devices: &[Device], asked: &'a [String]) -> Vec<&'a String> {
    let mut missing: Vec<&String> = asked
        .iter()
        .filter(|name| devices.iter().all(|device| device.name != name.as_bytes()))
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

fn not_there(name: &str) -> Interface {
    let name = Name::new(name).to_string();
    let found = "there is none of this name in this network namespace";
    let finding = Finding::missing(Lack::Interface, name.as_str(), found)
        .remedy("`ip link` lists those there are");
    Interface {
        index: None,
        up: false,
        link: None,
        qdisc: None,
        departure_times: false,
        slot: None,
        ingress: None,
        egress: None,
        findings: vec![finding],
        name,
    }
}

fn interface(device: &Device, tcx: &Has, asked: bool) -> Interface {
    Interface {
        name: Name::new(&device.name).to_string(),
        index: Some(device.index),
        up: device.is_up,
        link: device.link.as_ref().ok().map(|link| match link {
            Link::Ethernet => "ethernet",
            Link::Ip => "ip",
        }),
        qdisc: device.qdisc.as_ref().map(Name::to_string),
        departure_times: keeps_departure_times(device),
        slot: device.slot,
        ingress: all_entries(device, 0),
        egress: all_entries(device, 1),
        findings: said(device, tcx, asked, Wording::One),
    }
}

/// Whether the device lets packets go at their departure times: fq does, at the
/// root or at every queue of an mq.
fn keeps_departure_times(device: &Device) -> bool {
    const FQ: &str = "fq";
    match device.qdisc.as_ref().map(Name::as_str) {
        Some(FQ) => true,
        Some("mq") => {
            !device.leaves.is_empty() && device.leaves.iter().all(|leaf| leaf.as_str() == FQ)
        }
        _ => false,
    }
}

fn all_entries(device: &Device, direction: usize) -> Option<Vec<Entry>> {
    let all = matches!(device.tcx[direction], Ok(Tcx::Programs(_)));
    (all && device.filters[direction].is_ok()).then(|| entries(device, direction))
}

/// What is seen on the hook in this direction, in the order it runs: TCX first
/// (`sch_handle_ingress` in net/core/dev.c).
fn entries(device: &Device, direction: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Ok(Tcx::Programs(programs)) = &device.tcx[direction] {
        entries.extend(programs.iter().map(|program| Entry {
            by: "tcx",
            name: (!program.name.is_empty()).then(|| Name::new(&program.name).to_string()),
            id: Some(program.id),
            kind: None,
            chain: None,
            priority: None,
            ours: attach::is_ours(&program.name),
        }));
    }
    let filters = device.filters[direction].iter().flatten();
    entries.extend(filters.map(|filter: &Filter| Entry {
        by: "clsact",
        name: filter.name.as_ref().map(|name| Name::new(name).to_string()),
        id: None,
        kind: Some(filter.kind.to_string()),
        chain: Some(filter.chain),
        priority: Some(filter.priority),
        ours: filter.name.as_deref().is_some_and(attach::is_ours),
    }));
    entries
}

impl Entry {
    fn described(&self, wording: Wording) -> String {
        let name = self.name.as_deref().unwrap_or("a program without a name");
        match (self.id, &self.kind, self.priority) {
            (Some(id), _, _) if wording == Wording::One => format!("{name} (TCX, id {id})"),
            (None, Some(kind), Some(priority)) => {
                let name = self.name.as_ref().map(|name| format!(" {name}"));
                let name = name.unwrap_or_default();
                format!("{kind}{name} (filter, priority {priority})")
            }
            _ => format!("{name} (TCX)"),
        }
    }
}

/// All that is to be said of a device.
fn said(device: &Device, tcx: &Has, asked: bool, wording: Wording) -> Vec<Finding> {
    let name = match wording {
        Wording::One => in_command(&device.name),
        Wording::Any => "IFACE".into(),
    };
    let check = Name::new(&device.name).to_string();
    let mut findings = vec![what_it_is(device, asked, &check)];
    if device.link.is_err() {
        return findings;
    }
    findings.extend(pacing(device, &check, &name));
    findings.extend(slot(device, tcx, asked, &check, &name));
    for (direction, what) in ["what comes in", "what goes out"].into_iter().enumerate() {
        findings.extend(programs(device, direction, tcx, what, &check, wording));
    }
    findings
}

fn what_it_is(device: &Device, asked: bool, check: &str) -> Finding {
    let up = if device.is_up { "up" } else { "down" };
    let qdisc = match &device.qdisc {
        Some(qdisc) => format!(", qdisc {qdisc}"),
        None => String::new(),
    };
    match &device.link {
        Ok(Link::Ethernet) => Finding::ok(check, format!("{up}, Ethernet{qdisc}")),
        Ok(Link::Ip) => Finding::ok(check, format!("{up}, IP{qdisc}")),
        Err(kind) => {
            let found =
                format!("{up}, frames of type {kind}: throttle reads Ethernet and plain IP");
            let finding = match asked {
                true => Finding::missing(Lack::Interface, check, found),
                false => Finding::note(check, found),
            };
            finding.remedy("attach to the device above or below it")
        }
    }
}

/// Of a device that is down the qdisc says nothing: it gets one when it comes up.
fn pacing(device: &Device, check: &str, name: &str) -> Option<Finding> {
    if keeps_departure_times(device) || !device.is_up {
        return None;
    }
    let found = match &device.qdisc {
        Some(qdisc) if qdisc.as_str() == "mq" => "not every queue has fq",
        Some(_) | None => "no fq",
    };
    let remedy = if found == "no fq" {
        format!("tc qdisc replace dev {name} root fq")
    } else {
        format!("sysctl net.core.default_qdisc=fq && tc qdisc replace dev {name} root mq")
    };
    let found = format!(
        "{found}: releases are exact while the daemon re-sends; without it (--keep, --pacing fq) they \
         go out at their senders' retransmissions"
    );
    let finding = Finding::note(check, found).remedy(remedy);
    Some(finding.needed_for("releases by departure time"))
}

fn slot(device: &Device, tcx: &Has, asked: bool, check: &str, name: &str) -> Option<Finding> {
    if device.slot != Some(Slot::Ingress) {
        return None;
    }
    let found = "an ingress qdisc is in the place of clsact: ";
    let finding = match (*tcx == Has::Yes, asked) {
        (true, _) => {
            let found = format!("{found}TCX works beside it, --hook clsact does not");
            Finding::note(check, found)
        }
        (false, true) => {
            let found = format!("{found}without TCX nothing can be attached");
            Finding::missing(Lack::Interface, check, found)
        }
        (false, false) => {
            Finding::note(check, format!("{found}without TCX nothing can be attached"))
        }
    };
    Some(finding.remedy(format!("tc qdisc delete dev {name} ingress")))
}

/// What is on the hook in one direction, and whether it sees packets before
/// throttle does.
fn programs(
    device: &Device,
    direction: usize,
    tcx: &Has,
    what: &str,
    check: &str,
    wording: Wording,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &device.tcx[direction] {
        Ok(Tcx::Programs(_)) => {}
        Ok(Tcx::Unnamed) => findings.push(Finding::unknown(
            check,
            &format!("there are TCX programs on {what}; to see which takes CAP_SYS_ADMIN"),
        )),
        // Else it is said of the hook itself.
        Err(why) if *tcx == Has::Yes => findings.push(unknown(check, "TCX programs", what, why)),
        Err(_) => {}
    }
    if let Err(why) = &device.filters[direction] {
        findings.push(unknown(check, "filters", what, why));
    }
    let entries = entries(device, direction);
    let shown = |entries: &[&Entry]| {
        let described: Vec<String> = entries.iter().map(|one| one.described(wording)).collect();
        first_of(described.iter().map(String::as_str), PROGRAMS_SHOWN)
    };
    let others: Vec<&Entry> = entries.iter().filter(|entry| !entry.ours).collect();
    let ours: Vec<&Entry> = entries.iter().filter(|entry| entry.ours).collect();
    let last = entries.iter().rposition(|entry| entry.ours);
    let ahead: Vec<&Entry> = entries[..last.unwrap_or(0)]
        .iter()
        .filter(|entry| !entry.ours)
        .collect();
    let finding = if entries.is_empty() {
        return findings;
    } else if last.is_none() {
        let found = format!("on {what}: {}; throttle goes before", shown(&others));
        Finding::note(check, found)
    } else if !ahead.is_empty() {
        let found = format!(
            "on {what}: {} before throttle's {}: packets that end there it does not see",
            shown(&ahead),
            shown(&ours)
        );
        Finding::note(check, found)
            .remedy("start throttle again, without --hook clsact: it goes first")
    } else if others.is_empty() {
        Finding::ok(check, format!("on {what}: throttle's {}", shown(&ours)))
    } else {
        let found = format!(
            "on {what}: throttle's {} before {}",
            shown(&ours),
            shown(&others)
        );
        Finding::ok(check, found)
    };
    findings.push(finding);
    findings
}

fn unknown(check: &str, of: &str, what: &str, why: &str) -> Finding {
    Finding::unknown(check, &format!("{of} on {what}: {why}"))
}
