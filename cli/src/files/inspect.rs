//! `cairn inspect …`: files of a state for the sandbox API, which looks at nothing that a guest made by itself.
//!
//! Answers are those of the agent's `fs` verbs: `list` prints an object, `read` a line that tells what the file is and then
//! its bytes, `diff` an object; a refusal is an object on standard error, with a `code` as in errno.
//!
//! Invariants
//!   * the daemon is reached before the jail is entered, and no byte of the disk is looked at before that;
//!   * time and memory are bounded, whatever the disk claims.

use super::differences::{changed_bytes, compare, told};
use super::{image, link, Link, PIECE};
use crate::client::{self, Failure};
use crate::guest_args::InspectVerb;
use crate::jail;
use fs_inspect::limits::TREE_DEPTH_MAX;
use fs_inspect::{find, open, Attributes, Contents, FileKind, Place, ReadAt, Tree, TreeError};
use serde_json::{json, Value};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// Entries of one list, and bytes of their names and paths; a longer one is cut, and says so. A folder that is in itself has
/// paths of any length, and its names are held once for each of its depths.
const ENTRIES_MAX: usize = 100_000;
const TEXT_MAX: usize = 32 << 20;
/// What a name costs beside its bytes.
const NAME_COST: usize = 64;
/// Seconds of a processor that one look may take.
const CPU_S: u64 = 60;

/// Carries out one look, and ends in the jail.
pub fn inspect(folder: &Path, verb: &InspectVerb) -> Result<(), Failure> {
    let link = link(folder)?;
    if link.is_own() {
        return Err(Failure::new("invalid", "no daemon runs on this pool: cairn serve"));
    }
    let outcome = match verb {
        InspectVerb::List { recursive, volume, id, path } => list(&enter(image(&link, volume, id)?)?, path, *recursive),
        InspectVerb::Read { volume, id, path, from, len } => {
            read(&enter(image(&link, volume, id)?)?, path, *from, *len)
        }
        InspectVerb::Diff { volume, from, to } => return diff(&link, volume, from, to),
    };
    outcome.or_else(|refusal| {
        eprintln!("{refusal}");
        // There is nothing to close, and the jail lets nothing be cleaned.
        std::process::exit(1)
    })
}

/// Goes into the jail, and looks at the disk only then.
fn enter(image: Arc<dyn ReadAt>) -> Result<Contents, Failure> {
    give_up()?;
    Ok(open(image)?)
}

fn give_up() -> Result<(), Failure> {
    let limit = libc::rlimit { rlim_cur: CPU_S, rlim_max: CPU_S };
    // SAFETY: a plain system call on a value that lives to its end.
    if unsafe { libc::setrlimit(libc::RLIMIT_CPU, &limit) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    // What the kernel lacks is told by the mount, which lives longer.
    Ok(jail::enter(&mut |_| ())?)
}

fn refusal(code: &str, path: &str, text: impl std::fmt::Display) -> Value {
    json!({"error": format!("{path}: {text}"), "code": code, "path": path})
}

fn of_tree(e: &TreeError, path: &str) -> Value {
    let code = match e {
        TreeError::NotFound => "ENOENT",
        TreeError::WrongKind => "EINVAL",
        TreeError::Unsupported(_) => "ENOTSUP",
        TreeError::Damaged(_) | TreeError::Io(_) => "EIO",
    };
    refusal(code, path, e)
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::Link => "symlink",
        _ => "file",
    }
}

fn entry(path: &str, is: &Attributes) -> Value {
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
    let nanoseconds = is.modified.seconds.saturating_mul(1_000_000_000).saturating_add(is.modified.nanoseconds.into());
    json!({
        "name": name, "path": path, "type": kind(is.kind), "size": is.size, "mode": format!("{:04o}", is.mode),
        "modTimeNs": nanoseconds, "isDir": is.kind == FileKind::Directory, "uid": is.uid, "gid": is.gid,
    })
}

/// Who no longer listens has what it wanted.
fn tell(line: &Value) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Partitions are folders of the top.
fn partitions(contents: &Contents) -> Option<Vec<Value>> {
    let Contents::Partitions(all) = contents else { return None };
    let folder = |name: &str| json!({"name": name, "path": format!("/{name}"), "type": "directory", "isDir": true});
    Some(all.iter().map(|part| folder(&part.name)).collect())
}

fn list(contents: &Contents, path: &str, recursive: bool) -> Result<(), Value> {
    let at_top = path.split('/').all(|name| name.is_empty() || name == ".");
    if let Some(entries) = partitions(contents).filter(|_| at_top) {
        tell(&json!({"path": path, "count": entries.len(), "entries": entries, "complete": true}));
        return Ok(());
    }
    let Place { tree, inode } = find(contents, path.as_bytes()).map_err(|e| of_tree(&e, path))?;
    let is = tree.attributes(inode).map_err(|e| of_tree(&e, path))?;
    let (mut entries, mut whole) = (Vec::new(), true);
    let mut room = TEXT_MAX;
    if is.kind == FileKind::Directory {
        let depth = if recursive { TREE_DEPTH_MAX } else { 1 };
        whole = walk(&*tree, inode, path.trim_end_matches('/'), depth, &mut entries, &mut room)
            .map_err(|e| of_tree(&e, path))?;
    } else {
        entries.push(entry(path, &is));
    }
    tell(&json!({"path": path, "count": entries.len(), "entries": entries, "complete": whole}));
    Ok(())
}

/// Adds what is in a folder, each folder before what is in it, while there is `room` for text; whether that was all.
fn walk(
    tree: &dyn Tree,
    folder: u64,
    path: &str,
    depth: usize,
    out: &mut Vec<Value>,
    room: &mut usize,
) -> Result<bool, TreeError> {
    let (mut names, mut whole) = (Vec::new(), true);
    tree.entries(folder, 0, &mut |entry| {
        let left = room.checked_sub(entry.name.len() + NAME_COST);
        whole = left.is_some() && out.len() + names.len() < ENTRIES_MAX;
        if let Some(left) = left.filter(|_| whole) {
            *room = left;
            names.push((entry.name, entry.inode));
        }
        whole
    })?;
    names.sort();
    for (name, inode) in names {
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        if out.len() == ENTRIES_MAX || *room < path.len() {
            return Ok(false);
        }
        *room -= path.len();
        let is = tree.attributes(inode)?;
        let is_folder = is.kind == FileKind::Directory;
        out.push(entry(&path, &is));
        if is_folder && depth > 1 && !walk(tree, inode, &path, depth - 1, out, room)? {
            return Ok(false);
        }
    }
    Ok(whole)
}

fn read(contents: &Contents, path: &str, from: u64, len: u64) -> Result<(), Value> {
    let failed = |e: TreeError| of_tree(&e, path);
    let Place { tree, inode } = find(contents, path.as_bytes()).map_err(failed)?;
    let is = tree.attributes(inode).map_err(failed)?;
    match is.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(refusal("EISDIR", path, "it is a folder")),
        FileKind::Link => {
            let target = tree.link_target(inode).map_err(failed)?;
            let text = format!("it is a symbolic link to {}: links are not followed", String::from_utf8_lossy(&target));
            return Err(refusal("ELOOP", path, text));
        }
        _ => return Err(refusal("EINVAL", path, "it has no contents")),
    }
    let mut out = io::stdout().lock();
    // Who no longer listens has what it wanted.
    let gone = |_| Value::Null;
    writeln!(out, "{}", entry(path, &is)).map_err(gone)?;
    let (mut at, end, mut piece) = (from, is.size.min(from.saturating_add(len)), vec![0; PIECE]);
    while at < end {
        let wanted = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        let got = tree.read(inode, at, piece.get_mut(..wanted).unwrap_or_default()).map_err(failed)?;
        if got == 0 {
            break;
        }
        out.write_all(piece.get(..got).unwrap_or_default()).map_err(gone)?;
        at += got as u64;
    }
    out.flush().map_err(gone)
}

/// Both disks are reached, and what the daemon knows of them, before the jail.
fn diff(link: &Arc<Link>, volume: &str, from: &str, to: &str) -> Result<(), Failure> {
    let mut stream = link.connect()?;
    let request = json!({"op": "checkpoint.diff", "volume": volume, "from": from, "to": to});
    let answer = client::ask(&mut stream, &request)?;
    let (before, after) = (image(link, volume, from)?, image(link, volume, to)?);
    give_up()?;
    let (before, after) = (open(before)?, open(after)?);
    let files = compare(&before, &after, &changed_bytes(&answer), volume)?;
    let bytes = &answer["changed_bytes"];
    tell(&json!({"changed_bytes": bytes, "complete": answer["complete"], "files": told(&files)}));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_inspect::{Entry, Extent, Inode, Time};
    use std::ops::Range;

    /// A folder that is in itself, under so many names of 255 bytes.
    struct Looped(u64);

    impl Tree for Looped {
        fn root(&self) -> Inode {
            2
        }

        fn size(&self) -> u64 {
            1 << 20
        }

        fn attributes(&self, _: Inode) -> Result<Attributes, TreeError> {
            let time = Time::default();
            Ok(Attributes {
                kind: FileKind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                links: 2,
                size: 4096,
                sectors: 8,
                accessed: time,
                modified: time,
                changed: time,
                created: None,
                device: (0, 0),
                generation: 0,
            })
        }

        fn lookup(&self, _: Inode, _: &[u8]) -> Result<Inode, TreeError> {
            Ok(2)
        }

        fn entries(&self, _: Inode, _: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), TreeError> {
            let entry = |n: u64| Entry { name: format!("{n:0255}").into_bytes(), inode: 2, kind: None, next: n + 1 };
            let _ = (0..self.0).map(entry).all(each);
            Ok(())
        }

        fn parent(&self, _: Inode) -> Result<Inode, TreeError> {
            Ok(2)
        }

        fn read(&self, _: Inode, _: u64, _: &mut [u8]) -> Result<usize, TreeError> {
            Err(TreeError::WrongKind)
        }

        fn extent(&self, _: Inode, _: u64) -> Result<Extent, TreeError> {
            Err(TreeError::WrongKind)
        }

        fn link_target(&self, _: Inode) -> Result<Vec<u8>, TreeError> {
            Err(TreeError::WrongKind)
        }

        fn xattr_names(&self, _: Inode) -> Result<Vec<Vec<u8>>, TreeError> {
            Ok(Vec::new())
        }

        fn xattr(&self, _: Inode, _: &[u8]) -> Result<Vec<u8>, TreeError> {
            Err(TreeError::NotFound)
        }

        fn record(&self, _: Inode) -> Result<Range<u64>, TreeError> {
            Ok(0..256)
        }

        fn overlaid(&self) -> Vec<Range<u64>> {
            Vec::new()
        }
    }

    #[test]
    fn a_folder_that_is_in_itself_makes_no_endless_list() {
        for names in [1, 300, 90_000] {
            let (mut entries, mut room) = (Vec::new(), TEXT_MAX);
            let whole = walk(&Looped(names), 2, "", TREE_DEPTH_MAX, &mut entries, &mut room);
            let bytes: usize = entries.iter().map(|entry| entry.to_string().len()).sum();
            let whole = whole.expect("a tree that can be read");
            assert!(!whole || names == 1, "{names} names");
            assert!(bytes < 2 * TEXT_MAX, "{names} names: {bytes} bytes of {} entries", entries.len());
        }
    }
}
