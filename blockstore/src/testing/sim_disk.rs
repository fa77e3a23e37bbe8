//! A disk in memory that can lose power and fail on demand.
//!
//! Fault model: bytes written and not yet synced may be lost or kept sector by sector (512 bytes),
//! in any combination, and of a sector written several times since the last sync any version may have
//! reached the medium; names created, renamed or removed since the last `sync_names` may be lost or
//! kept one by one. Synced bytes and names are never lost; after a failed sync, bytes can be readable and
//! never become durable. One injected failure hits the Nth call
//! that could fail on a real disk.

use super::sparse::Sparse;
use crate::disk::{Disk, DiskSpace, File};
use std::collections::btree_map::{BTreeMap, Entry};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// A failure to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with EIO; a write may have changed half of its sectors.
    Io,
    /// The call fails with ENOSPC.
    NoSpace,
    /// Everything from this call on fails: the process is dead, the power is gone.
    PowerLoss,
    /// A write says that it succeeded and changes nothing. Other calls are as always.
    LostWrite,
    /// The first sync from this call on fails and forgets: what it was to write can still be read, the
    /// medium does not have it, and no later sync writes it unless it is written again. Other calls are
    /// as always.
    FailedSync,
}

type FileRef = Arc<Mutex<Content>>;

#[derive(Default, Clone)]
struct Content {
    now: Sparse,
    durable: Sparse,
    /// Sectors written since the last sync, with what they held between writes.
    dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

/// Versions remembered of a sector that is written again and again without a sync.
const VERSIONS_MAX: usize = 4;

impl Content {
    fn write(&mut self, from: usize, bytes: &[u8]) {
        for sector in from / SECTOR..(from + bytes.len()).div_ceil(SECTOR) {
            match self.dirty.entry(sector) {
                Entry::Vacant(entry) => drop(entry.insert(Vec::new())),
                Entry::Occupied(mut entry) if entry.get().len() < VERSIONS_MAX => {
                    entry.get_mut().push(sector_of(&self.now, sector));
                }
                Entry::Occupied(_) => {}
            }
        }
        self.now.write(from, bytes);
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len());
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let from = sector * SECTOR;
            let len = SECTOR.min(self.now.len().saturating_sub(from));
            self.durable.write(from, &sector_of(&self.now, sector)[..len]);
        }
    }

    /// What the medium holds after a power loss; `keep` decides sector by sector.
    fn survive(&self, keep: &mut dyn FnMut() -> bool) -> Content {
        let mut medium = self.durable.clone();
        for (&sector, versions) in &self.dirty {
            if !keep() {
                continue;
            }
            let older = versions.iter().find(|_| keep());
            let bytes = older.copied().unwrap_or_else(|| sector_of(&self.now, sector));
            let from = sector * SECTOR;
            medium.write(from, &bytes[..SECTOR.min(self.now.len().saturating_sub(from))]);
        }
        Content { now: medium.clone(), durable: medium, dirty: BTreeMap::new() }
    }
}

/// One sector, with zeros behind the end of the file.
fn sector_of(bytes: &Sparse, sector: usize) -> [u8; SECTOR] {
    let (from, mut out) = (sector * SECTOR, [0; SECTOR]);
    let len = SECTOR.min(bytes.len().saturating_sub(from));
    bytes.read(&mut out[..len], from);
    out
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, FileRef>,
    durable_names: BTreeMap<String, FileRef>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
    /// Syncs say that they succeeded and do nothing.
    lying: bool,
    /// What the disk says that it has in all, bytes; writes beyond it succeed all the same.
    total: Option<u64>,
}

impl State {
    /// Counts one call that can fail. `data` calls can run out of space.
    fn step(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.dead {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match self.fault {
            Some((_, Fault::FailedSync)) => Ok(()),
            Some((at, Fault::LostWrite)) if at == self.calls => Ok(()),
            Some((at, fault)) if at == self.calls => {
                if fault == Fault::PowerLoss {
                    self.dead = true;
                } else {
                    self.fault = None;
                }
                let code = if fault == Fault::NoSpace { libc::ENOSPC } else { libc::EIO };
                Err(io::Error::from_raw_os_error(code))
            }
            _ => Ok(()),
        }
    }

    /// Whether the call just counted is a write to be lost.
    fn take_lost_write(&mut self) -> bool {
        let lost = self.fault == Some((self.calls, Fault::LostWrite));
        if lost {
            self.fault = None;
        }
        lost
    }

    /// Whether the call just counted is a sync to fail.
    fn take_failed_sync(&mut self) -> bool {
        let failed = matches!(self.fault, Some((at, Fault::FailedSync)) if at <= self.calls);
        if failed {
            self.fault = None;
        }
        failed
    }
}

/// The disk; clones share it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls so far that could have failed.
    pub fn calls(&self) -> u64 {
        locked(&self.0).calls
    }

    /// Injects `fault` at the call number `at` (counted from the start, 1-based).
    pub fn inject(&self, at: u64, fault: Fault) {
        locked(&self.0).fault = Some((at, fault));
    }

    /// The power is gone: every call fails from now on.
    pub fn is_dead(&self) -> bool {
        locked(&self.0).dead
    }

    /// From now on syncs say that they succeeded and do nothing: a defect for harnesses to find.
    pub fn lie_about_syncs(&self) {
        locked(&self.0).lying = true;
    }

    /// From now on the disk says that it has so many bytes.
    pub fn set_total(&self, bytes: u64) {
        locked(&self.0).total = Some(bytes);
    }

    /// No fault is waiting any more.
    pub fn fault_fired(&self) -> bool {
        let state = locked(&self.0);
        state.dead || state.fault.is_none()
    }

    /// The disk after a power loss now. `keep(sector)` decides for each unsynced sector whether it
    /// reached the medium; names are decided by it, too.
    pub fn after_power_loss(&self, keep: &mut dyn FnMut() -> bool) -> SimDisk {
        let state = locked(&self.0);
        let mut names = state.durable_names.clone();
        for (name, file) in &state.names {
            let durable = state.durable_names.get(name).is_some_and(|old| Arc::ptr_eq(old, file));
            if !durable && keep() {
                names.insert(name.clone(), file.clone());
            }
        }
        for name in state.durable_names.keys() {
            if !state.names.contains_key(name) && keep() {
                names.remove(name);
            }
        }
        let mut survive = |(name, file): (String, FileRef)| (name, Arc::new(Mutex::new(locked(&file).survive(keep))));
        let names: BTreeMap<_, _> = names.into_iter().map(&mut survive).collect();
        SimDisk(Arc::new(Mutex::new(State {
            durable_names: names.clone(),
            names,
            lying: state.lying,
            ..State::default()
        })))
    }

    /// The disk after the death of the process: everything written is there.
    pub fn after_kill(&self) -> SimDisk {
        let state = locked(&self.0);
        let copy = |(name, file): (&String, &FileRef)| (name.clone(), Arc::new(Mutex::new(locked(file).clone())));
        let names: BTreeMap<_, _> = state.names.iter().map(copy).collect();
        let durable_names =
            state.durable_names.keys().filter_map(|n| Some((n.clone(), names.get(n)?.clone()))).collect();
        SimDisk(Arc::new(Mutex::new(State { names, durable_names, lying: state.lying, ..State::default() })))
    }

    /// All file names.
    pub fn names(&self) -> Vec<String> {
        locked(&self.0).names.keys().cloned().collect()
    }

    /// A file's bytes, for damaging them.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let file = locked(&self.0).names.get(name).cloned();
        if let Some(file) = file {
            let mut content = locked(&file);
            let mut bytes = content.now.to_vec();
            change(&mut bytes);
            let now = Sparse::from_slice(&bytes);
            *content = Content { durable: now.clone(), now, dirty: BTreeMap::new() };
        }
    }

    /// A file's bytes from `offset`; zeros behind its end.
    pub fn peek(&self, name: &str, offset: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        if let Some(file) = locked(&self.0).names.get(name).cloned() {
            let content = locked(&file);
            let there = len.min(content.now.len().saturating_sub(offset));
            content.now.read(&mut out[..there], offset);
        }
        out
    }

    /// Changes a file's bytes on the medium, behind the store's back.
    pub fn poke(&self, name: &str, offset: usize, bytes: &[u8]) {
        if let Some(file) = locked(&self.0).names.get(name).cloned() {
            let mut content = locked(&file);
            content.now.write(offset, bytes);
            content.durable.write(offset, bytes);
        }
    }

    /// Cuts a file's end off.
    pub fn truncate(&self, name: &str, len: usize) {
        if let Some(file) = locked(&self.0).names.get(name).cloned() {
            let mut content = locked(&file);
            content.now.resize(len);
            content.durable.resize(len);
            content.dirty.split_off(&len.div_ceil(SECTOR));
        }
    }

    /// The disk as the store sees it.
    pub fn handle(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = locked(&self.0);
        state.step()?;
        if state.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, name.to_owned()));
        }
        let content = FileRef::default();
        state.names.insert(name.to_owned(), content.clone());
        Ok(Arc::new(SimFile { content, state: self.0.clone(), sync_failed: AtomicBool::new(false) }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = locked(&self.0);
        state.step()?;
        let content = state.names.get(name).cloned().ok_or_else(|| missing(name))?;
        Ok(Arc::new(SimFile { content, state: self.0.clone(), sync_failed: AtomicBool::new(false) }))
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut state = locked(&self.0);
        state.step()?;
        Ok(state.names.keys().filter(|name| name.starts_with(prefix)).cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = locked(&self.0);
        state.step()?;
        let file = state.names.remove(from).ok_or_else(|| missing(from))?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = locked(&self.0);
        state.step()?;
        let file = state.names.get(from).cloned().ok_or_else(|| missing(from))?;
        match state.names.entry(to.to_owned()) {
            Entry::Occupied(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Entry::Vacant(entry) => {
                entry.insert(file);
                Ok(())
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = locked(&self.0);
        state.step()?;
        state.names.remove(name).map(drop).ok_or_else(|| missing(name))
    }

    fn space(&self) -> io::Result<Option<DiskSpace>> {
        let state = locked(&self.0);
        let used: u64 = state.names.values().map(|file| locked(file).now.len() as u64).sum();
        Ok(state.total.map(|total| DiskSpace { free: total.saturating_sub(used), total }))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = locked(&self.0);
        state.step()?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}

struct SimFile {
    content: FileRef,
    state: Arc<Mutex<State>>,
    sync_failed: AtomicBool,
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        locked(&self.state).step()?;
        if !locked(&self.content).now.read(buf, offset as usize) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let (outcome, lost) = {
            let mut state = locked(&self.state);
            (state.step(), state.take_lost_write())
        };
        let bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        // A write that fails, or during which power goes, may have changed its first half.
        let len = if outcome.is_ok() { bytes.len() } else { bytes.len() / 2 / SECTOR * SECTOR };
        if !lost {
            locked(&self.content).write(offset as usize, &bytes[..len]);
        }
        outcome
    }

    fn sync(&self) -> io::Result<()> {
        let (lying, failed) = {
            let mut state = locked(&self.state);
            state.step()?;
            (state.lying, state.take_failed_sync())
        };
        if failed {
            locked(&self.content).dirty.clear();
        }
        if self.sync_failed.fetch_or(failed, Ordering::Relaxed) || failed {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if !lying {
            locked(&self.content).sync();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        locked(&self.state).step()?;
        Ok(locked(&self.content).now.len() as u64)
    }

    fn start_writeback(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        locked(&self.state).step()
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(disk: &SimDisk) -> Vec<u8> {
        let mut out = Vec::new();
        disk.edit("file", |bytes| out.clone_from(bytes));
        out
    }

    /// The next sync copied sectors from behind the new end, and panicked.
    #[test]
    fn a_file_that_was_made_shorter_can_be_synced() {
        let disk = SimDisk::new();
        let file = disk.create("file").unwrap();
        file.write_at(&[IoSlice::new(&[1; 4 * SECTOR])], 0).unwrap();
        disk.edit("file", |bytes| bytes.truncate(SECTOR));
        file.sync().unwrap();
        disk.sync_names().unwrap();
        assert_eq!(bytes(&disk.after_power_loss(&mut || false)), [1; SECTOR]);
    }

    #[test]
    fn a_sector_written_twice_may_hold_either_after_power_loss() {
        let disk = SimDisk::new();
        let file = disk.create("file").unwrap();
        disk.sync_names().unwrap();
        file.write_at(&[IoSlice::new(&[1; SECTOR])], 0).unwrap();
        file.write_at(&[IoSlice::new(&[2; SECTOR])], 0).unwrap();
        let fates = |fates: &[bool]| {
            let mut fates = fates.iter().copied();
            bytes(&disk.after_power_loss(&mut || fates.next().unwrap_or_default()))
        };
        assert_eq!(fates(&[false]), []);
        assert_eq!(fates(&[true, true]), [1; SECTOR]);
        assert_eq!(fates(&[true, false]), [2; SECTOR]);
    }
}
