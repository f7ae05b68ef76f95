//! What `throttle doctor` says of machines that lack something.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says so by panicking"
)]

use nix::libc;
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
};
use throttle::doctor::{self, facts::Has};
use throttle_tests::{
    Feature, Namespace, Program, Throttle,
    hooks::{Hook, HookState, attach_passing},
    lacking::{apart, refuse_bpf},
    process::{Finished, Mounts},
};

const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_QUERY: u32 = 16;

/// Exit codes.
const OK: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const PRIVILEGE: Option<i32> = Some(3);
const KERNEL: Option<i32> = Some(4);

const NOBODY: u32 = 65_534;

/// A namespace with a device `eth0` that is up.
fn namespace() -> Namespace {
    let namespace = Namespace::new("doctor");
    namespace.ip("link add name eth0 up type veth peer name peer");
    namespace.ip("link set peer up");
    namespace
}

fn program(namespace: &Namespace, args: &[&str]) -> Program {
    Throttle::command(namespace, &["doctor", "-i", "eth0"]).args(args)
}

/// What the doctor says of a machine.
#[derive(Debug)]
struct Said {
    finished: Finished,
    json: Value,
}

impl Said {
    #[track_caller]
    fn of(program: Program) -> Self {
        let finished = program.output();
        assert_eq!(finished.stderr, "", "{}", finished.stdout);
        assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.stdout);
        let json: Value = serde_json::from_str(&finished.stdout).unwrap();
        let code = finished.code().unwrap();
        assert_eq!(json["can_run"].as_bool().unwrap(), code == 0, "{json}");
        Self { finished, json }
    }

    /// The finding of a check.
    #[track_caller]
    fn about(&self, check: &str) -> &Value {
        let mut all = self.json["findings"].as_array().unwrap().iter();
        all.find(|finding| finding["check"] == check)
            .unwrap_or_else(|| panic!("nothing about {check}: {:#}", self.json))
    }

    /// Asserts how a check came out, and that the remedy has this in it.
    #[track_caller]
    fn assert(&self, check: &str, state: &str, remedy: &str) {
        let finding = self.about(check);
        assert_eq!(finding["state"], state, "{finding:#}");
        assert!(finding["found"].is_string(), "{finding:#}");
        let said = finding["remedy"].as_str().unwrap_or_default();
        assert!(said.contains(remedy), "{finding:#}");
        assert_eq!(said.is_empty(), remedy.is_empty(), "{finding:#}");
    }

    /// The checks that came out as missing.
    fn missing(&self) -> Vec<&str> {
        let all = self.json["findings"].as_array().unwrap().iter();
        all.filter(|finding| finding["state"] == "missing")
            .map(|finding| finding["check"].as_str().unwrap())
            .collect()
    }

    fn eth0(&self) -> &Value {
        let all = self.json["interfaces"].as_array().unwrap();
        all.iter().find(|one| one["name"] == "eth0").unwrap()
    }

    /// What is said of eth0, as one text.
    fn of_eth0(&self) -> String {
        self.eth0()["findings"].to_string()
    }
}

/// The doctor in a mount namespace of its own, after this has been done there.
fn after(namespace: &Namespace, done: &str) -> Program {
    namespace
        .program("unshare")
        .args(["--mount", "sh", "-e", "-c"])
        .arg(format!("{done}\nexec \"$0\" doctor -i eth0"))
        .arg(Throttle::path())
}

/// The doctor without some capabilities, as setpriv names them.
fn without(namespace: &Namespace, lacking: &str) -> Program {
    namespace
        .program("setpriv")
        .args(["--bounding-set", lacking, "--inh-caps", lacking, "--"])
        .arg(Throttle::path())
        .args(["doctor", "-i", "eth0"])
}

#[test]
fn where_nothing_is_missing_all_is_well_and_nothing_is_left_behind() {
    let namespace = namespace();
    let before = HookState::of(&namespace);
    let mounts = Mounts::with_bpffs(&namespace);
    let said = Said::of(program(&namespace, &[]).with_mounts(&mounts));
    assert_eq!(said.finished.code(), OK);
    for check in [
        "privileges",
        "user namespace",
        "kernel",
        "eBPF programs",
        "hook",
        "bpffs",
        "cgroup v2",
        "registration",
        "throttles",
    ] {
        said.assert(check, "ok", "");
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        said.assert("BTF", "ok", "");
        said.assert("lockdown", "ok", "");
    }
    assert_eq!(said.eth0()["link"], "ethernet");
    assert_eq!(said.eth0()["up"], true);
    assert_eq!(HookState::of(&namespace), before);
}

#[test]
fn the_text_is_a_line_for_each_finding_with_the_remedy_below() {
    let namespace = namespace();
    let mounts = Mounts::without_bpffs(&namespace);
    let finished = program(&namespace, &["-o", "text"])
        .with_mounts(&mounts)
        .output()
        .expect_success();
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.starts_with("note     bpffs "))
        .unwrap_or_else(|| panic!("{}", finished.stdout));
    assert!(lines[at].contains("--keep"), "{}", lines[at]);
    assert_eq!(lines[at + 1].trim(), "-> mount -t bpf bpf /sys/fs/bpf");
    assert_eq!(lines.last(), Some(&"throttle can run here"));
}

// ---- one lack after the other ---------------------------------------------

#[test]
fn a_missing_bpf_filesystem_is_named() {
    let namespace = namespace();
    let mounts = Mounts::without_bpffs(&namespace);
    let said = Said::of(program(&namespace, &[]).with_mounts(&mounts));
    assert_eq!(said.finished.code(), OK);
    said.assert("bpffs", "note", "mount -t bpf bpf /sys/fs/bpf");
}

#[test]
fn a_user_without_privilege_is_told_which_capabilities_are_missing() {
    let namespace = namespace();
    let said = Said::of(program(&namespace, &[]).as_user(NOBODY));
    assert_eq!(said.finished.code(), PRIVILEGE);
    let required = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"];
    assert_eq!(said.missing(), required);
    for check in required {
        said.assert(check, "missing", "sudo");
    }
    for check in [
        "CAP_SYS_PTRACE",
        "CAP_DAC_READ_SEARCH",
        "CAP_SYS_ADMIN",
        "CAP_KILL",
    ] {
        said.assert(check, "note", "root");
    }
    said.assert("registration", "note", "root");
    // What can be told, is.
    said.assert("kernel", "ok", "");
    assert!(said.of_eth0().contains("no fq"), "{}", said.of_eth0());
    assert!(said.eth0()["ingress"].is_null(), "{}", said.eth0());
}

#[test]
fn a_single_missing_capability_is_named() {
    let namespace = namespace();
    for (lacking, checks) in [
        ("-net_raw", &["CAP_NET_RAW"][..]),
        ("-net_admin", &["CAP_NET_ADMIN"]),
        ("-bpf,-sys_admin", &["CAP_BPF"]),
        ("-perfmon,-sys_admin", &["CAP_PERFMON"]),
    ] {
        let said = Said::of(without(&namespace, lacking));
        assert_eq!(
            said.finished.code(),
            PRIVILEGE,
            "{lacking}: {:#}",
            said.json
        );
        assert_eq!(said.missing(), checks, "{lacking}");
    }
    for (lacking, check) in [
        ("-sys_ptrace", "CAP_SYS_PTRACE"),
        ("-dac_read_search", "CAP_DAC_READ_SEARCH"),
        ("-sys_admin", "CAP_SYS_ADMIN"),
        ("-kill", "CAP_KILL"),
    ] {
        let said = Said::of(without(&namespace, lacking));
        assert_eq!(said.finished.code(), OK, "{lacking}: {:#}", said.json);
        said.assert(check, "note", "root");
        said.assert("eBPF programs", "ok", "");
    }
}

#[test]
fn root_of_another_user_namespace_is_told_that_it_is_none_here() {
    let namespace = namespace();
    let program = namespace
        .program("unshare")
        .args(["--user", "--map-root-user"])
        .arg(Throttle::path())
        .args(["doctor", "-i", "eth0"]);
    let said = Said::of(program);
    assert_eq!(said.finished.code(), PRIVILEGE, "{:#}", said.json);
    assert_eq!(said.missing(), ["user namespace"]);
}

#[test]
fn another_pid_namespace_is_told() {
    let namespace = namespace();
    let program = namespace
        .program("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(Throttle::path())
        .args(["doctor", "-i", "eth0"]);
    let said = Said::of(program);
    assert_eq!(said.finished.code(), OK);
    said.assert("pid namespace", "note", "hostPID");
}

#[test]
fn a_kernel_that_does_not_describe_itself_is_told() {
    let namespace = namespace();
    if !Path::new("/sys/kernel/btf").exists() {
        eprintln!("skipped: this kernel has no BTF that could be hidden");
        return;
    }
    let hidden = after(&namespace, "mount -t tmpfs tmpfs /sys/kernel/btf");
    let said = Said::of(hidden);
    assert_eq!(said.finished.code(), OK);
    said.assert("BTF", "note", "CONFIG_DEBUG_INFO_BTF");
    let found = said.about("BTF")["found"].as_str().unwrap();
    assert_eq!(found, "no /sys/kernel/btf/vmlinux");
    // One that is there and makes no sense.
    let garbled = after(
        &namespace,
        "mount -t tmpfs tmpfs /sys/kernel/btf; echo else >/sys/kernel/btf/vmlinux",
    );
    let finished = garbled.output();
    assert_eq!(finished.code(), OK, "{}", finished.stdout);
    assert!(
        finished.stdout.contains("unknown kind"),
        "{}",
        finished.stdout
    );
}

#[test]
fn a_lockdown_that_hides_the_kernel_is_told() {
    let namespace = namespace();
    if !Path::new("/sys/kernel/security").exists() {
        eprintln!("skipped: this kernel has no /sys/kernel/security to put a file into");
        return;
    }
    let locked = |level: &str| {
        let file = "/sys/kernel/security/lockdown";
        let done = format!("mount -t tmpfs tmpfs /sys/kernel/security; echo '{level}' >{file}");
        Said::of(after(&namespace, &done))
    };
    let said = locked("none integrity [confidentiality]");
    said.assert("lockdown", "note", "lockdown=integrity");
    locked("none [integrity] confidentiality").assert("lockdown", "ok", "");
}

#[test]
fn missing_cgroups_are_told() {
    let namespace = namespace();
    let said = Said::of(after(&namespace, "mount -t tmpfs tmpfs /sys/fs/cgroup"));
    assert_eq!(said.finished.code(), OK);
    said.assert("cgroup v2", "note", "mount -t cgroup2");
}

#[test]
fn a_run_folder_that_cannot_be_written_is_told() {
    let namespace = namespace();
    let said = Said::of(after(&namespace, "mount -t tmpfs -o ro tmpfs /run"));
    assert_eq!(said.finished.code(), OK);
    said.assert("registration", "note", "RuntimeDirectory");
}

#[test]
fn a_kernel_without_the_maps_or_programs_is_told() {
    let namespace = namespace();
    for (command, part) in [
        (BPF_MAP_CREATE, "ring buffer"),
        (BPF_PROG_LOAD, "sched_cls"),
    ] {
        let said = apart(
            || refuse_bpf(&[(command, libc::EINVAL)]),
            || Said::of(program(&namespace, &[])),
        );
        assert_eq!(said.finished.code(), KERNEL, "{:#}", said.json);
        said.assert("eBPF programs", "missing", "Linux 5.12");
        let found = said.about("eBPF programs")["found"].as_str().unwrap();
        assert!(found.contains(part), "{found}");
    }
}

#[test]
fn a_filter_that_forbids_bpf_is_told_from_lack_of_capabilities() {
    let namespace = namespace();
    let said = apart(
        || {
            let all = [BPF_MAP_CREATE, BPF_PROG_LOAD, BPF_PROG_QUERY];
            refuse_bpf(&all.map(|command| (command, libc::EPERM)));
        },
        || Said::of(program(&namespace, &[])),
    );
    assert_eq!(said.finished.code(), PRIVILEGE, "{:#}", said.json);
    assert_eq!(said.missing(), ["eBPF programs"]);
    said.assert("eBPF programs", "missing", "seccomp");
}

#[test]
fn without_tcx_clsact_is_tried_where_nobody_sees_it() {
    let namespace = namespace();
    let before = HookState::of(&namespace);
    let said = apart(
        || refuse_bpf(&[(BPF_PROG_QUERY, libc::EINVAL)]),
        || Said::of(program(&namespace, &[])),
    );
    assert_eq!(said.finished.code(), OK, "{:#}", said.json);
    said.assert("hook", "ok", "");
    let found = said.about("hook")["found"].as_str().unwrap();
    assert!(found.starts_with("clsact"), "{found}");
    assert_eq!(HookState::of(&namespace), before);
    assert_eq!(doctor::has_clsact(), Has::Yes);
}

// ---- interfaces -----------------------------------------------------------

#[test]
fn an_interface_without_fq_gets_the_remedy_and_one_with_it_does_not() {
    let namespace = namespace();
    let said = Said::of(program(&namespace, &[]));
    assert_eq!(said.finished.code(), OK);
    assert_eq!(said.eth0()["qdisc"], "noqueue");
    assert_eq!(said.eth0()["departure_times"], false);
    let all = said.of_eth0();
    assert!(all.contains("no fq"), "{all}");
    assert!(all.contains("tc qdisc replace dev eth0 root fq"), "{all}");
    if !Feature::Fq.is_here() {
        return;
    }
    namespace.tc("qdisc replace dev eth0 root fq");
    let said = Said::of(program(&namespace, &[]));
    assert_eq!(said.eth0()["departure_times"], true);
    assert!(!said.of_eth0().contains("no fq"), "{}", said.of_eth0());
}

#[test]
fn an_ingress_qdisc_in_the_place_of_clsact_is_told() {
    let namespace = namespace();
    namespace.tc("qdisc add dev eth0 ingress");
    let said = Said::of(program(&namespace, &[]));
    assert_eq!(said.eth0()["slot"], "ingress");
    let all = said.of_eth0();
    assert!(all.contains("tc qdisc delete dev eth0 ingress"), "{all}");
    let said = apart(
        || refuse_bpf(&[(BPF_PROG_QUERY, libc::EINVAL)]),
        || Said::of(program(&namespace, &[])),
    );
    assert_eq!(said.finished.code(), FAILED, "{:#}", said.json);
    // Then `throttle run` works.
    namespace.tc("qdisc delete dev eth0 ingress");
    let said = Said::of(program(&namespace, &[]));
    assert!(said.eth0()["slot"].is_null());
}

#[test]
fn other_programs_on_the_hook_are_named() {
    if !Feature::Tcx.is_here() {
        return;
    }
    let namespace = namespace();
    namespace.tc("qdisc add dev eth0 clsact");
    let filter = "filter add dev eth0 egress pref 9 protocol ip flower ip_proto tcp action pass";
    let flower = namespace.program("tc").args(filter.split(' ')).output();
    let has_flower = flower.code() == OK;
    namespace
        .program("tc")
        .args("filter add dev eth0 ingress pref 7 bpf direct-action bytecode".split(' '))
        .arg("1,6 0 0 4294967295")
        .output()
        .expect_success();
    let _link = attach_passing(&namespace, "eth0", Hook::Egress);
    let said = Said::of(program(&namespace, &[]));
    assert_eq!(said.finished.code(), OK);
    let all = said.of_eth0();
    assert!(
        all.contains("on what comes in: bpf")
            && all.contains("(filter, priority 7); throttle goes before"),
        "{all}"
    );
    assert!(
        all.contains("on what goes out: a program without a name (TCX, id "),
        "{all}"
    );
    let egress = &said.eth0()["egress"];
    assert_eq!(egress[0]["by"], "tcx");
    let tcx = &HookState::of(&namespace).tcx[&("eth0".into(), Hook::Egress)];
    assert_eq!(egress[0]["id"], tcx[0]);
    if has_flower {
        assert_eq!(egress[1]["kind"], "flower");
        assert_eq!(egress[1]["priority"], 9);
    }
}

#[test]
fn a_running_throttle_shows_on_the_hook_with_what_is_before_and_behind_it() {
    if !Feature::Tcx.is_here() {
        return;
    }
    for (hook, before) in [("tcx", false), ("clsact", true)] {
        let namespace = namespace();
        let _link = attach_passing(&namespace, "eth0", Hook::Egress);
        let _running = Throttle::start(&namespace, &["-i", "eth0", "--hook", hook]);
        let said = Said::of(program(&namespace, &[]));
        assert_eq!(said.finished.code(), OK);
        let all = said.of_eth0();
        assert!(all.contains("on what comes in: throttle's"), "{all}");
        let part = if before {
            "before throttle's bpf out_egress_ether"
        } else {
            "throttle's out_egress_ethe"
        };
        assert!(all.contains(part), "{hook}: {all}");
        assert_eq!(all.contains("does not see"), before, "{hook}: {all}");
        let ours = said.eth0()["egress"].as_array().unwrap().iter();
        let ours: Vec<bool> = ours.map(|one| one["ours"] == true).collect();
        assert_eq!(ours, [!before, before], "{hook}: {all}");
    }
}

#[test]
fn without_the_right_to_look_at_programs_they_are_not_taken_for_none() {
    if !Feature::Tcx.is_here() {
        return;
    }
    let namespace = namespace();
    let _link = attach_passing(&namespace, "eth0", Hook::Egress);
    let said = Said::of(without(&namespace, "-sys_admin"));
    let all = said.of_eth0();
    assert!(
        all.contains("there are TCX programs on what goes out"),
        "{all}"
    );
    assert!(said.eth0()["egress"].is_null());
    assert_eq!(said.eth0()["ingress"], Value::Array(Vec::new()));
}

#[test]
fn a_throttle_at_work_is_found_with_its_pid() {
    let namespace = namespace();
    let running = Throttle::start(&namespace, &["-i", "eth0", "--name=somebody"]);
    let said = Said::of(program(&namespace, &[]));
    said.assert("throttles", "ok", "");
    assert_eq!(said.json["throttles"][0]["name"], "somebody");
    assert_eq!(said.json["throttles"][0]["pid"], running.pid());
    running.stop().expect_success();
    let said = Said::of(program(&namespace, &[]));
    assert_eq!(said.json["throttles"], Value::Array(Vec::new()));
}

#[test]
fn interfaces_with_odd_names_are_listed_and_harmless() {
    let namespace = namespace();
    for name in [&b"\xff\xfe"[..], b"a\x1b[31mb", b"$(reboot)"] {
        namespace
            .program("ip")
            .args(["link", "add", "name"])
            .arg(OsStr::from_bytes(name))
            .args(["up", "type", "veth"])
            .output()
            .expect_success();
    }
    let finished = Throttle::command(&namespace, &["doctor"])
        .output()
        .expect_success();
    let json: Value = serde_json::from_str(&finished.stdout).unwrap();
    let all = json["interfaces"].as_array().unwrap();
    let names: Vec<&str> = all
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    for name in [r"\xff\xfe", r"a\x1b[31mb", "$(reboot)", "eth0", "peer"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(!names.contains(&"lo"));
    let text = Throttle::command(&namespace, &["doctor", "-o", "text"]);
    let text = text.output().expect_success().stdout;
    assert!(!text.contains('\x1b'), "{text:?}");
    for remedy in text.lines().filter(|line| line.contains("-> ")) {
        assert!(!remedy.contains('$'), "{remedy}");
    }
}

#[test]
fn hundreds_of_interfaces_make_a_short_text() {
    let namespace = namespace();
    for n in 0..150 {
        namespace.ip(&format!(
            "link add name pod{n} up type veth peer name end{n}"
        ));
    }
    let text = Throttle::command(&namespace, &["doctor", "-o", "text"]);
    let text = text.output().expect_success().stdout;
    assert!(text.lines().count() < 40, "{text}");
    assert!(text.contains(" more: up, Ethernet"), "{text}");
    let finished = Throttle::command(&namespace, &["doctor"])
        .output()
        .expect_success();
    let json: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(json["interfaces"].as_array().unwrap().len(), 302);
}

#[test]
fn an_interface_that_is_not_there_is_told() {
    let namespace = namespace();
    let said = Said::of(program(&namespace, &["-i", "eth9"]));
    assert_eq!(said.finished.code(), FAILED);
    let missing = &said.json["interfaces"][1];
    assert_eq!(missing["name"], "eth9");
    assert_eq!(missing["findings"][0]["state"], "missing");
    let finished = program(&namespace, &["-i", "a/b"]).output();
    assert_eq!(finished.code(), USAGE);
    assert!(
        finished.stderr.contains("cannot be the name"),
        "{}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "");
}

// ---- output ---------------------------------------------------------------

#[test]
fn findings_that_nobody_reads_are_no_failure() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = Command::new(Throttle::path())
        .arg("doctor")
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), OK);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn findings_that_cannot_be_written_are_a_failure() {
    let output = Command::new(Throttle::path())
        .arg("doctor")
        .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), FAILED);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("No space left on device"), "{stderr}");
}
