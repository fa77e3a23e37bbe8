//! What the API needs of a pool beside what machines need.

use serde_json::Value;
use std::process::Command;
use vmm_glue::{Result, Store};

/// A pool, as its daemon's control socket shows it.
pub trait Pool: Store + Send + Sync {
    /// The checkpoints of a volume, oldest first, in the form of `cairn checkpoint list --all --json`.
    ///
    /// # Errors
    /// There is no such volume.
    fn checkpoints(&self, volume: &str) -> Result<Vec<Value>>;

    /// One checkpoint, in the form of `cairn checkpoint get --json`.
    ///
    /// # Errors
    /// There is no such checkpoint.
    fn checkpoint_info(&self, volume: &str, id: &str) -> Result<Value>;

    /// Waits until everything of a volume is in the object store.
    ///
    /// # Errors
    /// There is no object store, or it does not answer.
    fn sync(&self, volume: &str) -> Result<()>;

    /// A process that looks into files of a state when it gets what to look at: `list [--recursive] VOL ID PATH`,
    /// `read VOL ID PATH FROM LEN`, `diff VOL A B`. Nothing that a guest made is looked at by anybody else.
    fn inspector(&self) -> Command;
}
