//! Verbs on an object store itself, without a pool: what is in it, whether it is whole, what nobody needs, its keys.

use crate::args::{ObjectArgs, RotateArgs, Stage};
use crate::client::Failure;
use crate::output::{print, Progress};
use crate::store::{self, failure};
use blockstore::object::sealed::{retire, rewrap};
use blockstore::object::{check_bucket, list_volumes, sweep, Seen, Tenure};
use blockstore::Clock;
use nbd_server::object::Connected;
use nbd_server::{control, SystemClock};
use serde_json::{json, Value};

const COLUMNS: &[&str] = &["name", "state", "pool", "epoch", "manifest", "object_bytes"];

fn connect(args: &ObjectArgs) -> Result<Connected, Failure> {
    let connected =
        store::connect(args)?.ok_or_else(|| Failure::new("invalid", "which object store? give --object-store URL"))?;
    connected.look().map_err(|e| failure(&e))?;
    Ok(connected)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(name: &str, seen: &Seen) -> Value {
    let state = match seen.tenure {
        Tenure::Owned => "owned",
        Tenure::Detached => "detached",
        Tenure::Deleted => "deleted",
    };
    json!({
        "name": name,
        "state": state,
        "pool": hex(&seen.pool),
        "epoch": seen.epoch,
        "manifest": seen.number,
        "object_bytes": seen.bytes,
    })
}

/// The volumes in the store.
pub fn list(args: &ObjectArgs, as_json: bool) -> Result<(), Failure> {
    let volumes = list_volumes(&*connect(args)?.tier.store)?;
    let alive = volumes.iter().filter(|(_, seen)| seen.tenure != Tenure::Deleted);
    print(&alive.map(|(name, seen)| describe(name, seen)).collect(), as_json, COLUMNS);
    Ok(())
}

/// Deletes what no volume needs and is old enough.
pub fn gc(args: &ObjectArgs, dry_run: bool, grace_hours: f64, as_json: bool) -> Result<(), Failure> {
    if !(grace_hours >= 0.0 && grace_hours < 1e6) {
        return Err(Failure::new("invalid", format!("--grace {grace_hours} is not a number of hours")));
    }
    let store = connect(args)?.tier.store;
    let report = sweep(&*store, SystemClock.now_us(), (grace_hours * 3.6e9) as u64, dry_run)?;
    let answer = json!({
        "dry_run": report.dry_run,
        "volumes": report.volumes.len(),
        "objects": report.live,
        "object_bytes": report.live_bytes,
        "orphans": report.orphans,
        "orphan_bytes": report.orphan_bytes,
        "too_young": report.young,
        "old_manifests": report.manifests,
        "pins": report.pins,
        "strange": report.strange,
    });
    print(&answer, as_json, &[]);
    if dry_run && !as_json {
        eprintln!("cairn: nothing was deleted (--dry-run)");
    }
    Ok(())
}

/// Recomputes from the store alone what its volumes need, and whether it is there.
pub fn check(args: &ObjectArgs, deep: bool, as_json: bool) -> Result<(), Failure> {
    let store = connect(args)?.tier.store;
    let mut progress = Progress::new("check", false);
    let report = check_bucket(&*store, deep, &mut |done, total| {
        progress.show(done, total);
        true
    })?;
    progress.clear();
    let volume = |(name, bytes): (&String, &blockstore::object::VolumeBytes)| json!({"name": name, "object_bytes": bytes.bytes, "shared_bytes": bytes.shared, "objects": bytes.objects});
    let answer = json!({
        "volumes": report.volumes.iter().map(volume).collect::<Vec<_>>(),
        "objects": report.objects,
        "object_bytes": report.bytes,
        "shared_bytes": report.shared,
        "orphans": report.orphans,
        "orphan_bytes": report.orphan_bytes,
        "problems": report.problems,
    });
    print(&answer, as_json, &[]);
    match report.problems.len() {
        0 => Ok(()),
        found => Err(Failure::new("corrupt", format!("check found {found} problem(s) in the object store"))),
    }
}

/// Has another key open what is encrypted, without touching it.
pub fn rotate(args: &RotateArgs, as_json: bool) -> Result<(), Failure> {
    let connected = connect(&args.object)?;
    let wrong = |text: &str| Failure::new("invalid", text);
    let old =
        store::key(&args.object)?.ok_or_else(|| wrong("which key opens it now? give --key-file or --key-command"))?;
    let new = store::key_of(args.new_key_file.as_deref(), args.new_key_command.as_deref())?
        .ok_or_else(|| wrong("which key is to open it? give --new-key-file or --new-key-command"))?;
    let done = match args.stage {
        Stage::Add => rewrap(&connected.raw, &*old, &*new),
        Stage::Retire => retire(&connected.raw, &*old, &*new),
    };
    let done = done.map_err(|e| failure(&e))?;
    let answer = json!({
        "scopes": done.scopes, "rewrapped": done.rewrapped, "foreign": done.foreign, "time": control::timestamp(SystemClock.now_us()),
    });
    print(&answer, as_json, &[]);
    Ok(())
}
