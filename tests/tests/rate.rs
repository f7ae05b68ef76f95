//! Attempts that nobody answers: as many as the limit at once, then one each
//! interval, in order of arrival, whatever they go out by.

use nix::sys::signal::Signal;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use throttle_tests::{
    Lab, Pace,
    addresses::{dead, dead_of_both, dead_v6},
    frame::{Checksum, Syn},
    holds_for,
    throttle_cmd::{Running, tallies},
};

const ATTEMPTS: usize = 60;
/// On top of the time something takes by itself.
const SLACK: Duration = Duration::from_secs(5);
const QUICK: Pace = Pace {
    limit: 10,
    per_second: 20,
};

/// Dials sixty at [`QUICK`] pace and asserts that they keep it, and that each
/// is counted once. Returns their first SYNs.
#[track_caller]
fn assert_sixty_keep_pace(
    title: &str,
    lab: &Lab,
    throttle: Running,
    to: fn(u32) -> SocketAddr,
) -> Vec<Syn> {
    let capture = lab.capture();
    let attempts = lab.dial((0..60).map(to));
    let syns = capture.wait_for_attempts(ATTEMPTS, QUICK.span(ATTEMPTS) + SLACK);
    let lateness = QUICK.assert_exact(&attempts.all(), &syns);
    assert_eq!(attempts.pending().len(), ATTEMPTS);
    assert_eq!(throttle.limit_events().len(), 1, "{:?}", throttle.events());
    let left = throttle.stop().expect_success();
    assert!(!left.stderr.contains("not handled"), "{}", left.stderr);
    let counted = left
        .stderr
        .lines()
        .filter(|line| line.contains("attempts 60, passed 10, deferred 50, released 50"));
    assert_eq!(
        (counted.count(), left.stderr.matches("attempts ").count()),
        (1, 1),
        "{}",
        left.stderr
    );
    eprintln!("{title}, 20/s: {lateness}");
    syns
}

#[test]
fn ten_go_out_at_once_and_fifty_one_each_200_ms() {
    let pace = Pace::new(10, 5);
    let lab = Lab::plain();
    let throttle = pace.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    let start = Instant::now();
    let attempts = lab.dial((0..60).map(dead));
    capture.wait_for_attempts(ATTEMPTS, pace.span(ATTEMPTS) + SLACK);
    let rest = Duration::from_secs(20).saturating_sub(start.elapsed());
    holds_for("no connect() has failed after 20 s", rest, || {
        attempts.failed().is_empty()
    });

    let frames = capture.finish();
    let first = frames.first_syns();
    let lateness = pace.assert_exact(&attempts.all(), &first);
    // A sender's checksums are the device's to complete; a copy's are whole.
    let copies = |syns: &[Syn]| {
        syns.iter()
            .filter(|syn| syn.checksum == Checksum::Good)
            .count()
    };
    assert_eq!(copies(&first), 50, "each deferred SYN is re-sent");
    assert_eq!(copies(&frames.repeated_syns()), 0, "and only once");
    assert!(
        frames
            .syns()
            .iter()
            .all(|syn| syn.checksum != Checksum::Wrong)
    );
    assert_eq!(throttle.limit_events().len(), 1);
    let left = throttle.stop_by(Signal::SIGTERM).expect_success();
    let counts = tallies(&left, &lab.device);
    assert_eq!(
        (counts["attempts"], counts["passed"]),
        (60, 10),
        "{counts:?}"
    );
    assert_eq!(
        (counts["deferred"], counts["released"]),
        (50, 50),
        "{counts:?}"
    );
    eprintln!("60 attempts to 60 endpoints, limit 10, 5/s: {lateness}; none failed within 20 s");
}

/// All at the same time: each is a network of its own.
#[test]
fn none_fails_within_twenty_seconds_whatever_it_goes_to_and_out_by() {
    type Case = (&'static str, Lab, fn(u32) -> SocketAddr);
    let pace = Pace::new(10, 5);
    let cases: [Case; 4] = [
        ("one endpoint", Lab::plain(), |_| dead(0)),
        ("IPv6", Lab::plain(), dead_v6),
        ("a VLAN", Lab::builder().vlan(&[7]).build(), dead_of_both),
        ("a tun device", Lab::builder().tun().build(), dead_of_both),
    ];
    let _throttles = cases
        .each_ref()
        .map(|(_, lab, _)| pace.throttle(&lab.client, &lab.device, &[]));
    let captures = cases.each_ref().map(|(_, lab, _)| lab.capture());
    let start = Instant::now();
    let dialled = cases
        .each_ref()
        .map(|(_, lab, to)| lab.dial((0..60).map(to)));
    for capture in &captures {
        capture.wait_for_attempts(ATTEMPTS, pace.span(ATTEMPTS) + SLACK);
    }
    let rest = Duration::from_secs(20).saturating_sub(start.elapsed());
    holds_for("no connect() has failed after 20 s", rest, || {
        dialled.iter().all(|attempts| attempts.failed().is_empty())
    });
    for (((title, ..), capture), attempts) in cases.iter().zip(captures).zip(&dialled) {
        let first = capture.finish().first_syns();
        let lateness = pace.assert_exact(&attempts.all(), &first);
        eprintln!("60 attempts, {title}, limit 10, 5/s: {lateness}; none failed within 20 s");
    }
}

#[test]
fn attempts_to_one_endpoint_keep_pace_too() {
    let lab = Lab::plain();
    let throttle = QUICK.throttle(&lab.client, &lab.device, &[]);
    assert_sixty_keep_pace("60 attempts to one endpoint", &lab, throttle, |_| dead(0));
}

#[test]
fn attempts_over_ipv6_keep_pace_too() {
    let lab = Lab::plain();
    let throttle = QUICK.throttle(&lab.client, &lab.device, &[]);
    assert_sixty_keep_pace("IPv6", &lab, throttle, dead_v6);
}

#[test]
fn attempts_over_a_vlan_device_keep_pace_too() {
    let lab = Lab::builder().vlan(&[7]).build();
    assert_eq!(lab.device, "eth0.7");
    let throttle = QUICK.throttle(&lab.client, &lab.device, &[]);
    let syns = assert_sixty_keep_pace("at eth0.7", &lab, throttle, dead_of_both);
    assert!(syns.iter().all(|syn| syn.vlan_ids() == [7]), "{syns:?}");
}

#[test]
fn tagged_attempts_keep_pace_too() {
    let lab = Lab::builder().vlan(&[7]).build();
    assert_eq!(lab.wire, "eth0");
    let throttle = QUICK.throttle(&lab.client, &lab.wire, &[]);
    let syns = assert_sixty_keep_pace("at eth0 below eth0.7", &lab, throttle, dead_of_both);
    assert!(syns.iter().all(|syn| syn.vlan_ids() == [7]), "{syns:?}");
}

#[test]
fn twice_tagged_attempts_keep_pace_too() {
    let lab = Lab::builder().vlan(&[5, 7]).build();
    let throttle = QUICK.throttle(&lab.client, &lab.wire, &[]);
    let syns = assert_sixty_keep_pace("at eth0 below eth0.5.7", &lab, throttle, dead_of_both);
    assert!(syns.iter().all(|syn| syn.vlan_ids() == [5, 7]), "{syns:?}");
    assert!(syns.iter().all(|syn| syn.tags == syns[0].tags), "{syns:?}");
}

#[test]
fn an_attempt_is_counted_once_where_devices_are_stacked() {
    let lab = Lab::builder().vlan(&[7]).build();
    let throttle = QUICK.throttle(&lab.client, &lab.device, &["-i", &lab.wire]);
    let syns = assert_sixty_keep_pace("at eth0.7 and eth0", &lab, throttle, dead_of_both);
    assert!(syns.iter().all(|syn| syn.vlan_ids() == [7]), "{syns:?}");
}

#[test]
fn attempts_over_a_tun_device_keep_pace_too() {
    let lab = Lab::builder().tun().build();
    let throttle = QUICK.throttle(&lab.client, &lab.device, &[]);
    let syns = assert_sixty_keep_pace("at tun0", &lab, throttle, dead_of_both);
    assert!(syns.iter().all(|syn| syn.checksum == Checksum::Good));
}

#[test]
fn attempts_keep_pace_with_clsact_too() {
    let lab = Lab::plain();
    let throttle = QUICK.throttle(&lab.client, &lab.device, &["--hook=clsact"]);
    throttle.wait_log("clsact", SLACK);
    assert_sixty_keep_pace("by clsact", &lab, throttle, dead_of_both);
}

#[test]
fn attempts_over_a_tun_device_keep_pace_with_clsact_too() {
    let lab = Lab::builder().tun().build();
    let throttle = QUICK.throttle(&lab.client, &lab.device, &["--hook=clsact"]);
    assert_sixty_keep_pace("at tun0 by clsact", &lab, throttle, dead_of_both);
}
