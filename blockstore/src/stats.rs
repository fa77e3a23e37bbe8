//! Space accounts for people and bills.

use crate::error::{ErrorKind, Result};
use crate::format::segment::{Place, SegmentKind};
use crate::limits::BLOCK_U64;
use crate::map::{span, Ref, FANOUT};
use crate::pool::Pool;
use crate::types::{CheckpointName, RootId, VolumeId};

/// Remembered node counts beyond this are forgotten.
const COUNTS_MAX: usize = 1 << 20;
/// Absent nodes that one walk finds before it ends: then all their pages are fetched at once, and it begins again.
const ABSENT_MAX: usize = 4096;

/// A volume's space, bytes.
#[derive(Clone, Debug, Default)]
pub struct VolumeUsage {
    /// Blocks the head maps.
    pub mapped: u64,
    /// Of those, blocks that no checkpoint and no fork shares.
    pub exclusive: u64,
    /// Of the mapped ones, blocks that somebody else holds, too.
    pub shared: u64,
}

/// A pool's space, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolStats {
    /// Blocks that some volume or checkpoint holds.
    pub live: u64,
    /// Bytes the segment files take.
    pub stored: u64,
    /// Bytes of live blocks that are in the object store alone, because their files were given up.
    pub evicted: u64,
    /// Stored bytes that nobody needs: the cleaner's work.
    pub dead: u64,
    /// Bytes of map pages in segment files.
    pub map_stored: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of map and directory pages in memory.
    pub map_cache: u64,
    /// Map nodes changed since the last anchor.
    pub changed_nodes: u64,
    /// Deleted states whose blocks are being given back.
    pub reaping: u64,
    /// The next log sequence number.
    pub next_lsn: u64,
    /// Log bytes since the last anchor.
    pub unanchored: u64,
}

impl Pool {
    /// Space of the whole pool.
    pub fn stats(&self) -> PoolStats {
        let mut stats = PoolStats {
            live: self.segments.table.live_blocks * BLOCK_U64,
            map_cache: self.map.cache_bytes(),
            changed_nodes: self.map.changed_nodes() as u64,
            reaping: self.roots.ghosts().len() as u64,
            next_lsn: self.next_lsn.0,
            unanchored: self.anchors.log_bytes,
            ..PoolStats::default()
        };
        for (_, segment) in self.segments.table.iter() {
            stats.segments += 1;
            if segment.place == Place::Store && segment.stored == 0 {
                stats.evicted += u64::from(segment.live) * BLOCK_U64;
            }
            stats.stored += u64::from(segment.stored) * BLOCK_U64;
            if segment.kind == SegmentKind::Log {
                stats.dead += u64::from(segment.stored.saturating_sub(segment.live)) * BLOCK_U64;
            } else {
                stats.map_stored += u64::from(segment.stored) * BLOCK_U64;
            }
        }
        stats
    }

    /// Space of a volume's head. The first call after a restart walks its map; later ones only what
    /// has changed.
    pub fn volume_usage(&mut self, id: VolumeId) -> Result<VolumeUsage> {
        let head = self.volume(id)?.head;
        let tree = self.roots.get(head).map;
        let mapped = self.count(tree.top, tree.level)? * BLOCK_U64;
        let exclusive = self.exclusive(head)? * BLOCK_U64;
        Ok(VolumeUsage { mapped, exclusive, shared: mapped - exclusive })
    }

    /// Bytes that only this checkpoint holds: what deleting it would free.
    pub fn checkpoint_exclusive(&mut self, id: VolumeId, name: CheckpointName) -> Result<u64> {
        let root = self.view(id, Some(name))?.root;
        Ok(self.exclusive(root)? * BLOCK_U64)
    }

    fn count(&mut self, at: Ref, level: u8) -> Result<u64> {
        if at == Ref::HOLE {
            return Ok(0);
        }
        if level == 0 {
            return Ok(self.map.leaf_of(at, &self.segments)?.iter().filter(|bits| **bits != 0).count() as u64);
        }
        if let Some(known) = self.counts.get(&at) {
            return Ok(*known);
        }
        let sum = self.sum_children(at, |pool, _, child| pool.count(child, level - 1))?;
        // Only nodes in map pages are immutable under their reference.
        if at.page_addr().is_some() {
            if self.counts.len() >= COUNTS_MAX {
                self.counts.clear();
            }
            self.counts.insert(at, sum);
        }
        Ok(sum)
    }

    fn exclusive(&mut self, root: RootId) -> Result<u64> {
        let tree = self.roots.get(root).map;
        self.exclusive_below(tree.top, tree.level, 0, root)
    }

    fn exclusive_below(&mut self, at: Ref, level: u8, base: u64, root: RootId) -> Result<u64> {
        if at == Ref::HOLE {
            return Ok(0);
        }
        let mut neighbours = Vec::new();
        self.roots.neighbours(root, base, &mut neighbours);
        for &near in &neighbours {
            if self.map.ref_at(self.roots.get(near).map, level, base, &self.segments)? == Some(at) {
                return Ok(0);
            }
        }
        if level == 0 {
            let mut leaf = self.map.leaf_of(at, &self.segments)?;
            for &near in &neighbours {
                let held = self.map.leaf(self.roots.get(near).map, base, &self.segments)?;
                leaf.iter_mut().zip(&held).filter(|(a, b)| a == b).for_each(|(a, _)| *a = 0);
            }
            return Ok(leaf.iter().filter(|bits| **bits != 0).count() as u64);
        }
        let step = span(level - 1);
        self.sum_children(at, |pool, i, child| pool.exclusive_below(child, level - 1, base + i as u64 * step, root))
    }

    /// What `of` says of the children of a node, in all. Where something is absent the others are looked at all the
    /// same, so that what they lack is asked for, too.
    fn sum_children(&mut self, at: Ref, mut of: impl FnMut(&mut Self, usize, Ref) -> Result<u64>) -> Result<u64> {
        let mut sum = Ok(0);
        for i in 0..FANOUT {
            let child = self.map.child(at, i, &self.segments);
            match child.and_then(|child| of(self, i, child)) {
                Ok(n) => sum = sum.map(|sum| sum + n),
                Err(e) if e.kind() == ErrorKind::Absent && self.demands() < ABSENT_MAX => sum = Err(e),
                Err(e) => return Err(e),
            }
        }
        sum
    }
}
