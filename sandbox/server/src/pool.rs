//! What the API needs of a pool beside what machines need.

use serde_json::Value;
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
}
