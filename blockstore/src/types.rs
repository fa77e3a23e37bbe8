//! Newtypes for the store's identifiers and addresses, so that none can stand for another.

use crate::limits::{SEGMENT_BITS, SLOT_BITS};
use std::fmt;

/// A volume's number in its pool; never reused. 0 is the pool's own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u64);

/// Log sequence number: the place of one change in the pool-wide order of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// A segment's number; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

/// A root's number: a head, a checkpoint, or a ghost on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(pub u64);

/// A block's place: segment and slot, 40 bits. It never changes while the block lives, whatever
/// happens to the segment's file. 0 is no place (slot 0 holds the segment header).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotAddr(pub u64);

impl SlotAddr {
    /// Bits in use.
    pub const BITS: u32 = SEGMENT_BITS + SLOT_BITS;

    /// The address of `slot` in `segment`.
    pub fn new(segment: SegmentId, slot: u32) -> Self {
        debug_assert!(slot < 1 << SLOT_BITS);
        Self(u64::from(segment.0) << SLOT_BITS | u64::from(slot))
    }

    /// The segment part.
    pub fn segment(self) -> SegmentId {
        SegmentId((self.0 >> SLOT_BITS) as u32)
    }

    /// The slot part.
    pub fn slot(self) -> u32 {
        (self.0 & ((1 << SLOT_BITS) - 1)) as u32
    }
}

impl fmt::Display for SlotAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} slot {}", self.segment().0, self.slot())
    }
}

/// What the store takes from its surroundings besides a disk; a simulator brings its own.
pub trait Clock: Send + Sync {
    /// Microseconds since 1970-01-01 UTC.
    fn now_us(&self) -> u64;

    /// Microseconds since some moment, that never go back and go on while the machine sleeps.
    fn monotonic_us(&self) -> u64;
}

/// What a flush of a volume waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The local disk.
    #[default]
    Local,
    /// The local disk, and for the object store to be no further behind than this.
    Bounded {
        /// Milliseconds, not 0.
        ms: u32,
    },
    /// The object store.
    Remote,
}

impl Durability {
    /// As it stands in records, anchors and manifests.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Local => 0,
            Self::Bounded { ms } => ms.clamp(1, u32::MAX - 1),
            Self::Remote => u32::MAX,
        }
    }

    /// From [`Durability::bits`].
    pub(crate) fn of_bits(bits: u32) -> Self {
        match bits {
            0 => Self::Local,
            u32::MAX => Self::Remote,
            ms => Self::Bounded { ms },
        }
    }

    /// Parses `local`, `remote` or `bounded=MS`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "local" => Some(Self::Local),
            "remote" => Some(Self::Remote),
            _ => {
                let ms: u32 = text.strip_prefix("bounded=")?.parse().ok()?;
                (ms > 0 && ms < u32::MAX).then_some(Self::Bounded { ms })
            }
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Bounded { ms } => write!(f, "bounded={ms}"),
            Self::Remote => f.write_str("remote"),
        }
    }
}

/// A checkpoint's name within its volume: `v1`, `v2`, … or `auto-1`, `auto-2`, ….
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointName {
    /// Taken by the store itself (before a restore), and pruned by it.
    pub is_auto: bool,
    /// Counts from 1 within its kind.
    pub number: u32,
}

impl CheckpointName {
    /// Parses `v7` or `auto-7`.
    pub fn parse(text: &str) -> Option<Self> {
        let (is_auto, digits) = match text.strip_prefix("auto-") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('v')?),
        };
        let canonical = !digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        let number = digits.parse().ok()?;
        canonical.then_some(Self { is_auto, number })
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_auto { "auto-" } else { "v" }, self.number)
    }
}
