//! SYNs as fast as two CPUs send them, from random sources to random
//! destinations.

use super::{
    bench::{Bench, Entry, LOOPBACK, PASS, SECOND, interface, timeless},
    build::Dial,
    generator::{LASTS, flood},
    runner::Runner,
    wire,
};
use std::time::Duration;
use throttle::{clock::monotonic_ns, object::Sizes};
use throttle_common::{
    frame::Link,
    policy::Policy,
    record::{Tallies, Tally},
    scope::{Line, Scope},
    subject::SubjectKind,
};
use throttle_tests::{Namespace, wait_until};

/// What is counted is forgotten after so long.
const TIMEOUT_NS: u64 = 2 * SECOND;

/// A wire in this namespace, with nothing on it that a test did not send.
pub(crate) fn add_wire(namespace: &Namespace) {
    for family in ["all", "default"] {
        namespace.set_sysctl(&format!("net.ipv6.conf.{family}.disable_ipv6"), "1");
    }
    namespace.ip("link add name eth0 up type veth peer name far0");
    namespace.ip("link set far0 up");
}

/// Waits until it carries. In the namespace.
pub(crate) fn await_wire(namespace: &Namespace) {
    wait_until("the carrier of eth0", Duration::from_secs(5), || {
        namespace.ip("link show eth0").contains("LOWER_UP")
    });
}

fn policy(scope: SubjectKind) -> Policy {
    Policy {
        interval_ns: SECOND / 10,
        attempt_timeout_ns: TIMEOUT_NS,
        max_delay_ns: TIMEOUT_NS,
        line_capacity: 20,
        queue_capacity: Policy::whole_queue(20),
        scope: scope as u32,
        ..timeless(50)
    }
}

/// How far over its bound a count may be for the moment in which a CPU adds
/// before it looks.
const LOOKS: u64 = 2;

/// No count is over its bound.
#[track_caller]
fn assert_bounded(bench: &Bench, policy: &Policy) {
    for (subject, scope) in bench.maps.scopes() {
        let (half_open, queued) = (scope.half_open.total(), scope.queued.total());
        assert!(
            half_open <= policy.limit + LOOKS,
            "{subject:?}: {half_open} half-open"
        );
        assert!(
            queued <= policy.queue_capacity + LOOKS,
            "{subject:?}: {queued} wait"
        );
    }
    for line in bench.lines() {
        let queued = line.queued.total();
        assert!(queued <= policy.line_capacity + LOOKS, "{queued} in a line");
    }
}

/// No table has more entries than it has room for. Scopes, lines and attempts.
///
/// Only when nothing comes in any more: who walks through a table begins anew when
/// the entry that he has come to is thrown out.
#[track_caller]
fn assert_tables_hold(bench: &Bench, sizes: &Sizes) -> [(usize, u32); 3] {
    let held = [
        (bench.maps.scopes().count(), sizes.scopes),
        (bench.lines().len(), sizes.lines),
        (bench.maps.counted().count(), sizes.flows),
    ];
    for (entries, size) in held {
        assert!(entries <= size as usize, "{held:?}");
    }
    assert!(bench.maps.uncounted().count() <= sizes.uncounted as usize);
    assert!(bench.endpoints() <= sizes.endpoints as usize);
    held
}

/// One timeout after the flood nothing of it counts.
fn assert_heals(bench: &Bench, policy: &Policy, stopped_ns: u64) -> u64 {
    let live = |scope: &Scope| {
        let now_ns = monotonic_ns();
        scope
            .half_open
            .live(Scope::half_open_window(policy), now_ns)
            + scope.queued.live(Scope::queue_window(policy), now_ns)
    };
    wait_until("the counts to heal", Duration::from_secs(10), || {
        bench.maps.scopes().all(|(_, scope)| live(&scope) == 0)
            && bench
                .lines()
                .iter()
                .all(|line| line.queued.live(Line::window(policy), monotonic_ns()) == 0)
    });
    let took_ns = monotonic_ns() - stopped_ns;
    assert!(took_ns < policy.attempt_timeout_ns + SECOND, "{took_ns}");
    took_ns
}

fn unhandled_of_new(bench: &Bench) -> u64 {
    ["flow_table_full", "scope_table_full"]
        .map(|name| bench.unhandled(name))
        .iter()
        .sum()
}

/// Every attempt that was seen is one of these.
#[track_caller]
fn assert_all_accounted(tallies: &Tallies, not_put_in: u64) {
    let [attempts, passed, deferred, overflowed] = [
        Tally::Attempts,
        Tally::Passed,
        Tally::Deferred,
        Tally::Overflowed,
    ]
    .map(|tally| tallies.get(tally));
    assert_eq!(
        attempts,
        passed + deferred + overflowed + not_put_in,
        "{tallies:?}"
    );
}

#[test]
fn a_flood_from_one_program_stays_bounded_and_every_packet_is_accounted_for() {
    let namespace = Namespace::new("flood");
    add_wire(&namespace);
    let ifindex = namespace.ifindex("eth0");
    namespace.run(|| {
        await_wire(&namespace);
        let policy = policy(SubjectKind::Interface);
        let sizes = Sizes::new(&policy, aya::util::nr_cpus().unwrap());
        let mut bench = Bench::sized(&policy, &sizes);
        bench.daemon_is_alive(7);
        let link = bench.attach_to_egress(Entry::OutEgress, "eth0");
        let mut looks = 0;
        let mut most = (0, 0);
        let sent = flood(ifindex, || {
            assert_bounded(&bench, &policy);
            let counts = bench.counts(ifindex);
            most = (most.0.max(counts.0), most.1.max(counts.1));
            bench.records();
            looks += 1;
        });
        let stopped_ns = monotonic_ns();
        let held = assert_tables_hold(&bench, &sizes);
        let tallies = bench.maps.tallies(&interface(ifindex));
        let again = sent - tallies.get(Tally::Attempts);
        assert_eq!(again, 0, "each has addresses and a number of its own");
        assert_all_accounted(&tallies, unhandled_of_new(&bench));
        assert_eq!(bench.unhandled("unparsed"), 0);
        assert_eq!(bench.unhandled("unaccountable"), 0);
        assert!(most.0 >= policy.limit && sent > 10_000, "{most:?}");
        let healed_ns = assert_heals(&bench, &policy, stopped_ns);
        // The next one finds an empty scope.
        wire::send(&wire::socket(ifindex), &Dial::v4(1).syn().ether());
        assert_eq!(bench.counts(ifindex), (1, 0));
        println!(
            "measured: flood from one program: {sent} SYNs in {LASTS:?} from two CPUs, looked at {looks} \
             times: at most {} half-open and {} waiting; entries and room {held:?}; nothing left \
             {:.2} s later",
            most.0,
            most.1,
            healed_ns as f64 / 1e9
        );
        drop(link);
    });
}

/// By where a pod's packets come in. Each source may be a scope of its own.
#[test]
fn a_flood_from_random_sources_grows_no_table_and_harms_no_other_scope() {
    for scope in [SubjectKind::Interface, SubjectKind::Source] {
        let namespace = Namespace::new("flood");
        add_wire(&namespace);
        let [near, far] = ["eth0", "far0"].map(|device| namespace.ifindex(device));
        namespace.run(|| {
            await_wire(&namespace);
            let policy = policy(scope);
            let sizes = Sizes::new(&policy, aya::util::nr_cpus().unwrap());
            let mut bench = Bench::sized(&policy, &sizes);
            bench.daemon_is_alive(7);
            let link = bench.attach_to_ingress(Entry::OutIngress, "far0");
            // Somebody else: from the loopback device or another source, to hosts
            // that answer.
            let program = bench.program(Entry::OutEgress, Link::Ethernet);
            let honest = Runner::new(program);
            let answer = Runner::new(bench.program(Entry::InIngress, Link::Ethernet));
            let (mut dialled, mut passed) = (0, 0);
            let sent = flood(near, || {
                assert_bounded(&bench, &policy);
                for _ in 0..20 {
                    let dial = Dial::v4(dialled % 5_000).with_isn(u32::from(dialled) + 9);
                    passed += u64::from(honest.run(&dial.syn().ether()) == PASS);
                    answer.run(&dial.reset(dial.isn.wrapping_add(1)).ether());
                    dialled += 1;
                }
                bench.records();
            });
            let stopped_ns = monotonic_ns();
            let held = assert_tables_hold(&bench, &sizes);
            assert_eq!(passed, u64::from(dialled), "somebody else was held back");
            if scope == SubjectKind::Interface {
                let tallies = bench.maps.tallies(&interface(far));
                assert_all_accounted(&tallies, unhandled_of_new(&bench));
                assert!(tallies.get(Tally::Attempts) > 10_000, "{tallies:?}");
                let own = bench.maps.tallies(&interface(LOOPBACK));
                assert_eq!(own.get(Tally::Passed), u64::from(dialled), "{own:?}");
                println!("{tallies:?}");
            }
            let healed_ns = assert_heals(&bench, &policy, stopped_ns);
            println!(
                "measured: flood, scope {scope:?}: {sent} SYNs from random sources in {LASTS:?}: scopes, lines and attempts, \
                 and room for them: {held:?}; all {dialled} attempts of another scope went out at once; \
                 nothing left {:.2} s later",
                healed_ns as f64 / 1e9
            );
            drop(link);
        });
    }
}
