//! Lines that take turns: who is offered a release next.
//!
//! Each owner's attempts stand in one line, first come first served. Lines take
//! turns, so an owner with one attempt waits one turn, however many another has
//! queued.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Lines of `T`, one for each `Owner`, and whose turn it is.
#[derive(Debug)]
pub struct Turns<Owner, T> {
    lines: HashMap<Owner, VecDeque<T>>,
    /// The owners of lines that are not empty, the next one first.
    turns: VecDeque<Owner>,
    len: usize,
}

impl<Owner: Copy + Eq + Hash, T> Default for Turns<Owner, T> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            turns: VecDeque::new(),
            len: 0,
        }
    }
}

impl<Owner: Copy + Eq + Hash, T> Turns<Owner, T> {
    /// How many wait in all lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
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
        self.turns.len()
    }

    /// Puts one at the end of `owner`'s line. A new line takes its turn after
    /// those that wait already.
    pub fn push(&mut self, owner: Owner, item: T) {
        let line = self.lines.entry(owner).or_default();
        if line.is_empty() {
            self.turns.push_back(owner);
        }
        line.push_back(item);
        self.len += 1;
    }

    /// Puts one into `owner`'s line where `key` says, behind its equals. In a
    /// line that is in order, which arrivals keep it, that is the end.
    pub fn insert<K: Ord>(&mut self, owner: Owner, item: T, key: impl Fn(&T) -> K) {
        let line = self.lines.entry(owner).or_default();
        if line.is_empty() {
            self.turns.push_back(owner);
        }
        let at = line
            .iter()
            .rposition(|other| key(other) <= key(&item))
            .map_or(0, |last| last + 1);
        line.insert(at, item);
        self.len += 1;
    }

    /// Takes the head of the line whose turn it is, and passes the turn on.
    pub fn serve(&mut self) -> Option<(Owner, T)> {
        let (owner, item) = self.take_head()?;
        if self.lines.contains_key(&owner) {
            self.turns.push_back(owner);
        }
        Some((owner, item))
    }

    /// Takes the head of the line whose turn it is, and leaves it the turn: the
    /// head turned out to be dead.
    pub fn skip(&mut self) -> Option<(Owner, T)> {
        let (owner, item) = self.take_head()?;
        if self.lines.contains_key(&owner) {
            self.turns.push_front(owner);
        }
        Some((owner, item))
    }

    /// The head of the line whose turn it is.
    #[must_use]
    pub fn head(&self) -> Option<(&Owner, &T)> {
        let owner = self.turns.front()?;
        Some((owner, self.lines.get(owner)?.front()?))
    }

    fn take_head(&mut self) -> Option<(Owner, T)> {
        let owner = self.turns.pop_front()?;
        let line = self.lines.get_mut(&owner)?;
        let item = line.pop_front()?;
        self.len -= 1;
        if line.is_empty() {
            // An owner that never comes back costs nothing.
            self.lines.remove(&owner);
        }
        Some((owner, item))
    }

    /// Drops from all lines whatever `keep` refuses; returns how many.
    pub fn prune_all(&mut self, mut keep: impl FnMut(&T) -> bool) -> usize {
        let before = self.len;
        self.lines.retain(|_, line| {
            line.retain(|item| keep(item));
            !line.is_empty()
        });
        self.turns.retain(|owner| self.lines.contains_key(owner));
        self.len = self.lines.values().map(VecDeque::len).sum();
        before - self.len
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
    }
}
