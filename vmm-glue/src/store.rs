//! What machines need of a pool, behind a trait: the command reaches a daemon through it, a test anything.

use crate::{Disk, Result, Transport};
use std::path::Path;

/// A pool with volumes that can be attached.
pub trait Store {
    /// Makes the volume `name` as `source`, a volume or VOL@ID.
    ///
    /// # Errors
    /// There is no source, or `name` is taken.
    fn fork(&self, source: &str, name: &str) -> Result<()>;

    /// Lets a volume have `size` bytes; it is not made smaller.
    ///
    /// # Errors
    /// The size cannot be, or is smaller.
    fn grow(&self, volume: &str, size: u64) -> Result<()>;

    /// Names the present state; returns the name.
    ///
    /// # Errors
    /// There is no such volume, or the pool failed.
    fn checkpoint(&self, volume: &str, comment: &str) -> Result<String>;

    /// What tells a checkpoint from every other one that has ever had its name: a word that can be part of a file's name.
    ///
    /// # Errors
    /// There is no such checkpoint.
    fn identity(&self, volume: &str, id: &str) -> Result<String>;

    /// Makes the volume what it was; returns the name of what it was until now.
    ///
    /// # Errors
    /// There is no such checkpoint.
    fn restore(&self, volume: &str, id: &str) -> Result<String>;

    /// Whether the volume has other contents than its checkpoint.
    ///
    /// # Errors
    /// There is no such checkpoint.
    fn differs(&self, volume: &str, id: &str) -> Result<bool>;

    /// Deletes a checkpoint.
    ///
    /// # Errors
    /// There is no such checkpoint.
    fn delete_checkpoint(&self, volume: &str, id: &str) -> Result<()>;

    /// Deletes a volume with its checkpoints.
    ///
    /// # Errors
    /// There is no such volume.
    fn delete(&self, volume: &str) -> Result<()>;

    /// Whether there is a volume of this name.
    ///
    /// # Errors
    /// The pool does not answer.
    fn has(&self, volume: &str) -> Result<bool>;

    /// Makes the volume `name` from a raw image file; returns its size, bytes.
    ///
    /// # Errors
    /// The file cannot be read or is of another format, or `name` is taken.
    fn import(&self, file: &Path, name: &str) -> Result<u64>;

    /// Where a VMM reaches a volume by `transport`. Of NBD that is known before there is the volume.
    ///
    /// # Errors
    /// The daemon does not serve it so to this machine.
    fn disk(&self, volume: &str, transport: Transport) -> Result<Disk>;
}
