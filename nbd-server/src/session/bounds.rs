//! What a request may ask for: flags that its command has, a place inside the export, changes where there may be any.

use super::Session;
use crate::nbd::limits::PAYLOAD_MAX;
use crate::nbd::{self, Command, Errno, Request};

impl Session {
    /// What is wrong with a request, if anything.
    pub(super) fn bounds(&self, request: &Request) -> Result<(), (Errno, &'static str)> {
        let (known, changes) = match request.command {
            Command::Read if self.agreed.structured => (nbd::FLAG_DF, false),
            Command::Write | Command::Trim => (0, true),
            Command::WriteZeroes => (nbd::FLAG_NO_HOLE | nbd::FLAG_FAST_ZERO, true),
            Command::BlockStatus => (nbd::FLAG_REQ_ONE, false),
            Command::Read | Command::Flush | Command::Cache | Command::Disconnect => (0, false),
            Command::Unknown(_) => return Err((Errno::Inval, "unknown command")),
        };
        let carries = matches!(request.command, Command::Write | Command::BlockStatus);
        let framing = if self.agreed.extended && carries { nbd::FLAG_PAYLOAD_LEN } else { 0 };
        // FUA may stand on every command; where nothing changes it asks for nothing.
        if request.flags & !(known | framing | nbd::FLAG_FUA) != 0 {
            return Err((Errno::Inval, "a flag that this command does not have"));
        }
        if changes && self.agreed.export.read_only {
            return Err((Errno::Perm, "the export is read-only"));
        }
        // The range of a filtered status request is in its payload.
        if request.command == Command::Flush || request.command == Command::BlockStatus && request.payload > 0 {
            return Ok(());
        }
        self.range(request)
    }

    /// Whether a request lies inside the export.
    pub(super) fn range(&self, request: &Request) -> Result<(), (Errno, &'static str)> {
        if request.command == Command::Read && request.length > u64::from(PAYLOAD_MAX) {
            return Err((Errno::Inval, "a read beyond 32 MiB"));
        }
        match request.offset.checked_add(request.length) {
            Some(end) if end <= self.agreed.export.size => Ok(()),
            _ if matches!(request.command, Command::Write | Command::WriteZeroes) => {
                Err((Errno::NoSpace, "past the end of the export"))
            }
            _ => Err((Errno::Inval, "past the end of the export")),
        }
    }
}
