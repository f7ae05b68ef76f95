//! Damaged frames, very many of them, through the loaded programs. Each is read
//! there as on the host, and every one is accounted for.

use super::{
    bench::{Bench, DROPPED, Entry, LOOPBACK, PASS, SWALLOWED, timeless},
    build::{Dial, Named, Numbers, table},
    reading::{Reading, is_refused_by_the_runner},
    runner::{Runner, stay_on, two_cpus},
};
use std::time::Instant;
use throttle_common::{frame::Link, policy::Policy, record::Tally};

/// After so many the counters are compared, too.
const BATCH: usize = 512;
const EINVAL: i32 = 22;

/// A frame of the table, or two of them, with some damage.
fn mutant(table: &[&Named], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = table[numbers.below(table.len())].bytes.clone();
    if numbers.below(16) == 0 {
        // The head of one, the tail of another.
        let other = &table[numbers.below(table.len())].bytes;
        let at = numbers.below(bytes.len().min(other.len()));
        bytes.truncate(at);
        bytes.extend(&other[at..]);
    }
    for _ in 0..numbers.below(5) {
        // Mostly in the headers.
        let reach = if numbers.below(4) == 0 {
            bytes.len()
        } else {
            bytes.len().min(80)
        };
        let at = numbers.below(reach);
        match numbers.below(8) {
            0..3 => bytes[at] ^= 1 << numbers.below(8),
            3..5 => bytes[at] = [0, 1, 4, 5, 6, 17, 44, 0x45, 0x60, 0x80, 0xff][numbers.below(11)],
            5 => bytes[at] = numbers.byte(),
            6 => {
                // A length or an offset that is a little off.
                bytes[at] = bytes[at].wrapping_add([1, 2, 0xff, 0xfe][numbers.below(4)]);
            }
            _ => {
                // Something more in the middle.
                let len = 1 + numbers.below(8);
                bytes.splice(at..at, (0..len).map(|_| numbers.byte()));
            }
        }
    }
    if numbers.below(4) == 0 {
        bytes.truncate(15 + numbers.below(bytes.len().max(16) - 15));
    }
    if bytes.is_empty() {
        bytes.push(0);
    }
    bytes
}

/// Runs so many mutants.
fn run(count: usize, seed: u64) {
    // No room, no line: every SYN is an attempt that overflows, and nothing is
    // remembered from one frame to the next.
    let bench = Bench::new(&Policy {
        line_capacity: 0,
        queue_capacity: 0,
        known_for_ns: 0,
        ..timeless(0)
    });
    stay_on(two_cpus()[0]);
    let whole = table();
    let doors: Vec<(Entry, Link, Runner, Vec<&Named>)> = Entry::ALL
        .into_iter()
        .flat_map(|entry| [(entry, Link::Ethernet), (entry, Link::Ip)])
        .map(|(entry, link)| {
            let frames = whole.iter().filter(|frame| frame.link == link).collect();
            (entry, link, Runner::new(bench.program(entry, link)), frames)
        })
        .collect();
    let stamp = Dial::v4(77).reset(0x5151_5151).ether();
    let stamp_reading = Reading::on_the_host(&stamp, Link::Ethernet);
    let stamper = Runner::new(bench.program(Entry::InIngress, Link::Ethernet));
    stamper.run(&stamp);

    let (mut numbers, began) = (Numbers(seed), Instant::now());
    let mut readings = [0_u64; 6];
    let (mut refused, mut swallowed) = (0_u64, 0_u64);
    let mut noted = stamp_reading;
    for round in 0..count {
        let (entry, link, runner, frames) = &doors[numbers.below(doors.len())];
        let frame = mutant(frames, &mut numbers);
        let expected = Reading::for_entry(&frame, *link, *entry);
        let said = || format!("seed {seed}, round {round}, {entry:?}, {link:?}: {frame:02x?}");
        if expected == noted {
            // What the frame before it left must not pass for its own.
            stamper.run(&stamp);
            noted = stamp_reading;
        }
        let code = match runner.try_run(&frame) {
            Ok(code) => code,
            Err(EINVAL) if is_refused_by_the_runner(&frame) => {
                refused += 1;
                continue;
            }
            Err(errno) => panic!("{errno}: {}", said()),
        };
        let kind = match expected {
            Reading::Syn { .. } => 0,
            Reading::SynAck(..) => 1,
            Reading::Reset(..) => 2,
            Reading::Error(..) => 3,
            Reading::Other => 4,
            Reading::Unparsed => 5,
        };
        readings[kind] += 1;
        if kind < 4 {
            noted = expected;
        }
        let kernel = Reading::in_the_kernel(bench.seen(), 0);
        assert_eq!(kernel, noted, "{}", said());
        let right = match (kind, entry) {
            (0, Entry::OutEgress) => SWALLOWED,
            (0, Entry::OutIngress) => DROPPED,
            _ => PASS,
        };
        assert_eq!(code, right, "{}", said());
        swallowed += u64::from(right != PASS);
        if round % BATCH == 0 || round == count - 1 {
            assert_eq!(bench.unhandled("unparsed"), readings[5], "{}", said());
            let tallies = bench.tallies();
            assert_eq!(tallies.get(Tally::Attempts), swallowed, "{}", said());
            assert_eq!(tallies.get(Tally::Overflowed), swallowed, "{}", said());
        }
    }
    for (name, count) in bench.maps.unhandled() {
        assert!(name == "unparsed" || count == 0, "{name}: {count}");
    }
    assert_eq!(bench.counts(LOOPBACK), (0, 0));
    println!(
        "measured: damaged frames, seed {seed}: {count} damaged frames in {:.1?}: {} SYNs, {} SYN-ACKs, {} RSTs, {} ICMP errors, \
         {} others, {} unparsed, each as on the host; {refused} are not for the kernel's runner",
        began.elapsed(),
        readings[0],
        readings[1],
        readings[2],
        readings[3],
        readings[4],
        readings[5]
    );
    assert!(
        readings.iter().all(|n| *n > count as u64 / 1_000),
        "{readings:?}"
    );
}

#[test]
fn damaged_frames_are_read_as_on_the_host_and_all_accounted_for() {
    run(1_000_000, 4_226);
}

#[test]
#[ignore = "takes minutes; the same with fewer frames runs each time"]
fn ten_million_damaged_frames_are_read_as_on_the_host_and_all_accounted_for() {
    run(10_000_000, 2_004);
}
