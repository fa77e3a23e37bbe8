//! Packing anew what is mostly dead and not here: what lives of an object goes, through this host, into another one.
//!
//! Invariants
//!   * the new object has the numbers of the old one, so that segments keep their origin, and nothing in it that was not
//!     verified: what cannot be read stays where it is;
//!   * the new object takes the old one's place only if every manifest of the round is there. Otherwise it is an
//!     object that nobody names;
//!   * no record in it is needed for a replay.

use super::upload::anchored_slot;
use super::{ObjectStore, Range};
use crate::error::{Error, Result};
use crate::format::anchor::Anchor;
use crate::format::manifest::ObjectInfo;
use crate::format::object::{open_frame, present, within, Directory, ObjectBuilder, ObjectId, RangeEntry, FRAME_SLOTS};
use crate::format::page;
use crate::format::segment::{Bitmap, Place, SegmentKind};
use crate::limits::BLOCK;
use crate::object::OBJECT_BYTES_MAX;
use crate::pool::Pool;
use crate::space::store_error;
use crate::types::{SegmentId, SlotAddr, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object to replace.
pub(crate) struct Worn {
    pub id: ObjectId,
    pub info: ObjectInfo,
    /// Whose log it is of.
    pub volume: VolumeId,
    pub parts: Vec<WornPart>,
}

/// Slots of a segment in it.
pub(crate) struct WornPart {
    pub segment: SegmentId,
    /// Its number in the object.
    there: SegmentId,
    kind: SegmentKind,
    pub first: u32,
    pub end: u32,
    /// What lives: of map segments in the anchor, of others at the cut.
    live: Bitmap,
}

impl Pool {
    /// What a round would put anew of objects that were found worn. One of which a part has changed its place since is
    /// left out.
    pub(crate) fn worn_objects(&mut self, anchor: &Anchor) -> Vec<Worn> {
        let Some(tier) = &mut self.tier else { return Vec::new() };
        let chosen = std::mem::take(&mut tier.cleaner.worn);
        let Some(remote) = self.segments.remote.as_ref().filter(|_| !chosen.is_empty()) else { return Vec::new() };
        let mut found: BTreeMap<ObjectId, Option<Worn>> = BTreeMap::new();
        for (segment, part) in remote.parts.iter().flat_map(|(id, parts)| parts.iter().map(move |part| (*id, part))) {
            let (id, info) = (part.object, remote.objects.get(&part.object));
            let (Some(info), true) = (info, chosen.contains(&id)) else { continue };
            let Some(account) = self.segments.table.get(segment) else { continue };
            let volume = account.volume;
            let new = || Some(Worn { id, info: *info, volume, parts: Vec::new() });
            let worn = found.entry(id).or_insert_with(new);
            let in_anchor = || anchor.segments.binary_search_by_key(&segment, |s| s.id).ok();
            let live = match account.kind {
                SegmentKind::Log => Some(account.bits.clone()),
                SegmentKind::Map => in_anchor().and_then(|at| anchor.segments.get(at)).map(|s| s.bits.clone()),
            };
            match (worn.as_mut(), live) {
                (Some(worn), Some(live)) if is_settled(account.place, anchor, segment, part.end) => {
                    let live = within(&live, part.first, part.end);
                    let (there, kind) = (remote.original(segment), account.kind);
                    worn.parts.push(WornPart { segment, there, kind, first: part.first, end: part.end, live });
                }
                _ => *worn = None,
            }
        }
        found.into_values().flatten().collect()
    }
}

/// Whether all is known of a part: what lives in it, and that no replay needs its records.
pub(crate) fn is_settled(place: Place, anchor: &Anchor, segment: SegmentId, end: u32) -> bool {
    place != Place::Imported && end <= anchored_slot(anchor, segment)
}

/// Reads what lives of an object and packs it as object `id`.
pub(crate) fn pack_anew(worn: &Worn, id: ObjectId, store: &dyn ObjectStore) -> Result<(Vec<u8>, Directory)> {
    let key = worn.id.key();
    if worn.info.len > OBJECT_BYTES_MAX {
        return Err(Error::corrupt(format!("object {key} has {} bytes, more than any object", worn.info.len)));
    }
    let bytes = store.get(&key, Range::All).map_err(|e| store_error(&format!("reading object {key}"), &e))?;
    let own = bytes.get(..worn.info.directory as usize).unwrap_or_default();
    if bytes.len() as u64 != worn.info.len || Directory::check(own) != worn.info.check {
        return Err(Error::corrupt(format!("object {key} is not the one that the manifest names, or damaged")));
    }
    let directory = Directory::decode(own, &worn.id)?;
    let mut builder = ObjectBuilder::new(id);
    for part in &worn.parts {
        let has = |range: &&RangeEntry| {
            range.segment == part.there && (range.first, range.end, range.kind) == (part.first, part.end, part.kind)
        };
        let range = directory.ranges.iter().find(has);
        let range = range.ok_or_else(|| {
            Error::corrupt(format!("object {key} does not hold slots {} to {}", part.first, part.end))
        })?;
        let (data, crcs) = live_slots(range, part, &bytes, &worn.id)?;
        let live =
            RangeEntry { bits: Arc::new(part.live), crcs, batches: Vec::new(), frames: Vec::new(), ..range.clone() };
        builder.push(live, &data)?;
    }
    builder.finish()
}

/// The slots that live, one behind the other, and of log segments their checksums: all verified.
fn live_slots(range: &RangeEntry, part: &WornPart, object: &[u8], id: &ObjectId) -> Result<(Vec<u8>, Vec<u32>)> {
    let (mut data, mut crcs) = (Vec::new(), Vec::new());
    let mut open: Option<(usize, Vec<u8>)> = None;
    for slot in present(&part.live) {
        let missing = || Error::corrupt(format!("object {} does not hold slot {slot}, which is in use", id.key()));
        let rank = range.rank(slot).ok_or_else(missing)?;
        let (index, at) = (rank / FRAME_SLOTS, rank % FRAME_SLOTS * BLOCK);
        if open.as_ref().is_none_or(|(held, _)| *held != index) {
            let frame = range.frames.get(index).ok_or_else(missing)?;
            let from = frame.offset as usize;
            let stored = object.get(from..from.saturating_add(frame.len as usize)).unwrap_or_default();
            open = Some((index, open_frame(frame, stored, id)?));
        }
        let block = open.as_ref().and_then(|(_, slots)| slots.get(at..at + BLOCK)).ok_or_else(missing)?;
        let addr = SlotAddr::new(part.there, slot);
        match range.kind {
            SegmentKind::Map => page::verify(block, addr)?,
            SegmentKind::Log => {
                let crc = range.crcs.get(rank).copied().filter(|crc| crc32fast::hash(block) == *crc);
                crcs.push(crc.ok_or_else(|| Error::corrupt(format!("object {}: {addr} is damaged", id.key())))?);
            }
        }
        data.extend_from_slice(block);
    }
    Ok((data, crcs))
}
