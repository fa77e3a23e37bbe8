//! The executable model: what a pool of volumes means, as plain byte vectors.

use std::collections::BTreeMap;

/// Volumes and checkpoints as whole copies. Block content only; sizes are fixed at creation.
#[derive(Clone, Default)]
pub struct ReferenceDisk {
    /// Head contents by volume name.
    pub heads: BTreeMap<String, Vec<u8>>,
    /// Checkpoint contents by volume and checkpoint name.
    pub checkpoints: BTreeMap<(String, String), Vec<u8>>,
}

impl ReferenceDisk {
    /// An empty volume.
    pub fn create(&mut self, volume: &str, size: usize) {
        self.heads.insert(volume.to_owned(), vec![0; size]);
    }

    /// Bytes change.
    pub fn write(&mut self, volume: &str, offset: usize, data: &[u8]) {
        if let Some(head) = self.heads.get_mut(volume) {
            head[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    /// Bytes become zero.
    pub fn zero(&mut self, volume: &str, offset: usize, len: usize) {
        if let Some(head) = self.heads.get_mut(volume) {
            head[offset..offset + len].fill(0);
        }
    }

    /// The head gets a name.
    pub fn checkpoint(&mut self, volume: &str, name: &str) {
        if let Some(head) = self.heads.get(volume).cloned() {
            self.checkpoints.insert((volume.to_owned(), name.to_owned()), head);
        }
    }

    /// The head becomes a checkpoint again; what it was is kept under `undo`.
    pub fn restore(&mut self, volume: &str, name: &str, undo: &str) {
        self.checkpoint(volume, undo);
        if let Some(state) = self.checkpoints.get(&(volume.to_owned(), name.to_owned())).cloned() {
            self.heads.insert(volume.to_owned(), state);
        }
    }

    /// A new volume starts as a head or a checkpoint.
    pub fn fork(&mut self, volume: &str, from: Option<&str>, new: &str) {
        let state = match from {
            None => self.heads.get(volume).cloned(),
            Some(name) => self.checkpoints.get(&(volume.to_owned(), name.to_owned())).cloned(),
        };
        if let Some(state) = state {
            self.heads.insert(new.to_owned(), state);
        }
    }

    /// A checkpoint goes.
    pub fn delete_checkpoint(&mut self, volume: &str, name: &str) {
        self.checkpoints.remove(&(volume.to_owned(), name.to_owned()));
    }

    /// A volume and its checkpoints go.
    pub fn delete(&mut self, volume: &str) {
        self.heads.remove(volume);
        self.checkpoints.retain(|(owner, _), _| owner != volume);
    }
}
