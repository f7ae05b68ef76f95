//! What the facts mean, interfaces apart.

use std::collections::HashSet;

use caps::Capability::{
    self, CAP_BPF, CAP_DAC_READ_SEARCH, CAP_KILL, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON,
    CAP_SYS_ADMIN, CAP_SYS_PTRACE,
};

use super::{
    Finding, Lack,
    facts::{Btf, Facts, Has, Lockdown, Registry, Seen, Trial},
    first_of,
};
use crate::{instance, layout, object};

/// What throttle cannot run without, and what for.
const REQUIRED: [(Capability, &str); 4] = [
    (CAP_BPF, "loading the programs and maps"),
    (CAP_NET_ADMIN, "attaching the programs to interfaces"),
    (
        CAP_NET_RAW,
        "letting attempts out that wait, through a packet socket",
    ),
    (
        CAP_PERFMON,
        "loading the programs: the kernel is stricter with those of who lacks it",
    ),
];

/// What it runs without, and what does not work then.
const FURTHER: [(Capability, &str); 4] = [
    (
        CAP_SYS_PTRACE,
        "naming the executables of other users' programs; names, ids and users are told without",
    ),
    (
        CAP_DAC_READ_SEARCH,
        "naming cgroups that are found by their id only; a running program's cgroup is named without",
    ),
    (
        CAP_SYS_ADMIN,
        "`status`, `set` and `top` without --keep, and the names of other programs on a hook; limits \
         work without",
    ),
    (
        CAP_KILL,
        "`end` for other users' programs; the rest works without",
    ),
];

const NO_NAMES: &str = "naming programs, and freeing places of attempts that a program gives up \
                        before they time out; limits work without, and cgroups are named";

/// Linux 5.12: atomic operations in programs.
const OLDEST: (u32, u32) = (5, 12);

/// Findings in the order in which they are told.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = privileges(&facts.capabilities);
    let can_load = may_load(facts);
    findings.push(users(&facts.initial_users));
    findings.push(kernel(facts));
    findings.push(programs(facts, can_load));
    findings.push(hook(facts));
    findings.push(btf(facts));
    findings.push(lockdown(facts));
    findings.push(bpffs(facts));
    findings.push(cgroups(facts));
    findings.push(pids(&facts.initial_pids));
    findings.push(registry(&facts.registry));
    findings.push(throttles(facts));
    findings
}

/// Whether a capability is there, itself or by CAP_SYS_ADMIN, which implies what
/// was split from it (`bpf_capable` and `perfmon_capable` of
/// include/linux/capability.h).
fn has(held: &HashSet<Capability>, wanted: Capability) -> bool {
    held.contains(&wanted)
        || matches!(wanted, CAP_BPF | CAP_PERFMON) && held.contains(&CAP_SYS_ADMIN)
}

/// Whether nothing that is known keeps the caller from loading programs.
fn may_load(facts: &Facts) -> bool {
    let has_all = |held: &HashSet<_>| REQUIRED.iter().all(|(wanted, _)| has(held, *wanted));
    facts.capabilities.as_ref().is_ok_and(has_all) && facts.initial_users != Ok(false)
}

fn privileges(capabilities: &Seen<HashSet<Capability>>) -> Vec<Finding> {
    const CHECK: &str = "privileges";
    let held = match capabilities {
        Ok(held) => held,
        Err(why) => return vec![Finding::unknown(CHECK, why)],
    };
    let mut findings = Vec::new();
    let all = || REQUIRED.iter().chain(&FURTHER);
    let names: Vec<String> = all()
        .filter(|(wanted, _)| has(held, *wanted))
        .map(|(wanted, _)| wanted.to_string())
        .collect();
    if !names.is_empty() {
        findings.push(Finding::ok(CHECK, names.join(", ")));
    }
    let lacking = |wanted: &Capability| !has(held, *wanted);
    for (wanted, what) in REQUIRED.iter().filter(|(wanted, _)| lacking(wanted)) {
        findings.push(
            Finding::missing(Lack::Privilege, wanted.to_string(), "not held")
                .needed_for(what)
                .remedy("run it as root, for example with sudo"),
        );
    }
    for (wanted, what) in FURTHER.iter().filter(|(wanted, _)| lacking(wanted)) {
        findings.push(
            Finding::note(wanted.to_string(), "not held")
                .needed_for(what)
                .remedy("run it as root, or grant it (systemd: AmbientCapabilities)"),
        );
    }
    findings
}

fn users(initial: &Seen<bool>) -> Finding {
    const CHECK: &str = "user namespace";
    match initial {
        Ok(true) => Finding::ok(CHECK, "the initial one"),
        Ok(false) => Finding::missing(
            Lack::Privilege,
            CHECK,
            "not the initial one: bpf(2) counts only capabilities that are held there",
        )
        .needed_for("loading the programs and maps")
        .remedy("run it outside, as the machine's root; in a container: without user namespaces"),
        Err(why) => Finding::unknown(CHECK, why),
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

fn kernel(facts: &Facts) -> Finding {
    const CHECK: &str = "kernel";
    let release = match &facts.release {
        Ok(release) => release,
        Err(why) => return Finding::unknown(CHECK, why),
    };
    let found = format!("Linux {release}");
    let (major, minor) = OLDEST;
    match version(release) {
        Some(version) if version >= OLDEST => Finding::ok(CHECK, found),
        // A distribution's own may have more than its number says.
        Some(_) if matches!(facts.trial, Some(Trial::Loaded(_))) => Finding::ok(
            CHECK,
            format!("{found}, older than {major}.{minor}, but it takes the programs"),
        ),
        Some(_) => Finding::missing(
            Lack::Kernel,
            CHECK,
            format!("{found}, older than {major}.{minor}"),
        )
        .needed_for("atomic operations and the ring buffer")
        .remedy("upgrade the kernel"),
        None => Finding::unknown(CHECK, &format!("{found} is no version that is understood")),
    }
}

fn programs(facts: &Facts, may_load: bool) -> Finding {
    const CHECK: &str = "eBPF programs";
    const WHAT: &str = "everything";
    let lacking = |wanted: fn(&Has) -> bool| {
        let kinds = facts.kinds.iter().filter(move |(_, has)| wanted(has));
        kinds.map(|(name, _)| name.as_str())
    };
    let denied = |said: &str| {
        if !may_load {
            return Finding::unknown(CHECK, "that takes the privileges above");
        }
        Finding::missing(
            Lack::Privilege,
            CHECK,
            format!("the kernel refuses them although the capabilities are held: {said}"),
        )
        .needed_for(WHAT)
        .remedy(
            "allow bpf(2): look for a seccomp filter (container runtime, systemd's \
             SystemCallFilter) or a security module (SELinux, AppArmor) that forbids it",
        )
    };
    let no = first_of(lacking(|has| *has == Has::No), usize::MAX);
    if !no.is_empty() {
        return Finding::missing(Lack::Kernel, CHECK, format!("this kernel has no {no}"))
            .needed_for(WHAT)
            .remedy(format!("another kernel: {}", object::NEEDED));
    }
    if lacking(|has| *has == Has::Denied).next().is_some() {
        return denied("bpf(2) is not permitted");
    }
    let unknown = facts.kinds.iter().find_map(|(name, has)| match has {
        Has::Unknown(why) => Some(format!("{name}: {why}")),
        Has::Yes | Has::No | Has::Denied => None,
    });
    if let Some(why) = unknown {
        return Finding::unknown(CHECK, &why);
    }
    match &facts.trial {
        Some(Trial::Loaded(tried)) => Finding::ok(
            CHECK,
            format!("{} load and pass the verifier", tried.programs),
        ),
        Some(Trial::Denied(said)) => denied(said),
        Some(Trial::Refused(said)) => Finding::missing(
            Lack::Kernel,
            CHECK,
            format!("the kernel refuses them: {said}"),
        )
        .needed_for(WHAT)
        .remedy(format!("another kernel: {}", object::NEEDED)),
        None => Finding::unknown(CHECK, "they were not tried"),
    }
}

fn hook(facts: &Facts) -> Finding {
    const CHECK: &str = "hook";
    const WHAT: &str = "attaching the programs to interfaces";
    let kinds = (&facts.tcx, &facts.clsact);
    match kinds {
        (Has::Yes, _) => Finding::ok(CHECK, "TCX"),
        (Has::No, Some(Has::Yes)) => Finding::ok(CHECK, "clsact (TCX came with Linux 6.6)"),
        (Has::No, Some(Has::No)) => {
            Finding::missing(Lack::Kernel, CHECK, "neither TCX nor the clsact qdisc")
                .needed_for(WHAT)
                .remedy(
                    "upgrade to Linux 6.6, or have CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF \
                     (modules sch_ingress and cls_bpf)",
                )
        }
        (Has::No, Some(Has::Denied) | None) => Finding::unknown(
            CHECK,
            "there is no TCX, and trying the clsact qdisc takes CAP_SYS_ADMIN",
        ),
        (Has::No, Some(Has::Unknown(why))) => Finding::unknown(
            CHECK,
            &format!("there is no TCX, and of the clsact qdisc the kernel said: {why}"),
        ),
        (Has::Denied, _) => Finding::unknown(
            CHECK,
            "asking takes CAP_NET_ADMIN, and so does seeing the programs that are on it",
        ),
        (Has::Unknown(why), _) => Finding::unknown(CHECK, why),
    }
}

fn btf(facts: &Facts) -> Finding {
    const CHECK: &str = "BTF";
    const REMEDY: &str = "use a kernel with CONFIG_DEBUG_INFO_BTF, and let /sys/kernel/btf be seen";
    let sockets = match &facts.trial {
        Some(Trial::Loaded(tried)) => tried.sockets.as_ref().err(),
        Some(Trial::Denied(_) | Trial::Refused(_)) | None => None,
    };
    match (&facts.btf, sockets) {
        (Btf::Here(_), None) => Finding::ok(CHECK, layout::BTF),
        (Btf::Here(_), Some(why)) => {
            let found = format!(
                "{}, but the program that tells of sockets cannot be loaded: {why}",
                layout::BTF
            );
            Finding::note(CHECK, found)
                .needed_for(NO_NAMES)
                .remedy("see lockdown below; else use a kernel with CONFIG_DEBUG_INFO_BTF")
        }
        (Btf::Missing, _) => Finding::note(CHECK, format!("no {}", layout::BTF))
            .needed_for(NO_NAMES)
            .remedy(REMEDY),
        (Btf::Unusable(why), _) => Finding::note(CHECK, why.as_str())
            .needed_for(NO_NAMES)
            .remedy(REMEDY),
    }
}

fn lockdown(facts: &Facts) -> Finding {
    const CHECK: &str = "lockdown";
    let names_work = matches!(&facts.trial, Some(Trial::Loaded(tried)) if tried.sockets.is_ok());
    match &facts.lockdown {
        Ok(Lockdown::None) => Finding::ok(CHECK, "none"),
        Ok(Lockdown::Integrity) => Finding::ok(CHECK, "integrity, which allows all that is needed"),
        Ok(Lockdown::Confidentiality) => Finding::note(
            CHECK,
            "confidentiality: programs may not read the kernel's memory",
        )
        .needed_for(NO_NAMES)
        .remedy("boot with lockdown=integrity, if that may be"),
        Err(why) if names_work => Finding::ok(
            CHECK,
            format!("none that is in the way (could not tell which: {why})"),
        ),
        Err(why) => Finding::unknown(CHECK, why)
            .remedy("mount -t securityfs securityfs /sys/kernel/security"),
    }
}

fn bpffs(facts: &Facts) -> Finding {
    const CHECK: &str = "bpffs";
    match &facts.bpffs {
        Some(at) => Finding::ok(CHECK, format!("mounted at {at}")),
        None => Finding::note(CHECK, "none is mounted here")
            .needed_for("--keep, by which limits outlive the daemon; the rest works without")
            .remedy("mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn cgroups(facts: &Facts) -> Finding {
    const CHECK: &str = "cgroup v2";
    const WHAT: &str = "naming cgroups, containers and pods; with --scope cgroup they are numbers, \
                        limits work without";
    match &facts.cgroups {
        Some(mount) if mount.is_whole => Finding::ok(CHECK, format!("mounted at {}", mount.point)),
        Some(mount) => {
            let found = format!("a part of it is mounted at {}", mount.point);
            Finding::note(CHECK, found)
                .needed_for("naming cgroups outside of that part; limits work without")
                .remedy("in a container: let it share the host's cgroup namespace")
        }
        None => Finding::note(CHECK, "not mounted here")
            .needed_for(WHAT)
            .remedy(
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup (with cgroup v1: a folder of its own)",
            ),
    }
}

fn pids(initial: &Seen<bool>) -> Finding {
    const CHECK: &str = "pid namespace";
    match initial {
        Ok(true) => Finding::ok(CHECK, "the initial one"),
        Ok(false) => Finding::note(CHECK, "not the initial one")
            .needed_for(
                "naming executables and parents, and `end`; what the kernel notes is told without",
            )
            .remedy("let the container share the host's (docker: --pid=host; a pod: hostPID)"),
        Err(why) => Finding::unknown(CHECK, why),
    }
}

fn registry(seen: &Seen<Registry>) -> Finding {
    const CHECK: &str = "registration";
    const WHAT: &str = "being found by `status`, `set`, `top` and `detach`";
    match seen {
        Ok(Registry::Writable) => Finding::ok(CHECK, format!("{} can be written", instance::RUN)),
        Ok(Registry::Denied(said)) => {
            let found = format!("{} cannot be written: {said}", instance::RUN);
            Finding::note(CHECK, found)
                .needed_for(WHAT)
                .remedy("run it as root, with a writable /run (systemd: RuntimeDirectory=throttle)")
        }
        Err(why) => Finding::unknown(CHECK, why),
    }
}

fn throttles(facts: &Facts) -> Finding {
    const CHECK: &str = "throttles";
    const SHOWN: usize = 8;
    let found = match &facts.throttles {
        Ok(found) => found,
        Err(why) => return Finding::unknown(CHECK, why),
    };
    if found.is_empty() {
        return Finding::ok(CHECK, "none in this network namespace");
    }
    let described: Vec<String> = found
        .iter()
        .map(|throttle| match (throttle.pid, throttle.kept) {
            (Some(pid), true) => format!("{} (pid {pid}, kept)", throttle.name),
            (Some(pid), false) => format!("{} (pid {pid})", throttle.name),
            (None, _) => format!("{} (kept, without a daemon)", throttle.name),
        })
        .collect();
    let shown = first_of(described.iter().map(String::as_str), SHOWN);
    if found.iter().all(|throttle| throttle.pid.is_some()) {
        return Finding::ok(CHECK, shown);
    }
    Finding::note(CHECK, shown)
        .needed_for("events, and releases at their time: without a daemon only the limits hold")
        .remedy("`throttle run` adopts it, `throttle detach` removes it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_any_release() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.12"), Some((5, 12)));
        assert_eq!(version("4.18.0-553.el8_10.x86_64"), Some((4, 18)));
        for odd in ["", "6", "six.two", ".5.12", "99999999999.1"] {
            assert_eq!(version(odd), None, "{odd}");
        }
    }
}
