//! What every VMM can do.

use crate::Result;
use std::fs::File;
use std::time::Duration;

/// What a VMM tells about a guest that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The VMM's word for what the guest does: `running`, `paused`, …
    pub state: String,
    /// Memory that the VMM has of this machine, bytes.
    pub resident_bytes: u64,
    /// Processor time of the VMM, milliseconds.
    pub cpu_ms: u64,
    /// The VMM's process.
    pub pid: u32,
}

/// A VMM that runs one guest.
pub trait Vmm {
    /// Lets a guest that was loaded or paused run.
    ///
    /// # Errors
    /// The VMM does not answer, or cannot.
    fn resume(&mut self) -> Result<()>;

    /// Stops the guest's processors.
    ///
    /// # Errors
    /// The VMM does not answer.
    fn pause(&mut self) -> Result<()>;

    /// Writes memory and devices of a paused guest.
    ///
    /// # Errors
    /// They cannot be written in time.
    fn save(&mut self, to: &File) -> Result<()>;

    /// Reads what [`Vmm::save`] wrote; the guest is paused then.
    ///
    /// # Errors
    /// It is not what this VMM wrote for such a guest.
    fn load(&mut self, from: &File) -> Result<()>;

    /// Ends the VMM without asking the guest; by force, if it does not within `wait`.
    ///
    /// # Errors
    /// It cannot be ended.
    fn stop(&mut self, wait: Duration) -> Result<()>;

    /// Figures of the guest.
    ///
    /// # Errors
    /// The VMM does not answer.
    fn stats(&mut self) -> Result<Stats>;
}
