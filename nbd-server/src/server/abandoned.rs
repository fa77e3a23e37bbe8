//! Volumes that the object store says are here, and are not: an operator is told of them, and can delete them.
//!
//! Invariants
//!   * the daemon deletes none by itself: whether such a volume was deleted or detached here nobody knows any more, and
//!     of a detached one the object store has the only copy.

use super::tier::Then;
use super::Server;
use crate::control::{error_json, text};
use crate::jobs::Job;
use blockstore::object::Seen;
use blockstore::{Error, ErrorKind, Result};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use tracing::{info, warn};

impl Server {
    /// Looks through the volumes of the object store, once the daemon has started.
    pub(super) fn look_for_abandoned(&self) {
        if let Some(store) = self.pool.object_store() {
            self.workers.submit(Job::Look(store, None));
        }
    }

    /// Tells the operator of each of the volumes `seen` in the object store that is abandoned.
    pub(super) fn tell_abandoned(&self, seen: &BTreeMap<String, Seen>) {
        for volume in self.pool.abandoned(seen) {
            warn!(
                volume,
                "this volume is in the object store as one of this pool, and is not here: deleting or detaching it was \
                 interrupted. Finish a deletion with cairn volume delete {volume} --abandoned, or have it back with \
                 cairn volume attach {volume}"
            );
        }
    }

    /// What was looked for is known.
    pub(super) fn looked_through(&mut self, asked: Option<(u64, String)>, outcome: Result<BTreeMap<String, Seen>>) {
        match (asked, outcome) {
            (None, Ok(seen)) => self.tell_abandoned(&seen),
            (None, Err(e)) => warn!(error = %e, "it is not known whether volumes are abandoned in the object store"),
            (Some((token, name)), outcome) => {
                if let Err(e) = outcome.and_then(|seen| self.end_abandoned(token, &name, &seen)) {
                    self.say_last(token, &error_json(&e));
                }
            }
        }
    }

    fn end_abandoned(&mut self, token: u64, name: &str, seen: &BTreeMap<String, Seen>) -> Result<()> {
        let found = seen.get(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no volume {name:?} in the object store"))
        })?;
        self.pool.end_abandoned(name, found)?;
        info!(volume = name, "an abandoned volume is deleted in the object store");
        self.wait_gone(found.volume, Then::Gone(token, json!({ "deleted": name })));
        Ok(())
    }

    /// Begins deleting a volume that is in the object store alone.
    pub(super) fn begin_end_abandoned(&mut self, token: u64, request: &Value) -> Result<()> {
        let name = text(request, "volume")?.to_owned();
        let store = self.connected_store()?;
        self.workers.submit(Job::Look(store, Some((token, name))));
        Ok(())
    }
}
