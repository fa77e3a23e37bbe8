//! The checker of a bucket: recomputes from the objects alone what every volume needs, and whether it is there.
//!
//! Invariants
//!   * one finding never hides the others;
//!   * a volume that is written while it is checked is read again, not reported.
//!
//! Not here: deleting anything (`sweep`).

use super::claim::newest_manifest;
use super::reach::{each, newest_numbers, read_manifest};
use super::sweep::object_id;
use super::{ObjectStore, Range};
use crate::check::{tick, Ticker};
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{manifest_key, Manifest, ObjectInfo, Tenure};
use crate::format::object::{Directory, ObjectId};
use crate::space::{fetch_directory, store_error};
use crate::types::SegmentId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a volume takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeBytes {
    /// Bytes of all objects that it names.
    pub bytes: u64,
    /// Of these, in objects that other volumes name, too.
    pub shared: u64,
    /// Objects.
    pub objects: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct BucketReport {
    /// Volumes that are not deleted, by name.
    pub volumes: BTreeMap<String, VolumeBytes>,
    /// Names of deleted volumes: their last manifests stay.
    pub tombstones: u64,
    /// Objects that some volume names.
    pub objects: u64,
    /// Their bytes, each once.
    pub bytes: u64,
    /// Bytes in objects that more than one volume names, each once.
    pub shared: u64,
    /// Objects that no volume names: dead, and to be deleted when their time has come, or orphans.
    pub orphans: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Everything that is wrong.
    pub problems: Vec<String>,
}

struct Named {
    info: ObjectInfo,
    /// The volume that named it first.
    volume: String,
    volumes: u32,
    there: bool,
}

/// Checks everything in the bucket: manifests, that each object they name is there, and its directory; with `deep`,
/// every byte of every object. `ticker` is told of objects done and in all.
pub fn check_bucket(store: &dyn ObjectStore, deep: bool, ticker: &mut Ticker<'_>) -> Result<BucketReport> {
    let mut report = BucketReport::default();
    let mut named: HashMap<ObjectId, Named> = HashMap::new();
    for (name, number) in newest_numbers(store)? {
        match newest(store, &name, number) {
            Ok(manifest) => note(&manifest, &mut named, &mut report),
            Err(e) if e.kind() == ErrorKind::Unavailable => return Err(e),
            Err(e) => report.problems.push(format!("volume {name:?}: {e}")),
        }
    }
    each(store, "objects/", &mut |entry| {
        match object_id(&entry.key).and_then(|id| named.get_mut(&id)) {
            Some(there) => {
                there.there = true;
                if entry.size != there.info.len {
                    report.problems.push(format!(
                        "object {} of volume {:?} has {} bytes, {} were put",
                        entry.key, there.volume, entry.size, there.info.len
                    ));
                }
            }
            None => {
                report.orphans += 1;
                report.orphan_bytes += entry.size;
            }
        }
        Ok(())
    })?;
    let volumes: Vec<String> = report.volumes.keys().cloned().collect();
    let (mut done, total) = (0, named.len() as u64);
    for name in volumes {
        let manifest = newest_manifest(store, &name)?;
        let Some(manifest) = manifest.filter(|manifest| manifest.tenure != Tenure::Deleted) else { continue };
        check_objects(store, &manifest, &mut named, deep, &mut report, &mut || {
            done += 1;
            tick(ticker, done, total.max(done))
        })?;
    }
    Ok(report)
}

/// The newest manifest, which was number `number` when it was looked up.
fn newest(store: &dyn ObjectStore, name: &str, number: u64) -> Result<Manifest> {
    let gone = |_| newest_manifest(store, name)?.ok_or_else(|| Error::corrupt("its manifests are gone"));
    read_manifest(store, &manifest_key(name, number)).or_else(gone)
}

fn note(manifest: &Manifest, named: &mut HashMap<ObjectId, Named>, report: &mut BucketReport) {
    if manifest.tenure == Tenure::Deleted {
        report.tombstones += 1;
        return;
    }
    report.volumes.insert(manifest.name.clone(), VolumeBytes::default());
    for (id, info) in &manifest.objects {
        let entry =
            named.entry(*id).or_insert(Named { info: *info, volume: manifest.name.clone(), volumes: 0, there: false });
        entry.volumes += 1;
        if entry.volumes == 1 {
            report.objects += 1;
            report.bytes += info.len;
        } else if entry.volumes == 2 {
            report.shared += info.len;
        }
        if entry.info != *info {
            report.problems.push(format!(
                "volumes {:?} and {:?} say different things of object {}",
                entry.volume,
                manifest.name,
                id.key()
            ));
        }
    }
    for part in manifest.segments.values().flat_map(|segment| &segment.parts) {
        if !manifest.objects.contains_key(&part.object) {
            report.problems.push(format!("volume {:?} does not list object {}", manifest.name, part.object.key()));
        }
    }
}

/// That the objects of one volume hold what its manifest says.
fn check_objects(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    named: &mut HashMap<ObjectId, Named>,
    deep: bool,
    report: &mut BucketReport,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut ranges: BTreeMap<ObjectId, BTreeSet<(SegmentId, u32, u32)>> = BTreeMap::new();
    for (id, segment) in &manifest.segments {
        let original = manifest.origins.of(*id).map_or(*id, |(_, there)| there);
        for part in &segment.parts {
            ranges.entry(part.object).or_default().insert((original, part.first, part.end));
        }
    }
    let mut bytes = VolumeBytes::default();
    for (id, info) in &manifest.objects {
        bytes.objects += 1;
        bytes.bytes += info.len;
        let entry = named.get(id);
        bytes.shared += entry.filter(|entry| entry.volumes > 1).map_or(0, |_| info.len);
        // Each once, on behalf of the volume that named it first.
        if entry.is_some_and(|entry| entry.volume != manifest.name) {
            continue;
        }
        tick()?;
        let checked = check_object(store, id, info, ranges.get(id), deep);
        match checked {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Unavailable => return Err(e),
            Err(e) => {
                if newest_manifest(store, &manifest.name)?.is_some_and(|now| now.number == manifest.number) {
                    let missing = entry.is_some_and(|entry| !entry.there);
                    let what = if missing { "is missing" } else { "is damaged" };
                    report.problems.push(format!("object {} of volume {:?} {what}: {e}", id.key(), manifest.name));
                }
            }
        }
    }
    report.volumes.insert(manifest.name.clone(), bytes);
    Ok(())
}

fn check_object(
    store: &dyn ObjectStore,
    id: &ObjectId,
    info: &ObjectInfo,
    ranges: Option<&BTreeSet<(SegmentId, u32, u32)>>,
    deep: bool,
) -> Result<()> {
    let directory = fetch_directory(store, id, info)?;
    if directory.object_len() != info.len {
        return Err(Error::corrupt("its directory and its manifest do not agree on its length"));
    }
    for (segment, first, end) in ranges.into_iter().flatten() {
        let holds = directory.ranges.iter().any(|r| r.segment == *segment && r.first == *first && r.end == *end);
        if !holds {
            return Err(Error::corrupt(format!("it does not hold slots {first} to {end} of segment {}", segment.0)));
        }
    }
    if deep {
        let bytes = store.get(&id.key(), Range::All);
        let bytes = bytes.map_err(|e| store_error(&format!("reading object {}", id.key()), &e))?;
        Directory::decode(&bytes, id)?.verify_all(&bytes)?;
    }
    Ok(())
}
