//! A disk that keeps every change in memory, over one that is only read: to look at a pool that cannot or
//! must not be changed.
//!
//! Invariants
//!   * nothing of the disk below is written, created, renamed or removed;
//!   * reads see the changes made through this disk, as on any other;
//!   * memory follows what is changed, not what is read, and no file is held open for its changes.

use super::{Disk, File};
use crate::limits::{BLOCK, BLOCK_U64};
use std::collections::btree_map::Entry;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Changes in memory over another disk.
pub struct Overlay {
    below: Arc<dyn Disk>,
    /// Every name that was opened or changed; `None` for one that is gone.
    names: Mutex<BTreeMap<String, Option<Arc<Patch>>>>,
}

/// What was changed of a file.
struct Patch {
    /// Its name on the disk below, if it is there.
    below: Option<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Length, once it is another than below.
    len: Option<u64>,
    /// Changed blocks by number.
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

struct PatchedFile {
    patch: Arc<Patch>,
    below: Option<Arc<dyn File>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Overlay {
    /// No changes yet.
    pub fn over(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::default() }
    }

    fn find(&self, name: &str) -> io::Result<Arc<Patch>> {
        match lock(&self.names).get(name) {
            Some(Some(patch)) => return Ok(patch.clone()),
            Some(None) => return Err(ErrorKind::NotFound.into()),
            None => {}
        }
        if !self.below.list(name)?.iter().any(|found| found == name) {
            return Err(ErrorKind::NotFound.into());
        }
        let patch = Arc::new(Patch { below: Some(name.to_owned()), state: Mutex::default() });
        lock(&self.names).insert(name.to_owned(), Some(patch.clone()));
        Ok(patch)
    }

    fn open_patch(&self, patch: Arc<Patch>) -> io::Result<Arc<dyn File>> {
        let below = patch.below.as_ref().map(|name| self.below.open(name)).transpose()?;
        Ok(Arc::new(PatchedFile { patch, below }))
    }
}

impl Disk for Overlay {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if self.find(name).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let patch = Arc::new(Patch { below: None, state: Mutex::new(State { len: Some(0), ..State::default() }) });
        lock(&self.names).insert(name.to_owned(), Some(patch.clone()));
        self.open_patch(patch)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.open_patch(self.find(name)?)
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let names = lock(&self.names);
        let mut all = self.below.list(prefix)?;
        all.retain(|name| !names.contains_key(name));
        all.extend(names.iter().filter(|(name, at)| at.is_some() && name.starts_with(prefix)).map(|(n, _)| n.clone()));
        Ok(all)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let patch = self.find(from)?;
        let mut names = lock(&self.names);
        names.insert(from.to_owned(), None);
        names.insert(to.to_owned(), Some(patch));
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        if self.find(to).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let patch = self.find(from)?;
        lock(&self.names).insert(to.to_owned(), Some(patch));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.find(name)?;
        lock(&self.names).insert(name.to_owned(), None);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl PatchedFile {
    fn below_len(&self) -> io::Result<u64> {
        self.below.as_ref().map_or(Ok(0), |file| file.len())
    }

    /// The block `number` as the disk below has it; zeros beyond its end.
    fn below_block(&self, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        let (mut block, at) = (Box::new([0; BLOCK]), number * BLOCK_U64);
        let there = self.below_len()?.saturating_sub(at).min(BLOCK_U64) as usize;
        if let Some(file) = self.below.as_ref().filter(|_| there > 0) {
            file.read_at(&mut block[..there], at)?;
        }
        Ok(block)
    }
}

impl File for PatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len()? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let state = lock(&self.patch.state);
        if let Some(file) = self.below.as_ref().filter(|_| state.blocks.is_empty() && state.len.is_none()) {
            return file.read_at(buf, offset);
        }
        let mut done = 0;
        while done < buf.len() {
            let (number, skip) = ((offset + done as u64) / BLOCK_U64, ((offset + done as u64) % BLOCK_U64) as usize);
            let step = (BLOCK - skip).min(buf.len() - done);
            let piece = &mut buf[done..done + step];
            match state.blocks.get(&number) {
                Some(block) => piece.copy_from_slice(&block[skip..skip + step]),
                None => piece.copy_from_slice(&self.below_block(number)?[skip..skip + step]),
            }
            done += step;
        }
        Ok(())
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        let len = self.len()?;
        let mut state = lock(&self.patch.state);
        for buf in bufs {
            let mut data: &[u8] = buf;
            while !data.is_empty() {
                let (number, skip) = (at / BLOCK_U64, (at % BLOCK_U64) as usize);
                let (now, later) = data.split_at((BLOCK - skip).min(data.len()));
                let block = match state.blocks.entry(number) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(self.below_block(number)?),
                };
                block[skip..skip + now.len()].copy_from_slice(now);
                at += now.len() as u64;
                data = later;
            }
        }
        state.len = Some(len.max(at));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let changed = lock(&self.patch.state).len;
        changed.map_or_else(|| self.below_len(), Ok)
    }

    fn start_writeback(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocated(&self) -> io::Result<u64> {
        self.below.as_ref().map_or(Ok(0), |file| file.allocated())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SimClock, SimDisk};
    use crate::{Pool, PoolOptions};

    fn bytes(disk: &Arc<dyn Disk>) -> BTreeMap<String, Vec<u8>> {
        let read = |name: String| {
            let file = disk.open(&name).unwrap();
            let mut all = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut all, 0).unwrap();
            (name, all)
        };
        disk.list("").unwrap().into_iter().map(read).collect()
    }

    #[test]
    fn a_pool_opened_over_a_disk_reads_and_changes_as_ever_and_leaves_the_disk_alone() {
        let (below, clock) = (SimDisk::new().handle(), SimClock::default());
        Pool::create(&below, &clock, [7; 16]).unwrap();
        let (mut pool, _) = Pool::open(below.clone(), Arc::new(clock), PoolOptions::default()).unwrap();
        let (id, job) = pool.create_volume("disk", 16 << 20).unwrap();
        pool.finish(job).unwrap();
        pool.write(id, 4096, &[7; 100_000]).unwrap();
        pool.flush(id).unwrap();
        drop(pool);
        let before = bytes(&below);
        let over: Arc<dyn Disk> = Arc::new(Overlay::over(below.clone()));
        for round in 0..3u8 {
            let (mut pool, _) =
                Pool::open(over.clone(), Arc::new(SimClock::default()), PoolOptions::default()).unwrap();
            let (view, mut data) = (pool.view(id, None).unwrap(), vec![0; 100_000]);
            pool.read(view, 4096, &mut data).unwrap();
            assert_eq!(data, [7; 100_000]);
            assert_eq!(pool.checkpoints(id).unwrap().len(), usize::from(round), "its own changes stay in it");
            let (_, job) = pool.create_checkpoint(id, "").unwrap();
            pool.finish(job).unwrap();
            pool.write(id, 8 << 20, &[round; 5000]).unwrap();
            pool.maintain().unwrap();
            assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
        }
        assert!(bytes(&below) == before, "the disk below is as it was");
    }
}
