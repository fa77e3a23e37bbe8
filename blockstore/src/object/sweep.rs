//! The daily sweep: what nobody needs, found from the bucket alone.
//!
//! It deletes orphans, which a pool put and died before a manifest named them, objects that a pool forgot, old
//! manifests and spent pins. It needs no pool and may run anywhere, also beside running pools.
//!
//! Invariants
//!   * nothing is deleted unless every manifest that matters was read (`reach`);
//!   * only what is older than the grace period by the store's own clock: a pool that puts an object names it in a
//!     manifest within half of that time, or puts it again ([`UNNAMED_US_MAX`]);
//!   * the newest manifest of a volume stays, tombstones too;
//!   * what is under other prefixes, or is not what its key says, is left alone and reported.
//!
//! [`UNNAMED_US_MAX`]: crate::limits::UNNAMED_US_MAX

use super::pins::{pins_at, unhex, Pin};
use super::reach::{each, erase, manifest_place, mark, Marked, Seen};
use super::ObjectStore;
use crate::error::{Error, ErrorKind, Result};
use crate::format::object::ObjectId;
use crate::limits::OBJECT_GRACE_US;
use crate::space::store_error;
use crate::types::VolumeId;
use std::collections::BTreeMap;

/// Says when the last sweep was, and what time it is in the store.
const MARKER: &str = "sweeps/last";
/// How far the caller's clock may be ahead of the store's.
const SKEW_US_MAX: u64 = 15 * 60 * 1_000_000;

/// What a sweep found.
#[derive(Clone, Debug, Default)]
pub struct SweepReport {
    /// Whether anything was deleted.
    pub dry_run: bool,
    /// Volumes, by name.
    pub volumes: BTreeMap<String, Seen>,
    /// Objects that a volume needs.
    pub live: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Objects that none needs, and that are old enough.
    pub orphans: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Objects that none needs yet: too young to tell.
    pub young: u64,
    /// Old manifests.
    pub manifests: u64,
    /// Pins that nobody needs.
    pub pins: u64,
    /// What is not what it should be, and was left.
    pub strange: Vec<String>,
}

/// The object that a key names.
pub(crate) fn object_id(key: &str) -> Option<ObjectId> {
    let mut parts = key.strip_prefix("objects/")?.split('/');
    let pool = unhex(parts.next()?)?;
    let volume = VolumeId(u64::from_str_radix(parts.next()?, 16).ok()?);
    let id = ObjectId { pool, volume, number: u64::from_str_radix(parts.next()?, 16).ok()? };
    (id.key() == key).then_some(id)
}

/// Finds what nobody needs, and deletes it unless `dry_run`. `now_us` is the caller's time, which must agree with the
/// store's; `grace_us` is how old things must be, [`SWEEP_GRACE_US`](crate::limits::SWEEP_GRACE_US) if nobody has
/// reasons for another.
///
/// # Errors
/// When anything that matters could not be read; nothing more is deleted then.
pub fn sweep(store: &dyn ObjectStore, now_us: u64, grace_us: u64, dry_run: bool) -> Result<SweepReport> {
    let now_us = if dry_run { now_us } else { store_time(store, now_us)? };
    let marked = mark(store)?;
    let mut report = SweepReport { dry_run, volumes: marked.volumes.clone(), ..SweepReport::default() };
    sweep_objects(store, &marked, now_us, grace_us, &mut report)?;
    sweep_manifests(store, &marked, now_us, grace_us.max(OBJECT_GRACE_US), &mut report)?;
    sweep_pins(store, &marked, now_us, &mut report)?;
    Ok(report)
}

/// The store's time, by which ages are told; refuses when it is far behind the caller's.
fn store_time(store: &dyn ObjectStore, now_us: u64) -> Result<u64> {
    let wrap = |e| store_error("marking the sweep", &e);
    store.put(MARKER, format!("cairn sweep 1\ntime_us {now_us}\n").as_bytes()).map_err(wrap)?;
    let listed = store.list(MARKER, None, 1).map_err(wrap)?;
    let there = listed.first().filter(|entry| entry.key == MARKER).map(|entry| entry.modified_us);
    let there = there.ok_or_else(|| Error::new(ErrorKind::Unavailable, "the store does not list what was just put"))?;
    if now_us > there.saturating_add(SKEW_US_MAX) {
        let text = format!(
            "this host's clock is {} s ahead of the object store's: nothing is deleted until they agree",
            (now_us - there) / 1_000_000
        );
        return Err(Error::invalid(text));
    }
    Ok(there)
}

fn sweep_objects(
    store: &dyn ObjectStore,
    marked: &Marked,
    now_us: u64,
    grace_us: u64,
    report: &mut SweepReport,
) -> Result<()> {
    each(store, "objects/", &mut |entry| {
        let Some(id) = object_id(&entry.key) else {
            report.strange.push(format!("{} is no object of cairn", entry.key));
            return Ok(());
        };
        if marked.objects.contains(&id) {
            report.live += 1;
            report.live_bytes += entry.size;
            return Ok(());
        }
        if entry.modified_us.saturating_add(grace_us) > now_us {
            report.young += 1;
            return Ok(());
        }
        if !report.dry_run {
            match erase(store, &id, None) {
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                    report.strange.push(format!("{e}; it is left"));
                    return Ok(());
                }
                other => other?,
            }
        }
        report.orphans += 1;
        report.orphan_bytes += entry.size;
        Ok(())
    })
}

fn sweep_manifests(
    store: &dyn ObjectStore,
    marked: &Marked,
    now_us: u64,
    grace_us: u64,
    report: &mut SweepReport,
) -> Result<()> {
    // The newest of a volume comes first; a manifest is old since the one before it in the list was put.
    let mut before: Option<(String, u64)> = None;
    each(store, "volumes/", &mut |entry| {
        let (name, number) = manifest_place(&entry.key)?;
        let since = before.as_ref().filter(|(of, _)| of == name).map(|(_, put_us)| *put_us);
        before = Some((name.to_owned(), entry.modified_us));
        let newest = marked.volumes.get(name).map_or(0, |seen| seen.number);
        let old = number < newest && since.is_some_and(|since| since.saturating_add(grace_us) <= now_us);
        if !old {
            return Ok(());
        }
        report.manifests += 1;
        if report.dry_run {
            return Ok(());
        }
        store.delete(&entry.key).map_err(|e| store_error(&format!("deleting manifest {}", entry.key), &e))
    })
}

fn sweep_pins(store: &dyn ObjectStore, marked: &Marked, now_us: u64, report: &mut SweepReport) -> Result<()> {
    let pins = pins_at(store, None)?;
    let mut at: BTreeMap<[u8; 16], Vec<Pin>> = BTreeMap::new();
    for pin in pins {
        at.entry(pin.maker).or_default().push(pin);
    }
    for (pin, all) in at.values().flat_map(|all| all.iter().map(move |pin| (pin, all))) {
        if !pin.is_spent(all, marked, now_us) {
            continue;
        }
        report.pins += 1;
        if !report.dry_run {
            store.delete(&pin.key()).map_err(|e| store_error(&format!("removing {}", pin.key()), &e))?;
        }
    }
    Ok(())
}
