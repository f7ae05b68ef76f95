//! Who is named: real programs, looked at in /proc by the test itself.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use throttle_tests::{
    Cgroup, Feature, Lab,
    addresses::dead,
    clients::{self, Connector},
    process::Process,
    throttle_cmd::{Running, tallies},
    wait_for, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// Few places, so that few attempts meet the limit, and none is released.
const STRICT: &[&str] = &["--limit=3", "--rate=1/m"];
/// Attempts that each program makes.
const COUNT: &str = "6";

fn reached(throttle: &Running) -> Value {
    throttle.wait_event("limit reached", SOON, |event| {
        event["event"]["action"] == "connection-attempt-deferred"
    })
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

/// What /proc says of a process that still runs.
#[track_caller]
fn assert_is(event: &Value, pid: u32) {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let process = &event["process"];
    assert_eq!(process["pid"], pid, "{event:#}");
    assert_eq!(process["name"], text(proc.join("comm")), "{event:#}");
    let executable = fs::read_link(proc.join("exe")).unwrap();
    assert_eq!(process["executable"], executable.to_str().unwrap());
    let status = text(proc.join("status"));
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(process["user"]["id"], of("Uid:"));
    let parent: u32 = of("PPid:").parse().unwrap();
    assert_eq!(process["parent"]["pid"], parent);
    assert_eq!(
        process["parent"]["name"],
        text(format!("/proc/{parent}/comm"))
    );
    assert!(event["throttle"]["exited"].is_null(), "{event:#}");
    let program = &event["throttle"]["programs"][0];
    assert_eq!(program["pid"], pid);
}

/// The ids that the connector prints: of the process, and of its thread.
fn ids(process: &Process) -> (u32, u32) {
    let line = wait_for("the connector to dial", SOON, || {
        process.stdout().first().cloned()
    });
    let (pid, tid) = line.split_once(' ').unwrap();
    (pid.parse().unwrap(), tid.parse().unwrap())
}

#[test]
fn a_static_program_is_named() {
    let connector = Connector::new();
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    let program = connector.dials(&lab.client, COUNT, "plain").start();
    let event = reached(&throttle);
    assert_is(&event, program.pid());
    assert_eq!(event["process"]["user"]["name"], "root");
    assert!(event["process"]["thread"].is_null());
    assert_eq!(
        event["throttle"]["destination_count"],
        event["throttle"]["programs"][0]["attempts"]
    );
    program.kill();
}

#[test]
fn a_thread_is_named_beside_its_process() {
    let connector = Connector::new();
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    let program = connector.dials(&lab.client, COUNT, "thread").start();
    let event = reached(&throttle);
    let (pid, tid) = ids(&program);
    assert_is(&event, pid);
    assert_ne!(pid, tid);
    assert_eq!(event["process"]["thread"]["id"], tid);
    assert_eq!(event["process"]["thread"]["name"], "dialing thread");
    program.kill();
}

#[test]
fn a_forked_child_is_named_and_not_its_parent() {
    let connector = Connector::new();
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    let program = connector.dials(&lab.client, COUNT, "fork").start();
    let event = reached(&throttle);
    let (pid, _) = ids(&program);
    assert_is(&event, pid);
    assert_ne!(pid, program.pid());
    assert_eq!(event["process"]["parent"]["pid"], program.pid());
    program.kill();
}

#[test]
fn a_program_of_another_user_is_named_with_that_user() {
    let connector = Connector::new();
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    let program = connector
        .dials(&lab.client, COUNT, "plain")
        .as_user(65_534)
        .start();
    let event = reached(&throttle);
    assert_is(&event, program.pid());
    assert_eq!(event["user"]["id"], "65534");
    assert_eq!(event["user"]["name"], "nobody");
    program.kill();
}

#[test]
fn a_program_that_ends_at_once_is_named_by_what_the_kernel_noted() {
    let connector = Connector::new();
    let cgroup = Cgroup::new("short");
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    let mut program = connector
        .dials(&lab.client, COUNT, "exit")
        .in_cgroup(&cgroup)
        .start();
    let (pid, _) = ids(&program);
    let event = reached(&throttle);
    assert_eq!(event["process"]["pid"], pid);
    assert_eq!(event["process"]["name"], connector.name());
    assert_eq!(event["process"]["user"]["id"], "0");
    assert_eq!(event["throttle"]["cgroup"]["id"], cgroup.id().to_string());
    assert_eq!(event["throttle"]["cgroup"]["path"], cgroup.path());
    wait_until("the program to end", SOON, || program.ended().is_some());
}

#[test]
fn two_programs_that_end_at_once_have_an_episode_each() {
    const ATTEMPTS: u64 = 9;
    let connector = Connector::new();
    let lab = Lab::plain();
    let throttle = lab.throttle(&["--limit=5", "--rate=1/s"]);
    let told = |action: &str| {
        let mut events = throttle.events();
        events.retain(|event| event["event"]["action"] == action);
        events
    };
    let mut pids = Vec::new();
    for n in 1..=2 {
        let program = connector.dials(&lab.client, "9", "exit").start();
        pids.push(ids(&program).0);
        let begun = Instant::now();
        wait_until("its episode", SOON, || {
            told("connection-attempt-deferred").len() == n
        });
        if n == 1 {
            // Quiet for long enough, and perhaps not noticed yet.
            wait_until("the time of the next one", 2 * SOON, || {
                begun.elapsed() >= Duration::from_millis(10_300)
            });
        }
    }
    wait_until("both to be over", 2 * SOON, || {
        told("limit-cleared").len() == 2
    });
    for (event, pid) in told("limit-cleared").iter().zip(pids) {
        assert_eq!(event["process"]["pid"], pid, "{event:#}");
        assert_eq!(event["throttle"]["program_count"], 1);
        // Of those that were admitted, some have ended before they were looked for.
        let attempts = event["throttle"]["programs"][0]["attempts"]
            .as_u64()
            .unwrap();
        assert!((4..=ATTEMPTS).contains(&attempts), "{event:#}");
        assert_eq!(event["throttle"]["totals"]["deferred"], 4, "{event:#}");
    }
}

#[test]
fn python_and_curl_are_named() {
    const SCRIPT: &str = "
import signal, socket
held = []
for n in range(1, 7):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(('198.51.100.%d' % n, 1024))
    held.append(s)
signal.pause()
";
    let urls: Vec<_> = (0..6).map(|n| clients::url(dead(n))).collect();
    let mut curl = vec!["--parallel", "--parallel-immediate", "--silent"];
    curl.extend(urls.iter().map(String::as_str));
    for (program, args) in [("python3", vec!["-c", SCRIPT]), ("curl", curl)] {
        if !Feature::Program(program).is_here() {
            continue;
        }
        let lab = Lab::plain();
        let throttle = lab.throttle(STRICT);
        // Its own process: what is on the path may be a script that starts it.
        let program = lab
            .client
            .program(Path::new("/usr/bin").join(program))
            .args(args)
            .start();
        let event = reached(&throttle);
        assert_is(&event, program.pid());
        program.kill();
    }
}

/// Runs a scanner that sends its own packets, in a cgroup of its own.
#[track_caller]
fn assert_is_a_candidate<'a>(program: &'static str, args: impl IntoIterator<Item = &'a str>) {
    if !Feature::Program(program).is_here() {
        return;
    }
    let cgroup = Cgroup::new("scan");
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    let scanner = lab
        .client
        .program(program)
        .args(args)
        .in_cgroup(&cgroup)
        .start();
    let event = reached(&throttle);
    assert!(event["process"].is_null(), "nobody knows: {event:#}");
    let told = &event["throttle"];
    assert_eq!(told["cgroup"]["id"], cgroup.id().to_string(), "{event:#}");
    assert_eq!(told["cgroup"]["path"], cgroup.path());
    let candidates = told["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 1, "{event:#}");
    assert_eq!(candidates[0]["pid"], scanner.pid());
    assert_eq!(
        candidates[0]["name"],
        text(format!("/proc/{}/comm", scanner.pid()))
    );
    scanner.kill();
}

#[test]
fn nmap_by_raw_socket_is_a_candidate() {
    let args = "-n -Pn -sS --send-ip --disable-arp-ping -p 1024 --max-retries 0 \
                --min-parallelism 50 --initial-rtt-timeout 9s --max-rtt-timeout 9s 198.51.100.1-50";
    assert_is_a_candidate("nmap", args.split_whitespace());
}

#[test]
fn masscan_by_packet_socket_is_a_candidate() {
    let args = "198.51.100.0/24 -p1024 --rate 20 --wait 20";
    assert_is_a_candidate("masscan", args.split_whitespace());
}

#[test]
fn a_script_by_a_raw_socket_for_tcp_is_a_candidate() {
    const SCRIPT: &str = "
import signal, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for n in range(1, 7):
    syn = struct.pack('!HHLLBBHHH', 40000, 1024, 7, 0, 5 << 4, 2, 64240, 0, 0)
    s.sendto(syn, ('198.51.100.%d' % n, 0))
signal.pause()
";
    // Its own process: what is on the path may be a script that starts it.
    assert_is_a_candidate("/usr/bin/python3", ["-c", SCRIPT]);
}

/// Half-open sockets in this namespace, by the kernel's own table.
fn syn_sent(lab: &Lab) -> usize {
    /// `TCP_SYN_SENT` of include/net/tcp_states.h, as /proc writes it.
    const SYN_SENT: &str = "02";
    let table = lab
        .client
        .run(|| fs::read_to_string("/proc/thread-self/net/tcp"))
        .unwrap();
    let states = table
        .lines()
        .skip(1)
        .filter_map(|l| l.split_whitespace().nth(3));
    states.filter(|state| *state == SYN_SENT).count()
}

#[test]
fn places_of_a_killed_program_are_free_at_once() {
    let connector = Connector::new();
    const PLACES: usize = 50;
    let lab = Lab::plain();
    let throttle = lab.throttle(&["--limit=50", "--rate=1/m"]);
    let capture = lab.capture();
    let program = connector.dials(&lab.client, "50", "plain").start();
    capture.wait_for_attempts(PLACES, SOON);
    assert_eq!(syn_sent(&lab), PLACES);
    program.signal(Signal::SIGKILL);
    wait_until("its sockets to go", SOON, || syn_sent(&lab) == 0);
    // All fifty places are free again, or these would not get out: the timeout is
    // 30 s, and a release comes each minute.
    let attempts = lab.dial((100..150).map(dead));
    capture.wait_for_attempts(2 * PLACES, Duration::from_secs(5));
    assert_eq!(attempts.pending().len(), PLACES);
    assert_eq!(throttle.limit_events(), Vec::<Value>::new());
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(
        (counts["passed"], counts["aborted"]),
        (100, 50),
        "{counts:?}"
    );
    assert!(!counts.contains_key("deferred"), "{counts:?}");
}
