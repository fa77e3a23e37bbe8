//! Which checkpoints there are, and what each holds.
//!
//! Invariants
//!   * what there is is asked of the pool at most once in [`LOOKED`], and never while somebody else's answer is fresh;
//!   * a checkpoint that was seen and is no more stays gone;
//!   * a disk is opened when it is first looked into, and kept.

use super::attributes::LOOKED;
use super::nodes::STATES_MAX;
use super::{Checkpoint, Pool, SHOWN};
use crate::contents::{open, Contents};
use crate::source::ReadAt;
use fuser::Errno;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A checkpoint.
pub struct State {
    pub number: u32,
    pub volume: String,
    pub id: String,
    pub created: u64,
    pub info: String,
    gone: AtomicBool,
    pool: Arc<dyn Pool>,
    held: Mutex<Held>,
}

/// What was opened of a checkpoint.
#[derive(Default)]
struct Held {
    image: Option<Arc<dyn ReadAt>>,
    contents: Option<Arc<Contents>>,
    data_bytes: Option<u64>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(e: &io::Error) -> Errno {
    if e.kind() == io::ErrorKind::NotFound {
        Errno::ESTALE
    } else {
        Errno::EIO
    }
}

impl State {
    /// The disk's bytes.
    pub fn image(&self) -> Result<Arc<dyn ReadAt>, Errno> {
        let mut held = locked(&self.held);
        if let Some(image) = &held.image {
            return Ok(image.clone());
        }
        let image = self.pool.image(&self.volume, &self.id).map_err(|e| failed(&e))?;
        held.image = Some(image.clone());
        Ok(image)
    }

    /// Bytes of the disk that are no holes.
    pub fn data_bytes(&self) -> Result<u64, Errno> {
        let image = self.image()?;
        if let Some(known) = locked(&self.held).data_bytes {
            return Ok(known);
        }
        let found = image.data_bytes().map_err(|e| failed(&e))?;
        locked(&self.held).data_bytes = Some(found);
        Ok(found)
    }

    /// What is on the disk.
    pub fn contents(&self) -> Result<Arc<Contents>, Errno> {
        let image = self.image()?;
        let mut held = locked(&self.held);
        if let Some(contents) = &held.contents {
            return Ok(contents.clone());
        }
        let contents = Arc::new(open(image).map_err(|e| failed(&e))?);
        held.contents = Some(contents.clone());
        Ok(contents)
    }
}

type Listed<T> = Option<(Instant, T)>;

#[derive(Default)]
struct Known {
    volumes: Listed<Vec<String>>,
    lists: HashMap<String, (Instant, Vec<Arc<State>>)>,
    all: Vec<Arc<State>>,
}

/// All checkpoints that were seen.
pub struct States {
    pool: Arc<dyn Pool>,
    known: Mutex<Known>,
}

impl States {
    pub fn new(pool: Box<dyn Pool>) -> Self {
        Self { pool: pool.into(), known: Mutex::default() }
    }

    /// By number.
    pub fn get(&self, number: u32) -> Option<Arc<State>> {
        locked(&self.known).all.get(number as usize).cloned()
    }

    /// Names of the volumes.
    pub fn volumes(&self) -> Result<Vec<String>, Errno> {
        if let Some((_, volumes)) = locked(&self.known).volumes.as_ref().filter(|(since, _)| since.elapsed() < LOOKED) {
            return Ok(volumes.clone());
        }
        let volumes = self.pool.volumes().map_err(|e| failed(&e))?;
        locked(&self.known).volumes = Some((Instant::now(), volumes.clone()));
        Ok(volumes)
    }

    /// A volume's checkpoints, oldest first.
    pub fn all(&self, volume: &str) -> Result<Vec<Arc<State>>, Errno> {
        if let Some((_, list)) = locked(&self.known).lists.get(volume).filter(|(since, _)| since.elapsed() < LOOKED) {
            return Ok(list.clone());
        }
        match self.pool.checkpoints(volume) {
            Ok(found) => Ok(self.note(volume, found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.note(volume, Vec::new());
                Err(Errno::ESTALE)
            }
            Err(_) => Err(Errno::EIO),
        }
    }

    /// Takes note of what there is; the rest is gone.
    fn note(&self, volume: &str, found: Vec<Checkpoint>) -> Vec<Arc<State>> {
        let mut known = locked(&self.known);
        let before = known.lists.remove(volume).map_or_else(Vec::new, |(_, list)| list);
        let mut list = Vec::new();
        for checkpoint in found {
            let same = |state: &&Arc<State>| state.id == checkpoint.id && state.created == checkpoint.created;
            if let Some(state) = before.iter().find(same) {
                list.push(state.clone());
            } else if known.all.len() < STATES_MAX {
                let Checkpoint { id, created, info } = checkpoint;
                let (number, volume) = (known.all.len() as u32, volume.to_owned());
                let (gone, pool, held) = (AtomicBool::new(false), self.pool.clone(), Mutex::default());
                let state = Arc::new(State { number, volume, id, created, info, gone, pool, held });
                known.all.push(state.clone());
                list.push(state);
            }
        }
        for state in before.iter().filter(|state| list.iter().all(|other| other.number != state.number)) {
            state.gone.store(true, Ordering::Relaxed);
            *locked(&state.held) = Held::default();
        }
        known.lists.insert(volume.to_owned(), (Instant::now(), list.clone()));
        list
    }

    /// Those that have a folder of their own: the last that were asked for.
    pub fn shown(&self, volume: &str) -> Result<Vec<Arc<State>>, Errno> {
        let mut all = self.all(volume)?;
        all.retain(|state| !state.id.starts_with("auto-"));
        let first = all.len().saturating_sub(SHOWN);
        Ok(all.split_off(first))
    }

    /// Whether a checkpoint is there still.
    pub fn check(&self, state: &State) -> Result<(), Errno> {
        // Asked at each request: what is fresh is not copied. A pool that does not answer says nothing of it.
        let asked = locked(&self.known).lists.get(&state.volume).map(|(since, _)| *since);
        if asked.is_none_or(|since| since.elapsed() >= LOOKED) {
            let _ = self.all(&state.volume);
        }
        match state.gone.load(Ordering::Relaxed) {
            true => Err(Errno::ESTALE),
            false => Ok(()),
        }
    }

    /// Lets go of what is not used, so that nobody else has to wait for it.
    pub fn look_around(&self) {
        let all = locked(&self.known).all.clone();
        for state in all {
            let image = state.held.try_lock().ok().and_then(|held| held.image.clone());
            if let Some(image) = image {
                image.rest();
            }
        }
    }
}
