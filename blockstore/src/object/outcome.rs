//! What has come of work for the object store: taken note of by the pool's owner.
//!
//! Invariants
//!   * what was put counts, whatever else failed; a manifest counts when it is known to be there;
//!   * a manifest of somebody else in the place of the next one ends the volume here: it is fenced;
//!   * a pool that knows less than it has put is an older copy of its folder, and is refused.

use super::claim::Claimed;
use super::pins::makers;
use super::survey::adopt_part;
use super::tier::{hex, leans, Chain, Standing, TierJob};
use super::upload::{fresh_parts, replaced, UploadJob, Verdict};
use crate::error::Result;
use crate::format::manifest::{Manifest, Tenure};
use crate::format::record::Record;
use crate::limits::BLOCK_U64;
use crate::log::Payload;
use crate::pool::{Pool, POOL_STREAM};
use crate::types::VolumeId;
use std::sync::Arc;

impl Pool {
    /// Takes note of what came of a piece of work.
    pub fn tier_done(&mut self, job: TierJob, outcome: Result<()>) -> Result<()> {
        let job = match job {
            TierJob::Clean(job) => {
                self.store_cleaned(*job);
                return outcome;
            }
            other => other,
        };
        if let Some(tier) = &mut self.tier {
            tier.busy = false;
            tier.pinned.clear();
        }
        match job {
            TierJob::Claim(job) => {
                let began_us = job.began_us;
                let found = job.take().into_iter();
                found.map(|(id, found)| self.claimed(id, found, began_us)).fold(outcome, Result::and)
            }
            TierJob::Upload(job) => {
                let noted = self.uploaded(*job);
                outcome.and(noted)
            }
            TierJob::Clean(_) => outcome,
        }
    }

    fn claimed(&mut self, id: VolumeId, found: Claimed, began_us: u64) -> Result<()> {
        let (pool_id, epoch) = (self.pool_id, self.epoch);
        let Some(volume) = self.volumes.get(&id) else { return Ok(()) };
        let name = volume.name.clone();
        let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) else { return Ok(()) };
        chain.seen_us = began_us;
        let Some(manifest) = found else {
            chain.standing = Standing::Owned;
            return Ok(());
        };
        if manifest.tenure == Tenure::Deleted {
            (chain.standing, chain.number, chain.epoch) = (Standing::Owned, manifest.number, manifest.epoch + 1);
            self.found_manifest(&name, manifest.number);
            return Ok(());
        }
        if manifest.maker == pool_id && manifest.volume == id {
            // Whoever has the volume now: this says where what was given up here lies.
            self.adopt(&manifest)?;
        }
        let Some(chain) = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id)) else { return Ok(()) };
        if manifest.pool == pool_id && manifest.maker != pool_id {
            // Nothing was promised for it yet: it is as if it had not begun, and can be done again.
            chain.standing = Standing::Interrupted;
            return self.adopt_interrupted(id, &manifest);
        }
        let ours = manifest.pool == pool_id && manifest.volume == id;
        if !ours {
            let text = if manifest.pool == pool_id {
                format!(
                    "the name {name:?} belongs to another volume of this pool in the object store, which is no longer \
                     here: end that one, or attach it under this name again when this volume has another"
                )
            } else {
                format!(
                    "the name {name:?} is taken in the object store by pool {}: this volume stays local",
                    hex(&manifest.pool)
                )
            };
            let was_ours = chain.last.is_some() || manifest.predecessors.contains(&(pool_id, id));
            chain.standing = if was_ours { Standing::Fenced(text) } else { Standing::Refused(text) };
            return Ok(());
        }
        if manifest.pool_epoch > epoch {
            chain.standing = Standing::Fenced(copied_back(&name));
            return Ok(());
        }
        chain.standing = Standing::Owned;
        chain.confirmed_us = Some(began_us);
        chain.number = manifest.number;
        chain.epoch = manifest.epoch;
        chain.cut = manifest.cut;
        let number = manifest.number;
        chain.last = Some(Arc::new(*manifest));
        self.found_manifest(&name, number);
        Ok(())
    }

    /// The logs have been replayed: what changed since the newest manifests is not known, so all of it may have.
    pub(crate) fn tier_recovered(&mut self) {
        let next = self.next_lsn;
        if let Some(tier) = &mut self.tier {
            tier.structure = next;
            // The log's tail may have made volumes, and deleted some.
            tier.chains.retain(|id, _| self.volumes.contains_key(id));
            for (id, volume) in &self.volumes {
                let new = || Chain { leans: leans(volume, &self.segments.table), ..Chain::new(next) };
                tier.chains.entry(*id).or_insert_with(new);
            }
            // What was given back before a manifest, but not in the anchor, lives again, and is in no object.
            tier.cleaner.forgotten = self.segments.table.iter().map(|(id, _)| id).collect();
            tier.chains.values_mut().for_each(|chain| chain.changed = next);
        }
        self.refuse_older();
    }

    /// What was put was synced here first: a pool that does not know it is an older copy of its folder.
    pub(crate) fn refuse_older(&mut self) {
        let next_lsn = self.next_lsn;
        let chains = self.tier.iter_mut().flat_map(|tier| &mut tier.chains);
        for (id, chain) in chains.filter(|(_, chain)| chain.standing == Standing::Owned && chain.cut > next_lsn) {
            let name = self.volumes.get(id).map_or("", |volume| &volume.name);
            chain.standing = Standing::Fenced(copied_back(name));
        }
    }

    /// Nothing more is accepted for a volume, for this reason.
    pub(crate) fn fence(&mut self, id: VolumeId, why: &str) {
        let chain = self.tier.as_mut().and_then(|tier| tier.chains.get_mut(&id));
        if let Some(chain) = chain.filter(|chain| !matches!(chain.standing, Standing::Fenced(_))) {
            chain.standing = Standing::Fenced(why.to_owned());
        }
    }

    /// Volumes whose attaching did not get to its end before the pool was closed.
    pub(crate) fn interrupted(&self) -> Vec<VolumeId> {
        let chains = self.tier.iter().flat_map(|tier| &tier.chains);
        chains.filter(|(_, chain)| chain.standing == Standing::Interrupted).map(|(id, _)| *id).collect()
    }

    /// Nothing was promised for these yet: they can be attached again.
    pub(crate) fn give_up_interrupted(&mut self, volumes: Vec<VolumeId>) -> Result<()> {
        volumes
            .into_iter()
            .try_for_each(|id| self.append(POOL_STREAM, vec![Record::DeleteVolume { id }], Payload::default()))
    }

    fn found_manifest(&mut self, name: &str, number: u64) {
        if let Some(tier) = &mut self.tier {
            tier.cleaner.found(name, number);
        }
    }

    /// Takes over what a manifest of this pool says of segments that are known here.
    pub(crate) fn adopt(&mut self, manifest: &Manifest) -> Result<()> {
        let Some(remote) = &mut self.segments.remote else { return Ok(()) };
        let (known, objects) = (Arc::make_mut(&mut remote.parts), Arc::make_mut(&mut remote.objects));
        for (id, segment) in &manifest.segments {
            if self.segments.table.get(*id).is_none() {
                continue;
            }
            let parts = known.entry(*id).or_default();
            for part in &segment.parts {
                adopt_part(parts, *part);
                if let Some(info) = manifest.objects.get(&part.object) {
                    objects.insert(part.object, *info);
                }
            }
        }
        for origin in manifest.origins.iter() {
            remote.origins.learn(origin.clone())?;
        }
        Ok(())
    }

    fn uploaded(&mut self, job: UploadJob) -> Result<()> {
        let flushed = job.flushed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        match flushed {
            None => {}
            Some(Err(e)) => {
                let first = job.flushes.first();
                return first.map_or(Ok(()), |first| self.flushed(first, Err(e)));
            }
            Some(Ok(())) => {
                for flush in &job.flushes {
                    self.flushed(flush, Ok(()))?;
                }
            }
        }
        let puts = job.puts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let verdicts = job.verdicts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let whole = verdicts.len() == job.chapters.len()
            && verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Written(_)));
        drop((job.parts, job.objects));
        let now_us = self.clock.now_us();
        if let (Some(remote), Some(tier)) = (&mut self.segments.remote, &mut self.tier) {
            let stubborn = job.stubborn.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            tier.cleaner.stubborn.extend(stubborn);
            let mut taken = puts.clone();
            taken.retain(|_, put| whole || put.replaces.is_none());
            let replaced = replaced(&taken);
            tier.cleaner.done.repacked += replaced.len() as u64;
            if !replaced.is_empty() {
                let known = Arc::make_mut(&mut remote.parts).values_mut();
                known.for_each(|parts| parts.retain(|part| !replaced.contains(&part.object)));
            }
            for (id, mut parts) in fresh_parts(&taken) {
                if self.segments.table.get(id).is_some() {
                    let known = Arc::make_mut(&mut remote.parts).entry(id).or_default();
                    known.append(&mut parts);
                    known.sort_by_key(|part| part.first);
                }
            }
            for (id, put) in puts {
                tier.sent.objects += 1;
                tier.sent.bytes += put.info.len;
                let slots = put.directory.ranges.iter().map(|range| range.crcs.len());
                tier.sent.block_bytes += slots.sum::<usize>() as u64 * BLOCK_U64;
                tier.cleaner.put(&put.directory, now_us);
                Arc::make_mut(&mut remote.objects).insert(id, put.info);
                remote.keep_directory(put.directory);
            }
        }
        for (id, verdict) in verdicts {
            self.judge(id, verdict, job.began_us, now_us);
        }
        Ok(())
    }

    /// A manifest put by a round that began at `began_us`, by what passes here, is there, or another one.
    fn judge(&mut self, id: VolumeId, verdict: Verdict, began_us: u64, now_us: u64) {
        let Some(tier) = &mut self.tier else { return };
        if let Some(farewell) = tier.farewells.get_mut(&id) {
            match verdict {
                Verdict::Written(there) if there.nonce == farewell.manifest.nonce => {
                    tier.cleaner.superseded(&there.name, there.number.saturating_sub(1)..there.number, now_us);
                    tier.farewells.remove(&id);
                }
                // An earlier round's manifest took the number: the farewell takes the next.
                Verdict::Written(there) | Verdict::Earlier(there) => {
                    tier.cleaner.superseded(&there.name, farewell.manifest.number - 1..there.number, now_us);
                    farewell.manifest.number = there.number + 1;
                }
                Verdict::Lost(_) => drop(tier.farewells.remove(&id)),
            }
            return;
        }
        let Some(chain) = tier.chains.get_mut(&id) else { return };
        match verdict {
            Verdict::Written(manifest) => {
                tier.sent.manifests += 1;
                tier.cleaner.superseded(&manifest.name, chain.number..manifest.number, now_us);
                chain.pinned.extend(makers(&manifest).into_iter().chain([manifest.pool]));
                (chain.confirmed_us, chain.refresh) = (Some(began_us), false);
                (chain.number, chain.cut) = (manifest.number, manifest.cut);
                chain.seen_us = chain.seen_us.max(began_us);
                chain.pending.clear();
                chain.last = Some(Arc::new(*manifest));
            }
            Verdict::Earlier(there) => {
                tier.cleaner.superseded(&there.name, chain.number..there.number, now_us);
                chain.number = there.number;
            }
            Verdict::Lost(there) => {
                chain.lose(&there);
            }
        }
    }
}

fn copied_back(name: &str) -> String {
    format!(
        "the pool's folder is older than what it has put into the object store of {name:?}: was it copied back? Delete \
         the volume here and attach it again"
    )
}
