//! What is seen of a machine, without what it means.

use std::collections::HashSet;

use caps::Capability;
use throttle_common::frame::Link;

use super::netlink::{Filter, Slot};
use crate::{layout::Task, name::Name, object::TriedOut, owners::CgroupMount};

/// What was seen, or why there is no telling.
pub type Seen<T> = Result<T, String>;

/// Everything that is seen of a machine.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The effective capabilities.
    pub capabilities: Seen<HashSet<Capability>>,
    /// Whether the user namespace is the initial one: bpf(2) counts only
    /// capabilities that are held there.
    pub initial_users: Seen<bool>,
    /// Whether the pid namespace is the initial one.
    pub initial_pids: Seen<bool>,
    /// The kernel's release.
    pub release: Seen<String>,
    /// The kinds of maps and programs that throttle needs, each with whether the
    /// kernel has it.
    pub kinds: Vec<(String, Has)>,
    /// What came of loading the programs. None if that was not tried, because a
    /// kind was missing.
    pub trial: Option<Trial>,
    /// Whether the kernel has TCX.
    pub tcx: Has,
    /// Whether it has the clsact qdisc. None if that was not asked, because it
    /// has TCX.
    pub clsact: Option<Has>,
    /// Where the kernel says that its tasks keep things.
    pub btf: Btf,
    /// Where a bpf filesystem is mounted.
    pub bpffs: Option<Name>,
    /// Where the cgroup v2 hierarchy is mounted.
    pub cgroups: Option<CgroupMount>,
    /// How far the kernel is locked down.
    pub lockdown: Seen<Lockdown>,
    /// Whether a daemon could register itself.
    pub registry: Seen<Registry>,
    /// The throttles of this network namespace.
    pub throttles: Seen<Vec<Found>>,
    /// Its interfaces.
    pub devices: Seen<Vec<Device>>,
}

/// Whether the kernel has something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Has {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// The caller may not ask.
    Denied,
    /// There is no telling, and why.
    Unknown(String),
}

/// What came of loading the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// They can be loaded.
    Loaded(TriedOut),
    /// The caller may not, and what the kernel said.
    Denied(String),
    /// The kernel refuses them, and what it said.
    Refused(String),
}

/// What the kernel says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Btf {
    /// It does, and what is needed of it is there.
    Here(Task),
    /// It does not.
    Missing,
    /// It does, but it cannot be read or understood.
    Unusable(String),
}

/// How far the kernel is locked down (Documentation/admin-guide/LSM of the
/// kernel, kernel_lockdown(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lockdown {
    /// Not at all.
    None,
    /// Nobody may change it.
    Integrity,
    /// Nobody may read it either, eBPF programs included.
    Confidentiality,
}

/// The folder where daemons register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registry {
    /// The caller may write there.
    Writable,
    /// The caller may not, and what the kernel said.
    Denied(String),
}

/// A throttle that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is called.
    pub name: Name,
    /// The process id of its daemon, if one runs.
    pub pid: Option<u32>,
    /// Whether its kernel side outlives the daemon.
    pub kept: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name, as the kernel has it.
    pub name: Vec<u8>,
    /// Whether it is the loopback device.
    pub is_loopback: bool,
    /// Whether it is up.
    pub is_up: bool,
    /// How its frames start, else what it carries.
    pub link: Result<Link, String>,
    /// Its root qdisc.
    pub qdisc: Option<Name>,
    /// The qdiscs below that.
    pub leaves: Vec<Name>,
    /// What is in the place of the clsact qdisc.
    pub slot: Option<Slot>,
    /// Programs on what comes in and on what goes out, in the order they run.
    pub tcx: [Seen<Tcx>; 2],
    /// Filters on what comes in and on what goes out, in the order they run.
    pub filters: [Seen<Vec<Filter>>; 2],
}

/// TCX programs of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tcx {
    /// These, in the order they run.
    Programs(Vec<Program>),
    /// Some, which the caller may not look at.
    Unnamed,
}

/// A TCX program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its id.
    pub id: u32,
    /// Its name, as the kernel has it.
    pub name: Vec<u8>,
}
