//! Destinations that no limit applies to.

use std::{net::SocketAddr, time::Duration};
use throttle_tests::{
    Lab,
    addresses::{dead, dead_v6},
    holds_for,
    throttle_cmd::tallies,
};

const SOON: Duration = Duration::from_secs(5);
const COUNT: u32 = 20;

#[test]
fn attempts_to_exempt_destinations_pass_uncounted_and_others_do_not() {
    let v6 = dead_v6(0);
    let at_port = SocketAddr::new(v6.ip(), v6.port() + 1);
    // A network at all ports, and one port of an address.
    let exempt = format!("--exempt={at_port}");
    let args = [
        "--limit=1",
        "--rate=1/m",
        "--exempt=198.51.100.0/24",
        &exempt,
    ];
    let lab = Lab::plain();
    let throttle = lab.throttle(&args);
    let capture = lab.capture();

    let _exempt = lab.dial((0..COUNT).map(dead));
    capture.wait_for_attempts(COUNT as usize, SOON);
    // At another port the limit applies: one is out, the others wait.
    let _limited = lab.dial((0..COUNT).map(dead_v6));
    capture.wait_for_attempts(COUNT as usize + 1, SOON);
    let _at_port = lab.dial([at_port]);
    capture.wait_for_attempts(COUNT as usize + 2, SOON);
    holds_for("no other attempt gets out", Duration::from_secs(1), || {
        capture.attempts() == COUNT as usize + 2
    });
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(counts["passed"], 1, "{counts:?}");
}
