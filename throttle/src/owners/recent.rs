//! A table of bounded size.

use std::{collections::HashMap, hash::Hash};

/// What was used last, by key. When it is full, what was not used for longest
/// goes.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    uses: u64,
    most: usize,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// A table of at most `most` entries.
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            uses: 0,
            most,
        }
    }

    /// The value of `key`, which is thereby used.
    pub(super) fn get(&mut self, key: K) -> Option<&V> {
        self.uses += 1;
        let (used, value) = self.entries.get_mut(&key)?;
        *used = self.uses;
        Some(value)
    }

    /// Sets the value of `key`.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.entries.remove(&oldest);
            }
        }
        self.uses += 1;
        self.entries.insert(key, (self.uses, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut table = Recent::new(2);
        table.insert(1, "a");
        table.insert(2, "b");
        assert_eq!(table.get(1), Some(&"a"));
        table.insert(3, "c");
        assert_eq!(table.entries.len(), 2);
        assert_eq!(table.get(1), Some(&"a"));
        assert_eq!(table.get(2), None);
        table.insert(3, "d");
        assert_eq!(table.get(3), Some(&"d"));
        assert_eq!(table.get(1), Some(&"a"));
    }
}
