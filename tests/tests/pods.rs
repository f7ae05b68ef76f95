//! At the host's side of a pod's veth: the pod's attempts come *in* there.

use nix::errno::Errno;
use std::{net::SocketAddr, time::Duration};
use throttle_tests::{
    Behaviour, Dialer, Lab, Pace,
    addresses::{OPEN_PORT, dead, dead_v6, live, refusing},
    frame::{Checksum, Syn},
    throttle_cmd::{Running, scope_in, status, tallies},
    timing::millis,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);
const PACE: Pace = Pace {
    limit: 5,
    per_second: 10,
};

struct Pod {
    lab: Lab,
    throttle: Running,
    dialer: Dialer,
}

fn pod(pace: Pace, more: &[&str]) -> Pod {
    pod_of(Lab::builder().machines_behind(1).build(), pace, more)
}

fn pod_of(lab: Lab, pace: Pace, more: &[&str]) -> Pod {
    let mut args = vec!["--direction=ingress"];
    args.extend(more);
    let throttle = pace.throttle(&lab.client, &lab.device_towards(0), &args);
    let dialer = Dialer::new(&lab.behind[0]);
    Pod {
        lab,
        throttle,
        dialer,
    }
}

#[track_caller]
fn assert_thirty_keep_pace(title: &str, more: &[&str], to: fn(u32) -> SocketAddr) {
    let Pod {
        lab,
        throttle,
        dialer,
    } = pod(PACE, more);
    let capture = lab.capture();
    let attempts = dialer.dial((0..30).map(to));
    capture.wait_for_attempts(30, PACE.span(30) + SOON);
    assert_eq!(attempts.pending().len(), 30);
    let frames = capture.finish();
    let lateness = PACE.assert_exact(&attempts.all(), &frames.first_syns());
    let copies = |syns: &[Syn]| {
        syns.iter()
            .filter(|syn| syn.checksum == Checksum::Good)
            .count()
    };
    assert_eq!(
        copies(&frames.first_syns()),
        25,
        "each deferred SYN is re-sent"
    );
    assert_eq!(copies(&frames.repeated_syns()), 0, "and only once");
    assert_eq!(throttle.limit_events().len(), 1);
    let left = throttle.stop().expect_success();
    assert!(!left.stderr.contains("not handled"), "{}", left.stderr);
    eprintln!("{title}, limit 5, 10/s: {lateness}");
}

#[test]
fn attempts_of_a_pod_keep_pace() {
    assert_thirty_keep_pace("from a pod", &[], dead);
}

#[test]
fn attempts_of_a_pod_over_ipv6_keep_pace() {
    assert_thirty_keep_pace("from a pod, IPv6", &[], dead_v6);
}

#[test]
fn attempts_of_a_pod_keep_pace_with_clsact_too() {
    assert_thirty_keep_pace("from a pod, by clsact", &["--hook=clsact"], dead);
}

#[test]
fn a_pod_reaches_a_server_while_others_wait() {
    let Pod {
        lab,
        throttle,
        dialer,
    } = pod(PACE, &[]);
    let _server = lab.serve(Behaviour::Hold);
    let known = dialer
        .dial([live(0, OPEN_PORT)])
        .wait_for_connected(1, SOON);
    let _dead = dialer.dial((0..20).map(dead));
    // It is known, so it does not wait.
    let at_once = dialer
        .dial([live(0, OPEN_PORT)])
        .wait_for_connected(1, SOON);
    // This one is not: fifteen are ahead.
    let attempts = dialer.dial([live(1, OPEN_PORT)]);
    let waited = attempts.wait_for_connected(1, SOON);
    let times = [&known, &at_once, &waited].map(|attempts| attempts[0].took().unwrap_or_default());
    assert!(
        times[0] < Duration::from_millis(500) && times[1] < Duration::from_millis(500),
        "{times:?}"
    );
    assert!((1_000..5_000).contains(&times[2].as_millis()), "{times:?}");
    let info = attempts.tcp_info(0);
    // Not how long it waited.
    assert!(info.rtt < Duration::from_millis(500), "{info:?}");
    let counts = tallies(&throttle.stop(), &lab.device_towards(0));
    assert_eq!((counts["known"], counts["answered"]), (1, 3), "{counts:?}");
    eprintln!(
        "a pod connects to a known server in {:?}, to a new one in {:?} with rtt {:?}",
        times[1], times[2], info.rtt
    );
}

#[test]
fn a_refusal_to_a_pod_frees_its_place() {
    let lab = Lab::builder()
        .machines_behind(1)
        .delay(Duration::from_millis(2))
        .build();
    let Pod {
        lab,
        throttle,
        dialer,
    } = pod_of(lab, Pace::new(1, 1), &[]);
    let capture = lab.capture();
    let held = lab.hold_answers();
    let attempts = dialer.dial((0..40).map(refusing));
    wait_until("all at the throttle", SOON, || {
        let shown = status(&lab.client, None);
        let scope = scope_in(&shown["throttles"][0], &lab.device_towards(0));
        scope["tallies"]["deferred"] == 39
    });
    drop(held);
    let ended = attempts.wait_for_all(SOON);
    assert!(
        ended
            .iter()
            .all(|attempt| attempt.errno() == Some(Errno::ECONNREFUSED)),
        "{ended:?}"
    );
    let syns = capture.wait_for_attempts(40, SOON);
    // From the first that was deferred: what the first of all waited for was us.
    let span = millis(syns[1].at_ns, syns[39].at_ns);
    // The rate alone would take 38 s.
    assert!(span < 1_500.0, "{span} ms");
    let counts = tallies(&throttle.stop(), &lab.device_towards(0));
    assert_eq!(
        (counts["refused"], counts["deferred"]),
        (40, 39),
        "{counts:?}"
    );
    eprintln!("one place, 40 refusals to a pod from 4 ms away: all out within {span:.1} ms");
}
