//! Tables that are far too small: entries go, and with them the receipts of what
//! they count.

use super::{
    bench::{Bench, Entry, LOOPBACK, SECOND, interface, timeless},
    build::{Dial, Numbers},
    generator::RandomSyn,
    runner::Runner,
};
use std::time::{Duration, Instant};
use throttle::{clock::monotonic_ns, object::Sizes};
use throttle_common::{
    frame::Link,
    policy::Policy,
    record::Tally,
    release::SENDER_BURST_NS,
    scope::{Line, Scope},
    subject::SubjectKind,
};
use throttle_tests::wait_until;

const TIMEOUT_NS: u64 = SECOND;

/// Room for a few of everything.
fn tiny() -> Sizes {
    let few = 16 * u32::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    Sizes {
        flows: few,
        uncounted: few,
        endpoints: few,
        sockets: few,
        scopes: few,
        lines: few,
        tallies: few,
        ring_bytes: 1 << 16,
    }
}

fn policy(scope: SubjectKind) -> Policy {
    Policy {
        interval_ns: SECOND / 100,
        attempt_timeout_ns: TIMEOUT_NS,
        max_delay_ns: TIMEOUT_NS,
        line_capacity: 100,
        queue_capacity: 1_024,
        scope: scope as u32,
        ..timeless(500)
    }
}

/// How many may be released while one of them counts: at the rate, and as many as
/// senders may make up for, within the timeout and a bucket of it.
fn releases(policy: &Policy) -> u64 {
    (TIMEOUT_NS + TIMEOUT_NS / 10 + SENDER_BURST_NS) / policy.interval_ns
}

/// How many there are of everything in any scope, at most, if so many at once may have
/// been released over the limit.
#[track_caller]
fn assert_sane(bench: &Bench, policy: &Policy, released: u64) -> (u64, u64) {
    let mut most = (0, 0);
    for (subject, scope) in bench.maps.scopes() {
        let (half_open, queued) = (scope.half_open.total(), scope.queued.total());
        // Nothing is ever negative.
        assert!(
            half_open <= policy.limit + released,
            "{subject:?}: {half_open} half-open"
        );
        assert!(
            queued <= policy.queue_capacity,
            "{subject:?}: {queued} wait"
        );
        most = (most.0.max(half_open), most.1.max(queued));
    }
    for line in bench.lines() {
        let waiting = line.queued.total();
        assert!(waiting <= policy.line_capacity, "{waiting} in a line");
    }
    most
}

/// Nothing counts any more, once it had its time.
fn assert_heals(bench: &Bench, policy: &Policy) -> Duration {
    let began = Instant::now();
    let heals_in = Duration::from_nanos(TIMEOUT_NS) + Duration::from_millis(500);
    wait_until("the counts to heal", heals_in, || {
        let now_ns = monotonic_ns();
        let half_open = Scope::half_open_window(policy);
        let queue = Scope::queue_window(policy);
        bench.maps.scopes().all(|(_, scope)| {
            scope.half_open.live(half_open, now_ns) + scope.queued.live(queue, now_ns) == 0
        }) && bench
            .lines()
            .iter()
            .all(|line| line.queued.live(Line::window(policy), now_ns) == 0)
    });
    began.elapsed()
}

#[test]
fn with_far_more_attempts_than_fit_the_count_heals_within_one_timeout() {
    const ROUNDS: usize = 3;
    const EACH: usize = 30_000;
    let policy = policy(SubjectKind::Interface);
    let mut bench = Bench::sized(&policy, &tiny());
    bench.daemon_hangs(7);
    let out = Runner::new(bench.program(Entry::OutEgress, Link::Ethernet));
    let back = Runner::new(bench.program(Entry::InIngress, Link::Ethernet));
    let mut numbers = Numbers(5);
    for round in 0..ROUNDS {
        let mut most = (0, 0);
        for n in 0..EACH {
            // Of two thousand flows, of which a few dozen fit: new ones, others
            // again, answers to those that are gone and to those that are there.
            let dial = Dial {
                host: u8::try_from(1 + numbers.below(20)).unwrap(),
                ..[Dial::v4, Dial::v6][numbers.below(2)](u16::try_from(numbers.below(50)).unwrap())
            };
            match numbers.below(8) {
                0 => back.run(&dial.reset(dial.isn.wrapping_add(1)).ether()),
                1 => back.run(&dial.unreachable(dial.isn).ether()),
                2 => out.run(&dial.with_isn(1).syn().ether()),
                _ => out.run(&dial.syn().ether()),
            };
            if n % 64 == 0 {
                let counts = assert_sane(&bench, &policy, releases(&policy));
                most = (most.0.max(counts.0), most.1.max(counts.1));
                bench.records();
            }
        }
        let entries = bench.maps.counted().count();
        assert!(entries <= tiny().flows as usize, "{entries}");
        assert!(most.0 >= entries as u64, "{most:?}");
        let healed = assert_heals(&bench, &policy);
        // Not stuck: there is room for as many as ever.
        for n in 0..policy.limit {
            // None of those that are still in the table of another CPU.
            let dial = Dial::v4(u16::try_from(2_000 + 1_000 * round as u64 + n).unwrap());
            let passed = bench.tally(Tally::Passed);
            out.run(&dial.syn().ether());
            assert_eq!(
                bench.tally(Tally::Passed),
                passed + 1,
                "attempt {n} of round {round}"
            );
        }
        assert_eq!(bench.counts(LOOPBACK).0, policy.limit);
        println!(
            "measured: tiny tables, round {round}: {EACH} packets over room for {} flows: at most {} \
             half-open and {} waiting, {entries} entries; nothing left after {healed:.2?}",
            tiny().flows,
            most.0,
            most.1
        );
        assert_heals(&bench, &policy);
    }
    let tallies = bench.maps.tallies(&interface(LOOPBACK));
    println!("{tallies:?}, unhandled {:?}", bench.maps.unhandled());
    assert_eq!(bench.unhandled("unaccountable"), 0);
}

#[test]
fn with_far_more_scopes_lines_and_endpoints_than_fit_nothing_is_stuck() {
    const SYNS: usize = 60_000;
    let policy = policy(SubjectKind::Source);
    let sizes = tiny();
    let mut bench = Bench::sized(&policy, &sizes);
    bench.daemon_is_alive(7);
    let out = Runner::new(bench.program(Entry::OutEgress, Link::Ethernet));
    let back = Runner::new(bench.program(Entry::InIngress, Link::Ethernet));
    let (mut syns, mut numbers) = ([RandomSyn::v4(), RandomSyn::v6()], Numbers(6));
    for n in 0..SYNS {
        let of = numbers.below(2);
        out.run(syns[of].next(&mut numbers));
        // One endpoint after the other answers and is dialled again.
        let dial = Dial::v4(u16::try_from(n % 20_000).unwrap());
        out.run(&dial.syn().ether());
        back.run(&dial.answered().ether());
        out.run(&dial.by_port(9).syn().ether());
        if n % 256 == 0 {
            assert_sane(&bench, &policy, 0);
            bench.records();
        }
    }
    let held = [
        (bench.maps.scopes().count(), sizes.scopes),
        (bench.lines().len(), sizes.lines),
        (bench.endpoints(), sizes.endpoints),
        (bench.maps.counted().count(), sizes.flows),
        (bench.maps.uncounted().count(), sizes.uncounted),
    ];
    for (entries, size) in held {
        assert!(entries <= size as usize, "{held:?}");
    }
    let healed = assert_heals(&bench, &policy);
    println!(
        "measured: tiny tables of scopes and endpoints: {SYNS} sources and as many endpoints over tables of {}: {held:?}; nothing left after \
         {healed:.2?}",
        sizes.scopes
    );
}
