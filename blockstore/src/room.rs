//! Room on the local disk: what is given up because the object store has it, and when writers have to wait.
//!
//! A pool may use so many bytes for its segments as it is told ([`Pool::set_local_limit`]), and never more than leaves
//! a part of the disk free, the [`floor`]. Above a mark (7/8 of the bytes; twice the floor) segments are given up, the
//! oldest first, down to a target (3/4; three times the floor); until that has helped, writers get, each time the
//! owner looks, at most half of what is left to the limit, and then nothing. Below the mark they get what is left to
//! it, and the owner looks when that is used up: nobody is so fast as to run past the mark unseen.
//!
//! Invariants
//!   * a segment is given up only when every slot that lives in it is named by the newest manifests of the volumes that
//!     may need it, all of which are this pool's: a pool that is opened again finds it there;
//!   * its file goes only when an anchor is durable that says that it may be gone; until then it is read;
//!   * no file is given up that a round of uploading reads, and no volume goes whose manifest alone says where blocks
//!     of another one are;
//!   * writers wait only for space that uploading or cleaning will give back.
//!
//! Not here: removing files (`maintain`), who waits and for how long (the daemon).

use crate::disk::DiskSpace;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{Manifest, Part};
use crate::format::object::within;
use crate::format::segment::{Bitmap, Place, SegmentKind};
use crate::limits::{BLOCK_U64, LOCAL_CREDIT_MIN, LOCAL_FLOOR, RECYCLED_MAX, SEGMENT_SLOTS};
use crate::object::Standing;
use crate::pool::Pool;
use crate::space::Segment;
use crate::types::{SegmentId, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Spare segments kept when there is a limit.
const SPARES_IN_LIMIT: usize = 2;

/// Bytes of segments: target <= mark <= limit.
#[derive(Clone, Copy)]
struct Bounds {
    target: u64,
    mark: u64,
    limit: u64,
}

impl Bounds {
    fn told(limit: u64) -> Self {
        Self { target: limit / 4 * 3, mark: limit / 8 * 7, limit }
    }

    /// What the disk allows to a pool that uses `local` bytes.
    fn of_disk(local: u64, space: DiskSpace) -> Self {
        let (all, floor) = (local + space.free, floor(space.total));
        let less = |floors: u64| all.saturating_sub(floors * floor);
        Self { target: less(3), mark: less(2), limit: less(1) }
    }

    fn min(self, other: Self) -> Self {
        let (target, mark) = (self.target.min(other.target), self.mark.min(other.mark));
        Self { target, mark, limit: self.limit.min(other.limit) }
    }
}

/// How the pool stands to its bounds.
#[derive(Default)]
pub(crate) struct Room {
    /// Bytes of segments, as told.
    told: Option<u64>,
    /// As told or as the disk allows, when last looked at.
    bounds: Option<Bounds>,
    /// An anchor would help to give something up.
    wants_anchor: bool,
    /// What writers may still take before the next look; `None`: as much as they like.
    credit: Option<u64>,
    /// More than the mark was used at the last look.
    above: bool,
}

impl Room {
    pub(crate) fn wants_anchor(&self) -> bool {
        self.wants_anchor
    }

    /// An anchor is durable: whether the next one would help is seen by the next look.
    pub(crate) fn anchored(&mut self) {
        self.wants_anchor = false;
    }

    /// Somebody has taken space.
    pub(crate) fn took(&mut self, bytes: u64) {
        self.credit = self.credit.map(|credit| credit.saturating_sub(bytes));
    }

    /// Dead segments that may be kept for reuse.
    pub(crate) fn spares_max(&self) -> usize {
        self.bounds.map_or(RECYCLED_MAX, |_| SPARES_IN_LIMIT)
    }
}

/// Where the bytes of a pool are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Bytes of segment files, spare ones included.
    pub bytes: u64,
    /// Of those, in sealed log segments that can be given up once they are in the store, or are being removed.
    pub freeable: u64,
}

/// Who needs the blocks in a log.
#[derive(Default)]
struct Home {
    manifests: Vec<Arc<Manifest>>,
    /// Somebody's manifest is not there, or not this pool's.
    missing: bool,
    /// Somebody will never be in the store.
    hopeless: bool,
}

/// Free space that is left to others: a sixteenth of the disk, within [`LOCAL_FLOOR`], but no more than a quarter.
fn floor(total: u64) -> u64 {
    (total / 16).clamp(*LOCAL_FLOOR.start(), *LOCAL_FLOOR.end()).min(total / 4)
}

/// Takes the slots of `parts` out of `bits`.
fn take_out<'a>(bits: &mut Bitmap, parts: impl Iterator<Item = &'a Part>) {
    for part in parts {
        let inside = within(bits, part.first, part.end);
        bits.iter_mut().zip(&inside).for_each(|(word, inside)| *word &= !inside);
    }
}

fn is_empty(bits: &Bitmap) -> bool {
    bits.iter().all(|word| *word == 0)
}

/// Whether a segment's file is, or may be, on its way out.
fn is_going(segment: &Segment) -> bool {
    segment.stored > 0 && (segment.place == Place::Store || segment.sealed && segment.live == 0)
}

impl Pool {
    /// Bounds the bytes of segment files; `None`: by the disk alone. Only what is in an object store can be given up.
    pub fn set_local_limit(&mut self, bytes: Option<u64>) {
        self.room.told = bytes;
        self.room.bounds = bytes.map(Bounds::told);
    }

    /// Where the pool's bytes are.
    pub fn local(&self) -> Local {
        self.local_for(&self.homes())
    }

    fn local_for(&self, homes: &BTreeMap<VolumeId, Home>) -> Local {
        let segment_bytes = u64::from(SEGMENT_SLOTS) * BLOCK_U64;
        let mut local = Local { bytes: self.segments.spares.len() as u64 * segment_bytes, ..Local::default() };
        for (_, segment) in self.segments.table.iter() {
            let bytes = u64::from(segment.stored) * BLOCK_U64;
            local.bytes += bytes;
            let waits = segment.kind == SegmentKind::Log
                && segment.place == Place::Here
                && segment.sealed
                && homes.get(&segment.volume).is_some_and(|home| !home.hopeless);
            if waits || is_going(segment) {
                local.freeable += bytes;
            }
        }
        local
    }

    /// Compares what is used with what may be: a few times a second. With `hold`, writers wait where they must
    /// ([`Pool::holds_writers`]).
    pub fn look_at_room(&mut self, hold: bool) {
        let room = &mut self.room;
        (room.bounds, room.credit, room.wants_anchor) = (room.told.map(Bounds::told), None, false);
        if self.tier.is_none() {
            return;
        }
        let homes = self.homes();
        let local = self.local_for(&homes);
        let by_disk = self.disk.space().ok().flatten().map(|space| Bounds::of_disk(local.bytes, space));
        // What the disk allows is no bound before it is near.
        let near = by_disk.filter(|bounds| local.bytes >= bounds.mark);
        let told = self.room.bounds;
        self.room.bounds = told.into_iter().chain(near).reduce(Bounds::min);
        let Some(bounds) = told.into_iter().chain(by_disk).reduce(Bounds::min) else { return };
        self.room.above = local.bytes >= bounds.mark;
        if !self.room.above {
            self.room.credit = hold.then(|| (bounds.mark - local.bytes).max(LOCAL_CREDIT_MIN));
            return;
        }
        let unsettled = |s: &Segment| s.kind == SegmentKind::Log && s.place == Place::Here && s.sealed && !s.settled;
        let helps = |(id, s): (SegmentId, &Segment)| unsettled(s) || self.can_go(id, s, &homes);
        let wants_anchor = self.segments.table.iter().any(helps);
        let credit = Some(bounds.limit.saturating_sub(local.bytes) / 2).filter(|_| hold && local.freeable > 0);
        self.room.wants_anchor = wants_anchor;
        self.room.credit = credit.map(|credit| if credit < LOCAL_CREDIT_MIN { 0 } else { credit });
    }

    /// Whether writers have to wait: the disk is about to be full of what is not in the object store yet.
    pub fn holds_writers(&self) -> bool {
        self.room.credit == Some(0) && self.poisoned.is_none()
    }

    /// Whether writers get less than they like, and may have to wait, since more than the mark is used.
    pub fn slows_writers(&self) -> bool {
        self.room.credit.is_some() && self.room.above
    }

    /// Whether a look is due at once: writers have taken all that there was below the mark.
    pub fn must_look_at_room(&self) -> bool {
        self.room.credit == Some(0) && !self.room.above
    }

    /// Marks the oldest segments as given up, as far as the limit asks for it. Their files go after the next anchor.
    pub(crate) fn give_up_segments(&mut self) {
        let Some(bounds) = self.room.bounds.filter(|_| self.tier.is_some()) else { return };
        let homes = self.homes();
        let going = self.segments.table.iter().filter(|(_, segment)| is_going(segment));
        let going: u64 = going.map(|(_, segment)| u64::from(segment.stored) * BLOCK_U64).sum();
        let mut left = self.local_for(&homes).bytes.saturating_sub(going);
        if left < bounds.mark {
            return;
        }
        let mut chosen = Vec::new();
        for (id, segment) in self.segments.table.iter() {
            if left <= bounds.target {
                break;
            }
            if self.can_go(id, segment, &homes) {
                left = left.saturating_sub(u64::from(segment.stored) * BLOCK_U64);
                chosen.push(id);
            }
        }
        for id in chosen {
            if let Some(segment) = self.segments.table.get_mut(id) {
                segment.place = Place::Store;
            }
        }
    }

    /// For each log, who needs it.
    fn homes(&self) -> BTreeMap<VolumeId, Home> {
        let mut homes: BTreeMap<VolumeId, Home> = BTreeMap::new();
        let Some(tier) = &self.tier else { return homes };
        for (id, volume) in &self.volumes {
            let chain = tier.chains.get(id);
            let hopeless = chain.is_none_or(|chain| !matches!(chain.standing, Standing::Owned | Standing::Unknown));
            let owned = chain.filter(|chain| chain.standing == Standing::Owned && chain.number > 0);
            let last = owned.and_then(|chain| chain.last.clone()).filter(|last| last.maker == self.pool_id);
            for log in volume.origins.iter().chain([id]) {
                let home = homes.entry(*log).or_default();
                home.hopeless |= hopeless;
                home.missing |= last.is_none();
                home.manifests.extend(last.clone());
            }
        }
        homes
    }

    /// Whether the object store has all that lives in a segment, and a pool opened again would know where.
    fn can_go(&self, id: SegmentId, segment: &Segment, homes: &BTreeMap<VolumeId, Home>) -> bool {
        let (Some(tier), Some(remote)) = (&self.tier, &self.segments.remote) else { return false };
        let is_candidate = segment.kind == SegmentKind::Log
            && segment.place == Place::Here
            && segment.sealed
            && segment.settled
            && segment.live > 0
            && !tier.pinned.contains(&id);
        let home = homes.get(&segment.volume).filter(|home| is_candidate && !home.missing && !home.hopeless);
        let (Some(home), Some(parts)) = (home, remote.parts.get(&id)) else { return false };
        let (mut unknown, mut unnamed) = (*segment.bits, *segment.bits);
        take_out(&mut unknown, parts.iter());
        if !is_empty(&unknown) {
            return false;
        }
        for manifest in &home.manifests {
            let named = manifest.segments.get(&id).into_iter().flat_map(|segment| &segment.parts);
            take_out(&mut unnamed, named);
            if is_empty(&unnamed) {
                return true;
            }
        }
        false
    }

    /// Refuses to let go of a volume while its manifest alone says where blocks of another volume are.
    pub(crate) fn leaves_no_orphan(&self, id: VolumeId) -> Result<()> {
        let Some(tier) = &self.tier else { return Ok(()) };
        let going = self.volume(id)?;
        // What is not in the store itself keeps nothing there.
        if tier.chains.get(&id).is_none_or(|chain| chain.number == 0) {
            return Ok(());
        }
        for (other, volume) in self.volumes.iter().filter(|(other, _)| **other != id) {
            let shares = |log: &VolumeId| *log == id || going.origins.contains(log);
            if !volume.origins.iter().any(shares) || tier.chains.get(other).is_some_and(|chain| chain.number > 0) {
                continue;
            }
            let mut away = self.segments.table.iter().filter(|(_, s)| s.place != Place::Here && s.live > 0);
            if away.any(|(_, segment)| volume.origins.contains(&segment.volume)) {
                let text = format!(
                    "volume {:?} shares blocks with it that are in the object store alone, and is not there itself yet: \
                     wait until it is (cairn volume sync), or delete it first",
                    volume.name
                );
                return Err(Error::new(ErrorKind::Busy, text));
            }
        }
        Ok(())
    }
}
