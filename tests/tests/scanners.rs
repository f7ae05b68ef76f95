//! A port scanner: one event, and the fixed rate.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;
use throttle_tests::{
    Feature, Lab, Pace, addresses::dead, clients, frame::Syn, throttle_cmd::tallies,
    timing::Lateness, wait_until,
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 20,
};
const HOSTS: usize = 254;

/// Scans 254 dead addresses by `nmap` with `kind`, every probe at once and
/// given up only when throttle has had time for all of them.
#[track_caller]
fn assert_a_scan_is_throttled(kind: &str) {
    if !Feature::Program("nmap").is_here() {
        return;
    }
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    let mut scan = clients::start_nmap(
        &lab.client,
        &format!(
            "{kind} -p 1024 --max-retries 0 --min-parallelism 300 --min-hostgroup 256 \
             --initial-rtt-timeout 20s --max-rtt-timeout 20s 198.51.100.1-254"
        ),
    );
    let syns = capture.wait_for_attempts(HOSTS, PACE.span(HOSTS) + Duration::from_secs(10));
    let times: Vec<u64> = syns.iter().map(|syn: &Syn| syn.at_ns).collect();
    PACE.assert_line(&times, Duration::ZERO);
    let rate = Lateness::behind_the_first(&times[PACE.limit..], PACE.interval()).assert_close();
    assert!(syns.iter().all(|syn| syn.dst.port() == dead(0).port()));
    wait_until("nmap to end", Duration::from_secs(30), || {
        scan.ended().is_some()
    });
    let frames = capture.finish();
    assert_eq!(
        frames.first_syns().len(),
        HOSTS,
        "each host was probed once"
    );
    let events = throttle.limit_events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["event"]["kind"], "alert");
    assert_eq!(events[0]["throttle"]["mode"], "enforce");
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(
        (counts["passed"], counts["released"]),
        (10, 244),
        "{counts:?}"
    );
    let seconds = (times.last().unwrap() - times[0]) as f64 / 1e9;
    eprintln!(
        "nmap {kind} over 254 dead addresses, limit 10, 20/s: one event; all out within {seconds:.2} s \
         (12.2 by the rate); {rate}"
    );
}

#[test]
fn a_scan_by_connect_is_one_event_and_goes_on_at_the_rate() {
    assert_a_scan_is_throttled("-sT");
}

#[test]
fn a_scan_by_raw_socket_is_one_event_and_goes_on_at_the_rate() {
    assert_a_scan_is_throttled("-sS --send-ip");
}

#[test]
fn a_scan_that_gives_up_quickly_raises_no_more_events() {
    if !Feature::Program("nmap").is_here() {
        return;
    }
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    // As one would really scan: nmap gives a probe up after a second and less.
    let scan = clients::nmap(
        &lab.client,
        "-sT -T5 -p 1024 --max-retries 1 --min-parallelism 100 198.51.100.1-254",
    );
    scan.expect_success();
    let events = throttle.limit_events();
    let out = capture.attempts();
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(events.len(), 1, "{events:?}");
    eprintln!(
        "nmap -sT -T5: one event, {out} of {} attempts out, by second {:?}",
        counts["attempts"],
        capture.finish().per_second()
    );
}
