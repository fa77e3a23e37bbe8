//! Checks and scrubs beside a running pool: by another thread, on its own copy of the accounts.
//!
//! Invariants
//!   * an audit sees exactly the state of the anchor it was begun with, whatever changes meanwhile;
//!   * while it is held nothing that this anchor refers to is removed or packed: space is given back
//!     when the audit is over;
//!   * the pool's thread pays for one anchor and a copy of the checksums that have no directory yet.
//!
//! Not here: what is verified or counted (`check`, `scrub`, `census`), threads.

use crate::anchor::AnchorJob;
use crate::anchor::Cleaning;
use crate::check::{CheckReport, Ticker};
use crate::checkpoint::can_reap;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::Anchor;
use crate::pool::{Pool, PoolOptions};
use crate::scrub::{ScrubPart, ScrubReport};
use crate::space::Remote;
use crate::types::{CheckpointName, Clock, SegmentId, VolumeId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Bound of an audit's own cache for map and directory pages, bytes.
const AUDIT_CACHE_BYTES: u64 = 32 << 20;

/// The accounts to audit; opened by the thread that does the work.
pub struct AuditJob {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    anchor: Vec<u8>,
    open_crcs: HashMap<SegmentId, Vec<u32>>,
    remote: Option<Remote>,
    double_releases: u64,
    uncounted: BTreeSet<VolumeId>,
}

/// A pool's state at one moment, for verifying.
pub struct Audit {
    pub(crate) pool: Pool,
    /// The volumes whose segments a census counts.
    pub(crate) uncounted: BTreeSet<VolumeId>,
}

impl Pool {
    /// Whether [`Pool::begin_audit`] can be called: no anchor and no cleaning is under way, none is
    /// held already, and no deleted state is half given back.
    pub fn can_audit(&self) -> bool {
        !self.anchors.running && !self.anchors.cleaning && !self.anchors.audited && !can_reap(&self.roots)
    }

    /// Begins an anchor and takes the accounts that it writes down. The cleaner rests until
    /// [`Pool::end_audit`].
    pub fn begin_audit(&mut self) -> Result<(AnchorJob, AuditJob)> {
        if !self.can_audit() {
            return Err(Error::new(ErrorKind::Busy, "the pool is being cleaned or audited: try again"));
        }
        let job = self.begin_anchor(Cleaning::Busy)?;
        self.anchors.audited = true;
        let audit = AuditJob {
            disk: self.disk.clone(),
            clock: self.clock.clone(),
            anchor: job.bytes().to_vec(),
            open_crcs: self.segments.open_crcs.clone(),
            remote: self.segments.remote.as_ref().map(Remote::same),
            double_releases: self.segments.table.double_releases,
            uncounted: self.uncounted(),
        };
        Ok((job, audit))
    }

    /// The audit is over: the cleaner may go on.
    pub fn end_audit(&mut self) {
        self.anchors.audited = false;
    }
}

impl AuditJob {
    /// Takes up the accounts; reads no more than the open map segment's header.
    pub fn open(self) -> Result<Audit> {
        let options = PoolOptions { map_cache: AUDIT_CACHE_BYTES, ..PoolOptions::default() };
        let (anchor, len) = (Anchor::decode(&self.anchor)?, self.anchor.len() as u64);
        let mut pool = Pool::from_anchor(self.disk, self.clock, options, anchor, len)?;
        pool.poisoned = Some("it is an audit's copy".to_owned());
        pool.segments.open_crcs = self.open_crcs;
        pool.segments.remote = self.remote;
        pool.segments.table.double_releases = self.double_releases;
        Ok(Audit { pool, uncounted: self.uncounted })
    }
}

impl Audit {
    /// Recomputes the accounts from the roots.
    pub fn check(&mut self, ticker: &mut Ticker<'_>) -> Result<CheckReport> {
        self.pool.check_with(ticker)
    }

    /// Reads and verifies every block that a volume holds with its checkpoints, that one checkpoint holds, or
    /// that the pool holds.
    pub fn scrub(
        &mut self,
        what: Option<(&str, Option<CheckpointName>)>,
        ticker: &mut Ticker<'_>,
    ) -> Result<ScrubReport> {
        let part = match what {
            None => ScrubPart::Pool,
            Some((volume, None)) => ScrubPart::Volume(self.pool.volume_id(volume)?),
            Some((volume, name)) => ScrubPart::State(self.pool.view(self.pool.volume_id(volume)?, name)?.root),
        };
        self.pool.scrub_with(part, ticker)
    }
}
