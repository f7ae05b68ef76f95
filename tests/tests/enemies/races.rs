//! Two CPUs at the same few attempts at the same time. What the model checker
//! looks at step by step is here met at full speed, with the kernel's own tables
//! underneath.

use super::{
    bench::{Bench, Entry, LOOPBACK, SECOND, timeless},
    build::{Dial, Numbers},
    runner::{Runner, stay_on, two_cpus},
};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use throttle::clock::monotonic_ns;
use throttle_common::{
    flow::{Flow, Phase},
    frame::Link,
    policy::{Daemon, Mode, Policy},
    record::Tally,
    scope::{Line, Scope},
};
use throttle_tests::wait_until;

/// Packets of each CPU.
const EACH: usize = 250_000;
/// The highest limit there is meanwhile.
const HIGHEST: u64 = 5;

/// All that may happen to a few attempts.
fn packets() -> Vec<(Entry, Vec<u8>)> {
    let mut packets = Vec::new();
    for n in 0..5 {
        for dial in [Dial::v4(n), Dial::v6(n)] {
            let (old, new) = (dial, dial.with_isn(dial.isn ^ 0x77));
            for _ in 0..4 {
                packets.push((Entry::OutEgress, old.syn().ether()));
            }
            packets.push((Entry::OutEgress, new.syn().ether()));
            for of in [old, new] {
                let next = of.isn.wrapping_add(1);
                packets.push((Entry::InIngress, of.reset(next).ether()));
                packets.push((Entry::InIngress, of.unreachable(of.isn).ether()));
                packets.push((Entry::InIngress, of.syn_ack(next).ether()));
            }
        }
    }
    packets
}

/// Both CPUs draw from the packets while somebody changes the settings.
fn race(bench: &mut Bench, policy: &Policy) -> usize {
    let packets = packets();
    let done = AtomicUsize::new(0);
    thread::scope(|threads| {
        for (seed, cpu) in (21..).zip(two_cpus()) {
            let (packets, done) = (&packets, &done);
            let [out, back] = [Entry::OutEgress, Entry::InIngress]
                .map(|entry| bench.program(entry, Link::Ethernet))
                .map(Runner::new);
            threads.spawn(move || {
                stay_on(cpu);
                let mut numbers = Numbers(seed);
                for _ in 0..EACH {
                    let (entry, frame) = &packets[numbers.below(packets.len())];
                    if entry.looks_outward() { &out } else { &back }.run(frame);
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        let (mut numbers, mut changes) = (Numbers(31), 0);
        while done.load(Ordering::SeqCst) < 2 {
            let mode = if numbers.below(4) == 0 {
                Mode::Monitor
            } else {
                Mode::Enforce
            };
            let changed = Policy {
                limit: numbers.next() % (HIGHEST + 1),
                line_capacity: 1 + numbers.next() % 4,
                known_for_ns: if numbers.below(8) == 0 {
                    policy.known_for_ns
                } else {
                    0
                },
                mode: mode as u32,
                ..*policy
            };
            bench.maps.set_policy(&changed).unwrap();
            let alive_until_ns = if numbers.below(2) == 0 { u64::MAX } else { 0 };
            bench
                .maps
                .set_daemon(&Daemon {
                    generation: numbers.next() % 3,
                    cookie: 0,
                    alive_until_ns,
                })
                .unwrap();
            // Nothing is ever negative to whoever looks.
            let (half_open, queued) = bench.counts(LOOPBACK);
            assert!(half_open < 100 && queued < 100, "{half_open}, {queued}");
            bench.records();
            changes += 1;
            thread::sleep(Duration::from_micros(200));
        }
        changes
    })
}

#[test]
fn after_two_cpus_raced_the_counts_are_the_sum_of_what_is_in_the_table() {
    let policy = Policy {
        line_capacity: 4,
        queue_capacity: 100,
        ..timeless(3)
    };
    let mut bench = Bench::new(&policy);
    let began = Instant::now();
    let changes = race(&mut bench, &policy);
    let (mut counted, mut waiting) = (0, 0);
    let (flows, uncounted): (Vec<_>, Vec<_>) = (
        bench.maps.counted().collect(),
        bench.maps.uncounted().collect(),
    );
    for (_, flow) in flows.iter().chain(&uncounted) {
        match flow.phase() {
            Phase::Counted(_) => counted += 1,
            Phase::Deferred => waiting += 1,
            Phase::Known => {}
            Phase::Ended => panic!("over, and still there: {flow:?}"),
        }
    }
    let is_known = |(_, flow): &(_, Flow)| flow.phase() == Phase::Known;
    assert!(!flows.iter().any(is_known), "in the wrong table");
    let (half_open, queued) = bench.counts(LOOPBACK);
    let in_line: u64 = bench.lines().iter().map(|line| line.queued.total()).sum();
    println!(
        "measured: races: {} packets of 20 attempts by two CPUs in {:.1?}, {changes} changes of the \
         settings: {half_open} half-open and {queued} waiting ({in_line} in lines), {counted} and \
         {waiting} in the table",
        2 * EACH,
        began.elapsed()
    );
    println!(
        "{:?}, unhandled {:?}",
        bench.tallies(),
        bench.maps.unhandled()
    );
    // No place is held by nobody, and nobody is without one.
    assert_eq!((half_open, queued, in_line), (counted, waiting, waiting));
    let tallies = bench.tallies();
    for tally in [
        Tally::Passed,
        Tally::Deferred,
        Tally::Released,
        Tally::Overflowed,
        Tally::Answered,
        Tally::Refused,
        Tally::Unreachable,
        Tally::Aborted,
    ] {
        assert!(tallies.get(tally) > 100, "{tally:?}: {tallies:?}");
    }
    // Each attempt that came in is one of these, and ended once or is there.
    assert_eq!(
        tallies.get(Tally::Attempts),
        tallies.get(Tally::Passed)
            + tallies.get(Tally::Deferred)
            + tallies.get(Tally::Overflowed)
            + bench.unhandled("flow_table_full")
    );
}

#[test]
fn ends_race_with_the_timeout_and_nothing_is_left_or_taken_twice() {
    let policy = Policy {
        interval_ns: SECOND / 50,
        attempt_timeout_ns: SECOND,
        max_delay_ns: SECOND,
        line_capacity: 4,
        queue_capacity: 100,
        ..timeless(3)
    };
    let mut bench = Bench::new(&policy);
    let changes = race(&mut bench, &policy);
    bench.maps.set_policy(&policy).unwrap();
    let (half_open, queue) = (
        Scope::half_open_window(&policy),
        Scope::queue_window(&policy),
    );
    wait_until("everything to time out", Duration::from_secs(2), || {
        let now_ns = monotonic_ns();
        bench.maps.scopes().all(|(_, scope)| {
            scope.half_open.live(half_open, now_ns) + scope.queued.live(queue, now_ns) == 0
        }) && bench
            .lines()
            .iter()
            .all(|line| line.queued.live(Line::window(&policy), now_ns) == 0)
    });
    bench.daemon_hangs(7);
    // The total is the sum of the live buckets: none, and then one.
    bench.run(Entry::OutEgress, &Dial::v4(500).syn().ether());
    assert_eq!(bench.counts(LOOPBACK), (1, 0));
    println!(
        "measured: races with timeouts of 1 s: {} packets, {changes} changes of the settings: \
         nothing left",
        2 * EACH
    );
}
