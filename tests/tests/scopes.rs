//! Each scope has a limit, a count and a queue of its own: one scanner, however
//! busy, never delays its neighbours.
//!
//! The far end is the judge. An attempt that was deferred is told by its checksum:
//! a sender leaves it to the device, while a copy that is re-sent carries a whole
//! one.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::unistd::{Uid, User};
use serde_json::Value;
use std::{collections::BTreeMap, net::SocketAddr, ops::Range, time::Duration};
use throttle_tests::{
    Behaviour, Capture, Cgroup, Dialer, Lab, Pace,
    addresses::{OPEN_PORT, dead, live},
    capture::Frames,
    dial::{Attempt, DialProcess, DialProgram, Reachable, now_ns},
    frame::Checksum,
    process::Finished,
    throttle_cmd::{Running, tallies, tallies_of},
    timing::millis,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);
const PACE: Pace = Pace {
    limit: 10,
    per_second: 5,
};
/// 5/s for 4 s: twenty wait in a line.
const SHORT_LINE: &str = "--max-delay=4s";
/// All at once: ten go out, twenty wait, and the others find the line full, now
/// and whenever they ask again.
const SCANNED: Range<u32> = 0..300;
/// What has waited until its own sender asked again has waited longer. What has waited
/// for the daemon is a copy.
const AT_ONCE_MS: f64 = 500.0;

/// What the neighbour dials, with a pause after each: four dead endpoints, which
/// keep a place each, and sixteen live ones, none of them seen before.
fn neighbourly() -> Vec<SocketAddr> {
    let to = |n| {
        if n % 5 == 0 {
            dead(1_000 + n)
        } else {
            live(n, OPEN_PORT)
        }
    };
    (0..20).map(to).collect()
}

const DEAD: u64 = 4;
const LIVE: u64 = 16;
const PAUSE: Duration = Duration::from_millis(60);

/// An attempt, wherever it was made.
#[derive(Debug)]
struct Dialled {
    local: SocketAddr,
    dst: SocketAddr,
    started_ns: u64,
}

fn of_program(program: &DialProcess) -> Vec<Dialled> {
    let reports = program.reports().into_iter();
    let started = reports.filter(|report| report.event == "started");
    let dialled = started.map(|report| Dialled {
        local: report.local,
        dst: report.dst,
        started_ns: report.started_ns,
    });
    dialled.collect()
}

fn of_attempts(attempts: &[Attempt]) -> Vec<Dialled> {
    let dialled = attempts.iter().map(|attempt| Dialled {
        local: attempt.local,
        dst: attempt.dst,
        started_ns: attempt.started_ns,
    });
    dialled.collect()
}

/// Asserts that each was at the far end at once, as its sender sent it. Returns
/// how long it took at worst, ms.
#[track_caller]
fn assert_at_once(title: &str, dialled: &[Dialled], frames: &Frames) -> f64 {
    let first = frames.first_syns();
    let mut worst: f64 = 0.0;
    for attempt in dialled {
        let mut syns = first
            .iter()
            .filter(|syn| (syn.src, syn.dst) == (attempt.local, attempt.dst));
        let syn = syns.next();
        let syn = syn.unwrap_or_else(|| panic!("{title}: {attempt:?} is not at the far end"));
        assert_eq!(syns.next(), None, "{title}: {attempt:?} begins twice");
        assert_eq!(
            syn.checksum,
            Checksum::Pending,
            "{title}: {attempt:?} was deferred"
        );
        let took = millis(attempt.started_ns, syn.at_ns);
        assert!(took < AT_ONCE_MS, "{title}: {attempt:?} after {took} ms");
        worst = worst.max(took);
    }
    worst
}

/// Asserts that the scanner's were held to the pace. How many of them were out.
#[track_caller]
fn assert_held_back(frames: &Frames, is_scanned: impl Fn(SocketAddr) -> bool) -> usize {
    let first = frames.first_syns();
    let scanned = first.iter().filter(|syn| is_scanned(syn.dst));
    let times: Vec<u64> = scanned.map(|syn| syn.at_ns).collect();
    assert!(
        times.len() >= PACE.limit,
        "{} of the scanner's",
        times.len()
    );
    PACE.assert_line(&times, Duration::ZERO);
    times.len()
}

fn is_scanned(dst: SocketAddr) -> bool {
    SCANNED.map(dead).any(|scanned| scanned == dst)
}

/// A scope, as it is told of.
#[derive(Debug)]
struct Told {
    kind: &'static str,
    id: String,
    name: String,
}

impl Told {
    fn new(kind: &'static str, id: impl ToString, name: impl ToString) -> Self {
        Self {
            kind,
            id: id.to_string(),
            name: name.to_string(),
        }
    }

    /// Asserts that the event is about this scope.
    #[track_caller]
    fn assert_is_in(&self, event: &Value) {
        let scope = &event["throttle"]["scope"];
        let told = [&scope["kind"], &scope["id"], &scope["name"]].map(Value::as_str);
        let expected = [self.kind, &self.id, &self.name].map(Some);
        assert_eq!(told, expected, "{event:#}");
    }

    #[track_caller]
    fn counts(&self, finished: &Finished) -> BTreeMap<String, u64> {
        tallies_of(finished, self.kind, &self.id)
    }
}

/// Asserts that the throttle tells of the scanner only, by name, from beginning to
/// end, and has counted everything where it belongs.
#[track_caller]
fn assert_told(throttle: Running, scanner: &Told, neighbour: &Told) {
    scanner.assert_is_in(&throttle.wait_event("the limit is reached", SOON, |_| true));
    let finished = throttle.stop().expect_success();
    let events: Vec<Value> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 2, "{events:#?}");
    for event in &events {
        scanner.assert_is_in(event);
    }
    assert_eq!(events[1]["throttle"]["ending"], "stopped");

    let counts = scanner.counts(&finished);
    assert_eq!(counts["passed"], PACE.limit as u64, "{counts:?}");
    assert!(counts["deferred"] >= 20, "{counts:?}");
    assert!(counts["overflowed"] >= 270, "{counts:?}");
    let counts = neighbour.counts(&finished);
    let expected = [
        ("attempts", DEAD + LIVE),
        ("passed", DEAD + LIVE),
        ("answered", LIVE),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counts, BTreeMap::from(expected), "nothing but this");
}

/// Two programs in the client's namespace, each in a scope of its own.
struct Two {
    lab: Lab,
    throttle: Running,
    scanner: DialProcess,
    neighbour: DialProcess,
}

/// Lets one scan, and the other one dial beside it.
#[track_caller]
fn scan_beside(
    kind: &str,
    scanner: impl FnOnce(&Lab) -> DialProgram,
    neighbour: impl FnOnce(&Lab) -> DialProgram,
) -> Two {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let scope = format!("--scope={kind}");
    let throttle = PACE.throttle(&lab.client, &lab.device, &[&scope, SHORT_LINE]);
    let capture = lab.capture();
    let scanner = scanner(&lab).to(SCANNED.map(dead)).start();
    scanner.wait_for(SCANNED.len(), "started", SOON);
    let neighbour = neighbour(&lab).to(neighbourly()).every(PAUSE).start();
    let count = neighbourly().len();
    neighbour.wait_for(count, "started", SOON);
    neighbour.wait_for(usize::try_from(LIVE).unwrap(), "connected", SOON);
    // The dead too are out, or it would take another second.
    wait_until("the neighbour's SYNs at the far end", SOON, || {
        let out = capture.so_far().first_syns();
        out.iter().filter(|syn| !is_scanned(syn.dst)).count() >= count
    });
    // Meanwhile the scanner is held back.
    capture.wait_for_attempts(count + PACE.limit + 5, SOON);
    let frames = capture.finish();
    let worst = assert_at_once(kind, &of_program(&neighbour), &frames);
    let scanned = assert_held_back(&frames, is_scanned);
    eprintln!(
        "{kind}: beside a scan of 300, {scanned} of them out, {count} attempts of a neighbour were at \
         the far end after {worst:.2} ms at worst"
    );
    Two {
        lab,
        throttle,
        scanner,
        neighbour,
    }
}

#[test]
fn a_scan_in_one_cgroup_does_not_delay_another_cgroup() {
    let groups = [Cgroup::new("scanner"), Cgroup::new("neighbour")];
    let [scanner, neighbour] = &groups;
    let two = scan_beside(
        "cgroup",
        |lab: &Lab| DialProgram::new(&lab.client).in_cgroup(scanner),
        |lab: &Lab| DialProgram::new(&lab.client).in_cgroup(neighbour),
    );
    let [scanner, neighbour] = [scanner, neighbour].map(|c| Told::new("cgroup", c.id(), c.path()));
    assert_told(two.throttle, &scanner, &neighbour);
}

#[test]
fn a_scan_by_one_user_does_not_delay_another_user() {
    const USERS: [u32; 2] = [65_534, 1];
    let copy = &Reachable::new();
    let as_user =
        |uid: u32| move |lab: &Lab| DialProgram::from_copy(&lab.client, copy).as_user(uid);
    let two = scan_beside("user", as_user(USERS[0]), as_user(USERS[1]));
    let [scanner, neighbour] = USERS.map(|uid| {
        let name = User::from_uid(Uid::from_raw(uid)).unwrap();
        let name = name.map_or_else(|| uid.to_string(), |user| user.name);
        Told::new("user", uid, name)
    });
    assert_told(two.throttle, &scanner, &neighbour);
}

#[test]
fn a_scan_by_one_process_does_not_delay_another_process() {
    // Of the same cgroup and the same user.
    let cgroup = Cgroup::new("both");
    let both = |lab: &Lab| DialProgram::new(&lab.client).in_cgroup(&cgroup);
    let two = scan_beside("process", both, both);
    let [scanner, neighbour] =
        [&two.scanner, &two.neighbour].map(|p| Told::new("process", p.pid(), "dialer"));
    assert_told(two.throttle, &scanner, &neighbour);
    drop(two.lab);
}

/// Two machines behind a router, the throttle as these arguments say.
#[track_caller]
fn assert_machines_do_not_delay_each_other(title: &str, throttle: impl FnOnce(&Lab) -> Running) {
    let lab = Lab::builder().machines_behind(2).build();
    let _server = lab.serve(Behaviour::Hold);
    let throttle = throttle(&lab);
    let capture = lab.capture();
    let _scan = Dialer::new(&lab.behind[0]).dial(SCANNED.map(dead));
    let neighbour = Dialer::new(&lab.behind[1]);
    let attempts = neighbour.dial([]);
    for (n, dst) in neighbourly().into_iter().enumerate() {
        neighbour.dial_more(&attempts, dst);
        // The next one when this one is out, and its answer is back.
        let out = || {
            let frames = capture.so_far();
            let first = frames.first_syns();
            first.iter().filter(|syn| !is_scanned(syn.dst)).count() > n
        };
        wait_until("an attempt of the neighbour at the far end", SOON, out);
        attempts.wait_for_connected(n - n / 5, SOON);
    }
    capture.wait_for_attempts(neighbourly().len() + PACE.limit + 5, SOON);
    let frames = capture.finish();
    let worst = assert_at_once(title, &of_attempts(&attempts.all()), &frames);
    let scanned = assert_held_back(&frames, is_scanned);
    eprintln!(
        "{title}: beside a scan of 300, {scanned} of them out, 20 attempts of another machine were at \
         the far end after {worst:.2} ms at worst"
    );
    let [scanner, neighbour] = [0, 1].map(|n| {
        let address = lab.address_behind(n);
        Told::new("source", address, address)
    });
    assert_told(throttle, &scanner, &neighbour);
}

#[test]
fn a_scan_of_one_machine_behind_a_gateway_does_not_delay_another_machine() {
    assert_machines_do_not_delay_each_other("at the gateway", |lab| {
        PACE.throttle(&lab.client, &lab.device, &["--scope=source", SHORT_LINE])
    });
}

#[test]
fn a_scan_of_one_pod_does_not_delay_another_pod() {
    assert_machines_do_not_delay_each_other("at the pods", |lab| {
        let more = [
            "-i",
            &lab.device_towards(1),
            "--direction=ingress",
            "--scope=source",
            SHORT_LINE,
        ];
        PACE.throttle(&lab.client, &lab.device_towards(0), &more)
    });
}

#[test]
fn lines_of_one_scope_take_turns_by_process() {
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &["--max-delay=90s"]);
    let capture = lab.capture();
    let cgroup = Cgroup::new("both");
    let program = || DialProgram::new(&lab.client).in_cgroup(&cgroup);
    let scanner = program().to(SCANNED.map(dead)).start();
    scanner.wait_for(SCANNED.len(), "started", SOON);
    capture.wait_for_attempts(PACE.limit + 2, SOON);
    for n in 1_000..1_003 {
        // Right behind a release, so that the daemon knows of it before the next.
        capture.wait_for_attempts(capture.attempts() + 1, SOON);
        let one = program().to([dead(n)]).start();
        one.wait_for(1, "started", SOON);
        let started_ns = now_ns();
        let syn = capture.wait_for_syn_to(dead(n), SOON);
        let first = capture.so_far().first_syns();
        let ahead = first
            .iter()
            .filter(|other| (started_ns..syn.at_ns).contains(&other.at_ns));
        let ahead = ahead.count();
        assert!(ahead <= 1, "{ahead} of the scanner's went out first");
        eprintln!(
            "beside 290 of another process of its cgroup: out after {:.0} ms, {ahead} of them first",
            millis(started_ns, syn.at_ns)
        );
    }
    drop(throttle);
}

/// Endpoints in the networks behind both of the client's devices, where nobody
/// answers, in turn.
fn dead_behind_both(lab: &Lab, count: u16) -> Vec<SocketAddr> {
    let behind = [0, 1].map(|n| lab.dead_behind(n));
    let to = |n: u16| SocketAddr::from((behind[usize::from(n % 2)], 2_000 + n));
    (0..count).map(to).collect()
}

fn captures_behind(lab: &Lab) -> [Capture; 2] {
    [0, 1].map(|n: usize| Capture::arriving(&lab.behind[n], "eth0"))
}

#[test]
fn a_process_has_one_limit_whatever_its_attempts_leave_by() {
    const ATTEMPTS: u16 = 40;
    let lab = Lab::builder().machines_behind(2).build();
    let more = ["-i", &lab.device_towards(1), "--scope=process"];
    let throttle = PACE.throttle(&lab.client, &lab.device_towards(0), &more);
    let captures = captures_behind(&lab);
    let to = dead_behind_both(&lab, ATTEMPTS);
    let program = DialProgram::new(&lab.client).to(to.iter().copied()).start();
    program.wait_for(to.len(), "started", SOON);
    let all = || captures.iter().map(Capture::attempts).sum::<usize>();
    let span = PACE.span(to.len());
    wait_until("all of them at the far ends", span + SOON, || {
        all() >= to.len()
    });
    let mut first: Vec<_> = captures
        .into_iter()
        .flat_map(|capture| capture.finish().first_syns())
        .collect();
    first.sort_by_key(|syn| syn.at_ns);
    let order: Vec<_> = first.iter().map(|syn| syn.dst).collect();
    assert_eq!(order, to, "each by its own device, in order of arrival");
    let times: Vec<u64> = first.iter().map(|syn| syn.at_ns).collect();
    PACE.assert_line(&times, Duration::ZERO);
    let copies = first.iter().filter(|syn| syn.checksum == Checksum::Good);
    assert_eq!(copies.count(), to.len() - PACE.limit);

    let process = Told::new("process", program.pid(), "dialer");
    let counts = process.counts(&throttle.stop().expect_success());
    let (attempts, passed) = (u64::from(ATTEMPTS), PACE.limit as u64);
    assert_eq!(
        (counts["attempts"], counts["passed"], counts["released"]),
        (attempts, passed, attempts - passed),
        "{counts:?}"
    );
}

#[test]
fn each_interface_has_its_own_limit_unless_told_otherwise() {
    const SCANNED: u16 = 60;
    let lab = Lab::builder().machines_behind(2).build();
    let devices = [0, 1].map(|n| lab.device_towards(n));
    let throttle = PACE.throttle(&lab.client, &devices[0], &["-i", &devices[1]]);
    let captures = captures_behind(&lab);
    let [full, free] = [0, 1].map(|n| lab.dead_behind(n));
    let _scan = lab.dial((0..SCANNED).map(|n| SocketAddr::from((full, 2_000 + n))));
    captures[0].wait_for_attempts(PACE.limit + 1, SOON);
    let attempts = lab.dial((0..10).map(|n| SocketAddr::from((free, 2_000 + n))));
    captures[1].wait_for_attempts(10, SOON);
    let [scanned, beside] = captures.map(Capture::finish);
    assert_at_once(
        "by the other interface",
        &of_attempts(&attempts.all()),
        &beside,
    );
    assert_held_back(&scanned, |_| true);
    let finished = throttle.stop().expect_success();
    let counts = devices.map(|device| tallies(&finished, &device));
    assert_eq!(counts[0]["deferred"], u64::from(SCANNED) - 10, "{counts:?}");
    assert_eq!(counts[1].get("deferred"), None, "{counts:?}");
    assert_eq!(counts[1]["passed"], 10, "{counts:?}");
}

#[test]
fn a_packet_that_crosses_two_devices_counts_once_for_its_process() {
    const ATTEMPTS: usize = 40;
    let lab = Lab::builder().vlan(&[7]).build();
    let more = ["-i", &lab.wire, "--scope=process"];
    let throttle = PACE.throttle(&lab.client, &lab.device, &more);
    let capture = lab.capture();
    let program = DialProgram::new(&lab.client).to((0..40).map(dead)).start();
    program.wait_for(ATTEMPTS, "started", SOON);
    let syns = capture.wait_for_attempts(ATTEMPTS, PACE.span(ATTEMPTS) + SOON);
    assert!(syns.iter().all(|syn| syn.vlan_ids() == [7]), "{syns:?}");
    // Until the first release, as many as the limit and not half of it.
    let dialled = of_program(&program);
    let due_ns = dialled[PACE.limit].started_ns + 200_000_000;
    let at_once = syns.iter().filter(|syn| syn.at_ns < due_ns).count();
    assert_eq!(at_once, PACE.limit, "{syns:?}");
    let times: Vec<u64> = syns.iter().map(|syn| syn.at_ns).collect();
    PACE.assert_line(&times, Duration::ZERO);

    let process = Told::new("process", program.pid(), "dialer");
    let counts = process.counts(&throttle.stop().expect_success());
    let expected = [
        ("attempts", ATTEMPTS),
        ("passed", PACE.limit),
        ("deferred", ATTEMPTS - PACE.limit),
        ("released", ATTEMPTS - PACE.limit),
        ("episodes", 1),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count as u64));
    assert_eq!(counts, BTreeMap::from(expected), "each is counted once");
}
