//! Taking a volume over from the object store, and letting go of one.
//!
//! Invariants
//!   * the volume belongs to this pool from the moment its claim, the next manifest in its maker's own words, is in
//!     the store; here it exists once an anchor that holds it is durable. A pool that dies in between attaches it again;
//!   * nothing is downloaded but the manifest and the records of its tail: blocks and map pages come when they are read;
//!   * the maker's segments get numbers of their own here, which are put into map pages when those are read. Two volumes
//!     that share blocks there share none here.

use super::attach_job::{AttachJob, Attachment};
use super::lease::TAKEOVER_WAIT_US;
use super::pins::makers;
use super::tier::Farewell;
use super::{Chain, Standing};
use crate::checkpoint::Root;
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::RootKind;
use crate::format::manifest::{Manifest, SegmentParts, Tenure};
use crate::format::object::BatchEntry;
use crate::format::origin::{Origin, Origins};
use crate::format::page::NODES_MAX;
use crate::format::renumbering::Renumbering;
use crate::format::segment::{Place, SegmentKind, BITMAP_WORDS};
use crate::limits::{SEGMENT_BITS, SEGMENT_SLOTS};
use crate::map::{MapRoot, Ref, Target};
use crate::pool::{Pool, Volume, POOL_STREAM};
use crate::space::Segment;
use crate::types::{Durability, Lsn, RootId, SegmentId, SlotAddr, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

impl Pool {
    /// Makes the volume of a job that succeeded. It exists once the next anchor is durable
    /// ([`Pool::begin_anchor`]): nothing may be promised for it before.
    pub fn attached(&mut self, job: AttachJob) -> Result<VolumeId> {
        self.patiently(|pool| pool.make_attached(job))
    }

    fn make_attached(&mut self, job: AttachJob) -> Result<VolumeId> {
        let Attachment { manifest, taken, tail } =
            job.take().ok_or_else(|| Error::invalid("the volume was not claimed: run the job first"))?;
        self.check_new_name(&manifest.name)?;
        // Its checkpoints' cuts stand in the maker's numbers: what is new here is later than all of them.
        self.next_lsn = Lsn(self.next_lsn.max(manifest.cut).0 + 1);
        let numbers = self.reserve_numbers(&manifest)?;
        let id = VolumeId(self.next_volume);
        self.import_segments(&manifest, id, &numbers)?;
        let head = self.import_roots(&manifest, id, &numbers)?;
        let mut volume = Volume {
            name: manifest.name.clone(),
            created_us: manifest.created_us,
            head,
            checkpoints: BTreeMap::new(),
            next_checkpoint: manifest.next_checkpoint,
            next_auto: manifest.next_auto,
            origins: Vec::new(),
            durability: manifest.durability,
            read_only: manifest.read_only,
        };
        for (root, entry) in self.roots.iter().filter(|(_, root)| root.volume == id) {
            if let RootKind::Checkpoint { name, .. } = &entry.kind {
                volume.checkpoints.insert(*name, root);
            }
        }
        self.names.insert(volume.name.clone(), id);
        self.volumes.insert(id, volume);
        self.next_volume = id.0 + 1;
        if let Err(e) = self.replay_tail(id, &tail, &numbers) {
            // It is this pool's in the store, and can be attached again.
            self.give_up_interrupted(vec![id])?;
            return Err(e);
        }
        let (next, now_us, name) = (self.next_lsn, self.clock.monotonic_us(), manifest.name.clone());
        if let Some(tier) = &mut self.tier {
            let chain = Chain {
                standing: Standing::Owned,
                number: manifest.number,
                epoch: manifest.epoch,
                cut: manifest.cut,
                changed: next,
                seen_us: now_us,
                serve_from_us: if taken { now_us + TAKEOVER_WAIT_US } else { 0 },
                pending: Vec::new(),
                last: Some(Arc::new(manifest)),
                pinned: BTreeSet::new(),
                confirmed_us: None,
                refresh: false,
                leans: false,
            };
            tier.cleaner.found(&name, chain.number);
            tier.chains.insert(id, chain);
            tier.structure = next;
        }
        // Anchors are for changes; this one has no record that a replay could find.
        self.anchors.log_bytes += 1;
        Ok(id)
    }

    /// Numbers for all segments that the manifest lists, and for what is stale in a state that is being given back: that
    /// must name nobody else's.
    fn reserve_numbers(&mut self, manifest: &Manifest) -> Result<Renumbering> {
        let (numbers, free) = Renumbering::dense(manifest.segments.keys().copied(), self.segments.next_id);
        if free > 1 << SEGMENT_BITS {
            return Err(Error::new(ErrorKind::NoSpace, "the pool has no segment numbers left for this volume"));
        }
        self.segments.next_id = free as u32;
        Ok(numbers)
    }

    fn import_segments(&mut self, manifest: &Manifest, volume: VolumeId, numbers: &Renumbering) -> Result<()> {
        for (here, segment) in known_here(manifest, numbers) {
            let mut account = Segment::new(segment.kind, volume);
            (account.sealed, account.settled, account.place) = (true, true, Place::Imported);
            let mut bits = [0; BITMAP_WORDS];
            let mut nodes = [0; SEGMENT_SLOTS as usize];
            for slot in segment.parts.iter().flat_map(|part| part.first..part.end) {
                bits[slot as usize / 64] |= 1 << (slot % 64);
                nodes[slot as usize] = NODES_MAX as u8;
            }
            account.used = segment.parts.last().map_or(0, |part| part.end);
            account.live = bits.iter().map(|w: &u64| w.count_ones()).sum();
            account.bits = Arc::new(bits);
            account.nodes = (segment.kind == SegmentKind::Map).then(|| Arc::new(nodes));
            self.segments.table.insert(here, account);
        }
        self.import_parts(manifest, numbers)
    }

    /// What an interrupted attaching left here can be read, so that it can be given back.
    pub(crate) fn adopt_interrupted(&mut self, id: VolumeId, manifest: &Manifest) -> Result<()> {
        let imported = self.segments.table.iter().filter(|(_, s)| s.place == Place::Imported && s.volume == id);
        let here: Vec<SegmentId> = imported.map(|(id, _)| id).collect();
        let Some(before) = here.first().and_then(|first| first.0.checked_sub(1)) else { return Ok(()) };
        let (numbers, _) = Renumbering::dense(manifest.segments.keys().copied(), before);
        let theirs = |id: &SegmentId| numbers.there(*id).is_some_and(|id| manifest.segments.contains_key(&id));
        if !here.iter().all(theirs) {
            return Ok(());
        }
        self.import_parts(manifest, &numbers)
    }

    fn import_parts(&mut self, manifest: &Manifest, numbers: &Renumbering) -> Result<()> {
        if let Some(tier) = &mut self.tier {
            tier.cleaner.spare(|id| manifest.objects.contains_key(id));
        }
        let Some(remote) = &mut self.segments.remote else { return Ok(()) };
        Arc::make_mut(&mut remote.objects).extend(manifest.objects.iter().map(|(id, info)| (*id, *info)));
        let parts = known_here(manifest, numbers).map(|(here, segment)| (here, segment.parts.clone()));
        Arc::make_mut(&mut remote.parts).extend(parts);
        origins_here(manifest, numbers).into_iter().try_for_each(|origin| remote.origins.learn(origin))
    }

    fn import_roots(&mut self, manifest: &Manifest, volume: VolumeId, numbers: &Renumbering) -> Result<RootId> {
        let mut roots: HashMap<RootId, RootId> = HashMap::new();
        let known: std::collections::HashSet<RootId> = manifest.roots.iter().map(|root| root.id).collect();
        if !known.contains(&manifest.head) {
            return Err(Error::corrupt(format!("the manifest of {:?} has no head", manifest.name)));
        }
        for entry in &manifest.roots {
            let moved = |addr: SlotAddr| {
                numbers.addr(addr).ok_or_else(|| Error::corrupt("a manifest refers to a segment that it does not list"))
            };
            let top = match Ref::from_stored(entry.top)?.target() {
                Target::Hole => Ref::HOLE,
                Target::Run(addr) => Ref::run(moved(addr)?),
                Target::Page(addr, node) => Ref::page(moved(addr)?, node),
                Target::Memory(_) => return Err(Error::corrupt("a manifest refers into memory")),
            };
            let map = MapRoot { top, level: entry.level };
            let (children, kind) = (Vec::new(), entry.kind.clone());
            let id = self.roots.insert(Root { volume, map, size: entry.size, parent: None, children, kind });
            roots.insert(entry.id, id);
        }
        for entry in &manifest.roots {
            let parent = entry.parent.and_then(|parent| roots.get(&parent).copied());
            if let (Some(parent), Some(id)) = (parent, roots.get(&entry.id)) {
                self.roots.set_parent(*id, Some(parent));
            }
        }
        Ok(roots[&manifest.head])
    }

    fn replay_tail(&mut self, volume: VolumeId, tail: &[(SegmentId, BatchEntry)], numbers: &Renumbering) -> Result<()> {
        for (segment, batch) in tail {
            let here = numbers.here(*segment);
            let here = here.ok_or_else(|| Error::corrupt("the manifest does not list a segment of its tail"))?;
            let mut addr = SlotAddr::new(here, batch.slot + 1);
            for (record, i) in batch.records.iter().zip(0..) {
                let lsn = Lsn(batch.first_lsn.0 + i);
                if record.is_structural() || !self.fits(volume, record) {
                    let text =
                        format!("the tail of the volume's log does not fit its map, at change {}", batch.first_lsn.0);
                    return Err(Error::corrupt(text));
                }
                self.apply(volume, lsn, record, addr)?;
                addr = SlotAddr(addr.0 + record.data_blocks());
            }
        }
        Ok(())
    }

    /// Prepares letting go of a volume: everything is in the store, and nothing may change any more. Upload rounds
    /// put the last manifest; then the volume is no longer here.
    pub fn detach(&mut self, id: VolumeId) -> Result<crate::log::FlushJob> {
        let name = self.volume(id)?.name.clone();
        self.leaves_no_orphan(id)?;
        let Some(tier) = &mut self.tier else {
            return Err(Error::invalid("the pool has no object store: a volume cannot be detached from it"));
        };
        let Some(chain) = tier.chains.get(&id) else { return Err(Error::invalid("the volume is not known")) };
        match &chain.standing {
            Standing::Owned if chain.cut >= chain.changed => {}
            Standing::Owned => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("not everything of {name:?} is in the object store yet"),
                ))
            }
            Standing::Unknown | Standing::Interrupted => {
                return Err(Error::new(ErrorKind::Unavailable, "the object store has not answered yet"))
            }
            Standing::Refused(why) | Standing::Fenced(why) => return Err(Error::new(ErrorKind::Fenced, why.clone())),
        }
        let farewell = self.farewell(id, Tenure::Detached);
        self.delete_with(id, farewell)
    }

    /// Deletes a volume here, and afterwards speaks the last word on it.
    pub(crate) fn delete_with(&mut self, id: VolumeId, farewell: Option<Farewell>) -> Result<crate::log::FlushJob> {
        self.log_with_reserve(POOL_STREAM, vec![crate::format::record::Record::DeleteVolume { id }])?;
        if let (Some(tier), Some(farewell)) = (&mut self.tier, farewell) {
            tier.farewells.insert(id, farewell);
        }
        self.flush_job(POOL_STREAM)
    }

    /// The last manifest of a volume that is going, if it has any.
    pub(crate) fn farewell(&mut self, id: VolumeId, tenure: Tenure) -> Option<Farewell> {
        let (pool, pool_epoch, time_us) = (self.pool_id, self.epoch, self.clock.now_us());
        let (volume, tier) = (self.volumes.get(&id)?, self.tier.as_mut()?);
        let chain = tier.chains.get(&id).filter(|chain| chain.standing == Standing::Owned)?;
        let last = match &chain.last {
            Some(last) => (**last).clone(),
            // Whether the first one was put is not known, and a round may be about to.
            None if chain.pending.is_empty() => return None,
            None => nothing(&volume.name, id, chain.epoch, pool),
        };
        let mut nonce = [0; 16];
        tier.config.entropy.fill(&mut nonce);
        let number = chain.number + 1;
        let mut manifest = Manifest { number, nonce, tenure, pool, pool_epoch, time_us, ..last };
        let named = makers(&manifest);
        if tenure == Tenure::Deleted {
            let Manifest { roots, origins, objects, segments, tail, .. } = &mut manifest;
            (*roots, *origins, *segments) = (Vec::new(), Origins::default(), BTreeMap::new());
            (*objects, *tail) = (BTreeMap::new(), Vec::new());
        }
        let mut pinned = chain.pinned.clone();
        if tenure == Tenure::Deleted {
            pinned.extend(named.into_iter().chain([pool]));
        }
        Some(Farewell { manifest, pending: chain.pending.clone(), pinned })
    }
}

/// The manifest of a volume of which nothing is known to be in the store.
pub(crate) fn nothing(name: &str, id: VolumeId, epoch: u64, pool: [u8; 16]) -> Manifest {
    Manifest {
        name: name.to_owned(),
        number: 0,
        epoch,
        nonce: [0; 16],
        tenure: Tenure::Deleted,
        pool,
        pool_epoch: 0,
        maker: pool,
        time_us: 0,
        cut: Lsn(0),
        anchor_lsn: Lsn(0),
        volume: id,
        created_us: 0,
        head: RootId(0),
        next_checkpoint: 1,
        next_auto: 1,
        durability: Durability::Local,
        read_only: false,
        next_segment: 0,
        predecessors: Vec::new(),
        roots: Vec::new(),
        origins: Origins::default(),
        objects: BTreeMap::new(),
        segments: BTreeMap::new(),
        tail: Vec::new(),
    }
}

/// The segments of a manifest under the numbers that they have here.
fn known_here<'a>(
    manifest: &'a Manifest,
    numbers: &'a Renumbering,
) -> impl Iterator<Item = (SegmentId, &'a SegmentParts)> + 'a {
    manifest.segments.iter().filter_map(|(id, segment)| Some((numbers.here(*id)?, segment)))
}

/// What a manifest took over from others, and what its maker made, under the numbers that they have here.
fn origins_here(manifest: &Manifest, numbers: &Renumbering) -> Vec<Origin> {
    let listed: Vec<SegmentId> = manifest.segments.keys().copied().collect();
    let taken = manifest.origins.iter().map(Some).chain([None]);
    let origins = taken.map(|origin| {
        let mine = |id: &SegmentId| manifest.origins.of(*id).map(|(made_by, _)| made_by) == origin;
        let runs = listed.chunk_by(|a, b| mine(a) == mine(b)).filter(|ids| ids.first().is_some_and(mine));
        let made = runs.filter_map(|ids| Some((numbers.here(*ids.first()?)?, numbers.here(*ids.last()?)?)));
        // Only map pages name segments of other makers.
        let maps = manifest.segments.iter().any(|(id, segment)| segment.kind == SegmentKind::Map && mine(id));
        let there = |id: SegmentId| origin.map_or(Some(id), |origin| origin.numbers.there(id));
        let named = listed.iter().filter(|id| maps || mine(id));
        let named = named.filter_map(|id| Some((there(*id)?, numbers.here(*id)?)));
        Origin { numbers: Renumbering::of(named), made: made.collect() }
    });
    origins.filter(|origin| !origin.made.is_empty()).collect()
}
