//! Random histories of one scope, replayed beside a model that knows nothing of
//! buckets, atomics or phases: it keeps a list of who is counted since when.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use proptest::{prelude::*, sample::Index};

const LINES: usize = 3;

/// When Linux (6.5 and later) retransmits a SYN, in seconds after the first.
const RETRANSMISSIONS_S: [u64; 10] = [1, 2, 3, 4, 5, 7, 11, 19, 35, 67];
/// When it gives up.
const GIVES_UP_S: u64 = 131;

/// Somebody who is counted.
#[derive(Debug, Clone, Copy)]
struct Unit {
    since_ns: u64,
    /// Width of a bucket when it was counted: how coarsely its age is known.
    width_ns: u64,
    /// It may have been forgiven already.
    doubtful: bool,
}

impl Unit {
    const fn bucket(&self) -> (u64, u64) {
        (self.width_ns, self.since_ns / self.width_ns)
    }
}

/// What one counter should hold: who is counted, and since when.
#[derive(Debug, Default)]
struct Ledger {
    units: BTreeMap<usize, Unit>,
    span_changed_ns: u64,
    /// Buckets of which somebody may have been forgiven. Only when the span is
    /// made much shorter and much longer again within one bucket, a bucket is
    /// used again under the same name; the forgiven, who still have their
    /// receipts, then end in place of those counted afterwards.
    forgiven: BTreeSet<(u64, u64)>,
}

impl Ledger {
    fn add(&mut self, id: usize, window: Window, now_ns: u64) {
        let unit = Unit {
            since_ns: now_ns,
            width_ns: window.width_ns(),
            doubtful: false,
        };
        let doubtful = self.forgiven.contains(&unit.bucket());
        self.units.insert(id, Unit { doubtful, ..unit });
    }

    fn remove(&mut self, id: usize) {
        self.units.remove(&id);
    }

    /// Nobody counts for less than the span less two buckets.
    fn grow_doubts(&mut self, window: Window, now_ns: u64) {
        for unit in self.units.values_mut() {
            let may_be_ns = now_ns - unit.since_ns + unit.width_ns + window.patience_ns();
            unit.doubtful |= may_be_ns >= window.span_ns();
            if unit.doubtful {
                self.forgiven.insert(unit.bucket());
            }
        }
    }

    /// After a sweep nobody counts for longer than the span. Right after the
    /// span became shorter, the sweep may not have been done yet.
    fn swept(&mut self, window: Window, now_ns: u64) {
        self.grow_doubts(window, now_ns);
        if now_ns - self.span_changed_ns >= window.patience_ns() {
            self.units
                .retain(|_, unit| now_ns - unit.since_ns < window.span_ns());
        }
    }

    /// Who counts for sure.
    fn least(&self) -> u64 {
        self.units.values().filter(|unit| !unit.doubtful).count() as u64
    }

    /// Who may count.
    fn most(&self) -> u64 {
        self.units.len() as u64
    }

    fn allows(&self, total: u64) -> bool {
        (self.least()..=self.most()).contains(&total)
    }

    /// Who may count at `now_ns`, when the sweep is thought of as done.
    fn allows_live(&self, live: u64, window: Window, now_ns: u64) -> bool {
        let young = |unit: &&Unit| now_ns - unit.since_ns < window.span_ns();
        let most = self.units.values().filter(young).count() as u64;
        (self.least()..=most).contains(&live)
    }
}

/// Where an attempt stands, by the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// Not in the table: it overflowed, or its entry was evicted.
    Outside,
    Known,
    Counted,
    Waiting,
    Over,
}

struct Sender {
    line: usize,
    isn: u32,
    too_long: bool,
    endpoint_is_known: bool,
    first_ns: u64,
    tries: usize,
    stands: Stands,
    flow: Option<Flow>,
    /// Its number in the ledgers; another one for each entry in the table.
    id: usize,
}

impl Sender {
    /// When it is next heard of without being asked.
    fn next_ns(&self) -> Option<u64> {
        if self.stands == Stands::Over {
            return None;
        }
        let after_s = RETRANSMISSIONS_S.get(self.tries).unwrap_or(&GIVES_UP_S);
        Some(self.first_ns + after_s * NANOS_PER_SEC)
    }
}

/// A release that was given for the rate's sake.
struct Given {
    at_ns: u64,
    burst_ns: u64,
    /// The shortest interval that was in force since.
    interval_ns: u64,
    /// How many were given since, itself included.
    count: u64,
}

#[derive(Debug, Clone)]
enum Event {
    Connect {
        line: usize,
        endpoint_is_known: bool,
        too_long: bool,
    },
    Answer(Index),
    Abort(Index),
    Evict(Index),
    EndpointAnswers(Index),
    Resend(Index),
    Serve,
    Wait(u64),
    DaemonLives(u64),
    DaemonDies,
    NewDaemon,
    Limit(u64),
    Capacity(u64),
    Interval(u64),
    Timeout(u64),
    MaxDelay(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let ms = NANOS_PER_MILLI;
    prop_oneof![
        12 => (0..LINES, prop::bool::weighted(0.15), prop::bool::weighted(0.15)).prop_map(
            |(line, endpoint_is_known, too_long)| Event::Connect { line, endpoint_is_known, too_long }
        ),
        4 => any::<Index>().prop_map(Event::Answer),
        2 => any::<Index>().prop_map(Event::Abort),
        1 => any::<Index>().prop_map(Event::Evict),
        1 => any::<Index>().prop_map(Event::EndpointAnswers),
        3 => any::<Index>().prop_map(Event::Resend),
        3 => Just(Event::Serve),
        4 => (0..500 * ms).prop_map(Event::Wait),
        4 => (0..5_000 * ms).prop_map(Event::Wait),
        1 => (0..45_000 * ms).prop_map(Event::Wait),
        3 => (1_000 * ms..30_000 * ms).prop_map(Event::DaemonLives),
        1 => Just(Event::DaemonDies),
        1 => Just(Event::NewDaemon),
        1 => (0_u64..8).prop_map(Event::Limit),
        1 => (1_u64..6).prop_map(Event::Capacity),
        1 => prop_oneof![Just(10 * ms), Just(200 * ms), Just(1_000 * ms), Just(6_000 * ms)]
            .prop_map(Event::Interval),
        1 => (1_u64..60).prop_map(|s| Event::Timeout(s * NANOS_PER_SEC)),
        1 => (1_u64..120).prop_map(|s| Event::MaxDelay(s * NANOS_PER_SEC)),
    ]
}

struct World {
    scope: Scope,
    lines: [Line; LINES],
    policy: Policy,
    daemon: Daemon,
    now_ns: u64,
    senders: Vec<Sender>,
    ids: usize,

    // The model.
    half_open: Ledger,
    queued: Ledger,
    in_line: [Ledger; LINES],
    given: Vec<Given>,
    pressed_ns: Option<u64>,
    told_of_room: bool,
}

impl World {
    fn new(now_ns: u64) -> Self {
        Self {
            scope: Scope::new(),
            lines: Default::default(),
            policy: Policy {
                limit: 3,
                interval_ns: INTERVAL,
                line_capacity: 4,
                ..Policy::default()
            },
            daemon: Daemon::default(),
            now_ns,
            senders: Vec::new(),
            ids: 0,
            half_open: Ledger::default(),
            queued: Ledger::default(),
            in_line: Default::default(),
            given: Vec::new(),
            pressed_ns: None,
            told_of_room: false,
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            policy: &self.policy,
            daemon: &self.daemon,
            now_ns: self.now_ns,
        }
    }

    fn daemon_lives(&self) -> bool {
        self.now_ns < self.daemon.alive_until_ns
    }

    fn windows(&self) -> (Window, Window, Window) {
        (
            Scope::half_open_window(&self.policy),
            Scope::queue_window(&self.policy),
            Line::window(&self.policy),
        )
    }

    // ---- What happens ----

    fn play(&mut self, event: &Event) {
        match event {
            Event::Connect {
                line,
                endpoint_is_known,
                too_long,
            } => {
                self.connect(*line, *endpoint_is_known, *too_long);
            }
            Event::Answer(of) | Event::Abort(of) => self.pick(of, Self::finish),
            Event::Evict(of) => self.pick(of, |world, n| {
                // The entry is gone, and with it the receipts.
                let sender = &mut world.senders[n];
                if sender.flow.take().is_some() {
                    sender.stands = Stands::Outside;
                }
            }),
            Event::EndpointAnswers(of) => {
                self.pick(of, |world, n| world.senders[n].endpoint_is_known = true);
            }
            Event::Resend(of) => {
                if self.daemon_lives() {
                    self.pick(of, |world, n| world.offer(n, Offer::Daemon));
                }
            }
            Event::Serve => {
                for n in 0..self.senders.len() {
                    if self.daemon_lives() && self.senders[n].stands == Stands::Waiting {
                        self.offer(n, Offer::Daemon);
                    }
                }
            }
            Event::Wait(ns) => self.wait(*ns),
            Event::DaemonLives(ns) => self.daemon.alive_until_ns = self.now_ns + ns,
            Event::DaemonDies => self.daemon.alive_until_ns = 0,
            Event::NewDaemon => self.daemon.generation += 1,
            Event::Limit(limit) => self.policy.limit = *limit,
            Event::Capacity(capacity) => self.policy.line_capacity = *capacity,
            Event::Interval(ns) => {
                self.policy.interval_ns = *ns;
                for given in &mut self.given {
                    given.interval_ns = given.interval_ns.min(*ns);
                }
            }
            Event::Timeout(ns) => {
                self.policy.attempt_timeout_ns = *ns;
                self.half_open.span_changed_ns = self.now_ns;
            }
            Event::MaxDelay(ns) => {
                self.policy.max_delay_ns = *ns;
                self.queued.span_changed_ns = self.now_ns;
                for ledger in &mut self.in_line {
                    ledger.span_changed_ns = self.now_ns;
                }
            }
        }
        self.check();
    }

    fn pick(&mut self, of: &Index, then: impl FnOnce(&mut Self, usize)) {
        if !self.senders.is_empty() {
            let n = of.index(self.senders.len());
            then(self, n);
        }
    }

    fn connect(&mut self, line: usize, endpoint_is_known: bool, too_long: bool) {
        self.senders.push(Sender {
            line,
            isn: u32::try_from(self.senders.len()).expect("a few"),
            too_long,
            endpoint_is_known,
            first_ns: self.now_ns,
            tries: 0,
            stands: Stands::Outside,
            flow: None,
            id: 0,
        });
        self.arrive(self.senders.len() - 1);
    }

    /// Time passes, and senders retransmit or give up when theirs has come.
    fn wait(&mut self, ns: u64) {
        let until_ns = self.now_ns + ns;
        loop {
            let next = (0..self.senders.len())
                .filter_map(|n| self.senders[n].next_ns().map(|at_ns| (at_ns, n)))
                .min();
            let Some((at_ns, n)) = next.filter(|(at_ns, _)| *at_ns <= until_ns) else {
                break;
            };
            self.now_ns = at_ns;
            if self.senders[n].tries < RETRANSMISSIONS_S.len() {
                self.senders[n].tries += 1;
                if self.senders[n].flow.is_some() {
                    self.offer(n, Offer::Sender);
                } else {
                    self.arrive(n);
                }
            } else {
                self.finish(n);
                self.senders[n].stands = Stands::Over;
            }
            self.check();
        }
        self.now_ns = until_ns;
    }

    /// As every SYN does first.
    fn retire(&mut self) {
        self.scope.retire(&self.policy, self.now_ns);
        let (half_open, queue, _) = self.windows();
        self.half_open.swept(half_open, self.now_ns);
        self.queued.swept(queue, self.now_ns);
        assert!(
            self.half_open.allows(self.scope.half_open.total()),
            "{:?}",
            self.half_open
        );
        assert!(
            self.queued.allows(self.scope.queued.total()),
            "{:?}",
            self.queued
        );
    }

    /// Rules 3 to 5: a SYN that is not in the table.
    fn arrive(&mut self, n: usize) {
        self.retire();
        self.ids += 1;
        let id = self.ids;
        self.senders[n].id = id;
        let known = self.senders[n].endpoint_is_known;
        let total = self.scope.half_open.total();
        let someone_waits = self.scope.queued.total() > 0;
        let entry = match admit(&self.context(), &self.scope, known) {
            Admission::Known => {
                assert!(known);
                self.senders[n].stands = Stands::Known;
                Entry::Known
            }
            Admission::Counted(place) => {
                assert!(!known);
                assert!(
                    self.half_open.least() < self.policy.limit,
                    "above the limit by admission"
                );
                assert!(
                    !(self.daemon_lives() && self.queued.least() > 0),
                    "overtaken"
                );
                assert_eq!(self.scope.half_open.total(), total + 1);
                assert!(total < self.policy.limit);
                self.half_open.add(id, self.windows().0, self.now_ns);
                self.senders[n].stands = Stands::Counted;
                Entry::Counted(place)
            }
            Admission::Full => {
                assert!(!known);
                let is_full = self.half_open.most() >= self.policy.limit;
                let is_behind = self.daemon_lives() && self.queued.most() > 0;
                assert!(is_full || is_behind, "held back for no reason");
                match self.hold_back(n, someone_waits) {
                    Some(entry) => entry,
                    None => return,
                }
            }
            Admission::Unaccountable => panic!("one thread, and yet no bucket"),
        };
        let sender = &mut self.senders[n];
        let of = Attempt {
            isn: sender.isn,
            too_long: sender.too_long,
            ..attempt()
        };
        let flow = Flow::new(&of, entry, self.now_ns);
        if sender.stands == Stands::Waiting && self.now_ns < self.daemon.alive_until_ns {
            // Now and then the record does not fit.
            if !id.is_multiple_of(4) {
                flow.hand_to(self.daemon.generation);
            }
        }
        sender.flow = Some(flow);
    }

    /// Rule 5.
    fn hold_back(&mut self, n: usize, someone_waits: bool) -> Option<Entry> {
        let (line, id) = (self.senders[n].line, self.senders[n].id);
        let (_, queue_window, line_window) = self.windows();
        let episode_should_begin = self
            .pressed_ns
            .is_none_or(|at_ns| !someone_waits && self.now_ns - at_ns >= EPISODE_QUIET_NS);
        let before_ns = self.scope.releases.next_ns();
        let deferral = defer(&self.context(), &self.scope, &self.lines[line]);
        self.in_line[line].swept(line_window, self.now_ns);
        let entry = match deferral {
            Deferral::Waits {
                entry,
                episode_begins,
            } => {
                assert_eq!(episode_begins, episode_should_begin);
                assert!(self.in_line[line].least() < self.policy.line_capacity);
                self.queued.add(id, queue_window, self.now_ns);
                self.in_line[line].add(id, line_window, self.now_ns);
                if !someone_waits {
                    let first_ns = self.now_ns + self.policy.interval_ns;
                    assert!(self.scope.releases.next_ns() >= first_ns);
                }
                self.senders[n].stands = Stands::Waiting;
                Some(entry)
            }
            Deferral::Overflow { episode_begins } => {
                assert_eq!(episode_begins, episode_should_begin);
                assert!(self.in_line[line].most() >= self.policy.line_capacity);
                assert_eq!(self.scope.releases.next_ns(), before_ns);
                self.senders[n].stands = Stands::Outside;
                None
            }
            Deferral::Unaccountable => panic!("one thread, and yet no bucket"),
        };
        self.pressed_ns = Some(self.now_ns);
        entry
    }

    /// Rule 2: a SYN that is in the table, if it is.
    fn offer(&mut self, n: usize, offer: Offer) {
        if offer == Offer::Daemon {
            self.scope.room_seen();
            self.told_of_room = false;
        }
        let Some(flow) = self.senders[n].flow.take() else {
            return;
        };
        self.retire();
        let before = (self.scope.half_open.total(), self.scope.queued.total());
        let next_ns = self.scope.releases.next_ns();
        let receipts = flow.queue_places();
        let (line, known) = (self.senders[n].line, self.senders[n].endpoint_is_known);
        let again = seen_again(
            &self.context(),
            &self.scope,
            Some(&self.lines[line]),
            &flow,
            flow.phase_word(),
            offer,
            known,
            Device::plain(INTERFACE),
        );
        self.follow(n, &flow, offer, again, before.0, next_ns, receipts);
        let after = (self.scope.half_open.total(), self.scope.queued.total());
        if matches!(again, Again::HalfOpen | Again::NotNeeded | Again::Ended) {
            assert_eq!(before, after, "{again:?} changes nothing");
        }
        self.senders[n].flow = Some(flow);
    }

    #[expect(clippy::too_many_arguments, reason = "all of it is what was before")]
    fn follow(
        &mut self,
        n: usize,
        flow: &Flow,
        offer: Offer,
        again: Again,
        total: u64,
        next_ns: u64,
        receipts: (Option<Place>, Option<Place>),
    ) {
        let Sender {
            line,
            id,
            stands,
            too_long,
            endpoint_is_known,
            ..
        } = self.senders[n];
        let (half_open_window, queue_window, line_window) = self.windows();
        let sender_must_wait = self.daemon_lives() && !endpoint_is_known && !too_long;
        let there_is_room = total < self.policy.limit;
        let a_release_is_due = next_ns <= self.now_ns;
        if stands == Stands::Waiting && offer == Offer::Sender && again != Again::Released {
            // Its sender was heard.
            let renewed = flow.queue_places();
            if renewed.0 != receipts.0 {
                self.queued.add(id, queue_window, self.now_ns);
            }
            if renewed.1 != receipts.1 {
                self.in_line[line].add(id, line_window, self.now_ns);
            }
        }
        match again {
            Again::HalfOpen => assert!(offer == Offer::Sender && stands == Stands::Counted),
            Again::NowCounted => {
                assert!(offer == Offer::Sender && stands == Stands::Known);
                self.half_open.add(id, half_open_window, self.now_ns);
                self.senders[n].stands = Stands::Counted;
                self.senders[n].endpoint_is_known = false;
            }
            Again::Released => {
                assert_eq!(stands, Stands::Waiting);
                assert!(offer == Offer::Daemon || !sender_must_wait, "out of turn");
                if !endpoint_is_known && !there_is_room {
                    assert!(a_release_is_due, "released too early");
                    self.note_release(offer);
                } else {
                    assert_eq!(
                        self.scope.releases.next_ns(),
                        next_ns,
                        "a release is wasted"
                    );
                }
                self.queued.remove(id);
                self.in_line[line].remove(id);
                self.half_open.add(id, half_open_window, self.now_ns);
                self.senders[n].stands = Stands::Counted;
            }
            Again::StillDeferred => {
                assert_eq!(stands, Stands::Waiting);
                if offer == Offer::Sender && sender_must_wait {
                    assert_eq!(flow.handed_to(), self.daemon.generation);
                } else {
                    let is_stuck = !endpoint_is_known && !there_is_room && !a_release_is_due;
                    assert!(is_stuck, "held back for no reason");
                }
            }
            Again::HandOver => {
                assert!(stands == Stands::Waiting && offer == Offer::Sender && sender_must_wait);
                assert_ne!(flow.handed_to(), self.daemon.generation);
                flow.hand_to(self.daemon.generation);
            }
            Again::NotNeeded => {
                assert!(offer == Offer::Daemon && stands != Stands::Waiting);
            }
            Again::Departs(at_ns) => panic!("leaves at {at_ns} a device that cannot wait"),
            Again::Ended => panic!("what ended is not in the table"),
        }
    }

    /// Between any two moments there are no more releases than the rate gives,
    /// and the burst.
    fn note_release(&mut self, offer: Offer) {
        let interval_ns = self.policy.interval_ns;
        let burst_ns = if offer == Offer::Daemon || self.daemon_lives() {
            daemon_burst_ns(interval_ns)
        } else {
            SENDER_BURST_NS
        };
        let at_ns = self.now_ns;
        self.given.push(Given {
            at_ns,
            burst_ns,
            interval_ns,
            count: 0,
        });
        for given in &mut self.given {
            given.count += 1;
            let line = (at_ns - given.at_ns + given.burst_ns) / given.interval_ns;
            assert!(
                given.count <= line + 1,
                "{} releases since {}",
                given.count,
                given.at_ns
            );
        }
    }

    /// Something ends the attempt, and then something else does.
    fn finish(&mut self, n: usize) {
        let Some(flow) = self.senders[n].flow.take() else {
            return;
        };
        let Sender {
            line, id, stands, ..
        } = self.senders[n];
        let before = (self.scope.half_open.total(), self.scope.queued.total());
        let ended = end(
            Some(&self.scope),
            Some(&self.lines[line]),
            &flow,
            flow.phase_word(),
        );
        assert_eq!(
            ended,
            match stands {
                Stands::Counted => Some(Ended::HalfOpen),
                Stands::Known => Some(Ended::Known),
                Stands::Waiting => Some(Ended::Deferred),
                Stands::Outside | Stands::Over => panic!("it had no entry"),
            }
        );
        let after = (self.scope.half_open.total(), self.scope.queued.total());
        assert!(after.0 <= before.0 && after.1 <= before.1);
        let is_sure = |ledger: &Ledger| ledger.units.get(&id).is_some_and(|unit| !unit.doubtful);
        if is_sure(&self.half_open) {
            assert_eq!(after, (before.0 - 1, before.1));
        }
        if is_sure(&self.queued) {
            assert_eq!(
                after,
                (before.0, before.1 - 1),
                "it leaves its line at once"
            );
        }
        self.half_open.remove(id);
        self.queued.remove(id);
        self.in_line[line].remove(id);
        for _ in 0..2 {
            let again = end(
                Some(&self.scope),
                Some(&self.lines[line]),
                &flow,
                flow.phase_word(),
            );
            assert_eq!(again, None);
        }
        let now = (self.scope.half_open.total(), self.scope.queued.total());
        assert_eq!(now, after, "nobody ends twice");
        self.senders[n].stands = Stands::Over;

        let tell = now.1 > 0 && now.0 < self.policy.limit && !self.told_of_room;
        assert_eq!(self.scope.should_tell_of_room(&self.policy), tell);
        self.told_of_room |= tell;
    }

    // ---- What holds after each of it ----

    fn check(&mut self) {
        let (half_open, queue, line) = self.windows();
        self.half_open.grow_doubts(half_open, self.now_ns);
        self.queued.grow_doubts(queue, self.now_ns);
        assert!(
            self.half_open.allows(self.scope.half_open.total()),
            "{:?}",
            self.half_open
        );
        assert!(
            self.queued.allows(self.scope.queued.total()),
            "{:?}",
            self.queued
        );
        let live = self.scope.half_open.live(half_open, self.now_ns);
        assert!(
            self.half_open.allows_live(live, half_open, self.now_ns),
            "{live}"
        );
        let live = self.scope.queued.live(queue, self.now_ns);
        assert!(self.queued.allows_live(live, queue, self.now_ns), "{live}");
        for (n, ledger) in self.in_line.iter_mut().enumerate() {
            ledger.grow_doubts(line, self.now_ns);
            assert!(ledger.allows(self.lines[n].queued.total()), "{ledger:?}");
            let live = self.lines[n].queued.live(line, self.now_ns);
            assert!(
                ledger.allows_live(live, line, self.now_ns),
                "{live} of {ledger:?}"
            );
        }
        let standing = self.senders.iter().filter(|s| s.flow.is_some());
        for sender in standing {
            let phase = sender.flow.as_ref().map(Flow::phase);
            let agrees = match sender.stands {
                Stands::Known => phase == Some(Phase::Known),
                Stands::Counted => matches!(phase, Some(Phase::Counted(_))),
                Stands::Waiting => phase == Some(Phase::Deferred),
                Stands::Outside | Stands::Over => false,
            };
            assert!(agrees, "{phase:?} but {:?}", sender.stands);
        }
    }

    /// One timeout after the last event there is nothing left of anything.
    fn come_to_rest(mut self) {
        self.now_ns += self.policy.attempt_timeout_ns.max(self.policy.max_delay_ns);
        self.scope.retire(&self.policy, self.now_ns);
        assert_eq!(self.scope.half_open.total(), 0);
        assert_eq!(self.scope.queued.total(), 0);
        for line in &self.lines {
            line.queued.retire(Line::window(&self.policy), self.now_ns);
            assert_eq!(line.queued.total(), 0);
        }
        self.now_ns += EPISODE_QUIET_NS;
        assert!(self.scope.has_recovered(&self.policy, self.now_ns));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(1_500) })]

    #[test]
    fn any_history_agrees_with_a_plain_list_of_who_is_counted(
        start_ns in START..(1_u64 << 50), events in prop::collection::vec(event(), 1..150),
    ) {
        let mut world = World::new(start_ns);
        for event in &events {
            world.play(event);
        }
        world.come_to_rest();
    }
}

#[test]
fn a_scanner_is_let_out_at_the_rate_and_leaves_nothing_behind() {
    // 40 attempts to dead hosts at once, limit 3, five a second, a daemon.
    let mut world = World::new(START);
    world.policy.line_capacity = 100;
    world.play(&Event::DaemonLives(3_600 * NANOS_PER_SEC));
    for _ in 0..40 {
        world.play(&Event::Connect {
            line: 0,
            endpoint_is_known: false,
            too_long: false,
        });
    }
    assert_eq!(world.scope.half_open.total(), 3);
    assert_eq!(world.scope.queued.total(), 37);
    for turn in 1..=37 {
        world.play(&Event::Wait(INTERVAL));
        world.play(&Event::Serve);
        assert_eq!(world.scope.queued.total(), 37 - turn);
    }
    assert_eq!(world.given.len(), 37);
    world.come_to_rest();
}

#[test]
fn a_burst_to_hosts_that_answer_drains_as_fast_as_they_answer() {
    let mut world = World::new(START);
    world.policy.line_capacity = 100;
    world.play(&Event::DaemonLives(3_600 * NANOS_PER_SEC));
    for _ in 0..40 {
        world.play(&Event::Connect {
            line: 0,
            endpoint_is_known: false,
            too_long: false,
        });
    }
    for n in 0..40 {
        world.play(&Event::Wait(NANOS_PER_MILLI));
        world.finish(n);
        world.play(&Event::Serve);
    }
    assert_eq!(
        (world.scope.half_open.total(), world.scope.queued.total()),
        (0, 0)
    );
    assert!(world.given.is_empty(), "no release was needed");
}

#[test]
fn without_a_daemon_every_attempt_goes_out_by_its_own_retransmissions() {
    let mut world = World::new(START);
    world.policy.line_capacity = 100;
    for _ in 0..20 {
        world.play(&Event::Connect {
            line: 0,
            endpoint_is_known: false,
            too_long: false,
        });
    }
    world.play(&Event::Wait(20 * NANOS_PER_SEC));
    assert_eq!(world.scope.queued.total(), 0);
    assert_eq!(world.given.len(), 17);
}
