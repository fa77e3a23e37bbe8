//! The reaper: gives back what a ghost alone holds, a bounded piece at a time.
//!
//! It walks the ghost's tree in block order. A subtree that a neighbour holds too is skipped in one
//! comparison, so the work follows what the ghost alone holds, not the volume's size. What has been
//! walked is cut off the ghost and lies below its cursor, so an interrupted walk goes on anywhere,
//! also after a restart. What it needs and is absent is asked for before anything is changed: its walk
//! goes on when that has come. A ghost with several children waits until all but one are gone.

use super::release::{prepare, release, unless_lost};
use super::roots::Roots;
use crate::error::Result;
use crate::format::anchor::RootKind;
use crate::map::{span, Map, Ref, Replaced};
use crate::space::Segments;
use crate::types::RootId;
use std::ops::Range;

/// Does up to `steps` pieces of work; `false` when no ghost can be worked on.
pub fn reap_step(roots: &mut Roots, map: &mut Map, segments: &mut Segments, steps: usize) -> Result<bool> {
    let Some(id) = pick(roots) else { return Ok(false) };
    let mut neighbours = Vec::new();
    for _ in 0..steps {
        let (tree, cursor) = (roots.get(id).map, cursor_of(roots, id));
        if cursor >= span(tree.level) || tree.top == Ref::HOLE {
            let gone = roots.splice(id);
            map.release(gone.map.top);
            return Ok(true);
        }
        roots.neighbours(id, cursor, &mut neighbours);
        let Subtree { level, at, lost } = next_subtree(roots, map, segments, id, cursor, &neighbours)?;
        let end = cursor + span(level);
        let mut held = at == Ref::HOLE || lost;
        for &near in &neighbours {
            held |= unless_lost(map.ref_at(roots.get(near).map, level, cursor, segments))?.flatten() == Some(at);
        }
        if segments.is_hasty() {
            prepare(roots, map, segments, id, cursor, if held { level + 1 } else { 0 })?;
        }
        let patient = segments.set_patient(true);
        let cut = cut_off(roots, map, segments, id, cursor..end, held);
        segments.set_patient(patient);
        cut?;
    }
    Ok(true)
}

/// Takes a range, up to which the ghost was walked, off it; `held` by a neighbour as a whole or not.
fn cut_off(
    roots: &mut Roots,
    map: &mut Map,
    segments: &mut Segments,
    id: RootId,
    range: Range<u64>,
    held: bool,
) -> Result<()> {
    let mut tree = roots.get(id).map;
    let mut replaced = Replaced::default();
    map.set(&mut tree, range.clone(), None, held, &mut replaced, segments)?;
    let root = roots.get_mut(id);
    root.map = tree;
    root.kind = RootKind::Ghost { cursor: range.end };
    release(roots, map, segments, id, &mut replaced)
}

/// The ghost under way, or else one that can be begun: leaves of the tree first.
fn pick(roots: &Roots) -> Option<RootId> {
    let ghosts = roots.ghosts();
    ghosts
        .iter()
        .find(|id| cursor_of(roots, **id) > 0)
        .or_else(|| ghosts.iter().find(|id| roots.get(**id).children.is_empty()))
        .or_else(|| ghosts.iter().find(|id| roots.get(**id).children.len() == 1))
        .copied()
}

/// Whether a ghost can be worked on.
pub fn can_reap(roots: &Roots) -> bool {
    pick(roots).is_some()
}

fn cursor_of(roots: &Roots, id: RootId) -> u64 {
    match roots.get(id).kind {
        RootKind::Ghost { cursor } => cursor,
        _ => 0,
    }
}

/// What is dealt with at once.
struct Subtree {
    level: u8,
    at: Ref,
    /// It cannot be read any more, and holds nothing of this pool's own.
    lost: bool,
}

/// The largest subtree that starts at `cursor` and can be dealt with at once: a hole, one that a
/// neighbour shares, or a leaf.
fn next_subtree(
    roots: &Roots,
    map: &mut Map,
    segments: &Segments,
    id: RootId,
    cursor: u64,
    neighbours: &[RootId],
) -> Result<Subtree> {
    let tree = roots.get(id).map;
    let mut level = tree.level;
    let mut at = tree.top;
    loop {
        if cursor % span(level) == 0 {
            let mut whole = at == Ref::HOLE || level == 0;
            for &near in neighbours {
                whole |= unless_lost(map.ref_at(roots.get(near).map, level, cursor, segments))?.flatten() == Some(at);
            }
            if whole {
                return Ok(Subtree {
                    level,
                    at,
                    lost: level == 0 && unless_lost(map.leaf_of(at, segments))?.is_none(),
                });
            }
        }
        let i = (cursor / span(level - 1)) as usize % crate::map::FANOUT;
        match unless_lost(map.child(at, i, segments))? {
            Some(child) => at = child,
            None => return Ok(Subtree { level, at, lost: true }),
        }
        level -= 1;
    }
}
