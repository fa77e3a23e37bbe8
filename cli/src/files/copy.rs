//! Copies of files and folders out of a state.
//!
//! Invariants
//!   * everything is made anew below a destination that was not there: nothing is written over, no link is followed;
//!   * a guest's files get no power here: no set-id bits, no owners, no devices, of extended attributes those of users;
//!   * what cannot be copied is told and passed over; the rest is there.

use super::{failure, link, State, PIECE};
use crate::client::Failure;
use crate::output::{printable, Progress};
use fs_inspect::{limits::TREE_DEPTH_MAX, Attributes, FileKind, Inode, Time, Tree};
use serde_json::{json, Value};
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

struct Copier<'a> {
    tree: &'a dyn Tree,
    /// Where files with several names were put first.
    linked: HashMap<Inode, PathBuf>,
    files: u64,
    bytes: u64,
    skipped: Vec<String>,
    progress: Progress,
}

/// Copies `path` of a state to `dest`, or into it if it is a folder.
pub fn copy(folder: &Path, volume: &str, id: &str, path: &str, dest: &Path) -> Result<Value, Failure> {
    let state = State::open(&link(folder)?, volume, id)?;
    let place = state.find(path)?;
    let name = path.rsplit('/').find(|name| !name.is_empty() && *name != ".");
    let target = match name {
        Some(name) if fs::symlink_metadata(dest).is_ok_and(|dest| dest.is_dir()) => dest.join(name),
        _ => dest.to_owned(),
    };
    if fs::symlink_metadata(&target).is_ok() {
        let text = format!("{} exists: nothing is written over; remove it, or name another", target.display());
        return Err(Failure::new("exists", text));
    }
    let progress = Progress::new("copy", true);
    let (linked, skipped) = (HashMap::new(), Vec::new());
    let mut copier = Copier { tree: &*place.tree, linked, files: 0, bytes: 0, skipped, progress };
    copier.one(place.inode, &target, 0)?;
    copier.progress.clear();
    for what in &copier.skipped {
        eprintln!("cairn: not copied: {}", printable(what));
    }
    let Copier { files, bytes, skipped, .. } = copier;
    Ok(json!({"copied": target, "files": files, "copied_bytes": bytes, "skipped": skipped}))
}

fn time(of: Time) -> Option<SystemTime> {
    let seconds = Duration::from_secs(of.seconds.unsigned_abs());
    let whole = match of.seconds >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(seconds),
        false => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    whole?.checked_add(Duration::from_nanos(of.nanoseconds.into()))
}

impl Copier<'_> {
    fn skip(&mut self, target: &Path, why: &str) {
        self.skipped.push(format!("{}: {why}", target.display()));
    }

    /// Copies one file, with all below it. Fails only when `target` cannot be written.
    fn one(&mut self, inode: Inode, target: &Path, depth: usize) -> Result<(), Failure> {
        let what = match self.tree.attributes(inode) {
            Ok(what) => what,
            Err(e) if depth == 0 => return Err(failure(&e, &target.display().to_string())),
            Err(e) => {
                self.skip(target, &e.to_string());
                return Ok(());
            }
        };
        let explain = Failure::of_file(target);
        if what.links > 1 && what.kind == FileKind::File {
            if let Some(first) = self.linked.get(&inode) {
                return fs::hard_link(first, target).map_err(explain);
            }
            self.linked.insert(inode, target.to_owned());
        }
        match what.kind {
            FileKind::Directory => return self.folder(inode, &what, target, depth),
            FileKind::File => self.file(inode, &what, target).map_err(&explain)?,
            FileKind::Link => match self.tree.link_target(inode) {
                Ok(to) => symlink(OsStr::from_bytes(&to), target).map_err(&explain)?,
                Err(e) => self.skip(target, &e.to_string()),
            },
            FileKind::Character | FileKind::Block => self.skip(target, "a device"),
            FileKind::Fifo | FileKind::Socket => self.skip(target, "a pipe or socket"),
        }
        self.files += 1;
        Ok(())
    }

    fn folder(&mut self, inode: Inode, what: &Attributes, target: &Path, depth: usize) -> Result<(), Failure> {
        if depth >= TREE_DEPTH_MAX {
            self.skip(target, "folders lead into themselves, or too deep");
            return Ok(());
        }
        let explain = Failure::of_file(target);
        fs::DirBuilder::new().mode(0o700).create(target).map_err(&explain)?;
        let mut entries = Vec::new();
        let read = self.tree.entries(inode, 0, &mut |entry| {
            entries.push((entry.name, entry.inode));
            true
        });
        if let Err(e) = read {
            self.skip(target, &e.to_string());
        }
        for (name, inode) in entries {
            self.one(inode, &target.join(OsStr::from_bytes(&name)), depth + 1)?;
        }
        self.finish(&File::open(target).map_err(&explain)?, inode, what).map_err(explain)
    }

    /// Copies the data and leaves the holes.
    fn file(&mut self, inode: Inode, what: &Attributes, target: &Path) -> io::Result<()> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(target)?;
        let (mut at, mut piece) = (0, vec![0; PIECE]);
        loop {
            let data = match self.tree.next_data(inode, at) {
                Ok(Some(data)) => data,
                Ok(None) => break,
                Err(e) => {
                    self.skip(target, &format!("what follows byte {at}: {e}"));
                    break;
                }
            };
            at = data.start;
            while at < data.end {
                let want = (data.end - at).min(PIECE as u64) as usize;
                match self.tree.read(inode, at, &mut piece[..want]) {
                    Ok(0) => break,
                    Ok(_) if self.bytes > self.tree.size() => {
                        self.skip(target, "the files claim more than the disk has: it is damaged");
                        return Ok(());
                    }
                    Ok(got) => {
                        file.write_all_at(&piece[..got], at)?;
                        (at, self.bytes) = (at + got as u64, self.bytes + got as u64);
                        self.progress.show(self.bytes, self.bytes);
                    }
                    Err(e) => {
                        self.skip(target, &format!("what follows byte {at}: {e}"));
                        return Ok(());
                    }
                }
            }
            at = at.max(data.end);
        }
        file.set_len(what.size)?;
        self.finish(&file, inode, what)
    }

    /// Permissions, times and users' attributes.
    fn finish(&mut self, file: &File, inode: Inode, what: &Attributes) -> io::Result<()> {
        for name in self.tree.xattr_names(inode).unwrap_or_default() {
            let value = self.tree.xattr(inode, &name).unwrap_or_default();
            if let (true, Ok(name)) = (name.starts_with(b"user."), CString::new(name)) {
                // SAFETY: the name ends with NUL and the value is as long as said. File systems without attributes refuse.
                unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
            }
        }
        file.set_permissions(fs::Permissions::from_mode(u32::from(what.mode) & 0o777))?;
        let (Some(accessed), Some(modified)) = (time(what.accessed), time(what.modified)) else { return Ok(()) };
        file.set_times(FileTimes::new().set_accessed(accessed).set_modified(modified))
    }
}
