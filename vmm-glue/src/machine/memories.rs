//! Memory that was saved beside checkpoints: a file for each, in the machine's folder.
//!
//! Invariant: a checkpoint that was deleted takes its memory with it, and a later one of the same name does not find it.

use super::{Machine, Machines};
use crate::{Kind, Result, Store};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Names of the files begin so.
const MEMORY: &str = "memory-";

fn place(folder: &Path, machine: &str, store: &dyn Store, id: &str) -> Result<PathBuf> {
    Ok(folder.join(format!("{MEMORY}{id}-{}", store.identity(machine, id)?)))
}

/// All that there is: of which checkpoint, the file, and whether there still is that checkpoint.
fn all(folder: &Path, machine: &str, store: &dyn Store) -> Vec<(String, PathBuf, bool)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let found = names.filter_map(|name| {
        let (id, _) = name.strip_prefix(MEMORY)?.rsplit_once('-')?;
        let path = folder.join(&name);
        let is_current = match place(folder, machine, store, id) {
            Ok(current) => current == path,
            Err(e) => e.kind != Kind::NotFound,
        };
        Some((id.to_owned(), path, is_current))
    });
    found.collect()
}

impl Machine {
    /// Where the memory is that was saved beside a checkpoint, if any was.
    ///
    /// # Errors
    /// There is no such checkpoint.
    pub(super) fn memory(&self, store: &dyn Store, id: &str) -> Result<PathBuf> {
        place(&self.folder, self.name(), store, id)
    }

    /// Removes the memory of checkpoints that there are no more.
    pub(super) fn forget_deleted(&self, store: &dyn Store) {
        for (_, path, _) in all(&self.folder, self.name(), store).iter().filter(|(_, _, is_current)| !is_current) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Machines {
    /// The checkpoints of a machine that have its memory beside its disk. Whoever changes it meanwhile is not waited for.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn with_memory(&self, store: &dyn Store, name: &str) -> Result<HashSet<String>> {
        let found = all(&self.folder(name)?, name, store);
        Ok(found.into_iter().filter_map(|(id, _, is_current)| is_current.then_some(id)).collect())
    }
}
