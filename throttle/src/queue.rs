//! The lines, and who is offered a release.
//!
//! The kernel keeps the rate, this keeps the order. Whenever a scope has room
//! or a release is due, the head of the next line is offered: its SYN is
//! re-sent, and the program on the device decides whether it goes out. What has
//! ended meanwhile is skipped.

use std::{collections::HashMap, io};

use log::{debug, warn};
use nix::libc;
use throttle_common::{
    NANOS_PER_MILLI,
    flow::{FlowKey, Phase},
    record::Deferred,
    subject::{Subject, SubjectKind},
    turns::GroupTurns,
};

use crate::{
    clock,
    maps::Maps,
    resend::{Frame, PacketSocket},
};

/// When to try again after the device would not take a frame, or a copy came to
/// nothing: 50 ms.
const AGAIN_NS: u64 = 50 * NANOS_PER_MILLI;

/// How long the daemon sleeps at most while somebody waits: 100 ms. Nobody tells
/// it when an unanswered attempt times out, and its place is free then.
const LOOK_EVERY_NS: u64 = 100 * NANOS_PER_MILLI;

/// How many a scope holds before what has ended is looked for among them. The
/// kernel bounds those that wait; this bounds those that have given up.
const PRUNE_AT: usize = 1_024;

/// How long an attempt is left out at most after its copy came to nothing: 5 s.
const ASIDE_MAX_NS: u64 = 5_000 * NANOS_PER_MILLI;

/// After how many copies in a row that came to nothing they are taken not to get
/// through at all.
const STUCK_AT: u32 = 100;

/// A deferred attempt, as it waits in its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its addresses and ports.
    pub key: FlowKey,
    /// Its initial sequence number.
    pub isn: u32,
    /// With whom its line takes turns.
    pub group: Subject,
    /// When its first SYN was deferred, in monotonic nanoseconds.
    pub first_ns: u64,
    /// When the SYN in `frame` was seen, in monotonic nanoseconds.
    pub seen_ns: u64,
    /// Its SYN.
    pub frame: Frame,
    /// How many copies of it came to nothing.
    fruitless: u32,
}

impl Waiting {
    /// The attempt that a record tells of. None if it carries no frame.
    #[must_use]
    pub fn new(record: &Deferred) -> Option<Self> {
        Some(Self {
            key: record.key,
            isn: record.isn,
            group: group_of(record),
            first_ns: record.first_ns,
            seen_ns: record.seen_ns,
            frame: Frame::new(record)?,
            fruitless: 0,
        })
    }
}

/// With whom the line of a deferred attempt takes turns: the cgroup of its
/// process. Whoever has a line without being a process is a group of its own; a
/// cgroup's line takes turns with those of its processes.
fn group_of(record: &Deferred) -> Subject {
    if record.owner.kind == SubjectKind::Process as u32 {
        // Where nothing is known of the process any more it is 0, a cgroup that
        // nobody has: all those together get one turn.
        Subject::numbered(SubjectKind::Cgroup, record.process.cgroup)
    } else {
        record.owner
    }
}

/// What a scope can give at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supply {
    /// Whether there is room.
    pub room: bool,
    /// From when on the next release may be given, in monotonic nanoseconds.
    pub next_release_ns: u64,
}

/// What the queue asks of the kernel side.
pub trait Kernel {
    /// Monotonic time in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Whether the attempt still waits.
    fn still_waits(&self, key: &FlowKey, isn: u32) -> bool;
    /// What the scope can give. None if it is unknown.
    fn supply(&self, scope: &Subject) -> Option<Supply>;
    /// Re-sends the attempt's SYN.
    ///
    /// # Errors
    ///
    /// When the device does not take it.
    fn offer(&mut self, waiting: &Waiting) -> io::Result<()>;
}

/// The lines of one scope.
#[derive(Debug)]
struct Lines {
    /// Cgroups take turns, and in each of them its processes.
    turns: GroupTurns<Subject, Subject, Waiting>,
    /// Attempts whose copies came to nothing, with when they get back into their
    /// line: they hold nobody up meanwhile.
    aside: Vec<(u64, Subject, Waiting)>,
    /// When to look again, in monotonic nanoseconds.
    look_at_ns: u64,
    /// How many there may be before what has ended is looked for.
    prune_at: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            turns: GroupTurns::default(),
            aside: Vec::new(),
            look_at_ns: 0,
            prune_at: PRUNE_AT,
        }
    }
}

/// The lines of all scopes.
#[derive(Debug, Default)]
pub struct Queue {
    scopes: HashMap<Subject, Lines>,
    /// Copies in a row that came to nothing.
    fruitless: u32,
}

/// How many offers are made in one go, before the daemon sees to its other
/// business.
const OFFERS_AT_ONCE: usize = 256;

impl Queue {
    /// How many stand in all lines, those that have given up included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scopes
            .values()
            .map(|lines| lines.turns.len() + lines.aside.len())
            .sum()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Puts a deferred attempt into its line, by the time of its first SYN: one
    /// that is handed over late stands where it belongs.
    pub fn push(&mut self, kernel: &impl Kernel, scope: Subject, owner: Subject, waiting: Waiting) {
        let lines = self.scopes.entry(scope).or_default();
        lines
            .turns
            .insert(waiting.group, owner, waiting, |waiting| waiting.first_ns);
        if lines.turns.len() >= lines.prune_at {
            let gone = lines.turns.prune_all(|w| kernel.still_waits(&w.key, w.isn));
            debug!("{gone} of those who waited had given up");
            // At each doubling: the cost stays linear.
            lines.prune_at = PRUNE_AT.max(2 * lines.turns.len());
        }
        lines.look_at_ns = 0;
    }

    /// Whether copies do not get through at all.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        self.fruitless >= STUCK_AT
    }

    /// There may be room in `scope`: look at it next time.
    pub fn look(&mut self, scope: &Subject) {
        if let Some(lines) = self.scopes.get_mut(scope) {
            lines.look_at_ns = 0;
        }
    }

    /// When to come back, in monotonic nanoseconds. None if nobody waits.
    #[must_use]
    pub fn next_look_ns(&self) -> Option<u64> {
        self.scopes.values().map(|lines| lines.look_at_ns).min()
    }

    /// Offers to each scope whose time has come what it can give.
    pub fn serve(&mut self, kernel: &mut impl Kernel) {
        let now_ns = kernel.now_ns();
        let fruitless = &mut self.fruitless;
        self.scopes.retain(|scope, lines| {
            if lines.look_at_ns <= now_ns {
                lines.take_back(now_ns);
                lines.serve(kernel, scope, fruitless);
            }
            !(lines.turns.is_empty() && lines.aside.is_empty())
        });
    }
}

impl Lines {
    /// Puts those that have been left out long enough back into their lines.
    fn take_back(&mut self, now_ns: u64) {
        let mut at = 0;
        while at < self.aside.len() {
            if self.aside[at].0 <= now_ns {
                let (_, owner, waiting) = self.aside.swap_remove(at);
                self.turns
                    .insert(waiting.group, owner, waiting, |waiting| waiting.first_ns);
            } else {
                at += 1;
            }
        }
    }

    fn serve(&mut self, kernel: &mut impl Kernel, scope: &Subject, fruitless: &mut u32) {
        for _ in 0..OFFERS_AT_ONCE {
            let now_ns = kernel.now_ns();
            let Some(head) = self.turns.head() else {
                self.look_at_ns = now_ns + LOOK_EVERY_NS;
                return;
            };
            if !kernel.still_waits(&head.key, head.isn) {
                self.turns.skip();
                continue;
            }
            let Some(supply) = kernel.supply(scope) else {
                self.look_at_ns = now_ns + AGAIN_NS;
                return;
            };
            if !supply.room && now_ns < supply.next_release_ns {
                self.look_at_ns = supply.next_release_ns.min(now_ns + LOOK_EVERY_NS);
                return;
            }
            match kernel.offer(head) {
                Ok(()) if !kernel.still_waits(&head.key, head.isn) => {
                    *fruitless = 0;
                    self.turns.serve();
                }
                // Somebody else got it in this moment, or the copy did not reach
                // the program.
                Ok(()) => {
                    *fruitless = fruitless.saturating_add(1);
                    self.set_aside(now_ns);
                }
                Err(error) => {
                    debug!("re-send a deferred SYN: {error}");
                    match error.raw_os_error() {
                        // The device is gone. If there is another way, its
                        // sender will take it, and the SYN is handed over anew.
                        Some(libc::ENXIO | libc::ENODEV) => {
                            self.turns.skip();
                        }
                        // The device is down, or has no room just now.
                        Some(libc::ENETDOWN | libc::ENOBUFS | libc::EAGAIN) => {
                            self.look_at_ns = now_ns + AGAIN_NS;
                            return;
                        }
                        // It is this frame that the device does not take.
                        Some(_) | None => self.set_aside(now_ns),
                    }
                }
            }
        }
        self.look_at_ns = 0;
    }

    /// Leaves the head out for a while, the longer the more often its copies
    /// came to nothing, and passes the turn on.
    fn set_aside(&mut self, now_ns: u64) {
        if let Some((_, owner, mut waiting)) = self.turns.serve() {
            let pause_ns = (AGAIN_NS << waiting.fruitless.min(7)).min(ASIDE_MAX_NS);
            waiting.fruitless += 1;
            self.aside.push((now_ns + pause_ns, owner, waiting));
        }
    }
}

/// The kernel side as it is.
pub struct Live<'a> {
    /// The maps.
    pub maps: &'a Maps,
    /// The socket to re-send by.
    pub socket: &'a mut PacketSocket,
    /// Frames that the device did not take.
    pub refused: &'a mut u64,
}

impl Kernel for Live<'_> {
    fn now_ns(&self) -> u64 {
        clock::monotonic_ns()
    }

    fn still_waits(&self, key: &FlowKey, isn: u32) -> bool {
        self.maps
            .flow(key)
            .is_some_and(|flow| flow.isn == isn && matches!(flow.phase(), Phase::Deferred))
    }

    fn supply(&self, scope: &Subject) -> Option<Supply> {
        let policy = self.maps.policy().ok()?;
        let state = self.maps.scope(scope)?;
        let window = throttle_common::scope::Scope::half_open_window(&policy);
        // What has timed out but was not swept yet is room: the program sweeps
        // before it decides about the offer.
        let half_open = state.half_open.live(window, self.now_ns());
        Some(Supply {
            room: half_open < policy.limit,
            next_release_ns: state
                .releases
                .offer_at_ns(policy.interval_ns, self.now_ns()),
        })
    }

    fn offer(&mut self, waiting: &Waiting) -> io::Result<()> {
        let waited_ns = self.now_ns().saturating_sub(waiting.seen_ns);
        let waited_ms = u32::try_from(waited_ns / NANOS_PER_MILLI).unwrap_or(u32::MAX);
        self.socket
            .send(&waiting.frame, waited_ms)
            .inspect_err(|error| {
                if *self.refused == 0 {
                    warn!("a device does not take a deferred SYN ({error}); it is offered again");
                }
                *self.refused += 1;
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, collections::HashSet};
    use throttle_common::process::Process;

    /// A kernel side that gives what it is told to.
    #[derive(Default)]
    struct Fake {
        now_ns: u64,
        waiting: RefCell<HashSet<u32>>,
        room: u32,
        next_release_ns: u64,
        offered: Vec<u32>,
        refuse: Option<i32>,
        /// The frame of this one is refused.
        poison: Option<u32>,
        /// Copies vanish on their way.
        swallow: bool,
    }

    impl Kernel for Fake {
        fn now_ns(&self) -> u64 {
            self.now_ns
        }

        fn still_waits(&self, _key: &FlowKey, isn: u32) -> bool {
            self.waiting.borrow().contains(&isn)
        }

        fn supply(&self, _scope: &Subject) -> Option<Supply> {
            Some(Supply {
                room: self.room > 0,
                next_release_ns: self.next_release_ns,
            })
        }

        fn offer(&mut self, waiting: &Waiting) -> io::Result<()> {
            if let Some(errno) = self.refuse {
                return Err(io::Error::from_raw_os_error(errno));
            }
            if self.poison == Some(waiting.isn) {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            if self.swallow {
                return Ok(());
            }
            if self.room > 0 {
                self.room -= 1;
            } else if self.now_ns >= self.next_release_ns {
                self.next_release_ns += 100;
            } else {
                return Ok(());
            }
            self.offered.push(waiting.isn);
            self.waiting.borrow_mut().remove(&waiting.isn);
            Ok(())
        }
    }

    fn record(owner: Subject, isn: u32) -> Deferred {
        // SAFETY: made of numbers; all zero is a value of it.
        let mut record: Deferred = unsafe { std::mem::zeroed() };
        record.owner = owner;
        record.isn = isn;
        record.first_ns = u64::from(isn);
        record.frame_len = 60;
        record.transport_offset = 20;
        record
    }

    fn cgroup(n: u64) -> Subject {
        Subject::numbered(SubjectKind::Cgroup, n)
    }

    fn push_record(queue: &mut Queue, fake: &Fake, record: &Deferred) {
        fake.waiting.borrow_mut().insert(record.isn);
        let waiting = Waiting::new(record).unwrap();
        queue.push(fake, Subject::default(), record.owner, waiting);
    }

    /// An attempt of cgroup `of`, of no known process.
    fn push(queue: &mut Queue, fake: &Fake, of: u64, isn: u32) {
        push_record(queue, fake, &record(cgroup(of), isn));
    }

    /// An attempt of process `pid` in cgroup `of`.
    fn push_of(queue: &mut Queue, fake: &Fake, of: u64, pid: u32, isn: u32) {
        let process = Process {
            tgid: pid,
            cgroup: of,
            ..Process::default()
        };
        let mut record = record(process.subject(), isn);
        record.process = process;
        push_record(queue, fake, &record);
    }

    #[test]
    fn releases_follow_the_line_and_the_rate() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                next_release_ns: 100,
                ..Fake::default()
            },
        );
        for isn in 1..=4 {
            push(&mut queue, &fake, 1, isn);
        }
        queue.serve(&mut fake);
        assert!(fake.offered.is_empty());
        assert_eq!(queue.next_look_ns(), Some(100));
        for now_ns in [100, 200, 300, 400] {
            fake.now_ns = now_ns;
            queue.serve(&mut fake);
        }
        assert_eq!(fake.offered, [1, 2, 3, 4]);
        assert!(queue.is_empty());
    }

    #[test]
    fn room_is_taken_at_once_and_no_more_than_there_is() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                next_release_ns: 1_000,
                room: 3,
                ..Fake::default()
            },
        );
        for isn in 1..=5 {
            push(&mut queue, &fake, 1, isn);
        }
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [1, 2, 3]);
        assert_eq!(queue.next_look_ns(), Some(1_000));
        fake.room = 2;
        queue.look(&Subject::default());
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_place_that_timed_out_is_found_long_before_a_release_is_due() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                next_release_ns: 600 * LOOK_EVERY_NS,
                ..Fake::default()
            },
        );
        push(&mut queue, &fake, 1, 1);
        queue.serve(&mut fake);
        assert_eq!(queue.next_look_ns(), Some(LOOK_EVERY_NS));
        (fake.now_ns, fake.room) = (LOOK_EVERY_NS, 1);
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [1]);
    }

    #[test]
    fn the_dead_are_skipped_and_cost_no_turn() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 2,
                ..Fake::default()
            },
        );
        for isn in 1..=300 {
            push(&mut queue, &fake, 1, isn);
        }
        push(&mut queue, &fake, 2, 301);
        fake.waiting.borrow_mut().retain(|isn| *isn >= 300);
        fake.next_release_ns = 1_000_000;
        while queue.next_look_ns() == Some(0) {
            queue.serve(&mut fake);
        }
        assert_eq!(fake.offered, [300, 301]);
    }

    #[test]
    fn children_of_one_cgroup_have_one_turn_beside_another_cgroup() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                next_release_ns: 100,
                ..Fake::default()
            },
        );
        // A program that forks for each attempt, and two neighbours: one in its
        // cgroup, and in another one a raw socket beside a process.
        for n in 1..=50 {
            push_of(&mut queue, &fake, 1, n, n);
        }
        push_of(&mut queue, &fake, 1, 99, 60);
        push_of(&mut queue, &fake, 2, 100, 71);
        push(&mut queue, &fake, 2, 72);
        push_of(&mut queue, &fake, 2, 100, 73);
        for n in 1..=8 {
            fake.now_ns = n * 100;
            queue.serve(&mut fake);
        }
        assert_eq!(fake.offered, [1, 71, 2, 72, 3, 73, 4, 5]);
    }

    #[test]
    fn one_that_was_set_aside_comes_back_to_its_own_group() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 1,
                poison: Some(1),
                ..Fake::default()
            },
        );
        fake.next_release_ns = u64::MAX;
        for isn in [1, 2, 3] {
            push_of(&mut queue, &fake, 1, isn, isn);
        }
        push_of(&mut queue, &fake, 2, 9, 4);
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [4], "the turn passed on to the other cgroup");
        fake.poison = None;
        (fake.now_ns, fake.room) = (AGAIN_NS, 9);
        push_of(&mut queue, &fake, 2, 9, 5);
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [4, 2, 5, 3, 1]);
    }

    #[test]
    fn processes_of_which_nothing_is_known_any_more_share_a_turn() {
        let of = |owner: Subject, cgroup: u64| {
            let mut record = record(owner, 1);
            record.process.cgroup = cgroup;
            group_of(&record)
        };
        let [one, two] = [7, 8].map(|pid| Subject::process(pid, 1));
        assert_eq!(of(one, 5), cgroup(5));
        assert_eq!(of(one, 5), of(two, 5));
        assert_ne!(of(one, 5), of(one, 6));
        assert_eq!(of(one, 0), of(two, 0));
        let source = Subject::source([7; 16]);
        assert_eq!((of(cgroup(5), 0), of(source, 0)), (cgroup(5), source));
    }

    #[test]
    fn a_device_that_is_down_loses_nobody() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 1,
                refuse: Some(libc::ENETDOWN),
                ..Fake::default()
            },
        );
        push(&mut queue, &fake, 1, 1);
        queue.serve(&mut fake);
        assert_eq!(queue.next_look_ns(), Some(AGAIN_NS));
        fake.refuse = None;
        fake.now_ns = AGAIN_NS;
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [1]);
    }

    #[test]
    fn a_frame_that_the_device_does_not_take_holds_nobody_up() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 9,
                poison: Some(1),
                ..Fake::default()
            },
        );
        for isn in 1..=4 {
            push(&mut queue, &fake, 1, isn);
        }
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [2, 3, 4]);
        assert_eq!(queue.len(), 1, "it is not forgotten");
        fake.poison = None;
        fake.now_ns = LOOK_EVERY_NS;
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [2, 3, 4, 1]);
    }

    #[test]
    fn copies_that_never_arrive_are_noticed() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 9,
                swallow: true,
                ..Fake::default()
            },
        );
        push(&mut queue, &fake, 1, 1);
        for _ in 0..STUCK_AT {
            assert!(!queue.is_stuck());
            queue.serve(&mut fake);
            fake.now_ns += ASIDE_MAX_NS;
        }
        assert!(queue.is_stuck());
    }

    #[test]
    fn many_owners_that_give_up_do_not_make_the_queue_grow() {
        let (mut queue, fake) = (
            Queue::default(),
            Fake {
                next_release_ns: 1_000,
                ..Fake::default()
            },
        );
        for isn in 1..=100_000 {
            push(&mut queue, &fake, u64::from(isn), isn);
            fake.waiting.borrow_mut().remove(&isn);
        }
        assert!(queue.len() <= PRUNE_AT, "{}", queue.len());
    }

    #[test]
    fn a_device_that_is_gone_holds_nobody_up() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 1,
                ..Fake::default()
            },
        );
        fake.refuse = Some(libc::ENXIO);
        push(&mut queue, &fake, 1, 1);
        queue.serve(&mut fake);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_opens_and_gives_up_does_not_make_the_queue_grow() {
        let (mut queue, fake) = (
            Queue::default(),
            Fake {
                next_release_ns: 1_000,
                ..Fake::default()
            },
        );
        for isn in 1..=100_000 {
            push(&mut queue, &fake, 1, isn);
            fake.waiting.borrow_mut().remove(&isn);
        }
        assert!(queue.len() <= 2 * PRUNE_AT, "{}", queue.len());
    }

    #[test]
    fn one_that_is_handed_over_late_stands_where_it_belongs() {
        let (mut queue, mut fake) = (
            Queue::default(),
            Fake {
                room: 3,
                ..Fake::default()
            },
        );
        for isn in [2, 3, 1] {
            push(&mut queue, &fake, 1, isn);
        }
        queue.serve(&mut fake);
        assert_eq!(fake.offered, [1, 2, 3]);
    }
}
