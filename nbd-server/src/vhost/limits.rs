//! Every bound of what a VMM and its guest may ask for, with its consequence.

/// Queues of a guest: a VMM that wants more does not start.
pub const QUEUES_MAX: u16 = 16;
/// Entries of a ring: a ring of more is refused.
pub const RING_MAX: u16 = 1024;
/// Descriptors of a request, those of an indirect table counted: one of more is malformed.
pub const CHAIN_MAX: usize = 1024;
/// Data segments that a driver puts into a request.
pub const SEGMENTS_MAX: u32 = 254;
/// Pieces of memory that a VMM hands over.
pub const REGIONS_MAX: usize = 8;
/// Payload of a message: a longer one ends the connection.
pub const PAYLOAD_MAX: u32 = 4096;
/// File descriptors of a message: with more it ends the connection.
pub const FDS_MAX: usize = 8;
/// Ranges of one discard or write-zeroes request: with more it is refused.
pub const RANGES_MAX: usize = 64;
/// Sectors of one range of a discard or write-zeroes request, as told to drivers.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Bytes of the log of changed pages: enough for 8 TiB of guest memory.
pub const LOG_BYTES_MAX: u64 = 256 << 20;
/// Requests of a guest that wait for the object store: no more are begun before something has come.
pub const PARKED_MAX: usize = 64;
/// Requests of a guest that are begun at a time, beside those that are parked.
pub const ACTIVE_MAX: usize = 64;
