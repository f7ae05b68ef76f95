//! A deferred SYN reaches the far end as its sender would have sent it just
//! then.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::{
    errno::Errno,
    libc,
    sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage},
};
use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};
use throttle_tests::{
    Behaviour, Feature, Lab, Pace,
    addresses::{OPEN_PORT, dead, live, live_v6},
    clients,
    dial::Attempts,
    frame::Checksum,
    holds_for,
    timing::millis,
    wait::slowness,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);
const PACE: Pace = Pace {
    limit: 10,
    per_second: 5,
};
/// So many wait ahead, so that the next two are deferred for about 2.5 s: TCP asks again
/// after 1, 2 and 3 s, or 1 and 3, and is not to do so in the moment between release and
/// answer.
const AHEAD: u32 = 11;

fn fill_the_queue(lab: &Lab) -> Attempts {
    lab.dial((0..10 + AHEAD).map(dead))
}

/// The round-trip time that `ss` shows for the connection to `dst`, ms.
fn rtt_by_ss(lab: &Lab, dst: SocketAddr) -> f64 {
    let shown = clients::ss(&lab.client, &format!("-tinHO dst {dst}"));
    let rtt = shown
        .split_whitespace()
        .find_map(|word| word.strip_prefix("rtt:")?.split('/').next())
        .unwrap_or_else(|| panic!("no rtt: {shown:?}"));
    rtt.parse().unwrap()
}

#[test]
fn a_deferred_connection_has_the_round_trip_time_of_its_path() {
    // What the machine itself may add, ms.
    let slack = 5.0 * f64::from(slowness());
    let labs = [
        ("veth", Lab::plain(), 0.0..slack),
        (
            "a path of 20 ms",
            Lab::builder().delay(Duration::from_millis(10)).build(),
            19.0..25.0 + slack,
        ),
    ];
    for (title, lab, path) in labs {
        let _server = lab.serve(Behaviour::Hold);
        let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
        let capture = lab.capture();
        let _ahead = fill_the_queue(&lab);
        let to = [live(0, OPEN_PORT), live_v6(0, OPEN_PORT)];
        let attempts = lab.dial(to);
        let connected = attempts.wait_for_connected(2, SOON);
        let mut fastest = f64::INFINITY;
        for (n, attempt) in connected.iter().enumerate() {
            let waited = attempt.took().unwrap();
            assert!((2_000..5_000).contains(&waited.as_millis()), "{waited:?}");
            let info = attempts.tcp_info(n);
            let by_ss = rtt_by_ss(&lab, attempt.dst);
            // Not how long it waited, whatever a machine adds that is away for a moment.
            let rtt = info.rtt.as_secs_f64() * 1e3;
            assert!((path.start..500.0).contains(&rtt), "{info:?}");
            assert!((rtt - by_ss).abs() < 1.0, "ss says {by_ss} ms: {info:?}");
            fastest = fastest.min(rtt);
            // Of a packet that was thought lost it would be a second and more.
            let true_rto = 3 * info.rtt + Duration::from_millis(300);
            assert!(info.rto < true_rto, "{info:?}");
            eprintln!(
                "{title}, {}: deferred for {waited:?}, then rtt {:?}, rto {:?}",
                attempt.dst, info.rtt, info.rto
            );
        }
        assert!(path.contains(&fastest), "{fastest} ms");
        let frames = capture.finish();
        for dst in to {
            let [syn] = frames.syns_to(dst).try_into().unwrap();
            assert_eq!(syn.checksum, Checksum::Good, "{syn:?}");
        }
        drop(throttle);
    }
}

#[test]
fn tcpdump_finds_the_checksums_of_deferred_syns_correct() {
    if !Feature::Program("tcpdump").is_here() {
        return;
    }
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let _throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deferred.pcap");
    let mut recording = clients::tcpdump(&lab.far, &lab.wire, &file);
    let _held = lab.dial((0..10).map(dead));
    lab.dial([live(0, OPEN_PORT), live_v6(0, OPEN_PORT)])
        .wait_for_connected(2, SOON);
    let read = || {
        let dump = lab
            .far
            .program("tcpdump")
            .args(["-vvnr"])
            .arg(&file)
            .args(["tcp dst port 80"])
            .output();
        let lines = dump
            .stdout
            .lines()
            .filter(|line| line.contains("Flags [S],"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    wait_until("both SYNs in the recording", SOON, || read().len() == 2);
    let lines = read();
    assert!(
        lines.iter().all(|line| line.contains("(correct)")),
        "{lines:#?}"
    );
    recording.signal(nix::sys::signal::Signal::SIGINT);
    wait_until("tcpdump to end", SOON, || recording.ended().is_some());
    eprintln!("tcpdump -vv: {}", lines[0].trim());
}

#[test]
fn a_program_that_was_deferred_gets_its_answer() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Http);
    let _throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let _ahead = fill_the_queue(&lab);
    let start = Instant::now();
    let fetched = clients::curl(&lab.client, &[&clients::url(live(0, OPEN_PORT))]);
    let took = start.elapsed();
    assert_eq!(fetched.expect_success().stdout, "ok\n");
    // One turn, not the whole queue: it is another program.
    assert!((150..1_500).contains(&took.as_millis()), "{took:?}");
    eprintln!("curl behind {AHEAD} dead attempts: {took:?}");
}

/// Opens a connection with data in its SYN (RFC 7413).
fn dial_with_data(lab: &Lab, dst: SocketAddr, data: &[u8]) -> OwnedFd {
    lab.client.run(|| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let to = SockaddrStorage::from(dst);
        let fast_open = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        match socket::sendto(socket.as_raw_fd(), data, &to, fast_open) {
            Ok(_) | Err(Errno::EINPROGRESS) => socket,
            Err(error) => panic!("send with the SYN: {error}"),
        }
    })
}

#[test]
fn data_in_a_deferred_syn_is_not_lost() {
    let lab = Lab::plain();
    // Data in the first SYN, without a cookie.
    lab.client.set_sysctl("net.ipv4.tcp_fastopen", "5");
    let server = lab.serve(Behaviour::Http);
    let _throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    let _held = lab.dial((0..10).map(dead));
    capture.wait_for_attempts(10, SOON);
    let request = |length: usize| {
        let fill = "x".repeat(length);
        format!("GET / HTTP/1.1\r\nHost: {fill}\r\n\r\n")
    };
    // One that is re-sent with its data, and one that is too long for that: it
    // waits for its sender, whose retransmission comes without the data.
    let cases = [(1, request(50), 0.15..0.9), (2, request(400), 0.9..1.5)];
    for (n, data, delay) in cases {
        let dst = live(n, OPEN_PORT);
        let start = throttle_tests::dial::now_ns();
        let connection = dial_with_data(&lab, dst, data.as_bytes());
        let syn = capture.wait_for_syn_to(dst, SOON);
        let waited = millis(start, syn.at_ns) / 1e3;
        assert!(delay.contains(&waited), "{waited} s");
        if n == 1 {
            assert_eq!((syn.payload, syn.checksum), (data.len(), Checksum::Good));
        }
        let mut answer = [0; 15];
        wait_until("the answer", SOON, || {
            socket::recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).is_ok()
        });
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        eprintln!(
            "{} bytes of data: SYN out after {waited:.2} s with {} bytes",
            data.len(),
            syn.payload
        );
    }
    holds_for("each was accepted once", Duration::from_millis(50), || {
        server.accepted() == 2
    });
}
