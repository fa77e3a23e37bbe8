//! The map: block -> slot, as a persistent (path-copying) radix tree of 64-way nodes.
//!
//! Invariants
//!   * Cloning a root is the whole cost of a checkpoint: nodes reachable from two roots are never
//!     changed in place (reference counts in memory, immutability on disk).
//!   * Clean nodes live inside cached map pages and can be evicted at any time; only nodes changed
//!     since the last anchor are held as objects, so memory follows `--map-cache`.
//!   * A node's identity is its reference: two equal references name the same subtree, so shared
//!     subtrees are recognised, and skipped, in one comparison.

mod cache;
mod node;
mod tree;
mod writeout;

pub use cache::{NumberMap, PageCache, PageSource};
pub use node::{Ref, Target, FANOUT};
pub use tree::{Map, MapRoot, Replaced};
pub use writeout::{Moves, PageSink, WriteOut, Written};

/// Height of the tree that covers `bytes` of volume: the level of its root (leaves are level 0).
pub fn level_for(bytes: u64) -> u8 {
    let blocks = bytes.div_ceil(crate::limits::BLOCK_U64).max(1);
    (0u8..8).find(|&level| blocks <= span(level)).unwrap_or(7)
}

/// Blocks that a node of `level` covers.
pub fn span(level: u8) -> u64 {
    1u64 << (6 * (u32::from(level) + 1))
}
