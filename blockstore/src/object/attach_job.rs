//! What the object store is asked before a volume of it can be used here: the volume is claimed, or forked.
//!
//! Invariants
//!   * pins for all that a manifest names are in place before it is read as the newest one;
//!   * a claim is the next manifest of the volume, put with a condition: one pool has it;
//!   * a fork's first manifest names what its origin's newest one names while that is still the newest: whoever marks
//!     the bucket sees one of the two. A fork of which that cannot be said is ended again;
//!   * both are in the words of the maker, so that they hold by themselves until this pool has something to say.

use super::claim::{newer_than, newest_manifest};
use super::pins::{makers, pin, unpin};
use super::tier::hex;
use super::upload::{put_manifest, Verdict};
use super::{ObjectStore, ObjectTier};
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{Manifest, Tenure};
use crate::format::object::BatchEntry;
use crate::format::origin::Origins;
use crate::pool::Pool;
use crate::space::fetch_directory;
use crate::types::SegmentId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How often a volume may change while it is being pinned.
const PIN_TRIES: usize = 8;
/// How often it may change while it is being forked.
const FORK_TRIES: usize = 8;

/// A volume that now belongs to this pool.
pub(crate) struct Attachment {
    pub manifest: Manifest,
    /// A host had it that may not know yet that it lost it.
    pub taken: bool,
    /// Batches behind its anchor: segment, batch.
    pub tail: Vec<(SegmentId, BatchEntry)>,
}

/// A fork to be made of a volume that may be another pool's.
struct Fork {
    name: String,
    read_only: bool,
}

/// Finds a volume in the object store and claims or forks it; runs on any thread.
pub struct AttachJob {
    tier: ObjectTier,
    pool: [u8; 16],
    pool_epoch: u64,
    time_us: u64,
    name: String,
    takeover: bool,
    fork: Option<Fork>,
    found: Mutex<Option<Attachment>>,
}

impl AttachJob {
    /// Asks the store and claims or forks the volume; blocks.
    pub fn run(&self) -> Result<()> {
        let found = match &self.fork {
            None => self.claim(),
            Some(fork) => self.fork(fork),
        }?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(())
    }

    pub(crate) fn take(self) -> Option<Attachment> {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self) -> Result<Attachment> {
        let store = &*self.tier.store;
        let newest = self.pinned_newest(&self.name)?;
        // A claim of our own may be of this moment: its maker may not know of it yet.
        let taken = newest.tenure == Tenure::Owned && newest.maker != self.pool;
        let tail = self.tail(&newest)?;
        let mut nonce = [0; 16];
        self.tier.entropy.fill(&mut nonce);
        let mut predecessors = newest.predecessors.clone();
        predecessors.push((newest.maker, newest.volume));
        let claim = Manifest {
            number: newest.number + 1,
            epoch: newest.epoch + 1,
            nonce,
            tenure: Tenure::Owned,
            pool: self.pool,
            pool_epoch: self.pool_epoch,
            time_us: self.time_us,
            predecessors,
            ..newest
        };
        let mut verdict = put_manifest(store, claim, &[])?;
        if let Verdict::Written(manifest) = &verdict {
            // Who was held for long may have claimed what others gave up long ago.
            if let Some(newer) = newer_than(store, &self.name, manifest.number)? {
                verdict = Verdict::Lost(Box::new(newer));
            }
        }
        match verdict {
            Verdict::Written(manifest) => Ok(Attachment { manifest: *manifest, taken, tail }),
            Verdict::Earlier(_) | Verdict::Lost(_) => Err(Error::new(
                ErrorKind::Busy,
                format!("somebody else wrote a manifest of {:?} at the same moment: try again", self.name),
            )),
        }
    }

    /// A volume of this pool that begins as what the other one is, which goes on where it is.
    fn fork(&self, fork: &Fork) -> Result<Attachment> {
        let store = &*self.tier.store;
        let last = newest_manifest(store, &fork.name)?;
        if last.as_ref().is_some_and(|last| last.tenure != Tenure::Deleted && !self.has_begun(last)) {
            return Err(taken(&fork.name));
        }
        let (mut number, epoch) = last.map_or((0, 1), |last| (last.number, last.epoch + 1));
        for _ in 0..FORK_TRIES {
            let newest = self.pinned_newest(&fork.name)?;
            if newest.tenure == Tenure::Owned && newest.pool == self.pool {
                unpin(store, &makers(&newest), &self.pool, &fork.name);
                let text = format!("{0:?} is this pool's own: cairn fork {0} {1}", self.name, fork.name);
                return Err(Error::invalid(text));
            }
            let tail = self.tail(&newest)?;
            number += 1;
            let first = self.word(fork, number, epoch, newest.clone());
            match put_manifest(store, first, &[])? {
                Verdict::Written(manifest) if self.newest()?.number == newest.number => {
                    return Ok(Attachment { manifest: *manifest, taken: false, tail });
                }
                // What it names may have been given up in the meantime.
                Verdict::Written(_) => {}
                Verdict::Earlier(_) | Verdict::Lost(_) => return Err(taken(&fork.name)),
            }
        }
        let newest = self.newest()?;
        let named = makers(&newest);
        let nothing = Manifest {
            tenure: Tenure::Deleted,
            roots: Vec::new(),
            origins: Origins::default(),
            objects: BTreeMap::new(),
            segments: BTreeMap::new(),
            tail: Vec::new(),
            ..newest
        };
        put_manifest(store, self.word(fork, number + 1, epoch, nothing), &[])?;
        unpin(store, &named, &self.pool, &fork.name);
        Err(self.is_being_written())
    }

    /// Whether a manifest is that of a fork which this pool began to make, and has never had: a volume that was claimed has
    /// predecessors, and one of its own is in its own words.
    fn has_begun(&self, manifest: &Manifest) -> bool {
        manifest.pool == self.pool && manifest.maker != self.pool && manifest.predecessors.is_empty()
    }

    /// What a manifest says, as one of the fork.
    fn word(&self, fork: &Fork, number: u64, epoch: u64, said: Manifest) -> Manifest {
        let mut nonce = [0; 16];
        self.tier.entropy.fill(&mut nonce);
        Manifest {
            name: fork.name.clone(),
            number,
            epoch,
            nonce,
            tenure: if said.tenure == Tenure::Deleted { Tenure::Deleted } else { Tenure::Owned },
            pool: self.pool,
            pool_epoch: self.pool_epoch,
            time_us: self.time_us,
            predecessors: Vec::new(),
            read_only: fork.read_only,
            ..said
        }
    }

    /// The newest manifest, if this pool may have the volume.
    fn newest(&self) -> Result<Manifest> {
        let newest = newest_manifest(&*self.tier.store, &self.name)?;
        let Some(newest) = newest.filter(|manifest| manifest.tenure != Tenure::Deleted) else {
            let text =
                format!("there is no volume {:?} in the object store: see cairn volume list --object-store", self.name);
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        if newest.tenure == Tenure::Owned && newest.pool != self.pool && !self.takeover && self.fork.is_none() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "volume {:?} belongs to pool {}: detach it there, or, if that host is lost, use --takeover; what it \
                     has not uploaded yet is lost then. --read-only and --as leave it there",
                    self.name,
                    hex(&newest.pool)
                ),
            ));
        }
        Ok(newest)
    }

    /// The newest manifest, read when the pins for all that it names were in place, for the volume `user`.
    fn pinned_newest(&self, user: &str) -> Result<Manifest> {
        let mut newest = self.newest()?;
        for _ in 0..PIN_TRIES {
            let number = newest.number;
            pin(&*self.tier.store, &makers(&newest), &self.pool, user, number, self.time_us)?;
            newest = self.newest()?;
            if newest.number == number {
                return Ok(newest);
            }
        }
        Err(self.is_being_written())
    }

    fn is_being_written(&self) -> Error {
        let text = format!("{:?} is being written: try again, or detach it where it is", self.name);
        Error::new(ErrorKind::Busy, text)
    }

    fn tail(&self, manifest: &Manifest) -> Result<Vec<(SegmentId, BatchEntry)>> {
        let store: &dyn ObjectStore = &*self.tier.store;
        let mut tail = Vec::new();
        for object in &manifest.tail {
            let info = manifest.objects.get(object).copied();
            let info = info.ok_or_else(|| Error::corrupt(format!("the manifest does not list {}", object.key())))?;
            for range in fetch_directory(store, object, &info)?.ranges {
                let own = manifest.segments.get(&range.segment).is_some_and(|s| s.volume == manifest.volume);
                let behind = |batch: &BatchEntry| (manifest.anchor_lsn..manifest.cut).contains(&batch.first_lsn);
                if own {
                    tail.extend(range.batches.into_iter().filter(behind).map(|batch| (range.segment, batch)));
                }
            }
        }
        tail.sort_by_key(|(_, batch)| batch.first_lsn);
        Ok(tail)
    }
}

fn taken(name: &str) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!("there is a volume {name:?} in the object store: choose another name with --as, or attach that one"),
    )
}

impl Pool {
    /// Prepares taking a volume over; run the job, then [`Pool::attached`].
    pub fn attach_job(&self, name: &str, takeover: bool) -> Result<AttachJob> {
        self.check_new_name(name)?;
        self.job(name, takeover, None)
    }

    /// Prepares a fork, under the name `new`, of a volume that may be another pool's and stays there: of its newest
    /// manifest, with its checkpoints. Run the job, then [`Pool::attached`].
    pub fn fork_job(&self, name: &str, new: &str, read_only: bool) -> Result<AttachJob> {
        self.check_new_name(new)?;
        self.job(name, false, Some(Fork { name: new.to_owned(), read_only }))
    }

    fn job(&self, name: &str, takeover: bool, fork: Option<Fork>) -> Result<AttachJob> {
        self.writable()?;
        let tier = self
            .tier
            .as_ref()
            .ok_or_else(|| Error::invalid("the pool has no object store: start the daemon with --object-store URL"))?;
        Ok(AttachJob {
            tier: tier.config.clone(),
            pool: self.pool_id,
            pool_epoch: self.epoch,
            time_us: self.clock.now_us(),
            name: name.to_owned(),
            takeover,
            fork,
            found: Mutex::default(),
        })
    }
}
