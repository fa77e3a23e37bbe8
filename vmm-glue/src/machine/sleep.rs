//! Sleeping with all that a guest has in its memory, and waking.
//!
//! Invariant: memory is loaded only beside a disk with the contents that it was saved with; otherwise it is discarded and
//! the machine boots.

use super::cut::Cut;
use super::Machine;
use crate::{Error, Kind, Result, Store, Vmm};
use std::fs;

/// The comment of the checkpoint that a sleeper's disk is compared with.
const COMMENT: &str = "suspended";

impl Machine {
    /// Saves its memory and ends its VMM.
    ///
    /// # Errors
    /// It does not run, or its memory cannot be saved: then it goes on.
    pub fn suspend(&mut self, store: &dyn Store) -> Result<Cut> {
        let mut vmm = self.running()?;
        let cut = match self.cut_paused(store, &mut vmm, COMMENT) {
            Ok(cut) => cut,
            Err(e) => {
                let _ = vmm.resume();
                return Err(e);
            }
        };
        if let Err(e) = self.note(Some(cut.id.clone())) {
            self.forget(store, &cut.id);
            let _ = vmm.resume();
            return Err(e);
        }
        self.quit(vmm)?;
        Ok(cut)
    }

    /// Goes on where it was suspended. `false`: its disk has changed since, so that the memory was discarded and it has
    /// booted.
    ///
    /// # Errors
    /// It is not suspended, or does not start.
    pub fn wake(&mut self, store: &dyn Store) -> Result<bool> {
        let Some(id) = self.record.asleep_at.clone() else {
            let text = format!("the machine {} is not suspended", self.name());
            return Err(Error::new(Kind::Invalid, text));
        };
        // Without its checkpoint nothing tells whether the disk is the same.
        let memory = self.memory(store, &id).ok().filter(|memory| memory.exists());
        let memory = memory.filter(|_| !store.differs(self.name(), &id).unwrap_or(true));
        let (outcome, matches) = (self.start(store, memory.as_deref()), memory.is_some());
        if outcome.is_err() && matches {
            // It can be tried again: nothing has run on its disk.
            if self.vmm()?.is_none() && !store.differs(self.name(), &id).unwrap_or(true) {
                self.note(Some(id))?;
            }
            return outcome.map(|()| true);
        }
        self.forget(store, &id);
        outcome.map(|()| matches)
    }

    /// Removes a sleeper's memory and checkpoint: nothing will use them any more.
    pub(super) fn forget(&self, store: &dyn Store, id: &str) {
        let _ = self.memory(store, id).map(fs::remove_file);
        let _ = store.delete_checkpoint(self.name(), id);
    }

    /// Whether it sleeps.
    pub fn is_suspended(&self) -> bool {
        self.record.asleep_at.is_some()
    }

    /// Boots a machine that does not run; a sleeper is woken.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn boot_or_wake(&mut self, store: &dyn Store) -> Result<bool> {
        if self.is_suspended() {
            return self.wake(store);
        }
        self.start(store, None).map(|()| false)
    }
}
