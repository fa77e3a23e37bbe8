//! Finding changed leaves that can be written before the anchor that needs them in map pages.
//!
//! Only leaves below nodes that are in memory as well and belong to one tree alone: such a leaf is replaced in
//! its parent by the reference to its page, and nobody else has to know. The nodes above stay in
//! memory: they are few, and change again at once.

use super::node::{Ref, Target};
use super::span;
use super::tree::{Map, MapRoot};

/// Nodes of level 1 with changed leaves, in block order.
pub struct Parents {
    /// Each with its first block.
    pub nodes: Vec<(Ref, u64)>,
    /// Where to go on; `None` at the end of the tree.
    pub next: Option<u64>,
}

impl Map {
    /// The next nodes of `tree` from `block` on whose changed leaves, `leaves` or somewhat more in all, can be
    /// written ahead.
    pub fn parents_of_changed(&self, tree: MapRoot, block: u64, leaves: usize) -> Parents {
        let mut found = Parents { nodes: Vec::new(), next: None };
        let mut left = leaves;
        self.collect_parents(tree.top, tree.level, 0, block, &mut left, &mut found);
        found
    }

    fn collect_parents(&self, at: Ref, level: u8, base: u64, from: u64, left: &mut usize, found: &mut Parents) {
        let Some((_, entries)) = self.sole(at).filter(|_| level > 0 && found.next.is_none()) else { return };
        if level > 1 {
            let step = span(level - 1);
            let first = (from.saturating_sub(base) / step) as usize;
            for (bits, begin) in entries.iter().zip((base..).step_by(step as usize)).skip(first) {
                self.collect_parents(Ref::from_bits(*bits), level - 1, begin, from, left, found);
            }
            return;
        }
        let own = |bits: &&u64| match Ref::from_bits(**bits).target() {
            Target::Memory(leaf) => self.arena.get(leaf).references == 1,
            _ => false,
        };
        let changed = entries.iter().filter(own).count();
        if changed == 0 {
            return;
        }
        if *left == 0 {
            found.next = Some(base);
            return;
        }
        *left = left.saturating_sub(changed);
        found.nodes.push((at, base));
    }
}
