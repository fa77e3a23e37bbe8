//! What each record does to the state: the one place, used while running and in replay.

use crate::checkpoint::{release, Root};
use crate::error::{Error, Result};
use crate::format::anchor::RootKind;
use crate::format::record::Record;
use crate::limits::{AUTO_CHECKPOINTS_KEPT, BLOCK_U64, TRIM_INLINE_BLOCKS};
use crate::map::{level_for, span, MapRoot, Ref, Replaced};
use crate::pool::{Pool, Volume};
use crate::types::{CheckpointName, Durability, Lsn, RootId, SlotAddr, VolumeId};
use std::collections::BTreeMap;
use std::ops::Range;

/// The head that a new volume begins with.
struct NewHead {
    map: MapRoot,
    size: u64,
    parent: Option<RootId>,
}

impl Pool {
    pub(crate) fn apply(&mut self, volume: VolumeId, lsn: Lsn, record: &Record, data: SlotAddr) -> Result<()> {
        match record {
            Record::Write { block, count } => self.apply_write(volume, *block..block + count, data),
            Record::Trim { block, count } => self.apply_trim(volume, *block..block.saturating_add(*count)),
            Record::CreateVolume { id, name, size, time_us } => {
                let map = MapRoot { top: Ref::HOLE, level: level_for(*size) };
                self.add_volume(*id, name, *time_us, NewHead { map, size: *size, parent: None });
                Ok(())
            }
            Record::DeleteVolume { id } => self.apply_delete_volume(*id),
            Record::Resize { size } => self.apply_resize(volume, *size),
            Record::Checkpoint { name, time_us, comment } => {
                self.apply_checkpoint(volume, lsn, *name, *time_us, comment)?;
                self.prune(volume)
            }
            Record::DeleteCheckpoint { name } => self.apply_delete_checkpoint(volume, *name),
            Record::Restore { name, undo, time_us } => self.apply_restore(volume, lsn, *name, *undo, *time_us),
            Record::Fork { from, id, name, time_us } => self.apply_fork(volume, *from, *id, name, *time_us),
            Record::SetDurability { durability } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.durability = *durability;
                }
                Ok(())
            }
            Record::SetReadOnly { read_only } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.read_only = *read_only;
                }
                Ok(())
            }
        }
    }

    fn head(&self, volume: VolumeId) -> Result<RootId> {
        Ok(self.volume(volume)?.head)
    }

    fn apply_write(&mut self, volume: VolumeId, range: Range<u64>, data: SlotAddr) -> Result<()> {
        let head = self.head(volume)?;
        self.segments.table.mark_live(data, range.end - range.start);
        self.change(head, range, Some(data))
    }

    fn apply_trim(&mut self, volume: VolumeId, range: Range<u64>) -> Result<()> {
        let head = self.head(volume)?;
        let tree = self.roots.get(head).map;
        let range = range.start..range.end.min(span(tree.level));
        if range.is_empty() {
            return Ok(());
        }
        if range.end - range.start <= TRIM_INLINE_BLOCKS {
            return self.change(head, range, None);
        }
        if tree.top == Ref::HOLE {
            return Ok(());
        }
        // The state before the trim stays behind as a ghost, whose reaper finds what died; the trim
        // itself only cuts subtrees off.
        self.insert_copy_above(head, RootKind::Ghost { cursor: 0 });
        let mut tree = tree;
        let mut replaced = Replaced::default();
        self.map.set(&mut tree, range, None, true, &mut replaced, &self.segments)?;
        self.roots.get_mut(head).map = tree;
        release(&self.roots, &mut self.map, &mut self.segments, head, &mut replaced)
    }

    /// Maps a range of a head anew and releases what it was mapped to.
    fn change(&mut self, head: RootId, range: Range<u64>, first: Option<SlotAddr>) -> Result<()> {
        let mut tree = self.roots.get(head).map;
        let mut replaced = Replaced::default();
        self.map.set(&mut tree, range, first, false, &mut replaced, &self.segments)?;
        self.roots.get_mut(head).map = tree;
        release(&self.roots, &mut self.map, &mut self.segments, head, &mut replaced)
    }

    fn insert_copy_above(&mut self, id: RootId, kind: RootKind) -> RootId {
        let root = self.roots.get(id);
        let copy =
            Root { volume: root.volume, map: root.map, size: root.size, parent: None, children: Vec::new(), kind };
        self.map.retain(copy.map.top);
        self.roots.insert_above(id, copy)
    }

    fn add_volume(&mut self, id: VolumeId, name: &str, created_us: u64, new: NewHead) {
        let NewHead { map, size, parent } = new;
        let root = Root { volume: id, map, size, parent, children: Vec::new(), kind: RootKind::Head };
        let head = self.roots.insert(root);
        let volume = Volume {
            name: name.to_owned(),
            created_us,
            head,
            checkpoints: BTreeMap::new(),
            next_checkpoint: 1,
            next_auto: 1,
            origins: Vec::new(),
            durability: Durability::default(),
            read_only: false,
        };
        self.volumes.insert(id, volume);
        self.names.insert(name.to_owned(), id);
        self.next_volume = self.next_volume.max(id.0 + 1);
    }

    pub(crate) fn apply_delete_volume(&mut self, id: VolumeId) -> Result<()> {
        self.volume(id)?;
        if let Some(volume) = self.volumes.remove(&id) {
            self.names.remove(&volume.name);
            self.roots.make_ghost(volume.head);
            volume.checkpoints.values().for_each(|root| self.roots.make_ghost(*root));
        }
        self.retire_stream(id)
    }

    /// A deleted volume's log ends: its open segment becomes one for the cleaner.
    pub(crate) fn retire_stream(&mut self, id: VolumeId) -> Result<()> {
        if let Some(mut stream) = self.streams.remove(&id) {
            stream.seal(&mut self.segments, self.map.cache(), self.next_lsn)?;
            let job = stream.flush_job(self.next_lsn, &self.disk);
            self.anchors.extra_files.extend(job.files);
        }
        Ok(())
    }

    fn apply_resize(&mut self, volume: VolumeId, size: u64) -> Result<()> {
        let head = self.head(volume)?;
        let (mut tree, before) = (self.roots.get(head).map, self.roots.get(head).size);
        if size < before {
            self.apply_trim(volume, size.div_ceil(BLOCK_U64)..before.div_ceil(BLOCK_U64))?;
            tree = self.roots.get(head).map;
        }
        self.map.grow(&mut tree, level_for(size));
        let root = self.roots.get_mut(head);
        (root.map, root.size) = (tree, size);
        Ok(())
    }

    fn apply_checkpoint(
        &mut self,
        id: VolumeId,
        lsn: Lsn,
        name: CheckpointName,
        time_us: u64,
        comment: &str,
    ) -> Result<()> {
        let head = self.head(id)?;
        let kind = RootKind::Checkpoint { name, time_us, comment: comment.to_owned(), lsn };
        let root = self.insert_copy_above(head, kind);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.checkpoints.insert(name, root);
            let next = if name.is_auto { &mut volume.next_auto } else { &mut volume.next_checkpoint };
            *next = (*next).max(name.number + 1);
        }
        Ok(())
    }

    /// Retention: named checkpoints stay, of the automatic ones the newest few.
    fn prune(&mut self, id: VolumeId) -> Result<()> {
        let volume = self.volume(id)?;
        let autos: Vec<_> = volume.checkpoints.keys().filter(|name| name.is_auto).copied().collect();
        for name in autos.iter().take(autos.len().saturating_sub(AUTO_CHECKPOINTS_KEPT)) {
            self.apply_delete_checkpoint(id, *name)?;
        }
        Ok(())
    }

    fn apply_delete_checkpoint(&mut self, id: VolumeId, name: CheckpointName) -> Result<()> {
        let root = self.volumes.get_mut(&id).and_then(|volume| volume.checkpoints.remove(&name));
        let root =
            root.ok_or_else(|| Error::corrupt(format!("the log deletes checkpoint {name}, which does not exist")))?;
        self.roots.make_ghost(root);
        Ok(())
    }

    fn apply_restore(
        &mut self,
        id: VolumeId,
        lsn: Lsn,
        name: CheckpointName,
        undo: CheckpointName,
        time_us: u64,
    ) -> Result<()> {
        let root = self.volume(id)?.checkpoints.get(&name).copied();
        let from = root.ok_or_else(|| Error::corrupt(format!("the log restores {name}, which does not exist")))?;
        self.apply_checkpoint(id, lsn, undo, time_us, &format!("before restore of {name}"))?;
        let head = self.head(id)?;
        let (map, size) = (self.roots.get(from).map, self.roots.get(from).size);
        self.map.retain(map.top);
        let replaced = self.roots.get(head).map.top;
        self.map.release(replaced);
        let root = self.roots.get_mut(head);
        (root.map, root.size) = (map, size);
        self.roots.set_parent(head, Some(from));
        self.prune(id)
    }

    fn apply_fork(
        &mut self,
        volume: VolumeId,
        from: Option<CheckpointName>,
        id: VolumeId,
        name: &str,
        time_us: u64,
    ) -> Result<()> {
        let origin = match from {
            None => {
                let head = self.head(volume)?;
                self.insert_copy_above(head, RootKind::Ghost { cursor: 0 })
            }
            Some(checkpoint) => {
                let root = self.volume(volume)?.checkpoints.get(&checkpoint).copied();
                root.ok_or_else(|| Error::corrupt(format!("the log forks {checkpoint}, which does not exist")))?
            }
        };
        let (map, size) = (self.roots.get(origin).map, self.roots.get(origin).size);
        self.map.retain(map.top);
        let (mut origins, durability) = (self.volume(volume)?.origins.clone(), self.volume(volume)?.durability);
        origins.push(volume);
        self.add_volume(id, name, time_us, NewHead { map, size, parent: Some(origin) });
        if let Some(fork) = self.volumes.get_mut(&id) {
            (fork.origins, fork.durability) = (origins, durability);
        }
        Ok(())
    }
}
