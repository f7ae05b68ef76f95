//! Answers with the right addresses and ports, from somebody who does not see the
//! sequence numbers.

use super::{
    bench::{Bench, Entry, LOOPBACK, PASS, SWALLOWED, timeless},
    build::{Dial, Numbers},
    runner::{Runner, stay_on, two_cpus},
    wire,
};
use std::{
    thread,
    time::{Duration, Instant},
};
use throttle_common::{
    flow::Phase,
    frame::{Family, Link},
    policy::{Mode, Policy},
    record::Tally,
};
use throttle_tests::{Namespace, wait_until};

/// How many for each CPU.
const EACH: usize = 500_000;
/// How many attempts of each family and phase.
const ATTEMPTS: u16 = 32;

/// A frame that answers an attempt, and where in it the number is by which the
/// attempt is known.
struct Answer {
    frame: Vec<u8>,
    number_at: usize,
    right: u32,
    /// Whether the right number is as wrong as any: nobody can answer what never
    /// left.
    never_fits: bool,
}

impl Answer {
    /// All kinds of answers to an attempt.
    fn all(dial: Dial, never_fits: bool) -> Vec<Self> {
        let (ip, errors): (_, &[(u8, u8)]) = match dial.family {
            Family::V4 => (20, &[(3, 0), (3, 1), (3, 3), (3, 13), (11, 0), (12, 0)]),
            Family::V6 => (40, &[(1, 0), (1, 1), (1, 4), (3, 0), (4, 0), (4, 1)]),
        };
        let next = dial.isn.wrapping_add(1);
        let mut answers: Vec<Self> = [dial.syn_ack(next), dial.reset(next)]
            .iter()
            .map(|packet| Self {
                frame: packet.ether(),
                // Behind the ports and the sequence number.
                number_at: 14 + ip + 8,
                right: next,
                never_fits,
            })
            .collect();
        let quoted = dial.syn().bytes();
        answers.extend(errors.iter().map(|&(kind, code)| Self {
            frame: dial.error(kind, code, &quoted).ether(),
            // Behind the ICMP header, the quoted IP header and ports.
            number_at: 14 + ip + 8 + ip + 4,
            right: dial.isn,
            never_fits,
        }));
        answers
    }

    /// With any number but the right one.
    fn forge(&mut self, numbers: &mut Numbers) -> &[u8] {
        let bytes = numbers.next().to_le_bytes();
        let mut number = u32::from_le_bytes(*bytes.first_chunk().unwrap());
        if bytes[7] < 64 {
            // Near misses.
            number = self.right.wrapping_add(number % 4).wrapping_sub(2);
        }
        if number == self.right && !self.never_fits {
            number ^= 1 << (bytes[6] % 32);
        }
        self.frame[self.number_at..self.number_at + 4].copy_from_slice(&number.to_be_bytes());
        &self.frame
    }
}

/// Attempts of all phases, and all that could answer them.
struct Besieged {
    bench: Bench,
    dials: Vec<(Dial, &'static str)>,
    known: [Dial; 2],
}

impl Besieged {
    fn new(mode: Mode) -> Self {
        let limit = 2 * u64::from(ATTEMPTS);
        let policy = Policy {
            line_capacity: 1_000,
            queue_capacity: 1_000,
            mode: mode as u32,
            ..timeless(limit)
        };
        let mut bench = Bench::new(&policy);
        bench.daemon_is_alive(7);
        // Two endpoints answer, and are dialled once more.
        let known = [Dial::v4(900), Dial::v6(900)];
        let mut dials = Vec::new();
        for dial in known {
            assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
            bench.run(Entry::InIngress, &dial.answered().ether());
            let again = dial.by_port(30_000).with_isn(77);
            assert_eq!(bench.run(Entry::OutEgress, &again.syn().ether()), PASS);
            dials.push((again, "known"));
        }
        let held_back = match mode {
            Mode::Enforce => SWALLOWED,
            Mode::Monitor => PASS,
        };
        for (from, phase, code) in [(0, "counted", PASS), (ATTEMPTS, "deferred", held_back)] {
            for n in from..from + ATTEMPTS {
                for dial in [Dial::v4(n), Dial::v6(n)] {
                    assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), code);
                    dials.push((dial, phase));
                }
            }
        }
        Self {
            bench,
            dials,
            known,
        }
    }

    fn answers(&self, mode: Mode) -> Vec<Answer> {
        let all = self.dials.iter().flat_map(|(dial, phase)| {
            Answer::all(*dial, *phase == "deferred" && mode == Mode::Enforce)
        });
        all.collect()
    }

    /// Nothing has changed since the beginning; and then what is true still ends
    /// what it is about, if `answer` lets the program see it.
    fn assert_stands(self, mut answer: impl FnMut(&Bench, &[u8])) {
        let Self {
            bench,
            dials,
            known,
        } = self;
        let all = 2 * u64::from(ATTEMPTS);
        assert_eq!(bench.counts(LOOPBACK), (all, all));
        for tally in [
            Tally::Refused,
            Tally::Unreachable,
            Tally::Aborted,
            Tally::Expired,
            Tally::Released,
        ] {
            assert_eq!(bench.tally(tally), 0, "{tally:?}");
        }
        assert_eq!(bench.tally(Tally::Answered), 2);
        for (dial, phase) in &dials {
            let flow = bench.maps.flow(&dial.key()).unwrap();
            let stands = match flow.phase() {
                Phase::Known => "known",
                Phase::Counted(_) => "counted",
                Phase::Deferred => "deferred",
                Phase::Ended => "ended",
            };
            assert_eq!(stands, *phase, "{dial:?}");
        }
        assert_eq!(bench.endpoints(), known.len(), "an endpoint became known");
        for (name, count) in bench.maps.unhandled() {
            assert_eq!(count, 0, "{name}");
        }
        for (dial, _) in dials.iter().filter(|(_, phase)| *phase == "counted") {
            answer(&bench, &dial.answered().ether());
        }
        wait_until(
            "the true ones to end theirs",
            Duration::from_secs(5),
            || bench.counts(LOOPBACK).0 == 0,
        );
    }
}

#[test]
fn a_million_forged_answers_free_no_place_and_make_no_endpoint_known() {
    for (mode, each) in [(Mode::Enforce, EACH), (Mode::Monitor, EACH / 10)] {
        let besieged = Besieged::new(mode);
        let began = Instant::now();
        thread::scope(|threads| {
            for (n, cpu) in (1..).zip(two_cpus()) {
                let mut answers = besieged.answers(mode);
                let program = besieged.bench.program(Entry::InIngress, Link::Ethernet);
                threads.spawn(move || {
                    stay_on(cpu);
                    let (runner, mut numbers) = (Runner::new(program), Numbers(n));
                    for _ in 0..each {
                        let of = numbers.below(answers.len());
                        assert_eq!(runner.run(answers[of].forge(&mut numbers)), PASS);
                    }
                });
            }
        });
        println!(
            "measured: forged answers, {mode:?}: {} forged SYN-ACKs, RSTs and ICMP errors in {:.1?} about {} attempts: no place \
             freed, no endpoint known",
            2 * each,
            began.elapsed(),
            besieged.dials.len()
        );
        besieged.assert_stands(|bench, frame| {
            bench.run(Entry::InIngress, frame);
        });
    }
}

/// The same through a device, as fast as one CPU sends.
#[test]
fn two_hundred_thousand_forged_answers_on_a_wire_free_nothing() {
    const FRAMES: usize = 200_000;
    let namespace = Namespace::new("forged");
    super::flood::add_wire(&namespace);
    let ifindex = namespace.ifindex("eth0");
    namespace.run(|| {
        super::flood::await_wire(&namespace);
        let mut besieged = Besieged::new(Mode::Enforce);
        let mut answers = besieged.answers(Mode::Enforce);
        // The way back of what comes in by the device.
        let link = besieged.bench.attach_to_egress(Entry::InEgress, "eth0");
        let socket = wire::socket(ifindex);
        let (mut numbers, began) = (Numbers(3), Instant::now());
        let mut batch = super::generator::Batch::new();
        for _ in 0..FRAMES {
            let of = numbers.below(answers.len());
            batch.add(&socket, answers[of].forge(&mut numbers));
        }
        let sent = batch.finish(&socket);
        assert_eq!(sent, FRAMES as u64);
        println!(
            "measured: forged answers on a wire: {FRAMES} in {:.1?}: nothing freed",
            began.elapsed()
        );
        besieged.assert_stands(|_, frame| wire::send(&socket, frame));
        drop(link);
    });
}
