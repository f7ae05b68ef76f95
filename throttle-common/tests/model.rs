//! Several CPUs at once: the invariants under a concurrency model checker.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test -p throttle-common --release --features std --test model`
//!
//! Each model is a few parties that work on one scope at the same time. The
//! checker runs them in very many orders, switching at every atomic operation.
//! What must hold in each of them: a total is the sum of its live buckets,
//! never negative, never above the limit by admission; no end is counted twice;
//! no release is given twice; no attempt is released twice.
#![cfg(shuttle)]

use std::sync::atomic::{AtomicU64, Ordering};

use shuttle::{sync::Arc, thread};
use throttle_common::{
    NANOS_PER_MILLI, NANOS_PER_SEC,
    counter::{Counter, Taken},
    decision::{
        Admission, Again, Context, Deferral, Device, Ended, Offer, admit, defer, end, seen_again,
    },
    flow::{Attempt, Entry, Flow, FlowKey, Phase, PhaseWord},
    policy::{Daemon, Policy},
    release::Releases,
    scope::{EPISODE_QUIET_NS, Line, Scope},
    subject::{Subject, SubjectKind},
    window::Window,
};

/// Orders drawn for each model, by each of two ways of drawing them.
const ORDERS: usize = 20_000;
/// Orders that are tried one after the other where a model is small.
const EXHAUSTIVE: usize = 100_000;

const START: u64 = 1_000 * NANOS_PER_SEC;
const INTERVAL: u64 = 200 * NANOS_PER_MILLI;
const INTERFACE: u32 = 7;
const GENERATION: u64 = 5;

/// Draws orders at random, and orders with few but well-placed switches.
fn at_random(model: fn()) {
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, 3);
}

/// Tries the orders one after the other, up to the bound; then draws some.
fn in_every_order(model: fn()) {
    shuttle::check_dfs(model, Some(EXHAUSTIVE));
    at_random(model);
}

type Party<T> = Box<dyn FnOnce() -> T + Send>;

/// A party that works on `shared`.
fn party<S: Send + Sync + 'static, T>(
    shared: &Arc<S>,
    work: impl FnOnce(&S) -> T + Send + 'static,
) -> Party<T> {
    let shared = Arc::clone(shared);
    Box::new(move || work(&shared))
}

/// What each party came to, when all did their work at the same time.
fn together<T: Send + 'static, const N: usize>(parties: [Party<T>; N]) -> [T; N] {
    parties
        .map(thread::spawn)
        .map(|party| party.join().expect("it did not panic"))
}

fn count<T>(results: &[T], is: impl Fn(&T) -> bool) -> usize {
    results.iter().filter(|result| is(result)).count()
}

// ---- A counter alone ----

/// A counter of which the checker can see all.
type Small = Counter<4>;

/// Not a power of two, so that no bucket of the four ages while it is current.
const SPAN: u64 = 1_500 * NANOS_PER_MILLI;

fn window() -> Window {
    Small::window(SPAN)
}

/// The beginning of a bucket, and of the next one.
fn two_clocks() -> (u64, u64) {
    let width_ns = window().width_ns();
    let earlier_ns = START / width_ns * width_ns;
    (earlier_ns, earlier_ns + width_ns)
}

/// The total, after it was compared with the sum of all buckets.
fn settled(counter: &Small) -> u64 {
    let (earlier_ns, _) = two_clocks();
    // By the earlier clock no bucket has aged.
    assert_eq!(counter.total(), counter.live(window(), earlier_ns));
    counter.total()
}

#[test]
fn the_last_place_goes_to_exactly_one_of_three() {
    in_every_order(|| {
        let counter = Arc::new(Small::new());
        let (now_ns, _) = two_clocks();
        assert!(counter.put(window(), now_ns).is_some());
        let take = move |counter: &Small| counter.take(2, window(), now_ns);
        let taken = together([
            party(&counter, take),
            party(&counter, take),
            party(&counter, take),
        ]);
        assert_eq!(count(&taken, |taken| matches!(taken, Taken::Place(_))), 1);
        assert_eq!(count(&taken, |taken| *taken == Taken::Full), 2);
        assert_eq!(settled(&counter), 2);
    });
}

#[test]
fn the_limit_holds_at_every_moment_while_places_come_and_go() {
    const LIMIT: u64 = 2;
    struct Door {
        counter: Small,
        /// Who is inside, as their own side sees it. The checker does not switch
        /// here, so a party is inside from the last step of its taking to the
        /// first of its ending.
        inside: AtomicU64,
    }
    fn pass(door: &Door, now_ns: u64) -> u64 {
        let Taken::Place(place) = door.counter.take(LIMIT, window(), now_ns) else {
            return 0;
        };
        let inside = door.inside.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(inside <= LIMIT, "{inside} inside");
        assert!(door.counter.total() < 100, "never negative");
        door.inside.fetch_sub(1, Ordering::SeqCst);
        // An end may lose all its tries; then its unit stays.
        u64::from(!door.counter.end(place))
    }
    at_random(|| {
        let door = Arc::new(Door {
            counter: Small::new(),
            inside: AtomicU64::new(0),
        });
        let (earlier_ns, later_ns) = two_clocks();
        let kept = together([
            party(&door, move |door| pass(door, earlier_ns)),
            party(&door, move |door| pass(door, earlier_ns)),
            party(&door, move |door| pass(door, later_ns)),
            party(&door, move |door| pass(door, earlier_ns)),
        ]);
        assert_eq!(settled(&door.counter), kept.iter().sum::<u64>());
    });
}

#[test]
fn a_unit_is_either_ended_or_forgiven_and_never_both() {
    at_random(|| {
        let counter = Arc::new(Small::new());
        let (earlier_ns, later_ns) = two_clocks();
        // By then the earlier bucket has aged and the later one has not.
        let sweep_ns = earlier_ns + SPAN;
        let old = counter.put(window(), earlier_ns).expect("a bucket is free");
        let [ended, forgiven, came, stayed] = together([
            party(&counter, move |counter| u64::from(counter.end(old))),
            party(&counter, move |counter| counter.retire(window(), sweep_ns)),
            party(&counter, move |counter| {
                u64::from(counter.put(window(), later_ns).is_some())
            }),
            party(&counter, move |counter| {
                match counter.take(9, window(), later_ns) {
                    Taken::Place(place) => u64::from(!counter.end(place)),
                    Taken::Full | Taken::Contended => panic!("there is room for all"),
                }
            }),
        ]);
        assert_eq!(ended + forgiven, 1, "once");
        assert_eq!((came, stayed), (1, 0));
        assert_eq!(settled(&counter), 1);
    });
}

#[test]
fn two_sweeps_forgive_each_unit_once() {
    at_random(|| {
        let counter = Arc::new(Small::new());
        let (earlier_ns, later_ns) = two_clocks();
        for _ in 0..3 {
            counter.put(window(), earlier_ns);
        }
        let one = counter.put(window(), earlier_ns).expect("a bucket is free");
        let sweep_ns = earlier_ns + SPAN;
        // A clock that is a little ahead sweeps too.
        let sweep_again_ns = sweep_ns + window().patience_ns();
        let [first, second, ended, came] = together([
            party(&counter, move |counter| counter.retire(window(), sweep_ns)),
            party(&counter, move |counter| {
                counter.retire(window(), sweep_again_ns)
            }),
            party(&counter, move |counter| u64::from(counter.end(one))),
            party(&counter, move |counter| {
                u64::from(counter.put(window(), later_ns).is_some())
            }),
        ]);
        assert_eq!(first + second + ended, 4);
        assert_eq!(settled(&counter), came);
    });
}

#[test]
fn a_total_is_never_negative_to_whoever_looks() {
    fn come_and_go(counter: &Small, now_ns: u64) {
        let place = counter.put(window(), now_ns).expect("a bucket is free");
        counter.end(place);
    }
    at_random(|| {
        let counter = Arc::new(Small::new());
        let (earlier_ns, later_ns) = two_clocks();
        together([
            party(&counter, |counter| {
                for _ in 0..6 {
                    let total = counter.total();
                    assert!(total <= 2, "{total}");
                }
            }),
            party(&counter, move |counter| come_and_go(counter, earlier_ns)),
            party(&counter, move |counter| come_and_go(counter, later_ns)),
            party(&counter, move |counter| {
                counter.retire(window(), earlier_ns + SPAN);
            }),
        ]);
        assert_eq!(settled(&counter), 0);
    });
}

// ---- Releases alone ----

#[test]
fn one_due_release_is_given_to_one_of_three() {
    in_every_order(|| {
        let releases = Arc::new(Releases::new());
        releases.begin(INTERVAL, START);
        let now_ns = START + INTERVAL;
        let give = move |releases: &Releases| releases.give(INTERVAL, INTERVAL, now_ns).is_some();
        let given = together([
            party(&releases, give),
            party(&releases, give),
            party(&releases, give),
        ]);
        assert_eq!(count(&given, |given| *given), 1);
        assert_eq!(releases.next_ns(), now_ns + INTERVAL);
    });
}

#[test]
fn releases_ahead_of_their_time_and_a_shorter_interval_keep_the_line() {
    /// Half as long: who has it brings the next release forward.
    const SHORTER: u64 = INTERVAL / 2;
    in_every_order(|| {
        let releases = Arc::new(Releases::new());
        releases.begin(INTERVAL, START);
        let ahead = |interval_ns: u64| {
            move |releases: &Releases| {
                let release = releases.give_ahead(interval_ns, 0, 2 * INTERVAL, START);
                release.map(|release| release.at_ns)
            }
        };
        let given = together([
            party(&releases, ahead(INTERVAL)),
            party(&releases, ahead(INTERVAL)),
            // It has no way to leave later.
            party(&releases, |releases| {
                let release = releases.give(SHORTER, 0, START);
                release.map(|release| release.at_ns)
            }),
        ]);
        assert_eq!(given[2], None, "nothing is due");
        let mut departs: Vec<u64> = given.into_iter().flatten().collect();
        departs.sort_unstable();
        assert_eq!(departs.len(), 2, "{departs:?}");
        // The first may have been brought forward, before anything was given.
        assert!(departs[0] == START + SHORTER || departs[0] == START + INTERVAL);
        assert!(departs[1] - departs[0] >= SHORTER, "{departs:?}");
        assert!(releases.next_ns() >= departs[1] + SHORTER);
    });
}

#[test]
fn a_queue_that_begins_late_takes_no_release_back() {
    in_every_order(|| {
        let releases = Arc::new(Releases::new());
        releases.begin(INTERVAL, START);
        let now_ns = START + INTERVAL;
        let give = move |releases: &Releases| releases.give(INTERVAL, INTERVAL, now_ns).is_some();
        let given = together([
            party(&releases, give),
            // Its clock was read before that of the others.
            party(&releases, |releases| {
                releases.begin(INTERVAL, START + 1);
                false
            }),
            party(&releases, give),
        ]);
        let given = count(&given, |given| *given);
        assert!(given <= 1);
        if given == 1 {
            assert_eq!(releases.next_ns(), now_ns + INTERVAL);
        }
    });
}

#[test]
fn what_is_handed_back_never_makes_more_releases_than_there_are() {
    /// Two are due: one of them late by an interval.
    const NOW: u64 = START + 2 * INTERVAL;
    struct Gate {
        releases: Releases,
        /// How many are out, as those who have them see it.
        out: AtomicU64,
    }
    fn pass(gate: &Gate, keeps_it: bool) -> u64 {
        let Some(release) = gate.releases.give(INTERVAL, INTERVAL, NOW) else {
            return 0;
        };
        let out = gate.out.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(out <= 2, "{out} are out");
        if keeps_it {
            return 1;
        }
        gate.out.fetch_sub(1, Ordering::SeqCst);
        gate.releases.give_back(release);
        0
    }
    at_random(|| {
        let gate = Arc::new(Gate {
            releases: Releases::new(),
            out: AtomicU64::new(0),
        });
        gate.releases.begin(INTERVAL, START);
        let kept = together([
            party(&gate, |gate| pass(gate, true)),
            party(&gate, |gate| pass(gate, false)),
            party(&gate, |gate| pass(gate, true)),
            party(&gate, |gate| pass(gate, false)),
        ]);
        let kept = kept.iter().sum::<u64>();
        let next_ns = gate.releases.next_ns();
        // One that was handed back too late may be lost; none may be won.
        assert!(next_ns >= START + INTERVAL + kept * INTERVAL, "{kept} kept");
        assert!(next_ns <= NOW + INTERVAL);
    });
}

// ---- Attempts of one scope ----

const NOBODY: Daemon = Daemon {
    generation: 0,
    cookie: 0,
    alive_until_ns: 0,
};
const DAEMON: Daemon = Daemon {
    generation: GENERATION,
    cookie: 77,
    alive_until_ns: START + 1_000 * NANOS_PER_SEC,
};

/// A scope with one line, its settings, and attempts of it.
struct World {
    scope: Scope,
    line: Line,
    policy: Policy,
    flows: Vec<Flow>,
}

impl World {
    fn new(limit: u64) -> Self {
        Self {
            scope: Scope::new(),
            line: Line::new(),
            policy: Policy {
                limit,
                interval_ns: INTERVAL,
                ..Policy::default()
            },
            flows: Vec::new(),
        }
    }

    fn with(mut self, entry: Entry) -> Self {
        let of = Attempt {
            isn: u32::try_from(self.flows.len()).expect("a few"),
            data_len: 0,
            ifindex: INTERFACE,
            cookie: 0,
            scope: Subject::numbered(SubjectKind::Interface, u64::from(INTERFACE)),
            owner: Subject::numbered(SubjectKind::Process, 1),
            too_long: false,
        };
        let flow = Flow::new(&of, entry, START);
        flow.hand_to(GENERATION);
        self.flows.push(flow);
        self
    }

    fn with_known(self) -> Self {
        self.with(Entry::Known)
    }

    fn with_counted(self) -> Self {
        match admit(&self.context(&NOBODY, START), &self.scope, false) {
            Admission::Counted(place) => self.with(Entry::Counted(place)),
            other @ (Admission::Known | Admission::Full | Admission::Unaccountable) => {
                panic!("no room: {other:?}")
            }
        }
    }

    fn with_deferred(self) -> Self {
        match defer(&self.context(&NOBODY, START), &self.scope, &self.line) {
            Deferral::Waits { entry, .. } => self.with(entry),
            other @ (Deferral::Overflow { .. } | Deferral::Unaccountable) => {
                panic!("not deferred: {other:?}")
            }
        }
    }

    const fn context<'a>(&'a self, daemon: &'a Daemon, now_ns: u64) -> Context<'a> {
        Context {
            policy: &self.policy,
            daemon,
            now_ns,
        }
    }

    fn offer(&self, n: usize, offer: Offer, daemon: &Daemon, now_ns: u64) -> Again {
        let (context, line) = (self.context(daemon, now_ns), Some(&self.line));
        let again = seen_again(
            &context,
            &self.scope,
            line,
            &self.flows[n],
            self.flows[n].phase_word(),
            offer,
            false,
            Device::plain(INTERFACE),
        );
        self.look();
        again
    }

    fn end(&self, n: usize) -> Option<Ended> {
        let flow = &self.flows[n];
        let ended = end(Some(&self.scope), Some(&self.line), flow, flow.phase_word());
        self.look();
        ended
    }

    /// Nothing is ever negative.
    fn look(&self) {
        assert!(self.scope.half_open.total() < 100);
        assert!(self.scope.queued.total() < 100);
        assert!(self.line.queued.total() < 100);
    }

    /// How many are half-open and how many wait, after all counts were compared
    /// with their buckets.
    fn settled(&self) -> (u64, u64) {
        let half_open = self.scope.half_open.total();
        let queued = self.scope.queued.total();
        let in_line = self.line.queued.total();
        // By the earliest clock no bucket has aged.
        let window = Scope::half_open_window(&self.policy);
        assert_eq!(half_open, self.scope.half_open.live(window, START));
        let window = Scope::queue_window(&self.policy);
        assert_eq!(queued, self.scope.queued.live(window, START));
        let window = Line::window(&self.policy);
        assert_eq!(in_line, self.line.queued.live(window, START));
        assert_eq!(in_line, queued);
        (half_open, queued)
    }

    /// As [`settled`](Self::settled), where every attempt that is counted is in
    /// `flows`.
    fn agrees_with_its_flows(&self) -> (u64, u64) {
        let counted = count(&self.flows, |flow| {
            matches!(flow.phase(), Phase::Counted(_))
        });
        let waiting = count(&self.flows, |flow| flow.phase() == Phase::Deferred);
        assert_eq!(self.settled(), (counted as u64, waiting as u64));
        self.settled()
    }
}

const fn released(again: &Again) -> bool {
    matches!(again, Again::Released)
}

/// What a new attempt comes to.
#[derive(Debug)]
enum Came {
    In,
    Waits { begins: bool },
    Overflowed { begins: bool },
}

impl Came {
    const fn begins(&self) -> bool {
        matches!(
            self,
            Self::Waits { begins: true } | Self::Overflowed { begins: true }
        )
    }
}

fn come(world: &World, daemon: &Daemon) -> Came {
    let context = world.context(daemon, START);
    match admit(&context, &world.scope, false) {
        Admission::Counted(_) => Came::In,
        Admission::Full => match defer(&context, &world.scope, &world.line) {
            Deferral::Waits {
                episode_begins: begins,
                ..
            } => Came::Waits { begins },
            Deferral::Overflow {
                episode_begins: begins,
            } => Came::Overflowed { begins },
            Deferral::Unaccountable => panic!("a bucket is free"),
        },
        Admission::Known | Admission::Unaccountable => panic!("a bucket is free"),
    }
}

/// Four attempts, two places, one place in the line.
fn newcomers_race(daemon: &'static Daemon) {
    let mut world = World::new(2);
    world.policy.line_capacity = 1;
    let world = Arc::new(world);
    let come = |world: &World| come(world, daemon);
    let came = together([
        party(&world, come),
        party(&world, come),
        party(&world, come),
        party(&world, come),
    ]);
    assert_eq!(count(&came, |came| matches!(came, Came::In)), 2, "{came:?}");
    assert_eq!(
        count(&came, |came| matches!(came, Came::Waits { .. })),
        1,
        "{came:?}"
    );
    assert_eq!(
        count(&came, |came| matches!(came, Came::Overflowed { .. })),
        1,
        "{came:?}"
    );
    assert_eq!(count(&came, Came::begins), 1, "one episode: {came:?}");
    assert_eq!(world.settled(), (2, 1));
    assert_eq!(world.scope.releases.next_ns(), START + INTERVAL);
}

#[test]
fn four_new_attempts_share_two_places() {
    at_random(|| newcomers_race(&NOBODY));
}

#[test]
fn four_new_attempts_share_two_places_beside_a_daemon() {
    at_random(|| newcomers_race(&DAEMON));
}

#[test]
fn a_half_open_attempt_is_ended_by_one_of_three() {
    in_every_order(|| {
        let world = Arc::new(World::new(5).with_counted().with_counted());
        let end = |world: &World| world.end(0);
        let ended = together([party(&world, end), party(&world, end), party(&world, end)]);
        assert_eq!(count(&ended, |ended| *ended == Some(Ended::HalfOpen)), 1);
        assert_eq!(count(&ended, Option::is_none), 2);
        assert_eq!(world.agrees_with_its_flows(), (1, 0));
    });
}

#[test]
fn an_answer_an_abort_and_the_timeout_end_an_attempt_once() {
    at_random(|| {
        let world = Arc::new(World::new(5).with_counted());
        let late_ns = START + 30 * NANOS_PER_SEC;
        let end = |world: &World| u64::from(world.end(0).is_some());
        let [answered, aborted, _, came] = together([
            party(&world, end),
            party(&world, end),
            party(&world, move |world| {
                world.scope.retire(&world.policy, late_ns)
            }),
            // Another attempt, so that a second subtraction would show.
            party(&world, move |world| {
                let admission = admit(&world.context(&NOBODY, late_ns), &world.scope, false);
                u64::from(matches!(admission, Admission::Counted(_)))
            }),
        ]);
        assert_eq!((answered + aborted, came), (1, 1));
        assert_eq!(world.settled(), (1, 0));
    });
}

#[test]
fn a_deferred_attempt_is_ended_by_one_of_three_and_leaves_its_line_once() {
    at_random(|| {
        let world = Arc::new(World::new(0).with_deferred().with_deferred());
        let end = |world: &World| world.end(0);
        let ended = together([party(&world, end), party(&world, end), party(&world, end)]);
        assert_eq!(count(&ended, |ended| *ended == Some(Ended::Deferred)), 1);
        assert_eq!(count(&ended, Option::is_none), 2);
        assert_eq!(world.agrees_with_its_flows(), (0, 1));
    });
}

/// Sender and daemon offer one attempt, the daemon another one too; `due`
/// releases may be given and `room` places are free.
fn offers_race(due: u64, room: u64) {
    let mut world = World::new(1).with_counted().with_deferred().with_deferred();
    world.policy.limit += room;
    let now_ns = if due == 0 {
        START + INTERVAL - 1
    } else {
        START + due * INTERVAL
    };
    let before_ns = world.scope.releases.next_ns();
    let world = Arc::new(world);
    let again = together([
        party(&world, move |world| {
            world.offer(1, Offer::Daemon, &DAEMON, now_ns)
        }),
        // To its sender the daemon looks dead: it has just come back.
        party(&world, move |world| {
            world.offer(1, Offer::Sender, &NOBODY, now_ns)
        }),
        party(&world, move |world| {
            world.offer(2, Offer::Daemon, &DAEMON, now_ns)
        }),
    ]);
    assert!(
        count(&again[..2], released) <= 1,
        "released twice: {again:?}"
    );
    let out = count(&again, released) as u64;
    assert_eq!(world.agrees_with_its_flows(), (1 + out, 2 - out));
    let given = (world.scope.releases.next_ns() - before_ns) / INTERVAL;
    assert!(given <= due, "{given} given, {due} due");
    assert!(
        out <= given + room,
        "{out} released, {given} given, {room} had room"
    );
    // One may be lost that was taken for an attempt released meanwhile.
    assert!(given <= out + 1, "{out} released, {given} given");
    assert!(
        out >= (due + room).min(1),
        "somebody could have gone: {again:?}"
    );
}

#[test]
fn of_three_offers_one_takes_the_only_release() {
    at_random(|| offers_race(1, 0));
}

#[test]
fn two_releases_let_out_no_attempt_twice() {
    at_random(|| offers_race(2, 0));
}

#[test]
fn of_three_offers_one_takes_the_only_place() {
    at_random(|| offers_race(0, 1));
}

#[test]
fn a_place_and_a_release_let_out_no_attempt_twice() {
    at_random(|| offers_race(1, 1));
}

#[test]
fn three_offers_get_nothing_where_there_is_nothing() {
    at_random(|| offers_race(0, 0));
}

#[test]
fn an_attempt_that_is_released_while_it_ends_ends_once() {
    at_random(|| {
        let world = Arc::new(World::new(1).with_deferred().with_deferred());
        let now_ns = START + INTERVAL;
        let offer = |offer: Offer, daemon: &'static Daemon| {
            move |world: &World| u64::from(released(&world.offer(0, offer, daemon, now_ns)))
        };
        let end = |world: &World| u64::from(world.end(0).is_some());
        let [offered, retransmitted, answered, aborted] = together([
            party(&world, offer(Offer::Daemon, &DAEMON)),
            party(&world, offer(Offer::Sender, &NOBODY)),
            party(&world, end),
            party(&world, end),
        ]);
        assert!(offered + retransmitted <= 1);
        assert_eq!(answered + aborted, 1);
        assert_eq!(world.agrees_with_its_flows(), (0, 1));
    });
}

#[test]
fn a_release_taken_for_an_attempt_that_ends_is_handed_back() {
    at_random(|| {
        let world = Arc::new(World::new(1).with_counted().with_deferred());
        let now_ns = START + INTERVAL;
        let [out, ended] = together([
            party(&world, move |world| {
                u64::from(released(&world.offer(1, Offer::Daemon, &DAEMON, now_ns)))
            }),
            party(&world, |world| u64::from(world.end(1).is_some())),
        ]);
        assert_eq!(ended, 1);
        assert_eq!(world.agrees_with_its_flows(), (1, 0));
        assert_eq!(world.scope.releases.next_ns(), now_ns + out * INTERVAL);
    });
}

/// One CPU has read the settings before they were changed, another one after.
#[test]
fn settings_that_change_meanwhile_leave_every_count_the_sum_of_what_is_there() {
    at_random(|| {
        let world = Arc::new(World::new(2).with_counted().with_deferred());
        // A lower limit, other widths of buckets, a longer interval.
        let changed = Policy {
            limit: 1,
            attempt_timeout_ns: 5 * NANOS_PER_SEC,
            max_delay_ns: 7 * NANOS_PER_SEC,
            interval_ns: 5 * INTERVAL,
            ..world.policy
        };
        let now_ns = START + INTERVAL;
        let context = move |daemon: &'static Daemon, policy: &'static Policy| Context {
            policy,
            daemon,
            now_ns,
        };
        // The checker's parties outlive this frame, if only just.
        let changed: &'static Policy = Box::leak(Box::new(changed));
        let [admitted, by_sender, by_daemon, ended] = together([
            party(&world, move |world| {
                world.scope.retire(changed, now_ns);
                let came = admit(&context(&NOBODY, changed), &world.scope, false);
                world.look();
                u64::from(matches!(came, Admission::Counted(_)))
            }),
            party(&world, move |world| {
                u64::from(released(&world.offer(1, Offer::Sender, &NOBODY, now_ns)))
            }),
            party(&world, move |world| {
                let again = seen_again(
                    &context(&DAEMON, changed),
                    &world.scope,
                    Some(&world.line),
                    &world.flows[1],
                    world.flows[1].phase_word(),
                    Offer::Daemon,
                    false,
                    Device::plain(INTERFACE),
                );
                world.look();
                u64::from(released(&again))
            }),
            party(&world, |world| {
                u64::from(world.end(0) == Some(Ended::HalfOpen))
            }),
        ]);
        let out = by_sender + by_daemon;
        assert!(out <= 1, "released twice");
        assert_eq!(ended, 1);
        assert_eq!(world.settled(), (admitted + out, 1 - out));
    });
}

/// A sender is heard on two CPUs, whose clocks are in neighbouring buckets,
/// while something else happens to its attempt.
fn renewal_races(meanwhile: fn(&World)) -> Arc<World> {
    let world = Arc::new(World::new(1).with_deferred().with_deferred());
    let now_ns = START + 10 * NANOS_PER_SEC;
    let later_ns = now_ns + Line::window(&world.policy).width_ns();
    let retransmit = |now_ns: u64| {
        move |world: &World| {
            world.offer(0, Offer::Sender, &DAEMON, now_ns);
        }
    };
    together([
        party(&world, retransmit(now_ns)),
        party(&world, retransmit(later_ns)),
        party(&world, meanwhile),
    ]);
    world
}

#[test]
fn two_retransmissions_leave_one_place_in_the_line() {
    at_random(|| {
        let world = renewal_races(|_| {});
        assert_eq!(world.agrees_with_its_flows(), (0, 2));
    });
}

#[test]
fn an_attempt_that_ends_while_its_sender_is_heard_leaves_its_line_once() {
    at_random(|| {
        let world = renewal_races(|world| assert_eq!(world.end(0), Some(Ended::Deferred)));
        assert_eq!(world.agrees_with_its_flows(), (0, 1));
    });
}

#[test]
fn an_attempt_that_is_released_while_its_sender_is_heard_leaves_its_line_once() {
    at_random(|| {
        let world = renewal_races(|world| {
            let now_ns = START + 10 * NANOS_PER_SEC;
            assert!(released(&world.offer(0, Offer::Daemon, &DAEMON, now_ns)));
        });
        assert_eq!(world.agrees_with_its_flows(), (1, 1));
    });
}

/// What a CPU that came upon it does with the entry of an attempt that is over.
fn claims(world: &World, n: usize, seen: PhaseWord) -> u64 {
    let flow = &world.flows[n];
    u64::from(flow.phase() == Phase::Ended && flow.claim_entry(seen))
}

#[test]
fn of_those_who_find_an_attempt_over_one_takes_it_out_with_its_places_handed_in() {
    at_random(|| {
        let world = World::new(1).with_deferred().with_deferred();
        let key = FlowKey {
            source_port: [1, 2],
            ..FlowKey::default()
        };
        world.flows[0].found_under(&key);
        let world = Arc::new(world);
        let now_ns = START + INTERVAL;
        let offers = move |offer: Offer, daemon: &'static Daemon| {
            move |world: &World| {
                let seen = world.flows[0].word_of(&key).expect("it is this one");
                world.offer(0, offer, daemon, now_ns);
                claims(world, 0, seen)
            }
        };
        let claimed = together([
            // It is released, or it is renewed, and may be over by then.
            party(&world, offers(Offer::Daemon, &DAEMON)),
            party(&world, offers(Offer::Sender, &DAEMON)),
            party(&world, move |world| {
                let seen = world.flows[0].word_of(&key).expect("it is this one");
                assert!(world.end(0).is_some());
                claims(world, 0, seen)
            }),
        ]);
        let flow = &world.flows[0];
        assert_eq!(flow.queue_places(), (None, None));
        assert_eq!(claimed.iter().sum::<u64>(), 1, "{claimed:?}");
        assert!(
            flow.word_of(&key).is_some(),
            "it is still that one's memory"
        );
        assert_eq!(world.agrees_with_its_flows(), (0, 1));
    });
}

/// Two retransmissions of an attempt that the counts have forgotten, while another one
/// takes the only place there is in the line.
#[test]
fn a_forgotten_attempt_and_a_newcomer_share_the_room_of_a_line() {
    at_random(|| {
        let mut world = World::new(0).with_deferred();
        world.policy.line_capacity = 1;
        let now_ns = START + 2 * world.policy.max_delay_ns;
        let world = Arc::new(world);
        let retransmit = move |world: &World| {
            world.scope.retire(&world.policy, now_ns);
            world.offer(0, Offer::Sender, &DAEMON, now_ns);
            assert!(world.line.queued.total() < 4);
        };
        together([
            party(&world, retransmit),
            party(&world, retransmit),
            party(&world, move |world| {
                let context = world.context(&DAEMON, now_ns);
                let _ = defer(&context, &world.scope, &world.line);
            }),
        ]);
        let window = Line::window(&world.policy);
        let total = world.line.queued.total();
        assert_eq!(total, world.line.queued.live(window, now_ns));
        // One that is forgiven between the look at it and what comes of that takes a
        // place more. Nobody has one if each saw another one's hand on it: who waits
        // has it when its sender is heard again.
        assert!(total <= 2, "{total}");
    });
}

#[test]
fn a_known_attempt_becomes_counted_once() {
    in_every_order(|| {
        let world = Arc::new(World::new(1).with_known());
        let now_ns = START + NANOS_PER_SEC;
        let retransmit = move |world: &World| world.offer(0, Offer::Sender, &NOBODY, now_ns);
        let again = together([
            party(&world, retransmit),
            party(&world, retransmit),
            party(&world, retransmit),
        ]);
        assert_eq!(count(&again, |again| *again == Again::NowCounted), 1);
        assert_eq!(count(&again, |again| *again == Again::HalfOpen), 2);
        assert_eq!(world.agrees_with_its_flows(), (1, 0));
    });
}

#[test]
fn a_known_attempt_that_is_answered_while_it_becomes_counted_leaves_no_count() {
    at_random(|| {
        let world = Arc::new(World::new(1).with_known());
        let now_ns = START + NANOS_PER_SEC;
        let retransmit = move |world: &World| {
            world.offer(0, Offer::Sender, &NOBODY, now_ns);
            0
        };
        let end = |world: &World| u64::from(world.end(0).is_some());
        let [_, _, answered, aborted] = together([
            party(&world, retransmit),
            party(&world, retransmit),
            party(&world, end),
            party(&world, end),
        ]);
        assert_eq!(answered + aborted, 1);
        assert_eq!(world.agrees_with_its_flows(), (0, 0));
    });
}

// ---- What is said once ----

fn press(now_ns: u64) -> impl FnOnce(&Scope) -> bool + Send + 'static {
    move |scope| scope.press(false, now_ns)
}

#[test]
fn the_first_episode_begins_on_one_cpu() {
    in_every_order(|| {
        let scope = Arc::new(Scope::new());
        let begins = together([
            party(&scope, press(START)),
            party(&scope, press(START)),
            party(&scope, press(START + 1)),
        ]);
        assert_eq!(count(&begins, |begins| *begins), 1);
    });
}

#[test]
fn an_episode_after_a_quiet_time_begins_on_one_cpu() {
    in_every_order(|| {
        let scope = Arc::new(Scope::new());
        assert!(scope.press(false, START));
        let now_ns = START + EPISODE_QUIET_NS;
        let begins = together([
            party(&scope, press(now_ns)),
            party(&scope, press(now_ns + 1)),
            party(&scope, press(now_ns)),
        ]);
        assert_eq!(count(&begins, |begins| *begins), 1);
    });
}

#[test]
fn the_daemon_is_told_of_room_by_one_of_three() {
    in_every_order(|| {
        let world = Arc::new(World::new(1).with_deferred());
        let tell = |world: &World| world.scope.should_tell_of_room(&world.policy);
        let told = together([
            party(&world, tell),
            party(&world, tell),
            party(&world, tell),
        ]);
        assert_eq!(count(&told, |told| *told), 1);
    });
}

#[test]
fn a_daemon_that_looks_meanwhile_is_told_at_most_once_more() {
    in_every_order(|| {
        let world = Arc::new(World::new(1).with_deferred());
        let tell = |world: &World| world.scope.should_tell_of_room(&world.policy);
        let told = together([
            party(&world, tell),
            party(&world, tell),
            party(&world, |world| {
                world.scope.room_seen();
                false
            }),
        ]);
        assert!((1..=2).contains(&count(&told, |told| *told)));
    });
}
