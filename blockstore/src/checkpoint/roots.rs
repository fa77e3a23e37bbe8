//! The tree of roots.
//!
//! A root's parent is the state it was derived from: a head's parent is its newest checkpoint (or
//! the one it was restored to or forked from), a checkpoint's parent the one before it.
//!
//! Invariants
//!   * roots that map a block to the same slot form a connected part of this tree: a slot is written
//!     once, inherited until it is overwritten, and never comes back. So a slot that a root gives up
//!     is dead exactly if none of the root's neighbours maps it;
//!   * a ghost is a root without a name; it keeps its place in the tree until its blocks have been
//!     given back, and below its cursor it is transparent: its neighbours see each other through it;
//!   * at most one ghost has a cursor above 0, and it has at most one child.

use crate::format::anchor::RootKind;
use crate::map::MapRoot;
use crate::types::{RootId, VolumeId};
use std::collections::BTreeMap;

/// One root.
#[derive(Clone, Debug)]
pub struct Root {
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// Its tree.
    pub map: MapRoot,
    /// Size of the volume in that state, bytes.
    pub size: u64,
    /// Where it was derived from.
    pub parent: Option<RootId>,
    /// What was derived from it.
    pub children: Vec<RootId>,
    /// What it is.
    pub kind: RootKind,
}

/// All roots of a pool.
#[derive(Default)]
pub struct Roots {
    roots: BTreeMap<RootId, Root>,
    ghosts: Vec<RootId>,
    /// The next number.
    pub next_id: u64,
}

impl Roots {
    /// Adds a root under its parent.
    pub fn insert(&mut self, root: Root) -> RootId {
        let id = RootId(self.next_id);
        self.next_id += 1;
        if let Some(parent) = root.parent {
            self.get_mut(parent).children.push(id);
        }
        if matches!(root.kind, RootKind::Ghost { .. }) {
            self.ghosts.push(id);
        }
        self.roots.insert(id, root);
        id
    }

    /// Puts back roots read from an anchor; `false` when their parents do not fit together.
    pub fn load(&mut self, entries: Vec<(RootId, Root)>, next_id: u64) -> bool {
        self.next_id = next_id;
        self.ghosts = entries.iter().filter(|(_, r)| matches!(r.kind, RootKind::Ghost { .. })).map(|e| e.0).collect();
        let parents: Vec<_> = entries.iter().map(|(id, r)| (*id, r.parent)).collect();
        self.roots = entries.into_iter().collect();
        for (id, parent) in parents {
            let Some(parent) = parent else { continue };
            match self.roots.get_mut(&parent) {
                Some(parent) => parent.children.push(id),
                None => return false,
            }
        }
        true
    }

    /// The root `id`, which exists.
    pub fn get(&self, id: RootId) -> &Root {
        &self.roots[&id]
    }

    /// The root `id`, if it exists.
    pub fn find(&self, id: RootId) -> Option<&Root> {
        self.roots.get(&id)
    }

    /// The root `id`, which exists, for changing.
    pub fn get_mut(&mut self, id: RootId) -> &mut Root {
        self.roots.get_mut(&id).expect("the tree of roots names only roots it holds")
    }

    /// All roots by number.
    pub fn iter(&self) -> impl Iterator<Item = (RootId, &Root)> {
        self.roots.iter().map(|(id, r)| (*id, r))
    }

    /// The heads from number `first` on.
    pub fn heads_from(&self, first: RootId) -> impl Iterator<Item = (RootId, &Root)> {
        let heads = self.roots.range(first..).filter(|(_, root)| matches!(root.kind, RootKind::Head));
        heads.map(|(id, root)| (*id, root))
    }

    /// Gives `id` another parent.
    pub fn set_parent(&mut self, id: RootId, parent: Option<RootId>) {
        if let Some(before) = self.get(id).parent {
            self.get_mut(before).children.retain(|child| *child != id);
        }
        if let Some(parent) = parent {
            self.get_mut(parent).children.push(id);
        }
        self.get_mut(id).parent = parent;
    }

    /// Inserts a root between `child` and its parent.
    pub fn insert_above(&mut self, child: RootId, root: Root) -> RootId {
        let parent = self.get(child).parent;
        let id = self.insert(Root { parent, ..root });
        self.set_parent(child, Some(id));
        id
    }

    /// Takes a root's name away: from now on the reaper owns it.
    pub fn make_ghost(&mut self, id: RootId) {
        self.get_mut(id).kind = RootKind::Ghost { cursor: 0 };
        self.ghosts.push(id);
    }

    /// Ghosts not yet gone.
    pub fn ghosts(&self) -> &[RootId] {
        &self.ghosts
    }

    /// Takes a fully reaped ghost out; its only child, if any, moves up to its parent.
    pub fn splice(&mut self, id: RootId) -> Root {
        let (parent, child) = (self.get(id).parent, self.get(id).children.first().copied());
        if let Some(child) = child {
            self.set_parent(child, parent);
        }
        self.set_parent(id, None);
        self.ghosts.retain(|ghost| *ghost != id);
        self.roots.remove(&id).expect("a ghost is a root")
    }

    /// The roots next to `id` as seen at `block`, looking through transparent ghosts.
    pub fn neighbours(&self, id: RootId, block: u64, out: &mut Vec<RootId>) {
        out.clear();
        let root = self.get(id);
        for &next in root.parent.iter().chain(&root.children) {
            match &self.get(next).kind {
                RootKind::Ghost { cursor } if block < *cursor => {
                    let through = self.get(next);
                    out.extend(through.parent.iter().chain(&through.children).filter(|far| **far != id));
                }
                _ => out.push(next),
            }
        }
    }
}
