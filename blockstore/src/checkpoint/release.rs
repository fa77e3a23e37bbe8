//! Giving up what a root no longer maps: dead, if no neighbour maps it.

use super::roots::Roots;
use crate::error::{ErrorKind, Result};
use crate::map::{span, Map, Ref, Replaced, FANOUT};
use crate::space::Segments;
use crate::types::RootId;

/// Looks at everything that mapping `block` of `root` anew will read, without changing anything: the nodes down to
/// level `least` on the way to it, and what [`release`] asks the neighbours. All that is absent is asked for at once.
pub fn prepare(roots: &Roots, map: &mut Map, segments: &Segments, root: RootId, block: u64, least: u8) -> Result<()> {
    let tree = roots.get(root).map;
    let (mut neighbours, mut outcome) = (Vec::new(), Ok(()));
    for level in (least..=tree.level).rev() {
        let base = block / span(level) * span(level);
        let at = match map.ref_at(tree, level, base, segments) {
            Ok(None | Some(Ref::HOLE)) => break,
            Ok(Some(at)) => at,
            // What is below can only be known later.
            Err(e) if e.kind() == ErrorKind::Absent => {
                outcome = Err(e);
                break;
            }
            Err(e) => return Err(e),
        };
        let mut note = |seen: Result<()>| match seen {
            Err(e) if e.kind() == ErrorKind::Absent => {
                outcome = Err(e);
                Ok(())
            }
            seen => seen,
        };
        note(map.load(at, segments))?;
        roots.neighbours(root, base, &mut neighbours);
        for &near in &neighbours {
            let near = roots.get(near).map;
            note(if level > 0 {
                map.ref_at(near, level, base, segments).map(drop)
            } else {
                map.leaf(near, base, segments).map(drop)
            })?;
        }
    }
    outcome
}

/// `root` has just given up everything in `replaced`.
pub fn release(
    roots: &Roots,
    map: &mut Map,
    segments: &mut Segments,
    root: RootId,
    replaced: &mut Replaced,
) -> Result<()> {
    let mut neighbours = Vec::new();
    let mut rest = replaced.slots.as_slice();
    while let Some(&(first, _)) = rest.first() {
        let leaf = first / FANOUT as u64;
        let len = rest.iter().take_while(|(block, _)| block / FANOUT as u64 == leaf).count();
        let (group, after) = rest.split_at(len);
        rest = after;
        roots.neighbours(root, first, &mut neighbours);
        let mut dead = group.to_vec();
        for &near in &neighbours {
            if dead.is_empty() {
                break;
            }
            let Some(held) = unless_lost(map.leaf(roots.get(near).map, first, segments))? else { continue };
            dead.retain(|(block, addr)| held[(block % FANOUT as u64) as usize] != addr.0);
        }
        dead.iter().for_each(|(_, addr)| segments.table.release(*addr));
    }
    for &(level, base, node) in &replaced.nodes {
        roots.neighbours(root, base, &mut neighbours);
        let mut held = false;
        for &near in &neighbours {
            held |= unless_lost(map.ref_at(roots.get(near).map, level, base, segments))?.flatten() == Some(node);
        }
        if !held {
            release_node(map, segments, node);
        }
    }
    replaced.slots.clear();
    replaced.nodes.clear();
    Ok(())
}

/// `None` where a map page cannot be read because it came with a volume that another pool has now. What such a page
/// refers to came with that volume, too: none of it is this pool's to give back.
pub fn unless_lost<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Nobody refers to a stored node any more. A page in which nothing lives leaves the memory, too.
pub fn release_node(map: &mut Map, segments: &mut Segments, node: Ref) {
    if let Some(addr) = node.page_addr() {
        if segments.table.release_node(addr) {
            map.cache().forget(addr);
        }
    }
}
