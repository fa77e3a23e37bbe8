//! A disk in memory that can lose power and fail on demand.
//!
//! Fault model: bytes written and not yet synced may be lost or kept sector by sector (512 bytes),
//! in any combination; names created, renamed or removed since the last `sync_names` may be lost or
//! kept one by one. Synced bytes and names are never lost. One injected failure hits the Nth call
//! that could fail on a real disk.

use crate::disk::{Disk, File};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
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
}

type FileRef = Arc<Mutex<Content>>;

#[derive(Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: Vec<usize>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, FileRef>,
    durable_names: BTreeMap<String, FileRef>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
}

impl State {
    /// Counts one call that can fail. `data` calls can run out of space.
    fn step(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.dead {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match self.fault {
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
        let survive = |(name, file): (String, FileRef)| {
            let content = locked(&file);
            let mut bytes = content.durable.clone();
            for &sector in &content.dirty {
                if keep() {
                    let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(content.now.len()));
                    if from < to {
                        bytes.resize(bytes.len().max(to), 0);
                        bytes[from..to].copy_from_slice(&content.now[from..to]);
                    }
                }
            }
            let survived = Content { now: bytes.clone(), durable: bytes, dirty: Vec::new() };
            (name, Arc::new(Mutex::new(survived)))
        };
        let names: BTreeMap<_, _> = names.into_iter().map(survive).collect();
        SimDisk(Arc::new(Mutex::new(State { durable_names: names.clone(), names, ..State::default() })))
    }

    /// The disk after the death of the process: everything written is there.
    pub fn after_kill(&self) -> SimDisk {
        let state = locked(&self.0);
        let copy = |(name, file): (&String, &FileRef)| (name.clone(), Arc::new(Mutex::new(locked(file).clone())));
        let names: BTreeMap<_, _> = state.names.iter().map(copy).collect();
        let durable_names =
            state.durable_names.keys().filter_map(|n| Some((n.clone(), names.get(n)?.clone()))).collect();
        SimDisk(Arc::new(Mutex::new(State { names, durable_names, ..State::default() })))
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
            change(&mut content.now);
            content.durable = content.now.clone();
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
        Ok(Arc::new(SimFile { content, state: self.0.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = locked(&self.0);
        state.step()?;
        let content = state.names.get(name).cloned().ok_or_else(|| missing(name))?;
        Ok(Arc::new(SimFile { content, state: self.0.clone() }))
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

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = locked(&self.0);
        state.step()?;
        state.names.remove(name).map(drop).ok_or_else(|| missing(name))
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
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        locked(&self.state).step()?;
        let content = locked(&self.content);
        let from = offset as usize;
        match content.now.get(from..from + buf.len()) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let outcome = locked(&self.state).step();
        let bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        // A write that fails, or during which power goes, may have changed its first half.
        let len = if outcome.is_ok() { bytes.len() } else { bytes.len() / 2 / SECTOR * SECTOR };
        let (from, to) = (offset as usize, offset as usize + len);
        let mut content = locked(&self.content);
        let end = content.now.len().max(to);
        content.now.resize(end, 0);
        content.now[from..to].copy_from_slice(&bytes[..len]);
        content.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        outcome
    }

    fn sync(&self) -> io::Result<()> {
        locked(&self.state).step()?;
        let mut content = locked(&self.content);
        let mut dirty = std::mem::take(&mut content.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let Content { now, durable, .. } = &mut *content;
        durable.resize(now.len(), 0);
        for sector in dirty {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(now.len()));
            durable[from..to].copy_from_slice(&now[from..to]);
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
