//! Every bound of the store in one place, each with the consequence of reaching it.

/// Bytes per block: the unit of mapping, checksums and copy-on-write.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] as a 64-bit offset.
pub const BLOCK_U64: u64 = BLOCK as u64;

/// Largest volume, 64 PiB: larger sizes are refused at create and resize.
pub const VOLUME_BYTES_MAX: u64 = 64 << 50;
/// Longest volume name in bytes: longer names are refused.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest checkpoint comment in bytes: longer comments are refused, so that a record fits a header.
pub const COMMENT_BYTES_MAX: usize = 1024;
/// Volumes per pool: creating one more is refused, which bounds the anchor.
pub const VOLUMES_MAX: usize = 1 << 20;

/// Slots in a segment (32 MiB of blocks): fixes the split of a slot address.
pub const SEGMENT_SLOTS: u32 = 8192;
/// Bits of a slot address that name the slot inside its segment.
pub const SLOT_BITS: u32 = 13;
/// Bits of a slot address that name the segment; identifiers are never reused.
pub const SEGMENT_BITS: u32 = 27;
/// Checksums per directory page.
pub const CRCS_PER_PAGE: u32 = 1020;
/// Directory pages at the end of a full segment.
pub const DIRECTORY_PAGES: u32 = 9;
/// First slot that may hold a batch (slot 0 holds the segment header).
pub const FIRST_SLOT: u32 = 1;
/// One past the last slot that may hold a batch or a map page.
pub const END_SLOT: u32 = SEGMENT_SLOTS - DIRECTORY_PAGES;

/// Data blocks in one record batch: a larger group of requests is split.
pub const BATCH_BLOCKS_MAX: usize = 512;
/// Bytes of one request that are all-or-nothing after a crash (promise P5); larger ones are split.
pub const ATOMIC_BYTES_MAX: u64 = 1 << 20;
/// Runs of zero and data blocks in one request beyond which zero blocks are stored as data.
pub const ZERO_RUNS_MAX: usize = 32;

/// Shortest request whose data is put into the log while the rest is still arriving: for shorter ones that
/// costs more than it saves.
pub const AHEAD_BYTES_MIN: u64 = 256 << 10;
/// Unwritten log bytes after which write-back is started, so that a flush never waits for much.
pub const WRITEBACK_BYTES: u64 = 1 << 20;
/// A flush that covers no more log bytes than this is a small one.
pub const SMALL_FLUSH_BYTES: u64 = 64 << 10;
/// Small flushes in a row after which the next one is expected, and written back ahead of.
pub const SMALL_FLUSHES_HABIT: u32 = 4;
/// Log bytes between anchors (when the anchor itself is small): bounds replay at open.
pub const ANCHOR_LOG_BYTES: u64 = 64 << 20;
/// Bytes kept aside so that anchors can be written, and the pool opened, on a full disk.
pub const RESERVE_ANCHORS_BYTES: u64 = 8 << 20;
/// Bytes kept aside so that trims and deletions work on a full disk, and the largest segment worth packing can be
/// packed. While either is missing no data is taken.
pub const RESERVE_FREEING_BYTES: u64 = 24 << 20;
/// Dead blocks (512 MiB) that a busy pool may hold, or as many as live if those are more: beyond it
/// segments are packed although they still lose blocks.
pub const DEAD_BLOCKS_ALLOWED: u64 = 1 << 17;
/// Free space that is left to others on the disk of a pool with an object store, as far as a sixteenth of the disk is
/// between these: below it segments that are in the store are given up, and writers wait.
pub const LOCAL_FLOOR: std::ops::RangeInclusive<u64> = 96 << 20..=1 << 30;
/// Less than this is not handed out to writers near the end of the space: they wait.
pub const LOCAL_CREDIT_MIN: u64 = 1 << 20;
/// Dead segments (2 GiB) kept for reuse while clients are busy: more are removed.
pub const RECYCLED_MAX: usize = 64;
/// Open file handles kept for sealed segments: one more evicts another.
pub const SEGMENT_HANDLES_MAX: usize = 512;
/// Trims up to this many blocks release their slots at once; larger ones in the background.
pub const TRIM_INLINE_BLOCKS: u64 = 1024;
/// Auto-checkpoints kept per volume: the oldest beyond this is deleted.
pub const AUTO_CHECKPOINTS_KEPT: usize = 5;
/// Largest anchor file accepted when opening, so that a damaged length cannot exhaust memory.
pub const ANCHOR_BYTES_MAX: u64 = 4 << 30;
/// Longest directory of a data object that is put or fetched, bytes: a damaged length cannot exhaust memory. A whole
/// segment of records without data is not longer.
pub const OBJECT_DIRECTORY_MAX: u32 = 40 << 20;
/// Bytes of slots in one data object, where those count, too, of which it has only the records: more begin another.
pub const OBJECT_SLOT_BYTES: usize = 32 << 20;
/// Most ranges of one data object, as each takes a slot of [`OBJECT_SLOT_BYTES`]: more are damage.
pub const OBJECT_RANGES_MAX: u32 = (OBJECT_SLOT_BYTES / BLOCK) as u32;
/// Largest window that a compressed manifest may need to be read, as a power of two: 8 MiB.
pub const MANIFEST_WINDOW_LOG_MAX: u32 = 23;
/// Directories of data objects kept in memory: one more drops another.
pub const OBJECT_DIRECTORIES_KEPT: usize = 1024;
/// Decompressed frames of blocks kept in memory (64 MiB): one more drops another.
pub const OBJECT_FRAMES_KEPT: usize = 1024;
/// So long, in microseconds, a volume is taken for ours after its manifests showed it: then they are looked at again
/// before anybody is answered. Whoever takes a volume over waits for longer.
pub const LEASE_US: u64 = 3_000_000;
/// Decompressed frames of map pages kept in memory (32 MiB): one more drops another. Half of them are the newest
/// ones: a change that needs more before it can be made is made slowly.
pub const OBJECT_MAP_FRAMES_KEPT: usize = 512;
/// Blocks fetched ahead of one sequential reader at most (24 MiB): 16 requests of 1 MiB under way, and some behind
/// them that can begin at once.
pub const READ_AHEAD_BLOCKS_MAX: u64 = 6144;
/// Blocks fetched ahead of all sequential readers that read now (32 MiB, what is new among the frames in memory):
/// several of them share it.
pub const READ_AHEAD_BLOCKS_ALL: u64 = 8192;
/// Pieces of objects wanted or under way beyond which nothing more is fetched ahead (32 MiB of frames).
pub const WANTS_AHEAD_MAX: usize = 512;
/// Longest manifest that is read, bytes, before and after decompression.
pub const MANIFEST_BYTES_MAX: usize = 256 << 20;
/// How long an old manifest stays when a newer one is durable, and a dead object when no manifest names it any more.
/// Twice [`FENCE_FRESH_US`], at least: an owner that was held for longer must meet the manifest that took its place.
pub const OBJECT_GRACE_US: u64 = 10 * 60 * 1_000_000;
/// How long an owner may rely on having put the newest manifest: one that heard nothing for longer asks again.
pub const FENCE_FRESH_US: u64 = 5 * 60 * 1_000_000;
/// How old an object must be for the daily sweep to call it an orphan.
pub const SWEEP_GRACE_US: u64 = 24 * 3600 * 1_000_000;
/// A pool that has put an object and named it in no manifest for so long puts its slots again: the sweep may have come.
pub const UNNAMED_US_MAX: u64 = 12 * 3600 * 1_000_000;
/// How old a pin must be to be removed by others than its owner: attaching takes seconds.
pub const PIN_SPENT_AFTER_US: u64 = 24 * 3600 * 1_000_000;
/// Objects that one cleaning job deletes: more wait for the next.
pub const CLEAN_OBJECTS_MAX: usize = 256;
/// Live slots (64 MiB) of mostly dead objects that are put again in a round: more wait for the next.
pub const REPACK_SLOTS_MAX: u32 = 1 << 14;
