//! What `throttle` says when it cannot work, and what it leaves behind: nothing.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says so by panicking"
)]

use nix::{
    libc,
    sys::signal::Signal::{self, SIGHUP, SIGINT, SIGKILL, SIGTERM},
};
use std::{
    collections::BTreeSet,
    env, fs, io,
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};
use throttle_tests::{
    Feature, Lab, Namespace, Throttle,
    addresses::dead,
    features::hooks,
    hooks::HookState,
    lacking::{apart, hide_btf, refuse_bpf},
    process::Finished,
    throttle_cmd::Running,
    wait::wait_at_most,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// How long the kernel may take to free what nobody holds any more.
const FREED_WITHIN: Duration = Duration::from_secs(20);

/// Commands of bpf(2), of linux/bpf.h.
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_GET_NEXT_ID: u32 = 11;
const BPF_MAP_GET_NEXT_ID: u32 = 12;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_GET_NEXT_ID: u32 = 31;

/// Exit codes.
const OK: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const PRIVILEGE: Option<i32> = Some(3);
const KERNEL: Option<i32> = Some(4);

/// A namespace with these devices, all of them up, each joined to another one.
fn namespace(devices: &[&str]) -> Namespace {
    let namespace = Namespace::new("refusals");
    for device in devices {
        namespace.ip(&format!(
            "link add name {device} up type veth peer name {device}-peer"
        ));
        namespace.ip(&format!("link set {device}-peer up"));
    }
    namespace
}

/// Runs `throttle run` with these arguments, which it refuses.
#[track_caller]
fn refused(namespace: &Namespace, args: &[&str]) -> Finished {
    let before = HookState::of(namespace);
    let mut process = Throttle::run(namespace, args).start();
    wait_until(&format!("{args:?} to be refused"), SOON, || {
        process.ended().is_some()
    });
    let finished = process.wait(SOON);
    assert_eq!(finished.stdout, "", "events alone go to stdout: {args:?}");
    assert_eq!(
        HookState::of(namespace),
        before,
        "{args:?} left something behind"
    );
    finished
}

/// Asserts the exit code, and that the message has all these parts.
#[track_caller]
fn assert_says(finished: &Finished, code: Option<i32>, parts: &[&str]) {
    let Finished { line, stderr, .. } = finished;
    assert_eq!(finished.code(), code, "{line}\n{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{line}: no {part:?} in:\n{stderr}");
    }
    assert!(stderr.lines().count() < 20, "too much to read:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{line}\n{stderr}");
    assert!(!stderr.contains("Error {"), "{line}\n{stderr}");
}

/// Ids of the programs, maps and links that a process holds. The machine's are
/// everybody's, so those alone can tell whether throttle left any.
#[derive(Debug)]
struct Held {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Held {
    fn by(pid: u32) -> Self {
        let mut held = Self {
            programs: BTreeSet::new(),
            maps: BTreeSet::new(),
            links: BTreeSet::new(),
        };
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
            // It may have been closed meanwhile.
            let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            for line in text.lines() {
                let Some((name, value)) = line.split_once(':') else {
                    continue;
                };
                let set = match name {
                    "prog_id" => &mut held.programs,
                    "map_id" => &mut held.maps,
                    "link_id" => &mut held.links,
                    _ => continue,
                };
                set.insert(value.trim().parse().unwrap());
            }
        }
        held
    }

    /// Those of its programs, maps and links that still exist.
    fn left(&self) -> Self {
        let alive = |ids: &BTreeSet<u32>, next: u32| ids & &existing(next);
        Self {
            programs: alive(&self.programs, BPF_PROG_GET_NEXT_ID),
            maps: alive(&self.maps, BPF_MAP_GET_NEXT_ID),
            links: alive(&self.links, BPF_LINK_GET_NEXT_ID),
        }
    }

    fn count(&self) -> usize {
        self.programs.len() + self.maps.len() + self.links.len()
    }

    #[track_caller]
    fn await_gone(&self) {
        let gone = wait_at_most(FREED_WITHIN, || (self.left().count() == 0).then_some(()));
        let left = self.left();
        assert!(
            gone.is_some(),
            "after {FREED_WITHIN:?} there is still {left:?}"
        );
    }
}

/// Ids of what exists in the machine. Asked for the ids alone: to open a map of
/// which the last holder has just gone keeps it for ever if it is a program
/// array (`prog_array_map_clear` in kernel/bpf/arraymap.c, Linux 6.18: its
/// reference is lost when the work that drops it is still pending).
fn existing(next_id: u32) -> BTreeSet<u32> {
    let next = |id: u32| {
        // start_id, next_id, open_flags
        let mut attr = [id, 0, 0];
        // SAFETY: attribute and length belong together.
        let found =
            unsafe { libc::syscall(libc::SYS_bpf, next_id, &raw mut attr, size_of_val(&attr)) };
        (found == 0).then_some(attr[1])
    };
    std::iter::successors(next(0), |&id| next(id)).collect()
}

/// A throttle at work, what was there before it, and what it holds.
struct AtWork {
    namespace: Namespace,
    before: HookState,
    held: Held,
    running: Running,
}

impl AtWork {
    #[track_caller]
    fn start(namespace: &Namespace, args: &[&str]) -> Self {
        let before = HookState::of(namespace);
        let running = Throttle::start(namespace, args);
        let held = Held::by(running.pid());
        assert!(
            held.programs.len() >= 6 && held.maps.len() >= 10,
            "{held:?}"
        );
        assert!(held.left().count() > 10, "what is held exists");
        assert_ne!(HookState::of(namespace), before, "nothing is attached");
        Self {
            namespace: namespace.clone(),
            before,
            held,
            running,
        }
    }

    /// Asserts that it left the hooks as they were, and nothing in the kernel.
    #[track_caller]
    fn assert_left_nothing(before: &HookState, namespace: &Namespace, held: &Held) {
        assert_eq!(&HookState::of(namespace), before);
        held.await_gone();
    }

    #[track_caller]
    fn end_by(self, signal: Signal) -> Finished {
        let finished = self.running.stop_by(signal);
        Self::assert_left_nothing(&self.before, &self.namespace, &self.held);
        finished
    }
}

// ---- usage ----------------------------------------------------------------

#[test]
fn settings_that_make_no_sense_are_refused_with_what_to_write() {
    let namespace = namespace(&["eth0"]);
    for (args, parts) in [
        (&["--limit", "0"][..], &["--limit", "from 1 to 1000000"][..]),
        (&["--limit", "1000001"], &["--limit", "from 1 to 1000000"]),
        (&["--limit", "ten"], &["--limit", "whole number"]),
        (&["--limit", "1.5"], &["--limit", "whole number"]),
        (&["--limit=-1"], &["--limit", "whole number"]),
        (&["--limit="], &["--limit", "whole number"]),
        (&["--rate", "0/s"], &["--rate", "the least is 1/m"]),
        (&["--rate", "5"], &["--rate", "10/s, 30/m"]),
        (&["--rate", "5/h"], &["--rate", "unknown unit 'h'", "10/s"]),
        (&["--rate", "many/s"], &["--rate", "'many'", "10/s"]),
        (&["--rate", "1.5/s"], &["--rate", "'1.5'", "10/s"]),
        (&["--rate", "100001/s"], &["--rate", "the most is 100000/s"]),
        (&["--rate="], &["--rate", "10/s"]),
        (&["--attempt-timeout", "30"], &["--attempt-timeout", "30s"]),
        (
            &["--attempt-timeout", "0s"],
            &["--attempt-timeout", "from 1s"],
        ),
        (
            &["--attempt-timeout", "2days"],
            &["--attempt-timeout", "1day"],
        ),
        (&["--max-delay", "500ms"], &["--max-delay", "from 1s"]),
        (&["--max-delay", "soon"], &["--max-delay", "30s"]),
        (&["--known-for", "5"], &["--known-for", "30s"]),
        (&["--known-for", "2days"], &["--known-for", "1day"]),
        (&["--mode", "off"], &["--mode", "enforce", "monitor"]),
        (&["--hook", "xdp"], &["--hook", "auto", "tcx", "clsact"]),
        (
            &["--direction", "both"],
            &["--direction", "egress", "ingress"],
        ),
        (&["--pacing", "none"], &["--pacing", "auto", "resend"]),
        (&["-o", "xml"], &["--output", "json", "text"]),
        (&["--scope", "host"], &["--scope", "cgroup", "source"]),
        (
            &["--exempt", "10.1.0.0/8"],
            &["--exempt", "write 10.0.0.0/8 for the network"],
        ),
        (&["--exempt", "example.org"], &["--exempt", "no network"]),
        (&["--exempt", "2001:db8::/129"], &["--exempt", "no network"]),
        (
            &["--exempt", "10.0.0.0/8:70000"],
            &["--exempt", "from 1 to 65535"],
        ),
        (&["--limits", "5"], &["--limits", "--limit"]),
        (
            &["--rate", "100000/s", "--max-delay", "1h"],
            &["--rate 100000/s", "--max-delay 1h", "lower limit or rate"],
        ),
        (
            &["--attempt-timeout", "1h", "--rate", "10000/s"],
            &["--attempt-timeout 1h", "256 MiB", "lower limit or rate"],
        ),
    ] {
        let args = [&["-i", "eth0"], args].concat();
        assert_says(&refused(&namespace, &args), USAGE, parts);
    }
}

#[test]
fn a_run_without_an_interface_is_refused() {
    let namespace = namespace(&[]);
    assert_says(&refused(&namespace, &[]), USAGE, &["--interface <IFACE>"]);
    assert_says(
        &refused(&namespace, &["-i"]),
        USAGE,
        &["--interface <IFACE>"],
    );
}

#[test]
fn unknown_commands_are_refused_with_those_there_are() {
    let namespace = namespace(&[]);
    for args in [&["walk"][..], &[]] {
        let finished = Throttle::command(&namespace, args).output();
        assert_says(&finished, USAGE, &["Usage: throttle"]);
        assert_eq!(finished.stdout, "");
    }
}

// ---- interfaces -----------------------------------------------------------

#[test]
fn an_unknown_interface_is_named() {
    let namespace = namespace(&["eth0"]);
    for name in ["eth1", "eth0.7", "..", "ETH0"] {
        let finished = refused(&namespace, &["-i", name]);
        let named = format!("interface {name}");
        assert_says(&finished, FAILED, &[&named, "`ip link`"]);
    }
}

#[test]
fn a_name_that_no_interface_can_have_is_named() {
    let namespace = namespace(&["eth0"]);
    for name in ["", "an-interface-with-a-long-name", "a/b"] {
        let finished = refused(&namespace, &["-i", name]);
        let named = format!("'{name}' for '--interface <IFACE>'");
        assert_says(
            &finished,
            USAGE,
            &[&named, "cannot be the name", "`ip link`"],
        );
    }
}

#[test]
fn an_interface_of_another_namespace_is_unknown() {
    let (here, there) = (namespace(&["here0"]), namespace(&["there0"]));
    assert_says(
        &refused(&here, &["-i", "there0"]),
        FAILED,
        &["there0", "in this network namespace"],
    );
    Throttle::start(&there, &["-i", "there0"]).stop();
}

/// A device whose frames are neither Ethernet nor IP. It lives as long as the
/// descriptor.
fn add_radio(namespace: &Namespace, name: &str) -> OwnedFd {
    /// `TUNSETLINK` of linux/if_tun.h.
    const TUNSETLINK: libc::Ioctl = 0x4004_54cd;
    /// `ARPHRD_IEEE80211_RADIOTAP` of linux/if_arp.h.
    const RADIOTAP: libc::c_ulong = 803;
    namespace.run(|| {
        let tun = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: integers and bytes only.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
        // SAFETY: TUNSETIFF takes an ifreq.
        let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        // SAFETY: TUNSETLINK takes a number.
        let set = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETLINK, RADIOTAP) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        tun.into()
    })
}

#[test]
fn an_interface_whose_frames_cannot_be_read_is_refused() {
    let namespace = namespace(&["eth0"]);
    let _radio = add_radio(&namespace, "radio0");
    let parts = [
        "interface radio0",
        "Ethernet and plain IP only",
        "Attach to",
    ];
    assert_says(&refused(&namespace, &["-i", "radio0"]), FAILED, &parts);
    for hook in hooks() {
        let args = ["-i", "eth0", "-i", "radio0", "--hook", hook];
        assert_says(&refused(&namespace, &args), FAILED, &parts);
    }
}

#[test]
fn when_the_second_interface_is_unknown_the_first_is_left_alone() {
    let namespace = namespace(&["eth0"]);
    for hook in hooks() {
        let args = ["-i", "eth0", "-i", "eth1", "--hook", hook];
        assert_says(&refused(&namespace, &args), FAILED, &["interface eth1"]);
    }
}

#[test]
fn an_interface_named_twice_is_attached_once() {
    let namespace = namespace(&["eth0"]);
    let at_work = AtWork::start(&namespace, &["-i", "eth0", "-i", "eth0"]);
    let state = HookState::of(&namespace);
    assert_eq!(state.tcx.len() + state.filters.len(), 2, "{state:?}");
    assert!(state.tcx.values().all(|programs| programs.len() == 1));
    assert!(
        state
            .filters
            .values()
            .all(|filters| filters.matches("direct-action").count() == 1)
    );
    assert_eq!(at_work.end_by(SIGINT).code(), OK);
}

// ---- privilege ------------------------------------------------------------

/// A copy of the command that any user can reach.
struct Reachable(PathBuf);

impl Reachable {
    fn new() -> Self {
        let folder = env::temp_dir().join(format!("throttle-refusals-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(Throttle::path(), folder.join("throttle")).unwrap();
        Self(folder)
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        // What cannot be removed is in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn without_privilege_it_says_which_it_needs() {
    const NOBODY: u32 = 65_534;
    let namespace = namespace(&["eth0"]);
    let reachable = Reachable::new();
    for hook in hooks() {
        let before = HookState::of(&namespace);
        let finished = namespace
            .program(reachable.0.join("throttle"))
            .args(["run", "-i", "eth0", "-o", "json", "--hook", hook])
            .as_user(NOBODY)
            .output();
        let parts = [
            "CAP_BPF",
            "CAP_NET_ADMIN",
            "CAP_NET_RAW",
            "CAP_PERFMON",
            "root",
        ];
        assert_says(&finished, PRIVILEGE, &parts);
        assert_eq!(finished.stdout, "");
        assert_eq!(HookState::of(&namespace), before);
    }
    let finished = namespace
        .program(reachable.0.join("throttle"))
        .arg("explain")
        .as_user(NOBODY)
        .output();
    assert_eq!(finished.code(), OK, "an explanation needs no privilege");
}

#[test]
fn each_missing_capability_is_told_from_a_failure() {
    let namespace = namespace(&["eth0"]);
    // CAP_SYS_ADMIN stands in for all but the first.
    for lacking in [
        "-net_raw",
        "-net_admin,-sys_admin",
        "-bpf,-sys_admin",
        "-perfmon,-sys_admin",
    ] {
        for hook in hooks() {
            let before = HookState::of(&namespace);
            let finished = namespace
                .program("setpriv")
                .args(["--bounding-set", lacking, "--inh-caps", lacking, "--"])
                .arg(Throttle::path())
                .args(["run", "-i", "eth0", "-o", "json", "--hook", hook])
                .output();
            assert_says(&finished, PRIVILEGE, &["CAP_PERFMON", "run it as root"]);
            assert_eq!(finished.stdout, "");
            assert_eq!(HookState::of(&namespace), before, "{lacking}");
        }
    }
}

// ---- kernels that lack something ------------------------------------------

#[test]
fn a_kernel_without_bpf_is_told_from_lack_of_privilege() {
    let namespace = namespace(&["eth0"]);
    for errno in [libc::ENOSYS, libc::EINVAL] {
        for command in [BPF_MAP_CREATE, BPF_PROG_LOAD] {
            let finished = apart(
                || refuse_bpf(&[(command, errno)]),
                || refused(&namespace, &["-i", "eth0"]),
            );
            assert_says(&finished, KERNEL, &["this kernel has no", "Linux 5.12"]);
        }
    }
    for command in [BPF_MAP_CREATE, BPF_PROG_LOAD] {
        let finished = apart(
            || refuse_bpf(&[(command, libc::EPERM)]),
            || refused(&namespace, &["-i", "eth0"]),
        );
        assert_says(&finished, PRIVILEGE, &["CAP_BPF", "run it as root"]);
    }
}

#[test]
fn without_tcx_clsact_is_taken_and_tcx_alone_is_refused() {
    let namespace = namespace(&["eth0"]);
    apart(
        || refuse_bpf(&[(BPF_LINK_CREATE, libc::EINVAL)]),
        || {
            let finished = refused(&namespace, &["-i", "eth0", "--hook", "tcx"]);
            assert_says(
                &finished,
                KERNEL,
                &["attach", "eth0", "TCX needs Linux 6.6", "--hook clsact"],
            );
            let at_work = AtWork::start(&namespace, &["-i", "eth0"]);
            at_work.running.wait_log("attached to eth0 by clsact", SOON);
            let state = HookState::of(&namespace);
            assert_eq!((state.tcx.len(), state.filters.len()), (0, 2), "{state:?}");
            assert_eq!(at_work.end_by(SIGINT).code(), OK);
        },
    );
}

/// The warnings among what was logged.
fn warnings(finished: &Finished) -> Vec<&str> {
    let lines = finished.stderr.lines();
    lines.filter(|line| line.contains("WARN")).collect()
}

#[test]
fn without_btf_it_warns_once_and_works() {
    let lab = Lab::plain();
    let finished = apart(hide_btf, || {
        let at_work = AtWork::start(&lab.client, &["-i", "eth0", "--limit", "2"]);
        let _attempts = lab.dial((0..5).map(dead));
        at_work
            .running
            .wait_event("the limit is reached", SOON, |_| true);
        at_work.end_by(SIGINT)
    });
    assert_eq!(finished.code(), OK);
    let [warning] = warnings(&finished)[..] else {
        panic!("not one warning:\n{}", finished.stderr);
    };
    assert!(warning.contains("CONFIG_DEBUG_INFO_BTF"), "{warning}");
}

// ---- interfaces that change -----------------------------------------------

#[test]
fn when_its_interface_vanishes_it_ends_and_leaves_nothing() {
    for hook in hooks() {
        let namespace = namespace(&["eth0"]);
        let AtWork { held, running, .. } =
            AtWork::start(&namespace, &["-i", "eth0", "--hook", hook]);
        namespace.ip("link delete eth0");
        let finished = running.wait(SOON);
        assert_says(
            &finished,
            FAILED,
            &["interface eth0 vanished", "Start throttle again"],
        );
        assert_eq!(finished.stdout, "");
        let state = HookState::of(&namespace);
        assert!(
            state.tcx.is_empty() && state.filters.is_empty(),
            "{state:?}"
        );
        held.await_gone();
    }
}

#[test]
fn when_its_interface_moves_away_it_ends_and_leaves_nothing() {
    for hook in hooks() {
        let (here, there) = (namespace(&["eth0"]), Namespace::new("there"));
        let AtWork { held, running, .. } = AtWork::start(&here, &["-i", "eth0", "--hook", hook]);
        here.ip(&format!("link set eth0 netns {}", there.path()));
        assert_says(&running.wait(SOON), FAILED, &["interface eth0 vanished"]);
        for end in [&here, &there] {
            let state = HookState::of(end);
            assert!(
                state.tcx.is_empty() && state.filters.is_empty(),
                "{state:?}"
            );
        }
        held.await_gone();
    }
}

#[test]
fn when_one_of_two_interfaces_vanishes_the_other_stays_attached() {
    for hook in hooks() {
        let namespace = namespace(&["eth0", "eth1"]);
        let before = HookState::of(&namespace);
        let mut at_work = AtWork::start(&namespace, &["-i", "eth0", "-i", "eth1", "--hook", hook]);
        namespace.ip("link delete eth0");
        let log = at_work.running.wait_log("interface eth0 vanished", SOON);
        assert!(log.contains("still attached to eth1"), "{log}");
        let state = HookState::of(&namespace);
        assert_eq!(state.tcx.len() + state.filters.len(), 2, "{state:?}");
        assert!(at_work.running.is_running());
        assert_eq!(at_work.running.stop().code(), OK);
        let after = HookState::of(&namespace);
        assert_eq!((&after.tcx, &after.filters), (&before.tcx, &before.filters));
        assert!(!after.qdiscs.contains("clsact"), "{}", after.qdiscs);
        at_work.held.await_gone();
    }
}

/// Takes a device down and up again under another name, and gives it back the
/// default route and the neighbours that it loses by that.
fn rename(namespace: &Namespace, from: &str, to: &str) {
    let route = namespace.ip("route show default").replace(from, to);
    let neighbours = namespace.ip(&format!("neigh show dev {from} nud permanent"));
    namespace.ip(&format!("link set {from} down"));
    namespace.ip(&format!("link set {from} name {to}"));
    namespace.ip(&format!("link set {to} up"));
    wait_until("the carrier", SOON, || {
        let shown = namespace.ip(&format!("link show {to}"));
        shown.contains("LOWER_UP") && !shown.contains("qdisc noop ")
    });
    namespace.ip(&format!("route replace {route}"));
    for neighbour in neighbours.lines().filter(|line| !line.contains("::")) {
        let words: Vec<&str> = neighbour.split_whitespace().collect();
        let (address, mac) = (words[0], words[2]);
        namespace.ip(&format!(
            "neigh replace {address} lladdr {mac} dev {to} nud permanent"
        ));
    }
}

#[test]
fn an_interface_may_go_down_and_up_and_change_its_name() {
    for hook in hooks() {
        let lab = Lab::plain();
        let args = [
            "-i", "eth0", "--limit", "2", "--rate", "1/m", "--hook", hook,
        ];
        let AtWork {
            before,
            held,
            mut running,
            namespace,
        } = AtWork::start(&lab.client, &args);
        let attached = HookState::of(&namespace);
        rename(&namespace, "eth0", "wan0");
        assert_ne!(HookState::of(&namespace), attached);
        let _attempts = lab.dial((0..6).map(dead));
        running.wait_event("the limit is reached", SOON, |_| true);
        assert!(running.is_running());
        rename(&namespace, "wan0", "eth0");
        assert_eq!(HookState::of(&namespace), attached);
        assert_eq!(running.stop().code(), OK);
        AtWork::assert_left_nothing(&before, &namespace, &held);
    }
}

// ---- leaving nothing ------------------------------------------------------

#[test]
fn a_signal_ends_it_with_nothing_left_behind() {
    for hook in hooks() {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let namespace = namespace(&["eth0", "eth1"]);
            let args = ["-i", "eth0", "-i", "eth1", "--hook", hook];
            let finished = AtWork::start(&namespace, &args).end_by(signal);
            assert_eq!(finished.code(), OK, "{hook} {signal}: {}", finished.stderr);
            assert_eq!(finished.stdout, "");
        }
    }
}

#[test]
fn a_signal_while_it_starts_leaves_nothing_behind() {
    for hook in hooks() {
        let namespace = namespace(&["eth0", "eth1"]);
        let before = HookState::of(&namespace);
        let started = std::time::Instant::now();
        Throttle::start(&namespace, &["-i", "eth0", "-i", "eth1", "--hook", hook]).stop();
        let usual = started.elapsed();
        for part in 0..12 {
            let mut process =
                Throttle::run(&namespace, &["-i", "eth0", "-i", "eth1", "--hook", hook]).start();
            // Not a wait for something: the moment itself is what is varied.
            thread::sleep(usual * part / 10);
            process.signal(SIGTERM);
            wait_until("it to end", SOON, || process.ended().is_some());
            assert_eq!(
                HookState::of(&namespace),
                before,
                "after {part}/10 of its start"
            );
        }
    }
}

#[test]
fn killed_outright_it_leaves_nothing_at_tcx() {
    if !Feature::Tcx.is_here() {
        return;
    }
    let namespace = namespace(&["eth0"]);
    AtWork::start(&namespace, &["-i", "eth0", "--hook", "tcx"]).end_by(SIGKILL);
}

/// Nobody takes clsact filters away when their owner is killed. They let
/// everything pass then: the kernel empties the table by which they find the
/// deciding programs when its last holder in user space goes.
#[test]
fn killed_outright_it_leaves_filters_at_clsact_that_let_everything_pass() {
    let lab = Lab::plain();
    let args = [
        "-i", "eth0", "--limit", "2", "--rate", "1/m", "--hook", "clsact",
    ];
    let at_work = AtWork::start(&lab.client, &args);
    let capture = lab.capture();
    let _held_back = lab.dial((0..6).map(dead));
    at_work
        .running
        .wait_event("the limit is reached", SOON, |_| true);
    at_work.running.stop_by(SIGKILL);
    let left = HookState::of(&lab.client);
    assert_eq!(left.filters.len(), 2, "{left:?}");
    assert!(left.qdiscs.contains("clsact"));

    let _free: Vec<_> = (0..20).map(|n| lab.dial([dead(100 + n)])).collect();
    wait_until("all later attempts to pass", SOON, || {
        (0..20).all(|n| !capture.so_far().syns_to(dead(100 + n)).is_empty())
    });

    // The next one takes them away, and leaves the qdisc, which was there.
    let next = Throttle::start(&lab.client, &args);
    let _again = lab.dial((200..206).map(dead));
    next.wait_event("the limit is reached again", SOON, |_| true);
    assert_eq!(HookState::of(&lab.client).filters.len(), 2);
    next.stop_by(SIGINT).expect_success();
    let after = HookState::of(&lab.client);
    assert!(after.filters.is_empty(), "{after:?}");
    assert!(after.qdiscs.contains("clsact"));

    lab.client.tc("qdisc del dev eth0 clsact");
    assert_eq!(HookState::of(&lab.client), at_work.before);
    at_work.held.await_gone();
}

/// A filter that lets everything go on, as anybody could have put it there.
fn add_somebodys_filter(namespace: &Namespace, direction: &str) {
    namespace
        .program("tc")
        .args(["filter", "add", "dev", "eth0", direction, "pref", "7"])
        .args(["bpf", "direct-action", "bytecode", "1,6 0 0 4294967295"])
        .output()
        .expect_success();
}

#[test]
fn a_clsact_qdisc_that_was_there_before_stays() {
    let namespace = namespace(&["eth0"]);
    namespace.tc("qdisc add dev eth0 clsact");
    add_somebodys_filter(&namespace, "egress");
    let at_work = AtWork::start(&namespace, &["-i", "eth0", "--hook", "clsact"]);
    assert!(at_work.before.qdiscs.contains("clsact"));
    assert_eq!(at_work.before.filters.len(), 1);
    assert_eq!(at_work.end_by(SIGINT).code(), OK);
}

#[test]
fn a_clsact_qdisc_that_somebody_else_uses_meanwhile_stays() {
    for direction in ["ingress", "egress"] {
        let namespace = namespace(&["eth0"]);
        let at_work = AtWork::start(&namespace, &["-i", "eth0", "--hook", "clsact"]);
        add_somebodys_filter(&namespace, direction);
        let AtWork { held, running, .. } = at_work;
        let finished = running.stop();
        assert_says(&finished, OK, &["clsact qdisc stays on eth0"]);
        let after = HookState::of(&namespace);
        assert!(after.qdiscs.contains("clsact"), "{}", after.qdiscs);
        let [filters] = after.filters.values().collect::<Vec<_>>()[..] else {
            panic!("not one filter: {after:?}")
        };
        assert!(
            filters.contains("pref 7") && !filters.contains("ether"),
            "{filters}"
        );
        held.await_gone();
    }
}

/// The kernel would take filters for egress there, and run them at ingress.
#[test]
fn an_ingress_qdisc_in_the_place_of_clsact_is_told_and_left_alone() {
    let namespace = namespace(&["eth0", "eth1"]);
    namespace.tc("qdisc add dev eth1 ingress");
    let finished = refused(
        &namespace,
        &["-i", "eth0", "-i", "eth1", "--hook", "clsact"],
    );
    assert_says(
        &finished,
        FAILED,
        &["clsact qdisc to eth1", "tc qdisc delete dev eth1 ingress"],
    );
    // That is none for TCX.
    if Feature::Tcx.is_here() {
        let at_work = AtWork::start(&namespace, &["-i", "eth0", "-i", "eth1", "--hook", "tcx"]);
        assert_eq!(at_work.end_by(SIGINT).code(), OK);
    }
}

// ---- output ---------------------------------------------------------------

/// Starts it with its standard output redirected, has it tell of an event, and
/// waits until it has ended; whatever the hook, nothing is left behind.
#[track_caller]
fn assert_ends_for_its_output(redirect: &str, assert: impl Fn(&Finished)) {
    for hook in hooks() {
        let lab = Lab::plain();
        let before = HookState::of(&lab.client);
        let mut process = lab
            .client
            .program("bash")
            .args(["-c", &format!(r#"exec "$0" "$@" {redirect}"#)])
            .arg(Throttle::path())
            .args([
                "run", "-i", "eth0", "-o", "json", "--limit", "2", "--hook", hook,
            ])
            .env("RUST_LOG", "info")
            .start();
        wait_until("throttle to be at work", SOON, || {
            process
                .stderr()
                .iter()
                .any(|line| line.contains("attached"))
        });
        let held = Held::by(process.pid());
        let _attempts = lab.dial((0..5).map(dead));
        wait_until("throttle to end", SOON, || process.ended().is_some());
        assert(&process.wait(SOON));
        AtWork::assert_left_nothing(&before, &lab.client, &held);
    }
}

#[test]
fn it_ends_quietly_when_nobody_reads_its_events() {
    assert_ends_for_its_output("> >(exec true)", |finished| {
        assert_says(finished, OK, &["detached"]);
        assert!(
            !finished.stderr.to_lowercase().contains("pipe"),
            "{}",
            finished.stderr
        );
    });
}

#[test]
fn events_that_cannot_be_written_end_it_with_an_error_and_nothing_left_behind() {
    assert_ends_for_its_output("> /dev/full", |finished| {
        let parts = ["write events", "No space left on device", "detached"];
        assert_says(finished, FAILED, &parts);
    });
}

#[test]
fn only_events_go_to_stdout() {
    let lab = Lab::plain();
    let program = Throttle::run(&lab.client, &["-i", "eth0", "--limit", "2"]);
    let running = Throttle::launch(program.env("RUST_LOG", "trace"));
    let destinations: Vec<SocketAddr> = (0..8).map(dead).collect();
    let _attempts = lab.dial(destinations);
    running.wait_event("the limit is reached", SOON, |_| true);
    let finished = running.stop();
    assert_eq!(finished.code(), OK);
    assert!(!finished.stdout.is_empty());
    for line in finished.stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["event"]["kind"].is_string(), "{line}");
    }
    assert!(finished.stderr.contains("TRACE") || finished.stderr.contains("DEBUG"));
}

#[test]
fn the_explanation_says_what_it_means_and_what_to_do() {
    let namespace = Namespace::new("explain");
    let finished = Throttle::command(&namespace, &["explain"])
        .output()
        .expect_success();
    for part in ["4226", "What it means", "What to do now", "--mode monitor"] {
        assert!(finished.stdout.contains(part), "no {part:?}");
    }
    assert_eq!(finished.stderr, "");
}

#[test]
fn an_explanation_that_nobody_reads_is_no_failure() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = Command::new(Throttle::path())
        .arg("explain")
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), OK);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn help_and_version_go_to_stdout() {
    let namespace = Namespace::new("help");
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let finished = Throttle::command(&namespace, args)
            .output()
            .expect_success();
        assert!(finished.stdout.contains("throttle"), "{}", finished.stdout);
        assert_eq!(finished.stderr, "");
    }
}

/// A process that is stopped and continued is alive again.
#[test]
fn it_may_be_stopped_and_continued() {
    let namespace = namespace(&["eth0"]);
    let at_work = AtWork::start(&namespace, &["-i", "eth0"]);
    at_work.running.signal(Signal::SIGSTOP);
    at_work.running.signal(Signal::SIGCONT);
    assert_eq!(at_work.end_by(SIGTERM).code(), OK);
}
