//! `cairn-agent fs …`: the file API. The kernel decides who may do what; nothing here checks paths.
//!
//! Invariants
//!   * memory does not grow with a file's size nor, but for the names of one folder, with a tree's;
//!   * symbolic links are never followed on the way down a tree.

use super::entry::entry;
use super::{tell, usage, Failure};
use serde_json::{json, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{chown, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Entries of one list; a longer one is cut, and says so.
const ENTRIES_MAX: usize = 100_000;

/// Whether `flag` is among the words; those without it.
fn flag<'a>(words: &[&'a str], flag: &str) -> (bool, Vec<&'a str>) {
    let rest: Vec<&str> = words.iter().copied().filter(|word| *word != flag).collect();
    (rest.len() < words.len(), rest)
}

pub(super) fn carry_out(words: &[&str]) -> Result<(), Failure> {
    let (verb, words) = words.split_first().ok_or_else(usage)?;
    // Behind the flags, a path may look like one of them.
    let split = words.iter().position(|word| *word == "--").ok_or_else(usage)?;
    let (flags, paths) = words.split_at(split);
    let paths: Vec<PathBuf> = paths.iter().skip(1).map(PathBuf::from).collect();
    let (recursive, flags) = flag(flags, "--recursive");
    let (parents, flags) = flag(&flags, "--parents");
    match (*verb, flags.as_slice(), paths.as_slice()) {
        ("list", [], [path]) => list(path, recursive),
        ("read", [], [path]) => read(path, 0, u64::MAX),
        ("read", [from, len], [path]) => read(path, number(from)?, number(len)?),
        ("write", [mode], [path]) => write(path, octal(mode)?, parents),
        ("delete", [], [path]) => delete(path, recursive),
        ("rename", [], [from, to]) => {
            fs::rename(from, to).map_err(Failure::of(from))?;
            tell(&json!({"source": from.to_string_lossy(), "dest": to.to_string_lossy()}))
        }
        ("copy", [], [from, to]) => copy(from, to, recursive),
        ("chmod", [mode], [path]) => {
            let mode = octal(mode)?;
            let set = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(mode));
            let told = |path: &Path| json!({"path": path.to_string_lossy(), "mode": format!("{mode:04o}")});
            change(path, recursive, &set, &told)
        }
        ("chown", [uid, gid], [path]) => {
            let (uid, gid) = (number(uid)? as u32, number(gid)? as u32);
            let set = |path: &Path| chown(path, Some(uid), Some(gid));
            change(path, recursive, &set, &|path| json!({"path": path.to_string_lossy(), "uid": uid, "gid": gid}))
        }
        _ => Err(usage()),
    }
}

fn number(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| usage())
}

fn octal(text: &str) -> Result<u32, Failure> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(usage)
}

/// Calls `visit` for all below `path`, a folder before what is in it; links are not followed.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path) -> Result<bool, Failure>) -> Result<bool, Failure> {
    let mut children: Vec<PathBuf> = fs::read_dir(path)
        .map_err(Failure::of(path))?
        .map(|child| child.map(|c| c.path()))
        .collect::<io::Result<_>>()?;
    children.sort();
    for child in children {
        if !visit(&child)? {
            return Ok(false);
        }
        let is_folder = fs::symlink_metadata(&child).is_ok_and(|m| m.is_dir());
        if is_folder && !walk(&child, visit)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(path: &Path, recursive: bool) -> Result<(), Failure> {
    let metadata = fs::metadata(path).map_err(Failure::of(path))?;
    let mut entries = Vec::new();
    let mut whole = true;
    if !metadata.is_dir() {
        let own = fs::symlink_metadata(path).map_err(Failure::of(path))?;
        entries.push(entry(path, &own));
    } else {
        let mut add = |path: &Path| {
            // It may have gone since.
            entries.extend(fs::symlink_metadata(path).ok().map(|metadata| entry(path, &metadata)));
            Ok(entries.len() < ENTRIES_MAX)
        };
        if recursive {
            whole = walk(path, &mut add)?;
        } else {
            let mut names = fs::read_dir(path)
                .map_err(Failure::of(path))?
                .map(|child| child.map(|c| c.path()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            for name in names {
                if !add(&name)? {
                    whole = false;
                    break;
                }
            }
        }
    }
    let count = entries.len();
    tell(&json!({"path": path.to_string_lossy(), "entries": entries, "count": count, "complete": whole}))
}

/// A line that tells what the file is, then its bytes.
fn read(path: &Path, from: u64, len: u64) -> Result<(), Failure> {
    let of_path = Failure::of(path);
    let mut file = File::open(path).map_err(&of_path)?;
    let metadata = file.metadata().map_err(&of_path)?;
    if metadata.is_dir() {
        return Err(of_path(io::Error::from_raw_os_error(libc::EISDIR)));
    }
    tell(&entry(path, &metadata))?;
    if from > 0 {
        file.seek(SeekFrom::Start(from)).map_err(&of_path)?;
    }
    let mut out = io::stdout().lock();
    io::copy(&mut file.take(len), &mut out)?;
    Ok(out.flush()?)
}

fn write(path: &Path, mode: u32, parents: bool) -> Result<(), Failure> {
    let of_path = Failure::of(path);
    if let Some(folder) = path.parent().filter(|_| parents) {
        fs::create_dir_all(folder).map_err(&of_path)?;
    }
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).map_err(&of_path)?;
    let size = io::copy(&mut io::stdin().lock(), &mut file).map_err(&of_path)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(&of_path)?;
    tell(&json!({"path": path.to_string_lossy(), "size": size, "mode": format!("{mode:04o}")}))
}

fn delete(path: &Path, recursive: bool) -> Result<(), Failure> {
    let of_path = Failure::of(path);
    let is_folder = fs::symlink_metadata(path).map_err(&of_path)?.is_dir();
    match (is_folder, recursive) {
        (false, _) => fs::remove_file(path).map_err(&of_path)?,
        (true, false) => fs::remove_dir(path).map_err(&of_path)?,
        (true, true) => fs::remove_dir_all(path).map_err(&of_path)?,
    }
    tell(&json!({"deleted": [path.to_string_lossy()], "count": 1}))
}

fn copy_one(from: &Path, to: &Path) -> Result<u64, Failure> {
    let of_path = Failure::of(from);
    let metadata = fs::symlink_metadata(from).map_err(&of_path)?;
    if metadata.is_symlink() {
        let target = fs::read_link(from).map_err(&of_path)?;
        std::os::unix::fs::symlink(target, to).map_err(Failure::of(to))?;
        return Ok(0);
    }
    if metadata.is_dir() {
        fs::create_dir_all(to).map_err(Failure::of(to))?;
        return Ok(0);
    }
    if !metadata.is_file() {
        return Err(of_path(io::Error::new(io::ErrorKind::InvalidInput, "it is no file, folder or link")));
    }
    fs::copy(from, to).map_err(&of_path)
}

fn copy(from: &Path, to: &Path, recursive: bool) -> Result<(), Failure> {
    let is_folder = fs::symlink_metadata(from).map_err(Failure::of(from))?.is_dir();
    if is_folder && !recursive {
        return Err(Failure::of(from)(io::Error::from_raw_os_error(libc::EISDIR)));
    }
    let mut bytes = copy_one(from, to)?;
    let mut copied: Vec<Value> = vec![json!({"source": from.to_string_lossy(), "dest": to.to_string_lossy()})];
    if is_folder {
        // What is copied into itself would never end.
        let (whole, target) = (fs::canonicalize(from), fs::canonicalize(to));
        if matches!((&whole, &target), (Ok(whole), Ok(target)) if target.starts_with(whole)) {
            return Err(Failure::of(to)(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        walk(from, &mut |path| {
            let below = path.strip_prefix(from).map_err(|_| usage())?;
            let target = to.join(below);
            bytes += copy_one(path, &target)?;
            if copied.len() < ENTRIES_MAX {
                copied.push(json!({"source": path.to_string_lossy(), "dest": target.to_string_lossy()}));
            }
            Ok(true)
        })?;
    }
    let count = copied.len();
    tell(&json!({"copied": copied, "count": count, "totalBytes": bytes}))
}

fn change(
    path: &Path,
    recursive: bool,
    set: &dyn Fn(&Path) -> io::Result<()>,
    told: &dyn Fn(&Path) -> Value,
) -> Result<(), Failure> {
    set(path).map_err(Failure::of(path))?;
    let mut affected = vec![told(path)];
    if recursive && fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        walk(path, &mut |child| {
            // A link has no mode of its own, and what it names may be anywhere.
            if !fs::symlink_metadata(child).is_ok_and(|m| m.is_symlink()) {
                set(child).map_err(Failure::of(child))?;
                if affected.len() < ENTRIES_MAX {
                    affected.push(told(child));
                }
            }
            Ok(true)
        })?;
    }
    let count = affected.len();
    tell(&json!({"affected": affected, "count": count}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(words: &[&str]) {
        if let Err(failure) = carry_out(words) {
            panic!("{words:?}: {}", failure.error);
        }
    }

    fn code(words: &[&str]) -> &'static str {
        carry_out(words).expect_err("it cannot be").code()
    }

    #[test]
    fn trees_are_copied_changed_and_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        fs::create_dir_all(at("a/b")).expect("folders");
        fs::write(at("a/b/file"), b"text").expect("a file");
        std::os::unix::fs::symlink("/nowhere", at("a/link")).expect("a link");
        ok(&["copy", "--recursive", "--", &at("a"), &at("c")]);
        assert_eq!(fs::read(at("c/b/file")).expect("a copy"), b"text");
        assert_eq!(fs::read_link(at("c/link")).expect("a link"), Path::new("/nowhere"));
        ok(&["chmod", "0700", "--recursive", "--", &at("c")]);
        assert_eq!(fs::metadata(at("c/b/file")).expect("a file").permissions().mode() & 0o7777, 0o700);
        ok(&["rename", "--", &at("c"), &at("--recursive")]);
        ok(&["list", "--", &at("--recursive")]);
        ok(&["list", "--recursive", "--", &at("a")]);
        assert_eq!(code(&["delete", "--", &at("a")]), "ENOTEMPTY");
        ok(&["delete", "--recursive", "--", &at("a")]);
        assert_eq!(code(&["list", "--", &at("a")]), "ENOENT");
        assert_eq!(code(&["read", "--", folder.path().to_str().expect("text")]), "EISDIR");
        assert_eq!(code(&["copy", "--recursive", "--", &at("--recursive"), &at("--recursive/x")]), "EINVAL");
        assert_eq!(code(&["list", &at("a")]), "EINVAL");
    }
}
