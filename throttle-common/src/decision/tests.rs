use super::*;
use crate::{
    NANOS_PER_MILLI, NANOS_PER_SEC,
    counter::Counter,
    flow::Attempt,
    scope::{EPISODE_QUIET_NS, LINE_SLOTS, SCOPE_SLOTS},
    subject::{Subject, SubjectKind},
    window::Window,
};

mod clock;
mod replay;

const START: u64 = 1_000 * NANOS_PER_SEC;
const INTERVAL: u64 = 200 * NANOS_PER_MILLI;
const INTERFACE: u32 = 7;
const OTHER_INTERFACE: u32 = 8;
const GENERATION: u64 = 5;
const ISN: u32 = 0x0102_0304;

/// One scope with one line, the settings, and the time.
struct Stage {
    scope: Scope,
    line: Line,
    policy: Policy,
    daemon: Daemon,
    now_ns: u64,
}

impl Stage {
    /// Limit 2, five releases a second, nobody there, no daemon.
    fn new() -> Self {
        Self {
            scope: Scope::new(),
            line: Line::new(),
            policy: Policy {
                limit: 2,
                interval_ns: INTERVAL,
                ..Policy::default()
            },
            daemon: Daemon::default(),
            now_ns: START,
        }
    }

    fn with_daemon() -> Self {
        let alive_until_ns = START + 1_000 * NANOS_PER_SEC;
        let daemon = Daemon {
            generation: GENERATION,
            cookie: 77,
            alive_until_ns,
        };
        Self {
            daemon,
            ..Self::new()
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            policy: &self.policy,
            daemon: &self.daemon,
            now_ns: self.now_ns,
        }
    }

    fn after(mut self, ns: u64) -> Self {
        self.now_ns += ns;
        self
    }

    fn admit(&self) -> Admission {
        admit(&self.context(), &self.scope, false)
    }

    fn counted(&self) -> Flow {
        match self.admit() {
            Admission::Counted(place) => flow(Entry::Counted(place), self.now_ns),
            other @ (Admission::Known | Admission::Full | Admission::Unaccountable) => {
                panic!("no room: {other:?}")
            }
        }
    }

    /// Takes all the room there is.
    fn fill(&self) -> Vec<Flow> {
        let room = self.policy.limit.saturating_sub(self.half_open());
        (0..room).map(|_| self.counted()).collect()
    }

    fn defer(&self) -> Deferral {
        defer(&self.context(), &self.scope, &self.line)
    }

    fn deferred(&self) -> Flow {
        match self.defer() {
            Deferral::Waits { entry, .. } => flow(entry, self.now_ns),
            other @ (Deferral::Overflow { .. } | Deferral::Unaccountable) => {
                panic!("not deferred: {other:?}")
            }
        }
    }

    fn offer(&self, flow: &Flow, offer: Offer) -> Again {
        let line = Some(&self.line);
        seen_again(
            &self.context(),
            &self.scope,
            line,
            flow,
            flow.phase_word(),
            offer,
            false,
            Device::plain(INTERFACE),
        )
    }

    fn end(&self, flow: &Flow) -> Option<Ended> {
        end(Some(&self.scope), Some(&self.line), flow, flow.phase_word())
    }

    fn half_open(&self) -> u64 {
        self.scope.half_open.total()
    }

    fn queued(&self) -> (u64, u64) {
        (self.scope.queued.total(), self.line.queued.total())
    }
}

fn attempt() -> Attempt {
    Attempt {
        isn: ISN,
        data_len: 0,
        ifindex: INTERFACE,
        cookie: 0,
        scope: Subject::numbered(SubjectKind::Interface, u64::from(INTERFACE)),
        owner: Subject::numbered(SubjectKind::Process, 4_226),
        too_long: false,
    }
}

fn flow(entry: Entry, now_ns: u64) -> Flow {
    Flow::new(&attempt(), entry, now_ns)
}

/// Holds every slot of a counter by live units of a span that nobody uses, so
/// that no bucket can be had.
fn occupy<const N: usize>(counter: &Counter<N>) {
    let window = Counter::<N>::window(u64::MAX);
    for epoch in 1..=N as u64 {
        // Buckets of the future never age.
        let at_ns = START + epoch * window.width_ns();
        assert!(counter.put(window, at_ns).is_some());
    }
}

// ---- Rules 3 and 4: admission ----

#[test]
fn an_attempt_goes_out_counted_while_there_is_room() {
    let stage = Stage::new();
    assert!(matches!(stage.admit(), Admission::Counted(_)));
    assert!(matches!(stage.admit(), Admission::Counted(_)));
    assert_eq!(stage.half_open(), 2);
}

#[test]
fn the_attempt_after_the_last_place_finds_no_room() {
    let stage = Stage::new();
    stage.fill();
    assert_eq!(stage.admit(), Admission::Full);
    assert_eq!(stage.half_open(), 2);
}

#[test]
fn a_limit_of_zero_admits_only_known_endpoints() {
    let mut stage = Stage::new();
    stage.policy.limit = 0;
    assert_eq!(stage.admit(), Admission::Full);
    assert_eq!(
        admit(&stage.context(), &stage.scope, true),
        Admission::Known
    );
}

#[test]
fn a_known_endpoint_is_never_limited_and_never_counted() {
    let stage = Stage::with_daemon();
    stage.fill();
    stage.deferred();
    for _ in 0..100 {
        assert_eq!(
            admit(&stage.context(), &stage.scope, true),
            Admission::Known
        );
    }
    assert_eq!(stage.half_open(), 2);
}

#[test]
fn a_place_that_became_free_is_given_again() {
    let stage = Stage::new();
    let flows = stage.fill();
    assert_eq!(stage.end(&flows[0]), Some(Ended::HalfOpen));
    assert!(matches!(stage.admit(), Admission::Counted(_)));
    assert_eq!(stage.admit(), Admission::Full);
}

#[test]
fn an_attempt_that_timed_out_leaves_its_place() {
    let stage = Stage::new();
    stage.fill();
    let stage = stage.after(30 * NANOS_PER_SEC);
    assert_eq!(stage.scope.retire(&stage.policy, stage.now_ns), 2);
    assert!(matches!(stage.admit(), Admission::Counted(_)));
}

#[test]
fn nobody_overtakes_those_who_wait_while_a_daemon_keeps_the_order() {
    let stage = Stage::with_daemon();
    let flows = stage.fill();
    let waiting = stage.deferred();
    stage.end(&flows[0]);
    assert_eq!(stage.admit(), Admission::Full);
    stage.end(&waiting);
    assert!(matches!(stage.admit(), Admission::Counted(_)));
}

#[test]
fn without_a_daemon_room_goes_to_whoever_asks() {
    let stage = Stage::new();
    let flows = stage.fill();
    stage.deferred();
    stage.end(&flows[0]);
    assert!(matches!(stage.admit(), Admission::Counted(_)));
}

#[test]
fn the_order_ends_the_moment_the_daemon_is_overdue() {
    let mut stage = Stage::with_daemon();
    stage.policy.limit = 1;
    stage.deferred();
    stage.now_ns = stage.daemon.alive_until_ns - 1;
    assert_eq!(stage.admit(), Admission::Full);
    stage.now_ns = stage.daemon.alive_until_ns;
    assert!(matches!(stage.admit(), Admission::Counted(_)));
}

#[test]
fn a_lowered_limit_holds_for_the_next_attempt() {
    let mut stage = Stage::new();
    stage.fill();
    stage.policy.limit = 1;
    assert_eq!(stage.admit(), Admission::Full);
    stage.policy.limit = 3;
    assert!(matches!(stage.admit(), Admission::Counted(_)));
}

#[test]
fn an_attempt_that_cannot_be_counted_goes_out() {
    let mut stage = Stage::new();
    occupy(&stage.scope.half_open);
    stage.policy.limit = 1_000;
    assert_eq!(stage.admit(), Admission::Unaccountable);
    assert_eq!(stage.half_open(), SCOPE_SLOTS as u64);
}

// ---- Rule 5: deferral ----

#[test]
fn a_deferred_attempt_is_counted_in_the_queue_and_in_its_line() {
    let stage = Stage::new();
    stage.fill();
    let flow = stage.deferred();
    assert_eq!(flow.phase(), Phase::Deferred);
    assert_eq!(stage.queued(), (1, 1));
    assert_eq!(stage.half_open(), 2);
}

#[test]
fn a_full_line_overflows_and_nothing_is_remembered() {
    let mut stage = Stage::new();
    stage.policy.line_capacity = 3;
    for _ in 0..3 {
        stage.deferred();
    }
    assert!(matches!(stage.defer(), Deferral::Overflow { .. }));
    assert_eq!(stage.queued(), (3, 3));
}

#[test]
fn a_full_line_is_no_concern_of_another_line() {
    let mut stage = Stage::new();
    stage.policy.line_capacity = 1;
    stage.deferred();
    let other = Line::new();
    let deferral = defer(&stage.context(), &stage.scope, &other);
    assert!(matches!(deferral, Deferral::Waits { .. }), "{deferral:?}");
    assert_eq!((stage.queued(), other.queued.total()), ((2, 1), 1));
}

#[test]
fn a_full_line_has_room_again_when_one_of_it_ended() {
    let mut stage = Stage::new();
    stage.policy.line_capacity = 1;
    let first = stage.deferred();
    assert!(matches!(stage.defer(), Deferral::Overflow { .. }));
    stage.end(&first);
    assert!(matches!(stage.defer(), Deferral::Waits { .. }));
}

#[test]
fn a_line_of_lost_attempts_has_room_again_after_the_longest_delay() {
    let mut stage = Stage::new();
    stage.policy.line_capacity = 1;
    stage.deferred();
    let stage = stage.after(60 * NANOS_PER_SEC);
    stage.scope.retire(&stage.policy, stage.now_ns);
    assert!(matches!(stage.defer(), Deferral::Waits { .. }));
    assert_eq!(stage.queued(), (1, 1));
}

#[test]
fn the_first_release_comes_one_interval_after_the_first_deferral() {
    let stage = Stage::new();
    stage.deferred();
    assert_eq!(stage.scope.releases.next_ns(), START + INTERVAL);
}

#[test]
fn further_deferrals_do_not_put_the_release_off() {
    let mut stage = Stage::new();
    stage.deferred();
    stage.now_ns += INTERVAL - 1;
    stage.deferred();
    assert_eq!(stage.scope.releases.next_ns(), START + INTERVAL);
}

#[test]
fn an_overflow_does_not_touch_the_releases() {
    let mut stage = Stage::new();
    stage.policy.line_capacity = 0;
    assert!(matches!(stage.defer(), Deferral::Overflow { .. }));
    assert_eq!(stage.scope.releases.next_ns(), 0);
}

#[test]
fn an_episode_begins_with_its_first_deferral_only() {
    let stage = Stage::new();
    let begins = |deferral| match deferral {
        Deferral::Waits { episode_begins, .. } | Deferral::Overflow { episode_begins } => {
            episode_begins
        }
        Deferral::Unaccountable => panic!("not counted"),
    };
    assert!(begins(stage.defer()));
    assert!(!begins(stage.defer()));
    let stage = stage.after(2 * EPISODE_QUIET_NS);
    assert!(!begins(stage.defer()), "somebody waited all the time");
}

#[test]
fn an_episode_can_begin_with_an_overflow() {
    let mut stage = Stage::new();
    stage.policy.line_capacity = 0;
    assert_eq!(
        stage.defer(),
        Deferral::Overflow {
            episode_begins: true
        }
    );
    stage.now_ns += EPISODE_QUIET_NS - 1;
    assert_eq!(
        stage.defer(),
        Deferral::Overflow {
            episode_begins: false
        }
    );
    stage.now_ns += EPISODE_QUIET_NS;
    assert_eq!(
        stage.defer(),
        Deferral::Overflow {
            episode_begins: true
        }
    );
}

#[test]
fn only_in_monitor_mode_is_a_deferred_attempt_on_the_wire() {
    let mut stage = Stage::new();
    assert!(!stage.deferred().is_on_wire());
    stage.policy.mode = Mode::Monitor as u32;
    assert!(stage.deferred().is_on_wire());
    stage.policy.mode = 99;
    assert!(
        stage.deferred().is_on_wire(),
        "a mode that is not known observes only"
    );
}

#[test]
fn an_attempt_whose_line_cannot_be_counted_leaves_no_trace() {
    let stage = Stage::new();
    occupy(&stage.line.queued);
    assert_eq!(stage.defer(), Deferral::Unaccountable);
    assert_eq!(stage.queued(), (0, LINE_SLOTS as u64));
    assert_eq!(stage.scope.pressed_ns(), 0);
}

#[test]
fn an_attempt_whose_queue_cannot_be_counted_leaves_no_trace() {
    let stage = Stage::new();
    occupy(&stage.scope.queued);
    assert_eq!(stage.defer(), Deferral::Unaccountable);
    assert_eq!(stage.queued(), (SCOPE_SLOTS as u64, 0));
}

// ---- What could not be inserted ----

#[test]
fn an_entry_that_did_not_fit_the_table_gives_back_what_it_took() {
    let stage = Stage::new();
    let Admission::Counted(place) = stage.admit() else {
        panic!("no room")
    };
    let Deferral::Waits { entry, .. } = stage.defer() else {
        panic!("not deferred")
    };
    undo(&stage.scope, Some(&stage.line), Entry::Known);
    assert_eq!((stage.half_open(), stage.queued()), (1, (1, 1)));
    undo(&stage.scope, Some(&stage.line), Entry::Counted(place));
    assert_eq!((stage.half_open(), stage.queued()), (0, (1, 1)));
    undo(&stage.scope, Some(&stage.line), entry);
    assert_eq!((stage.half_open(), stage.queued()), (0, (0, 0)));
}

#[test]
fn an_entry_is_given_back_even_if_its_line_is_gone() {
    let stage = Stage::new();
    let Deferral::Waits { entry, .. } = stage.defer() else {
        panic!("not deferred")
    };
    undo(&stage.scope, None, entry);
    assert_eq!(stage.scope.queued.total(), 0);
}

// ---- Rule 2: seen again ----

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Was {
    Ended,
    Counted,
    Known,
    Deferred,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chance {
    Room,
    ReleaseDue,
    Neither,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandedTo {
    Nobody,
    AnEarlierDaemon,
    ThisDaemon,
}

/// Everything that rule 2 may depend on.
#[derive(Debug, Clone, Copy)]
struct Case {
    was: Was,
    offer: Offer,
    daemon_is_alive: bool,
    handed: HandedTo,
    endpoint_is_known: bool,
    chance: Chance,
    too_long: bool,
    on_other_device: bool,
    /// Since it was first seen.
    elapsed_ns: u64,
    line_is_gone: bool,
}

fn cases() -> Vec<Case> {
    const BOTH: [bool; 2] = [false, true];
    let mut cases = Vec::new();
    for was in [Was::Ended, Was::Counted, Was::Known, Was::Deferred] {
        for offer in [Offer::Sender, Offer::Daemon] {
            for daemon_is_alive in BOTH {
                for handed in [
                    HandedTo::Nobody,
                    HandedTo::AnEarlierDaemon,
                    HandedTo::ThisDaemon,
                ] {
                    for endpoint_is_known in BOTH {
                        for chance in [Chance::Room, Chance::ReleaseDue, Chance::Neither] {
                            for bits in 0..8 {
                                for elapsed_ns in [0, SAME_PACKET_NS - 1, SAME_PACKET_NS, INTERVAL]
                                {
                                    cases.push(Case {
                                        was,
                                        offer,
                                        daemon_is_alive,
                                        handed,
                                        endpoint_is_known,
                                        chance,
                                        too_long: bits & 1 != 0,
                                        on_other_device: bits & 2 != 0,
                                        elapsed_ns,
                                        line_is_gone: bits & 4 != 0,
                                    });
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    /// Rule 2 and "Letting go", in the order of the design.
    fn expected(self) -> Again {
        match (self.was, self.offer) {
            (Was::Ended, Offer::Sender) => Again::Ended,
            // A re-sent SYN is never a new attempt.
            (Was::Ended, Offer::Daemon) => Again::NotNeeded,
            // One copy goes out, but through all the devices on its way.
            (Was::Counted | Was::Known, Offer::Daemon) if self.on_other_device => Again::HalfOpen,
            (Was::Counted | Was::Known, Offer::Daemon) => Again::NotNeeded,
            (Was::Counted, Offer::Sender) => Again::HalfOpen,
            // Sooner than any retransmission.
            (Was::Known, Offer::Sender) if self.elapsed_ns < SAME_PACKET_NS => Again::HalfOpen,
            (Was::Known, Offer::Sender) => Again::NowCounted,
            (Was::Deferred, Offer::Daemon) => self.granted_or(Again::StillDeferred),
            // The same packet on its way through a second device.
            (Was::Deferred, Offer::Sender)
                if self.on_other_device && self.elapsed_ns < SAME_PACKET_NS =>
            {
                Again::StillDeferred
            }
            // The daemon keeps the order, of what it can send.
            (Was::Deferred, Offer::Sender)
                if self.daemon_is_alive && !self.endpoint_is_known && !self.too_long =>
            {
                if self.handed == HandedTo::ThisDaemon && !self.on_other_device {
                    Again::StillDeferred
                } else {
                    Again::HandOver
                }
            }
            (Was::Deferred, Offer::Sender) => self.granted_or(Again::StillDeferred),
        }
    }

    fn granted_or(self, otherwise: Again) -> Again {
        if self.endpoint_is_known || self.chance != Chance::Neither {
            Again::Released
        } else {
            otherwise
        }
    }

    fn takes_a_release(self) -> bool {
        self.expected() == Again::Released
            && !self.endpoint_is_known
            && self.chance == Chance::ReleaseDue
    }

    fn run(self) {
        let mut stage = if self.daemon_is_alive {
            Stage::with_daemon()
        } else {
            Stage::new()
        };
        stage.daemon.generation = GENERATION;
        let attempt = Attempt {
            too_long: self.too_long,
            ..attempt()
        };
        let entry = match self.was {
            Was::Ended | Was::Known => Entry::Known,
            Was::Counted => match stage.admit() {
                Admission::Counted(place) => Entry::Counted(place),
                other @ (Admission::Known | Admission::Full | Admission::Unaccountable) => {
                    panic!("{other:?}")
                }
            },
            Was::Deferred => match stage.defer() {
                Deferral::Waits { entry, .. } => entry,
                other @ (Deferral::Overflow { .. } | Deferral::Unaccountable) => {
                    panic!("{other:?}")
                }
            },
        };
        let flow = Flow::new(&attempt, entry, stage.now_ns);
        if self.was == Was::Ended {
            end(
                Some(&stage.scope),
                Some(&stage.line),
                &flow,
                flow.phase_word(),
            );
        }
        match self.handed {
            HandedTo::Nobody => {}
            HandedTo::AnEarlierDaemon => flow.hand_to(GENERATION - 1),
            HandedTo::ThisDaemon => flow.hand_to(GENERATION),
        }
        stage.now_ns += self.elapsed_ns;
        if self.chance != Chance::Room {
            let window = Scope::half_open_window(&stage.policy);
            for _ in stage.half_open()..stage.policy.limit {
                stage.scope.half_open.put(window, stage.now_ns);
            }
        }
        // The line of releases, apart from what the deferral put there.
        stage.scope.releases = crate::release::Releases::new();
        match self.chance {
            Chance::ReleaseDue => stage.scope.releases.begin(0, stage.now_ns),
            Chance::Room | Chance::Neither => stage.scope.releases.begin(1, stage.now_ns),
        }

        let before = (
            stage.half_open(),
            stage.queued(),
            stage.scope.releases.next_ns(),
        );
        let line = if self.line_is_gone {
            None
        } else {
            Some(&stage.line)
        };
        let ifindex = if self.on_other_device {
            OTHER_INTERFACE
        } else {
            INTERFACE
        };
        let again = seen_again(
            &stage.context(),
            &stage.scope,
            line,
            &flow,
            flow.phase_word(),
            self.offer,
            self.endpoint_is_known,
            Device::plain(ifindex),
        );
        assert_eq!(again, self.expected(), "{self:?}");

        // What it came to is what happened to the counts.
        let (half_open, (queued, in_line), next_release_ns) = before;
        let (counted, left) = match again {
            Again::Released => (1, 1),
            Again::NowCounted => (1, 0),
            Again::HalfOpen
            | Again::StillDeferred
            | Again::HandOver
            | Again::NotNeeded
            | Again::Ended => (0, 0),
            Again::Departs(at_ns) => panic!("leaves at {at_ns}: {self:?}"),
        };
        assert_eq!(stage.half_open(), half_open + counted, "{self:?}");
        let left_line = if self.line_is_gone { 0 } else { left };
        assert_eq!(
            stage.queued(),
            (queued - left, in_line - left_line),
            "{self:?}"
        );
        let after_ns = stage.scope.releases.next_ns();
        if self.takes_a_release() {
            assert_eq!(after_ns, stage.now_ns + INTERVAL, "{self:?}");
        } else {
            assert_eq!(after_ns, next_release_ns, "{self:?}");
        }
        match again {
            Again::Released | Again::Departs(_) | Again::NowCounted => {
                assert!(matches!(flow.phase(), Phase::Counted(_)), "{self:?}");
                assert_eq!(stage.end(&flow), Some(Ended::HalfOpen), "{self:?}");
                assert_eq!(stage.half_open(), half_open, "{self:?}");
            }
            Again::StillDeferred | Again::HandOver => {
                assert_eq!(flow.phase(), Phase::Deferred, "{self:?}");
            }
            Again::HalfOpen | Again::NotNeeded | Again::Ended => {}
        }
        assert_eq!(
            stage.scope.releases.next_ns(),
            after_ns,
            "ending gives no release back"
        );
    }
}

#[test]
fn a_syn_seen_again_comes_to_what_the_design_says_in_every_case() {
    let cases = cases();
    assert_eq!(cases.len(), 4 * 2 * 2 * 3 * 2 * 3 * 8 * 4);
    for case in cases {
        case.run();
    }
}

#[test]
fn a_known_attempt_that_becomes_counted_may_pass_the_limit() {
    let stage = Stage::new();
    let known = flow(Entry::Known, START);
    stage.fill();
    let stage = stage.after(NANOS_PER_SEC);
    assert_eq!(stage.offer(&known, Offer::Sender), Again::NowCounted);
    assert_eq!(stage.half_open(), 3);
    assert_eq!(
        stage.offer(&known, Offer::Sender),
        Again::HalfOpen,
        "it is counted once"
    );
    assert_eq!(stage.half_open(), 3);
}

#[test]
fn a_known_attempt_that_cannot_be_counted_passes_all_the_same() {
    let stage = Stage::new();
    let known = flow(Entry::Known, START);
    occupy(&stage.scope.half_open);
    let stage = stage.after(NANOS_PER_SEC);
    assert_eq!(stage.offer(&known, Offer::Sender), Again::HalfOpen);
    assert_eq!(known.phase(), Phase::Known);
}

#[test]
fn a_release_that_cannot_be_counted_is_handed_back() {
    let mut stage = Stage::new();
    let waiting = stage.deferred();
    occupy(&stage.scope.half_open);
    stage.policy.limit = 0;
    let stage = stage.after(INTERVAL);
    assert_eq!(stage.offer(&waiting, Offer::Daemon), Again::StillDeferred);
    assert_eq!(stage.scope.releases.next_ns(), START + INTERVAL);
    assert_eq!(waiting.phase(), Phase::Deferred);
}

#[test]
fn a_released_attempt_is_counted_even_above_the_limit() {
    let stage = Stage::with_daemon();
    stage.fill();
    let waiting = stage.deferred();
    let stage = stage.after(INTERVAL);
    assert_eq!(stage.offer(&waiting, Offer::Daemon), Again::Released);
    assert_eq!(stage.half_open(), 3);
}

#[test]
fn an_attempt_is_released_once_whoever_offers() {
    let stage = Stage::new();
    stage.fill();
    let waiting = stage.deferred();
    let stage = stage.after(10 * INTERVAL);
    assert_eq!(stage.offer(&waiting, Offer::Daemon), Again::Released);
    assert_eq!(stage.offer(&waiting, Offer::Daemon), Again::NotNeeded);
    assert_eq!(stage.offer(&waiting, Offer::Sender), Again::HalfOpen);
    assert_eq!(stage.half_open(), 3);
}

#[test]
fn the_daemon_releases_at_the_rate_and_makes_up_for_one_interval() {
    let stage = Stage::with_daemon();
    stage.fill();
    let waiting: Vec<_> = (0..10).map(|_| stage.deferred()).collect();
    let stage = stage.after(60 * NANOS_PER_SEC - 1);
    let released = waiting
        .iter()
        .filter(|f| stage.offer(f, Offer::Daemon) == Again::Released);
    assert_eq!(released.count(), 2);
}

#[test]
fn senders_alone_make_up_for_one_second() {
    let stage = Stage::new();
    stage.fill();
    let waiting: Vec<_> = (0..10).map(|_| stage.deferred()).collect();
    let stage = stage.after(20 * NANOS_PER_SEC);
    let released = waiting
        .iter()
        .filter(|f| stage.offer(f, Offer::Sender) == Again::Released);
    assert_eq!(released.count(), 6);
}

#[test]
fn a_frame_too_long_for_a_record_is_released_by_its_sender_beside_a_daemon() {
    let stage = Stage::with_daemon();
    stage.fill();
    let Deferral::Waits { entry, .. } = stage.defer() else {
        panic!("not deferred")
    };
    let waiting = Flow::new(
        &Attempt {
            too_long: true,
            ..attempt()
        },
        entry,
        START,
    );
    assert_eq!(stage.offer(&waiting, Offer::Sender), Again::StillDeferred);
    let stage = stage.after(INTERVAL);
    assert_eq!(stage.offer(&waiting, Offer::Sender), Again::Released);
}

#[test]
fn each_new_daemon_is_handed_the_frame_once() {
    let mut stage = Stage::with_daemon();
    stage.fill();
    let waiting = stage.deferred();
    assert_eq!(stage.offer(&waiting, Offer::Sender), Again::HandOver);
    waiting.hand_to(GENERATION);
    assert_eq!(stage.offer(&waiting, Offer::Sender), Again::StillDeferred);
    stage.daemon.generation += 1;
    assert_eq!(stage.offer(&waiting, Offer::Sender), Again::HandOver);
}

#[test]
fn a_retransmission_keeps_a_deferred_attempt_in_the_counts() {
    let mut stage = Stage::with_daemon();
    stage.fill();
    let waiting = stage.deferred();
    let forgotten = stage.deferred();
    stage.now_ns += 35 * NANOS_PER_SEC;
    stage.offer(&waiting, Offer::Sender);
    assert_eq!(stage.queued(), (2, 2), "it is moved, not added");
    stage.now_ns += 32 * NANOS_PER_SEC;
    stage.scope.retire(&stage.policy, stage.now_ns);
    stage
        .line
        .queued
        .retire(Line::window(&stage.policy), stage.now_ns);
    assert_eq!(
        stage.queued(),
        (1, 1),
        "only the one of which nothing was heard is forgotten"
    );
    assert_eq!(stage.end(&forgotten), Some(Ended::Deferred));
    assert_eq!(stage.queued(), (1, 1));
    assert_eq!(stage.end(&waiting), Some(Ended::Deferred));
    assert_eq!(stage.queued(), (0, 0));
}

#[test]
fn a_copy_of_the_daemon_does_not_renew() {
    let mut stage = Stage::with_daemon();
    stage.fill();
    let waiting = stage.deferred();
    let places = waiting.queue_places();
    stage.now_ns += 35 * NANOS_PER_SEC;
    stage.policy.limit = 0;
    stage.scope.releases.begin(INTERVAL, stage.now_ns);
    assert_eq!(stage.offer(&waiting, Offer::Daemon), Again::StillDeferred);
    assert_eq!(waiting.queue_places(), places);
}

#[test]
fn an_attempt_that_the_count_forgot_is_counted_again_when_its_sender_asks() {
    let mut stage = Stage::with_daemon();
    stage.fill();
    let waiting = stage.deferred();
    stage.now_ns += 67 * NANOS_PER_SEC;
    stage.scope.retire(&stage.policy, stage.now_ns);
    assert_eq!(stage.scope.queued.total(), 0);
    stage.offer(&waiting, Offer::Sender);
    assert_eq!(stage.scope.queued.total(), 1);
}

#[test]
fn of_those_the_counts_forgot_no_more_come_back_than_there_is_room_for() {
    let mut stage = Stage::with_daemon();
    stage.policy.line_capacity = 3;
    stage.policy.queue_capacity = 4;
    stage.fill();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.extend((0..3).map(|_| stage.deferred()));
        stage.now_ns += 67 * NANOS_PER_SEC;
        stage.scope.retire(&stage.policy, stage.now_ns);
    }
    for _ in 0..2 {
        for flow in &waiting {
            stage.offer(flow, Offer::Sender);
            let (queue, line) = stage.queued();
            assert!(
                queue <= 4 && line <= 3,
                "{queue} in the queue, {line} in its line"
            );
        }
    }
    assert_eq!(stage.queued(), (4, 3));
    // Each takes what it has with it, and nothing else.
    for flow in &waiting {
        assert_eq!(stage.end(flow), Some(Ended::Deferred));
    }
    assert_eq!(stage.queued(), (0, 0));
}

// ---- Verdicts ----

#[test]
fn each_outcome_has_its_verdict_in_both_modes() {
    use Again::{Ended, HalfOpen, HandOver, NotNeeded, NowCounted, Released, StillDeferred};
    use Mode::{Enforce, Monitor};
    use Verdict::{Pass, Swallow};
    for was_on_wire in [false, true] {
        for mode in [Enforce, Monitor] {
            for offer in [Offer::Sender, Offer::Daemon] {
                for again in [HalfOpen, NowCounted, Ended] {
                    assert_eq!(again.verdict(offer, mode, was_on_wire), Pass, "{again:?}");
                }
                let verdict = NotNeeded.verdict(offer, mode, was_on_wire);
                assert_eq!(verdict, Swallow, "nobody needs it");
            }
            let verdict = Released.verdict(Offer::Sender, mode, was_on_wire);
            assert_eq!(verdict, Pass, "its sender's own packet goes out");
            for again in [StillDeferred, HandOver] {
                let verdict = again.verdict(Offer::Daemon, mode, was_on_wire);
                assert_eq!(
                    verdict, Swallow,
                    "a copy that is not released never goes out"
                );
                let held = if mode == Enforce { Swallow } else { Pass };
                assert_eq!(
                    again.verdict(Offer::Sender, mode, was_on_wire),
                    held,
                    "{mode:?}"
                );
            }
            let verdict = Released.verdict(Offer::Daemon, mode, was_on_wire);
            let once = if was_on_wire { Swallow } else { Pass };
            assert_eq!(
                verdict, once,
                "where the original passed, the copy must not"
            );
        }
    }
}

#[test]
fn a_flow_is_on_the_wire_from_the_moment_a_packet_of_it_goes_out() {
    let stage = Stage::new();
    assert!(flow(Entry::Known, START).is_on_wire());
    assert!(stage.counted().is_on_wire());
    let waiting = stage.deferred();
    assert!(!waiting.is_on_wire());
    waiting.goes_out();
    assert!(waiting.is_on_wire());
}

// ---- What an answer acknowledges ----

#[test]
fn an_answer_acknowledges_the_syn_and_nothing_that_was_not_sent() {
    for isn in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX] {
        for data_len in [0, 1, 1_400] {
            let of = Attempt {
                isn,
                data_len,
                ..attempt()
            };
            let flow = Flow::new(&of, Entry::Known, START);
            for accepted in [0, data_len / 2, data_len] {
                let ack = isn.wrapping_add(1).wrapping_add(accepted);
                assert!(
                    acknowledges(&flow, ack),
                    "{isn:#x} + 1 + {accepted} of {data_len}"
                );
            }
            for stray in [0x4000_0000, 0x8000_0000, 0xc000_0000] {
                assert!(
                    !acknowledges(&flow, isn.wrapping_add(stray)),
                    "{isn:#x} + {stray:#x}"
                );
            }
            assert!(!acknowledges(&flow, isn), "the ISN itself");
            let beyond = isn.wrapping_add(2).wrapping_add(data_len);
            assert!(!acknowledges(&flow, beyond), "one byte more than was sent");
        }
    }
}

#[test]
fn an_error_is_about_an_attempt_only_with_its_very_number() {
    let flow = flow(Entry::Known, START);
    assert!(is_quoted(&flow, ISN));
    for seq in [ISN - 1, ISN + 1, 0, u32::MAX] {
        assert!(!is_quoted(&flow, seq));
    }
}

// ---- The end ----

#[test]
fn a_half_open_attempt_that_ends_leaves_its_place() {
    let stage = Stage::new();
    let flow = stage.counted();
    assert_eq!(stage.end(&flow), Some(Ended::HalfOpen));
    assert_eq!(stage.half_open(), 0);
    assert_eq!(flow.phase(), Phase::Ended);
}

#[test]
fn a_known_attempt_that_ends_changes_no_count() {
    let stage = Stage::new();
    stage.counted();
    let known = flow(Entry::Known, START);
    assert_eq!(stage.end(&known), Some(Ended::Known));
    assert_eq!((stage.half_open(), stage.queued()), (1, (0, 0)));
}

#[test]
fn a_deferred_attempt_that_ends_leaves_its_line_at_once() {
    let stage = Stage::new();
    let waiting = [stage.deferred(), stage.deferred(), stage.deferred()];
    assert_eq!(stage.end(&waiting[1]), Some(Ended::Deferred));
    assert_eq!(stage.queued(), (2, 2));
}

#[test]
fn an_attempt_ends_once_from_whatever_phase() {
    let mut stage = Stage::new();
    stage.policy.limit = 100;
    let flows = [stage.counted(), flow(Entry::Known, START), stage.deferred()];
    // Others beside them, from which a second end could take.
    stage.counted();
    stage.deferred();
    for flow in flows {
        assert!(stage.end(&flow).is_some());
        assert_eq!(stage.end(&flow), None);
    }
    assert_eq!((stage.half_open(), stage.queued()), (1, (1, 1)));
}

#[test]
fn a_released_attempt_ends_as_half_open() {
    let stage = Stage::with_daemon();
    let waiting = stage.deferred();
    assert_eq!(stage.offer(&waiting, Offer::Daemon), Again::Released);
    assert_eq!((stage.half_open(), stage.queued()), (1, (0, 0)));
    assert_eq!(stage.end(&waiting), Some(Ended::HalfOpen));
    assert_eq!((stage.half_open(), stage.queued()), (0, (0, 0)));
}

#[test]
fn an_attempt_ends_even_if_its_scope_or_line_is_gone() {
    let stage = Stage::new();
    let (counted, waiting, orphan) = (stage.counted(), stage.deferred(), stage.deferred());
    assert_eq!(
        end(None, None, &counted, counted.phase_word()),
        Some(Ended::HalfOpen)
    );
    assert_eq!(
        end(None, None, &orphan, orphan.phase_word()),
        Some(Ended::Deferred)
    );
    assert_eq!(
        end(Some(&stage.scope), None, &waiting, waiting.phase_word()),
        Some(Ended::Deferred)
    );
    assert_eq!((stage.half_open(), stage.queued()), (1, (1, 2)));
}

#[test]
fn an_attempt_that_ends_after_its_timeout_takes_nothing_from_others() {
    let mut stage = Stage::new();
    let old = stage.counted();
    stage.now_ns += 30 * NANOS_PER_SEC;
    stage.scope.retire(&stage.policy, stage.now_ns);
    stage.counted();
    assert_eq!(stage.end(&old), Some(Ended::HalfOpen));
    assert_eq!(stage.half_open(), 1);
}

#[test]
fn an_end_meant_for_one_attempt_does_not_end_the_next_of_the_same_tuple() {
    let mut stage = Stage::new();
    let first = stage.counted();
    let seen = first.phase_word();
    stage.end(&first);
    // In the same nanosecond, at the same place; only the number is another.
    let Admission::Counted(place) = stage.admit() else {
        panic!("no room")
    };
    let next = Attempt {
        isn: ISN + 1,
        ..attempt()
    };
    let second = Flow::new(&next, Entry::Counted(place), stage.now_ns);
    assert!(!second.advance(seen, Phase::Ended));
    // The same number a little later.
    stage.now_ns += 1;
    let third = flow(Entry::Counted(place), stage.now_ns);
    assert!(!third.advance(seen, Phase::Ended));
}

/// A scope that is full, a device that lets packets go when they are due, and
/// nobody who re-sends.
fn offered_on_fq(stage: &Stage, flow: &Flow, ahead_ns: u64) -> Again {
    seen_again(
        &stage.context(),
        &stage.scope,
        Some(&stage.line),
        flow,
        flow.phase_word(),
        Offer::Sender,
        false,
        Device {
            ifindex: INTERFACE,
            ahead_ns,
        },
    )
}

#[test]
fn a_retransmission_departs_when_its_release_is_due() {
    let mut stage = Stage::new();
    stage.fill();
    let flows = [stage.deferred(), stage.deferred(), stage.deferred()];
    let half_open = stage.half_open();
    stage.now_ns = START + NANOS_PER_SEC;
    let ahead_ns = 3 * INTERVAL / 2;
    let now_ns = stage.now_ns;
    // The first is due, and leaves at once; what is late is not caught up on.
    let came_to = flows
        .each_ref()
        .map(|flow| offered_on_fq(&stage, flow, ahead_ns));
    assert_eq!(
        came_to,
        [
            Again::Released,
            Again::Departs(now_ns + INTERVAL),
            Again::StillDeferred,
        ]
    );
    // Each has its place by now, and has left its line.
    assert_eq!(stage.half_open(), half_open + 2);
    assert_eq!(stage.queued(), (1, 1));
    assert_eq!(
        came_to[1].verdict(Offer::Sender, Mode::Enforce, false),
        Verdict::Pass
    );
}

#[test]
fn what_waits_in_its_device_is_not_sent_twice() {
    let mut stage = Stage::new();
    stage.fill();
    let flow = stage.deferred();
    let due_ns = START + INTERVAL;
    assert_eq!(
        offered_on_fq(&stage, &flow, INTERVAL),
        Again::Departs(due_ns)
    );
    flow.departs(due_ns);
    stage.now_ns = due_ns - 1;
    assert_eq!(stage.offer(&flow, Offer::Sender), Again::StillDeferred);
    stage.now_ns = due_ns;
    assert_eq!(stage.offer(&flow, Offer::Sender), Again::HalfOpen);
    // It counts once, and ends once.
    assert_eq!(stage.end(&flow), Some(Ended::HalfOpen));
    assert_eq!(stage.end(&flow), None);
}

#[test]
fn room_is_taken_at_once_and_while_a_daemon_is_alive_nothing_departs_ahead() {
    let mut stage = Stage::with_daemon();
    stage.fill();
    let flow = stage.deferred();
    flow.hand_to(stage.daemon.generation);
    assert_eq!(offered_on_fq(&stage, &flow, INTERVAL), Again::StillDeferred);
    stage.daemon = Daemon::default();
    stage.policy.limit += 1;
    assert_eq!(offered_on_fq(&stage, &flow, INTERVAL), Again::Released);
    assert_eq!(
        stage.scope.releases.next_ns(),
        START + INTERVAL,
        "not wasted"
    );
}
