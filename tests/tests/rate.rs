//! The main job: what goes out, and when.

use std::time::Duration;

use throttle_tests::{Lab, addresses::dead, dial::Attempts};

#[test]
fn sixty_at_once() {
    let lab = Lab::plain();
    let throttle = lab.throttle(&["--limit", "10", "--rate", "5/s"]);
    let capture = lab.capture();
    let attempts: Attempts = lab.dial((0..60).map(dead));
    let syns = capture.wait_for_attempts(60, Duration::from_secs(30));
    let start = syns[0].at_ns;
    for s in &syns { eprintln!("{:?} {}", Duration::from_nanos(s.at_ns - start), s.dst); }
    assert!(attempts.failed().is_empty());
    let frames = capture.finish();
    eprintln!("{:?}", throttle.events());
    let f = throttle.stop();
    eprintln!("{:?}", f);
    drop(frames);
}
