//! Fifty attempts that wait get out at the rate, whoever offers them: the daemon,
//! senders that ask again, and those whose packets then wait in fq; while the daemon
//! is alive and after it was killed. No connect() fails for that, and a connection
//! that waited begins with the round trip time of the path.

use nix::sys::signal::Signal;
use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};
use throttle_tests::{
    Behaviour, Feature, Lab, Pace, Server, Throttle,
    addresses::{OPEN_PORT, dead, live},
    dial::{Attempts, TcpInfo},
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
/// For so long no connect() may fail. By itself TCP gives up after 127 s, or 131 s
/// since Linux 6.5.
const PATIENCE: Duration = Duration::from_secs(120);
/// What senders may catch up on when there is neither a daemon nor fq.
const BURST: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// So many servers: at ten a second some wait until their senders ask again.
const LIVE: u32 = 20;

/// By whom attempts get out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The daemon re-sends.
    Daemon,
    /// Senders ask again, and what they send leaves at its time.
    Departure,
    /// Senders ask again.
    Sender,
}

/// A network with a throttle, and what was dialled in it.
struct Case {
    title: &'static str,
    by: By,
    lab: Lab,
    mounts: Mounts,
    throttle: Running,
    /// When it was dialled, and what.
    dialled: Option<(Instant, Attempts)>,
    /// What was measured.
    said: Vec<String>,
    _server: Server,
}

impl Case {
    /// Starts a throttle at a device with or without fq.
    #[track_caller]
    fn start(title: &'static str, by: By, fq: bool, pacing: &str) -> Self {
        // Checksums are whole, so that what is sent later is seen to be right.
        let lab = Lab::builder().without_offload().build();
        if fq {
            let qdisc = format!("qdisc replace dev {} root fq", lab.device);
            lab.client.tc(&qdisc);
        }
        let mounts = Mounts::with_bpffs(&lab.client);
        let (limit, rate) = (PACE.limit, PACE.per_second);
        let args = [
            "-i",
            &lab.device,
            &format!("--limit={limit}"),
            &format!("--rate={rate}/s"),
            &format!("--pacing={pacing}"),
            "--keep",
        ];
        let throttle = Throttle::start_with(&lab.client, &mounts, &args);
        let case = Self {
            title,
            by,
            _server: lab.serve(Behaviour::Hold),
            lab,
            mounts,
            throttle,
            dialled: None,
            said: Vec::new(),
        };
        let shown = case.status();
        assert_eq!(shown["interfaces"][0]["departure_times"], fq, "{title}");
        case
    }

    fn status(&self) -> serde_json::Value {
        status(&self.lab.client, Some(&self.mounts))["throttles"][0].clone()
    }

    /// Ends the daemon as no daemon wants to be ended.
    #[track_caller]
    fn killed(mut self) -> Self {
        self.throttle.signal(Signal::SIGKILL);
        wait_until("the daemon has ended", SOON, || !self.throttle.is_running());
        // It counts as alive for a second after its last word.
        wait_until("the daemon counts as dead", SOON, || {
            self.status()["daemon"].is_null()
        });
        self
    }

    /// Dials sixty that nobody answers, and measures how fifty of them get out.
    #[track_caller]
    fn measure(&mut self) {
        let capture = self.lab.capture();
        let began = Instant::now();
        let attempts = self.lab.dial((0..60).map(dead));
        let syns = capture.wait_for_attempts(ATTEMPTS, Duration::from_secs(60));
        let times: Vec<u64> = syns.iter().map(|syn| syn.at_ns).collect();
        let released = &times[PACE.limit..];
        let first = Duration::from_nanos(released[0] - times[0]);
        let span = Duration::from_nanos(released[49] - released[0]);
        let off = match self.by {
            By::Daemon => PACE.assert_exact(&attempts.all(), &syns),
            By::Departure | By::Sender => {
                // The first waits until its sender asks again.
                let interval_ns = u64::try_from(PACE.interval().as_nanos()).unwrap_or_default();
                let due: Vec<u64> = (0..50).map(|n| released[0] + n * interval_ns).collect();
                Lateness::between(released, &due)
            }
        };
        self.said.push(format!(
            "the first after {first:.1?}, the others within {span:.1?}; {off}"
        ));
        match self.by {
            By::Daemon => {}
            By::Departure => {
                PACE.assert_line(&times, Duration::ZERO);
                // Each time TCP asks again, one may wait for its timer: a tenth of them.
                let late = Lateness::behind_the_first(released, PACE.interval()).assert_close();
                assert!(
                    late.median < Duration::from_millis(5),
                    "{}: {late}",
                    self.title
                );
            }
            By::Sender => PACE.assert_line(&times, BURST),
        }
        self.dialled = Some((began, attempts));
    }

    /// Connects to twenty servers while nobody has room for them.
    ///
    /// TCP takes the first round trip from the timestamp in the answer if it has sent
    /// the SYN more than once, else from its own clock (`tcp_ack_update_rtt` in
    /// net/ipv4/tcp_input.c): then what it sees is how long the connection waited.
    #[track_caller]
    fn connect(&mut self) {
        let attempts = self.lab.dial((0..LIVE).map(|n| live(n, OPEN_PORT)));
        attempts.wait_for_connected(LIVE as usize, SOON);
        let waited = attempts.all().into_iter().enumerate();
        let (repeated, once): (Vec<_>, Vec<_>) = waited
            .map(|(n, attempt)| (attempt.took().unwrap_or_default(), attempts.tcp_info(n)))
            .partition(|(_, info)| info.total_retrans > 0);
        let worst_of = |of: &[(Duration, TcpInfo)]| of.iter().map(|(_, info)| info.rtt).max();
        let worst = worst_of(&repeated).unwrap_or_default();
        // Not how long it waited, of which a machine that is away for a moment makes a
        // part: most are close to the truth.
        let close = repeated.iter().map(|(_, info)| info.rtt);
        let close = close
            .filter(|rtt| *rtt < Duration::from_millis(100))
            .count();
        let is_true = close > repeated.len() / 2 && worst < Duration::from_millis(500);
        assert!(is_true, "{}: {repeated:?}", self.title);
        let longer = once.iter().filter(|(waited, info)| info.rtt > *waited);
        assert_eq!(longer.count(), 0, "{}: {once:?}", self.title);
        let mut said = format!(
            "first RTT of {} connections whose sender had asked again: {worst:.1?} at worst",
            repeated.len()
        );
        match self.by {
            By::Daemon => {
                let _ = write!(
                    said,
                    ", of {} that had asked once: their waiting time, {:.1?} at worst",
                    once.len(),
                    worst_of(&once).unwrap_or_default()
                );
            }
            // Nobody else lets them out.
            By::Departure | By::Sender => assert_eq!(once.len(), 0, "{}", self.title),
        }
        self.said.push(said);
    }
}

/// Measures each, one after the other, and waits until it is sure that TCP's patience
/// was not spent.
#[track_caller]
fn measure(mut cases: Vec<Case>) {
    for case in &mut cases {
        case.measure();
        case.connect();
    }
    let has_failed = |case: &Case| {
        let failed = case.dialled.iter().flat_map(|(_, all)| all.failed());
        failed
            .into_iter()
            .any(|attempt| attempt.took() < Some(PATIENCE))
    };
    let last = cases
        .iter()
        .filter_map(|case| Some(case.dialled.as_ref()?.0));
    let rest = last
        .max()
        .map(|began| PATIENCE.saturating_sub(began.elapsed()));
    holds_for("no connect() has failed", rest.unwrap_or_default(), || {
        !cases.iter().any(has_failed)
    });
    for Case { title, said, .. } in &cases {
        let said = said.join("; ");
        eprintln!("measured: {title}: {said}; no connect() failed in {PATIENCE:?}");
    }
}

#[test]
fn without_fq_fifty_get_out_at_the_rate_whoever_offers_them() {
    measure(vec![
        Case::start("re-sent by the daemon", By::Daemon, false, "auto"),
        Case::start("--pacing retransmit", By::Sender, false, "retransmit"),
        Case::start("--pacing fq without fq", By::Sender, false, "fq"),
        Case::start("daemon killed, no fq", By::Sender, false, "auto").killed(),
    ]);
}

#[test]
fn with_fq_fifty_get_out_at_the_rate_whoever_offers_them() {
    if !Feature::Fq.is_here() || !Feature::DepartureTimes.is_here() {
        return;
    }
    measure(vec![
        Case::start("re-sent by the daemon, into fq", By::Daemon, true, "auto"),
        Case::start(
            "--pacing retransmit, into fq",
            By::Sender,
            true,
            "retransmit",
        ),
        Case::start("--pacing fq", By::Departure, true, "fq"),
        Case::start("daemon killed, fq", By::Departure, true, "auto").killed(),
    ]);
}
