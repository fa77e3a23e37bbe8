//! What a pool knows of its object store: whose each volume is there, and how far it is.
//!
//! Invariants
//!   * a volume that another host has, or that is only about to be this pool's, takes no changes;
//!   * the watermark of a volume is the cut of its newest manifest that is known to be in the store.
//!
//! Not here: uploading (`round`), and what comes of it (`outcome`).

use super::claim::ClaimJob;
use super::clean::{CleanJob, Cleaner};
use super::upload::UploadJob;
use super::{Entropy, ObjectStore};
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::Anchor;
use crate::format::manifest::Manifest;
use crate::format::object::within;
use crate::format::segment::{Place, SegmentKind};
use crate::limits::BLOCK_U64;
use crate::pool::{Pool, Volume};
use crate::space::{Segment, SegmentTable};
use crate::types::{Lsn, SegmentId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The object store of a pool.
#[derive(Clone)]
pub struct ObjectTier {
    /// Where objects are.
    pub store: Arc<dyn ObjectStore>,
    /// For the nonces of manifests.
    pub entropy: Arc<dyn Entropy>,
}

/// What a volume is to the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its newest manifest has not been looked at yet.
    Unknown,
    /// This pool writes its manifests.
    Owned,
    /// Its name belongs to another volume there, or its history there is not the one here: it stays local.
    Refused(String),
    /// Attaching it was interrupted: it is given up here, and can be attached again.
    Interrupted,
    /// Another host has taken it over: nothing is accepted for it any more.
    Fenced(String),
}

/// A volume's manifests.
pub(crate) struct Chain {
    pub standing: Standing,
    /// Number of the newest manifest.
    pub number: u64,
    pub epoch: u64,
    /// The watermark: every change before it is in the store.
    pub cut: Lsn,
    /// Number behind the last change.
    pub changed: Lsn,
    /// When the store last showed that nobody else writes the volume, by what passes here.
    pub seen_us: u64,
    /// Not served before this: another host may not know yet that it has lost the volume.
    pub serve_from_us: u64,
    /// Nonces that may have been put under the next number.
    pub pending: Vec<[u8; 16]>,
    /// The newest manifest.
    pub last: Option<Arc<Manifest>>,
    /// The pools at which this one has put a pin for the volume since it was opened.
    pub pinned: BTreeSet<[u8; 16]>,
    /// When the newest manifest was last known to be `number`.
    pub confirmed_us: Option<u64>,
    /// It names what is dead.
    pub refresh: bool,
    /// It is a fork of a volume that came from another pool: until its first manifest names what they share, it would be
    /// lost with its origin.
    pub leans: bool,
}

impl Chain {
    pub(crate) fn new(changed: Lsn) -> Self {
        let (number, epoch, cut) = (0, 1, Lsn(0));
        let (seen_us, serve_from_us, confirmed_us) = (0, 0, None);
        let (standing, pending, last) = (Standing::Unknown, Vec::new(), None);
        Self {
            standing,
            number,
            epoch,
            cut,
            changed,
            seen_us,
            serve_from_us,
            pending,
            last,
            pinned: BTreeSet::new(),
            confirmed_us,
            refresh: false,
            leans: false,
        }
    }

    /// Somebody else has written the manifest `there`.
    pub(crate) fn lose(&mut self, there: &Manifest) {
        self.standing = Standing::Fenced(format!(
            "pool {} has taken the volume {:?} over (epoch {}): nothing more is accepted for it here; delete it here, \
             or attach it again with --takeover",
            hex(&there.pool),
            there.name,
            there.epoch
        ));
    }
}

/// A last manifest to put for a name that is no longer here.
pub(crate) struct Farewell {
    pub manifest: Manifest,
    pub pending: Vec<[u8; 16]>,
    /// Where there may be pins for the volume.
    pub pinned: BTreeSet<[u8; 16]>,
}

/// The object tier's state.
pub(crate) struct Tier {
    pub config: ObjectTier,
    pub chains: BTreeMap<VolumeId, Chain>,
    /// The newest durable anchor.
    pub anchor: Option<Arc<Anchor>>,
    /// An anchor has to hold everything before this.
    pub structure: Lsn,
    pub next_object: u64,
    pub busy: bool,
    /// Segments whose files a round reads.
    pub pinned: BTreeSet<SegmentId>,
    pub farewells: BTreeMap<VolumeId, Farewell>,
    pub sent: Sent,
    pub cleaner: Cleaner,
}

/// What has been sent since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Objects put.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the blocks in them.
    pub block_bytes: u64,
    /// Manifests put.
    pub manifests: u64,
}

/// A volume as the object store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteStatus {
    /// Whether this pool writes it.
    pub standing: Standing,
    /// Every change before this is in the store.
    pub watermark: Lsn,
    /// Number behind the last change here.
    pub changed: Lsn,
    /// Number of the newest manifest.
    pub manifest: u64,
    /// How often the volume has changed hands.
    pub epoch: u64,
    /// When the newest manifest was made, microseconds since 1970.
    pub time_us: u64,
}

/// Work of the object tier; runs on any thread.
pub enum TierJob {
    /// Looks up the newest manifests of volumes.
    Claim(ClaimJob),
    /// Uploads.
    Upload(Box<UploadJob>),
    /// Deletes what nobody needs. While it runs there can be other work, too.
    Clean(Box<CleanJob>),
}

impl TierJob {
    /// Does it, here and now.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Claim(job) => job.run(),
            Self::Upload(job) => job.run(),
            Self::Clean(job) => job.run(),
        }
    }
}

impl Pool {
    /// Connects the pool with an object store. Volumes are looked up by the next [`Pool::tier_job`].
    pub fn set_object_tier(&mut self, config: ObjectTier) {
        self.segments.connect(config.store.clone());
        let changed = self.next_lsn;
        self.tier = Some(Tier {
            config,
            chains: self.volumes.keys().map(|id| (*id, Chain::new(changed))).collect(),
            anchor: None,
            structure: changed,
            next_object: 0,
            busy: false,
            pinned: BTreeSet::new(),
            farewells: BTreeMap::new(),
            sent: Sent::default(),
            cleaner: Cleaner::default(),
        });
    }

    /// The object store.
    pub fn object_store(&self) -> Option<Arc<dyn ObjectStore>> {
        self.tier.as_ref().map(|tier| tier.config.store.clone())
    }

    /// Whether there is an object store.
    pub fn has_object_tier(&self) -> bool {
        self.tier.is_some()
    }

    /// Whether an anchor has to come before anything can be uploaded.
    pub(crate) fn tier_wants_anchor(&self) -> bool {
        let Some(tier) = &self.tier else { return false };
        !tier.busy && tier.anchor.as_ref().is_none_or(|anchor| anchor.next_lsn < tier.structure)
    }

    /// Takes note of a change.
    pub(crate) fn tier_note(&mut self, volume: VolumeId, structural: bool) {
        let Some(tier) = &mut self.tier else { return };
        let next = self.next_lsn;
        if structural {
            tier.structure = next;
            tier.chains.retain(|id, _| self.volumes.contains_key(id));
            for (id, volume) in &self.volumes {
                let new = || Chain { leans: leans(volume, &self.segments.table), ..Chain::new(next) };
                tier.chains.entry(*id).or_insert_with(new);
            }
        }
        if let Some(chain) = tier.chains.get_mut(&volume) {
            chain.changed = next;
        }
    }

    /// A volume's state in the object store; `None` without one.
    pub fn remote_status(&self, id: VolumeId) -> Option<RemoteStatus> {
        let chain = self.tier.as_ref()?.chains.get(&id)?;
        Some(RemoteStatus {
            standing: chain.standing.clone(),
            watermark: chain.cut,
            changed: chain.changed,
            manifest: chain.number,
            epoch: chain.epoch,
            time_us: chain.last.as_ref().map_or(0, |last| last.time_us),
        })
    }

    /// Bytes of the objects that a volume's newest manifest names. Volumes may share some.
    pub fn object_bytes(&self, id: VolumeId) -> u64 {
        let last = self.tier.as_ref().and_then(|tier| tier.chains.get(&id)?.last.clone());
        last.map_or(0, |last| last.objects.values().map(|info| info.len).sum())
    }

    /// Whether the last manifest of a volume that is no longer here has still to be put.
    pub fn is_letting_go(&self, id: VolumeId) -> bool {
        self.tier.as_ref().is_some_and(|tier| tier.farewells.contains_key(&id))
    }

    /// Refuses to use a volume that was taken over so lately that there is no manifest of our own yet.
    pub(crate) fn not_arriving(&self, id: VolumeId) -> Result<()> {
        let Some(chain) = self.tier.as_ref().and_then(|tier| tier.chains.get(&id)) else { return Ok(()) };
        let claimed = chain.last.as_ref().is_some_and(|last| last.maker != self.pool_id);
        if claimed || chain.serve_from_us > 0 && self.clock.monotonic_us() < chain.serve_from_us {
            return Err(arriving());
        }
        match &chain.standing {
            _ if !chain.leans || chain.number > 0 => Ok(()),
            Standing::Refused(why) | Standing::Fenced(why) => Err(Error::new(ErrorKind::Fenced, why.clone())),
            _ => Err(Error::new(
                ErrorKind::Busy,
                "the fork is not in the object store yet, and would be lost with its origin: try again in a moment",
            )),
        }
    }

    /// Whether a volume can be used only when its first manifest of this pool is in the store.
    pub fn is_arriving(&self, id: VolumeId) -> bool {
        self.not_arriving(id).is_err_and(|e| e.kind() == ErrorKind::Busy)
    }

    /// What has been sent so far.
    pub fn sent(&self) -> Sent {
        self.tier.as_ref().map_or_else(Sent::default, |tier| tier.sent)
    }

    /// Bytes of live blocks and map pages that are not in the store yet: the lag.
    pub fn unsent_bytes(&self) -> u64 {
        self.unsent_of(|_| true)
    }

    /// Bytes of blocks that were written to a volume, live in it or in what shares them, and are not in the object store
    /// yet; 0 without one.
    pub fn lag_bytes(&self, id: VolumeId) -> u64 {
        self.unsent_of(|volume| volume == id)
    }

    fn unsent_of(&self, wanted: impl Fn(VolumeId) -> bool) -> u64 {
        let Some(remote) = &self.segments.remote else { return 0 };
        let here = self.segments.table.iter().filter(|(_, s)| s.place == Place::Here && s.kind == SegmentKind::Log);
        let blocks = here.filter(|(_, s)| wanted(s.volume)).map(|(id, s)| {
            let live = within(&s.bits, remote.uploaded(id).min(s.used), s.used);
            live.iter().map(|w| u64::from(w.count_ones())).sum::<u64>()
        });
        blocks.sum::<u64>() * BLOCK_U64
    }

    /// Refuses changes of a volume that another host has taken over.
    pub(crate) fn not_fenced(&self, volume: VolumeId) -> Result<()> {
        let standing = self.tier.as_ref().and_then(|tier| Some(&tier.chains.get(&volume)?.standing));
        match standing {
            Some(Standing::Fenced(why)) => Err(Error::new(ErrorKind::Fenced, why.clone())),
            Some(Standing::Interrupted) => Err(arriving()),
            _ => self.not_arriving(volume),
        }
    }
}

/// Whether a volume shares blocks with one that came from another pool.
pub(crate) fn leans(volume: &Volume, table: &SegmentTable) -> bool {
    let came = |s: &Segment| matches!(s.place, Place::Imported | Place::Counted) && s.live > 0;
    !volume.origins.is_empty() && table.iter().any(|(_, s)| came(s) && volume.origins.contains(&s.volume))
}

/// Nothing can be promised for a volume before a manifest of our own is there.
fn arriving() -> Error {
    Error::new(ErrorKind::Busy, "the volume is being attached: try again in a moment")
}

/// Bytes as people write them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
