//! Bytes to structs and back: pure, bounded, without panics. `docs/FORMAT.md` is normative.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod anchor;
pub mod batch;
pub mod bits;
pub mod codec;
#[cfg(test)]
pub(crate) mod golden;
pub mod live;
pub mod manifest;
pub mod object;
pub mod origin;
pub mod page;
pub mod record;
pub mod renumbering;
pub mod segment;
pub mod superblock;

/// Version written into superblock, segment headers and batches; a newer one is refused with a clear error.
pub const VERSION: u16 = 1;
/// Version written into anchors; covers the map pages that they refer to, too. Older ones are read.
pub const ANCHOR_VERSION: u16 = 4;
/// Version written into manifests. Older ones are read.
pub const MANIFEST_VERSION: u16 = 2;
