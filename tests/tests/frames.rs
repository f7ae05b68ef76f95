//! The programs over frames, by `BPF_PROG_TEST_RUN`: what each is read as, what
//! is decided about it, and what the tables hold afterwards.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says so by panicking"
)]

#[path = "frames/bench.rs"]
#[expect(dead_code, reason = "some of it is for the tests of enemies")]
mod bench;
#[path = "frames/build.rs"]
mod build;
#[path = "frames/model.rs"]
#[expect(dead_code, reason = "some of it is for the tests of enemies")]
mod model;
#[path = "frames/reading.rs"]
mod reading;
#[path = "frames/wire.rs"]
mod wire;

use bench::{
    Bench, Beside, DROPPED, Entry, LOOPBACK, PASS, Record, SECOND, SWALLOWED, interface, timeless,
};
use build::{ACK, Dial, FIN, Numbers, RST, SYN, TCP, VLAN, ether, table};
use model::Model;
use reading::{Reading, is_refused_by_the_runner};
use std::{collections::BTreeSet, thread, time::Duration};
use throttle::clock::monotonic_ns;
use throttle_common::{
    decision::{Offer, SAME_PACKET_NS, Verdict},
    flow::Phase,
    frame::{self, Link},
    policy::{Daemon, Mode, Policy},
    record::{FRAME_MAX, RecordKind, Tally},
};
use throttle_tests::{Namespace, wait_until};

/// What the kernel's own runner says of a frame that it does not take.
const EINVAL: i32 = 22;

/// Not a wait for something: what comes sooner is the same packet on its way
/// through another device, or a duplicate, and no retransmission.
fn let_a_retransmission_be_due() {
    thread::sleep(Duration::from_nanos(SAME_PACKET_NS));
}

// ---- reading --------------------------------------------------------------

/// Runs frames and compares what is read.
struct Reader {
    bench: Bench,
    unparsed: u64,
    /// Frames that the kernel's own runner does not take.
    refused: usize,
    read: usize,
}

impl Reader {
    fn new() -> Self {
        Self {
            bench: Bench::new(&timeless(1_000_000)),
            unparsed: 0,
            refused: 0,
            read: 0,
        }
    }

    /// Runs all entries over a frame: each reads it as the host does, it passes,
    /// and it is counted as unparsed if it is.
    #[track_caller]
    fn agree(&mut self, name: &str, link: Link, frame: &[u8]) {
        for entry in Entry::ALL {
            self.bench.clear_seen();
            let code = match self.bench.try_run(entry, link, frame, Beside::default()) {
                Ok(code) => code,
                Err(EINVAL) if is_refused_by_the_runner(frame) => {
                    self.refused += 1;
                    return;
                }
                Err(errno) => panic!("{name}: {}", std::io::Error::from_raw_os_error(errno)),
            };
            let kernel = self.last_reading();
            let what = format!("{entry:?}: {name}, {} bytes", frame.len());
            let host = Reading::for_entry(frame, link, entry);
            assert_eq!(kernel, host, "{what}\n{frame:02x?}");
            assert_eq!(code, PASS, "{what}");
            self.read += 1;
        }
    }

    /// What the packet that has just been run was read as.
    fn last_reading(&mut self) -> Reading {
        let unparsed = self.bench.unhandled("unparsed");
        let before = std::mem::replace(&mut self.unparsed, unparsed);
        Reading::in_the_kernel(self.bench.seen(), unparsed - before)
    }

    /// Asserts that nothing went another way than reading.
    fn finish(self) -> usize {
        for (name, count) in self.bench.maps.unhandled() {
            assert!(name == "unparsed" || count == 0, "{name}: {count}");
        }
        self.read
    }
}

#[test]
fn every_frame_is_read_in_the_kernel_as_on_the_host() {
    let mut reader = Reader::new();
    let table = table();
    for frame in &table {
        reader.agree(&frame.name, frame.link, &frame.bytes);
    }
    assert_eq!(reader.refused, 0);
    let names: BTreeSet<&str> = table.iter().map(|frame| frame.name.as_str()).collect();
    assert_eq!(names.len(), table.len(), "two frames have one name");
    println!("{} frames, read {} times", table.len(), reader.finish());
}

/// The comparison above is worth something only if it sees every outcome.
#[test]
fn the_table_has_frames_of_every_reading() {
    let mut readings = [0; 6];
    for frame in table() {
        let index = match Reading::on_the_host(&frame.bytes, frame.link) {
            Reading::Syn { .. } => 0,
            Reading::SynAck(..) => 1,
            Reading::Reset(..) => 2,
            Reading::Error(..) => 3,
            Reading::Other => 4,
            Reading::Unparsed => 5,
        };
        readings[index] += 1;
    }
    assert!(readings.iter().all(|count| *count >= 4), "{readings:?}");
}

#[test]
fn named_frames_are_what_their_names_say() {
    let named = |name: &str| {
        let table = table();
        let frame = table.iter().find(|frame| frame.name == name);
        let frame = frame.unwrap_or_else(|| panic!("no frame {name:?}"));
        Reading::on_the_host(&frame.bytes, frame.link)
    };
    for (family, dial) in [("IPv4", Dial::v4(0)), ("IPv6", Dial::v6(0))] {
        let (key, isn) = (dial.key(), dial.isn);
        let is_syn = |name: &str| matches!(named(name), Reading::Syn { key: k, isn: i, .. } if (k, i) == (key, isn));
        for what in [
            "SYN",
            "SYN with options",
            "SYN with much data",
            "SYN, only fragment",
        ] {
            assert!(is_syn(&format!("{family}, {what}, Ethernet")), "{what}");
            assert!(is_syn(&format!("{family}, {what}, Ip")), "{what}");
        }
        for what in ["one tag", "one service tag", "two tags", "two tags of old"] {
            assert!(is_syn(&format!("{family}, SYN, {what}")), "{what}");
        }
        for what in [
            "SYN, three tags",
            "SYN with a header too short, Ethernet",
            "SYN of no length, Ethernet",
            "SYN-ACK of no length, Ethernet",
            "RST of no length, Ip",
            "unreachable of no length, Ethernet",
            "SYN in a first fragment of 13 bytes, padded, Ethernet",
            "ACK in a first fragment of 13 bytes, padded, Ip",
            "unreachable in a first fragment of 1 byte, padded, Ethernet",
        ] {
            assert_eq!(
                named(&format!("{family}, {what}")),
                Reading::Unparsed,
                "{what}"
            );
        }
        for what in [
            "ACK",
            "data",
            "FIN",
            "UDP",
            "RST without ACK",
            "SYN, last fragment",
            "data of no length",
            "ACK in a first fragment of 14 bytes, padded",
        ] {
            assert_eq!(
                named(&format!("{family}, {what}, Ethernet")),
                Reading::Other,
                "{what}"
            );
        }
        assert_eq!(
            named(&format!("{family}, SYN-ACK, Ip")),
            Reading::SynAck(key, isn.wrapping_add(1))
        );
        assert_eq!(
            named(&format!("{family}, RST, Ethernet")),
            Reading::Reset(key, isn.wrapping_add(1))
        );
        assert_eq!(
            named(&format!("{family}, unreachable, two tags")),
            Reading::Error(key, isn)
        );
    }
}

#[test]
fn every_frame_cut_short_is_read_in_the_kernel_as_on_the_host() {
    let mut reader = Reader::new();
    for frame in table() {
        // What is cut off data says nothing new.
        for len in 0..frame.bytes.len().min(220) {
            reader.agree(&frame.name, frame.link, &frame.bytes[..len]);
        }
    }
    println!("{} are not for the runner", reader.refused);
    println!("read {} times", reader.finish());
}

#[test]
fn padding_behind_a_frame_changes_nothing() {
    let mut reader = Reader::new();
    for frame in table() {
        let reading = Reading::on_the_host(&frame.bytes, frame.link);
        for (padding, byte) in [(1, 0), (7, 0xff), (46, 0), (100, 0x12)] {
            let padded = [&frame.bytes[..], &vec![byte; padding]].concat();
            reader.agree(&frame.name, frame.link, &padded);
            // Padding is data to nobody: it lies behind the packet's own end.
            if reading != Reading::Unparsed {
                assert_eq!(
                    Reading::on_the_host(&padded, frame.link),
                    reading,
                    "{}",
                    frame.name
                );
            }
        }
    }
    println!("read {} times", reader.finish());
}

#[test]
fn frames_with_any_bytes_changed_are_read_in_the_kernel_as_on_the_host() {
    const SEED: u64 = 4_226;
    const FRAMES: usize = 6_000;
    let (mut reader, mut numbers) = (Reader::new(), Numbers(SEED));
    let table = table();
    for round in 0..FRAMES {
        let frame = &table[numbers.below(table.len())];
        let mut bytes = frame.bytes.clone();
        for _ in 0..=numbers.below(4) {
            // Mostly in the headers.
            let reach = if numbers.below(4) == 0 {
                bytes.len()
            } else {
                bytes.len().min(64)
            };
            let at = numbers.below(reach);
            bytes[at] = match numbers.below(3) {
                0 => bytes[at] ^ (1 << numbers.below(8)),
                1 => [0, 0xff, 6, 44, 0x45, 0x60][numbers.below(6)],
                _ => numbers.byte(),
            };
        }
        if numbers.below(3) == 0 {
            bytes.truncate(16 + numbers.below(bytes.len() - 15));
        }
        reader.agree(
            &format!("round {round}, {}", frame.name),
            frame.link,
            &bytes,
        );
    }
    println!("{} are not for the runner", reader.refused);
    println!("seed {SEED}: read {} times", reader.finish());
}

/// The runner makes packets in one piece; a device carries others, too. What is
/// sent here has a linear part of 14 bytes, so the programs must fetch the rest.
#[test]
fn frames_that_leave_a_device_are_read_however_they_lie_in_memory() {
    /// How much of a packet is made linear at most (`PULL_MAX`).
    const PULLED: usize = 256;
    let namespace = Namespace::new("wire");
    for family in ["all", "default"] {
        namespace.set_sysctl(&format!("net.ipv6.conf.{family}.disable_ipv6"), "1");
    }
    namespace.ip("link add name eth0 mtu 9000 up type veth peer name far0 mtu 9000");
    namespace.ip("link set far0 up");
    let ifindex = namespace.ifindex("eth0");
    namespace.run(|| {
        wait_until("the carrier of eth0", Duration::from_secs(5), || {
            namespace.ip("link show eth0").contains("LOWER_UP")
        });
        let mut reader = Reader::new();
        let plain = wire::socket(ifindex);
        let mut ring = wire::Ring::new(ifindex);
        for entry in [Entry::OutEgress, Entry::InEgress] {
            let _link = reader.bench.attach_to_egress(entry, "eth0");
            for frame in table().iter().filter(|frame| frame.link == Link::Ethernet) {
                // A packet socket sends nothing shorter than the link header.
                for len in (14..frame.bytes.len().min(150)).chain([frame.bytes.len()]) {
                    let bytes = &frame.bytes[..len];
                    let what = format!("{entry:?}: {}, {len} bytes", frame.name);

                    reader.bench.clear_seen();
                    wire::send(&plain, bytes);
                    let host = Reading::for_entry(bytes, frame.link, entry);
                    assert_eq!(reader.last_reading(), host, "{what}");

                    reader.bench.clear_seen();
                    ring.send(bytes);
                    let host = Reading::for_entry(&bytes[..len.min(PULLED)], frame.link, entry);
                    assert_eq!(reader.last_reading(), host, "{what}, in pieces");
                    reader.read += 2;
                }
            }
        }
        println!("{} frames", reader.finish());
    });
}

// ---- what ends an attempt -------------------------------------------------

/// What comes in after a SYN, and which tally it ends the attempt as, if any.
fn answers(dial: Dial) -> Vec<(String, build::Ip, Option<Tally>)> {
    let right = dial.isn.wrapping_add(1);
    let other = dial.by_port(1);
    let mut answers = Vec::new();
    let mut add = |name: &str, packet, ends| answers.push((name.to_owned(), packet, ends));
    add("SYN-ACK", dial.syn_ack(right), Some(Tally::Answered));
    add("RST", dial.reset(right), Some(Tally::Refused));
    for (what, ack) in [
        ("nothing", 0),
        ("the ISN itself", dial.isn),
        ("one too much", right.wrapping_add(1)),
        ("a window ahead", right.wrapping_add(65_535)),
        ("the other half of the numbers", right ^ 0x8000_0000),
    ] {
        add(&format!("SYN-ACK for {what}"), dial.syn_ack(ack), None);
        add(&format!("RST for {what}"), dial.reset(ack), None);
    }
    add("SYN-ACK for another port", other.syn_ack(right), None);
    add("RST for another port", other.reset(right), None);
    let back = |flags: u8| dial.back(TCP, &dial.answers(flags, right).bytes());
    add("RST without ACK", back(RST), None);
    add("ACK", back(ACK), None);
    add("FIN and ACK", back(FIN | ACK), None);
    add("SYN", back(SYN), None);
    // What the sender itself sends does not answer it.
    add(
        "its own RST",
        dial.out(TCP, &dial.asks(RST | ACK).bytes()),
        None,
    );

    let quoted = |isn: u32| dial.with_isn(isn).syn().bytes();
    let v4 = dial.family == frame::Family::V4;
    let ending: &[(u8, u8)] = if v4 {
        &[
            (3, 0),
            (3, 1),
            (3, 2),
            (3, 3),
            (3, 9),
            (3, 10),
            (3, 13),
            (11, 0),
            (12, 0),
        ]
    } else {
        &[
            (1, 0),
            (1, 1),
            (1, 3),
            (1, 4),
            (1, 5),
            (3, 0),
            (3, 1),
            (4, 0),
            (4, 1),
        ]
    };
    for &(kind, code) in ending {
        let name = format!("ICMP {kind}/{code}");
        let packet = |quote: &[u8]| dial.error(kind, code, quote);
        let syn = quoted(dial.isn);
        add(&name, packet(&syn), Some(Tally::Unreachable));
        let least = syn.len() - 12;
        let end = Some(Tally::Unreachable);
        add(
            &format!("{name}, eight bytes of TCP"),
            packet(&syn[..least]),
            end,
        );
        add(
            &format!("{name}, seven bytes of TCP"),
            packet(&syn[..least - 1]),
            None,
        );
        add(
            &format!("{name}, wrong ISN"),
            packet(&quoted(dial.isn.wrapping_add(1))),
            None,
        );
        add(&format!("{name}, ISN 0"), packet(&quoted(0)), None);
        let of_other = other.with_isn(dial.isn).syn().bytes();
        add(&format!("{name}, another port"), packet(&of_other), None);
        add(
            &format!("{name}, quoting the answer"),
            packet(&dial.syn_ack(right).bytes()),
            None,
        );
    }
    let harmless: &[(u8, u8)] = if v4 {
        &[
            (3, 4),
            (11, 1),
            (0, 0),
            (4, 0),
            (5, 1),
            (8, 0),
            (13, 0),
            (1, 0),
        ]
    } else {
        &[
            (2, 0),
            (128, 0),
            (129, 0),
            (135, 0),
            (137, 0),
            (11, 0),
            (12, 0),
        ]
    };
    for &(kind, code) in harmless {
        let packet = dial.error(kind, code, &quoted(dial.isn));
        add(&format!("ICMP {kind}/{code}"), packet, None);
    }
    answers
}

#[test]
fn only_right_answers_end_an_attempt() {
    let bench = Bench::new(&timeless(1_000));
    let mut count = 0;
    for dial in [Dial::v4(3), Dial::v6(3)] {
        for (name, packet, ends) in answers(dial) {
            for (entry, link) in [
                (Entry::InIngress, Link::Ethernet),
                (Entry::InIngress, Link::Ip),
                (Entry::InEgress, Link::Ethernet),
                (Entry::InEgress, Link::Ip),
            ] {
                let what = format!("{:?}, {name}, {entry:?}, {link:?}", dial.family);
                assert_eq!(
                    bench.run(Entry::OutEgress, &dial.syn().ether()),
                    PASS,
                    "{what}"
                );
                assert_eq!(bench.counts(LOOPBACK), (1, 0), "{what}");
                let before = bench.tallies();
                let frame = match link {
                    Link::Ethernet => packet.ether(),
                    Link::Ip => packet.bytes(),
                };
                let code = bench.try_run(entry, link, &frame, Beside::default());
                assert_eq!(code, Ok(PASS), "{what}");
                let half_open = u64::from(ends.is_none());
                assert_eq!(bench.counts(LOOPBACK), (half_open, 0), "{what}");
                let flow = bench.maps.flow(&dial.key());
                assert_eq!(flow.is_some(), ends.is_none(), "{what}");
                let mut expected = before;
                if let Some(tally) = ends {
                    expected.0[tally as usize] += 1;
                }
                assert_eq!(bench.tallies(), expected, "{what}");
                // A SYN-ACK alone, and the right one, makes an endpoint known.
                let known = ends == Some(Tally::Answered);
                assert_eq!(bench.is_known(&dial.key().endpoint()), known, "{what}");
                // Whatever is left begins anew: its endpoint is forgotten by a
                // SYN that counts, the attempt by its end.
                if known {
                    assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
                    let_a_retransmission_be_due();
                    assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
                    assert!(!bench.is_known(&dial.key().endpoint()), "{what}");
                }
                if bench.maps.flow(&dial.key()).is_some() {
                    bench.run(
                        Entry::InIngress,
                        &dial.reset(dial.isn.wrapping_add(1)).ether(),
                    );
                }
                assert_eq!(bench.counts(LOOPBACK), (0, 0), "{what}");
                count += 1;
            }
        }
    }
    println!("{count} answers");
}

#[test]
fn an_answer_may_acknowledge_the_data_of_a_syn_and_nothing_beyond() {
    let bench = Bench::new(&timeless(1_000));
    let data_len = 40;
    for (n, (ahead, ends)) in [(0, false), (1, true), (20, true), (41, true), (42, false)]
        .into_iter()
        .enumerate()
    {
        let dial = Dial::v4(u16::try_from(n).unwrap());
        bench.run(Entry::OutEgress, &dial.syn_with_data(data_len).ether());
        let ack = dial.isn.wrapping_add(ahead);
        bench.run(Entry::InIngress, &dial.syn_ack(ack).ether());
        assert_eq!(
            bench.maps.flow(&dial.key()).is_none(),
            ends,
            "{ahead} ahead"
        );
    }
}

#[test]
fn numbers_may_wrap() {
    let bench = Bench::new(&timeless(1_000));
    let dial = Dial::v6(1).with_isn(u32::MAX);
    bench.run(Entry::OutEgress, &dial.syn().ether());
    bench.run(Entry::InIngress, &dial.syn_ack(0).ether());
    assert!(bench.maps.flow(&dial.key()).is_none());
}

// ---- what is decided ------------------------------------------------------

/// Three attempts that count, of a limit of three, and a daemon.
fn full(dials: [Dial; 3]) -> Bench {
    full_by(dials, &timeless(3))
}

fn full_by(dials: [Dial; 3], policy: &Policy) -> Bench {
    let mut bench = Bench::new(policy);
    bench.daemon_is_alive(7);
    for (n, dial) in dials.into_iter().enumerate() {
        assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
        assert_eq!(bench.counts(LOOPBACK), (n as u64 + 1, 0));
        let flow = bench.maps.flow(&dial.key()).unwrap();
        assert!(matches!(flow.phase(), Phase::Counted(_)));
    }
    assert!(bench.records().is_empty());
    bench
}

const FIRST: [Dial; 3] = [
    Dial {
        family: frame::Family::V4,
        host: 1,
        ports: (50_001, 80),
        isn: 1,
    },
    Dial {
        family: frame::Family::V6,
        host: 2,
        ports: (50_002, 80),
        isn: 0x7fff_ffff,
    },
    Dial {
        family: frame::Family::V4,
        host: 3,
        ports: (50_003, 80),
        isn: 0xffff_ffff,
    },
];

#[test]
fn the_fourth_of_three_is_held_back_and_handed_over_as_it_is() {
    for (dial, frame) in [
        (Dial::v4(9), Dial::v4(9).syn().ether()),
        (Dial::v6(9), Dial::v6(9).syn().ether()),
        (Dial::v4(9), Dial::v4(9).syn().tagged(&[VLAN])),
        (Dial::v6(9), Dial::v6(9).syn().extension(0, 1).ether()),
        (
            Dial::v4(9),
            Dial::v4(9).syn_with_data(100).options(3).ether(),
        ),
    ] {
        let bench = full(FIRST);
        let beside = Beside {
            mark: 0x5a,
            priority: 6,
            ..Beside::default()
        };
        assert_eq!(
            bench.run_beside(Entry::OutEgress, &frame, beside),
            SWALLOWED
        );
        assert_eq!(bench.counts(LOOPBACK), (3, 1));
        assert_eq!(bench.tally(Tally::Attempts), 4);
        assert_eq!(bench.tally(Tally::Passed), 3);
        assert_eq!(bench.tally(Tally::Deferred), 1);
        let flow = bench.maps.flow(&dial.key()).unwrap();
        assert_eq!(flow.phase(), Phase::Deferred);
        assert_eq!((flow.handed_to(), flow.is_on_wire()), (7, false));

        let records = bench.records();
        let [Record::LimitReached(reached), Record::Deferred(deferred)] = &records[..] else {
            panic!("{records:?}")
        };
        let len = frame.len();
        assert_eq!(deferred.frame_len as usize, len);
        assert_eq!(deferred.frame[..len], frame[..]);
        assert_eq!(
            deferred.frame[len..],
            vec![0; FRAME_MAX - len][..],
            "nobody else's bytes"
        );
        assert_eq!((deferred.key, deferred.isn), (dial.key(), dial.isn));
        assert_eq!((deferred.mark, deferred.priority), (0x5a, 6));
        assert_eq!((deferred.ifindex, deferred.vlan), (LOOPBACK, 0));
        assert_eq!(deferred.scope, interface(LOOPBACK));
        assert_eq!(
            (deferred.first_ns, deferred.owner),
            (flow.first_ns, flow.owner)
        );
        assert!(deferred.seen_ns >= deferred.first_ns && deferred.seen_ns <= monotonic_ns());
        let network = deferred.network_offset as usize;
        assert_eq!(frame[network] >> 4, if dial == Dial::v4(9) { 4 } else { 6 });
        let transport = deferred.transport_offset as usize;
        assert_eq!(frame[transport..transport + 2], dial.ports.0.to_be_bytes());

        assert_eq!(
            (reached.half_open, reached.queued, reached.limit),
            (3, 1, 3)
        );
        assert_eq!(
            (reached.key, reached.scope),
            (dial.key(), interface(LOOPBACK))
        );
        assert_eq!(
            (reached.ifindex, reached.mode),
            (LOOPBACK, Mode::Enforce as u32)
        );
    }
}

#[test]
fn a_retransmission_of_what_counts_passes_and_counts_once() {
    let bench = full(FIRST);
    for _ in 0..5 {
        for dial in FIRST {
            assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
        }
    }
    assert_eq!(bench.counts(LOOPBACK), (3, 0));
    assert_eq!(bench.tally(Tally::Attempts), 3);
}

#[test]
fn a_retransmission_of_what_waits_is_swallowed_while_the_daemon_lives() {
    let mut bench = full(FIRST);
    let waiting = Dial::v4(9);
    assert_eq!(
        bench.run(Entry::OutEgress, &waiting.syn().ether()),
        SWALLOWED
    );
    bench.records();
    // There is room, and still: the order is the daemon's.
    let [first, ..] = FIRST;
    bench.run(
        Entry::InIngress,
        &first.reset(first.isn.wrapping_add(1)).ether(),
    );
    assert_eq!(bench.record_kinds(), [RecordKind::Room]);
    for _ in 0..5 {
        assert_eq!(
            bench.run(Entry::OutEgress, &waiting.syn().ether()),
            SWALLOWED
        );
    }
    assert!(bench.records().is_empty(), "the daemon has its frame");
    assert_eq!(bench.counts(LOOPBACK), (2, 1));
    // Another daemon has not.
    bench.daemon_is_alive(8);
    for expected in [&[RecordKind::Deferred][..], &[]] {
        assert_eq!(
            bench.run(Entry::OutEgress, &waiting.syn().ether()),
            SWALLOWED
        );
        assert_eq!(bench.record_kinds(), expected);
    }
    assert_eq!(bench.maps.flow(&waiting.key()).unwrap().handed_to(), 8);
    assert_eq!(bench.tally(Tally::Deferred), 1);
}

#[test]
fn nobody_overtakes_those_who_wait() {
    let mut bench = full(FIRST);
    assert_eq!(
        bench.run(Entry::OutEgress, &Dial::v4(9).syn().ether()),
        SWALLOWED
    );
    let [first, ..] = FIRST;
    bench.run(
        Entry::InIngress,
        &first.reset(first.isn.wrapping_add(1)).ether(),
    );
    assert_eq!(
        bench.run(Entry::OutEgress, &Dial::v4(10).syn().ether()),
        SWALLOWED
    );
    assert_eq!(bench.counts(LOOPBACK), (2, 2));
    // Without a daemon there is no order, and the place is taken.
    bench.daemon_hangs(7);
    assert_eq!(
        bench.run(Entry::OutEgress, &Dial::v4(11).syn().ether()),
        PASS
    );
    assert_eq!(bench.counts(LOOPBACK), (3, 2));
}

#[test]
fn without_a_daemon_a_retransmission_takes_room() {
    let mut bench = full(FIRST);
    let waiting = Dial::v6(9);
    assert_eq!(
        bench.run(Entry::OutEgress, &waiting.syn().ether()),
        SWALLOWED
    );
    bench.daemon_hangs(7);
    assert_eq!(
        bench.run(Entry::OutEgress, &waiting.syn().ether()),
        SWALLOWED
    );
    let [first, ..] = FIRST;
    bench.run(
        Entry::InIngress,
        &first.reset(first.isn.wrapping_add(1)).ether(),
    );
    assert_eq!(bench.run(Entry::OutEgress, &waiting.syn().ether()), PASS);
    assert_eq!(bench.counts(LOOPBACK), (3, 0));
    assert_eq!(bench.tally(Tally::Released), 1);
    let flow = bench.maps.flow(&waiting.key()).unwrap();
    assert!(matches!(flow.phase(), Phase::Counted(_)) && flow.is_on_wire());
}

#[test]
fn without_a_daemon_a_retransmission_takes_a_release_once_it_is_due() {
    const INTERVAL: u64 = SECOND / 5;
    let mut bench = full_by(
        FIRST,
        &Policy {
            interval_ns: INTERVAL,
            ..timeless(3)
        },
    );
    bench.daemon_hangs(7);
    let waiting = [Dial::v4(9), Dial::v6(9)];
    let mut deferred_ns = 0;
    for dial in waiting {
        assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), SWALLOWED);
        let flow = bench.maps.flow(&dial.key()).unwrap();
        deferred_ns = if deferred_ns == 0 {
            flow.first_ns
        } else {
            deferred_ns
        };
    }
    for (turn, dial) in (1..).zip(waiting) {
        wait_until("a release", Duration::from_secs(5), || {
            bench.run(Entry::OutEgress, &dial.syn().ether()) == PASS
        });
        assert!(
            monotonic_ns() - deferred_ns >= turn * INTERVAL,
            "turn {turn}"
        );
        assert_eq!(bench.counts(LOOPBACK), (3 + turn, 2 - turn));
    }
    assert_eq!(bench.tally(Tally::Released), 2);
}

#[test]
fn a_known_endpoint_is_let_through_until_it_leaves_a_syn_unanswered() {
    let bench = full(FIRST);
    let [_, friend, _] = FIRST;
    bench.run(Entry::InIngress, &friend.answered().ether());
    assert!(bench.is_known(&friend.key().endpoint()));
    assert_eq!(bench.tally(Tally::Answered), 1);
    // The place is free; a stranger takes it.
    assert_eq!(
        bench.run(Entry::OutEgress, &Dial::v4(9).syn().ether()),
        PASS
    );
    assert_eq!(bench.counts(LOOPBACK), (3, 0));

    let next: Vec<Dial> = (0..20).map(|n| friend.by_port(51_000 + n)).collect();
    for dial in &next {
        assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
        let flow = bench.maps.flow(&dial.key()).unwrap();
        assert_eq!(flow.phase(), Phase::Known);
    }
    assert_eq!(bench.counts(LOOPBACK), (3, 0), "they are not counted");
    assert_eq!(bench.tally(Tally::Known), 20);

    // A duplicate says nothing.
    let doubled = friend.by_port(52_000);
    for _ in 0..3 {
        assert_eq!(bench.run(Entry::OutEgress, &doubled.syn().ether()), PASS);
    }
    assert_eq!(
        bench.maps.flow(&doubled.key()).unwrap().phase(),
        Phase::Known
    );
    assert_eq!(bench.counts(LOOPBACK), (3, 0));
    assert!(bench.is_known(&friend.key().endpoint()));

    // One of them is not answered.
    let_a_retransmission_be_due();
    assert_eq!(bench.run(Entry::OutEgress, &next[0].syn().ether()), PASS);
    let flow = bench.maps.flow(&next[0].key()).unwrap();
    assert!(matches!(flow.phase(), Phase::Counted(_)));
    assert_eq!(bench.counts(LOOPBACK), (4, 0));
    assert!(!bench.is_known(&friend.key().endpoint()));
    let stranger = friend.by_port(60_000);
    assert_eq!(
        bench.run(Entry::OutEgress, &stranger.syn().ether()),
        SWALLOWED
    );

    // It answers after all: what waits for it need not wait any more.
    bench.run(Entry::InIngress, &next[1].answered().ether());
    assert_eq!(bench.run(Entry::OutEgress, &stranger.syn().ether()), PASS);
    assert_eq!(bench.tally(Tally::Released), 1);
    assert_eq!(bench.counts(LOOPBACK), (5, 0));
}

#[test]
fn an_endpoint_that_has_answered_since_stays_known_when_one_of_its_syns_is_lost() {
    let bench = full(FIRST);
    let [friend, ..] = FIRST;
    let endpoint = friend.key().endpoint();
    bench.run(Entry::InIngress, &friend.answered().ether());
    let [lost, answered] = [51_000, 51_001].map(|port| friend.by_port(port));
    for dial in [lost, answered] {
        assert_eq!(bench.run(Entry::OutEgress, &dial.syn().ether()), PASS);
    }
    bench.run(Entry::InIngress, &answered.answered().ether());
    let_a_retransmission_be_due();
    assert_eq!(bench.run(Entry::OutEgress, &lost.syn().ether()), PASS);
    assert_eq!(bench.counts(LOOPBACK), (3, 0), "it counts from now on");
    assert!(bench.is_known(&endpoint));
    // One that it has not answered anything after is forgotten by.
    let silent = friend.by_port(51_002);
    assert_eq!(bench.run(Entry::OutEgress, &silent.syn().ether()), PASS);
    let_a_retransmission_be_due();
    assert_eq!(bench.run(Entry::OutEgress, &silent.syn().ether()), PASS);
    assert_eq!(bench.counts(LOOPBACK), (4, 0));
    assert!(!bench.is_known(&endpoint));
}

#[test]
fn with_a_strict_limit_no_endpoint_is_known() {
    let bench = full_by(
        FIRST,
        &Policy {
            known_for_ns: 0,
            ..timeless(3)
        },
    );
    let [friend, ..] = FIRST;
    bench.run(Entry::InIngress, &friend.answered().ether());
    assert_eq!(
        bench.run(Entry::OutEgress, &Dial::v4(9).syn().ether()),
        PASS
    );
    let again = friend.by_port(51_000);
    assert_eq!(bench.run(Entry::OutEgress, &again.syn().ether()), SWALLOWED);
}

#[test]
fn what_finds_its_line_full_is_swallowed_and_not_remembered() {
    let bench = full_by(
        FIRST,
        &Policy {
            line_capacity: 2,
            ..timeless(3)
        },
    );
    for n in 0..2 {
        assert_eq!(
            bench.run(Entry::OutEgress, &Dial::v4(n).syn().ether()),
            SWALLOWED
        );
    }
    bench.records();
    for _ in 0..3 {
        assert_eq!(
            bench.run(Entry::OutEgress, &Dial::v4(2).syn().ether()),
            SWALLOWED
        );
    }
    assert!(bench.maps.flow(&Dial::v4(2).key()).is_none());
    assert_eq!(bench.tally(Tally::Overflowed), 3);
    assert_eq!(bench.tally(Tally::Deferred), 2);
    assert_eq!(bench.counts(LOOPBACK), (3, 2));
    assert!(bench.records().is_empty());
}

#[test]
fn what_finds_the_whole_queue_full_is_swallowed_and_not_remembered() {
    let bench = full_by(
        FIRST,
        &Policy {
            queue_capacity: 2,
            ..timeless(3)
        },
    );
    for n in 0..5 {
        assert_eq!(
            bench.run(Entry::OutEgress, &Dial::v4(n).syn().ether()),
            SWALLOWED
        );
    }
    assert_eq!(bench.tally(Tally::Deferred), 2);
    assert_eq!(bench.tally(Tally::Overflowed), 3);
    assert_eq!(bench.counts(LOOPBACK), (3, 2));
    assert_eq!(bench.unhandled("unaccountable"), 0);
    for n in 2..5 {
        assert!(bench.maps.flow(&Dial::v4(n).key()).is_none());
    }
    // Those who did not fit take no place in their line either: one that gives
    // up makes room for one.
    for (isn, deferred) in [(1, 3), (2, 4)] {
        let again = Dial::v4(0).with_isn(isn);
        assert_eq!(bench.run(Entry::OutEgress, &again.syn().ether()), SWALLOWED);
        assert_eq!(bench.tally(Tally::Deferred), deferred);
    }
    assert_eq!(bench.counts(LOOPBACK), (3, 2));
}

#[test]
fn what_comes_in_is_dropped_and_what_goes_out_vanishes() {
    for (entry, code) in [(Entry::OutEgress, SWALLOWED), (Entry::OutIngress, DROPPED)] {
        let mut bench = Bench::new(&timeless(1));
        bench.daemon_is_alive(7);
        for (n, expected) in [(0, PASS), (1, code), (1, code), (2, code), (0, PASS)] {
            let got = bench.run(entry, &Dial::v4(n).syn().ether());
            assert_eq!(got, expected, "{entry:?} {n}");
        }
        assert_eq!(bench.counts(LOOPBACK), (1, 2));
    }
}

#[test]
fn in_monitor_mode_everything_is_counted_and_everything_passes() {
    for entry in [Entry::OutEgress, Entry::OutIngress] {
        let mut bench = Bench::new(&Policy {
            mode: Mode::Monitor as u32,
            line_capacity: 2,
            ..timeless(1)
        });
        bench.daemon_is_alive(7);
        for n in 0..5 {
            for _ in 0..2 {
                assert_eq!(bench.run(entry, &Dial::v4(n).syn().ether()), PASS);
            }
        }
        assert_eq!(bench.counts(LOOPBACK), (1, 2));
        assert_eq!(bench.tally(Tally::Deferred), 2);
        // Those that overflow are new each time.
        assert_eq!(bench.tally(Tally::Overflowed), 4);
        let kinds = bench.record_kinds();
        use RecordKind::{Deferred, LimitReached};
        assert_eq!(kinds, [LimitReached, Deferred, Deferred]);
        // It was on the wire, so it can be answered.
        bench.run(Entry::InIngress, &Dial::v4(1).answered().ether());
        assert_eq!(bench.counts(LOOPBACK), (1, 1));
        assert_eq!(bench.tally(Tally::Answered), 1);
    }
}

#[test]
fn what_waits_cannot_be_answered() {
    let bench = full(FIRST);
    let waiting = Dial::v4(9);
    bench.run(Entry::OutEgress, &waiting.syn().ether());
    for packet in [
        waiting.answered(),
        waiting.reset(waiting.isn.wrapping_add(1)),
        waiting.unreachable(waiting.isn),
    ] {
        bench.run(Entry::InIngress, &packet.ether());
        assert_eq!(bench.counts(LOOPBACK), (3, 1));
    }
    assert!(!bench.is_known(&waiting.key().endpoint()));
}

#[test]
fn a_frame_too_long_for_a_record_waits_for_its_sender() {
    for (data, fits) in [(256 - 54, true), (256 - 53, false), (1_000, false)] {
        let bench = full(FIRST);
        let long = Dial::v4(9);
        let frame = long.syn_with_data(data).ether();
        assert_eq!(frame.len() <= FRAME_MAX, fits);
        assert_eq!(bench.run(Entry::OutEgress, &frame), SWALLOWED);
        let flow = bench.maps.flow(&long.key()).unwrap();
        assert_eq!(flow.too_long, u32::from(!fits));
        assert_eq!(bench.unhandled("frame_too_long"), u64::from(!fits));
        use RecordKind::{Deferred, LimitReached};
        let expected = if fits {
            vec![LimitReached, Deferred]
        } else {
            vec![LimitReached]
        };
        assert_eq!(bench.record_kinds(), expected);
        assert_eq!(bench.counts(LOOPBACK), (3, 1));

        // No daemon can send it, so its sender may, even while one is alive.
        let [first, ..] = FIRST;
        bench.run(
            Entry::InIngress,
            &first.reset(first.isn.wrapping_add(1)).ether(),
        );
        let code = if fits { SWALLOWED } else { PASS };
        assert_eq!(bench.run(Entry::OutEgress, &frame), code);
    }
}

/// A device keeps the outermost tag of what comes in beside the frame. With two
/// more in it, a copy would have three, and could not be read.
#[test]
fn a_frame_with_three_tags_waits_for_its_sender() {
    let namespace = Namespace::new("tags");
    for family in ["all", "default"] {
        namespace.set_sysctl(&format!("net.ipv6.conf.{family}.disable_ipv6"), "1");
    }
    namespace.ip("link add name eth0 up type veth peer name far0");
    namespace.ip("link set far0 up");
    let [near, far] = ["eth0", "far0"].map(|device| namespace.ifindex(device));
    namespace.run(|| {
        wait_until("the carrier of far0", Duration::from_secs(5), || {
            namespace.ip("link show far0").contains("LOWER_UP")
        });
        let mut bench = Bench::new(&timeless(1));
        bench.daemon_is_alive(7);
        let _link = bench.attach_to_ingress(Entry::OutIngress, "eth0");
        let socket = wire::socket(far);
        for (sent, (tags, too_long)) in (1..).zip([
            (&[][..], None),
            (&[VLAN], Some(false)),
            (&[VLAN, VLAN], Some(false)),
            (&[VLAN, VLAN, VLAN], Some(true)),
        ]) {
            let dial = Dial::v4(sent);
            wire::send(&socket, &dial.syn().tagged(tags));
            wait_until("the frame to come in", Duration::from_secs(5), || {
                let seen = bench.maps.tallies(&interface(near)).get(Tally::Attempts);
                seen == u64::from(sent)
            });
            let flow = bench.maps.flow(&dial.key()).unwrap();
            let handed = bench.records().into_iter().find_map(|record| match record {
                Record::Deferred(deferred) => Some(deferred),
                Record::LimitReached(_) | Record::Room(_) => None,
            });
            let Some(too_long) = too_long else {
                assert!(matches!(flow.phase(), Phase::Counted(_)));
                continue;
            };
            assert_eq!(flow.phase(), Phase::Deferred, "{} tags", tags.len());
            assert_eq!(flow.too_long != 0, too_long, "{} tags", tags.len());
            assert_eq!(handed.is_none(), too_long, "{} tags", tags.len());
            assert!(handed.is_none_or(|deferred| deferred.vlan != 0));
        }
        assert_eq!(bench.unhandled("frame_too_long"), 1);
        assert_eq!(bench.unhandled("unparsed"), 0);
    });
}

#[test]
fn the_same_addresses_with_another_number_are_a_new_attempt() {
    let bench = full(FIRST);
    let [first, ..] = FIRST;
    let again = first.with_isn(0x1000);
    assert_eq!(bench.run(Entry::OutEgress, &again.syn().ether()), PASS);
    assert_eq!(bench.counts(LOOPBACK), (3, 0), "the place of the old one");
    assert_eq!(bench.tally(Tally::Aborted), 1);
    assert_eq!(bench.tally(Tally::Attempts), 4);
    assert_eq!(bench.maps.flow(&first.key()).unwrap().isn, 0x1000);
    // Answers to the old one are answers to nobody.
    bench.run(Entry::InIngress, &first.answered().ether());
    assert_eq!(bench.counts(LOOPBACK), (3, 0));

    // One that waits, too, gives up its place in the line.
    let waiting = Dial::v4(9);
    for isn in 1..=4 {
        let code = bench.run(Entry::OutEgress, &waiting.with_isn(isn).syn().ether());
        assert_eq!(code, SWALLOWED);
        assert_eq!(bench.counts(LOOPBACK), (3, 1));
    }
    assert_eq!(bench.tally(Tally::Aborted), 4);
}

#[test]
fn a_packet_that_passes_several_devices_is_one_attempt() {
    let namespace = Namespace::new("stacked");
    for device in ["bond0", "vlan0"] {
        namespace.ip(&format!(
            "link add name {device} type veth peer name {device}-peer"
        ));
    }
    let [upper, lower] = ["vlan0", "bond0"].map(|device| namespace.ifindex(device));
    let at = |ifindex: u32| Beside {
        ifindex,
        ..Beside::default()
    };
    namespace.run(|| {
        let mut bench = Bench::new(&timeless(3));
        bench.daemon_is_alive(7);
        for (n, dial) in [Dial::v4(0), Dial::v6(1), Dial::v4(2)]
            .into_iter()
            .enumerate()
        {
            for (ifindex, frame) in [
                (upper, dial.syn().ether()),
                (lower, dial.syn().tagged(&[VLAN])),
            ] {
                assert_eq!(
                    bench.run_beside(Entry::OutEgress, &frame, at(ifindex)),
                    PASS
                );
            }
            assert_eq!(bench.counts(upper), (n as u64 + 1, 0));
            assert_eq!(bench.counts(lower), (0, 0));
        }
        // To a known endpoint: the second device does not take it for a
        // retransmission.
        bench.run_beside(Entry::InIngress, &Dial::v4(0).answered().ether(), at(upper));
        let friend = Dial::v4(0).by_port(51_000);
        for ifindex in [upper, lower] {
            let code = bench.run_beside(Entry::OutEgress, &friend.syn().ether(), at(ifindex));
            assert_eq!(code, PASS);
        }
        let flow = bench.maps.flow(&friend.key()).unwrap();
        assert_eq!(flow.phase(), Phase::Known);
        assert!(bench.is_known(&friend.key().endpoint()));
        // One that waits, too: there is room, and it is no retransmission.
        let waiting = [Dial::v4(3), Dial::v4(4)];
        let full = Dial::v4(5);
        for (dial, code) in [
            (full, PASS),
            (waiting[0], SWALLOWED),
            (waiting[1], SWALLOWED),
        ] {
            let got = bench.run_beside(Entry::OutEgress, &dial.syn().ether(), at(upper));
            assert_eq!(got, code);
        }
        bench.daemon_hangs(7);
        let reset = full.reset(full.isn.wrapping_add(1));
        bench.run_beside(Entry::InIngress, &reset.ether(), at(upper));
        assert_eq!(bench.counts(upper), (2, 2));
        let [waiting, _] = waiting;
        for (ifindex, code) in [(lower, SWALLOWED), (upper, PASS), (lower, PASS)] {
            let got = bench.run_beside(Entry::OutEgress, &waiting.syn().ether(), at(ifindex));
            assert_eq!(got, code, "on {ifindex}");
        }
        assert_eq!(bench.counts(upper), (3, 1));
        bench.run_beside(
            Entry::InIngress,
            &waiting.reset(waiting.isn.wrapping_add(1)).ether(),
            at(upper),
        );
        // The answer passes both as well.
        for ifindex in [lower, upper] {
            bench.run_beside(
                Entry::InIngress,
                &Dial::v6(1).answered().ether(),
                at(ifindex),
            );
        }
        assert_eq!(bench.counts(upper), (1, 1));
        assert_eq!(bench.unhandled("unparsed"), 0);
    });
}

#[test]
fn what_is_no_attempt_passes_a_full_throttle() {
    let bench = full(FIRST);
    bench.run(Entry::OutEgress, &Dial::v4(9).syn().ether());
    bench.records();
    let counts = bench.counts(LOOPBACK);
    let mut passed = 0;
    for frame in table() {
        let reading = Reading::on_the_host(&frame.bytes, frame.link);
        if !matches!(reading, Reading::Syn { .. }) {
            for entry in [Entry::OutEgress, Entry::OutIngress] {
                let code = bench.try_run(entry, frame.link, &frame.bytes, Beside::default());
                assert_eq!(code, Ok(PASS), "{}", frame.name);
                passed += 1;
            }
        }
    }
    assert_eq!(
        bench.run(Entry::OutEgress, &ether(&[], 0x88cc, &[0; 50])),
        PASS
    );
    assert_eq!(bench.counts(LOOPBACK), counts);
    assert!(passed > 100, "{passed}");
}

// ---- the same decisions ---------------------------------------------------

/// Thousands of packets of a few attempts, in the kernel and on the host.
#[test]
fn the_kernel_decides_as_the_core_does_on_the_host() {
    const PACKETS: usize = 4_000;
    for seed in [1, 4_226] {
        let policy = Policy {
            line_capacity: 4,
            ..timeless(3)
        };
        let mut bench = Bench::new(&policy);
        let mut model = Model::new(&policy, LOOPBACK);
        let mut numbers = Numbers(seed);
        let mut codes = [0_usize; 2];
        for round in 0..PACKETS {
            if round % 250 == 249 {
                let_a_retransmission_be_due();
            }
            // Few endpoints, few ports, few numbers.
            let host = u8::try_from(1 + numbers.below(4)).unwrap();
            let dial = Dial {
                family: [frame::Family::V4, frame::Family::V6][numbers.below(2)],
                host,
                ports: (u16::try_from(40_000 + numbers.below(2)).unwrap(), 80),
                isn: 0x1000 * u32::try_from(1 + numbers.below(40) / 39).unwrap(),
            };
            let what = numbers.below(100);
            let how = format!("seed {seed}, round {round}, {what}: {dial:?}");
            let number = match numbers.below(5) {
                0 => dial.isn,
                1 => dial.isn ^ 0x1_0000,
                _ => dial.isn.wrapping_add(1),
            };
            match what {
                0..50 => {
                    let data = if numbers.below(20) == 0 { 300 } else { 0 };
                    let frame = dial.syn_with_data(data).ether();
                    let code = bench.run(Entry::OutEgress, &frame);
                    let data = u32::try_from(data).unwrap();
                    let times = [monotonic_ns(); 3];
                    let verdict = model.syn(dial, data, frame.len(), Offer::Sender, times);
                    let expected = match verdict {
                        Verdict::Pass => PASS,
                        Verdict::Swallow => SWALLOWED,
                    };
                    assert_eq!(code, expected, "{how}");
                    codes[usize::from(code == PASS)] += 1;
                }
                50..65 => {
                    bench.run(Entry::InIngress, &dial.syn_ack(number).ether());
                    model.answer(dial, number, Tally::Answered, monotonic_ns());
                }
                65..82 => {
                    bench.run(Entry::InIngress, &dial.reset(number).ether());
                    model.answer(dial, number, Tally::Refused, monotonic_ns());
                }
                82..95 => {
                    let number = number.wrapping_sub(1);
                    bench.run(Entry::InIngress, &dial.unreachable(number).ether());
                    model.error(dial, number);
                }
                _ => {
                    let generation = numbers.below(3) as u64;
                    let alive = generation != 0 && numbers.below(2) != 0;
                    model.daemon = Daemon {
                        generation,
                        cookie: 0,
                        alive_until_ns: if alive { u64::MAX } else { 0 },
                    };
                    bench.maps.set_daemon(&model.daemon).unwrap();
                }
            }
            assert_eq!(bench.tallies(), model.tallies, "{how}");
            let counts = (model.scope.half_open.total(), model.scope.queued.total());
            assert_eq!(bench.counts(LOOPBACK), counts, "{how}");
            assert_eq!(
                bench.record_kinds(),
                std::mem::take(&mut model.records),
                "{how}"
            );
            let kernel = bench.maps.flow(&dial.key());
            let host = model.flows.get(&dial.key());
            assert_eq!(kernel.is_some(), host.is_some(), "{how}");
            if let (Some(kernel), Some(host)) = (kernel, host) {
                let kind = |phase: Phase| match phase {
                    Phase::Ended => "ended",
                    Phase::Deferred => "deferred",
                    Phase::Counted(_) => "counted",
                    Phase::Known => "known",
                };
                assert_eq!(kind(kernel.phase()), kind(host.phase()), "{how}");
                assert_eq!(
                    (
                        kernel.isn,
                        kernel.handed_to(),
                        kernel.is_on_wire(),
                        kernel.too_long
                    ),
                    (host.isn, host.handed_to(), host.is_on_wire(), host.too_long),
                    "{how}"
                );
            }
            let endpoint = dial.key().endpoint();
            let known = model.is_known(&endpoint, monotonic_ns());
            assert_eq!(bench.is_known(&endpoint), known, "{how}");
        }
        let [swallowed, passed] = codes;
        println!("seed {seed}: {passed} SYNs passed, {swallowed} were swallowed");
        println!("{:?}", model.tallies);
        assert!(swallowed > 200 && passed > 200);
        // Every tally was met often, but for those that take time.
        for (name, count) in throttle_common::record::Tallies::NAMES
            .iter()
            .zip(model.tallies.0)
        {
            let takes_time = ["expired", "episodes"].contains(name);
            assert!(count > 10 || takes_time, "{name}: {count}");
        }
    }
}
