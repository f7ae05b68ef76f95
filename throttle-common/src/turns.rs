//! Lines that take turns: who is offered a release next.
//!
//! Each owner's attempts stand in one line, first come first served. Lines take
//! turns, so an owner with one attempt waits one turn, however many another has
//! queued. Where owners belong to groups, as processes do to a cgroup, the
//! groups take turns, and the lines of a group take the turns of their group: a
//! program that forks gets more lines, and no more turns.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Some that take turns, and what each of them has. Whoever has nothing left is
/// to leave.
#[derive(Debug)]
struct Ring<Key, Has> {
    members: HashMap<Key, Has>,
    /// The keys of all members, the next one first.
    order: VecDeque<Key>,
}

impl<Key, Has> Default for Ring<Key, Has> {
    fn default() -> Self {
        Self {
            members: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<Key: Copy + Eq + Hash, Has: Default> Ring<Key, Has> {
    /// What `key` has. A new member takes its turn after those that are there.
    fn join(&mut self, key: Key) -> &mut Has {
        self.members.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Has::default()
        })
    }

    fn get(&self, key: &Key) -> Option<&Has> {
        self.members.get(key)
    }

    /// Whose turn it is.
    fn first(&self) -> Option<(&Key, &Has)> {
        let key = self.order.front()?;
        Some((key, self.members.get(key)?))
    }

    /// The same, to take something from it.
    fn first_mut(&mut self) -> Option<(Key, &mut Has)> {
        let key = *self.order.front()?;
        Some((key, self.members.get_mut(&key)?))
    }

    /// The turn passes to the next one.
    fn pass_on(&mut self) {
        if !self.order.is_empty() {
            self.order.rotate_left(1);
        }
    }

    /// Whose turn it is leaves. Who never comes back costs nothing.
    fn leave(&mut self) {
        if let Some(key) = self.order.pop_front() {
            self.members.remove(&key);
        }
    }

    /// Those that `keep` refuses leave.
    fn retain(&mut self, mut keep: impl FnMut(&mut Has) -> bool) {
        self.members.retain(|_, has| keep(has));
        self.order.retain(|key| self.members.contains_key(key));
    }
}

/// What becomes of the turn when somebody was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It passes on.
    Used,
    /// It stays: who was taken out was dead.
    Kept,
}

/// Lines of `T`, one for each `Owner`, and whose turn it is.
#[derive(Debug)]
pub struct Turns<Owner, T> {
    lines: Ring<Owner, VecDeque<T>>,
    len: usize,
}

impl<Owner, T> Default for Turns<Owner, T> {
    fn default() -> Self {
        Self {
            lines: Ring::default(),
            len: 0,
        }
    }
}

impl<Owner: Copy + Eq + Hash, T> Turns<Owner, T> {
    /// How many wait in all lines.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many wait in `owner`'s line.
    #[must_use]
    pub fn line_len(&self, owner: &Owner) -> usize {
        self.lines.get(owner).map_or(0, VecDeque::len)
    }

    /// How many lines there are.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines.order.len()
    }

    /// Puts one at the end of `owner`'s line. A new line takes its turn after
    /// those that wait already.
    pub fn push(&mut self, owner: Owner, item: T) {
        self.lines.join(owner).push_back(item);
        self.len += 1;
    }

    /// Puts one into `owner`'s line where `key` says, behind its equals. In a
    /// line that is in order, which arrivals keep it, that is the end.
    pub fn insert<K: Ord>(&mut self, owner: Owner, item: T, key: impl Fn(&T) -> K) {
        let line = self.lines.join(owner);
        let at = line
            .iter()
            .rposition(|other| key(other) <= key(&item))
            .map_or(0, |last| last + 1);
        line.insert(at, item);
        self.len += 1;
    }

    /// Takes the head of the line whose turn it is, and passes the turn on.
    pub fn serve(&mut self) -> Option<(Owner, T)> {
        self.take(Turn::Used)
    }

    /// Takes the head of the line whose turn it is, and leaves it the turn: the
    /// head turned out to be dead.
    pub fn skip(&mut self) -> Option<(Owner, T)> {
        self.take(Turn::Kept)
    }

    /// The head of the line whose turn it is.
    #[must_use]
    pub fn head(&self) -> Option<(&Owner, &T)> {
        let (owner, line) = self.lines.first()?;
        Some((owner, line.front()?))
    }

    fn take(&mut self, turn: Turn) -> Option<(Owner, T)> {
        let (owner, line) = self.lines.first_mut()?;
        let item = line.pop_front()?;
        self.len -= 1;
        if line.is_empty() {
            self.lines.leave();
        } else if turn == Turn::Used {
            self.lines.pass_on();
        }
        Some((owner, item))
    }

    /// Drops from all lines whatever `keep` refuses; returns how many.
    pub fn prune_all(&mut self, mut keep: impl FnMut(&T) -> bool) -> usize {
        let before = self.len;
        let mut len = 0;
        self.lines.retain(|line| {
            line.retain(|item| keep(item));
            len += line.len();
            !line.is_empty()
        });
        self.len = len;
        before - len
    }
}

/// Groups that take turns, and in each of them lines that take the turns of their
/// group.
#[derive(Debug)]
pub struct GroupTurns<Group, Owner, T> {
    groups: Ring<Group, Turns<Owner, T>>,
    len: usize,
}

impl<Group, Owner, T> Default for GroupTurns<Group, Owner, T> {
    fn default() -> Self {
        Self {
            groups: Ring::default(),
            len: 0,
        }
    }
}

impl<Group: Copy + Eq + Hash, Owner: Copy + Eq + Hash, T> GroupTurns<Group, Owner, T> {
    /// How many wait in all lines.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many groups wait.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.order.len()
    }

    /// Puts one into the line of `owner` in `group` where `key` says, behind its
    /// equals. A new line, and a new group, takes its turn after those that wait
    /// already.
    pub fn insert<K: Ord>(&mut self, group: Group, owner: Owner, item: T, key: impl Fn(&T) -> K) {
        self.groups.join(group).insert(owner, item, key);
        self.len += 1;
    }

    /// Takes the head of the line whose turn it is, and passes the turn on: to
    /// the next group, and in this one to the next line.
    pub fn serve(&mut self) -> Option<(Group, Owner, T)> {
        self.take(Turn::Used)
    }

    /// Takes the head of the line whose turn it is, and leaves it the turn: the
    /// head turned out to be dead.
    pub fn skip(&mut self) -> Option<(Group, Owner, T)> {
        self.take(Turn::Kept)
    }

    /// The head of the line whose turn it is.
    #[must_use]
    pub fn head(&self) -> Option<&T> {
        let (_, lines) = self.groups.first()?;
        lines.head().map(|(_, item)| item)
    }

    fn take(&mut self, turn: Turn) -> Option<(Group, Owner, T)> {
        let (group, lines) = self.groups.first_mut()?;
        let (owner, item) = lines.take(turn)?;
        self.len -= 1;
        if lines.is_empty() {
            self.groups.leave();
        } else if turn == Turn::Used {
            self.groups.pass_on();
        }
        Some((group, owner, item))
    }

    /// Drops from all lines whatever `keep` refuses; returns how many.
    pub fn prune_all(&mut self, mut keep: impl FnMut(&T) -> bool) -> usize {
        let mut gone = 0;
        self.groups.retain(|lines| {
            gone += lines.prune_all(&mut keep);
            !lines.is_empty()
        });
        self.len -= gone;
        gone
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_line_is_served_in_order_of_arrival() {
        let mut turns = Turns::default();
        for n in 0..5 {
            turns.push('a', n);
        }
        let out: Vec<_> = std::iter::from_fn(|| turns.serve())
            .map(|(_, n)| n)
            .collect();
        assert_eq!(out, [0, 1, 2, 3, 4]);
        assert!(turns.is_empty());
    }

    #[test]
    fn one_attempt_waits_one_turn_beside_three_hundred() {
        let mut turns = Turns::default();
        for n in 0..300 {
            turns.push("scanner", n);
        }
        turns.serve();
        turns.push("honest", 1_000);
        let out: Vec<_> = (0..3)
            .filter_map(|_| turns.serve())
            .map(|(owner, _)| owner)
            .collect();
        assert_eq!(out, ["scanner", "honest", "scanner"]);
    }

    #[test]
    fn the_dead_do_not_cost_their_line_its_turn() {
        let mut turns = Turns::default();
        turns.push('a', "dead");
        turns.push('a', "alive");
        turns.push('b', "other");
        assert_eq!(turns.skip(), Some(('a', "dead")));
        assert_eq!(turns.serve(), Some(('a', "alive")));
        assert_eq!(turns.serve(), Some(('b', "other")));
        assert_eq!(turns.serve(), None);
    }

    #[test]
    fn one_that_comes_late_stands_where_it_belongs() {
        let mut turns = Turns::default();
        for first_ns in [10, 30, 20, 30, 5] {
            turns.insert('a', first_ns, |ns| *ns);
        }
        let out: Vec<_> = std::iter::from_fn(|| turns.serve())
            .map(|(_, ns)| ns)
            .collect();
        assert_eq!(out, [5, 10, 20, 30, 30]);
    }

    #[test]
    fn a_pruned_line_that_is_empty_has_no_turn() {
        let mut turns = Turns::default();
        turns.push('a', 1);
        turns.push('b', 2);
        assert_eq!(turns.prune_all(|n| *n != 1), 1);
        assert_eq!((turns.len(), turns.lines()), (1, 1));
        assert_eq!(turns.serve(), Some(('b', 2)));
    }

    #[test]
    fn one_attempt_waits_one_turn_beside_three_hundred_lines_of_a_group() {
        let mut turns = GroupTurns::default();
        for child in 0..300 {
            turns.insert("scanner", child, child, |n| *n);
        }
        turns.serve();
        turns.insert("honest", 1_000, 1_000, |n| *n);
        let out: Vec<_> = std::iter::from_fn(|| turns.serve())
            .map(|(group, ..)| group)
            .take(3)
            .collect();
        assert_eq!(out, ["scanner", "honest", "scanner"]);
        assert_eq!((turns.len(), turns.groups()), (297, 1));
    }

    #[test]
    fn lines_of_a_group_take_its_turns() {
        let mut turns = GroupTurns::default();
        for (group, owner, n) in [
            ('a', 1, 10),
            ('a', 1, 11),
            ('a', 2, 20),
            ('b', 3, 30),
            ('b', 3, 31),
            ('b', 3, 32),
        ] {
            turns.insert(group, owner, n, |n| *n);
        }
        let out: Vec<_> = std::iter::from_fn(|| turns.serve())
            .map(|(.., n)| n)
            .collect();
        assert_eq!(out, [10, 30, 20, 31, 11, 32]);
    }

    #[test]
    fn the_dead_do_not_cost_their_group_its_turn() {
        let mut turns = GroupTurns::default();
        turns.insert('a', 1, "dead", |_| 0);
        turns.insert('a', 2, "alive", |_| 0);
        turns.insert('b', 3, "other", |_| 0);
        assert_eq!(turns.head(), Some(&"dead"));
        assert_eq!(turns.skip(), Some(('a', 1, "dead")));
        assert_eq!(turns.serve(), Some(('a', 2, "alive")));
        assert_eq!(turns.serve(), Some(('b', 3, "other")));
        assert_eq!(turns.serve(), None);
        assert!(turns.is_empty());
    }

    #[test]
    fn a_pruned_group_that_is_empty_has_no_turn() {
        let mut turns = GroupTurns::default();
        for (group, owner, n) in [('a', 1, 1), ('a', 2, 2), ('b', 3, 3), ('b', 3, 4)] {
            turns.insert(group, owner, n, |n| *n);
        }
        assert_eq!(turns.prune_all(|n| *n > 3), 3);
        assert_eq!((turns.len(), turns.groups()), (1, 1));
        assert_eq!(turns.serve(), Some(('b', 3, 4)));
    }

    /// What may happen to turns.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert { group: usize, owner: usize },
        Serve,
        Skip,
        PruneEachThird,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..GROUPS, 0..OWNERS).prop_map(|(group, owner)| Step::Insert { group, owner }),
            4 => Just(Step::Serve),
            1 => Just(Step::Skip),
            1 => Just(Step::PruneEachThird),
        ]
    }

    const GROUPS: usize = 4;
    const OWNERS: usize = 3;

    /// How often those who wait have been passed over by each other one since
    /// they last had a turn, or came.
    #[derive(Debug)]
    struct PassedOver<const N: usize>([[usize; N]; N]);

    impl<const N: usize> PassedOver<N> {
        /// Notes who was served, and returns how often it has been served at most
        /// while the same other one waited.
        fn served(&mut self, who: usize) -> usize {
            for by in &mut self.0 {
                by[who] += 1;
            }
            self.0[who] = [0; N];
            self.0.iter().map(|by| by[who]).max().unwrap_or(0)
        }

        /// Whoever does not wait is not passed over.
        fn forget(&mut self, waits: impl Fn(usize) -> bool) {
            for (who, by) in self.0.iter_mut().enumerate() {
                if !waits(who) {
                    *by = [0; N];
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_lines_stay_in_order(pushes in prop::collection::vec(0u8..5, 0..200), serve in 1usize..5) {
            let mut turns = Turns::default();
            let mut out: Vec<(u8, usize)> = Vec::new();
            for (n, owner) in pushes.iter().enumerate() {
                turns.push(*owner, n);
                if n % serve == 0 { out.extend(turns.serve()); }
                prop_assert_eq!(turns.lines(), (0u8..5).filter(|o| turns.line_len(o) > 0).count());
            }
            out.extend(std::iter::from_fn(|| turns.serve()));
            prop_assert_eq!(out.len(), pushes.len());
            for owner in 0..5 {
                let of: Vec<_> = out.iter().filter(|(o, _)| *o == owner).map(|(_, n)| *n).collect();
                prop_assert!(of.is_sorted());
            }
        }

        #[test]
        fn between_two_turns_of_a_line_every_other_one_has_its_own(counts in prop::collection::vec(1usize..20, 1..6)) {
            let mut turns = Turns::default();
            for (owner, count) in counts.iter().enumerate() {
                for n in 0..*count { turns.push(owner, n); }
            }
            let out: Vec<usize> = std::iter::from_fn(|| turns.serve()).map(|(owner, _)| owner).collect();
            for (at, owner) in out.iter().enumerate() {
                if let Some(again) = out[at + 1..].iter().position(|o| o == owner) {
                    let between = &out[at + 1..at + 1 + again];
                    let mut unique = between.to_vec();
                    unique.sort_unstable();
                    unique.dedup();
                    prop_assert_eq!(unique.len(), between.len());
                }
            }
        }

        /// In whatever order they come, go and are served: no group that waits is
        /// passed over twice by the same other one, nor is a line in its group;
        /// nobody is lost, and lines stay in order.
        #[test]
        fn nobody_is_passed_over_twice_by_the_same(steps in prop::collection::vec(step(), 0..300)) {
            let mut turns = GroupTurns::default();
            let mut waiting = [const { [const { VecDeque::new() }; OWNERS] }; GROUPS];
            let mut groups = PassedOver::<GROUPS>([[0; GROUPS]; GROUPS]);
            let mut lines = [const { PassedOver::<OWNERS>([[0; OWNERS]; OWNERS]) }; GROUPS];
            let drain = std::iter::repeat_n(Step::Serve, steps.len());
            for (n, step) in steps.iter().copied().chain(drain).enumerate() {
                let taken = match step {
                    Step::Insert { group, owner } => {
                        turns.insert(group, owner, n, |n| *n);
                        waiting[group][owner].push_back(n);
                        None
                    }
                    Step::Serve => turns.serve(),
                    Step::Skip => turns.skip(),
                    Step::PruneEachThird => {
                        turns.prune_all(|n| n % 3 != 0);
                        for line in waiting.as_flattened_mut() {
                            line.retain(|n| n % 3 != 0);
                        }
                        None
                    }
                };
                if let Some((group, owner, item)) = taken {
                    prop_assert_eq!(waiting[group][owner].pop_front(), Some(item));
                    if matches!(step, Step::Serve) {
                        prop_assert!(groups.served(group) <= 1);
                        prop_assert!(lines[group].served(owner) <= 1);
                    }
                }
                groups.forget(|group| waiting[group].iter().any(|line| !line.is_empty()));
                for (lines, waiting) in lines.iter_mut().zip(&waiting) {
                    lines.forget(|owner| !waiting[owner].is_empty());
                }
                let lens = waiting.iter().map(|lines| lines.iter().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(turns.groups(), lens.clone().filter(|len| *len > 0).count());
                prop_assert_eq!(turns.len(), lens.sum::<usize>());
            }
            prop_assert!(turns.is_empty());
        }
    }
}
