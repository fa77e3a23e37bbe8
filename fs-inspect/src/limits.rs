//! Every bound, with its consequence.

/// Blocks of metadata that are kept of one file system: with blocks of 4 KiB 16 MiB.
pub const BLOCKS_KEPT: usize = 4096;
/// Names of directories that are kept for lookups, in all of one file system: beyond, those of other directories go.
pub const NAMES_KEPT: usize = 200_000;
/// Blocks of a directory that are read for one answer: with blocks of 4 KiB 1 GiB, some ten million names. A few blocks can
/// claim to be any number of them.
pub const DIRECTORY_BLOCKS_MAX: u64 = 1 << 18;
/// Depth of an extent tree: mke2fs and the kernel make none that is deeper.
pub const EXTENT_DEPTH_MAX: u16 = 5;
/// Bytes of a symbolic link: the kernel makes none that is longer.
pub const LINK_BYTES_MAX: u64 = 4096;
/// Bytes of the value of an extended attribute.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Blocks of a journal that is replayed: with blocks of 4 KiB 4 GiB.
pub const JOURNAL_BLOCKS_MAX: u32 = 1 << 20;
/// Block groups of a file system: with 128 MiB each 2 PiB.
pub const GROUPS_MAX: u64 = 1 << 24;
/// Depth of a tree of directories that is walked: deeper ones are reported and passed over.
pub const TREE_DEPTH_MAX: usize = 512;
/// Partitions of a disk that are shown.
pub const PARTITIONS_MAX: usize = 128;
/// Bytes that are read at a time when contents are compared or copied.
pub const PIECE: usize = 1 << 20;
/// Bytes of an image that are read at once when small reads follow one another; a power of two.
pub const WINDOW: u64 = 256 << 10;
/// Windows that are held of one image while it is in use: 8 MiB.
pub const WINDOWS_KEPT: usize = 32;
/// Sessions that are kept open on one export when several read at a time.
pub const SESSIONS_KEPT: usize = 4;
/// Runs of a file that are looked at for one answer about data and holes: what lies behind counts as data, which is never
/// wrong. A few blocks can claim to be a thousand million runs.
pub const RUNS_MAX: u32 = 1 << 16;
/// Replies about data and holes that are counted for what a disk takes: what lies behind counts as data.
pub const MAP_REPLIES_MAX: usize = 256;
