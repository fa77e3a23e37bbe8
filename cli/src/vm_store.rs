//! The pool as machines need it: through its daemon, which serves their disks.

use crate::client::{self, Failure, CONTROL};
use crate::import;
use sandbox_server::Pool;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::Command;
use vmm_glue::{Disk, Error, Kind, Result, Store, Transport};

/// The daemon of a pool.
pub struct Daemon {
    folder: PathBuf,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind.as_str() {
            "invalid" => Kind::Invalid,
            "not_found" => Kind::NotFound,
            "exists" => Kind::Exists,
            "busy" => Kind::Busy,
            _ => Kind::Failed,
        };
        Error::new(kind, failure.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            Kind::Invalid => "invalid",
            Kind::NotFound => "not_found",
            Kind::Exists => "exists",
            Kind::Busy => "busy",
            Kind::Missing => "missing",
            Kind::Failed => "guest",
        };
        Failure::new(kind, error.message)
    }
}

impl Daemon {
    /// The daemon of the pool in `folder`.
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn ask(&self, request: &Value) -> Result<Value> {
        let stream = client::connect(&self.folder.join(CONTROL))?;
        let mut stream = stream.ok_or_else(|| {
            let text = "no daemon runs on this pool, and machines need it for their disks: cairn serve --nbd unix:PATH";
            Error::new(Kind::Invalid, text)
        })?;
        Ok(client::ask(&mut stream, request)?)
    }
}

fn text(answer: &Value, key: &str) -> Result<String> {
    let found = answer[key].as_str().map(str::to_owned);
    found.ok_or_else(|| Error::failed(format!("the daemon's answer has no {key}")))
}

impl Store for Daemon {
    fn fork(&self, source: &str, name: &str) -> Result<()> {
        self.ask(&json!({"op": "fork", "volume": source, "name": name})).map(drop)
    }

    fn grow(&self, volume: &str, size: u64) -> Result<()> {
        self.ask(&json!({"op": "volume.resize", "volume": volume, "size_bytes": size})).map(drop)
    }

    fn checkpoint(&self, volume: &str, comment: &str) -> Result<String> {
        text(&self.ask(&json!({"op": "checkpoint.create", "volume": volume, "comment": comment}))?, "id")
    }

    fn identity(&self, volume: &str, id: &str) -> Result<String> {
        let time = text(&self.ask(&json!({"op": "checkpoint.get", "volume": volume, "id": id}))?, "create_time")?;
        Ok(time.chars().filter(char::is_ascii_alphanumeric).collect())
    }

    fn restore(&self, volume: &str, id: &str) -> Result<String> {
        // The VMM has ended; its connection may not have yet.
        text(&self.ask(&json!({"op": "restore", "volume": volume, "id": id, "force": true}))?, "undo")
    }

    fn differs(&self, volume: &str, id: &str) -> Result<bool> {
        let answer = self.ask(&json!({"op": "checkpoint.diff", "volume": volume, "from": id, "to": "Current"}))?;
        Ok(answer["changed_bytes"].as_u64() != Some(0) || answer["complete"] != true)
    }

    fn delete_checkpoint(&self, volume: &str, id: &str) -> Result<()> {
        self.ask(&json!({"op": "checkpoint.delete", "volume": volume, "id": id})).map(drop)
    }

    fn delete(&self, volume: &str) -> Result<()> {
        self.ask(&json!({"op": "volume.delete", "volume": volume, "force": true})).map(drop)
    }

    fn has(&self, volume: &str) -> Result<bool> {
        match self.ask(&json!({"op": "checkpoint.list", "volume": volume})) {
            Ok(_) => Ok(true),
            Err(e) if e.kind == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn import(&self, file: &Path, name: &str) -> Result<u64> {
        let made = import::import(&self.folder, file, name, false)?;
        made["size_bytes"].as_u64().ok_or_else(|| Error::failed("the volume that was made has no size"))
    }

    fn disk(&self, volume: &str, transport: Transport) -> Result<Disk> {
        if transport == Transport::VhostUser {
            let answer = self.ask(&json!({"op": "vhost.listen", "volume": volume}))?;
            return Ok(Disk::VhostUser { socket: text(&answer, "socket")?.into() });
        }
        let answer = self.ask(&json!({"op": "sockets"}))?;
        let socket = answer["nbd"].as_array().and_then(|all| all.iter().find_map(Value::as_str));
        let socket = socket.ok_or_else(|| {
            let text = "the daemon serves no disks to this machine: start it with cairn serve --nbd unix:PATH";
            Error::new(Kind::Invalid, text)
        })?;
        Ok(Disk::Nbd { socket: socket.into(), export: volume.to_owned() })
    }
}

impl Pool for Daemon {
    fn checkpoints(&self, volume: &str) -> Result<Vec<Value>> {
        let answer = self.ask(&json!({"op": "checkpoint.list", "volume": volume, "all": true}))?;
        let Value::Array(all) = answer else { return Err(Error::failed("the daemon's answer is no list")) };
        Ok(all)
    }

    fn checkpoint_info(&self, volume: &str, id: &str) -> Result<Value> {
        self.ask(&json!({"op": "checkpoint.get", "volume": volume, "id": id}))
    }

    fn sync(&self, volume: &str) -> Result<()> {
        self.ask(&json!({"op": "volume.sync", "volume": volume})).map(drop)
    }

    fn inspector(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "cairn".into()));
        command.arg("--json").arg("--pool").arg(&self.folder).arg("inspect");
        command
    }
}
