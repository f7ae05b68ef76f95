//! Looking at the machine. What cannot be seen is said, and stops nothing else.

use std::{collections::HashMap, fs, io, path::Path, thread};

use aya::{
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        tc::{self, TcError},
    },
    sys::SyscallError,
};
use caps::CapSet;
use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    libc,
    sched::{CloneFlags, unshare},
    sys::utsname::uname,
    unistd::{AccessFlags, faccessat},
};
use rtnetlink::packet_route::link::LinkLayerType;

use super::{
    facts::{Btf, Device, Facts, Found, Has, Lockdown, Program, Registry, Seen, Tcx, Trial},
    netlink::{self, Place, Slot},
};
use crate::{
    Error,
    error::errno_of,
    instance::{self, Instance},
    interface, layout,
    name::Name,
    object::{self, INITIAL_PIDS, Object},
    owners::CgroupMount,
    pins,
};

/// The initial user namespace, as /proc names it (`PROC_USER_INIT_INO` of
/// include/linux/proc_ns.h).
const INITIAL_USERS: &str = "user:[4026531837]";

/// Directions in the order of the facts.
const DIRECTIONS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

impl Facts {
    /// Looks at this machine, from where the caller stands.
    ///
    /// It loads the programs for a trial and lets go of them. It changes nothing.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let kinds: Vec<_> = object::kinds()
            .map(|(name, has)| (name, has_of(has)))
            .collect();
        let trial = kinds
            .iter()
            .all(|(_, has)| *has == Has::Yes)
            .then(try_programs);
        let tcx = has_tcx();
        Self {
            capabilities: caps::read(None, CapSet::Effective).map_err(|error| error.to_string()),
            initial_users: is_namespace("user", INITIAL_USERS),
            initial_pids: is_namespace("pid", INITIAL_PIDS),
            release: uname()
                .map(|names| Name::new(names.release().as_encoded_bytes()).to_string())
                .map_err(|error| error.to_string()),
            kinds,
            trial,
            clsact: (tcx == Has::No).then(has_clsact),
            btf: btf(),
            bpffs: pins::bpffs().map(|path| Name::of_path(&path)),
            cgroups: CgroupMount::find(),
            lockdown: lockdown(),
            registry: registry(),
            throttles: throttles(),
            devices: devices(&tcx),
            tcx,
        }
    }
}

fn has_of(asked: Result<bool, ProgramError>) -> Has {
    match asked {
        Ok(true) => Has::Yes,
        Ok(false) => Has::No,
        Err(error) => match errno_of(&error) {
            Some(libc::EPERM | libc::EACCES) => Has::Denied,
            _ => Has::Unknown(because(&error)),
        },
    }
}

fn because(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let said = cause.to_string();
        if !text.contains(&said) {
            text += &format!(": {said}");
        }
        at = cause.source();
    }
    text
}

fn try_programs() -> Trial {
    match Object::try_out() {
        Ok(tried) => Trial::Loaded(tried),
        Err(Error::Privilege { what, reason } | Error::Denied { what, reason, .. }) => {
            Trial::Denied(format!("{what}: {}", because(reason.as_ref())))
        }
        Err(Error::Kernel { what, lacks, .. }) => Trial::Refused(format!("{what}: {lacks}")),
        Err(error @ (Error::Failed { .. } | Error::Refused(_) | Error::Usage(_))) => {
            Trial::Refused(error.to_string())
        }
    }
}

/// Every network namespace has this device.
const LOOPBACK: &str = "lo";

fn has_tcx() -> Has {
    match SchedClassifier::query_tcx(LOOPBACK, TcAttachType::Egress) {
        Ok(_) => Has::Yes,
        // There are programs.
        Err(ProgramError::SyscallError(SyscallError { call, .. })) if call != "bpf_prog_query" => {
            Has::Yes
        }
        Err(error) if errno_of(&error) == Some(libc::EINVAL) => Has::No,
        Err(error) => has_of(Err(error)),
    }
}

/// Adds a clsact qdisc, in a network namespace that nobody sees and that is gone
/// afterwards. The kernel may load its module, as it would for `throttle run`.
#[must_use]
pub fn has_clsact() -> Has {
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| Err(TcError::IoError(error.into())))?;
        tc::qdisc_add_clsact(LOOPBACK).map_err(Ok)
    })
    .join();
    match tried {
        Ok(Ok(())) => Has::Yes,
        Ok(Err(Ok(error))) => match errno_of(&error) {
            // The kernel knows no qdisc of this name.
            Some(libc::ENOENT | libc::EOPNOTSUPP) => Has::No,
            _ => has_of(Err(error.into())),
        },
        Ok(Err(Err(error))) => has_of(Err(error.into())),
        Err(_) => Has::Unknown("the attempt came to nothing".into()),
    }
}

fn is_namespace(kind: &str, initial: &str) -> Seen<bool> {
    let path = format!("/proc/self/ns/{kind}");
    match fs::read_link(&path) {
        Ok(own) => Ok(own == Path::new(initial)),
        Err(error) => Err(format!("read {path}: {error}")),
    }
}

fn btf() -> Btf {
    match layout::Task::of_this_kernel() {
        Ok(task) => Btf::Here(task),
        Err(reason) => match fs::exists(layout::BTF) {
            Ok(false) => Btf::Missing,
            Ok(true) | Err(_) => Btf::Unusable(reason),
        },
    }
}

fn lockdown() -> Seen<Lockdown> {
    const PATH: &str = "/sys/kernel/security/lockdown";
    let text = fs::read_to_string(PATH).map_err(|error| format!("read {PATH}: {error}"))?;
    Lockdown::read(&text).ok_or_else(|| format!("{PATH} says {}", Name::new(text.trim())))
}

impl Lockdown {
    /// What the file says: the level that is in brackets.
    fn read(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once('[')?;
        match rest.split_once(']')?.0 {
            "none" => Some(Self::None),
            "integrity" => Some(Self::Integrity),
            "confidentiality" => Some(Self::Confidentiality),
            _ => None,
        }
    }
}

/// Whether the folder can be written to or, where there is none yet, be made.
fn registry() -> Seen<Registry> {
    let folder = Path::new(instance::RUN);
    let at = if folder.exists() {
        folder
    } else {
        folder.parent().unwrap_or(folder)
    };
    let access = AccessFlags::W_OK | AccessFlags::X_OK;
    match faccessat(AT_FDCWD, at, access, AtFlags::AT_EACCESS) {
        Ok(()) => Ok(Registry::Writable),
        Err(error) => Ok(Registry::Denied(format!(
            "{}: {}",
            at.display(),
            error.desc()
        ))),
    }
}

fn throttles() -> Seen<Vec<Found>> {
    let found = Instance::all().map_err(|error| match error {
        Error::Privilege { what, reason }
        | Error::Denied { what, reason, .. }
        | Error::Failed { what, reason } => {
            format!("{what}: {}", because(reason.as_ref()))
        }
        error @ (Error::Refused(_) | Error::Usage(_) | Error::Kernel { .. }) => error.to_string(),
    })?;
    let shown = found.into_iter().map(|throttle| Found {
        name: Name::new(&throttle.name),
        pid: throttle.daemon.as_ref().map(|daemon| daemon.pid),
        kept: throttle.daemon.is_none_or(|daemon| daemon.keep),
    });
    Ok(shown.collect())
}

fn devices(has_tcx: &Has) -> Seen<Vec<Device>> {
    let failed = |error: io::Error| error.to_string();
    let links = netlink::links().map_err(failed)?;
    let mut qdiscs: HashMap<u32, Vec<netlink::Qdisc>> = HashMap::new();
    for qdisc in netlink::qdiscs().map_err(failed)? {
        qdiscs.entry(qdisc.index).or_default().push(qdisc);
    }
    let mut devices: Vec<Device> = links
        .into_iter()
        .map(|link| {
            let of_it = qdiscs.remove(&link.index).unwrap_or_default();
            device(link, of_it, has_tcx)
        })
        .collect();
    devices.sort_by_key(|device| device.index);
    Ok(devices)
}

fn device(link: netlink::Link, qdiscs: Vec<netlink::Qdisc>, has_tcx: &Has) -> Device {
    let slot = qdiscs.iter().find(|qdisc| qdisc.place == Place::Slot);
    let slot = slot.and_then(|qdisc| match qdisc.kind.as_str() {
        "clsact" => Some(Slot::Clsact),
        "ingress" => Some(Slot::Ingress),
        _ => None,
    });
    let leaves = qdiscs.iter().filter(|qdisc| qdisc.place == Place::Leaf);
    let root = qdiscs.iter().find(|qdisc| qdisc.place == Place::Root);
    let filters = |direction: usize| match slot {
        None => Ok(Vec::new()),
        // It would list those on what comes in once more.
        Some(Slot::Ingress) if direction == 1 => Ok(Vec::new()),
        Some(_) => netlink::filters(link.index, direction).map_err(|error| error.to_string()),
    };
    let kind = LinkLayerType::from(link.kind);
    Device {
        index: link.index,
        is_up: link.is_up,
        is_loopback: link.is_loopback,
        link: interface::link_of(kind).ok_or_else(|| format!("{kind:?}")),
        qdisc: link.qdisc.or_else(|| root.map(|root| root.kind.clone())),
        leaves: leaves.map(|leaf| leaf.kind.clone()).collect(),
        slot,
        tcx: DIRECTIONS.map(|direction| match has_tcx {
            Has::Yes => tcx(&link.name, direction),
            Has::No => Ok(Tcx::Programs(Vec::new())),
            Has::Denied => Err("not permitted".into()),
            Has::Unknown(why) => Err(why.clone()),
        }),
        filters: [filters(0), filters(1)],
        name: link.name,
    }
}

fn tcx(name: &[u8], direction: TcAttachType) -> Seen<Tcx> {
    /// How often it is asked again when a program vanished meanwhile.
    const TRIES: u32 = 5;
    let name = str::from_utf8(name).map_err(|_| "its name is not UTF-8".to_owned())?;
    for _ in 0..TRIES {
        let error = match SchedClassifier::query_tcx(name, direction) {
            Ok((_, found)) => {
                let program = |info: &aya::programs::ProgramInfo| Program {
                    id: info.id(),
                    name: info.name().to_vec(),
                };
                return Ok(Tcx::Programs(found.iter().map(program).collect()));
            }
            Err(error) => error,
        };
        let of_a_program = matches!(&error, ProgramError::SyscallError(SyscallError { call, .. }) if *call != "bpf_prog_query");
        match errno_of(&error) {
            Some(libc::EPERM) if of_a_program => return Ok(Tcx::Unnamed),
            Some(libc::ENOENT) if of_a_program => {}
            _ => return Err(because(&error)),
        }
    }
    Err("they change faster than they can be read".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_lockdown_is_the_one_in_brackets() {
        let read = Lockdown::read;
        assert_eq!(
            read("[none] integrity confidentiality\n"),
            Some(Lockdown::None)
        );
        assert_eq!(
            read("none [integrity] confidentiality\n"),
            Some(Lockdown::Integrity)
        );
        assert_eq!(
            read("none integrity [confidentiality]\n"),
            Some(Lockdown::Confidentiality)
        );
        for unknown in ["", "none", "[", "[none", "[else]", "]none["] {
            assert_eq!(read(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn whatever_the_privileges_a_machine_can_be_looked_at() {
        let facts = Facts::of_this_machine();
        assert!(facts.release.is_ok_and(|release| release.contains('.')));
        let devices = facts.devices.unwrap();
        assert!(
            devices
                .iter()
                .any(|device| device.is_loopback && device.name == b"lo")
        );
    }
}
