//! Who goes out next: nobody waits behind the dead, and lines take turns.

use etherparse::PacketBuilder;
use std::{net::SocketAddr, ops::Range, time::Duration};
use throttle_tests::{
    Capture, Cgroup, Dialer, Lab, Pace, Throttle,
    addresses::{self, dead},
    dial::{DialProgram, now_ns},
    holds_for,
    inject::Forger,
    timing::millis,
    wait::slowness,
};

const SOON: Duration = Duration::from_secs(5);
const PACE: Pace = Pace {
    limit: 10,
    per_second: 5,
};
/// Three hundred at 5/s are a minute, the default of what waits in a line:
/// there is to be room for one more.
const SCANNED: Range<u32> = 100..400;
const LONG_LINE: &[&str] = &["--max-delay=90s"];

/// In milliseconds: five releases. Whoever's turn has come waits for one or two of them,
/// and for what a machine adds that is away for a moment.
fn a_second() -> f64 {
    1e3 * f64::from(slowness())
}

fn scanner(lab: &Lab, cgroup: &Cgroup) -> DialProgram {
    DialProgram::new(&lab.client)
        .to(SCANNED.map(dead))
        .in_cgroup(cgroup)
}

/// How many attempts of the scanner went out between two moments.
fn scanned_between(capture: &Capture, from_ns: u64, to_ns: u64) -> usize {
    let scanned: Vec<_> = SCANNED.map(dead).collect();
    let frames = capture.so_far();
    let first = frames.first_syns();
    let between = first
        .iter()
        .filter(|syn| (from_ns..to_ns).contains(&syn.at_ns));
    between.filter(|syn| scanned.contains(&syn.dst)).count()
}

#[test]
fn the_patient_do_not_wait_behind_those_who_gave_up() {
    let lab = Lab::plain();
    let _throttle = PACE.throttle(&lab.client, &lab.device, LONG_LINE);
    let capture = lab.capture();
    // One program, and so one line: it has all the places, three hundred wait, and
    // behind them one that is patient.
    let _held = lab.dial((0..10).map(dead));
    capture.wait_for_attempts(10, SOON);
    let attempts = lab.dial(SCANNED.map(dead));
    let dialer = Dialer::new(&lab.client);
    let patient = dialer.dial_more(&attempts, dead(450));
    holds_for("it stands in line", Duration::from_secs(1), || {
        !attempts.pending().is_empty() && capture.so_far().syns_to(dead(450)).is_empty()
    });
    for n in 0..SCANNED.len() {
        attempts.close(n);
    }
    let closed_ns = now_ns();

    // The next release is due within 200 ms, and nobody else is left: at most one who
    // was about to go.
    let syn = capture.wait_for_syn_to(dead(450), SOON);
    let after_close = millis(closed_ns, syn.at_ns);
    let still = scanned_between(&capture, closed_ns, syn.at_ns);
    assert!(still <= 1, "{still} went out after the last had given up");
    assert!(after_close < a_second(), "{after_close} ms");
    let out = scanned_between(&capture, 0, syn.at_ns);
    assert!(out <= 8, "{out} of the scanner's were out first");
    eprintln!(
        "300 attempts gave up after 1 s; the patient one behind them: out {after_close:.0} ms after \
         that, {:.0} ms after its own start, behind {out} of them",
        millis(patient.started_ns, syn.at_ns)
    );

    // One that comes after them waits for one release.
    let later = dialer.dial_more(&attempts, dead(451));
    let syn = capture.wait_for_syn_to(dead(451), SOON);
    let waited = millis(later.started_ns, syn.at_ns);
    assert!(waited < a_second(), "{waited} ms");
    eprintln!("one that came after them: out after {waited:.0} ms");

    let times: Vec<u64> = capture
        .finish()
        .first_syns()
        .iter()
        .map(|syn| syn.at_ns)
        .collect();
    PACE.assert_line(&times, Duration::ZERO);
}

#[test]
fn one_attempt_of_another_program_goes_out_at_the_next_turn() {
    let lab = Lab::plain();
    let (scanning, honest) = (Cgroup::new("scanner"), Cgroup::new("honest"));
    let _throttle = PACE.throttle(&lab.client, &lab.device, LONG_LINE);
    let capture = lab.capture();
    let scanner = scanner(&lab, &scanning).start();
    scanner.wait_for(SCANNED.len(), "started", SOON);
    capture.wait_for_attempts(12, SOON);

    for n in 450..453 {
        // Right behind a release, so that the daemon knows of it before the next.
        capture.wait_for_attempts(capture.attempts() + 1, SOON);
        let program = DialProgram::new(&lab.client)
            .to([dead(n)])
            .in_cgroup(&honest)
            .start();
        program.wait_for(1, "started", SOON);
        let started_ns = now_ns();
        let syn = capture.wait_for_syn_to(dead(n), SOON);
        let waited = millis(started_ns, syn.at_ns);
        // One release may have the scanner's turn, the next is its own.
        let ahead = scanned_between(&capture, started_ns, syn.at_ns);
        assert!(ahead <= 1, "{ahead} of the scanner's went out first");
        assert!(waited < a_second(), "{waited} ms");
        eprintln!("beside a line of 290: out after {waited:.0} ms, {ahead} of the scanner's first");
    }
    let times: Vec<u64> = capture
        .finish()
        .first_syns()
        .iter()
        .map(|syn| syn.at_ns)
        .collect();
    PACE.assert_line(&times, Duration::ZERO);
}

/// Each child has a line of its own, and all of them the turn of their cgroup.
#[test]
fn a_program_that_forks_for_each_attempt_has_no_more_turns() {
    const CHILDREN: u32 = 80;
    // Slower than children are made on any machine.
    let pace = Pace::new(10, 1);
    let lab = Lab::plain();
    let (scanning, honest) = (Cgroup::new("forker"), Cgroup::new("honest"));
    let _throttle = pace.throttle(&lab.client, &lab.device, LONG_LINE);
    let capture = lab.capture();
    let scanner = DialProgram::new(&lab.client)
        .to((SCANNED.start..SCANNED.start + CHILDREN).map(dead))
        .by_children()
        .in_cgroup(&scanning)
        .start();
    scanner.wait_for(CHILDREN as usize, "started", Duration::from_secs(60));
    capture.wait_for_attempts(12, SOON);
    let program = DialProgram::new(&lab.client)
        .to((450..453).map(dead))
        .in_cgroup(&honest)
        .start();
    program.wait_for(3, "started", SOON);
    let started_ns = now_ns();
    for (n, to) in (450..453).map(dead).enumerate() {
        let syn = capture.wait_for_syn_to(to, SOON);
        let ahead = scanned_between(&capture, started_ns, syn.at_ns);
        // One of theirs for each one of its own. On a slow machine the daemon may read of
        // it a turn or two later.
        let late = slowness().min(3) as usize;
        assert!(
            ahead <= n + late,
            "{ahead} of the scanner's children went first"
        );
        eprintln!(
            "beside the lines of children: number {} out after {:.0} ms, {ahead} of theirs first",
            n + 1,
            millis(started_ns, syn.at_ns)
        );
    }
    let waiting = CHILDREN as usize - scanned_between(&capture, 0, now_ns());
    assert!(waiting > 20, "only {waiting} children still waited");
    let times: Vec<u64> = capture
        .finish()
        .first_syns()
        .iter()
        .map(|syn| syn.at_ns)
        .collect();
    pace.assert_line(&times, Duration::ZERO);
}

#[test]
fn a_program_that_is_killed_leaves_its_line_to_others() {
    let lab = Lab::plain();
    let cgroup = Cgroup::new("scanner");
    let _throttle = PACE.throttle(&lab.client, &lab.device, LONG_LINE);
    let capture = lab.capture();
    let _held = lab.dial((0..10).map(dead));
    capture.wait_for_attempts(10, SOON);
    let scanner = scanner(&lab, &cgroup).start();
    scanner.wait_for(SCANNED.len(), "started", SOON);
    let patient = DialProgram::new(&lab.client)
        .to((450..454).map(dead))
        .in_cgroup(&cgroup)
        .start();
    patient.wait_for(4, "started", SOON);
    scanner.kill();
    let killed_ns = now_ns();
    // Every release is theirs from now on, and not every other one.
    let syn = capture.wait_for_syn_to(dead(453), SOON);
    let out = scanned_between(&capture, killed_ns, syn.at_ns);
    assert_eq!(out, 0, "of the killed program's");
    let waited = millis(killed_ns, syn.at_ns);
    assert!(waited < 2.0 * a_second(), "{waited} ms");
    eprintln!("four attempts beside 300 of a killed program: all out {waited:.0} ms after its end");
}

#[test]
fn a_full_line_sends_the_rest_away_and_loses_nobody() {
    let lab = Lab::plain();
    // 5/s for 4 s: twenty wait in a line.
    let throttle = PACE.throttle(&lab.client, &lab.device, &["--max-delay=4s"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..60).map(dead));
    // Those who were sent away ask again as TCP does, after 1, 2, 3, 4, 5, 7,
    // 11 s, and find room in the line.
    let syns = capture.wait_for_attempts(60, Duration::from_secs(30));
    assert!(attempts.failed().is_empty());
    let times: Vec<u64> = syns.iter().map(|syn| syn.at_ns).collect();
    PACE.assert_line(&times, Duration::ZERO);
    let counts = throttle_tests::throttle_cmd::tallies(&throttle.stop(), &lab.device);
    assert!(counts["overflowed"] >= 30, "{counts:?}");
    assert_eq!(counts["released"], 50, "{counts:?}");
    eprintln!(
        "a line of 20, 60 attempts: all out after {:.1} s, {counts:?}",
        millis(times[0], times[59]) / 1e3
    );
}

/// Whoever can send raw packets, or has data for its first one, can put a SYN
/// into its line that the device does not take any more when its time has come.
#[test]
fn a_syn_that_the_device_does_not_take_holds_nobody_up() {
    const IPV4: u16 = 0x0800;
    const PACE: Pace = Pace {
        limit: 1,
        per_second: 2,
    };
    let lab = Lab::plain();
    // Nobody gets out before the device is ready.
    let throttle = lab.throttle(&["--limit=1", "--rate=1/m"]);
    let capture = lab.capture();
    let _held = lab.dial([dead(0)]);
    let held = capture.wait_for_syn_to(dead(0), SOON);
    let Some((ours, theirs)) = held.macs else {
        panic!("not on an Ethernet")
    };
    let SocketAddr::V4(stuck) = dead(1) else {
        panic!("{} is of version 6", dead(1))
    };
    let builder = PacketBuilder::ethernet2(ours, theirs)
        .ipv4(addresses::CLIENT.octets(), stuck.ip().octets(), 64)
        .tcp(50_000, stuck.port(), 0x1234_5678, 64_240)
        .syn();
    let mut frame = Vec::new();
    assert!(builder.write(&mut frame, &[b'd'; 100]).is_ok());
    Forger::new(&lab.client, &lab.device).send(IPV4, &frame);
    lab.client.ip(&format!("link set {} mtu 100", lab.device));
    assert_eq!(capture.attempts(), 1, "it got out before it was too large");
    let rate = format!("--rate={}/s", PACE.per_second);
    Throttle::command(&lab.client, &["set", &rate])
        .output()
        .expect_success();

    let honest: Vec<SocketAddr> = (2..7).map(dead).collect();
    let _attempts = lab.dial(honest.iter().copied());
    let syns = capture.wait_for_attempts(6, SOON);
    let out: Vec<SocketAddr> = syns[1..].iter().map(|syn| syn.dst).collect();
    assert_eq!(out, honest, "in order of arrival, past the stuck one");

    // It is not given up either.
    lab.client.ip(&format!("link set {} mtu 1500", lab.device));
    capture.wait_for_syn_to(dead(1), 2 * SOON);
    let times: Vec<u64> = capture
        .finish()
        .first_syns()
        .iter()
        .map(|syn| syn.at_ns)
        .collect();
    PACE.assert_line(&times, Duration::ZERO);
    let finished = throttle.stop();
    let counted = finished.stderr.contains("not_taken");
    assert!(counted, "{}", finished.stderr);
}
