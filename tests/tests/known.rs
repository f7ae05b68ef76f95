//! Programs that connect to hosts that answer do not notice the limit.

use std::time::{Duration, Instant};
use throttle_tests::{
    Behaviour, Lab,
    addresses::{OPEN_PORT, dead, live},
    dial::serial_connects,
    frame::Syn,
    throttle_cmd::tallies,
};

const SOON: Duration = Duration::from_secs(5);
/// Servers, and how often each is connected to in each way.
const HOSTS: u32 = 20;
const TIMES: usize = 100;
/// One after another, and as many at once.
const CONNECTS: usize = 2 * TIMES * HOSTS as usize;

/// One after another: how long each connect took.
fn one_after_another(lab: &Lab, host: u32) -> Vec<Duration> {
    serial_connects(&lab.client, TIMES, live(host, OPEN_PORT))
}

/// A hundred at a time: how long it took until all were there.
#[track_caller]
fn all_at_once(lab: &Lab, host: u32) -> Duration {
    let start = Instant::now();
    let attempts = lab.dial((0..TIMES).map(|_| live(host, OPEN_PORT)));
    attempts.wait_for_connected(TIMES, SOON);
    start.elapsed()
}

/// Connects to every host, both ways. The medians.
#[track_caller]
fn connect_to_all(labs: &[&Lab]) -> Vec<(Duration, Duration)> {
    let mut times = vec![(Vec::new(), Vec::new()); labs.len()];
    // The labs in turn, so that whatever else the machine does meets all alike.
    for host in 0..HOSTS {
        for (lab, (serial, bursts)) in labs.iter().zip(&mut times) {
            serial.extend(one_after_another(lab, host));
            bursts.push(all_at_once(lab, host));
        }
    }
    times
        .into_iter()
        .map(|(serial, bursts)| (median(serial), median(bursts)))
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How much longer, %.
fn extra(without: Duration, with: Duration) -> f64 {
    (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0
}

#[test]
fn connects_to_known_endpoints_do_not_notice_the_limit() {
    let (lab, plain) = (Lab::plain(), Lab::plain());
    let _servers = [lab.serve(Behaviour::Close), plain.serve(Behaviour::Close)];
    let capture = lab.capture();

    // Sixty dead attempts: ten are half-open, fifty wait, for most of a minute.
    let throttle = lab.throttle(&["--limit=10", "--rate=1/s"]);
    for host in 0..HOSTS {
        lab.dial([live(host, OPEN_PORT)])
            .wait_for_connected(1, SOON);
    }
    let _dead = lab.dial((0..60).map(dead));
    capture.wait_for_attempts(HOSTS as usize + 10, SOON);
    throttle.wait_event("the limit is reached", SOON, |event| {
        event["event"]["code"] == "4226"
    });
    drop(capture);

    // To measure; to warm up first.
    connect_to_all(&[&lab, &plain]);
    let medians = connect_to_all(&[&lab, &plain]);

    // To look at the wire.
    let capture = lab.capture();
    connect_to_all(&[&lab]);
    let frames = capture.finish();
    let to_live = |syns: Vec<Syn>| {
        syns.iter()
            .filter(|syn| syn.dst.port() == OPEN_PORT)
            .count()
    };
    assert_eq!(to_live(frames.first_syns()), CONNECTS);
    assert_eq!(
        to_live(frames.repeated_syns()),
        0,
        "somebody had to ask twice"
    );

    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(counts["known"], 3 * CONNECTS as u64, "{counts:?}");
    assert_eq!(
        (counts["deferred"], counts["passed"]),
        (50, 3 * CONNECTS as u64 + u64::from(HOSTS) + 10)
    );
    let [(serial, burst), (serial_plain, burst_plain)] = medians[..] else {
        unreachable!()
    };
    eprintln!(
        "2,000 connects to known endpoints beside a full queue, in the median: one after another \
         {serial:?} each, {serial_plain:?} without throttle ({:+.1} %); 100 at a time {burst:?}, \
         {burst_plain:?} without ({:+.1} %)",
        extra(serial_plain, serial),
        extra(burst_plain, burst),
    );
}

#[test]
fn with_known_for_0_the_limit_is_strict() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Close);
    let throttle = lab.throttle(&["--limit=10", "--rate=5/s", "--known-for=0"]);
    let capture = lab.capture();
    let at_once = lab.dial([live(0, OPEN_PORT)]).wait_for_connected(1, SOON);
    let _dead = lab.dial((0..19).map(dead));
    capture.wait_for_attempts(11, SOON);
    let waited = lab.dial([live(0, OPEN_PORT)]).wait_for_connected(1, SOON);
    let (at_once, waited) = (at_once[0].took().unwrap(), waited[0].took().unwrap());
    assert!(at_once < Duration::from_millis(500), "{at_once:?}");
    // Nine are ahead, so it goes out with the tenth release.
    assert!((1_500..2_500).contains(&waited.as_millis()), "{waited:?}");
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(counts.get("known"), None, "{counts:?}");
    eprintln!("--known-for 0: a server that has just answered, behind 9 dead attempts: {waited:?}");
}

#[test]
fn an_endpoint_is_known_for_so_long_and_no_longer() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Close);
    let throttle = lab.throttle(&["--limit=10", "--rate=1/m", "--known-for=3s"]);
    let connect = |timeout| {
        let attempts = lab.dial([live(0, OPEN_PORT)]);
        throttle_tests::wait::wait_at_most(timeout, || attempts.connected().pop().map(drop))
    };
    let moment = Duration::from_millis(300);
    assert!(connect(SOON).is_some());
    let answered = Instant::now();
    let capture = lab.capture();
    let _dead = lab.dial((0..12).map(dead));
    capture.wait_for_attempts(10, SOON);
    assert!(
        connect(SOON).is_some(),
        "it was known {:?} ago",
        answered.elapsed()
    );
    capture.wait_for_attempts(11, SOON);
    // Nothing answers for three seconds.
    throttle_tests::holds_for("nobody else gets out", Duration::from_millis(3_100), || {
        capture.attempts() == 11
    });
    assert!(connect(moment).is_none(), "it is not known any more");
    drop(throttle);
}

#[test]
fn an_endpoint_that_stopped_answering_is_not_known_any_more() {
    let lab = Lab::plain();
    let server = lab.serve(Behaviour::Close);
    let throttle = lab.throttle(&["--limit=10", "--rate=5/s"]);
    let to = live(0, OPEN_PORT);
    lab.dial([to]).wait_for_connected(1, SOON);
    // From now on its host drops everything.
    drop(server);
    lab.far.ip("route del local 10.78.0.0/16 dev lo");
    let capture = lab.capture();
    let first = lab.dial((0..30).map(|_| to));
    capture.wait_for_attempts(30, SOON);
    // After a second they are retransmitted, which makes them count.
    throttle_tests::wait_until("retransmissions", SOON, || {
        capture.so_far().repeated_syns().len() >= 30
    });
    let out = capture.attempts();
    let more = lab.dial((0..10).map(|_| to));
    let syns = capture.wait_for_attempts(out + 10, SOON);
    let span = throttle_tests::timing::millis(more.all()[0].started_ns, syns[out + 9].at_ns);
    assert!(
        (1_900.0..3_000.0).contains(&span),
        "ten more at 5/s: {span} ms"
    );
    assert_eq!((first.pending().len(), more.pending().len()), (30, 10));
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(
        (counts["known"], counts["deferred"]),
        (30, 10),
        "{counts:?}"
    );
    eprintln!(
        "a known endpoint fell silent: 30 attempts passed, of the next ten the last after {span:.0} ms"
    );
}
