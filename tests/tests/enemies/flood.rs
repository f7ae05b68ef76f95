//! SYNs as fast as two CPUs send them, from random sources to random
//! destinations.

use super::{
    bench::{Bench, Entry, LOOPBACK, PASS, SECOND, interface, timeless},
    build::{Dial, Numbers},
    runner::{Runner, stay_on, two_cpus},
    wire,
};
use nix::libc;
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use throttle::{clock::monotonic_ns, object::Sizes};
use throttle_common::{
    frame::Link,
    policy::Policy,
    record::{Tallies, Tally},
    scope::{Line, Scope},
    subject::SubjectKind,
};
use throttle_tests::{Namespace, wait_until};

/// How long a flood lasts.
const LASTS: Duration = Duration::from_secs(2);
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

/// Frames that are sent together.
pub(crate) struct Batch {
    frames: Vec<Vec<u8>>,
    sent: u64,
}

impl Batch {
    const SIZE: usize = 64;

    pub(crate) fn new() -> Self {
        Self {
            frames: Vec::with_capacity(Self::SIZE),
            sent: 0,
        }
    }

    /// One more. It leaves when there are enough.
    pub(crate) fn add(&mut self, socket: &OwnedFd, frame: &[u8]) {
        self.frames.push(frame.to_vec());
        if self.frames.len() == Self::SIZE {
            self.flush(socket);
        }
    }

    /// How many have been sent, after the last ones have.
    pub(crate) fn finish(mut self, socket: &OwnedFd) -> u64 {
        self.flush(socket);
        self.sent
    }

    fn flush(&mut self, socket: &OwnedFd) {
        let mut pieces: Vec<libc::iovec> = self
            .frames
            .iter_mut()
            .map(|frame| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = pieces
            .iter_mut()
            .map(|piece| {
                // SAFETY: numbers and pointers, for which zero is a value.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = piece;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut from = 0;
        while from < messages.len() {
            let rest = &mut messages[from..];
            let count = libc::c_uint::try_from(rest.len()).unwrap();
            // SAFETY: the messages, their pieces and frames live until it returns.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            let error = io::Error::last_os_error();
            match usize::try_from(sent) {
                Ok(sent) => {
                    from += sent;
                    self.sent += sent as u64;
                }
                // Room on the socket comes back as frames leave the device.
                Err(_) if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
                Err(_) => panic!("send: {error}"),
            }
        }
        self.frames.clear();
    }
}

/// A SYN, of which addresses, ports and number are drawn anew each time.
pub(crate) struct RandomSyn {
    frame: Vec<u8>,
    /// Of each field where it is and how long.
    fields: &'static [(usize, usize)],
}

impl RandomSyn {
    pub(crate) fn v4() -> Self {
        Self {
            frame: Dial::v4(0).syn().ether(),
            fields: &[(14 + 12, 8), (14 + 20, 8)],
        }
    }

    pub(crate) fn v6() -> Self {
        Self {
            frame: Dial::v6(0).syn().ether(),
            fields: &[
                (14 + 8, 8),
                (14 + 16, 8),
                (14 + 24, 8),
                (14 + 32, 8),
                (14 + 40, 8),
            ],
        }
    }

    pub(crate) fn next(&mut self, numbers: &mut Numbers) -> &[u8] {
        for (at, len) in self.fields {
            self.frame[*at..at + len].copy_from_slice(&numbers.next().to_le_bytes());
        }
        &self.frame
    }
}

/// Stops the flood, also when a look at it has failed.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends by `ifindex` from two CPUs until it is told to stop, one with each
/// family. Meanwhile runs `look`. How many frames were sent.
fn flood(ifindex: u32, mut look: impl FnMut()) -> u64 {
    let stop = AtomicBool::new(false);
    let families: [fn() -> RandomSyn; 2] = [RandomSyn::v4, RandomSyn::v6];
    thread::scope(|threads| {
        let senders: Vec<_> = (11..)
            .zip(two_cpus())
            .zip(families)
            .map(|((seed, cpu), syn)| {
                // Opened here: a new thread is in the same namespace.
                let (socket, stop) = (wire::socket(ifindex), &stop);
                threads.spawn(move || {
                    stay_on(cpu);
                    let (mut syn, mut numbers) = (syn(), Numbers(seed));
                    let mut batch = Batch::new();
                    while !stop.load(Ordering::Relaxed) {
                        batch.add(&socket, syn.next(&mut numbers));
                    }
                    batch.finish(&socket)
                })
            })
            .collect();
        let until_here = StopWhenDropped(&stop);
        let began = Instant::now();
        while began.elapsed() < LASTS {
            look();
            thread::sleep(Duration::from_millis(5));
        }
        drop(until_here);
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .sum()
    })
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
            "{sent} SYNs in {LASTS:?} from two CPUs, looked at {looks} times: at most {} half-open and \
             {} waiting; {tallies:?}; entries and room {held:?}; nothing left {:.2} s later",
            most.0,
            most.1,
            healed_ns as f64 / 1e9
        );
        drop(link);
    });
}

/// Behind a gateway each source may be a line or a scope of its own.
#[test]
fn a_flood_from_random_sources_grows_no_table_and_harms_no_other_scope() {
    for scope in [SubjectKind::Interface, SubjectKind::Source] {
        // Between namespaces a packet loses the socket that sent it.
        let (namespace, gateway) = (Namespace::new("flood"), Namespace::new("gateway"));
        add_wire(&namespace);
        namespace.ip(&format!("link set far0 netns {}", gateway.path()));
        gateway.ip("link set far0 up");
        let (near, far) = (namespace.ifindex("eth0"), gateway.ifindex("far0"));
        namespace.run(|| {
            await_wire(&namespace);
            let policy = policy(scope);
            let sizes = Sizes::new(&policy, aya::util::nr_cpus().unwrap());
            let mut bench = Bench::sized(&policy, &sizes);
            bench.daemon_is_alive(7);
            let link = gateway.run(|| bench.attach_to_ingress(Entry::OutIngress, "far0"));
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
                "scope {scope:?}: {sent} SYNs from random sources in {LASTS:?}: scopes, lines and attempts, \
                 and room for them: {held:?}; all {dialled} attempts of another scope went out at once; \
                 nothing left {:.2} s later; unhandled {:?}",
                healed_ns as f64 / 1e9,
                bench.maps.unhandled()
            );
            drop(link);
        });
    }
}
