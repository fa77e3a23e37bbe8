//! Comparing a pool with the model: after each reopening, after failures, and at the end.

use crate::history::{History, Step, Stop, Structure, Volume};
use crate::model::{Past, Shown};
use blockstore::testing::{Fault, Sparse};
use blockstore::{CheckpointName, ErrorKind, Pool, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Runs of data in one answer; more are asked for again.
const EXTENTS_MAX: usize = 512;

fn bytes(pool: &mut Pool, id: VolumeId, name: Option<CheckpointName>) -> blockstore::Result<Arc<Sparse>> {
    let view = pool.view(id, name)?;
    let size = pool.view_size(view)?;
    let mut out = Sparse::default();
    out.resize(size as usize);
    let mut at = 0;
    while at < size {
        for extent in pool.extents(view, at, size - at, EXTENTS_MAX)? {
            // Holes are read, too, where that is cheap: both must say the same.
            if !extent.hole || extent.len <= 1 << 18 {
                let mut buf = vec![0; extent.len as usize];
                pool.read(view, at, &mut buf)?;
                out.write(at as usize, &buf);
            }
            at += extent.len;
        }
    }
    Ok(Arc::new(out))
}

/// Everything that a volume shows.
fn shown(pool: &mut Pool, id: VolumeId) -> blockstore::Result<Shown> {
    let mut checkpoints = BTreeMap::new();
    for info in pool.checkpoints(id)? {
        checkpoints.insert(info.name.to_string(), bytes(pool, id, Some(info.name))?);
    }
    Ok(Shown { head: bytes(pool, id, None)?, checkpoints })
}

impl History {
    fn read_volume(&mut self, name: &str, id: VolumeId) -> Result<Shown, String> {
        let found = shown(self.pool(), id).map_err(|e| format!("reading {name}: {e}"))?;
        self.report.states += 1 + found.checkpoints.len() as u64;
        Ok(found)
    }

    /// After a failure that did not stop the pool: which of before and after is it?
    pub fn settle(&mut self, name: &str) -> Step {
        let Some(id) = self.volumes.get(name).map(|v| v.id) else { return Ok(()) };
        // A full disk refuses without a failure of its own: one still to come is not for these reads (seed 50244).
        self.disk.inject(0, Fault::Io);
        let found = self.read_volume(name, id).map_err(Stop::Violation)?;
        let Some(volume) = self.volumes.get_mut(name) else { return Ok(()) };
        let settled = volume.past.settle(&found);
        settled.map_err(|why| Stop::Violation(format!("after a failed operation {name} is {why}")))
    }

    /// Promise P7: after a failed sync nothing is accepted, and reading goes on.
    pub fn refuses_changes(&mut self) -> Step {
        let known = self.pool().volumes();
        let found = self.volumes.iter().find(|(_, v)| known.contains(&v.id));
        let Some((name, id)) = found.map(|(name, v)| (name.clone(), v.id)) else { return Ok(()) };
        match self.pool().write(id, 0, &[1; 4096]) {
            Err(e) if e.kind() == ErrorKind::Closed => {}
            other => return Err(Stop::Violation(format!("a closed pool answers a write with {other:?}"))),
        }
        // The promise is about a disk that works again: a failure still to come is not for this read.
        self.disk.inject(0, Fault::Io);
        let view = self.pool().view(id, None);
        let read = view.and_then(|view| self.pool().read(view, 0, &mut [0; 4096]));
        read.map_err(|e| Stop::Violation(format!("a closed pool does not read {name}: {e}")))
    }

    /// A creation, deletion or fork was not answered: takes up what became of it.
    pub fn settle_structure(&mut self) -> Step {
        let Some(structure) = self.in_flight.take() else { return Ok(()) };
        self.take_up(structure).map_err(Stop::Violation)
    }

    fn take_up(&mut self, structure: Structure) -> Result<(), String> {
        match structure {
            Structure::Delete { name } => {
                if self.pool().volume_id(&name).is_err() {
                    self.volumes.remove(&name);
                }
            }
            Structure::Create { name, size } => {
                let Ok(id) = self.pool().volume_id(&name) else { return Ok(()) };
                let found = self.read_volume(&name, id)?;
                let mut empty = Sparse::default();
                empty.resize(size as usize);
                if *found.head != empty || !found.checkpoints.is_empty() {
                    return Err(format!("the new volume {name} is not empty"));
                }
                self.volumes.insert(name, Volume { id, past: Past::new(&found) });
            }
            Structure::Fork { origin, name, from } => {
                let Ok(id) = self.pool().volume_id(&name) else { return Ok(()) };
                let found = self.read_volume(&name, id)?;
                let want = self.volumes.get(&origin).map(|volume| Shown::of(volume.past.now()));
                let want = want.and_then(|shown| match &from {
                    None => Some(shown.head),
                    Some(from) => shown.checkpoints.get(from).cloned(),
                });
                if want.is_none_or(|want| found.head != want) || !found.checkpoints.is_empty() {
                    return Err(format!("the fork {name} differs from {origin}@{from:?}"));
                }
                self.volumes.insert(name, Volume { id, past: Past::new(&found) });
            }
        }
        Ok(())
    }

    /// After a reopening everything must be explained by the model, which then begins anew.
    pub fn judge_everything(&mut self, power_lost: bool) -> Result<(), String> {
        if let Some(structure) = self.in_flight.take() {
            self.take_up(structure)?;
        }
        let names: Vec<(String, VolumeId)> = self.volumes.iter().map(|(name, v)| (name.clone(), v.id)).collect();
        for (name, id) in &names {
            let found = match self.pool().volume_id(name) {
                Ok(found) if found == *id => self.read_volume(name, found)?,
                other => return Err(format!("volume {name} was number {} and is {other:?}", id.0)),
            };
            let Some(volume) = self.volumes.get_mut(name) else { continue };
            let allowed = volume.past.allows(&found, power_lost);
            allowed.map_err(|why| format!("volume {name} is {why} (power lost: {power_lost})"))?;
            volume.past.restart(&found);
        }
        let known: BTreeSet<VolumeId> = self.volumes.values().map(|v| v.id).collect();
        if let Some(extra) = self.pool().volumes().into_iter().find(|id| !known.contains(id)) {
            return Err(format!("volume number {} was never made or is deleted", extra.0));
        }
        self.check()
    }

    /// The checker finds nothing wrong. A failure that strikes while it runs is rightly reported as a
    /// problem, and says nothing about the pool.
    pub fn check(&mut self) -> Result<(), String> {
        let armed = !self.disk.fault_fired();
        let found = self.checked();
        if armed && self.disk.fault_fired() {
            return Ok(());
        }
        found
    }

    fn checked(&mut self) -> Result<(), String> {
        let pool = self.pool();
        while pool.reap(64).map_err(|e| format!("reaping: {e}"))? {}
        let report = pool.check().map_err(|e| format!("checking: {e}"))?;
        let waiting = pool.stats().reaping > 0;
        let wrong = report.problems.into_iter().find(|what| !waiting || !what.contains("accounted live"));
        wrong.map_or(Ok(()), |what| Err(format!("the checker says: {what}")))
    }

    /// With all work done nothing is leaked; with everything deleted nothing is left.
    pub fn quiesce(&mut self) -> Result<(), String> {
        self.disk.inject(0, Fault::Io);
        self.maintain()?;
        self.check()?;
        self.no_files_left_over()?;
        let live: Vec<VolumeId> = self.volumes.values().map(|v| v.id).collect();
        for id in live {
            let pool = self.pool();
            let deleted = pool.delete_volume(id).and_then(|job| pool.finish(job));
            deleted.map_err(|e| format!("deleting a volume: {e}"))?;
        }
        self.volumes.clear();
        self.maintain()?;
        self.check()?;
        self.no_files_left_over()?;
        let stats = self.pool().stats();
        self.report.leaked += stats.live / 4096;
        if stats.live != 0 || stats.reaping != 0 || stats.segments > 8 {
            return Err(format!("everything is deleted, and this stays: {stats:?}"));
        }
        Ok(())
    }

    fn maintain(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            self.pool().maintain().map_err(|e| format!("maintenance: {e}"))?;
        }
        Ok(())
    }

    fn no_files_left_over(&mut self) -> Result<(), String> {
        let known: BTreeSet<String> = self.pool().known_segments().into_iter().collect();
        let files: BTreeSet<String> = self.disk.names().into_iter().filter(|n| n.starts_with("seg-")).collect();
        if let Some(extra) = files.difference(&known).next() {
            return Err(format!("nobody knows the file {extra}"));
        }
        if let Some(missing) = known.difference(&files).next() {
            return Err(format!("the file {missing} is gone"));
        }
        let temporary = self.disk.names().into_iter().find(|name| name.starts_with("tmp-"));
        temporary.map_or(Ok(()), |name| Err(format!("{name} is left over")))
    }
}
