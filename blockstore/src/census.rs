//! Counting what lives in segments that came with a volume from another pool.
//!
//! Promise: afterwards they are accounted as exactly as those that were made here, so what nobody needs of them is
//! given back.
//!
//! Why it is right: an audit walks every state that can lead there, as they were at an anchor, and so knows what lived.
//! Nothing comes to life in these segments, and each slot and node that has died since the taking over was released
//! from the accounts, before the anchor or after it. So what lives now is what lived then and is not released yet.

use crate::audit::Audit;
use crate::check::{Found, Ticker};
use crate::error::{Error, Result};
use crate::format::segment::{Bitmap, Place, SegmentKind, BITMAP_WORDS};
use crate::limits::SEGMENT_SLOTS;
use crate::object::{Chain, Standing};
use crate::pool::Pool;
use crate::types::{RootId, SegmentId, SlotAddr, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// What lived in segments at an anchor.
pub struct Census(BTreeMap<SegmentId, Counted>);

/// What is known of one segment.
pub(crate) enum Counted {
    /// Of a log: the slots that lived.
    Live(Box<Bitmap>),
    /// Of a map: by slot how many nodes were accounted that nothing reached.
    Unreached(Box<[u8; SEGMENT_SLOTS as usize]>),
}

impl Pool {
    /// Volumes whose segments came from another pool and were not counted. Their logs' names: some may be gone, and
    /// live on in forks.
    pub(crate) fn uncounted(&self) -> BTreeSet<VolumeId> {
        let (Some(tier), Some(remote)) = (&self.tier, &self.segments.remote) else { return BTreeSet::new() };
        let imported = || self.segments.table.iter().filter(|(_, s)| s.place == Place::Imported);
        let mut all: BTreeSet<VolumeId> = imported().map(|(_, s)| s.volume).collect();
        // What is not this pool's yet may still be given up; what is another's by now cannot be read.
        all.retain(|id| {
            let made = |chain: &Chain| chain.last.as_ref().is_some_and(|last| last.maker == self.pool_id);
            let ours = |chain: &Chain| chain.standing == Standing::Owned && made(chain);
            !self.volumes.contains_key(id) || tier.chains.get(id).is_some_and(ours)
        });
        for (id, segment) in imported().filter(|(_, s)| s.live > 0) {
            if !remote.parts.contains_key(&id) {
                all.remove(&segment.volume);
            }
        }
        all
    }

    /// Whether there is something to count: begin an audit, take its [`Audit::census`], and hand it to
    /// [`Pool::counted`].
    pub fn wants_census(&self) -> bool {
        !self.uncounted().is_empty()
    }

    /// Takes note of a census of an audit that is not ended yet.
    pub fn counted(&mut self, census: Census) {
        for (id, counted) in census.0 {
            self.segments.table.recount(id, &counted);
        }
    }
}

impl Audit {
    /// Counts what lives in segments that came from another pool.
    ///
    /// # Errors
    /// `Corrupt` when a part of a map cannot be read: then nothing is known.
    pub fn census(&mut self, ticker: &mut Ticker<'_>) -> Result<Census> {
        let (pool, volumes) = (&mut self.pool, &self.uncounted);
        let leads_there = |root: &crate::checkpoint::Root| {
            let volume = pool.volumes.get(&root.volume);
            volume.is_none_or(|v| volumes.contains(&root.volume) || v.origins.iter().any(|id| volumes.contains(id)))
        };
        let roots: Vec<RootId> = pool.roots.iter().filter(|(_, root)| leads_there(root)).map(|(id, _)| id).collect();
        let mut found = Found::default();
        for id in roots {
            let tree = pool.roots.get(id).map;
            pool.walk(tree.top, tree.level, 0, &mut found, &mut |done| crate::check::tick(ticker, done, 0))?;
            if let Some(lost) = found.take_lost(&pool.label(id)).into_iter().next() {
                return Err(Error::corrupt(lost));
            }
        }
        let mine =
            pool.segments.table.iter().filter(|(_, s)| s.place == Place::Imported && volumes.contains(&s.volume));
        let counted = mine.map(|(id, segment)| {
            let counted = match segment.kind {
                SegmentKind::Log => {
                    Counted::Live(found.live.remove(&id).unwrap_or_else(|| Box::new([0; BITMAP_WORDS])))
                }
                SegmentKind::Map => {
                    let mut unreached = Box::new([0; SEGMENT_SLOTS as usize]);
                    for (slot, accounted) in segment.nodes.iter().flat_map(|nodes| nodes.iter().enumerate()) {
                        let reached = found.nodes_of(SlotAddr::new(id, slot as u32));
                        unreached[slot] = accounted.saturating_sub(reached.min(u8::MAX.into()) as u8);
                    }
                    Counted::Unreached(unreached)
                }
            };
            (id, counted)
        });
        Ok(Census(counted.collect()))
    }
}
