//! Volumes and checkpoints by name: create, delete, resize, checkpoint, restore, fork.
//!
//! Each operation is one record; it is promised once the returned job has been run and reported to
//! [`Pool::flushed`] (or both at once with [`Pool::finish`]).

use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::RootKind;
use crate::format::manifest::Tenure;
use crate::format::record::Record;
use crate::limits::{BLOCK_U64, COMMENT_BYTES_MAX, NAME_BYTES_MAX, VOLUMES_MAX, VOLUME_BYTES_MAX};
use crate::log::FlushJob;
use crate::pool::{Pool, POOL_STREAM};
use crate::types::{CheckpointName, Durability, Lsn, RootId, VolumeId};

/// What is known of a volume.
#[derive(Clone, Debug)]
pub struct VolumeInfo {
    /// Number.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Creation time, microseconds since 1970.
    pub created_us: u64,
    /// What its flushes wait for.
    pub durability: Durability,
    /// Whether its head can be changed.
    pub read_only: bool,
    /// Number of checkpoints, automatic ones included.
    pub checkpoints: usize,
    /// The checkpoint the head was derived from, if it has a name: its volume's name and its own.
    pub parent: Option<(String, CheckpointName)>,
}

/// What is known of a checkpoint.
#[derive(Clone, Debug)]
pub struct CheckpointInfo {
    /// Name.
    pub name: CheckpointName,
    /// When it was taken, microseconds since 1970.
    pub time_us: u64,
    /// The user's words.
    pub comment: String,
    /// Size of the volume at the cut, bytes.
    pub size: u64,
    /// The cut: every change before this number is contained, none after.
    pub lsn: Lsn,
    /// The checkpoint it was derived from, if that still has a name.
    pub parent: Option<(String, CheckpointName)>,
}

fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    let text = format!(
        "{shown:?} cannot name a volume: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', not starting with '.' or '-'"
    );
    Err(Error::invalid(text))
}

impl Pool {
    /// Whether a volume can have this size, and if not, why.
    pub fn check_size(size: u64) -> Result<()> {
        if size == 0 || size % BLOCK_U64 != 0 || size > VOLUME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{size} bytes cannot be a volume's size: use a multiple of 4096 between 4096 and {VOLUME_BYTES_MAX} (64 PiB)"
            )));
        }
        Ok(())
    }

    /// Whether a new volume can have this name, and if not, why.
    pub fn check_new_name(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if self.names.contains_key(name) {
            return Err(Error::new(ErrorKind::Exists, format!("a volume named {name:?} exists already")));
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(Error::new(ErrorKind::NoSpace, format!("the pool holds {VOLUMES_MAX} volumes already")));
        }
        Ok(())
    }

    /// Makes an empty volume of `size` bytes.
    pub fn create_volume(&mut self, name: &str, size: u64) -> Result<(VolumeId, FlushJob)> {
        self.check_new_name(name)?;
        Self::check_size(size)?;
        let id = VolumeId(self.next_volume);
        let record = Record::CreateVolume { id, name: name.to_owned(), size, time_us: self.clock.now_us() };
        self.log(POOL_STREAM, vec![record])?;
        Ok((id, self.flush_job(POOL_STREAM)?))
    }

    /// Deletes a volume and its checkpoints; what forks share stays with them.
    pub fn delete_volume(&mut self, id: VolumeId) -> Result<FlushJob> {
        self.volume(id)?;
        self.leaves_no_orphan(id)?;
        let farewell = self.farewell(id, Tenure::Deleted);
        self.delete_with(id, farewell)
    }

    /// Changes a volume's size; what lies beyond a smaller size is gone.
    pub fn resize_volume(&mut self, id: VolumeId, size: u64) -> Result<FlushJob> {
        self.volume(id)?;
        Self::check_size(size)?;
        let before = self.roots.get(self.volume(id)?.head).size;
        let gone = size.div_ceil(BLOCK_U64)..before.div_ceil(BLOCK_U64);
        let resize = vec![Record::Resize { size }];
        self.prepared(|pool| pool.prepare_trim(id, gone), |pool| pool.log_with_reserve(id, resize))?;
        self.flush_job(id)
    }

    /// Changes what flushes of a volume wait for. Whoever serves it keeps the promise.
    pub fn set_durability(&mut self, id: VolumeId, durability: Durability) -> Result<FlushJob> {
        self.volume(id)?;
        if durability != Durability::Local && !self.has_object_tier() {
            return Err(Error::invalid(format!(
                "{durability} needs an object store: start the daemon with --object-store URL"
            )));
        }
        self.log(id, vec![Record::SetDurability { durability }])?;
        self.flush_job(id)
    }

    /// Says whether a volume's head can be changed. Checkpoints of it can be made and deleted, and forks can be written.
    pub fn set_read_only(&mut self, id: VolumeId, read_only: bool) -> Result<FlushJob> {
        self.volume(id)?;
        self.log(id, vec![Record::SetReadOnly { read_only }])?;
        self.flush_job(id)
    }

    /// Refuses what would change the head of a volume that is read-only.
    pub(crate) fn not_read_only(&self, id: VolumeId, records: &[Record]) -> Result<()> {
        match self.volumes.get(&id) {
            Some(volume) if volume.read_only && records.iter().any(Record::changes_head) => Err(Error::invalid(format!(
                "volume {:?} is read-only: write to a fork of it, or make it writable with cairn volume set --read-only off",
                volume.name
            ))),
            _ => Ok(()),
        }
    }

    /// Names the head's present state. Costs one record, whatever the volume's size.
    pub fn create_checkpoint(&mut self, id: VolumeId, comment: &str) -> Result<(CheckpointInfo, FlushJob)> {
        if comment.len() > COMMENT_BYTES_MAX {
            return Err(Error::invalid(format!("the comment is longer than {COMMENT_BYTES_MAX} bytes")));
        }
        let name = CheckpointName { is_auto: false, number: self.volume(id)?.next_checkpoint };
        let record = Record::Checkpoint { name, time_us: self.clock.now_us(), comment: comment.to_owned() };
        self.log(id, vec![record])?;
        Ok((self.checkpoint_info(id, name)?, self.flush_job(id)?))
    }

    /// Deletes a checkpoint; the blocks only it holds are given back in the background.
    pub fn delete_checkpoint(&mut self, id: VolumeId, name: CheckpointName) -> Result<FlushJob> {
        self.view(id, Some(name))?;
        self.log_with_reserve(id, vec![Record::DeleteCheckpoint { name }])?;
        self.flush_job(id)
    }

    /// Makes the head what it was at `name`. What the head was until now is kept as the returned
    /// automatic checkpoint, so that a restore can be undone.
    pub fn restore(&mut self, id: VolumeId, name: CheckpointName) -> Result<(CheckpointInfo, FlushJob)> {
        self.view(id, Some(name))?;
        let undo = CheckpointName { is_auto: true, number: self.volume(id)?.next_auto };
        self.log(id, vec![Record::Restore { name, undo, time_us: self.clock.now_us() }])?;
        Ok((self.checkpoint_info(id, undo)?, self.flush_job(id)?))
    }

    /// Makes a new volume that starts as the head of `id`, or as its checkpoint `from`.
    pub fn fork(&mut self, id: VolumeId, from: Option<CheckpointName>, name: &str) -> Result<(VolumeId, FlushJob)> {
        self.view(id, from)?;
        self.check_new_name(name)?;
        let new = VolumeId(self.next_volume);
        let record = Record::Fork { from, id: new, name: name.to_owned(), time_us: self.clock.now_us() };
        self.log(id, vec![record])?;
        Ok((new, self.flush_job(id)?))
    }

    /// All volumes, by number.
    pub fn volumes(&self) -> Vec<VolumeId> {
        self.volumes.keys().copied().collect()
    }

    /// What is known of a volume.
    pub fn volume_info(&self, id: VolumeId) -> Result<VolumeInfo> {
        let volume = self.volume(id)?;
        let head = self.roots.get(volume.head);
        Ok(VolumeInfo {
            id,
            name: volume.name.clone(),
            size: head.size,
            created_us: volume.created_us,
            durability: volume.durability,
            read_only: volume.read_only,
            checkpoints: volume.checkpoints.len(),
            parent: head.parent.and_then(|root| self.root_name(root)),
        })
    }

    fn root_name(&self, id: RootId) -> Option<(String, CheckpointName)> {
        let root = self.roots.find(id)?;
        match &root.kind {
            RootKind::Checkpoint { name, .. } => Some((self.volumes.get(&root.volume)?.name.clone(), *name)),
            _ => None,
        }
    }

    /// Checkpoints of a volume, oldest first.
    pub fn checkpoints(&self, id: VolumeId) -> Result<Vec<CheckpointInfo>> {
        let names: Vec<_> = self.volume(id)?.checkpoints.keys().copied().collect();
        let mut all = names.into_iter().map(|name| self.checkpoint_info(id, name)).collect::<Result<Vec<_>>>()?;
        all.sort_by_key(|c| c.lsn);
        Ok(all)
    }

    /// What is known of a checkpoint.
    pub fn checkpoint_info(&self, id: VolumeId, name: CheckpointName) -> Result<CheckpointInfo> {
        let root = self.roots.get(self.view(id, Some(name))?.root);
        match &root.kind {
            RootKind::Checkpoint { name, time_us, comment, lsn } => Ok(CheckpointInfo {
                name: *name,
                time_us: *time_us,
                comment: comment.clone(),
                size: root.size,
                lsn: *lsn,
                parent: root.parent.and_then(|root| self.root_name(root)),
            }),
            _ => Err(Error::new(ErrorKind::NotFound, format!("checkpoint {name} was deleted"))),
        }
    }
}
