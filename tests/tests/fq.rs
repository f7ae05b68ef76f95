//! Without a daemon: releases by departure time where an interface has fq, and by
//! plain retransmissions where it has none.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use throttle_tests::{
    Behaviour, Feature, Lab, Pace, Throttle,
    addresses::{OPEN_PORT, dead, live},
    dial::Attempts,
    frame::Checksum,
    holds_for,
    process::Mounts,
    throttle_cmd::{Running, status},
    timing::Lateness,
    wait_until,
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 10,
};
const ATTEMPTS: usize = 60;
/// What senders may catch up on when there is neither a daemon nor fq.
const BURST: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);

/// Whether packets can leave later here; if not, says why.
fn can_leave_later() -> bool {
    let can = Feature::Fq.is_here() && Feature::DepartureTimes.is_here();
    assert!(!can || throttle::object::sets_departures());
    can
}

/// Gives the client's device this qdisc.
#[track_caller]
fn put(lab: &Lab, qdisc: &str) {
    lab.client
        .tc(&format!("qdisc replace dev {} root {qdisc}", lab.device));
}

fn start(lab: &Lab, mounts: &Mounts, more: &[&str]) -> Running {
    let (limit, rate) = (PACE.limit, PACE.per_second);
    let (limit, rate) = (format!("--limit={limit}"), format!("--rate={rate}/s"));
    let mut all = vec!["-i", &lab.device, &limit, &rate];
    all.extend(more);
    Throttle::start_with(&lab.client, mounts, &all)
}

/// Dials sixty, and measures how the fifty that were deferred went out.
fn measure(title: &str, lab: &Lab, burst: Duration) -> (Attempts, Vec<u64>) {
    let capture = lab.capture();
    let attempts = lab.dial((0..60).map(dead));
    let syns = capture.wait_for_attempts(ATTEMPTS, Duration::from_secs(60));
    let times: Vec<u64> = syns.iter().map(|syn| syn.at_ns).collect();
    PACE.assert_line(&times, burst);
    let released = &times[PACE.limit..];
    let interval_ns = u64::try_from(PACE.interval().as_nanos()).unwrap();
    let due: Vec<u64> = (0..50).map(|n| released[0] + n * interval_ns).collect();
    let first = Duration::from_nanos(released[0] - times[0]);
    let span = Duration::from_nanos(released[49] - released[0]);
    eprintln!(
        "{title}: the first after {first:.1?}, all within {span:.1?}; {}; pauses: {}",
        Lateness::between(released, &due),
        Lateness::of_pauses(released, PACE.interval()),
    );
    (attempts, released.to_vec())
}

#[test]
fn fifty_deferred_attempts_leave_fq_one_each_100_ms_without_a_daemon() {
    let began = Instant::now();
    let labs = [Lab::plain(), Lab::plain(), Lab::plain()];
    if !can_leave_later() {
        return;
    }
    put(&labs[0], "fq");
    put(&labs[1], "fq");
    let mounts = [0, 1, 2].map(|n: usize| Mounts::with_bpffs(&labs[n].client));

    let by_pacing = start(&labs[0], &mounts[0], &["--pacing=fq"]);
    let mut killed = [1, 2].map(|n: usize| start(&labs[n], &mounts[n], &["--keep"]));
    let shown = status(&labs[1].client, Some(&mounts[1]));
    assert_eq!(
        shown["throttles"][0]["interfaces"][0]["departure_times"],
        true
    );
    let shown = status(&labs[2].client, Some(&mounts[2]));
    assert_eq!(
        shown["throttles"][0]["interfaces"][0]["departure_times"],
        false
    );
    for running in &mut killed {
        running.signal(Signal::SIGKILL);
        wait_until("the daemon has ended", SOON, || !running.is_running());
    }
    // It counts as alive for a second after its last word.
    for n in [1, 2] {
        wait_until("the daemon counts as dead", SOON, || {
            status(&labs[n].client, Some(&mounts[n]))["throttles"][0]["daemon"].is_null()
        });
    }

    let mut all = Vec::new();
    for (n, title) in [(0, "--pacing fq"), (1, "killed, fq")] {
        let (attempts, released) = measure(title, &labs[n], Duration::ZERO);
        // Each time TCP asks again, one may wait for its timer: a tenth of them.
        let pauses = Lateness::of_pauses(&released, PACE.interval());
        let is_close = pauses.median < Duration::from_millis(5) && pauses.far <= pauses.count / 5;
        assert!(is_close, "{title}: {pauses}");
        all.push(attempts);
    }
    let (attempts, _) = measure("killed, no fq", &labs[2], BURST);
    all.push(attempts);
    assert_eq!(by_pacing.limit_events().len(), 1);

    let rest = Duration::from_secs(120).saturating_sub(began.elapsed());
    holds_for("no connect() has failed after 120 s", rest, || {
        all.iter().all(|attempts| attempts.failed().is_empty())
    });
}

#[test]
fn a_connection_that_waited_in_fq_begins_with_the_round_trip_time_of_the_path() {
    let lab = Lab::builder().without_offload().build();
    if !can_leave_later() {
        return;
    }
    put(&lab, "fq");
    let mounts = Mounts::with_bpffs(&lab.client);
    let _server = lab.serve(Behaviour::Hold);
    let throttle = start(&lab, &mounts, &["--pacing=fq"]);
    let capture = lab.capture();
    // Those before it get all releases up to its first retransmission.
    let _ahead = lab.dial((0..25).map(dead));
    let attempts = lab.dial((0..5).map(|n| live(n, OPEN_PORT)));
    let connected = attempts.wait_for_connected(5, SOON);
    for (n, attempt) in connected.iter().enumerate() {
        let (took, info) = (attempt.took().unwrap(), attempts.tcp_info(n));
        assert!(took >= Duration::from_millis(900), "{took:?}: not deferred");
        assert!(info.rtt < Duration::from_millis(100), "{took:?}: {info:?}");
        eprintln!(
            "waited {took:.2?}: rtt {:.2?}, rto {:.0?}",
            info.rtt, info.rto
        );
    }
    let frames = capture.finish();
    // With a checksum that goes with the timestamp.
    assert!(
        frames
            .syns()
            .iter()
            .all(|syn| syn.checksum != Checksum::Wrong)
    );
    for n in 0..5 {
        assert_eq!(frames.syns_to(live(n, OPEN_PORT)).len(), 1, "sent once");
    }
    drop(throttle);
}

#[test]
fn whether_an_interface_has_fq_is_followed() {
    let lab = Lab::plain();
    if !can_leave_later() {
        return;
    }
    put(&lab, "fq");
    let mounts = Mounts::with_bpffs(&lab.client);
    let throttle = start(&lab, &mounts, &["--keep", "--pacing=fq"]);
    let has_fq = || {
        let shown = status(&lab.client, Some(&mounts));
        shown["throttles"][0]["interfaces"][0]["departure_times"] == true
    };
    assert!(has_fq());
    put(&lab, "pfifo");
    throttle.wait_log("retransmissions for now", SOON);
    assert!(!has_fq());
    put(&lab, "fq");
    wait_until("fq is seen again", SOON, has_fq);
    // While nobody looks it becomes another one, and the next daemon sees that.
    throttle.stop().expect_success();
    assert!(has_fq(), "kept");
    put(&lab, "pfifo");
    let _second = start(&lab, &mounts, &["--keep", "--pacing=fq"]);
    assert!(!has_fq());
}

#[test]
fn without_fq_the_pacing_fq_warns_and_senders_take_the_releases() {
    let lab = Lab::plain();
    let mounts = Mounts::with_bpffs(&lab.client);
    let throttle = start(&lab, &mounts, &["--pacing=fq"]);
    throttle.wait_log("retransmissions for now", SOON);
    let (attempts, _) = measure("--pacing fq, no fq", &lab, BURST);
    assert!(attempts.failed().is_empty());
}
