//! The segment table: one bit per live slot.
//!
//! Invariants
//!   * a data slot's bit is set exactly while some root maps a block to it; `cairn check`
//!     recomputes this by walking every root;
//!   * a map slot's node count is the number of its nodes that some root reaches; its bit is set
//!     exactly while the count is not zero;
//!   * addresses are never reused, so a dead slot stays dead;
//!   * an anchor being written shares the bitmaps as they were: changing one copies it first.

use crate::census::Counted;
use crate::format::segment::{Bitmap, Place, SegmentKind, BITMAP_WORDS};
use crate::limits::{DEAD_BLOCKS_ALLOWED, SEGMENT_SLOTS};
use crate::types::{SegmentId, SlotAddr, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One segment's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Log or map.
    pub kind: SegmentKind,
    /// Whose stream it belongs to.
    pub volume: VolumeId,
    /// Nothing more is appended.
    pub sealed: bool,
    /// Where its slots can be read.
    pub place: Place,
    /// A durable anchor says that it is sealed: recovery will not scan it, so the cleaner may have it.
    pub settled: bool,
    /// Slots used so far, dead ones and headers included.
    pub used: u32,
    /// Live slots.
    pub live: u32,
    /// Which.
    pub bits: Arc<Bitmap>,
    /// Map segments: live nodes per slot.
    pub nodes: Option<Arc<[u8; SEGMENT_SLOTS as usize]>>,
    /// Map segments, once tidying has looked: for each slot the number of live nodes down to which it is
    /// well filled, 0 where that is not known. Found in the pages, never written.
    pub enough: Vec<u8>,
    /// Slots the file holds: `used`, or fewer once packed.
    pub stored: u32,
    /// Live slots when an anchor last looked: a segment that still loses blocks is not packed yet.
    pub live_before: u32,
}

impl Segment {
    /// An empty segment.
    pub fn new(kind: SegmentKind, volume: VolumeId) -> Self {
        let nodes = (kind == SegmentKind::Map).then(|| Arc::new([0; SEGMENT_SLOTS as usize]));
        let bits = Arc::new([0; BITMAP_WORDS]);
        Self {
            kind,
            volume,
            sealed: false,
            place: Place::Here,
            settled: false,
            used: 0,
            live: 0,
            bits,
            nodes,
            enough: Vec::new(),
            stored: 0,
            live_before: 0,
        }
    }

    /// Whether `slot` lives.
    pub fn is_live(&self, slot: u32) -> bool {
        self.bits[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    fn set(&mut self, slot: u32, live: bool) -> bool {
        let (word, bit) = (&mut Arc::make_mut(&mut self.bits)[slot as usize / 64], 1u64 << (slot % 64));
        let before = *word & bit != 0;
        if before != live {
            *word ^= bit;
            self.live = if live { self.live + 1 } else { self.live - 1 };
        }
        before
    }
}

/// All segments of a pool.
#[derive(Default)]
pub struct SegmentTable {
    segments: BTreeMap<SegmentId, Segment>,
    /// Live data slots of the pool.
    pub live_blocks: u64,
    /// Releases of something already dead: must stay 0; a check reports it.
    pub double_releases: u64,
    /// The slots of some segment may not be here.
    pub away: bool,
}

impl SegmentTable {
    /// Adds a segment.
    pub fn insert(&mut self, id: SegmentId, segment: Segment) {
        if segment.kind == SegmentKind::Log && segment.place != Place::Imported {
            self.live_blocks += u64::from(segment.live);
        }
        self.away |= segment.place != Place::Here;
        self.segments.insert(id, segment);
    }

    /// Forgets a segment that holds nothing live.
    pub fn remove(&mut self, id: SegmentId) {
        self.segments.remove(&id);
    }

    /// The account of `id`.
    pub fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.segments.get(&id)
    }

    /// The account of `id`, for changing.
    pub fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        self.segments.get_mut(&id)
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.segments.iter().map(|(id, s)| (*id, s))
    }

    /// All of them, for changing.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SegmentId, &mut Segment)> {
        self.segments.iter_mut().map(|(id, s)| (*id, s))
    }

    /// Whether so much dead space has gathered that it should not wait to become cheap to give back.
    pub fn crowded(&self) -> bool {
        let dead: u64 = self.segments.values().map(|s| u64::from(s.stored.saturating_sub(s.live))).sum();
        dead > DEAD_BLOCKS_ALLOWED.max(self.live_blocks)
    }

    /// `count` data slots from `first` came to life.
    pub fn mark_live(&mut self, first: SlotAddr, count: u64) {
        let segment = self.segments.get_mut(&first.segment()).expect("the log has just written this segment");
        for slot in first.slot()..first.slot() + count as u32 {
            if !segment.set(slot, true) {
                self.live_blocks += 1;
            }
        }
    }

    /// A data slot died.
    pub fn release(&mut self, addr: SlotAddr) {
        let segment = self.segments.get_mut(&addr.segment());
        match segment.map(|segment| (segment.set(addr.slot(), false), segment.place)) {
            Some((_, Place::Imported)) => {}
            Some((true, _)) => self.live_blocks -= 1,
            _ => self.double_releases += 1,
        }
    }

    /// What lives in a segment that came from another pool is known now.
    pub fn recount(&mut self, id: SegmentId, counted: &Counted) {
        let Some(segment) = self.segments.get_mut(&id).filter(|s| s.place == Place::Imported) else { return };
        // It may have died as a whole meanwhile.
        if segment.live == 0 {
            segment.place = Place::Counted;
            return;
        }
        let bits = Arc::make_mut(&mut segment.bits);
        match (counted, &mut segment.nodes) {
            (Counted::Live(live), _) => bits.iter_mut().zip(live.iter()).for_each(|(now, then)| *now &= then),
            (Counted::Unreached(unreached), Some(nodes)) => {
                for (slot, (nodes, unreached)) in Arc::make_mut(nodes).iter_mut().zip(unreached.iter()).enumerate() {
                    self.double_releases += u64::from(*nodes < *unreached);
                    *nodes = nodes.saturating_sub(*unreached);
                    if *nodes == 0 {
                        bits[slot / 64] &= !(1 << (slot % 64));
                    }
                }
            }
            (Counted::Unreached(_), None) => return,
        }
        segment.live = bits.iter().map(|word| word.count_ones()).sum();
        segment.place = Place::Counted;
        if segment.kind == SegmentKind::Log {
            self.live_blocks += u64::from(segment.live);
        }
    }

    /// Nothing in a segment that came from another pool lives any more.
    pub fn empty(&mut self, id: SegmentId) {
        let Some(segment) = self.segments.get_mut(&id) else { return };
        if segment.kind == SegmentKind::Log && segment.place != Place::Imported {
            self.live_blocks -= u64::from(segment.live);
        }
        segment.live = 0;
        segment.bits = Arc::new([0; BITMAP_WORDS]);
        segment.nodes = segment.nodes.as_ref().map(|_| Arc::new([0; SEGMENT_SLOTS as usize]));
    }

    /// A map page with `nodes` nodes was written.
    pub fn add_nodes(&mut self, addr: SlotAddr, nodes: usize) {
        let segment = self.segments.get_mut(&addr.segment()).expect("the sink has just written this segment");
        segment.set(addr.slot(), nodes > 0);
        if let Some(counts) = &mut segment.nodes {
            Arc::make_mut(counts)[addr.slot() as usize] = nodes as u8;
        }
    }

    /// One node of a map page died; `true` if it was the last.
    pub fn release_node(&mut self, addr: SlotAddr) -> bool {
        let Some(segment) = self.segments.get_mut(&addr.segment()) else {
            self.double_releases += 1;
            return false;
        };
        let count = segment.nodes.as_mut().map(|counts| &mut Arc::make_mut(counts)[addr.slot() as usize]);
        match count {
            Some(count) if *count > 0 => {
                *count -= 1;
                if *count > 0 {
                    return false;
                }
                segment.set(addr.slot(), false);
                true
            }
            _ => {
                self.double_releases += 1;
                false
            }
        }
    }
}
