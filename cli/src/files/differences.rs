//! What differs between two states, file by file.

use super::{failure, link, State};
use crate::client::{self, Failure};
use crate::output::{human, printable};
use fs_inspect::{diff, Attributes, Change, Contents, Difference, FileKind, Tree};
use serde_json::{json, Value};
use std::ops::Range;
use std::path::Path;

/// Prints the files that differ between two states of a volume.
pub fn differences(folder: &Path, volume: &str, from: &str, to: &str, as_json: bool) -> Result<(), Failure> {
    let link = link(folder)?;
    let request = json!({"op": "checkpoint.diff", "volume": volume, "from": from, "to": to});
    let mut stream = link.connect()?;
    client::send(&mut stream, &request)?;
    let answer = client::answer(&client::line(&stream)?)?;
    let changed = changed_bytes(&answer);
    let (before, after) = (State::open(&link, volume, from)?, State::open(&link, volume, to)?);
    print(&compare(&before.contents, &after.contents, &changed, volume)?, as_json);
    Ok(())
}

/// The files that differ, each behind its partition's name. `changed` is where the disk does.
pub fn compare(
    before: &Contents,
    after: &Contents,
    changed: &[Range<u64>],
    volume: &str,
) -> Result<Vec<(String, Difference)>, Failure> {
    let mut all = Vec::new();
    for pair in pairs(before, after, volume)? {
        let inside =
            changed.iter().map(|range| range.start.saturating_sub(pair.start)..range.end.saturating_sub(pair.start));
        let found = diff(pair.before, pair.after, inside.collect()).map_err(|e| failure(&e, volume))?;
        all.extend(found.into_iter().map(|difference| (pair.name.clone(), difference)));
    }
    Ok(all)
}

/// The bytes of the disk that differ, at least.
pub fn changed_bytes(answer: &Value) -> Vec<Range<u64>> {
    let extent = |extent: &Value| {
        let start = extent["offset"].as_u64()?;
        Some(start..start.saturating_add(extent["length"].as_u64()?))
    };
    let mut all: Vec<Range<u64>> = answer["extents"].as_array().into_iter().flatten().filter_map(extent).collect();
    if answer["complete"] != Value::Bool(true) {
        all.push(all.last().map_or(0, |last| last.end)..u64::MAX);
    }
    all
}

/// A file system in both states.
struct Pair<'a> {
    /// The partition, with a `/`; empty on a disk without partitions.
    name: String,
    start: u64,
    before: &'a dyn Tree,
    after: &'a dyn Tree,
}

fn pairs<'a>(before: &'a Contents, after: &'a Contents, volume: &str) -> Result<Vec<Pair<'a>>, Failure> {
    match (before, after) {
        (Contents::Tree(before), Contents::Tree(after)) => {
            Ok(vec![Pair { name: String::new(), start: 0, before: &**before, after: &**after }])
        }
        (Contents::Partitions(before), Contents::Partitions(after)) => {
            let same = before.iter().filter_map(|a| {
                let b = after.iter().find(|b| (b.start, &b.name) == (a.start, &a.name))?;
                let (Contents::Tree(before), Contents::Tree(after)) = (&a.contents, &b.contents) else { return None };
                Some(Pair { name: format!("{}/", a.name), start: a.start, before: &**before, after: &**after })
            });
            Ok(same.collect())
        }
        (Contents::Unreadable { why }, _) | (_, Contents::Unreadable { why }) => {
            let text = format!("{volume} cannot be compared file by file, in one of the states: {why}; without --files blocks are compared");
            Err(Failure::new("invalid", text))
        }
        _ => Err(Failure::new("invalid", format!("{volume} was partitioned between the two states"))),
    }
}

fn word(change: &Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Modified => "modified",
        Change::Attributes => "attributes",
        Change::Renamed { .. } => "renamed",
    }
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "folder",
        FileKind::Link => "link",
        FileKind::Character | FileKind::Block => "device",
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As JSON: the form of `cairn checkpoint diff --files --json`.
pub fn told(all: &[(String, Difference)]) -> Value {
    let state = |of: &Option<Attributes>| {
        of.as_ref().map(|of| json!({"kind": kind(of.kind), "size_bytes": of.size, "mode": format!("{:04o}", of.mode), "uid": of.uid, "gid": of.gid}))
    };
    let line = |(part, difference): &(String, Difference)| {
        let mut line = json!({
            "path": format!("{part}{}", text(&difference.path)),
            "change": word(&difference.change),
            "before": state(&difference.before),
            "after": state(&difference.after),
        });
        if let Change::Renamed { from, modified } = &difference.change {
            line["from"] = json!(format!("{part}{}", text(from)));
            line["modified"] = json!(modified);
        }
        line
    };
    all.iter().map(line).collect()
}

fn print(all: &[(String, Difference)], as_json: bool) {
    if as_json {
        println!("{}", told(all));
        return;
    }
    if all.is_empty() {
        println!("no file differs");
    }
    for (part, difference) in all {
        let path = printable(&format!("{part}{}", text(&difference.path)));
        println!("{:10} {path}{}", word(&difference.change), detail(part, difference));
    }
}

/// What changed about it, for people.
fn detail(part: &str, difference: &Difference) -> String {
    let size = |of: &Attributes| if of.kind == FileKind::File { human(of.size) } else { kind(of.kind).to_owned() };
    match (&difference.change, &difference.before, &difference.after) {
        (Change::Renamed { from, modified }, ..) => {
            let changed = if *modified { ", and modified" } else { "" };
            format!("  from {}{changed}", printable(&format!("{part}{}", text(from))))
        }
        (Change::Attributes, Some(a), Some(b)) if (a.mode, a.uid, a.gid) != (b.mode, b.uid, b.gid) => {
            format!("  {:04o} {}:{} -> {:04o} {}:{}", a.mode, a.uid, a.gid, b.mode, b.uid, b.gid)
        }
        (Change::Modified, Some(a), Some(b)) if size(a) != size(b) => format!("  {} -> {}", size(a), size(b)),
        (Change::Attributes, ..) => "  extended attributes".to_owned(),
        (_, _, Some(of)) | (_, Some(of), None) => format!("  {}", size(of)),
        _ => String::new(),
    }
}
