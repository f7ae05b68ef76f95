//! Each lack in turn, and what is made of it.

use std::collections::HashSet;

use caps::Capability;
use expect_test::{expect, expect_file};
use proptest::prelude::*;
use throttle_common::frame::Link;

use super::{
    Finding, Report, State,
    facts::{Btf, Device, Facts, Found, Has, Lockdown, Program, Registry, Tcx, Trial},
    in_command,
    netlink::{Filter, Slot},
};
use crate::{layout::Task, name::Name, object::TriedOut, owners::CgroupMount};

/// A machine on which nothing is missing.
fn all_well() -> Facts {
    Facts {
        capabilities: Ok(caps::all()),
        initial_users: Ok(true),
        initial_pids: Ok(true),
        release: Ok("6.18.0".into()),
        kinds: vec![
            ("BPF map of type array".into(), Has::Yes),
            ("BPF map of type ring buffer".into(), Has::Yes),
        ],
        trial: Some(Trial::Loaded(TriedOut {
            programs: 12,
            sockets: Ok(()),
        })),
        tcx: Has::Yes,
        clsact: None,
        btf: Btf::Here(Task::default()),
        bpffs: Some("/sys/fs/bpf".into()),
        cgroups: Some(CgroupMount {
            point: "/sys/fs/cgroup".into(),
            is_whole: true,
        }),
        lockdown: Ok(Lockdown::None),
        registry: Ok(Registry::Writable),
        throttles: Ok(Vec::new()),
        devices: Ok(vec![loopback(), device(2, "eth0", "fq")]),
    }
}

fn device(index: u32, name: &str, qdisc: &str) -> Device {
    Device {
        index,
        name: name.into(),
        is_loopback: false,
        is_up: true,
        link: Ok(Link::Ethernet),
        qdisc: Some(qdisc.into()),
        leaves: Vec::new(),
        slot: None,
        tcx: [programs(&[]), programs(&[])],
        filters: [Ok(Vec::new()), Ok(Vec::new())],
    }
}

fn loopback() -> Device {
    Device {
        is_loopback: true,
        ..device(1, "lo", "noqueue")
    }
}

fn programs(named: &[(u32, &str)]) -> Result<Tcx, String> {
    let program = |(id, name): &(u32, &str)| Program {
        id: *id,
        name: (*name).into(),
    };
    Ok(Tcx::Programs(named.iter().map(program).collect()))
}

fn filter(priority: u16, kind: &str, name: Option<&str>) -> Filter {
    Filter {
        chain: 0,
        priority,
        kind: kind.into(),
        name: name.map(|name| name.into()),
    }
}

fn only(device: Device) -> Facts {
    Facts {
        devices: Ok(vec![loopback(), device]),
        ..all_well()
    }
}

fn without(lacking: &[Capability]) -> Facts {
    let mut held = caps::all();
    held.retain(|capability| !lacking.contains(capability));
    Facts {
        capabilities: Ok(held),
        ..all_well()
    }
}

/// A caller who may do nothing at all.
fn nobody() -> Facts {
    let cannot = "Operation not permitted";
    Facts {
        capabilities: Ok(HashSet::new()),
        kinds: vec![("BPF map of type array".into(), Has::Denied)],
        trial: None,
        tcx: Has::Denied,
        devices: Ok(vec![
            loopback(),
            Device {
                tcx: [Err("not permitted".into()), Err("not permitted".into())],
                ..device(2, "eth0", "fq")
            },
        ]),
        registry: Ok(Registry::Denied("/run: Permission denied".into())),
        throttles: Err(format!("look into /run/throttle: {cannot}")),
        ..all_well()
    }
}

/// The finding of a check.
fn finding<'a>(report: &'a Report, check: &str) -> &'a Finding {
    let mut found = report.findings.iter().filter(|one| one.check == check);
    let first = found
        .next()
        .unwrap_or_else(|| panic!("no {check}: {}", report.text()));
    assert_eq!(found.next(), None, "{check} twice");
    first
}

/// Asserts that a lack is told of, and returns what is said.
#[track_caller]
fn assert_lack(facts: &Facts, check: &str, state: State, exit_code: u8, remedy: &str) -> String {
    let report = Report::new(facts, &[]);
    let found = finding(&report, check);
    assert_eq!(found.state, state, "{found:?}");
    let said = found.remedy.as_deref().unwrap_or_default();
    assert!(said.contains(remedy), "{found:?}");
    assert!(found.needed_for.is_some(), "{found:?}");
    assert_eq!(report.exit_code(), exit_code, "{}", report.text());
    assert_eq!(report.can_run, exit_code == 0);
    found.found.clone()
}

/// What is said of the only interface, line by line.
fn said_of(facts: &Facts) -> Vec<(State, String, Option<String>)> {
    let report = Report::new(facts, &[]);
    let [one] = &report.interfaces[..] else {
        panic!("{:?}", report.interfaces)
    };
    let said = one.findings.iter();
    said.map(|one| (one.state, one.found.clone(), one.remedy.clone()))
        .collect()
}

#[test]
fn a_machine_that_lacks_nothing_can_run_it() {
    let report = Report::new(&all_well(), &[]);
    assert!(report.can_run);
    assert_eq!(report.exit_code(), 0);
    let all = report.findings.iter().chain(&report.interfaces[0].findings);
    for finding in all {
        assert_eq!(finding.state, State::Ok, "{finding:?}");
        assert_eq!(finding.remedy, None);
    }
}

#[test]
fn each_required_capability_is_named_when_it_is_not_held() {
    use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_SYS_ADMIN};
    for required in [CAP_NET_ADMIN, CAP_NET_RAW] {
        let facts = without(&[required]);
        assert_lack(&facts, &required.to_string(), State::Missing, 3, "sudo");
    }
    for required in [CAP_BPF, CAP_PERFMON] {
        let facts = without(&[required, CAP_SYS_ADMIN]);
        assert_lack(&facts, &required.to_string(), State::Missing, 3, "sudo");
        // This implies it.
        assert!(Report::new(&without(&[required]), &[]).can_run);
    }
}

#[test]
fn without_a_further_capability_it_runs_and_says_what_does_not_work() {
    use Capability::{CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SYS_ADMIN, CAP_SYS_PTRACE};
    for further in [CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SYS_ADMIN, CAP_SYS_PTRACE] {
        let facts = without(&[further]);
        assert_lack(&facts, &further.to_string(), State::Note, 0, "root");
    }
}

#[test]
fn a_caller_without_any_privilege_is_told_so_and_nothing_of_the_kernel_is_blamed() {
    let report = Report::new(&nobody(), &[]);
    assert_eq!(report.exit_code(), 3);
    let missing: Vec<&str> = report
        .findings
        .iter()
        .filter(|finding| finding.state == State::Missing)
        .map(|finding| finding.check.as_str())
        .collect();
    assert_eq!(
        missing,
        ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]
    );
    for check in ["eBPF programs", "hook", "throttles"] {
        let found = &finding(&report, check).found;
        assert!(found.starts_with("could not tell: "), "{check}: {found}");
    }
}

#[test]
fn capabilities_of_another_user_namespace_do_not_count() {
    let facts = Facts {
        initial_users: Ok(false),
        kinds: vec![("BPF map of type array".into(), Has::Denied)],
        trial: None,
        ..all_well()
    };
    assert_lack(&facts, "user namespace", State::Missing, 3, "outside");
}

#[test]
fn a_bpf_call_that_is_forbidden_despite_all_capabilities_is_told() {
    let facts = Facts {
        kinds: vec![("BPF map of type array".into(), Has::Denied)],
        trial: None,
        ..all_well()
    };
    assert_lack(&facts, "eBPF programs", State::Missing, 3, "seccomp");
    let facts = Facts {
        trial: Some(Trial::Denied("load program syn: not permitted".into())),
        ..all_well()
    };
    let found = assert_lack(&facts, "eBPF programs", State::Missing, 3, "seccomp");
    assert!(found.contains("load program syn"), "{found}");
}

#[test]
fn kinds_of_maps_that_the_kernel_lacks_are_all_named() {
    let facts = Facts {
        kinds: vec![
            ("BPF map of type array".into(), Has::Yes),
            ("BPF map of type LRU hash".into(), Has::No),
            ("BPF map of type ring buffer".into(), Has::No),
        ],
        trial: None,
        ..all_well()
    };
    let found = assert_lack(&facts, "eBPF programs", State::Missing, 4, "Linux 5.12");
    assert!(
        found.contains("LRU hash") && found.contains("ring buffer"),
        "{found}"
    );
}

#[test]
fn a_kernel_whose_verifier_refuses_the_programs_cannot_run_it() {
    let facts = Facts {
        trial: Some(Trial::Refused(
            "load program admit: R1 invalid\nmem access".into(),
        )),
        ..all_well()
    };
    let found = assert_lack(&facts, "eBPF programs", State::Missing, 4, "another kernel");
    assert!(found.contains("load program admit"), "{found}");
    let text = Report::new(&facts, &[]).text();
    assert!(text.contains("R1 invalid mem access"), "{text}");
}

#[test]
fn an_old_kernel_is_told_so_unless_it_takes_the_programs() {
    let facts = Facts {
        release: Ok("5.10.0-30-amd64".into()),
        trial: None,
        ..all_well()
    };
    assert_lack(&facts, "kernel", State::Missing, 4, "upgrade");
    let facts = Facts {
        release: Ok("4.18.0-553.el8".into()),
        ..all_well()
    };
    assert!(Report::new(&facts, &[]).can_run);
}

#[test]
fn lack_of_privilege_comes_before_lack_of_the_kernel() {
    let facts = Facts {
        release: Ok("5.10.0".into()),
        ..nobody()
    };
    assert_eq!(Report::new(&facts, &[]).exit_code(), 3);
}

#[test]
fn without_tcx_it_attaches_by_clsact_and_without_both_not_at_all() {
    let with = |clsact| Facts {
        tcx: Has::No,
        clsact: Some(clsact),
        ..all_well()
    };
    let report = Report::new(&with(Has::Yes), &[]);
    assert!(report.can_run && finding(&report, "hook").found.contains("clsact"));
    assert_lack(&with(Has::No), "hook", State::Missing, 4, "sch_ingress");
    let report = Report::new(&with(Has::Denied), &[]);
    assert!(report.can_run && finding(&report, "hook").state == State::Note);
}

#[test]
fn without_btf_programs_are_not_named() {
    let facts = Facts {
        btf: Btf::Missing,
        ..all_well()
    };
    let found = assert_lack(&facts, "BTF", State::Note, 0, "CONFIG_DEBUG_INFO_BTF");
    assert_eq!(found, "no /sys/kernel/btf/vmlinux");
    let facts = Facts {
        btf: Btf::Unusable("it has no task_struct".into()),
        ..all_well()
    };
    let found = assert_lack(&facts, "BTF", State::Note, 0, "CONFIG_DEBUG_INFO_BTF");
    assert_eq!(found, "it has no task_struct");
}

#[test]
fn a_socket_program_that_cannot_be_loaded_is_told_although_there_is_btf() {
    let facts = Facts {
        trial: Some(Trial::Loaded(TriedOut {
            programs: 12,
            sockets: Err("unknown func bpf_probe_read_kernel".into()),
        })),
        ..all_well()
    };
    let found = assert_lack(&facts, "BTF", State::Note, 0, "lockdown");
    assert!(found.contains("bpf_probe_read_kernel"), "{found}");
}

#[test]
fn a_lockdown_that_hides_the_kernel_is_told() {
    let with = |lockdown| Facts {
        lockdown,
        ..all_well()
    };
    let facts = with(Ok(Lockdown::Confidentiality));
    assert_lack(&facts, "lockdown", State::Note, 0, "lockdown=integrity");
    let report = Report::new(&with(Ok(Lockdown::Integrity)), &[]);
    assert_eq!(finding(&report, "lockdown").state, State::Ok);
    // What works is not locked.
    let unseen = Err("read /sys/kernel/security/lockdown: none".to_owned());
    let report = Report::new(&with(unseen.clone()), &[]);
    assert_eq!(finding(&report, "lockdown").state, State::Ok);
    let facts = Facts {
        lockdown: unseen,
        ..nobody()
    };
    let report = Report::new(&facts, &[]);
    let found = finding(&report, "lockdown");
    assert_eq!(found.state, State::Note);
    assert!(found.remedy.as_ref().unwrap().contains("securityfs"));
}

#[test]
fn without_a_bpf_filesystem_nothing_can_be_kept() {
    let facts = Facts {
        bpffs: None,
        ..all_well()
    };
    let remedy = "mount -t bpf bpf /sys/fs/bpf";
    let found = assert_lack(&facts, "bpffs", State::Note, 0, remedy);
    assert_eq!(found, "none is mounted here");
}

#[test]
fn without_cgroup_v2_cgroups_are_not_named() {
    let facts = Facts {
        cgroups: None,
        ..all_well()
    };
    assert_lack(&facts, "cgroup v2", State::Note, 0, "mount -t cgroup2");
    let facts = Facts {
        cgroups: Some(CgroupMount {
            point: "/sys/fs/cgroup".into(),
            is_whole: false,
        }),
        ..all_well()
    };
    assert_lack(&facts, "cgroup v2", State::Note, 0, "share the host's");
}

#[test]
fn outside_the_initial_pid_namespace_less_is_named() {
    let facts = Facts {
        initial_pids: Ok(false),
        ..all_well()
    };
    assert_lack(&facts, "pid namespace", State::Note, 0, "hostPID");
}

#[test]
fn a_daemon_that_cannot_register_is_not_found() {
    let facts = Facts {
        registry: Ok(Registry::Denied("/run: Read-only file system".into())),
        ..all_well()
    };
    let found = assert_lack(&facts, "registration", State::Note, 0, "RuntimeDirectory");
    assert!(found.contains("Read-only"), "{found}");
}

#[test]
fn throttles_are_listed_with_their_pids() {
    let found = |name: &str, pid, kept| Found {
        name: name.into(),
        pid,
        kept,
    };
    let facts = Facts {
        throttles: Ok(vec![
            found("a", Some(12), false),
            found("b", Some(13), true),
        ]),
        ..all_well()
    };
    let report = Report::new(&facts, &[]);
    assert_eq!(
        finding(&report, "throttles").found,
        "a (pid 12), b (pid 13, kept)"
    );
    assert_eq!(report.throttles.len(), 2);
    let facts = Facts {
        throttles: Ok(vec![found("left", None, true)]),
        ..all_well()
    };
    let said = assert_lack(&facts, "throttles", State::Note, 0, "throttle run");
    assert_eq!(said, "left (kept, without a daemon)");
    let many = (0..1_000).map(|n| found(&format!("t{n}"), Some(n), false));
    let facts = Facts {
        throttles: Ok(many.collect()),
        ..all_well()
    };
    let report = Report::new(&facts, &[]);
    assert!(
        finding(&report, "throttles")
            .found
            .ends_with("and 992 more")
    );
}

#[test]
fn a_probe_that_fails_stops_no_other() {
    let why = || "nobody knows".to_owned();
    let facts = Facts {
        capabilities: Err(why()),
        initial_users: Err(why()),
        initial_pids: Err(why()),
        release: Err(why()),
        kinds: vec![("BPF map of type array".into(), Has::Unknown(why()))],
        trial: None,
        tcx: Has::Unknown(why()),
        lockdown: Err(why()),
        registry: Err(why()),
        throttles: Err(why()),
        devices: Err(why()),
        ..all_well()
    };
    let report = Report::new(&facts, &[]);
    let unknown = report
        .findings
        .iter()
        .filter(|finding| finding.found.starts_with("could not tell: "));
    assert_eq!(unknown.count(), 10);
    assert!(report.can_run);
}

// ---- interfaces -----------------------------------------------------------

#[test]
fn an_interface_without_fq_gets_the_remedy() {
    let said = said_of(&only(device(2, "veth7", "noqueue")));
    assert_eq!(said.len(), 2, "{said:?}");
    let (state, found, remedy) = &said[1];
    assert_eq!(*state, State::Note);
    assert!(
        found.starts_with("no fq: releases are exact while"),
        "{found}"
    );
    assert_eq!(
        remedy.as_deref(),
        Some("tc qdisc replace dev veth7 root fq")
    );
}

#[test]
fn an_mq_has_departure_times_only_if_all_its_queues_have() {
    let with = |leaves: &[&str]| Device {
        leaves: leaves.iter().map(|leaf| Name::from(*leaf)).collect(),
        ..device(2, "eth0", "mq")
    };
    let departure_times = |device| Report::new(&only(device), &[]).interfaces[0].departure_times;
    assert!(departure_times(with(&["fq", "fq"])));
    assert!(!departure_times(with(&["fq", "fq_codel"])));
    assert!(!departure_times(with(&[])));
    let said = said_of(&only(with(&["fq", "pfifo_fast"])));
    let remedy = said[1].2.as_ref().unwrap();
    assert!(
        remedy.ends_with("tc qdisc replace dev eth0 root mq"),
        "{remedy}"
    );
}

#[test]
fn of_an_interface_that_is_down_no_qdisc_is_asked() {
    let said = said_of(&only(Device {
        is_up: false,
        ..device(2, "eth0", "noop")
    }));
    assert_eq!(
        said,
        [(State::Ok, "down, Ethernet, qdisc noop".into(), None)]
    );
}

#[test]
fn an_interface_whose_frames_are_not_read_matters_only_if_it_was_asked_for() {
    let can = Device {
        link: Err("Can".into()),
        ..device(2, "can0", "pfifo_fast")
    };
    let facts = only(can);
    assert!(Report::new(&facts, &[]).can_run);
    let report = Report::new(&facts, &["can0".into()]);
    assert_eq!((report.can_run, report.exit_code()), (false, 1));
    assert!(
        report
            .text()
            .contains("attach to the device above or below it")
    );
}

#[test]
fn an_interface_that_was_asked_for_and_is_not_there_is_missing() {
    let asked = ["eth0".to_owned(), "eth9".into(), "eth9".into()];
    let report = Report::new(&all_well(), &asked);
    assert_eq!((report.can_run, report.exit_code()), (false, 1));
    let names: Vec<&str> = report
        .interfaces
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["eth0", "eth9"]);
    assert!(report.text().contains("ip link"), "{}", report.text());
    // It is one that can be asked for.
    let report = Report::new(&all_well(), &["lo".into()]);
    assert_eq!(report.interfaces.len(), 1);
}

#[test]
fn a_namespace_without_interfaces_is_told_so() {
    let facts = Facts {
        devices: Ok(vec![loopback()]),
        ..all_well()
    };
    let report = Report::new(&facts, &[]);
    assert_eq!(finding(&report, "interfaces").state, State::Note);
}

#[test]
fn an_ingress_qdisc_in_the_place_of_clsact_is_told() {
    let facts = only(Device {
        slot: Some(Slot::Ingress),
        ..device(2, "eth0", "fq")
    });
    let remedy = "tc qdisc delete dev eth0 ingress";
    let (state, found, said) = said_of(&facts).remove(1);
    assert_eq!((state, said.as_deref()), (State::Note, Some(remedy)));
    assert!(found.contains("TCX works beside it"), "{found}");
    let facts = Facts {
        tcx: Has::No,
        clsact: Some(Has::Yes),
        ..facts
    };
    let report = Report::new(&facts, &["eth0".into()]);
    assert_eq!(report.exit_code(), 1, "{}", report.text());
    assert!(report.text().contains(remedy));
}

#[test]
fn other_programs_on_the_hook_are_named_in_the_order_they_run() {
    let facts = only(Device {
        slot: Some(Slot::Clsact),
        tcx: [programs(&[]), programs(&[(9, "cil_to_netdev"), (4, "")])],
        filters: [
            Ok(vec![filter(7, "flower", None)]),
            Ok(vec![
                filter(1, "bpf", Some("mark")),
                filter(9, "matchall", None),
            ]),
        ],
        ..device(2, "eth0", "fq")
    });
    let said = said_of(&facts);
    assert_eq!(
        said[1..],
        [
            (
                State::Note,
                "on what comes in: flower (filter, priority 7); throttle goes before".into(),
                None
            ),
            (
                State::Note,
                "on what goes out: cil_to_netdev (TCX, id 9), a program without a name (TCX, id 4), \
                 bpf mark (filter, priority 1), matchall (filter, priority 9); throttle goes before"
                    .into(),
                None
            ),
        ]
    );
}

#[test]
fn what_runs_before_throttle_is_told_with_what_that_means() {
    let with = |named: &[(u32, &str)]| {
        let facts = only(Device {
            tcx: [programs(&[]), programs(named)],
            ..device(2, "eth0", "fq")
        });
        said_of(&facts).remove(1)
    };
    let (state, found, remedy) = with(&[(1, "drop_all"), (2, "out_egress_ethe")]);
    assert_eq!(state, State::Note);
    assert!(
        found.contains("drop_all (TCX, id 1) before throttle's"),
        "{found}"
    );
    assert!(found.contains("does not see"), "{found}");
    assert!(remedy.unwrap().contains("it goes first"));
    let (state, found, _) = with(&[(2, "out_egress_ethe"), (1, "drop_all")]);
    assert_eq!(state, State::Ok, "{found}");
    assert!(found.ends_with("before drop_all (TCX, id 1)"), "{found}");
    let (state, found, _) = with(&[(2, "out_egress_ethe")]);
    assert_eq!(state, State::Ok, "{found}");
    // By clsact, behind somebody's TCX program.
    let facts = only(Device {
        slot: Some(Slot::Clsact),
        tcx: [programs(&[]), programs(&[(1, "drop_all")])],
        filters: [
            Ok(Vec::new()),
            Ok(vec![filter(1, "bpf", Some("out_egress_ether"))]),
        ],
        ..device(2, "eth0", "fq")
    });
    let (state, found, remedy) = said_of(&facts).remove(1);
    assert_eq!(state, State::Note, "{found}");
    assert!(remedy.unwrap().contains("--hook clsact"));
}

#[test]
fn programs_that_cannot_be_seen_are_not_taken_for_none() {
    let facts = only(Device {
        slot: Some(Slot::Clsact),
        tcx: [Ok(Tcx::Unnamed), Err("No such device".into())],
        filters: [Ok(Vec::new()), Err("Interrupted".into())],
        ..device(2, "eth0", "fq")
    });
    let said = said_of(&facts);
    assert_eq!(said.len(), 4, "{said:?}");
    let report = Report::new(&facts, &[]);
    assert_eq!(report.interfaces[0].ingress, None);
    assert_eq!(report.interfaces[0].egress, None);
    for ((_, found, _), part) in said[1..].iter().zip(["CAP_SYS_ADMIN", "No such", "Interr"]) {
        assert!(
            found.starts_with("could not tell: ") && found.contains(part),
            "{found}"
        );
    }
}

/// A node with thousands of pods, each with a program of its own.
fn many_interfaces() -> Facts {
    let pods = (0..5_000).map(|n| Device {
        tcx: [programs(&[(n, "cil_from_cont")]), programs(&[])],
        ..device(n + 10, &format!("lxc{n}"), "noqueue")
    });
    let mut devices = vec![loopback(), device(2, "eth0", "fq")];
    devices.extend(pods);
    Facts {
        devices: Ok(devices),
        ..all_well()
    }
}

#[test]
fn thousands_of_interfaces_are_told_in_a_few_lines_and_listed_in_json() {
    let report = Report::new(&many_interfaces(), &[]);
    let text = report.text();
    assert!(text.lines().count() < 25, "{text}");
    assert!(
        text.contains("lxc0, lxc1, lxc2, lxc3 and 4996 more"),
        "{text}"
    );
    assert!(
        text.contains("tc qdisc replace dev IFACE root fq"),
        "{text}"
    );
    assert!(text.contains("eth0 "), "{text}");
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["interfaces"].as_array().unwrap().len(), 5_001);
    assert_eq!(json["interfaces"][5_000]["ingress"][0]["id"], 4_999);
}

#[test]
fn interfaces_that_all_differ_make_no_endless_text() {
    let all = (0..5_000).map(|n| device(n + 10, &format!("eth{n}"), &format!("kind{n}")));
    let facts = Facts {
        devices: Ok(all.collect()),
        ..all_well()
    };
    let text = Report::new(&facts, &[]).text();
    assert!(text.lines().count() < 150, "{}", text.lines().count());
    assert!(text.contains("4968 more"), "{text}");
}

#[test]
fn a_missing_interface_is_told_even_among_thousands() {
    let facts = many_interfaces();
    let mut asked: Vec<String> = (0..5_000).map(|n| format!("lxc{n}")).collect();
    asked.push("eth9".into());
    let text = Report::new(&facts, &asked).text();
    assert!(text.contains("missing  eth9"), "{text}");
}

#[test]
fn a_name_is_only_put_into_a_command_if_a_shell_takes_it_as_it_is() {
    for plain in ["eth0", "eth0.7", "br-1a2b", "wg_x", "if@x"] {
        assert_eq!(in_command(plain.as_bytes()), plain);
    }
    for odd in ["$(reboot)", "a;b", "-f", "a\x1b[", "a'b", "", "größe", "*"] {
        assert_eq!(in_command(odd.as_bytes()), "IFACE", "{odd}");
    }
}

proptest! {
    #[test]
    fn whatever_others_chose_as_names_the_report_is_harmless(
        name in prop::collection::vec(any::<u8>(), 1..16),
        program in prop::collection::vec(any::<u8>(), 0..16),
        kind in prop::collection::vec(any::<u8>(), 0..16),
    ) {
        let facts = only(Device {
            name,
            qdisc: Some(Name::new(&kind)),
            slot: Some(Slot::Clsact),
            tcx: [Ok(Tcx::Programs(vec![Program { id: 1, name: program.clone() }])), programs(&[])],
            filters: [Ok(vec![Filter { name: Some(program), ..filter(1, "bpf", None) }]), Ok(Vec::new())],
            ..device(2, "", "")
        });
        let report = Report::new(&facts, &[]);
        let text = report.text();
        prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        for line in text.lines() {
            let begins = ["ok ", "note ", "missing ", "   ", "throttle can"];
            prop_assert!(begins.iter().any(|begin| line.starts_with(begin)), "{line:?}");
        }
        prop_assert!(serde_json::from_str::<serde_json::Value>(&report.json()).is_ok());
    }
}

// ---- what it looks like ---------------------------------------------------

/// Something of everything.
fn a_bit_of_all() -> Facts {
    let mut facts = without(&[Capability::CAP_SYS_PTRACE, Capability::CAP_KILL]);
    facts.btf = Btf::Missing;
    facts.bpffs = None;
    facts.throttles = Ok(vec![Found {
        name: "eth0".into(),
        pid: Some(4_226),
        kept: false,
    }]);
    let ours = [
        programs(&[(7, "in_ingress_ethe")]),
        programs(&[(8, "out_egress_ethe"), (3, "cil_to_netdev")]),
    ];
    let pods = (0..1_000).map(|n| device(n + 10, &format!("veth{n}"), "noqueue"));
    let mut devices = vec![
        loopback(),
        Device {
            tcx: ours,
            slot: Some(Slot::Clsact),
            filters: [Ok(vec![filter(49_152, "flower", None)]), Ok(Vec::new())],
            ..device(2, "eth0", "fq")
        },
        Device {
            slot: Some(Slot::Ingress),
            is_up: false,
            ..device(3, "eth1", "noop")
        },
    ];
    devices.extend(pods);
    facts.devices = Ok(devices);
    facts
}

#[test]
fn the_report_as_text() {
    let text = Report::new(&a_bit_of_all(), &[]).text();
    expect_file!["../../tests/golden/doctor.txt"].assert_eq(&text);
    let text = Report::new(&nobody(), &[]).text();
    expect_file!["../../tests/golden/doctor-nobody.txt"].assert_eq(&text);
}

#[test]
fn the_report_as_json() {
    let asked = ["eth0".to_owned(), "eth1".into(), "eth9".into()];
    let report = Report::new(&a_bit_of_all(), &asked);
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    let pretty = serde_json::to_string_pretty(&json).unwrap() + "\n";
    expect_file!["../../tests/golden/doctor.json"].assert_eq(&pretty);
    // One object, in this order.
    let first: String = report.json().chars().take(30).collect();
    expect![[r#"{"can_run":false,"findings":[{"#]].assert_eq(&first);
}
