//! With `--mode monitor` everything is counted and told, and nothing changes.

use std::{collections::HashMap, time::Duration};
use throttle_tests::{
    Behaviour, Lab, Pace,
    addresses::{OPEN_PORT, dead, live},
    capture::Frames,
    frame::Checksum,
    throttle_cmd::tallies,
    timing::millis,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 60;

#[test]
fn every_packet_passes_at_once_and_the_same_event_is_raised() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let throttle = Pace::new(10, 5).throttle(&lab.client, &lab.device, &["--mode=monitor"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..ATTEMPTS).map(dead));
    let live = lab.dial([live(0, OPEN_PORT)]).wait_for_connected(1, SOON);
    assert!(
        live[0].took().unwrap() < Duration::from_millis(500),
        "{live:?}"
    );

    // Each on the wire when it was dialled, in order.
    let syns = capture.wait_for_attempts(61, SOON);
    let mut late: Vec<f64> = Vec::new();
    for (attempt, syn) in attempts.all().iter().zip(&syns) {
        assert_eq!((attempt.local, attempt.dst), (syn.src, syn.dst));
        late.push(millis(attempt.started_ns, syn.at_ns));
    }
    let worst = late.iter().copied().fold(0.0, f64::max);
    assert!(worst < 100.0, "{worst} ms");

    // Until each has been retransmitted four times, as TCP does; by then the
    // daemon has had a release for twenty of them.
    wait_until("four retransmissions of each", 2 * SOON, || {
        capture.so_far().repeated_syns().len() >= 4 * ATTEMPTS as usize
    });
    let frames = capture.finish();
    assert_eq!(
        by_attempt(&frames),
        HashMap::from([(1, 1), (5, 60)]),
        "attempts by number of SYNs"
    );
    let pending = frames
        .syns()
        .iter()
        .all(|syn| syn.checksum == Checksum::Pending);
    assert!(pending, "a copy was on the wire");

    let events = throttle.limit_events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["event"]["kind"], "event");
    assert_eq!(events[0]["event"]["code"], "4226");
    assert_eq!(events[0]["throttle"]["mode"], "monitor");
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(
        (counts["attempts"], counts["deferred"]),
        (61, 51),
        "{counts:?}"
    );
    eprintln!(
        "monitor: 60 attempts on the wire {worst:.2} ms after connect() at worst, {counts:?}"
    );
}

/// How many attempts had so many SYNs.
fn by_attempt(frames: &Frames) -> HashMap<usize, usize> {
    let mut syns = HashMap::new();
    for syn in frames.syns() {
        *syns.entry((syn.src, syn.isn())).or_insert(0) += 1;
    }
    let mut attempts = HashMap::new();
    for count in syns.into_values() {
        *attempts.entry(count).or_insert(0) += 1;
    }
    attempts
}
