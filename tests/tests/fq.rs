//! Where an interface has fq, attempts that wait leave it at their times.

use std::time::Duration;
use throttle_tests::{
    Behaviour, Feature, Lab, Namespace, Pace, Throttle,
    addresses::{OPEN_PORT, dead, live},
    frame::Checksum,
    process::Mounts,
    throttle_cmd::{Running, status},
    wait_until,
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 10,
};
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
    let mut close = 0;
    for (n, attempt) in connected.iter().enumerate() {
        let (took, info) = (attempt.took().unwrap(), attempts.tcp_info(n));
        assert!(took >= Duration::from_millis(900), "{took:?}: not deferred");
        // Not how long it waited, of which a machine that is away for a moment makes a
        // part.
        assert!(info.rtt < Duration::from_millis(500), "{took:?}: {info:?}");
        close += usize::from(info.rtt < Duration::from_millis(100));
        eprintln!(
            "waited {took:.2?}: rtt {:.2?}, rto {:.0?}",
            info.rtt, info.rto
        );
    }
    assert!(
        close > 2,
        "only {close} of 5 begin with the time of the path"
    );
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

/// As on a device with several queues: each has a qdisc of its own below mq.
#[test]
fn a_device_has_fq_if_each_of_its_queues_has() {
    let namespace = Namespace::new("queues");
    if !can_leave_later() {
        return;
    }
    namespace.ip("link add many numtxqueues 2 numrxqueues 2 type veth peer name far");
    namespace.ip("link set far up");
    namespace.ip("link set many up");
    namespace.tc("qdisc replace dev many root handle 1: mq");
    for queue in ["1:1", "1:2"] {
        namespace.tc(&format!("qdisc replace dev many parent {queue} fq"));
    }
    let throttle = Throttle::start(&namespace, &["-i", "many", "--pacing=fq"]);
    let has_fq = || {
        let shown = status(&namespace, None);
        shown["throttles"][0]["interfaces"][0]["departure_times"] == true
    };
    assert!(has_fq());
    namespace.tc("qdisc replace dev many parent 1:2 pfifo");
    throttle.wait_log("retransmissions for now", SOON);
    assert!(!has_fq());
    namespace.tc("qdisc replace dev many parent 1:2 fq");
    wait_until("fq is seen again", SOON, has_fq);
}

#[test]
fn without_fq_the_pacing_fq_warns() {
    let lab = Lab::plain();
    let mounts = Mounts::with_bpffs(&lab.client);
    let throttle = start(&lab, &mounts, &["--pacing=fq"]);
    throttle.wait_log("retransmissions for now", SOON);
}
