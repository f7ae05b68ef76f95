//! The lab itself, without throttle: what the other tests rely on.

use nix::{errno::Errno, sys::signal::Signal};
use std::{
    collections::HashSet,
    io::{ErrorKind, Read},
    net::SocketAddr,
    path::Path,
    time::Duration,
};
use throttle_tests::{
    Behaviour, Capture, Cgroup, Dialer, Feature, Lab, Namespace, Program, Server, Throttle,
    addresses::{self, OPEN_PORT},
    clients,
    dial::{self, DialProgram, now_ns},
    frame::{Checksum, Syn},
    holds_for,
    hooks::{BpfObjects, HookState},
    inject::IcmpError,
    process::Mounts,
    wait::slowness,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);

fn both_families(v4: fn(u32) -> SocketAddr, v6: fn(u32) -> SocketAddr) -> [SocketAddr; 2] {
    [v4(0), v6(0)]
}

#[test]
fn a_namespace_has_only_loopback() {
    let namespace = Namespace::new("empty");
    assert_eq!(namespace.devices(), ["lo"]);
    assert_ne!(namespace.inode(), Namespace::current().inode());
    assert_eq!(
        namespace.run(|| Namespace::current().inode()),
        namespace.inode()
    );
    let shown = namespace
        .program("readlink")
        .arg("/proc/self/ns/net")
        .output()
        .expect_success();
    assert_eq!(shown.stdout.trim(), format!("net:[{}]", namespace.inode()));
}

#[test]
fn sysctls_are_those_of_the_namespace() {
    let namespace = Namespace::new("sysctl");
    let outside = Namespace::current().sysctl("net.ipv4.tcp_syn_retries");
    namespace.set_sysctl("net.ipv4.tcp_syn_retries", "3");
    assert_eq!(namespace.sysctl("net.ipv4.tcp_syn_retries"), "3");
    assert_eq!(
        Namespace::current().sysctl("net.ipv4.tcp_syn_retries"),
        outside
    );
}

#[test]
#[should_panic(expected = "in vain for: pigs to fly")]
fn a_vain_wait_says_what_for() {
    wait_until("pigs to fly", Duration::from_millis(10), || false);
}

#[test]
fn dead_addresses_stay_silent() {
    let lab = Lab::plain();
    let back = Capture::arriving(&lab.client, &lab.device);
    let capture = lab.capture();
    let mut destinations: Vec<SocketAddr> = (0..600).map(addresses::dead).collect();
    destinations.extend((0..100).map(addresses::dead_v6));
    // Nobody has heard of this one.
    destinations.push("9.9.9.9:53".parse().unwrap());
    let attempts = lab.dial(destinations.iter().copied());
    capture.wait_for_attempts(destinations.len(), SOON);
    let pending = || attempts.pending().len() == destinations.len();
    holds_for(
        "all attempts are pending",
        Duration::from_millis(300),
        pending,
    );

    let frames = capture.finish();
    let seen: Vec<SocketAddr> = frames.first_syns().iter().map(|syn| syn.dst).collect();
    assert_eq!(seen, destinations);
    let back = back.finish();
    assert!(back.segments().is_empty(), "{:?}", back.segments());
    assert!(
        back.icmp().iter().all(|icmp| ![1, 3].contains(&icmp.kind)),
        "{:?}",
        back.icmp()
    );
}

#[test]
fn live_addresses_answer() {
    let lab = Lab::plain();
    let server = lab.serve(Behaviour::Hold);
    let v4 = (0..200).map(|n| addresses::live(n, OPEN_PORT));
    let v6 = (0..200).map(|n| addresses::live_v6(n, OPEN_PORT));
    let attempts = lab.dial(v4.chain(v6));
    let connected = attempts.wait_for_connected(400, SOON);
    assert!(
        connected
            .iter()
            .all(|attempt| attempt.took() < Some(Duration::from_secs(1)))
    );
    let sources = attempts
        .local_addrs()
        .iter()
        .map(SocketAddr::ip)
        .collect::<HashSet<_>>();
    assert_eq!(
        sources,
        HashSet::from([addresses::CLIENT.into(), addresses::CLIENT_V6.into()])
    );
    wait_until("the server to accept them", SOON, || {
        server.accepted() == 400
    });
}

#[test]
fn closed_ports_refuse() {
    let lab = Lab::plain();
    let attempts = lab.dial(both_families(addresses::refusing, addresses::refusing_v6));
    for attempt in attempts.wait_for_all(SOON) {
        assert_eq!(attempt.errno(), Some(Errno::ECONNREFUSED), "{attempt:?}");
    }
}

#[test]
fn unreachable_addresses_are_answered_for() {
    let lab = Lab::plain();
    let back = Capture::arriving(&lab.client, &lab.device);
    let attempts = lab.dial((0..50).map(addresses::unreachable));
    wait_until("an ICMP error for each", SOON, || {
        back.so_far()
            .icmp()
            .iter()
            .filter(|icmp| (icmp.kind, icmp.code) == (3, 1))
            .count()
            >= 50
    });
    let more = lab.dial((0..50).map(addresses::unreachable_v6));
    wait_until("an ICMPv6 error for each", SOON, || {
        back.so_far()
            .icmp()
            .iter()
            .filter(|icmp| icmp.kind == 1)
            .count()
            >= 50
    });
    // An error that comes back while connect() still holds the socket is
    // only noted (tcp_v6_err); the one after the retransmission counts.
    for attempt in attempts
        .wait_for_all(SOON)
        .iter()
        .chain(&more.wait_for_all(SOON))
    {
        let unreachable = [Some(Errno::EHOSTUNREACH), Some(Errno::ENETUNREACH)];
        assert!(unreachable.contains(&attempt.errno()), "{attempt:?}");
    }
}

#[test]
fn a_capture_tells_time_and_options() {
    let lab = Lab::plain();
    let capture = lab.capture();
    let before = now_ns();
    let attempts = lab.dial([addresses::dead(0), addresses::dead_v6(0)]);
    capture.wait_for_attempts(2, SOON);
    // The first retransmission comes after one second.
    wait_until("both retransmissions", SOON, || {
        capture.so_far().repeated_syns().len() == 2
    });
    let frames = capture.finish();
    for (attempt, syn) in attempts.all().iter().zip(frames.first_syns()) {
        assert_eq!((attempt.local, attempt.dst), (syn.src, syn.dst));
        assert!((before..before + 1_000_000_000).contains(&syn.at_ns));
        assert!(syn.at_ns >= attempt.started_ns);
        assert_eq!(syn.checksum, Checksum::Pending, "as is usual on veth");
        assert!(syn.tsval().is_some() && syn.mss.is_some());
        assert!(syn.tags.is_empty());
        let [_, again]: [Syn; 2] = frames.syns_to(syn.dst).try_into().unwrap();
        assert_eq!((again.isn(), again.first), (syn.isn(), false));
        let later = Duration::from_nanos(again.at_ns - syn.at_ns).as_secs_f64();
        assert!((0.9..1.3).contains(&later), "{later}");
    }
    assert_eq!(frames.intervals().len(), 1);
}

#[test]
fn without_offload_checksums_are_whole() {
    let lab = Lab::builder().without_offload().build();
    let server = lab.serve(Behaviour::Hold);
    let capture = lab.capture();
    let attempts = lab.dial([
        addresses::live(0, OPEN_PORT),
        addresses::live_v6(0, OPEN_PORT),
    ]);
    attempts.wait_for_connected(2, SOON);
    wait_until("both to be accepted", SOON, || server.accepted() == 2);
    let frames = capture.finish();
    let checksums: Vec<Checksum> = frames.syns().iter().map(|syn| syn.checksum).collect();
    assert_eq!(checksums, [Checksum::Good; 2]);
}

#[test]
fn vlan_tags_are_on_the_wire() {
    let moment = Duration::from_millis(1);
    let labs = [
        (&[7][..], Lab::builder().vlan(&[7]).build()),
        (&[5, 7], Lab::builder().vlan(&[5, 7]).build()),
        (&[7], Lab::builder().vlan(&[7]).delay(moment).build()),
    ];
    for (ids, lab) in labs {
        let _server = lab.serve(Behaviour::Hold);
        let (wire, device) = (lab.capture(), Capture::arriving(&lab.far, &lab.device));
        let leaving = Capture::leaving(&lab.client, &lab.wire);
        let both = both_families(|_| addresses::live(0, 80), |_| addresses::live_v6(0, 80));
        lab.dial(both).wait_for_connected(2, SOON);
        let dead = lab.dial(both_families(addresses::dead, addresses::dead_v6));
        for capture in [wire, leaving] {
            for syn in capture.wait_for_attempts(4, SOON) {
                assert_eq!(syn.vlan_ids(), ids, "{syn:?}");
            }
            capture.finish();
        }
        device.wait_for_attempts(4, SOON);
        assert_eq!(dead.pending().len(), 2);
    }
}

#[test]
fn a_tun_device_carries_plain_packets() {
    let lab = Lab::builder().tun().build();
    assert_eq!(lab.device, "tun0");
    let _server = lab.serve(Behaviour::Hold);
    let capture = lab.capture();
    let both = both_families(|_| addresses::live(0, 80), |_| addresses::live_v6(0, 80));
    lab.dial(both).wait_for_connected(2, SOON);
    let dead = lab.dial(both_families(addresses::dead, addresses::dead_v6));
    for syn in capture.wait_for_attempts(4, SOON) {
        assert_eq!(syn.macs, None);
        assert_eq!(syn.checksum, Checksum::Good);
    }
    assert_eq!(dead.pending().len(), 2);
    capture.finish();
}

#[test]
fn a_delay_line_makes_a_round_trip_time() {
    let lab = Lab::builder().delay(Duration::from_millis(10)).build();
    let _server = lab.serve(Behaviour::Hold);
    let attempts = lab.dial([addresses::live(0, OPEN_PORT)]);
    let connected = attempts.wait_for_connected(1, SOON);
    let took = connected[0].took().unwrap();
    let away = Duration::from_millis(20);
    let info = attempts.tcp_info(0);
    assert!((away..=took).contains(&info.rtt), "{took:?}: {info:?}");
    let rtt = info.rtt.as_millis();
    let shown = clients::ss(&lab.client, "-tinH state established");
    assert!(shown.contains(&format!("rtt:{rtt}")), "{shown}");
    let serial = dial::serial_connects(&lab.client, 5, addresses::live(1, OPEN_PORT));
    // None is faster than the line; what a machine adds that is away for a moment, it
    // does not add to all.
    let fastest = *serial.iter().min().unwrap();
    let slack = Duration::from_millis(30) * slowness();
    assert!((away..away + slack).contains(&fastest), "{serial:?}");
}

#[test]
fn machines_behind_the_client_are_forwarded_for() {
    let lab = Lab::builder().machines_behind(3).build();
    let _server = lab.serve(Behaviour::Hold);
    let capture = lab.capture();
    for (n, machine) in (0..).zip(&lab.behind) {
        let inside = Capture::arriving(&lab.client, &lab.device_towards(n));
        let dialer = Dialer::new(machine);
        let both = both_families(|_| addresses::live(0, 80), |_| addresses::live_v6(0, 80));
        dialer.dial(both).wait_for_connected(2, SOON);
        let dead = dialer.dial(both_families(addresses::dead, addresses::dead_v6));
        for syn in inside.wait_for_attempts(4, SOON) {
            if syn.src.is_ipv4() {
                assert_eq!(syn.src.ip(), lab.address_behind(n));
            }
        }
        assert_eq!(dead.pending().len(), 2);
    }
    let seen = capture.wait_for_attempts(12, SOON);
    let sources: HashSet<_> = seen.iter().map(|syn| syn.src.ip()).collect();
    assert_eq!(sources.len(), 6);
}

#[test]
fn forged_answers_are_believed_only_with_the_isn() {
    for lab in [
        Lab::plain(),
        Lab::builder().vlan(&[7]).build(),
        Lab::builder().tun().build(),
    ] {
        for dead in [addresses::dead, addresses::dead_v6] {
            let capture = lab.capture();
            let forger = lab.forger();
            let attempts = lab.dial([dead(0), dead(1), dead(2)]);
            let syns = capture.wait_for_attempts(3, SOON);

            for syn in &syns {
                forger.answer(syn).guessing_the_isn().syn_ack();
                forger.answer(syn).guessing_the_isn().rst();
                forger
                    .answer(syn)
                    .guessing_the_isn()
                    .icmp(IcmpError::HostUnreachable);
                forger.answer(syn).rst_without_ack();
            }
            let pending = || attempts.pending().len() == 3;
            holds_for(
                "forged answers change nothing",
                Duration::from_millis(50),
                pending,
            );

            forger.answer(&syns[0]).syn_ack();
            forger.answer(&syns[1]).rst();
            forger.answer(&syns[2]).icmp(IcmpError::PortUnreachable);
            let ended = attempts.wait_for_all(SOON);
            let errors: Vec<_> = ended.iter().map(dial::Attempt::errno).collect();
            assert_eq!(
                errors,
                [None, Some(Errno::ECONNREFUSED), Some(Errno::ECONNREFUSED)]
            );
        }
    }
}

#[test]
fn a_server_behaves_as_told() {
    let lab = Lab::plain();
    let address = |port| addresses::live(0, port);
    let closing = Server::everywhere(&lab.far, 1, Behaviour::Close);
    let resetting = Server::everywhere(&lab.far, 2, Behaviour::Reset);
    let _web = Server::everywhere(&lab.far, 3, Behaviour::Http);
    let read = |port| {
        let stream = dial::connect(&lab.client, address(port), SOON);
        stream
            .and_then(|mut stream| stream.read(&mut [0; 1]))
            .map_err(|e| e.kind())
    };
    assert_eq!(read(1), Ok(0));
    assert_eq!(read(2), Err(ErrorKind::ConnectionReset));
    assert_eq!((closing.accepted(), resetting.accepted()), (1, 1));
    let fetched = clients::curl(&lab.client, &[&clients::url(address(3))]).expect_success();
    assert_eq!(fetched.stdout, "ok\n");
}

#[test]
fn a_dialing_program_has_a_cgroup_and_a_user() {
    let lab = Lab::plain();
    let capture = lab.capture();
    let cgroup = Cgroup::new("outer");
    let inner = cgroup.child("inner");
    let program = DialProgram::new(&lab.client)
        .to((0..20).map(addresses::dead))
        .every(Duration::from_millis(10))
        .close_after(Duration::from_millis(500))
        .in_cgroup(&inner);
    let mut program = program.leave_when_done().start();
    assert_eq!(inner.processes(), [program.pid()]);
    assert!(inner.path().ends_with("/inner"), "{}", inner.path());
    let told = std::fs::read_to_string(format!("/proc/{}/cgroup", program.pid())).unwrap();
    assert!(told.contains(&format!("0::{}\n", inner.path())), "{told}");
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", program.pid())).unwrap();
    assert_eq!(comm, "dialer\n");

    capture.wait_for_attempts(20, SOON);
    program.wait_for(20, "closed", SOON);
    wait_until("the program to leave", SOON, || !program.is_running());
    let reports = program.reports();
    let closed = reports.iter().filter(|report| report.event == "closed");
    let mut after: Vec<u128> = closed.map(|report| report.after.as_millis()).collect();
    after.sort_unstable();
    let (first, median) = (after[0], after[after.len() / 2]);
    assert!(first >= 500 && median < 700, "{after:?}");

    let user = lab
        .client
        .program("id")
        .arg("-u")
        .as_user(1234)
        .output()
        .expect_success();
    assert_eq!(user.stdout, "1234\n");
    let folder = inner.folder().to_owned();
    drop(inner);
    assert!(!folder.exists());
}

#[test]
fn a_cgroup_takes_its_processes_along() {
    let namespace = Namespace::new("cgroup");
    let cgroup = Cgroup::new("killed");
    let mut sleeper = namespace
        .program("sleep")
        .arg("60")
        .in_cgroup(&cgroup)
        .start();
    let folder = cgroup.folder().to_owned();
    let reaper = std::thread::spawn(move || {
        wait_until("the sleeper's end", SOON, || sleeper.ended().is_some());
    });
    drop(cgroup);
    assert!(!folder.exists());
    reaper.join().unwrap();
}

#[test]
fn mounts_are_of_their_own() {
    let lab = Lab::plain();
    let list = |mounts: &Mounts, path: &str| {
        let program = Program::new(&lab.client, "ls")
            .arg(path)
            .with_mounts(mounts);
        program.output().expect_success().stdout
    };
    let with = Mounts::with_bpffs(&lab.client);
    assert!(list(&with, "/sys/class/net").contains("eth0"));
    let filesystem = |mounts: &Mounts| {
        let stat = lab
            .client
            .program("stat")
            .args(["-f", "-c", "%T", "/sys/fs/bpf"]);
        stat.with_mounts(mounts).output().expect_success().stdout
    };
    assert_eq!(filesystem(&with), "bpf_fs\n");
    assert_ne!(filesystem(&Mounts::without_bpffs(&lab.client)), "bpf_fs\n");
}

#[test]
fn hook_states_show_what_was_attached() {
    let lab = Lab::plain();
    let before = HookState::of(&lab.client);
    assert!(before.filters.is_empty() && before.tcx.is_empty());
    assert_eq!(HookState::of(&lab.client), before);
    lab.client.tc("qdisc add dev eth0 clsact");
    let after = HookState::of(&lab.client);
    assert_ne!(after, before);
    assert!(after.qdiscs.contains("clsact"));
    lab.client.tc("qdisc del dev eth0 clsact");
    assert_eq!(HookState::of(&lab.client), before);
    // The tags of a VLAN device are two programs, where they stand in for one.
    let objects = BpfObjects::now();
    let tagged = Lab::builder().vlan(&[7]).build();
    let attached = HookState::of(&tagged.client).tcx.len();
    let loaded = BpfObjects::now().since(&objects);
    assert!(loaded.programs.len() >= attached && loaded.links.len() >= attached);
}

/// Something that behaves as `throttle run` does.
fn stand_in(namespace: &Namespace, script: &str) -> Program {
    namespace.program("sh").args(["-c", script])
}

#[test]
fn a_running_throttle_is_followed() {
    let namespace = Namespace::new("running");
    let mut running = Throttle::launch(stand_in(
        &namespace,
        "trap 'echo bye >&2; exit 7' INT; echo attached to eth0 >&2;
         echo '{\"event\": 1}'; echo '{\"event\": 2}'; while :; do sleep 0.01; done",
    ));
    let event = running.wait_event("the second", SOON, |event| event["event"] == 2);
    assert_eq!(running.events().last(), Some(&event));
    running.wait_log("eth0", SOON);
    running.signal(Signal::SIGSTOP);
    running.signal(Signal::SIGCONT);
    assert!(running.is_running());
    let finished = running.stop();
    assert_eq!(finished.code(), Some(7));
    assert!(finished.stderr.ends_with("bye\n"), "{}", finished.stderr);
}

#[test]
#[should_panic(expected = "no such device")]
fn a_throttle_that_does_not_start_says_why() {
    let namespace = Namespace::new("ended");
    Throttle::launch(stand_in(&namespace, "echo no such device >&2; exit 1"));
}

#[test]
fn thousands_of_attempts_are_captured() {
    let lab = Lab::plain();
    let capture = lab.capture();
    let attempts = lab.dial((0..5000).map(addresses::dead));
    let syns = capture.wait_for_attempts(5000, SOON);
    assert_eq!(attempts.pending().len(), 5000);
    attempts.close_all();
    assert_eq!(attempts.pending().len(), 0);
    let endpoints: HashSet<_> = syns.iter().map(|syn| syn.dst).collect();
    assert_eq!(endpoints.len(), 5000);
    assert_eq!(capture.finish().per_second().iter().sum::<u32>(), 5000);
}

#[test]
fn everyday_programs_run_in_the_lab() {
    let programs = ["curl", "nmap", "ss", "tcpdump"];
    if !programs
        .into_iter()
        .all(|program| Feature::Program(program).is_here())
    {
        return;
    }
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Http);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("everyday.pcap");
    let mut recording = clients::tcpdump(&lab.far, &lab.wire, &file);

    let address = addresses::live(0, OPEN_PORT);
    let scanned = clients::nmap(&lab.client, &format!("-sT -p 9,80 {}", address.ip()));
    let scanned = scanned.expect_success().stdout;
    assert!(
        scanned.contains("80/tcp open") && scanned.contains("9/tcp  closed"),
        "{scanned}"
    );
    let fetched = clients::curl(&lab.client, &[&clients::url(address)]);
    assert_eq!(fetched.expect_success().stdout, "ok\n");
    let attempt = lab.dial([addresses::dead(0)]);
    let shown = clients::ss(&lab.client, "-tanH state syn-sent");
    assert!(shown.contains(&attempt.all()[0].dst.to_string()), "{shown}");

    wait_until("a recording", SOON, || {
        std::fs::metadata(&file).unwrap().len() > 1000
    });
    recording.signal(Signal::SIGINT);
    wait_until("tcpdump to end", SOON, || recording.ended().is_some());
}
