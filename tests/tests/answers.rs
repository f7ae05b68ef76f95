//! An answer frees its attempt's place at once, and only a true answer does.

#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

use nix::errno::Errno;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use throttle_tests::{
    Behaviour, Capture, Lab,
    addresses::{self, OPEN_PORT, dead, dead_v6, live, live_v6},
    dial::{Attempts, now_ns},
    frame::Syn,
    holds_for,
    inject::{Answer, Forger, IcmpError},
    throttle_cmd::tallies,
    timing::millis,
    wait::slowness,
};

const SOON: Duration = Duration::from_secs(5);
/// In this time an attempt that may go out has gone.
const MOMENT: Duration = Duration::from_millis(60);
/// One place, and a release comes only after a minute: whatever gets out before
/// that has got a place that became free. A line holds sixty.
const ONE_PLACE: &[&str] = &["--limit=1", "--rate=1/m", "--max-delay=1h"];

/// One of the two families.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    dead: fn(u32) -> SocketAddr,
    /// Whose ICMP errors these are.
    router: IpAddr,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        dead,
        router: IpAddr::V4(addresses::FAR),
    },
    Family {
        name: "IPv6",
        dead: dead_v6,
        router: IpAddr::V6(addresses::FAR_V6),
    },
];

/// Attempts to the dead in a row: one is out, the next one waits for its place.
struct Row<'a> {
    lab: &'a Lab,
    capture: Capture,
    forger: Forger,
    family: Family,
    started: Vec<Attempts>,
    /// The one that is out.
    front: Syn,
}

impl<'a> Row<'a> {
    fn new(lab: &'a Lab, family: Family) -> Self {
        let capture = lab.capture();
        let to = (family.dead)(0);
        let started = vec![lab.dial([to])];
        let front = capture.wait_for_syn_to(to, SOON);
        Self {
            lab,
            capture,
            forger: lab.forger(),
            family,
            started,
            front,
        }
    }

    /// Starts the next attempt, which has to wait.
    #[track_caller]
    fn next_waits(&mut self, title: &str) {
        let to = (self.family.dead)(self.started.len() as u32);
        self.started.push(self.lab.dial([to]));
        self.assert_waits(title);
    }

    #[track_caller]
    fn assert_waits(&self, title: &str) {
        let out = self.started.len() - 1;
        holds_for(title, MOMENT, || self.capture.attempts() == out);
    }

    /// Sends an answer to the one that is out, after which the next one goes
    /// out at once. How long that took, ms.
    #[track_caller]
    fn answer(&mut self, title: &str, send: impl FnOnce(Answer<'_>)) -> f64 {
        let next = (self.family.dead)(self.started.len() as u32 - 1);
        let before_ns = now_ns();
        send(self.forger.answer(&self.front));
        self.front = self.capture.wait_for_syn_to(next, SOON);
        let took = millis(before_ns, self.front.at_ns);
        assert!(took < 500.0, "{title}: {took} ms");
        took
    }
}

#[test]
fn an_answer_frees_the_place_at_once() {
    for family in FAMILIES {
        let lab = Lab::plain();
        let throttle = lab.throttle(ONE_PLACE);
        let mut row = Row::new(&lab, family);
        let mut took = Vec::new();
        row.next_waits("before a SYN-ACK");
        took.push((
            "SYN-ACK".to_owned(),
            row.answer("SYN-ACK", |answer| answer.syn_ack()),
        ));
        row.next_waits("before a RST");
        took.push(("RST".to_owned(), row.answer("RST", |answer| answer.rst())));
        for error in IcmpError::ENDING {
            let title = format!("{error:?}");
            row.next_waits(&title);
            let ms = row.answer(&title, |answer| answer.from(family.router).icmp(error));
            took.push((title, ms));
        }
        // By what was on the wire, not by what the socket made of it.
        let counts = tallies(&throttle.stop(), &lab.device);
        let ended = ["answered", "refused", "unreachable"].map(|name| counts.get(name).copied());
        assert_eq!(ended, [Some(1), Some(1), Some(5)], "{counts:?}");
        let shown: Vec<_> = took
            .iter()
            .map(|(title, ms)| format!("{title} {ms:.2}"))
            .collect();
        eprintln!(
            "{}: from an answer to the next attempt, ms: {}",
            family.name,
            shown.join(", ")
        );
    }
}

#[test]
fn an_icmp_error_that_quotes_eight_bytes_frees_the_place_too() {
    for family in FAMILIES {
        let lab = Lab::plain();
        let _throttle = lab.throttle(ONE_PLACE);
        let mut row = Row::new(&lab, family);
        row.next_waits("before the error");
        row.answer("a short quote", |answer| {
            answer
                .from(family.router)
                .quoting(8)
                .icmp(IcmpError::HostUnreachable);
        });
    }
}

#[test]
fn an_answer_that_cannot_be_true_frees_nothing() {
    let mut count = 0;
    for family in FAMILIES {
        let lab = Lab::plain();
        let throttle = lab.throttle(ONE_PLACE);
        let mut row = Row::new(&lab, family);
        row.next_waits("while nobody answers");
        let (front, router) = (row.front.clone(), family.router);
        let answer = || row.forger.answer(&front);
        let isn = front.isn();
        for wrong in [
            isn ^ 0x5555_5555,
            isn.wrapping_add(1),
            isn.wrapping_sub(1),
            0,
        ] {
            answer().to_isn(wrong).syn_ack();
            row.assert_waits("a SYN-ACK to another ISN");
            answer().to_isn(wrong).rst();
            row.assert_waits("a RST to another ISN");
            count += 2;
            // The socket itself believes an error about what it would send next
            // (tcp_v4_err in net/ipv4/tcp_ipv4.c), and gives up.
            if wrong != isn.wrapping_add(1) {
                answer()
                    .to_isn(wrong)
                    .from(router)
                    .icmp(IcmpError::HostUnreachable);
                row.assert_waits("an ICMP error about another ISN");
                count += 1;
            }
        }
        answer().rst_without_ack();
        row.assert_waits("a RST without ACK");
        answer().from(router).icmp(IcmpError::TooBig);
        row.assert_waits("the path wants smaller packets");
        answer().from(router).icmp(IcmpError::EchoReply);
        row.assert_waits("no ICMP error at all");
        answer()
            .from(router)
            .quoting(4)
            .icmp(IcmpError::HostUnreachable);
        row.assert_waits("an ICMP error that quotes no sequence number");
        answer().from(router).syn_ack();
        row.assert_waits("a SYN-ACK from somebody else");
        count += 5;
        // The endpoint has not become known: one more attempt to it waits.
        let again = lab.dial([front.dst]);
        row.assert_waits("another attempt to the same endpoint");
        again.close_all();
        row.answer("the true one", |answer| answer.rst());
        let counts = tallies(&throttle.stop(), &lab.device);
        assert_eq!(counts.get("answered"), None, "{counts:?}");
        assert_eq!(counts["refused"], 1, "{counts:?}");
    }
    eprintln!("{count} answers that cannot be true: none frees a place");
}

#[test]
fn a_deferred_attempt_cannot_be_answered() {
    let lab = Lab::plain();
    let _throttle = lab.throttle(ONE_PLACE);
    let mut row = Row::new(&lab, FAMILIES[0]);
    row.next_waits("a second attempt");
    let front = row.front.clone();
    // A true answer to the front, but with the second one's addresses.
    let second = row.started[1].all()[0].clone();
    let mut guess = front;
    guess.segment.src = second.local;
    guess.segment.dst = second.dst;
    row.forger.answer(&guess).syn_ack();
    row.forger.answer(&guess).rst();
    row.assert_waits("answers to what was never sent");
    row.answer("the true one", |answer| answer.rst());
}

#[test]
fn with_one_place_forty_answers_follow_each_other_without_a_pause() {
    type Case = (
        &'static str,
        fn(u32) -> SocketAddr,
        &'static [Option<Errno>],
    );
    let cases: [Case; 6] = [
        ("live", |n| live(n, OPEN_PORT), &[None]),
        ("live IPv6", |n| live_v6(n, OPEN_PORT), &[None]),
        (
            "refusing",
            addresses::refusing,
            &[Some(Errno::ECONNREFUSED)],
        ),
        (
            "refusing IPv6",
            addresses::refusing_v6,
            &[Some(Errno::ECONNREFUSED)],
        ),
        ("unreachable", addresses::unreachable, &UNREACHABLE),
        ("unreachable IPv6", addresses::unreachable_v6, &UNREACHABLE),
    ];
    for (title, to, outcomes) in cases {
        let lab = Lab::builder().delay(Duration::from_millis(2)).build();
        let _server = lab.serve(Behaviour::Hold);
        let throttle = lab.throttle(ONE_PLACE);
        let capture = lab.capture();
        let held = lab.hold_answers();
        let attempts = lab.dial((0..40).map(to));
        let start_ns = now_ns();
        drop(held);
        let syns = capture.wait_for_attempts(40, SOON);
        let span = millis(start_ns, syns[39].at_ns);
        let ended = attempts.wait_for_all(SOON);
        assert!(
            ended
                .iter()
                .all(|attempt| outcomes.contains(&attempt.errno())),
            "{title}: {ended:?}"
        );
        let counts = tallies(&throttle.stop(), &lab.device);
        assert_eq!(counts["deferred"], 39, "{title}: {counts:?}");
        // Forty times 4 ms, and not forty minutes.
        assert!(span < 1_500.0, "{title}: {span} ms");
        eprintln!("one place, 40 {title} endpoints 4 ms away: all out within {span:.1} ms");
    }
}

const UNREACHABLE: [Option<Errno>; 2] = [Some(Errno::EHOSTUNREACH), Some(Errno::ENETUNREACH)];

#[test]
fn without_an_answer_the_place_is_free_after_the_timeout() {
    let lab = Lab::plain();
    let throttle = lab.throttle(&["--limit=1", "--rate=1/m", "--attempt-timeout=3s"]);
    let mut row = Row::new(&lab, FAMILIES[0]);
    row.next_waits("before the timeout");
    let next = row
        .capture
        .wait_for_syn_to(dead(1), Duration::from_secs(20));
    let after = millis(row.front.at_ns, next.at_ns) / 1e3;
    eprintln!("--attempt-timeout 3s: the place was free after {after:.2} s");
    // The rate alone would take a minute.
    assert!((2.7..4.5).contains(&after), "{after} s");
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(counts["expired"], 1, "{counts:?}");
}

#[test]
fn two_hundred_live_endpoints_are_connected_as_fast_as_they_answer() {
    let away = Duration::from_millis(10) * slowness();
    let lab = Lab::builder().delay(away).build();
    let _server = lab.serve(Behaviour::Hold);
    let throttle = lab.throttle(&["--limit=50", "--rate=10/s"]);
    let held = lab.hold_answers();
    let attempts = lab.dial((0..200).map(|n| live(n, OPEN_PORT)));
    drop(held);
    let connected = attempts.wait_for_connected(200, Duration::from_secs(16));
    let last = connected
        .iter()
        .filter_map(|attempt| attempt.took())
        .max()
        .unwrap();
    eprintln!(
        "200 live endpoints {:?} away, limit 50, 10/s: connected within {last:?}",
        2 * away
    );
    // The rate alone would take 15 s.
    assert!(last < 50 * away + Duration::from_secs(1), "{last:?}");
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(
        (counts["answered"], counts["deferred"]),
        (200, 150),
        "{counts:?}"
    );
}
