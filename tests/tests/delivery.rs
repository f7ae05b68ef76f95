//! Events get out, whatever their reader does: nobody waits for it, nothing
//! grows, and what is lost is told exactly.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use etherparse::PacketBuilder;
use jiff::Timestamp;
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};
use throttle_tests::{
    Lab, Pace, Throttle,
    addresses::{CLIENT, dead},
    dial::{DialProgram, now_ns},
    frame::Syn,
    inject::Forger,
    wait_for, wait_until,
};

const SOON: Duration = Duration::from_secs(20);
/// `ETH_P_IP` of linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;
/// How long the reader stops.
const STALL: Duration = Duration::from_secs(30);

/// `throttle run` whose standard output is ours to read, or not to.
struct Stalled {
    child: Child,
    log: Receiver<String>,
}

impl Stalled {
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let mut child = lab.client.run(|| {
            Command::new(Throttle::path())
                .args(["run", "-o", "json", "-i", &lab.device])
                .args(args)
                .env("RUST_LOG", "info")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let (line, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|l| line.send(l))
        });
        wait_for("throttle to be at work", SOON, || {
            log.try_iter().find(|line| line.contains("attached"))
        });
        Self { child, log }
    }

    fn interrupt(&self) {
        nix::sys::signal::kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)
            .unwrap();
    }

    /// Most memory it has had, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Machines that dial two dead addresses each, which is one too many.
struct Machines {
    forger: Forger,
    dialled: u16,
}

impl Machines {
    const COUNT: u16 = 600;

    fn new(lab: &Lab) -> Self {
        Self {
            forger: Forger::new(&lab.client, &lab.device),
            dialled: 0,
        }
    }

    fn dial(&mut self) {
        self.dialled += 1;
        for machine in 0..Self::COUNT {
            let [high, low] = machine.to_be_bytes();
            for port in [1, 2] {
                let from = [172, 16, high, low];
                let isn = u32::from(self.dialled) * 1_000 + u32::from(port);
                let mut frame = Vec::new();
                PacketBuilder::ethernet2([2; 6], [4; 6])
                    .ipv4(from, [198, 51, 100, 9], 64)
                    .tcp(40_000 + port, 1024, isn, 64_240)
                    .syn()
                    .write(&mut frame, &[])
                    .unwrap();
                self.forger.send(ETH_P_IP, &frame);
            }
        }
    }
}

/// What the numbers of the events say, read one after another.
#[derive(Debug, Default)]
struct Account {
    delivered: u64,
    lost: u64,
    last: u64,
    reached: u64,
    cleared: u64,
}

impl Account {
    #[track_caller]
    fn add(&mut self, event: &Value) {
        let number = event["event"]["sequence"].as_u64().unwrap();
        if let Some(lost) = event["throttle"]["lost"].as_u64() {
            self.lost += lost;
            self.last += lost;
        } else {
            self.delivered += 1;
            self.last += 1;
            match event["event"]["action"].as_str().unwrap() {
                "limit-cleared" => self.cleared += 1,
                "connection-attempt-deferred" => self.reached += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!(number, self.last, "no gap without a report: {event:#}");
    }
}

#[test]
fn a_reader_that_stops_holds_nobody_up_and_each_loss_is_told() {
    const PACE: Pace = Pace {
        limit: 1,
        per_second: 5,
    };
    const ATTEMPTS: u32 = 60;
    let lab = Lab::plain();
    let mut throttle = Stalled::start(
        &lab,
        &[
            "--scope=source",
            "--limit=1",
            "--rate=5/s",
            "--attempt-timeout=60s",
        ],
    );
    let capture = lab.capture();
    let mut machines = Machines::new(&lab);
    let stalled = Instant::now();
    let attempts = lab.dial((0..ATTEMPTS).map(dead));

    // Episodes begin and end while nobody reads: one is over when its scope has
    // been quiet for ten seconds.
    for round in 0..3 {
        let next = Duration::from_secs(12 * round);
        wait_until("the next round", STALL, || stalled.elapsed() >= next);
        machines.dial();
    }
    wait_until("the reader to come back", 2 * STALL, || {
        stalled.elapsed() >= STALL
    });
    let peak = throttle.peak_kib();

    // Enforcement has gone on, to the packet.
    let frames = capture.finish();
    let ours: Vec<Syn> = frames
        .first_syns()
        .into_iter()
        .filter(|syn| syn.src.ip() == CLIENT)
        .collect();
    let lateness = PACE.assert_exact(&attempts.all(), &ours);
    assert!(peak < 64 * 1024, "{peak} KiB");

    let mut out = BufReader::new(throttle.child.stdout.take().unwrap()).lines();
    let mut account = Account::default();
    let mut next = || {
        out.next()
            .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
    };
    while account.lost == 0 {
        account.add(&next().expect("a loss to be told"));
    }
    throttle.interrupt();
    while let Some(event) = next() {
        account.add(&event);
    }
    assert!(throttle.child.wait().unwrap().success());

    // The kernel's own count of the records that it wrote.
    let log: Vec<String> = throttle.log.iter().collect();
    let records: u64 = log
        .iter()
        .filter(|line| line.contains("scopes together"))
        .filter_map(|line| line.split_once("episodes "))
        .map(|(_, count)| count.split(|c: char| !c.is_ascii_digit()).next().unwrap())
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(records, 3 * u64::from(Machines::COUNT) + 1, "{log:#?}");
    // Each of them is an event, and its end another one.
    assert_eq!(account.delivered + account.lost, 2 * records, "{account:?}");
    assert!(account.reached > 0 && account.cleared > 0, "{account:?}");
    eprintln!(
        "nobody read for 30 s: {records} records of the kernel, {} events delivered and {} reported \
         lost; 60 attempts meanwhile: {lateness}; daemon at most {peak} KiB",
        account.delivered, account.lost
    );
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly_and_at_once() {
    let lab = Lab::plain();
    let mut throttle = Stalled::start(&lab, &[]);
    // Nothing was told, and nothing will be.
    drop(throttle.child.stdout.take());
    let status = wait_for("throttle to end", SOON, || {
        throttle.child.try_wait().unwrap()
    });
    assert!(status.success(), "{status}");
    let log: Vec<String> = throttle.log.iter().collect();
    assert!(log.iter().any(|line| line.contains("detached")), "{log:?}");
    assert!(
        !log.iter()
            .any(|line| line.contains("WARN") || line.contains("ERROR")),
        "{log:?}"
    );
}

/// `throttle run` that has logged more than a pipe holds, and nobody reads it. It
/// is at work.
fn unheard(lab: &Lab) -> Child {
    let mut throttle = lab.client.run(|| {
        Command::new(Throttle::path())
            .args(["run", "-o", "json", "-i", &lab.device])
            .args(["--limit=1", "--rate=5/s"])
            .env("RUST_LOG", "trace")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut events = BufReader::new(throttle.stdout.take().unwrap()).lines();
    // It cannot say when it is at work: somebody has to meet the limit.
    let told = thread::spawn(move || (events.next().unwrap().unwrap(), events));
    let mut attempts = Vec::new();
    wait_until("an event", SOON, || {
        attempts.push(lab.dial([dead(1), dead(2)]));
        told.is_finished()
    });
    let (event, mut events) = told.join().unwrap();
    assert!(event.contains("4226"));
    thread::spawn(move || while let Some(Ok(_)) = events.next() {});
    throttle
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let lab = Lab::plain();
    let mut throttle = unheard(&lab);
    let pid = Pid::from_raw(throttle.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let status = wait_for("throttle to end", SOON, || throttle.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn an_error_that_nobody_reads_ends_it_all_the_same() {
    let lab = Lab::plain();
    let mut throttle = unheard(&lab);
    lab.client.ip(&format!("link del {}", lab.device));
    let status = wait_for("throttle to end", SOON, || throttle.try_wait().unwrap());
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn events_come_soon() {
    const EPISODES: usize = 200;
    let lab = Lab::plain();
    let mut throttle = Stalled::start(
        &lab,
        &[
            "--scope=process",
            "--limit=1",
            "--rate=1/m",
            "--known-for=0",
        ],
    );
    let (event, came) = channel();
    let stdout = BufReader::new(throttle.child.stdout.take().unwrap());
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if event.send((now_ns(), line)).is_err() {
                return;
            }
        }
    });
    let mut took = Vec::new();
    for _ in 0..EPISODES {
        let program = DialProgram::new(&lab.client).to([dead(1), dead(2)]).start();
        let (came_ns, event) = wait_for("its event", SOON, || {
            let (came_ns, line) = came.recv_timeout(SOON).ok()?;
            let event: Value = serde_json::from_str(&line).unwrap();
            (event["event"]["action"] == "connection-attempt-deferred").then_some((came_ns, event))
        });
        assert_eq!(event["process"]["pid"], program.pid());
        let at: Timestamp = event["@timestamp"].as_str().unwrap().parse().unwrap();
        took.push(i128::from(came_ns) - at.as_nanosecond());
        program.kill();
    }
    took.sort_unstable();
    let ms = |share: usize| took[(took.len() - 1) * share / 100] as f64 / 1e6;
    eprintln!(
        "from the first deferred SYN to the line on stdout, {} episodes of programs: median {:.2} ms, \
         99th percentile {:.2} ms, worst {:.2} ms",
        took.len(),
        ms(50),
        ms(99),
        ms(100)
    );
}
