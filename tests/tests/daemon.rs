//! Without the daemon's help the senders' own retransmissions take the
//! releases: nothing is stuck, nothing is lost, and the rate still holds.

use nix::sys::signal::Signal;
use std::time::Duration;
use throttle_tests::{
    Lab, Pace,
    addresses::dead,
    dial::now_ns,
    features::kernel,
    frame::{Checksum, Syn},
    holds_for,
    timing::{Lateness, millis},
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 5,
};
/// What senders may catch up on.
const BURST: Duration = Duration::from_secs(1);

fn times(syns: &[Syn]) -> Vec<u64> {
    syns.iter().map(|syn| syn.at_ns).collect()
}

/// A sender's own checksums are the device's to complete; a copy's are whole.
fn is_copy(syn: &Syn) -> bool {
    syn.checksum == Checksum::Good
}

#[test]
fn while_the_daemon_is_stopped_senders_take_the_releases() {
    const ATTEMPTS: usize = 100;
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    let attempts = lab.dial((0..100).map(dead));
    let before = capture.wait_for_attempts(25, Duration::from_secs(10)).len();
    throttle.signal(Signal::SIGSTOP);
    let stopped_ns = now_ns();
    holds_for("no connect() has failed", Duration::from_secs(20), || {
        attempts.failed().is_empty()
    });
    let resumed_ns = now_ns();
    throttle.signal(Signal::SIGCONT);
    let syns = capture.wait_for_attempts(ATTEMPTS, PACE.span(ATTEMPTS));
    assert!(attempts.failed().is_empty());
    PACE.assert_line(&times(&syns), BURST);

    let (with, rest): (Vec<Syn>, Vec<Syn>) =
        syns.into_iter().partition(|syn| syn.at_ns < stopped_ns);
    let (without, after): (Vec<Syn>, Vec<Syn>) =
        rest.into_iter().partition(|syn| syn.at_ns < resumed_ns);
    let first = PACE.assert_exact(&attempts.all()[..with.len()], &with);
    assert!(
        !without.iter().any(is_copy),
        "somebody re-sent while the daemon was stopped"
    );
    // Retransmissions come after 1, 2, 3, 4, 5, 7, 11, 19 s, or, before Linux 6.5,
    // after 1, 3, 7, 15 s; each time a second's worth gets out.
    let least = if kernel() < (6, 5) { 10 } else { 15 };
    assert!(
        without.len() >= least,
        "only {} got out meanwhile",
        without.len()
    );

    assert!(
        after.iter().all(is_copy),
        "the daemon is back and keeps the queue"
    );
    let order: Vec<_> = attempts.all().iter().map(|attempt| attempt.dst).collect();
    let place = |syn: &Syn| order.iter().position(|dst| *dst == syn.dst);
    assert!(after.is_sorted_by_key(place), "not in order of arrival");
    // What was due meanwhile may come at once, one of it.
    let again = Lateness::behind_the_first(&times(&after[2..]), PACE.interval()).assert_close();
    eprintln!(
        "stopped after {before} of {ATTEMPTS}: {first}; {} got out by themselves in 20 s; the first \
         {:.0} ms after the daemon went on, then {again}",
        without.len(),
        millis(resumed_ns, after[0].at_ns),
    );
    let frames = capture.finish();
    assert!(
        !frames.repeated_syns().iter().any(is_copy),
        "no attempt was re-sent twice"
    );
}

#[test]
fn with_pacing_retransmit_nothing_is_re_sent_and_the_rate_holds() {
    const ATTEMPTS: usize = 40;
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &["--pacing=retransmit"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..40).map(dead));
    let syns = capture.wait_for_attempts(ATTEMPTS, Duration::from_secs(20));
    let times = times(&syns);
    PACE.assert_line(&times, BURST);
    let span = millis(times[0], times[ATTEMPTS - 1]) / 1e3;
    let frames = capture.finish();
    assert!(!frames.syns().iter().any(is_copy), "somebody re-sent");
    assert!(attempts.failed().is_empty());
    assert_eq!(throttle.limit_events().len(), 1);
    eprintln!(
        "retransmissions only: 30 deferred attempts out within {span:.1} s, by second {:?}",
        frames.per_second()
    );
}

#[test]
fn a_daemon_that_was_killed_leaves_nobody_stuck() {
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    let attempts = lab.dial((0..60).map(dead));
    capture.wait_for_attempts(12, Duration::from_secs(5));
    throttle.signal(Signal::SIGKILL);
    let killed_ns = now_ns();
    // Its programs go with it, and everybody's next retransmission passes.
    let syns = capture.wait_for_attempts(60, Duration::from_secs(5));
    assert!(attempts.failed().is_empty());
    eprintln!(
        "killed: everybody was out {:.0} ms later",
        millis(killed_ns, syns[59].at_ns)
    );
}
