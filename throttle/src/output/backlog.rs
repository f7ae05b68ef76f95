//! A bounded line of things that wait, with the losses where they happened.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::clock;

/// What waits between two threads. Whoever pushes never waits; what finds no
/// room is lost, and the loss stands in the line where the item would.
///
/// Once something was lost at the end of the line, more is lost until at most
/// half a line is before it. So a slow taker is told of few large losses, not of one
/// between any two items.
#[derive(Debug)]
pub(super) struct Backlog<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
    settling_ns: u64,
}

#[derive(Debug)]
struct State<T> {
    /// No two losses are neighbours. There is one more than the capacity only if
    /// the last one is a loss.
    entries: VecDeque<Entry<T>>,
    lost: u64,
    is_closed: bool,
    is_abandoned: bool,
}

/// What is in the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry<T> {
    /// Something that was pushed.
    Item(T),
    /// Here, items were lost.
    Lost(Loss),
}

/// Items that were lost one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    /// How many.
    pub(super) items: u64,
    /// When the first one was lost, on the monotonic clock.
    pub(super) first_ns: u64,
    /// When the last one was.
    pub(super) last_ns: u64,
}

impl<T> Backlog<T> {
    /// A line for `capacity` entries. A loss that nothing comes after is handed
    /// out once it is as old as `settling`: it may still grow.
    pub(super) fn new(capacity: usize, settling: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                entries: VecDeque::new(),
                lost: 0,
                is_closed: false,
                is_abandoned: false,
            }),
            changed: Condvar::new(),
            capacity,
            settling_ns: u64::try_from(settling.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Puts `item` at the end, or notes at `now_ns` that it is lost.
    pub(super) fn push(&self, item: T, now_ns: u64) {
        let mut state = self.lock();
        let room = match state.entries.back() {
            Some(Entry::Lost(_)) => self.capacity / 2 + 1,
            Some(Entry::Item(_)) | None => self.capacity,
        };
        if state.is_closed || state.entries.len() >= room {
            state.lose_one(now_ns);
        } else {
            state.entries.push_back(Entry::Item(item));
        }
        self.changed.notify_one();
    }

    /// Puts `item` at the end if most of the room is free; else drops it, and
    /// nothing counts as lost.
    pub(super) fn push_if_idle(&self, item: T) {
        let mut state = self.lock();
        if !state.is_closed && state.entries.len() < self.capacity / 2 {
            state.entries.push_back(Entry::Item(item));
            self.changed.notify_one();
        }
    }

    /// Notes at `now_ns` that an item is lost that was not even pushed.
    pub(super) fn refuse(&self, now_ns: u64) {
        self.lock().lose_one(now_ns);
        self.changed.notify_one();
    }

    /// Puts a loss at the end that happened, and was counted, before this line.
    pub(super) fn pass_on(&self, loss: Loss) {
        self.lock().append(loss);
        self.changed.notify_one();
    }

    /// Waits for the first entry and takes it out. None once the line is closed
    /// and empty.
    pub(super) fn take(&self) -> Option<Entry<T>> {
        let mut state = self.lock();
        loop {
            let unsettled_ns = match state.entries.front() {
                None if state.is_closed => return None,
                None => None,
                Some(Entry::Lost(loss)) if state.entries.len() == 1 && !state.is_closed => {
                    let settled_ns = loss.first_ns.saturating_add(self.settling_ns);
                    Some(settled_ns.saturating_sub(clock::monotonic_ns()))
                }
                Some(_) => Some(0),
            };
            state = match unsettled_ns {
                Some(0) => return state.entries.pop_front(),
                Some(ns) => {
                    let settled = Duration::from_nanos(ns);
                    let waited = self.changed.wait_timeout(state, settled);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Lets nothing more in. What is there can still be taken.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Lets nothing more in, and drops what is there.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.is_abandoned = true;
        let dropped = std::mem::take(&mut state.entries);
        drop(state);
        self.changed.notify_one();
        // Without the lock: whoever pushes does not wait for it.
        drop(dropped);
    }

    /// Whether nothing more is let in.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Whether it was abandoned.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
    }

    /// How many items were lost here: refused, or pushed without room. What was
    /// dropped when the line was abandoned is not among them.
    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Nothing that may panic is done under the lock, but the items are not
    /// ours: a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn lose_one(&mut self, now_ns: u64) {
        self.lost += 1;
        self.append(Loss {
            items: 1,
            first_ns: now_ns,
            last_ns: now_ns,
        });
    }

    fn append(&mut self, loss: Loss) {
        if self.is_closed {
            return;
        }
        if let Some(Entry::Lost(last)) = self.entries.back_mut() {
            last.items += loss.items;
            last.last_ns = last.last_ns.max(loss.last_ns);
        } else {
            self.entries.push_back(Entry::Lost(loss));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;
    use proptest::prelude::*;

    const FOR_EVER: Duration = Duration::MAX;

    fn lost<T>(items: u64, first_ns: u64, last_ns: u64) -> Option<Entry<T>> {
        Some(Entry::Lost(Loss {
            items,
            first_ns,
            last_ns,
        }))
    }

    #[test]
    fn losses_stand_where_they_happened() {
        let line = Backlog::new(4, Duration::ZERO);
        for n in 1..=7 {
            line.push(n, n);
        }
        // 1 2 3 4 and a loss of 5 6 7. Down to half, there is room again.
        for n in 1..=3 {
            assert_eq!(line.take(), Some(Entry::Item(n)));
            line.push(7 + n, 7 + n);
        }
        assert_eq!(line.take(), Some(Entry::Item(4)));
        assert_eq!(line.take(), lost(5, 5, 9));
        assert_eq!(line.take(), Some(Entry::Item(10)));
        assert_eq!(line.lost(), 5);
    }

    #[test]
    fn losses_from_before_join_those_at_the_end() {
        let line = Backlog::new(2, FOR_EVER);
        let before = Loss {
            items: 5,
            first_ns: 10,
            last_ns: 20,
        };
        line.push('a', 1);
        line.push('b', 2);
        line.push('c', 30);
        line.pass_on(before);
        line.refuse(40);
        line.close();
        line.push('d', 50);
        assert_eq!(line.take(), Some(Entry::Item('a')));
        assert_eq!(line.take(), Some(Entry::Item('b')));
        assert_eq!(line.take(), lost(7, 30, 40));
        assert_eq!(line.take(), None);
        assert_eq!(line.lost(), 3, "those from before were counted before");
    }

    #[test]
    fn a_loss_at_the_end_is_handed_out_once_it_has_settled() {
        let line: Backlog<()> = Backlog::new(2, Duration::from_millis(20));
        let now = clock::monotonic_ns();
        line.refuse(now);
        assert_eq!(line.take(), lost(1, now, now));
        assert!(clock::monotonic_ns() >= now + 20_000_000);
    }

    #[test]
    fn a_loss_does_not_wait_to_settle_when_more_has_come_after_it() {
        let line = Backlog::new(4, FOR_EVER);
        line.refuse(1);
        line.push('a', 2);
        assert_eq!(line.take(), lost(1, 1, 1));
        assert_eq!(line.take(), Some(Entry::Item('a')));
    }

    #[test]
    fn closing_wakes_the_taker() {
        let line: Arc<Backlog<()>> = Arc::new(Backlog::new(2, FOR_EVER));
        let taker = Arc::clone(&line);
        let taken = thread::spawn(move || (taker.take(), taker.take()));
        line.refuse(1);
        line.close();
        assert_eq!(taken.join().unwrap(), (lost(1, 1, 1), None));
    }

    #[test]
    fn what_is_abandoned_is_gone() {
        let line = Backlog::new(2, FOR_EVER);
        let item = Arc::new(());
        line.push(Arc::clone(&item), 1);
        line.abandon();
        line.push(Arc::clone(&item), 2);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(line.is_abandoned() && line.is_closed());
        assert_eq!(line.take(), None);
    }

    proptest! {
        /// `Some(n)`: the next n are pushed; `None`: one is taken.
        #[test]
        fn each_item_is_found_at_its_place(
            capacity in 1usize..12,
            steps in prop::collection::vec(prop::option::of(1u64..6), 0..300),
        ) {
            let line = Backlog::new(capacity, Duration::ZERO);
            let (mut pushed, mut at, mut losses) = (0, 0, 0);
            let mut check = |entry: Option<Entry<u64>>| {
                match entry {
                    Some(Entry::Item(item)) => {
                        at += 1;
                        prop_assert_eq!(item, at);
                    }
                    Some(Entry::Lost(loss)) => {
                        prop_assert_eq!((loss.first_ns, loss.last_ns), (at + 1, at + loss.items));
                        at += loss.items;
                        losses += loss.items;
                    }
                    None => {}
                }
                Ok(())
            };
            for step in steps {
                if let Some(n) = step {
                    for _ in 0..n {
                        pushed += 1;
                        line.push(pushed, pushed);
                    }
                } else if !line.lock().entries.is_empty() {
                    check(line.take())?;
                }
                prop_assert!(line.lock().entries.len() <= capacity + 1);
            }
            line.close();
            while let Some(entry) = line.take() {
                check(Some(entry))?;
            }
            prop_assert_eq!(at, pushed);
            prop_assert_eq!(losses, line.lost());
        }
    }

    #[test]
    fn nothing_is_lost_uncounted_between_threads() {
        const PUSHERS: usize = 4;
        const EACH: u64 = 2_000;
        let pushed = EACH * u64::try_from(PUSHERS).unwrap();
        for round in 0..50 {
            let line: Backlog<(usize, u64)> = Backlog::new(1 + round, Duration::ZERO);
            let (mut items, mut losses) = (0, 0);
            thread::scope(|scope| {
                let pushers: Vec<_> = (0..PUSHERS)
                    .map(|pusher| {
                        let line = &line;
                        scope.spawn(move || (1..=EACH).for_each(|n| line.push((pusher, n), n)))
                    })
                    .collect();
                let taker = scope.spawn(|| {
                    let mut last = [0; PUSHERS];
                    while let Some(entry) = line.take() {
                        match entry {
                            Entry::Item((pusher, n)) => {
                                let last = &mut last[pusher];
                                assert!(n > *last, "out of order");
                                *last = n;
                                items += 1;
                            }
                            Entry::Lost(loss) => losses += loss.items,
                        }
                    }
                });
                for pusher in pushers {
                    pusher.join().unwrap();
                }
                line.close();
                taker.join().unwrap();
            });
            assert_eq!(items + losses, pushed);
            assert_eq!(losses, line.lost());
        }
    }
}
