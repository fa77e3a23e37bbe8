//! The executable model: what a pool of volumes means, as plain bytes.

use super::sparse::Sparse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Volumes and checkpoints as whole copies (which share what they have in common).
#[derive(Clone, Default)]
pub struct ReferenceDisk {
    /// Head contents by volume name.
    pub heads: BTreeMap<String, Arc<Sparse>>,
    /// Checkpoint contents by volume and checkpoint name.
    pub checkpoints: BTreeMap<(String, String), Arc<Sparse>>,
}

impl ReferenceDisk {
    /// An empty volume.
    pub fn create(&mut self, volume: &str, size: usize) {
        let mut empty = Sparse::default();
        empty.resize(size);
        self.heads.insert(volume.to_owned(), Arc::new(empty));
    }

    /// Bytes change.
    pub fn write(&mut self, volume: &str, offset: usize, data: &[u8]) {
        if let Some(head) = self.heads.get_mut(volume) {
            Arc::make_mut(head).write(offset, data);
        }
    }

    /// Bytes become zero.
    pub fn zero(&mut self, volume: &str, offset: usize, len: usize) {
        if let Some(head) = self.heads.get_mut(volume) {
            Arc::make_mut(head).zero(offset, len);
        }
    }

    /// The head becomes longer, by zeros, or shorter.
    pub fn resize(&mut self, volume: &str, size: usize) {
        if let Some(head) = self.heads.get_mut(volume) {
            Arc::make_mut(head).resize(size);
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
