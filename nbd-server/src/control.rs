//! Commands on a pool as JSON: the same code behind the control socket and behind a command that
//! opens the pool itself.
//!
//! Invariants
//!   * `vol@Current` is `vol`, and `vol@v1` a checkpoint, wherever a volume is named; where a checkpoint cannot
//!     stand the error says so.
//!
//! Not here: what is not one step on the pool (`server::long`).

use crate::exports::{head_name, resolve, split};
use blockstore::object::{RemoteStatus, Standing};
use blockstore::{
    CheckpointInfo, CheckpointName, Durability, Error, ErrorKind, FlushJob, Pool, Result, View, VolumeId,
};
use serde_json::{json, Value};

/// A command's effect: an answer, promised once the job has been run.
pub struct Outcome {
    /// What to tell the caller.
    pub answer: Value,
    /// What must be synced first.
    pub job: Option<FlushJob>,
    /// A volume that was made, and may have to be in the object store before it can be used.
    pub made: Option<VolumeId>,
}

impl Outcome {
    fn now(answer: Value) -> Self {
        Self { answer, job: None, made: None }
    }
    fn after(answer: Value, job: FlushJob) -> Self {
        Self { answer, job: Some(job), made: None }
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

pub(crate) fn text<'a>(request: &'a Value, key: &str) -> Result<&'a str> {
    match request.get(key) {
        None | Some(Value::Null) => Err(invalid(format!("{key:?} is missing"))),
        Some(value) => value.as_str().ok_or_else(|| invalid(format!("{key:?} must be a string, not {value}"))),
    }
}

pub(crate) fn number(request: &Value, key: &str) -> Result<u64> {
    match request.get(key) {
        None | Some(Value::Null) => Err(invalid(format!("{key:?} is missing"))),
        Some(value) => value.as_u64().ok_or_else(|| {
            invalid(format!("{key:?} must be a whole number of bytes from 0 to {}, not {value}", u64::MAX))
        }),
    }
}

pub(crate) fn is_set(request: &Value, key: &str) -> bool {
    request.get(key).and_then(Value::as_bool) == Some(true)
}

fn checkpoint(text: &str) -> Result<CheckpointName> {
    let explain = || match text {
        "Current" => invalid("Current is what the volume is now, no checkpoint: name v1, v2, … or auto-1, …"),
        _ => invalid(format!(
            "{text:?} is not a checkpoint: use v1, v2, … or auto-1, …, or Current where the present state can stand"
        )),
    };
    CheckpointName::parse(text).ok_or_else(explain)
}

/// The volume of a request that is about volumes only.
fn volume(pool: &Pool, request: &Value) -> Result<VolumeId> {
    pool.volume_id(head_name(text(request, "volume")?)?)
}

/// The volume and the state that a request names, as `disk` with `v1` or as `disk@v1` alone.
fn volume_and_id<'a>(pool: &Pool, request: &'a Value) -> Result<(VolumeId, &'a str)> {
    let name = text(request, "volume")?;
    let (volume, id) = match (request.get("id"), name.split_once('@')) {
        (None | Some(Value::Null), Some(both)) => both,
        (None | Some(Value::Null), None) => {
            return Err(invalid(format!("which checkpoint of {name}? say {name} v1, or {name}@v1")));
        }
        _ => (head_name(name)?, text(request, "id")?),
    };
    Ok((pool.volume_id(volume)?, id))
}

/// The size that a volume is to have. Less than it has is a loss, and has to be asked for.
fn new_size(pool: &Pool, id: VolumeId, request: &Value) -> Result<u64> {
    let size = number(request, "size_bytes")?;
    Pool::check_size(size)?;
    let now = pool.volume_info(id)?;
    if size < now.size && !is_set(request, "shrink") {
        return Err(invalid(format!(
            "{} has {} bytes: what lies beyond {size} would be lost; shrink the file system in it first, then give --shrink",
            now.name, now.size
        )));
    }
    Ok(size)
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

fn no_object_store() -> Error {
    invalid("the pool has no object store: start the daemon with --object-store URL")
}

/// `remote` when it would survive the loss of this host.
fn durability(pool: &Pool, id: VolumeId, info: &CheckpointInfo) -> &'static str {
    let there = |status: RemoteStatus| status.standing == Standing::Owned && status.watermark > info.lsn;
    if pool.remote_status(id).is_some_and(there) {
        "remote"
    } else {
        "local"
    }
}

fn describe_checkpoint(pool: &Pool, id: VolumeId, info: &CheckpointInfo) -> Value {
    json!({
        "id": info.name.to_string(),
        "create_time": timestamp(info.time_us),
        "comment": info.comment,
        "is_auto": info.name.is_auto,
        "durability": durability(pool, id, info),
        "size_bytes": info.size,
        "parent": info.parent.as_ref().map(|(volume, name)| format!("{volume}@{name}")),
    })
}

fn describe_with_space(pool: &mut Pool, id: VolumeId, name: CheckpointName) -> Result<Value> {
    let mut out = describe_checkpoint(pool, id, &pool.checkpoint_info(id, name)?);
    out["exclusive_bytes"] = json!(pool.checkpoint_exclusive(id, name)?);
    Ok(out)
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
        "durability": info.durability.to_string(),
        "read_only": info.read_only,
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
            ("object_bytes", json!(pool.object_bytes(id))),
            ("object_store", describe_standing(pool, id)),
            ("pool_local_bytes", json!(stats.stored)),
            ("pool_evicted_bytes", json!(stats.evicted)),
            ("pool_dead_bytes", json!(stats.dead)),
        ] {
            out[key] = value;
        }
    }
    Ok(out)
}

/// What a request may say under `key`; null is not saying it.
fn asked<'a, T>(request: &'a Value, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
    match request.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| invalid(format!("{key} is not what it should be: {value}"))),
    }
}

fn parse_durability(mode: &str) -> Result<Durability> {
    Durability::parse(mode)
        .ok_or_else(|| invalid(format!("{mode:?} is not a durability: use local, remote, or bounded=MILLISECONDS")))
}

/// A volume, without its space.
pub(crate) fn describe(pool: &mut Pool, id: VolumeId) -> Result<Value> {
    describe_volume(pool, id, false)
}

/// How far the object store is with a volume; null without one.
fn describe_standing(pool: &Pool, id: VolumeId) -> Value {
    let Some(status) = pool.remote_status(id) else { return Value::Null };
    let (state, why) = match &status.standing {
        Standing::Unknown => ("unknown", None),
        Standing::Owned => ("owned", None),
        Standing::Interrupted => ("interrupted", None),
        Standing::Refused(why) => ("refused", Some(why)),
        Standing::Fenced(why) => ("fenced", Some(why)),
    };
    let behind = status.changed > status.watermark;
    let lag_us = if behind { crate::open::now_us().saturating_sub(status.time_us) } else { 0 };
    json!({
        "state": state,
        "why": why,
        "watermark": status.watermark.0,
        "changed": status.changed.0,
        "lag_seconds": if status.time_us == 0 { Value::Null } else { json!(lag_us as f64 / 1e6) },
        "lag_bytes": pool.lag_bytes(id),
        "manifest": status.manifest,
        "epoch": status.epoch,
    })
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
    /// The head's size: of clients that cannot be told of a new one.
    Size,
    Checkpoint(CheckpointName),
    All,
}

impl Taken {
    /// All of a volume.
    pub fn all_of(volume: VolumeId) -> Self {
        Self { volume, part: Part::All }
    }

    /// Whether a client of `view` loses it; one that can be told of a new size does not lose that.
    pub fn holds(&self, view: &View, can_be_told: bool) -> bool {
        let part = match self.part {
            Part::Head => view.checkpoint.is_none(),
            Part::Size => view.checkpoint.is_none() && !can_be_told,
            Part::Checkpoint(name) => view.checkpoint == Some(name),
            Part::All => true,
        };
        view.volume == self.volume && part
    }
}

/// The checkpoint that a request names; it exists.
fn named(pool: &Pool, request: &Value) -> Result<(VolumeId, CheckpointName)> {
    let (id, name) = volume_and_id(pool, request)?;
    let name = checkpoint(name)?;
    pool.view(id, Some(name)).map(|_| (id, name))
}

/// What `request` takes away from clients, or why it cannot be carried out.
pub fn takes_away(pool: &Pool, request: &Value) -> Result<Option<Taken>> {
    let op = text(request, "op")?;
    let set_read_only = op == "volume.set" && is_set(request, "read_only");
    if !set_read_only && !matches!(op, "restore" | "volume.delete" | "volume.resize" | "checkpoint.delete") {
        return Ok(None);
    }
    let taken = |volume, part| Ok(Some(Taken { volume, part }));
    match op {
        "restore" => taken(named(pool, request)?.0, Part::Head),
        "volume.set" => taken(volume(pool, request)?, Part::Head),
        "checkpoint.delete" => named(pool, request).and_then(|(id, name)| taken(id, Part::Checkpoint(name))),
        "volume.resize" => {
            let id = volume(pool, request)?;
            let grows = new_size(pool, id, request)? >= pool.volume_info(id)?.size;
            taken(id, if grows { Part::Size } else { Part::Head })
        }
        _ => taken(volume(pool, request)?, Part::All),
    }
}

/// Carries out one command.
pub fn handle(pool: &mut Pool, request: &Value) -> Result<Outcome> {
    change_or_ask(pool, request).map_err(|e| match e.kind() {
        ErrorKind::Corrupt => Error::new(
            ErrorKind::Corrupt,
            format!("{e}: cairn scrub names all that is damaged; restore that from a backup, and export the rest"),
        ),
        _ => e,
    })
}

fn change_or_ask(pool: &mut Pool, request: &Value) -> Result<Outcome> {
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
            let (name, at) = split(text(request, "volume")?)?;
            let id = pool.volume_id(name)?;
            Ok(Outcome::now(match at {
                None => describe_volume(pool, id, true)?,
                Some(checkpoint) => describe_with_space(pool, id, checkpoint)?,
            }))
        }
        "volume.resize" => {
            let id = volume(pool, request)?;
            let job = pool.resize_volume(id, new_size(pool, id, request)?)?;
            Ok(Outcome::after(describe_volume(pool, id, false)?, job))
        }
        "volume.set" => {
            let id = volume(pool, request)?;
            let durability = asked(request, "durability", Value::as_str)?.map(parse_durability).transpose()?;
            let read_only = asked(request, "read_only", Value::as_bool)?;
            let first = durability.map(|durability| pool.set_durability(id, durability)).transpose()?;
            let second = read_only.map(|read_only| pool.set_read_only(id, read_only)).transpose()?;
            let job = second.or(first).ok_or_else(|| invalid("say what to set: durability or read_only"))?;
            Ok(Outcome::after(describe_volume(pool, id, false)?, job))
        }
        "volume.attach" | "volume.detach" | "volume.sync" | "volume.delete_abandoned" => {
            Err(invalid("this needs a daemon with an object store on the pool: start cairn serve --object-store URL"))
        }
        "volume.delete" => {
            let id = volume(pool, request)?;
            let job = pool.delete_volume(id)?;
            Ok(Outcome::after(json!({"deleted": head_name(text(request, "volume")?)?}), job))
        }
        "checkpoint.create" => {
            let comment = request.get("comment").and_then(Value::as_str).unwrap_or_default();
            let id = volume(pool, request)?;
            let remote = request.get("wait").and_then(Value::as_str) == Some("remote");
            if remote && !pool.has_object_tier() {
                return Err(no_object_store());
            }
            let (info, job) = pool.create_checkpoint(id, comment)?;
            let mut answer = describe_checkpoint(pool, id, &info);
            if remote {
                answer["durability"] = json!("remote");
            }
            Ok(Outcome::after(answer, job))
        }
        "checkpoint.list" => {
            let id = volume(pool, request)?;
            let all = pool.checkpoints(id)?;
            let with_auto = is_set(request, "all");
            let shown = all.iter().filter(|c| with_auto || !c.name.is_auto).map(|c| describe_checkpoint(pool, id, c));
            Ok(Outcome::now(shown.collect()))
        }
        "checkpoint.get" => {
            let (id, name) = volume_and_id(pool, request)?;
            Ok(Outcome::now(match name {
                "Current" => describe_head(pool, id)?,
                name => describe_with_space(pool, id, checkpoint(name)?)?,
            }))
        }
        "checkpoint.delete" => {
            let (id, name) = named(pool, request)?;
            let job = pool.delete_checkpoint(id, name)?;
            Ok(Outcome::after(json!({"deleted": name.to_string()}), job))
        }
        "checkpoint.diff" => diff(pool, request).map(Outcome::now),
        "restore" => {
            let (id, name) = named(pool, request)?;
            let (undo, job) = pool.restore(id, name)?;
            let answer = json!({"restored": name.to_string(), "undo": undo.name.to_string()});
            Ok(Outcome::after(answer, job))
        }
        "fork" => {
            let (from, at) = split(text(request, "volume")?)?;
            let (id, job) = pool.fork(pool.volume_id(from)?, at, text(request, "name")?)?;
            Ok(Outcome { made: Some(id), ..Outcome::after(describe_volume(pool, id, false)?, job) })
        }
        "stats" => {
            let (s, sent) = (pool.stats(), pool.sent());
            Ok(Outcome::now(json!({
                "live_bytes": s.live, "stored_bytes": s.stored, "dead_bytes": s.dead, "segments": s.segments,
                "map_cache_bytes": s.map_cache, "changed_nodes": s.changed_nodes, "deleted_states": s.reaping,
                "unanchored_log_bytes": s.unanchored, "next_lsn": s.next_lsn,
                "unsent_bytes": pool.unsent_bytes(), "sent_objects": sent.objects, "sent_bytes": sent.bytes,
                "sent_block_bytes": sent.block_bytes, "sent_manifests": sent.manifests,
            })))
        }
        "vhost.listen" => Err(invalid("volumes are served by a daemon, and none runs on this pool: start cairn serve")),
        "metrics" => Err(invalid(
            "metrics are counted by a daemon, and none runs on this pool: start cairn serve, or use cairn stats",
        )),
        other => Err(invalid(format!("{other:?} is not a command of this daemon"))),
    }
}

/// Extents that differ between two states of a volume.
fn diff(pool: &mut Pool, request: &Value) -> Result<Value> {
    const EXTENTS_MAX: usize = 1 << 20;
    let volume = head_name(text(request, "volume")?)?;
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
        ErrorKind::Unavailable | ErrorKind::Absent => "unavailable",
        ErrorKind::Denied => "denied",
        ErrorKind::Fenced => "fenced",
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
