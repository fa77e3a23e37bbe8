//! A bounded cache that a scan does not empty (2Q: Johnson and Shasha, VLDB 1994).
//!
//! Invariants
//!   * `recent.len() + hot.len() == entries.len() <= most`;
//!   * what comes for the first time lives as long as half of `most` newer entries allow, however often it is
//!     asked for meanwhile: sixteen reads of one frame are one use of it;
//!   * only what comes again after it was dropped becomes hot, and only the hot make room for the hot.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

struct Entry<V> {
    value: V,
    /// Among the hot: asked for since the hand last passed.
    used: bool,
}

/// The cache.
pub struct Kept<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Came for the first time, oldest first.
    recent: VecDeque<K>,
    /// Came again, in the order of the clock's hand.
    hot: VecDeque<K>,
    /// Dropped from `recent` not long ago, oldest first.
    gone: VecDeque<K>,
    is_gone: HashSet<K>,
    most: usize,
}

impl<K: Copy + Eq + Hash, V: Clone> Kept<K, V> {
    /// Room for `most` entries.
    pub fn new(most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            recent: VecDeque::new(),
            hot: VecDeque::new(),
            gone: VecDeque::new(),
            is_gone: HashSet::new(),
            most,
        }
    }

    /// The value of `key`.
    pub fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        entry.used = true;
        Some(entry.value.clone())
    }

    /// Whether `key` is there.
    pub fn holds(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Adds or replaces the value of `key`.
    pub fn put(&mut self, key: K, value: V) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.value = value;
            return;
        }
        self.entries.insert(key, Entry { value, used: false });
        // Its place among the gone is given back when it is the oldest there.
        if self.is_gone.remove(&key) {
            self.hot.push_back(key);
        } else {
            self.recent.push_back(key);
        }
        while self.entries.len() > self.most {
            self.drop_one();
        }
    }

    fn drop_one(&mut self) {
        if self.recent.len() > self.most / 2 || self.hot.is_empty() {
            let Some(key) = self.recent.pop_front() else { return };
            self.entries.remove(&key);
            self.is_gone.insert(key);
            self.gone.push_back(key);
            while self.gone.len() > self.most {
                let Some(key) = self.gone.pop_front() else { break };
                self.is_gone.remove(&key);
            }
            return;
        }
        while let Some(key) = self.hot.pop_front() {
            if !self.entries.get_mut(&key).is_some_and(|entry| std::mem::take(&mut entry.used)) {
                self.entries.remove(&key);
                return;
            }
            self.hot.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kept: &Kept<u32, u32>) {
        assert_eq!(kept.recent.len() + kept.hot.len(), kept.entries.len());
        assert!(kept.entries.len() <= kept.most && kept.gone.len() <= kept.most);
        assert!(kept.is_gone.len() <= kept.gone.len());
    }

    /// Asks as a reader does: what is missing is brought.
    fn ask(kept: &mut Kept<u32, u32>, key: u32) {
        let found = kept.get(&key);
        assert!(found.is_none_or(|value| value == key.wrapping_mul(3)));
        if found.is_none() {
            kept.put(key, key.wrapping_mul(3));
        }
        check(kept);
    }

    fn ask_all(kept: &mut Kept<u32, u32>, keys: std::ops::Range<u32>) {
        keys.into_iter().for_each(|key| ask(kept, key));
    }

    #[test]
    fn a_scan_leaves_the_hot_alone() {
        let mut kept = Kept::new(64);
        // Twice apart: the second time they become hot.
        for round in 1..4 {
            ask_all(&mut kept, 0..16);
            ask_all(&mut kept, round * 100..round * 100 + 64);
        }
        for key in 1000..100_000 {
            // Sixteen times each, like the blocks of a frame.
            for _ in 0..16 {
                ask(&mut kept, key);
            }
        }
        assert_eq!((0..16).filter(|key| kept.holds(key)).count(), 16);
    }

    #[test]
    fn what_is_new_stays_for_half_of_the_room() {
        let mut kept = Kept::new(64);
        for _ in 0..4 {
            ask_all(&mut kept, 0..64);
            ask_all(&mut kept, 500..600);
        }
        for first in (1000..5000).step_by(32) {
            ask_all(&mut kept, first..first + 32);
            assert!((first..first + 32).all(|key| kept.holds(&key)));
        }
    }

    #[test]
    fn the_hot_leave_when_hotter_ones_come() {
        let mut kept = Kept::new(8);
        for round in 0..50u32 {
            for _ in 0..4 {
                ask_all(&mut kept, round * 100..round * 100 + 6);
                ask_all(&mut kept, round * 100 + 50..round * 100 + 54);
            }
        }
        assert!(!kept.holds(&0));
    }
}
