//! Commands on a pool as JSON: the same code behind the control socket and behind a command that
//! opens the pool itself.

use crate::exports::{resolve, split};
use blockstore::{CheckpointInfo, CheckpointName, Error, ErrorKind, FlushJob, Pool, Result, View, VolumeId};
use serde_json::{json, Value};

/// A command's effect: an answer, promised once the job has been run.
pub struct Outcome {
    /// What to tell the caller.
    pub answer: Value,
    /// What must be synced first.
    pub job: Option<FlushJob>,
}

impl Outcome {
    fn now(answer: Value) -> Self {
        Self { answer, job: None }
    }
    fn after(answer: Value, job: FlushJob) -> Self {
        Self { answer, job: Some(job) }
    }
}

pub(crate) fn text<'a>(request: &'a Value, key: &str) -> Result<&'a str> {
    request
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{key:?} is missing")))
}

pub(crate) fn number(request: &Value, key: &str) -> Result<u64> {
    request
        .get(key)
        .and_then(Value::as_u64)
        .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{key:?} is missing")))
}

fn checkpoint(text: &str) -> Result<CheckpointName> {
    let explain =
        || Error::new(ErrorKind::Invalid, format!("{text:?} is not a checkpoint: use v1, v2, … or auto-1, …"));
    CheckpointName::parse(text).ok_or_else(explain)
}

/// `2026-01-31T12:00:00.000000Z`, from microseconds since 1970 (days to date after Howard Hinnant's
/// `civil_from_days`).
pub fn timestamp(us: u64) -> String {
    let (secs, days) = (us / 1_000_000, us / 86_400_000_000);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:06}Z", us % 1_000_000)
}

fn describe_checkpoint(info: &CheckpointInfo) -> Value {
    json!({
        "id": info.name.to_string(),
        "create_time": timestamp(info.time_us),
        "comment": info.comment,
        "is_auto": info.name.is_auto,
        "durability": "local",
        "size_bytes": info.size,
        "parent": info.parent.as_ref().map(|(volume, name)| format!("{volume}@{name}")),
    })
}

/// The head in the shape of a checkpoint; it has no time and is durable as far as it was flushed.
fn describe_head(pool: &Pool, id: VolumeId) -> Result<Value> {
    let info = pool.volume_info(id)?;
    Ok(json!({
        "id": "Current",
        "create_time": null,
        "comment": "",
        "is_auto": false,
        "durability": "local",
        "size_bytes": info.size,
        "parent": info.parent.as_ref().map(|(volume, name)| format!("{volume}@{name}")),
    }))
}

fn describe_volume(pool: &mut Pool, id: VolumeId, usage: bool) -> Result<Value> {
    let info = pool.volume_info(id)?;
    let mut out = json!({
        "name": info.name,
        "size_bytes": info.size,
        "create_time": timestamp(info.created_us),
        "checkpoints": info.checkpoints,
        "parent": info.parent.as_ref().map(|(volume, name)| format!("{volume}@{name}")),
    });
    if usage {
        let usage = pool.volume_usage(id)?;
        let stats = pool.stats();
        let mut exclusive = serde_json::Map::new();
        for checkpoint in pool.checkpoints(id)?.iter().rev().take(32) {
            let bytes = pool.checkpoint_exclusive(id, checkpoint.name)?;
            exclusive.insert(checkpoint.name.to_string(), bytes.into());
        }
        for (key, value) in [
            ("mapped_bytes", json!(usage.mapped)),
            ("exclusive_bytes", json!(usage.exclusive)),
            ("shared_bytes", json!(usage.shared)),
            ("checkpoint_exclusive_bytes", Value::Object(exclusive)),
            ("object_bytes", json!(0)),
            ("pool_local_bytes", json!(stats.stored)),
            ("pool_dead_bytes", json!(stats.dead)),
        ] {
            out[key] = value;
        }
    }
    Ok(out)
}

/// What a command takes away from the clients that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    volume: VolumeId,
    /// The head; or this checkpoint; or all of the volume.
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Head,
    Checkpoint(CheckpointName),
    All,
}

impl Taken {
    /// Whether a client of `view` loses it.
    pub fn holds(&self, view: &View) -> bool {
        let part = match self.part {
            Part::Head => view.checkpoint.is_none(),
            Part::Checkpoint(name) => view.checkpoint == Some(name),
            Part::All => true,
        };
        view.volume == self.volume && part
    }
}

/// What `request` takes away from clients, or why it cannot be carried out.
pub fn takes_away(pool: &Pool, request: &Value) -> Result<Option<Taken>> {
    let op = text(request, "op")?;
    if !matches!(op, "restore" | "volume.delete" | "volume.resize" | "checkpoint.delete") {
        return Ok(None);
    }
    let id = pool.volume_id(text(request, "volume")?)?;
    let named = || {
        let name = checkpoint(text(request, "id")?)?;
        pool.view(id, Some(name)).map(|_| name)
    };
    let part = match op {
        "restore" => named().map(|_| Part::Head)?,
        "checkpoint.delete" => named().map(Part::Checkpoint)?,
        "volume.resize" => Pool::check_size(number(request, "size_bytes")?).map(|()| Part::Head)?,
        _ => Part::All,
    };
    Ok(Some(Taken { volume: id, part }))
}

/// Carries out one command.
pub fn handle(pool: &mut Pool, request: &Value) -> Result<Outcome> {
    let volume = |pool: &Pool| pool.volume_id(text(request, "volume")?);
    match text(request, "op")? {
        "volume.create" => {
            let (id, job) = pool.create_volume(text(request, "volume")?, number(request, "size_bytes")?)?;
            Ok(Outcome::after(describe_volume(pool, id, false)?, job))
        }
        "volume.list" => {
            let all =
                pool.volumes().into_iter().map(|id| describe_volume(pool, id, false)).collect::<Result<Vec<_>>>()?;
            Ok(Outcome::now(Value::Array(all)))
        }
        "volume.info" => {
            let id = volume(pool)?;
            Ok(Outcome::now(describe_volume(pool, id, true)?))
        }
        "volume.resize" => {
            let id = volume(pool)?;
            let job = pool.resize_volume(id, number(request, "size_bytes")?)?;
            Ok(Outcome::after(describe_volume(pool, id, false)?, job))
        }
        "volume.delete" => {
            let id = volume(pool)?;
            let job = pool.delete_volume(id)?;
            Ok(Outcome::after(json!({"deleted": text(request, "volume")?}), job))
        }
        "checkpoint.create" => {
            let comment = request.get("comment").and_then(Value::as_str).unwrap_or_default();
            let id = volume(pool)?;
            let (info, job) = pool.create_checkpoint(id, comment)?;
            Ok(Outcome::after(describe_checkpoint(&info), job))
        }
        "checkpoint.list" => {
            let all = pool.checkpoints(volume(pool)?)?;
            let with_auto = request.get("all").and_then(Value::as_bool).unwrap_or(false);
            let shown = all.iter().filter(|c| with_auto || !c.name.is_auto).map(describe_checkpoint);
            Ok(Outcome::now(shown.collect()))
        }
        "checkpoint.get" => {
            let id = volume(pool)?;
            if text(request, "id")? == "Current" {
                return describe_head(pool, id).map(Outcome::now);
            }
            let name = checkpoint(text(request, "id")?)?;
            let mut out = describe_checkpoint(&pool.checkpoint_info(id, name)?);
            out["exclusive_bytes"] = json!(pool.checkpoint_exclusive(id, name)?);
            Ok(Outcome::now(out))
        }
        "checkpoint.delete" => {
            let (id, name) = (volume(pool)?, checkpoint(text(request, "id")?)?);
            let job = pool.delete_checkpoint(id, name)?;
            Ok(Outcome::after(json!({"deleted": name.to_string()}), job))
        }
        "checkpoint.diff" => diff(pool, request).map(Outcome::now),
        "restore" => {
            let (id, name) = (volume(pool)?, checkpoint(text(request, "id")?)?);
            let (undo, job) = pool.restore(id, name)?;
            let answer = json!({"restored": name.to_string(), "undo": undo.name.to_string()});
            Ok(Outcome::after(answer, job))
        }
        "fork" => {
            let (from, at) = split(text(request, "volume")?)?;
            let (id, job) = pool.fork(pool.volume_id(from)?, at, text(request, "name")?)?;
            Ok(Outcome::after(describe_volume(pool, id, false)?, job))
        }
        "stats" => {
            let s = pool.stats();
            Ok(Outcome::now(json!({
                "live_bytes": s.live, "stored_bytes": s.stored, "dead_bytes": s.dead, "segments": s.segments,
                "map_cache_bytes": s.map_cache, "changed_nodes": s.changed_nodes, "reaping": s.reaping,
                "unanchored_log_bytes": s.unanchored, "next_lsn": s.next_lsn,
            })))
        }
        "metrics" => Err(Error::new(
            ErrorKind::Invalid,
            "metrics are counted by a daemon, and none runs on this pool: start cairn serve, or use cairn stats",
        )),
        other => Err(Error::new(ErrorKind::Invalid, format!("{other:?} is not a command of this daemon"))),
    }
}

/// Extents that differ between two states of a volume.
fn diff(pool: &mut Pool, request: &Value) -> Result<Value> {
    const EXTENTS_MAX: usize = 1 << 20;
    let volume = text(request, "volume")?;
    let view = |pool: &Pool, key: &str| {
        let name = format!("{volume}@{}", text(request, key)?);
        resolve(pool, &name)
    };
    let (from, to) = (view(pool, "from")?, view(pool, "to")?);
    let size = pool.view_size(to)?;
    let extents = pool.changes(from, to, 0, size, EXTENTS_MAX)?;
    let (mut offset, mut changed, mut list) = (0, 0, Vec::new());
    for extent in extents {
        if !extent.hole {
            changed += extent.len;
            list.push(json!({"offset": offset, "length": extent.len}));
        }
        offset += extent.len;
    }
    Ok(json!({"changed_bytes": changed, "complete": offset == size, "extents": list}))
}

/// A message may quote what it was given, which may be of any length: its middle is left out.
fn short(text: &str) -> String {
    const HALF: usize = 300;
    let count = text.chars().count();
    if count <= 2 * HALF {
        return text.to_owned();
    }
    let head: String = text.chars().take(HALF).collect();
    let tail: String = text.chars().skip(count - HALF).collect();
    format!("{head} … {tail}")
}

/// An error as the control socket sends it.
pub fn error_json(error: &Error) -> Value {
    let kind = match error.kind() {
        ErrorKind::Invalid => "invalid",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Exists => "exists",
        ErrorKind::Busy => "busy",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::Closed => "closed",
        _ => "io",
    };
    json!({"error": {"kind": kind, "message": short(&error.to_string())}})
}

#[cfg(test)]
mod tests {
    #[test]
    fn timestamps_are_right_around_leap_days() {
        assert_eq!(super::timestamp(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(super::timestamp(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(super::timestamp(1_798_761_599_000_000), "2026-12-31T23:59:59.000000Z");
    }
}
