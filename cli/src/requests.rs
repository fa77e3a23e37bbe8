//! Verbs as requests to the pool, and their answers.
//!
//! Not here: the copies of whole disks (`import`, `export`), the daemon (`serve`).

use crate::args::{parse_size, CheckpointVerb, Cli, KeyVerb, Verb, VolumeVerb};
use crate::bucket;
use crate::client::{carry_out, connect, Failure, Intent, Who, CONTROL};
use crate::export;
use crate::files;
use crate::import;
use crate::link::{ask_long, Link};
use crate::mount::{self, Wanted};
use crate::output::{print, Progress};
use crate::sandbox::saved::{self, Meant};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

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
    match verb {
        Verb::Check { object, deep } if object.object_store.is_some() => return bucket::check(object, *deep, cli.json),
        Verb::Gc { object, dry_run, grace } => return bucket::gc(object, *dry_run, *grace, cli.json),
        Verb::Umount { folder, lazy } => {
            print(&mount::unmount(folder, *lazy)?, cli.json, &[]);
            return Ok(());
        }
        Verb::Key(KeyVerb::Rotate(args)) => return bucket::rotate(args, cli.json),
        Verb::Volume(VolumeVerb::List { object }) if object.object_store.is_some() => {
            return bucket::list(object, cli.json);
        }
        Verb::Checkpoint(_) | Verb::Restore { .. } | Verb::Fork { .. } => {
            if let Some(done) = of_sandbox(verb, cli.json) {
                return done;
            }
        }
        _ => {}
    }
    let folder = pool_folder(cli)?;
    let (request, columns): (Value, &[&str]) = match verb {
        Verb::Volume(VolumeVerb::Import { file, name, raw }) => {
            let made = import::import(&folder, file, name, *raw)?;
            if let (Some(size), Some(file), false) =
                (made["size_bytes"].as_u64(), made["file_bytes"].as_u64(), cli.json)
            {
                if size > file {
                    eprintln!(
                        "cairn: {} zero bytes were added at the end: a volume is made of whole blocks",
                        size - file
                    );
                }
            }
            print(&made, cli.json, &[]);
            return Ok(());
        }
        Verb::Volume(VolumeVerb::Export { source, file }) => {
            match export::export(&folder, source, file)? {
                // Standard output has the image.
                _ if file.as_os_str() == "-" => {}
                made => print(&made, cli.json, &[]),
            }
            return Ok(());
        }
        Verb::Checkpoint(CheckpointVerb::Diff { volume, from, to, files: true }) => {
            return files::differences(&folder, volume, from, to, cli.json);
        }
        Verb::Checkpoint(CheckpointVerb::Cat { volume, id, path }) => {
            return files::print_file(&folder, volume, id, path);
        }
        Verb::Checkpoint(CheckpointVerb::Cp { volume, id, path, dest }) => {
            print(&files::copy(&folder, volume, id, path, dest)?, cli.json, &[]);
            return Ok(());
        }
        Verb::Volume(VolumeVerb::Sync { name }) => {
            return wait_for_store(&folder, &json!({"op": "volume.sync", "volume": name}), "sync", cli.json);
        }
        Verb::Volume(VolumeVerb::Attach { name, takeover, read_only, new }) => {
            let request =
                json!({"op": "volume.attach", "volume": name, "takeover": takeover, "read_only": read_only, "as": new});
            return wait_for_store(&folder, &request, "attach", cli.json);
        }
        Verb::Volume(VolumeVerb::Detach { name, force }) => {
            let request = json!({"op": "volume.detach", "volume": name, "force": force});
            return wait_for_store(&folder, &request, "detach", cli.json);
        }
        Verb::Mount { volume, folder: at, allow_other, foreground, worker } => {
            let wanted = Wanted { pool: &folder, volume: volume.as_deref(), folder: at, allow_other: *allow_other };
            return match (worker, foreground) {
                (true, _) => mount::work(volume.clone(), at, *allow_other),
                (false, true) => mount::keep(&wanted),
                (false, false) => mount::start(&wanted, cli.json),
            };
        }
        Verb::Volume(VolumeVerb::Delete { name, abandoned: true, .. }) => {
            let request = json!({"op": "volume.delete_abandoned", "volume": name});
            return wait_for_store(&folder, &request, "delete", cli.json);
        }
        Verb::Check { .. } => return verify(&folder, &json!({"op": "check"}), "check", cli.json),
        Verb::Scrub { volume } => {
            return verify(&folder, &json!({"op": "scrub", "volume": volume}), "scrub", cli.json);
        }
        Verb::Volume(verb) => (volume_request(verb)?, VOLUME_COLUMNS),
        Verb::Checkpoint(verb) => (checkpoint_request(verb), CHECKPOINT_COLUMNS),
        Verb::Restore { volume, id, force, .. } => {
            let (volume, id) = named(volume, id);
            (json!({"op": "restore", "volume": volume, "id": id, "force": force}), &[])
        }
        Verb::Fork { source, name, .. } => (json!({"op": "fork", "volume": source, "name": name}), &[]),
        Verb::Stats { metrics } => (json!({"op": if *metrics { "metrics" } else { "stats" }}), &[]),
        // `main` gives those to others.
        _ => return Ok(()),
    };
    let (answer, who) = carry_out(&folder, &request)?;
    print(&answer, cli.json, columns);
    if answer.get("deleted").is_some() && who == Who::Us && !cli.json {
        eprintln!("cairn: no daemon runs on this pool: the space comes back while one does (cairn serve)");
    }
    Ok(())
}

/// A volume's checkpoint as the control socket takes it: `VOL@ID` goes there as it is.
fn named<'a>(volume: &'a Option<String>, id: &'a String) -> (&'a String, Option<&'a String>) {
    volume.as_ref().map_or((id, None), |volume| (volume, Some(id)))
}

/// Carries out a verb that means a sandbox; nothing if it means a volume.
fn of_sandbox(verb: &Verb, json: bool) -> Option<Result<(), Failure>> {
    let only_volumes = |what: &str| Err(Failure::new("invalid", format!("{what} is for volumes")));
    let text = Option::as_deref;
    let (at, meant) = match verb {
        Verb::Checkpoint(CheckpointVerb::Create { at, volume, .. } | CheckpointVerb::List { at, volume, .. }) => {
            (at, saved::whole(at, text(volume)))
        }
        Verb::Checkpoint(CheckpointVerb::Get { at, volume, id } | CheckpointVerb::Delete { at, volume, id, .. })
        | Verb::Restore { at, volume, id, .. } => (at, saved::one(at, text(volume), id)),
        Verb::Fork { at, source, name } => (at, saved::forked(at, text(source), name)),
        _ => return None,
    };
    let id = match meant {
        Err(failure) => return Some(Err(failure)),
        Ok(Meant::Volume(..)) => {
            let asks_memory = matches!(verb, Verb::Checkpoint(CheckpointVerb::Create { memory: true, .. }));
            let text = "--memory is for sandboxes (-s NAME), and for machines: cairn vm checkpoint";
            return asks_memory.then(|| Err(Failure::new("invalid", text)));
        }
        Ok(Meant::Sandbox(id)) => id,
    };
    Some(match verb {
        Verb::Checkpoint(CheckpointVerb::Create { wait, .. }) if wait != "local" => only_volumes("--wait"),
        Verb::Checkpoint(CheckpointVerb::Create { comment, memory, .. }) => saved::create(at, comment, *memory, json),
        Verb::Checkpoint(CheckpointVerb::List { all, .. }) => saved::list(at, *all, json),
        Verb::Checkpoint(CheckpointVerb::Get { .. }) => saved::show(at, id, json),
        Verb::Checkpoint(CheckpointVerb::Delete { force: true, .. }) | Verb::Restore { force: true, .. } => {
            only_volumes("--force")
        }
        Verb::Checkpoint(CheckpointVerb::Delete { .. }) => saved::delete(at, id, json),
        Verb::Restore { .. } => saved::restore(at, id, json),
        _ => saved::fork(at, id, json),
    })
}

fn volume_request(verb: &VolumeVerb) -> Result<Value, Failure> {
    Ok(match verb {
        VolumeVerb::Create { name, size: text } => {
            json!({"op": "volume.create", "volume": name, "size_bytes": size(text)?})
        }
        VolumeVerb::List { .. } => json!({"op": "volume.list"}),
        VolumeVerb::Info { name } => json!({"op": "volume.info", "volume": name}),
        VolumeVerb::Resize { name, size: text, shrink, force } => {
            let size = size(text)?;
            json!({"op": "volume.resize", "volume": name, "size_bytes": size, "shrink": shrink, "force": force})
        }
        VolumeVerb::Delete { name, force, .. } => json!({"op": "volume.delete", "volume": name, "force": force}),
        VolumeVerb::VhostUser { name } => json!({"op": "vhost.listen", "volume": name}),
        VolumeVerb::Set { name, durability, read_only, force } => {
            json!({"op": "volume.set", "volume": name, "durability": durability, "read_only": read_only, "force": force})
        }
        VolumeVerb::Import { .. }
        | VolumeVerb::Export { .. }
        | VolumeVerb::Sync { .. }
        | VolumeVerb::Attach { .. }
        | VolumeVerb::Detach { .. } => Value::Null,
    })
}

fn checkpoint_request(verb: &CheckpointVerb) -> Value {
    match verb {
        CheckpointVerb::Create { volume, comment, wait, .. } => {
            json!({"op": "checkpoint.create", "volume": volume, "comment": comment, "wait": wait})
        }
        CheckpointVerb::List { volume, all, .. } => json!({"op": "checkpoint.list", "volume": volume, "all": all}),
        CheckpointVerb::Get { volume, id, .. } => {
            let (volume, id) = named(volume, id);
            json!({"op": "checkpoint.get", "volume": volume, "id": id})
        }
        CheckpointVerb::Delete { volume, id, force, .. } => {
            let (volume, id) = named(volume, id);
            json!({"op": "checkpoint.delete", "volume": volume, "id": id, "force": force})
        }
        CheckpointVerb::Diff { volume, from, to, .. } => {
            json!({"op": "checkpoint.diff", "volume": volume, "from": from, "to": to})
        }
        CheckpointVerb::Cat { .. } | CheckpointVerb::Cp { .. } => Value::Null,
    }
}

/// Carries out what takes as long as the object store takes, by the daemon.
fn wait_for_store(folder: &Path, request: &Value, what: &'static str, as_json: bool) -> Result<(), Failure> {
    let stream = connect(&folder.join(CONTROL))?;
    let mut stream = stream.ok_or_else(|| {
        let text = "no daemon runs on this pool: start cairn serve --object-store URL, which speaks with the store";
        Failure::new("invalid", text)
    })?;
    let mut progress = Progress::new(what, true);
    let answer = ask_long(&mut stream, request, &mut progress)?;
    progress.clear();
    print(&answer, as_json, &[]);
    Ok(())
}

/// Verifies the accounts, or the data of one volume or all.
fn verify(folder: &Path, request: &Value, what: &'static str, as_json: bool) -> Result<(), Failure> {
    let link = Link::open(folder, Intent::Look)?;
    let mut progress = Progress::new(what, what == "scrub");
    let answer = ask_long(&mut link.connect()?, request, &mut progress)?;
    progress.clear();
    link.close()?;
    print(&answer, as_json, &[]);
    let found = ["problems", "damaged"].iter().filter_map(|key| answer[key].as_array()).map(Vec::len).sum::<usize>();
    if found == 0 {
        return Ok(());
    }
    let what = format!("{what} found {found} problem(s)");
    let text = match answer.get("damaged") {
        Some(_) => format!("{what}: restore what is named from a backup, or a volume from a checkpoint that is whole; the rest can be exported"),
        None => format!("{what}: run cairn scrub to see whether data is lost, and restore the pool from a backup"),
    };
    Err(Failure::new("corrupt", text))
}
