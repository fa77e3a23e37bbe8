//! Applying the tails that recovery found, in the order of LSNs.
//!
//! Invariant: a record is applied only if it fits the state it meets. The store writes no others, so
//! one that does not fit was damaged or made by somebody else; what follows it in the same log is not
//! applied either, and other logs go on.

use crate::error::{ErrorKind, Result};
use crate::format::record::Record;
use crate::limits::{BLOCK, BLOCK_U64, VOLUME_BYTES_MAX};
use crate::log::ScannedBatch;
use crate::pool::{Pool, POOL_STREAM};
use crate::recovery::RecoveryReport;
use crate::types::{CheckpointName, Lsn, SlotAddr, VolumeId};
use std::collections::BTreeSet;

/// What to do with a record.
enum Fit {
    Apply,
    /// Logs are prefixes each, not all together: power loss may keep a record and take one of another
    /// log that came before it and was not promised either.
    Skip(String),
    Halt(&'static str),
}

impl Pool {
    pub(crate) fn replay(&mut self, mut batches: Vec<ScannedBatch>, report: &mut RecoveryReport) -> Result<()> {
        batches.sort_by_key(|scanned| scanned.batch.first_lsn);
        // These are given up, and may be attached again. What is fenced is not: its forks are this pool's.
        let mut halted: BTreeSet<VolumeId> = self.interrupted().into_iter().collect();
        for ScannedBatch { batch, data } in batches {
            report.batches += 1;
            report.bytes += (batch.crcs.len() * BLOCK) as u64;
            self.next_lsn = self.next_lsn.max(Lsn(batch.first_lsn.0 + batch.records.len() as u64));
            let volume = batch.volume;
            if volume != POOL_STREAM && !self.volumes.contains_key(&volume) {
                report.dropped.push(format!("a batch of volume {}, which does not exist (any more)", volume.0));
                continue;
            }
            let (mut lsn, mut addr) = (batch.first_lsn, data);
            for record in &batch.records {
                if halted.contains(&volume) {
                    break;
                }
                match self.fit(volume, record) {
                    Fit::Apply => {
                        self.make_room_for(record, report)?;
                        match self.prepare_record(volume, record) {
                            // Its map came with a volume that another pool has by now: no other volume stays shut for that.
                            Err(e) if e.kind() == ErrorKind::NotFound || self.not_fenced(volume).is_err() => {
                                report.dropped.push(format!(
                                    "log of volume {}: change {} cannot be applied ({e}): it and what follows are not",
                                    volume.0, lsn.0
                                ));
                                self.fence(volume, &e.to_string());
                                halted.insert(volume);
                            }
                            seen => {
                                seen?;
                                self.apply(volume, lsn, record, addr)?;
                            }
                        }
                    }
                    Fit::Skip(what) => report.dropped.push(what),
                    Fit::Halt(why) => {
                        report.dropped.push(format!(
                            "log of volume {}: change {} does not fit ({why}): it and what follows are not applied",
                            volume.0, lsn.0
                        ));
                        halted.insert(volume);
                    }
                }
                addr = SlotAddr(addr.0 + record.data_blocks());
                lsn = Lsn(lsn.0 + 1);
                report.records += 1;
            }
        }
        Ok(())
    }

    fn fit(&self, volume: VolumeId, record: &Record) -> Fit {
        let in_pool_log = matches!(record, Record::CreateVolume { .. } | Record::DeleteVolume { .. });
        if in_pool_log != (volume == POOL_STREAM) {
            return Fit::Halt("it belongs to another log");
        }
        let good_size = |size: u64| size > 0 && size % BLOCK_U64 == 0 && size <= VOLUME_BYTES_MAX;
        let new = |id: &VolumeId| *id != POOL_STREAM && !self.volumes.contains_key(id);
        let (fits, why) = match record {
            Record::Write { block, count } | Record::Trim { block, count } => {
                let blocks = self.volumes.get(&volume).map_or(0, |v| self.roots.get(v.head).size / BLOCK_U64);
                (block.checked_add(*count).is_some_and(|end| end <= blocks), "it reaches past the end")
            }
            Record::CreateVolume { id, size, .. } => (new(id) && good_size(*size), "number or size"),
            Record::DeleteVolume { id } if !self.volumes.contains_key(id) => {
                return Fit::Skip(format!("the deletion of volume {}, whose creation was lost", id.0));
            }
            Record::DeleteVolume { .. } => (true, ""),
            Record::Resize { size } => (good_size(*size), "size"),
            Record::SetDurability { .. } | Record::SetReadOnly { .. } => (true, ""),
            Record::Checkpoint { name, .. } => (!self.has(volume, *name), "the name is taken"),
            Record::DeleteCheckpoint { name } => (self.has(volume, *name), "no such checkpoint"),
            Record::Restore { name, undo, .. } => {
                (self.has(volume, *name) && !self.has(volume, *undo), "no such checkpoint, or the name is taken")
            }
            Record::Fork { from, id, .. } => {
                (new(id) && from.is_none_or(|from| self.has(volume, from)), "number, or no such checkpoint")
            }
        };
        match fits {
            true => Fit::Apply,
            false => Fit::Halt(why),
        }
    }

    /// Whether a record can be applied as it is.
    pub(crate) fn fits(&self, volume: VolumeId, record: &Record) -> bool {
        matches!(self.fit(volume, record), Fit::Apply)
    }

    fn has(&self, volume: VolumeId, name: CheckpointName) -> bool {
        self.volumes.get(&volume).is_some_and(|volume| volume.checkpoints.contains_key(&name))
    }

    /// The name of a new volume was free then, so its owner's deletion was lost.
    fn make_room_for(&mut self, record: &Record, report: &mut RecoveryReport) -> Result<()> {
        if let Record::CreateVolume { name, .. } | Record::Fork { name, .. } = record {
            if let Some(id) = self.names.get(name).copied() {
                report.dropped.push(format!("volume {}, whose name {name:?} was given again", id.0));
                self.apply_delete_volume(id)?;
            }
        }
        Ok(())
    }
}
