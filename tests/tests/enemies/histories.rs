//! Long random histories, packet by packet beside the core on the host.
//!
//! Time is the kernel's own here. So before each packet the state is read from the
//! tables, the core is asked on copies of it what should come of the packet at the
//! moment before and at the moment after it, and one of these must have come.
//! Copies of the daemon's come from a socket of its own, through a device.

use super::{
    bench::{Bench, DAY, Entry, SECOND, interface, timeless},
    build::{Dial, Numbers},
    flood::{add_wire, await_wire},
    model::Model,
    wire,
};
use nix::libc;
use std::{
    ffi::CStr,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr, thread,
    time::Duration,
};
use throttle::clock::monotonic_ns;
use throttle_common::{
    decision::{Offer, Verdict},
    flow::{Flow, Phase},
    frame::Family,
    policy::{Daemon, Mode, Policy},
    record::{RecordKind, TALLIES, Tally},
};
use throttle_tests::Namespace;

const PACKETS: usize = 1_500;
/// A packet that took longer has met too many moments to be judged.
const LONG_NS: u64 = SECOND / 200;
const MS: u64 = SECOND / 1_000;

/// What came of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    passed: bool,
    half_open: u64,
    queued: u64,
    in_line: u64,
    flow: Option<Stands>,
    /// Whether its endpoint has answered, and nothing has gone unanswered since.
    known: bool,
    tallies: [u64; TALLIES],
    not_needed: u64,
    records: Vec<RecordKind>,
}

/// Where an attempt stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stands {
    phase: &'static str,
    isn: u32,
    handed_to: u64,
    is_on_wire: bool,
    too_long: u32,
}

impl From<&Flow> for Stands {
    fn from(flow: &Flow) -> Self {
        let phase = match flow.phase() {
            Phase::Ended => "ended",
            Phase::Deferred => "deferred",
            Phase::Counted(_) => "counted",
            Phase::Known => "known",
        };
        Self {
            phase,
            isn: flow.isn,
            handed_to: flow.handed_to(),
            is_on_wire: flow.is_on_wire(),
            too_long: flow.too_long,
        }
    }
}

/// A packet.
#[derive(Debug, Clone, Copy)]
enum Packet {
    Syn { offer: Offer, data: usize },
    SynAck(u32),
    Reset(u32),
    Error(u32),
}

/// The programs at a device, with a sender and a daemon.
struct Stage {
    bench: Bench,
    ifindex: u32,
    sender: OwnedFd,
    daemons: OwnedFd,
    policy: Policy,
    daemon: Daemon,
}

impl Stage {
    fn outcome(&self, dial: Dial, passed: bool, records: Vec<RecordKind>) -> Outcome {
        let (half_open, queued) = self.bench.counts(self.ifindex);
        Outcome {
            passed,
            half_open,
            queued,
            in_line: self
                .bench
                .lines()
                .iter()
                .map(|line| line.queued.total())
                .sum(),
            flow: self.bench.maps.flow(&dial.key()).as_ref().map(Stands::from),
            known: self.bench.is_known(&dial.key().endpoint()),
            tallies: self.bench.maps.tallies(&interface(self.ifindex)).0,
            not_needed: self.bench.unhandled("not_needed"),
            records,
        }
    }

    /// The core, with a copy of all that the kernel knows about this attempt.
    fn model(&self, dial: Dial) -> Model {
        let (key, subject) = (dial.key(), interface(self.ifindex));
        let mut model = Model::new(&self.policy, self.ifindex);
        model.daemon = self.daemon;
        if let Some(scope) = self.bench.maps.scope(&subject) {
            model.scope = scope;
        }
        // All of them come from one socket: they stand in one line.
        if let Some(line) = self.bench.lines().pop() {
            model.line = line;
        }
        if let Some(flow) = self.bench.maps.flow(&key) {
            model.flows.insert(key, flow);
        }
        if let Some(at_ns) = self.bench.answered_at(&key.endpoint()) {
            model.answered_at(key.endpoint(), at_ns);
        }
        model.tallies = self.bench.maps.tallies(&subject);
        model.not_needed = self.bench.unhandled("not_needed");
        model
    }

    /// Has a packet go by; returns when it did and what came of it.
    fn play(&self, dial: Dial, packet: Packet) -> ([u64; 2], Outcome) {
        let before_ns = monotonic_ns();
        let passed = match packet {
            Packet::Syn { offer, data } => {
                let sent = sent_by("eth0");
                let socket = match offer {
                    Offer::Sender => &self.sender,
                    Offer::Daemon => &self.daemons,
                };
                wire::send(socket, &dial.syn_with_data(data).ether());
                sent_by("eth0") != sent
            }
            Packet::SynAck(ack) => {
                self.bench.run(Entry::InIngress, &dial.syn_ack(ack).ether());
                true
            }
            Packet::Reset(ack) => {
                self.bench.run(Entry::InIngress, &dial.reset(ack).ether());
                true
            }
            Packet::Error(seq) => {
                self.bench
                    .run(Entry::InIngress, &dial.unreachable(seq).ether());
                true
            }
        };
        let after_ns = monotonic_ns();
        let records = self.bench.record_kinds();
        ([before_ns, after_ns], self.outcome(dial, passed, records))
    }
}

/// What the core makes of a packet at these times.
fn expected(mut model: Model, dial: Dial, packet: Packet, times: [u64; 3]) -> Outcome {
    let passed = match packet {
        Packet::Syn { offer, data } => {
            let len = dial.syn_with_data(data).ether().len();
            let verdict = model.syn(dial, u32::try_from(data).unwrap(), len, offer, times);
            verdict == Verdict::Pass
        }
        Packet::SynAck(ack) => {
            model.answer(dial, ack, Tally::Answered, times[0]);
            true
        }
        Packet::Reset(ack) => {
            model.answer(dial, ack, Tally::Refused, times[0]);
            true
        }
        Packet::Error(seq) => {
            model.error(dial, seq);
            true
        }
    };
    Outcome {
        passed,
        half_open: model.scope.half_open.total(),
        queued: model.scope.queued.total(),
        in_line: model.line.queued.total(),
        flow: model.flows.get(&dial.key()).map(Stands::from),
        known: model.has_answered(&dial.key().endpoint()),
        tallies: model.tallies.0,
        not_needed: model.not_needed,
        records: model.records,
    }
}

/// How many packets a device of this namespace has sent.
fn sent_by(device: &str) -> u32 {
    let mut first = ptr::null_mut();
    // SAFETY: it fills in the pointer.
    assert_eq!(unsafe { libc::getifaddrs(&raw mut first) }, 0);
    let (mut at, mut sent) = (first, None);
    // SAFETY: a list that ends with null; of a packet address the data are
    // statistics (getifaddrs(3)), numbers of 32 bits of which the second is this.
    unsafe {
        while let Some(entry) = at.as_ref() {
            let is_link = entry
                .ifa_addr
                .as_ref()
                .is_some_and(|address| i32::from(address.sa_family) == libc::AF_PACKET);
            if is_link && CStr::from_ptr(entry.ifa_name).to_bytes() == device.as_bytes() {
                sent = Some(entry.ifa_data.cast::<u32>().add(1).read());
            }
            at = entry.ifa_next;
        }
        libc::freeifaddrs(first);
    }
    sent.unwrap()
}

fn cookie_of(socket: &OwnedFd) -> u64 {
    let mut cookie = 0_u64;
    let mut len = u32::try_from(size_of_val(&cookie)).unwrap();
    // SAFETY: value and length belong together.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    cookie
}

/// One of a few attempts.
fn any_dial(numbers: &mut Numbers) -> Dial {
    Dial {
        family: [Family::V4, Family::V6][numbers.below(2)],
        host: u8::try_from(1 + numbers.below(4)).unwrap(),
        ports: (u16::try_from(40_000 + numbers.below(2)).unwrap(), 80),
        isn: 0x1000 * u32::try_from(1 + numbers.below(30) / 29).unwrap(),
    }
}

/// Other settings.
fn change(policy: &mut Policy, numbers: &mut Numbers) {
    let one_of = |numbers: &mut Numbers, of: &[u64]| of[numbers.below(of.len())];
    match numbers.below(9) {
        0 => policy.limit = numbers.next() % 5,
        1 => policy.interval_ns = one_of(numbers, &[20 * MS, 100 * MS, SECOND]),
        2 => policy.attempt_timeout_ns = one_of(numbers, &[SECOND, 2 * SECOND]),
        3 => policy.max_delay_ns = one_of(numbers, &[SECOND, 3 * SECOND]),
        4 => policy.known_for_ns = one_of(numbers, &[0, 300 * MS, DAY]),
        5 => policy.line_capacity = 1 + numbers.next() % 5,
        6 => policy.queue_capacity = 1 + numbers.next() % 6,
        7 => policy.mode = Mode::Monitor as u32,
        _ => policy.mode = Mode::Enforce as u32,
    }
}

#[test]
fn in_any_history_the_kernel_decides_as_the_core_does_on_the_host() {
    let namespace = Namespace::new("histories");
    add_wire(&namespace);
    let ifindex = namespace.ifindex("eth0");
    namespace.run(|| {
        await_wire(&namespace);
        for seed in [7, 4_226] {
            replay(ifindex, seed);
        }
    });
}

fn replay(ifindex: u32, seed: u64) {
    let policy = Policy {
        interval_ns: 100 * MS,
        attempt_timeout_ns: SECOND,
        max_delay_ns: SECOND,
        known_for_ns: 300 * MS,
        line_capacity: 4,
        queue_capacity: 6,
        ..timeless(2)
    };
    let mut stage = Stage {
        bench: Bench::new(&policy),
        ifindex,
        sender: wire::socket(ifindex),
        daemons: wire::socket(ifindex),
        policy,
        daemon: Daemon::default(),
    };
    let _link = stage.bench.attach_to_egress(Entry::OutEgress, "eth0");
    let mut numbers = Numbers(seed);
    let (mut verdicts, mut skipped, mut changes) = ([0; 2], 0, 0);
    for round in 0..PACKETS {
        match numbers.below(12) {
            0 => {
                change(&mut stage.policy, &mut numbers);
                stage.bench.maps.set_policy(&stage.policy).unwrap();
                changes += 1;
            }
            1 if numbers.below(3) == 0 => {
                let generation = 1 + numbers.next() % 2;
                let alive_until_ns = match numbers.below(4) {
                    0 => 0,
                    1 => monotonic_ns() + 50 * MS,
                    _ => u64::MAX,
                };
                stage.daemon = Daemon {
                    generation,
                    cookie: cookie_of(&stage.daemons),
                    alive_until_ns,
                };
                stage.bench.maps.set_daemon(&stage.daemon).unwrap();
            }
            // Time is what this is about.
            2..4 => thread::sleep(Duration::from_millis(numbers.next() % 40)),
            4 if numbers.below(25) == 0 => thread::sleep(Duration::from_millis(700)),
            _ => {}
        }
        let mut dial = any_dial(&mut numbers);
        let number = match numbers.below(4) {
            0 => dial.isn ^ 0x1_0000,
            _ => dial.isn.wrapping_add(1),
        };
        let packet = match numbers.below(20) {
            0..9 => Packet::Syn {
                offer: Offer::Sender,
                data: if numbers.below(16) == 0 { 300 } else { 0 },
            },
            9..15 => Packet::Syn {
                offer: Offer::Daemon,
                data: 0,
            },
            15 | 16 => Packet::SynAck(number),
            17 | 18 => Packet::Reset(number),
            _ => Packet::Error(number.wrapping_sub(1)),
        };
        // Without a daemon its socket is anybody's.
        let packet = match packet {
            Packet::Syn { data, .. } if stage.daemon.cookie == 0 => Packet::Syn {
                offer: Offer::Sender,
                data,
            },
            Packet::Syn { .. } | Packet::SynAck(_) | Packet::Reset(_) | Packet::Error(_) => packet,
        };
        if matches!(
            packet,
            Packet::Syn {
                offer: Offer::Daemon,
                ..
            }
        ) {
            // Mostly of one that waits.
            for _ in 0..8 {
                let flow = stage.bench.maps.flow(&dial.key());
                if flow.is_some_and(|flow| flow.phase() == Phase::Deferred) {
                    break;
                }
                dial = any_dial(&mut numbers);
            }
        }
        let models = [(); 4].map(|()| stage.model(dial));
        let ([before, after], came) = stage.play(dial, packet);
        if after - before > LONG_NS {
            skipped += 1;
            continue;
        }
        let times = [
            [before; 3],
            [before, before, after],
            [before, after, after],
            [after; 3],
        ];
        let mut may_come = models
            .into_iter()
            .zip(times)
            .map(|(model, times)| expected(model, dial, packet, times));
        let first = may_come.next().unwrap();
        if came != first && !may_come.any(|other| other == came) {
            panic!(
                "seed {seed}, round {round}: {packet:?} of {dial:?}\ncame to  {came:?}\nand not {first:?}\n{:?}, {:?}",
                stage.policy, stage.daemon
            );
        }
        if matches!(packet, Packet::Syn { .. }) {
            verdicts[usize::from(came.passed)] += 1;
        }
    }
    let tallies = stage.bench.maps.tallies(&interface(ifindex));
    let [swallowed, passed] = verdicts;
    println!(
        "measured: random history {seed}: {PACKETS} packets, {changes} changes of the settings: \
         {passed} SYNs passed and {swallowed} did not, as on the host; {skipped} took too long to be \
         judged"
    );
    assert!(skipped < PACKETS / 10 && passed > 200 && swallowed > 200);
    for tally in [
        Tally::Known,
        Tally::Deferred,
        Tally::Released,
        Tally::Overflowed,
        Tally::Answered,
        Tally::Refused,
        Tally::Unreachable,
        Tally::Aborted,
    ] {
        assert!(tallies.get(tally) > 1, "{tally:?}: {tallies:?}");
    }
}
