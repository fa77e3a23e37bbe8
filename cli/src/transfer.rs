//! Everything but the daemon: commands, and the long ones that work on the pool directly.

use crate::args::{parse_size, CheckpointVerb, Cli, Verb, VolumeVerb};
use crate::client::{carry_out, connect, Failure};
use crate::output::{print, Progress};
use blockstore::{CheckpointName, Cleaning, Pool, PoolOptions, ScrubProgress, View};
use nbd_server::{open_pool, PoolLock};
use serde_json::{json, Value};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CHUNK: usize = 1 << 20;
const VOLUME_COLUMNS: &[&str] = &["name", "size_bytes", "checkpoints", "parent", "create_time"];
const CHECKPOINT_COLUMNS: &[&str] = &["id", "create_time", "is_auto", "comment", "parent"];

/// The pool's folder, or how to name it.
pub fn pool_folder(cli: &Cli) -> Result<PathBuf, Failure> {
    cli.pool.clone().ok_or_else(|| Failure::new("invalid", "which pool? give --pool DIR or set CAIRN_POOL"))
}

fn size(text: &str) -> Result<u64, Failure> {
    parse_size(text).ok_or_else(|| Failure::new("invalid", format!("{text:?} is not a size: use 100G, 512M or bytes")))
}

/// Carries out any verb but `serve`.
pub fn run(cli: &Cli, verb: &Verb) -> Result<(), Failure> {
    let folder = pool_folder(cli)?;
    let (request, columns): (Value, &[&str]) = match verb {
        Verb::Volume(VolumeVerb::Import { file, name }) => return import(&folder, file, name, cli.json),
        Verb::Volume(VolumeVerb::Export { source, file }) => return export(&folder, source, file, cli.json),
        Verb::Check => return check(&folder, cli.json),
        Verb::Scrub { .. } => return scrub(&folder, cli.json),
        Verb::Volume(verb) => (volume_request(verb)?, VOLUME_COLUMNS),
        Verb::Checkpoint(verb) => (checkpoint_request(verb), CHECKPOINT_COLUMNS),
        Verb::Restore { volume, id, force } => {
            (json!({"op": "restore", "volume": volume, "id": id, "force": force}), &[])
        }
        Verb::Fork { source, name } => (json!({"op": "fork", "volume": source, "name": name}), &[]),
        Verb::Stats { metrics } => (json!({"op": if *metrics { "metrics" } else { "stats" }}), &[]),
        Verb::Serve(_) | Verb::Completions { .. } | Verb::Man { .. } => return Ok(()),
    };
    print(&carry_out(&folder, &request)?, cli.json, columns);
    Ok(())
}

fn volume_request(verb: &VolumeVerb) -> Result<Value, Failure> {
    Ok(match verb {
        VolumeVerb::Create { name, size: text } => {
            json!({"op": "volume.create", "volume": name, "size_bytes": size(text)?})
        }
        VolumeVerb::List => json!({"op": "volume.list"}),
        VolumeVerb::Info { name } => json!({"op": "volume.info", "volume": name}),
        VolumeVerb::Resize { name, size: text, force } => {
            json!({"op": "volume.resize", "volume": name, "size_bytes": size(text)?, "force": force})
        }
        VolumeVerb::Delete { name, force } => json!({"op": "volume.delete", "volume": name, "force": force}),
        VolumeVerb::Import { .. } | VolumeVerb::Export { .. } => Value::Null,
    })
}

fn checkpoint_request(verb: &CheckpointVerb) -> Value {
    match verb {
        CheckpointVerb::Create { volume, comment } => {
            json!({"op": "checkpoint.create", "volume": volume, "comment": comment})
        }
        CheckpointVerb::List { volume, all } => json!({"op": "checkpoint.list", "volume": volume, "all": all}),
        CheckpointVerb::Get { volume, id } => json!({"op": "checkpoint.get", "volume": volume, "id": id}),
        CheckpointVerb::Delete { volume, id, force } => {
            json!({"op": "checkpoint.delete", "volume": volume, "id": id, "force": force})
        }
        CheckpointVerb::Diff { volume, from, to } => {
            json!({"op": "checkpoint.diff", "volume": volume, "from": from, "to": to})
        }
    }
}

/// Opens the pool for long work, which needs it alone.
fn alone(folder: &Path, create: bool) -> Result<(PoolLock, Pool), Failure> {
    if connect(folder).is_some() {
        let text = "this command needs the pool for itself: stop the daemon, or copy over NBD (nbdcopy) while it runs";
        return Err(Failure::new("busy", text));
    }
    let (lock, pool, _) = open_pool(folder, create, PoolOptions::default())?;
    Ok((lock, pool))
}

fn import(folder: &Path, file: &Path, name: &str, as_json: bool) -> Result<(), Failure> {
    let explain = |e: std::io::Error| Failure::new("io", format!("{}: {e}", file.display()));
    let mut source = File::open(file).map_err(explain)?;
    let len = source.metadata().map_err(explain)?.len();
    let (_lock, mut pool) = alone(folder, true)?;
    let (id, job) = pool.create_volume(name, len.next_multiple_of(4096).max(4096))?;
    pool.finish(job)?;
    let (mut buf, mut at, mut progress) = (vec![0; CHUNK], 0u64, Progress::new("import"));
    while at < len {
        let piece = &mut buf[..CHUNK.min((len - at) as usize)];
        source.read_exact(piece).map_err(explain)?;
        pool.write(id, at, piece)?;
        at += piece.len() as u64;
        progress.show(at, len);
        if pool.wants_anchor() {
            pool.anchor(Cleaning::Busy)?;
        }
    }
    pool.flush(id)?;
    print(&json!({"name": name, "size_bytes": len, "imported_bytes": at}), as_json, &[]);
    Ok(())
}

fn view(pool: &Pool, source: &str) -> Result<View, Failure> {
    let (volume, at) = source.split_once('@').map_or((source, None), |(v, c)| (v, Some(c)));
    let checkpoint = match at {
        None | Some("Current") => None,
        Some(text) => Some(
            CheckpointName::parse(text)
                .ok_or_else(|| Failure::new("invalid", format!("{text:?} is not a checkpoint")))?,
        ),
    };
    Ok(pool.view(pool.volume_id(volume)?, checkpoint)?)
}

fn export(folder: &Path, source: &str, file: &Path, as_json: bool) -> Result<(), Failure> {
    let explain = |e: std::io::Error| Failure::new("io", format!("{}: {e}", file.display()));
    let (_lock, mut pool) = alone(folder, false)?;
    let view = view(&pool, source)?;
    let len = pool.view_size(view)?;
    let target = File::create_new(file).map_err(explain)?;
    target.set_len(len).map_err(explain)?;
    let (mut buf, mut at, mut written, mut progress) = (vec![0; CHUNK], 0u64, 0u64, Progress::new("export"));
    while at < len {
        for extent in pool.extents(view, at, len - at, 1024)? {
            let end = at + extent.len;
            while at < end && !extent.hole {
                let piece = &mut buf[..CHUNK.min((end - at) as usize)];
                pool.read(view, at, piece)?;
                target.write_all_at(piece, at).map_err(explain)?;
                at += piece.len() as u64;
                written += piece.len() as u64;
                progress.show(at, len);
            }
            at = end;
        }
    }
    target.sync_all().map_err(explain)?;
    print(&json!({"file": file, "size_bytes": len, "written_bytes": written}), as_json, &[]);
    Ok(())
}

fn check(folder: &Path, as_json: bool) -> Result<(), Failure> {
    let (_lock, mut pool) = alone(folder, false)?;
    while pool.reap(1 << 12)? {}
    let report = pool.check()?;
    let answer = json!({"roots": report.roots, "blocks": report.blocks, "problems": report.problems});
    print(&answer, as_json, &[]);
    if report.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        "corrupt",
        format!("{} problems found: keep the pool as it is and restore from a copy", report.problems.len()),
    ))
}

fn scrub(folder: &Path, as_json: bool) -> Result<(), Failure> {
    let (_lock, mut pool) = alone(folder, false)?;
    let total = pool.stats().live;
    let (mut state, mut progress) = (ScrubProgress::default(), Progress::new("scrub"));
    while !state.done {
        pool.scrub(&mut state)?;
        progress.show(state.blocks * 4096, total);
    }
    print(&json!({"blocks": state.blocks, "damaged": state.damaged}), as_json, &[]);
    if state.damaged.is_empty() {
        return Ok(());
    }
    Err(Failure::new("corrupt", format!("{} blocks are damaged: restore from a copy", state.damaged.len())))
}
