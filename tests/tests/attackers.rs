//! Those who mean harm, against the whole of it with a daemon: floods beside an
//! honest program, a queue full of others, a starved daemon, and interfaces that go
//! away while attempts wait.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "frames/build.rs"]
#[expect(dead_code, reason = "some of it is for the tests of frames")]
mod build;
#[path = "enemies/generator.rs"]
mod generator;
#[path = "enemies/runner.rs"]
#[expect(dead_code, reason = "some of it is for the tests of enemies")]
mod runner;
#[path = "frames/wire.rs"]
#[expect(dead_code, reason = "some of it is for the tests of frames")]
mod wire;

use etherparse::PacketBuilder;
use nix::{libc, sys::signal::Signal};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use throttle_tests::{
    Behaviour, Capture, Cgroup, Dialer, Lab, Namespace, Pace, Throttle,
    addresses::{self, OPEN_PORT, dead, live},
    dial::{DialProgram, now_ns},
    frame::Syn,
    process::Mounts,
    throttle_cmd::{status, tallies},
    timing::millis,
    wait_for,
};

const SOON: Duration = Duration::from_secs(5);

fn times(syns: &[Syn]) -> Vec<u64> {
    syns.iter().map(|syn| syn.at_ns).collect()
}

// ---- floods ---------------------------------------------------------------

/// Waits until no scope has anything half-open or in its queue, and returns the sums of
/// what all of them counted.
#[track_caller]
fn counts_when_over(
    lab: &Lab,
    mounts: Option<&Mounts>,
    timeout: Duration,
) -> BTreeMap<String, u64> {
    let scopes = wait_for("nothing half-open, nothing queued", timeout, || {
        let shown = status(&lab.client, mounts);
        let scopes = shown["throttles"][0]["scopes"].as_array().unwrap().clone();
        let is_over = |scope: &Value| scope["half_open"] == 0 && scope["queued"] == 0;
        // Of the flood, and of the honest.
        (scopes.len() > 1 && scopes.iter().all(is_over)).then_some(scopes)
    });
    let mut sums = BTreeMap::new();
    for scope in &scopes {
        for (name, count) in scope["tallies"].as_object().unwrap() {
            *sums.entry(name.clone()).or_default() += count.as_u64().unwrap();
        }
    }
    sums
}

/// Asserts that so many attempts were counted, and what became of each.
#[track_caller]
fn assert_all_accounted(counts: &BTreeMap<String, u64>, attempts: u64) {
    let accounted = counts["passed"] + counts["deferred"] + counts["overflowed"];
    assert_eq!(
        (counts["attempts"], accounted),
        (attempts, attempts),
        "{counts:?}"
    );
}

#[test]
fn a_flood_in_one_cgroup_delays_no_program_of_another() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let honest = Cgroup::new("honest");
    let throttle = lab.throttle(&[
        "--scope=cgroup",
        "--limit=10",
        "--rate=20/s",
        "--attempt-timeout=2s",
        "--max-delay=2s",
    ]);
    let ifindex = lab.client.ifindex(&lab.device);
    let (sent, took) = lab.client.run(|| {
        let mut took = None;
        let sent = generator::flood(ifindex, || {
            took.get_or_insert_with(|| {
                let began_ns = now_ns();
                let program = DialProgram::new(&lab.client)
                    .to((0..40).map(|n| live(n, OPEN_PORT)))
                    .in_cgroup(&honest)
                    .start();
                program.wait_for(40, "connected", SOON);
                millis(began_ns, now_ns())
            });
        });
        (sent, took.unwrap())
    });
    // The wall between them, and not the flood, is what is measured: on a CPU
    // that floods, everything takes a while.
    assert!(took < 3_000.0, "{took} ms");
    let counts = counts_when_over(&lab, None, Duration::from_secs(5));
    assert_all_accounted(&counts, sent + 40);
    assert_eq!(throttle.limit_events().len(), 1);
    eprintln!(
        "measured: flood beside another cgroup: {sent} SYNs in {:?} in one cgroup: {} overflowed, {} were deferred, {} released; 40 of another \
         connected within {took:.0} ms",
        generator::LASTS,
        counts["overflowed"],
        counts["deferred"],
        counts["released"]
    );
    throttle.stop().expect_success();
}

/// A daemon that hangs, or is no more, in the middle of a flood: what waits gets out
/// when its sender asks again, and of the flood no more than the rate.
#[test]
fn a_daemon_that_is_stopped_or_killed_beside_a_flood_costs_nobody_a_connection() {
    /// Attempts to the dead, and behind them to those who answer.
    const DEAD: u32 = 25;
    const LIVE: u32 = 5;
    const PACE: Pace = Pace {
        limit: 10,
        per_second: 20,
    };
    /// Of the flood's two seconds.
    const INTO_THE_FLOOD: Duration = Duration::from_millis(500);
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        let lab = Lab::plain();
        let _server = lab.serve(Behaviour::Hold);
        let mounts = Mounts::with_bpffs(&lab.client);
        let honest = Cgroup::new("honest");
        let args = [
            "-i",
            &lab.device,
            "--keep",
            "--scope=cgroup",
            "--limit=10",
            "--rate=20/s",
            "--attempt-timeout=2s",
            "--max-delay=8s",
        ];
        let throttle = Throttle::start_with(&lab.client, &mounts, &args);
        let capture = lab.capture();
        let ifindex = lab.client.ifindex(&lab.device);
        // Who starts it has to outlive it.
        let waiting = DialProgram::new(&lab.client)
            .to((0..DEAD).map(dead))
            .to((0..LIVE).map(|n| live(n, OPEN_PORT)))
            .in_cgroup(&honest)
            .start();
        let mut signalled = false;
        let sent = lab.client.run(|| {
            let began = Instant::now();
            generator::flood(ifindex, || {
                if !signalled && began.elapsed() > INTO_THE_FLOOD {
                    signalled = true;
                    throttle.signal(signal);
                }
            })
        });
        assert!(signalled);
        let mut out = Vec::new();
        for to in (0..DEAD).map(dead) {
            out.push(capture.wait_for_syn_to(to, Duration::from_secs(30)).at_ns);
        }
        waiting.wait_for(LIVE as usize, "connected", Duration::from_secs(30));
        assert_eq!(waiting.count("failed"), 0);
        let first = capture.so_far().first_syns();
        let (honest_ones, flood): (Vec<Syn>, Vec<Syn>) = first.into_iter().partition(|syn| {
            (0..DEAD).map(dead).any(|to| to == syn.dst)
                || (0..LIVE).any(|n| live(n, OPEN_PORT) == syn.dst)
        });
        assert_eq!(honest_ones.len(), (DEAD + LIVE) as usize);
        // As many as a second's worth at once when only senders offer.
        PACE.assert_line(&times(&flood), Duration::from_secs(1));
        let again = if signal == Signal::SIGSTOP {
            throttle.signal(Signal::SIGCONT);
            throttle
        } else {
            let _ = throttle.wait(SOON);
            Throttle::start_with(&lab.client, &mounts, &args)
        };
        waiting.kill();
        let counts = counts_when_over(&lab, Some(&mounts), Duration::from_secs(30));
        assert_all_accounted(&counts, sent + u64::from(DEAD + LIVE));
        eprintln!(
            "measured: daemon {signal} beside a flood: {sent} SYNs in {:?}, {} of which went \
             out; {DEAD} dead attempts of another cgroup out within {:.1} s, {LIVE} others \
             connected, none failed",
            generator::LASTS,
            flood.len(),
            millis(out[0], *out.iter().max().unwrap()) / 1e3
        );
        again.stop().expect_success();
    }
}

// ---- the queue ------------------------------------------------------------

/// SYNs to the dead from so many addresses that nobody has, by way of the gateway.
fn dial_from_forged_sources(lab: &Lab, count: u8) {
    let gateway = lab.device_towards(0);
    for device in ["all", &gateway] {
        lab.client
            .set_sysctl(&format!("net.ipv4.conf.{device}.rp_filter"), "0");
    }
    let shown = lab.client.ip(&format!("-br link show {gateway}"));
    let mac = shown.split_whitespace().nth(2).unwrap();
    let bytes: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let machine: &Namespace = &lab.behind[0];
    let ifindex = machine.ifindex("eth0");
    machine.run(|| {
        let socket = wire::socket(ifindex);
        for n in 0..count {
            let SocketAddr::V4(to) = dead(600 + u32::from(n)) else {
                panic!("of version 6")
            };
            let builder = PacketBuilder::ethernet2([2; 6], *bytes.first_chunk().unwrap())
                .ipv4([10, 99, 0, 1 + n], to.ip().octets(), 64)
                .tcp(5_000, to.port(), 0x1234_5678, 64_240)
                .syn();
            let mut frame = Vec::new();
            builder.write(&mut frame, &[]).unwrap();
            wire::send(&socket, &frame);
        }
    });
}

#[test]
fn an_honest_program_is_released_in_its_turn_however_many_others_queue() {
    const PACE: Pace = Pace {
        limit: 10,
        per_second: 20,
    };
    const SOURCES: u8 = 30;
    const CHILDREN: u32 = 60;
    const OPENED: u32 = 1_500;
    let lab = Lab::builder().machines_behind(1).build();
    let (attacking, honest) = (Cgroup::new("attacker"), Cgroup::new("honest"));
    let throttle = PACE.throttle(&lab.client, &lab.device, &["--max-delay=90s"]);
    let capture = lab.capture();
    // Thousands that are opened and closed again, from one line,
    let hasty: Vec<_> = (0..2)
        .map(|n| {
            DialProgram::new(&lab.client)
                .to((1_000 + n * OPENED..1_000 + (n + 1) * OPENED).map(dead))
                .every(Duration::from_millis(2))
                .close_after(Duration::from_millis(700))
                .in_cgroup(&attacking)
                .start()
        })
        .collect();
    // from a line of each child's own, and from sources that nobody has.
    let children = DialProgram::new(&lab.client)
        .to((100..100 + CHILDREN).map(dead))
        .by_children()
        .in_cgroup(&attacking)
        .start();
    children.wait_for(CHILDREN as usize, "started", Duration::from_secs(60));
    dial_from_forged_sources(&lab, SOURCES);
    for program in &hasty {
        program.wait_for(200, "started", SOON);
    }
    let program = DialProgram::new(&lab.client)
        .to((900..903).map(dead))
        .in_cgroup(&honest)
        .start();
    program.wait_for(3, "started", SOON);
    let started_ns = now_ns();
    // A cgroup is a group, and each forged source is one.
    let groups = usize::from(SOURCES) + 1;
    let mut ahead = Vec::new();
    for (n, to) in (1..).zip((900..903).map(dead)) {
        let syn = capture.wait_for_syn_to(to, Duration::from_secs(20));
        let frames = capture.so_far();
        let first = frames.first_syns();
        let others = first.iter().filter(|other| {
            (started_ns..syn.at_ns).contains(&other.at_ns)
                && !(900..903).map(dead).any(|own| own == other.dst)
        });
        let others = others.count();
        assert!(others <= n * groups, "{others} went before number {n}");
        ahead.push(others);
    }
    for program in &hasty {
        program.wait_for(OPENED as usize, "started", Duration::from_secs(60));
    }
    PACE.assert_line(&times(&capture.so_far().first_syns()), Duration::ZERO);
    let counts = tallies(&throttle.stop(), &lab.device);
    assert_eq!(
        counts["attempts"],
        counts["passed"] + counts["deferred"] + counts.get("overflowed").copied().unwrap_or(0),
        "{counts:?}"
    );
    eprintln!(
        "measured: queue attacker: beside {} attempts that are opened and closed, {CHILDREN} children and {SOURCES} forged \
         sources: {ahead:?} of theirs before the first, second and third of an honest program; {counts:?}",
        2 * OPENED
    );
}

// ---- a starved daemon -----------------------------------------------------

/// Lets all threads of a process run on these CPUs, and only when nobody else wants to.
fn starve(pid: u32, cpus: &[usize]) {
    let parameters = libc::sched_param { sched_priority: 0 };
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let name = thread.unwrap().file_name();
        let tid: libc::pid_t = name.to_str().unwrap().parse().unwrap();
        // SAFETY: the parameters live until it returns.
        let result =
            unsafe { libc::sched_setscheduler(tid, libc::SCHED_IDLE, &raw const parameters) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        runner::keep_on(tid, cpus);
    }
}

#[test]
fn beside_a_starved_daemon_the_rate_holds_and_nobody_fails() {
    const PACE: Pace = Pace {
        limit: 10,
        per_second: 10,
    };
    const ATTEMPTS: usize = 70;
    let lab = Lab::plain();
    let throttle = PACE.throttle(&lab.client, &lab.device, &[]);
    let capture = lab.capture();
    starve(throttle.pid(), &runner::two_cpus());
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        let _until_the_end = generator::StopWhenDropped(&stop);
        for cpu in runner::two_cpus() {
            let stop = &stop;
            threads.spawn(move || {
                runner::stay_on(cpu);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let attempts = lab.dial((0..70).map(dead));
        let syns = capture.wait_for_attempts(ATTEMPTS, Duration::from_secs(40));
        let times = times(&syns);
        // Senders may catch up on a second when the daemon is taken for dead.
        PACE.assert_line(&times, Duration::from_secs(1));
        assert!(attempts.failed().is_empty());
        eprintln!(
            "measured: starved daemon: at SCHED_IDLE beside two busy loops: {ATTEMPTS} attempts out within {:.1} s (6.0 by \
             the rate), none failed, by second {:?}",
            millis(times[0], *times.last().unwrap()) / 1e3,
            capture.so_far().per_second()
        );
    });
    throttle.stop().expect_success();
}

// ---- interfaces -----------------------------------------------------------

/// What happens to the interface in whose queue attempts wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    DownAndUp,
    Renamed,
    Moved,
    Deleted,
}

#[test]
fn an_interface_that_goes_away_with_its_queue_leaves_the_others_alone() {
    const PACE: Pace = Pace {
        limit: 2,
        per_second: 5,
    };
    const EACH: u32 = 20;
    for fate in [Fate::DownAndUp, Fate::Renamed, Fate::Moved, Fate::Deleted] {
        let lab = Lab::builder().machines_behind(1).build();
        let elsewhere = Namespace::new("elsewhere");
        let other = lab.device_towards(0);
        let to = IpAddr::V4(lab.dead_behind(0));
        let mut throttle = PACE.throttle(&lab.client, &lab.device, &["-i", &other]);
        let captures = (lab.capture(), Capture::arriving(&lab.behind[0], "eth0"));
        let first = lab.dial((0..EACH).map(dead));
        let second = Dialer::new(&lab.client)
            .dial((0..EACH).map(|n| SocketAddr::new(to, 2_000 + u16::try_from(n).unwrap())));
        captures.0.wait_for_attempts(3, SOON);
        let device = &lab.device;
        let far = IpAddr::V4(addresses::FAR);
        let neighbour = lab.client.ip(&format!("neigh show {far}"));
        match fate {
            Fate::DownAndUp => {
                lab.client.ip(&format!("link set {device} down"));
            }
            Fate::Renamed => {
                lab.client.ip(&format!("link set {device} down"));
                lab.client.ip(&format!("link set {device} name wan0"));
            }
            Fate::Moved => {
                lab.client
                    .ip(&format!("link set {device} netns {}", elsewhere.path()));
            }
            Fate::Deleted => {
                lab.client.ip(&format!("link delete {device}"));
            }
        }
        // The other one's queue goes on at its rate, as if nothing had been.
        let span = PACE.span(EACH as usize);
        let out = captures
            .1
            .wait_for_attempts(EACH as usize, span + Duration::from_secs(3));
        PACE.assert_line(&times(&out), Duration::ZERO);
        assert!(second.failed().is_empty());
        assert!(throttle.is_running(), "{fate:?}: {:?}", throttle.log());
        if matches!(fate, Fate::Moved | Fate::Deleted) {
            throttle.wait_log("vanished", SOON);
        } else {
            let device = if fate == Fate::Renamed {
                "wan0"
            } else {
                device
            };
            lab.client.ip(&format!("link set {device} up"));
            let mac = neighbour
                .split_whitespace()
                .skip_while(|word| *word != "lladdr")
                .nth(1);
            lab.client.ip(&format!(
                "neigh replace {far} lladdr {} dev {device} nud permanent",
                mac.unwrap()
            ));
            lab.client
                .ip(&format!("route replace default via {far} dev {device}"));
            // Whoever waited there gets out, and none has failed.
            let out = captures
                .0
                .wait_for_attempts(EACH as usize, Duration::from_secs(30));
            PACE.assert_line(&times(&out), Duration::ZERO);
            assert!(first.failed().is_empty(), "{fate:?}");
        }
        let finished = throttle.stop();
        let counts = tallies(&finished, &other);
        assert_eq!(
            (counts["passed"], counts["released"]),
            (2, 18),
            "{counts:?}"
        );
        eprintln!(
            "measured: interface {fate:?} with a queue: the other interface let out {EACH} at its rate; here {} of {EACH} got \
             out, {} failed",
            captures.0.attempts(),
            first.failed().len()
        );
    }
}
