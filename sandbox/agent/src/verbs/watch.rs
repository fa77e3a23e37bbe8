//! `cairn-agent watch [--recursive] -- PATH…`: what changes in files and folders, line by line.
//!
//! Invariant: no more than `WATCHES_MAX` folders are watched; beyond that a line says so.

use super::{tell, usage, Failure};
use crate::sys::check;
use serde_json::json;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const WATCHES_MAX: usize = 8192;
/// Bytes of an event before its name: descriptor, mask, cookie, length of the name.
const HEADER: usize = 16;
const MASK: u32 = libc::IN_CREATE
    | libc::IN_CLOSE_WRITE
    | libc::IN_MODIFY
    | libc::IN_DELETE
    | libc::IN_DELETE_SELF
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_ATTRIB;

struct Watcher {
    events: File,
    places: HashMap<i32, PathBuf>,
    recursive: bool,
}

impl Watcher {
    fn add(&mut self, path: &Path) -> Result<(), Failure> {
        if self.places.len() >= WATCHES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {WATCHES_MAX} folders")).into());
        }
        let text = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)?;
        // SAFETY: the path ends with NUL and lives to the end of the call.
        let watch = unsafe { libc::inotify_add_watch(self.events.as_raw_fd(), text.as_ptr(), MASK) };
        let watch = check(watch).map_err(Failure::of(path))?;
        self.places.insert(watch, path.to_owned());
        let is_folder = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        let deeper = self.recursive && is_folder;
        for child in std::fs::read_dir(path).into_iter().flatten().flatten().filter(|_| deeper) {
            if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add(&child.path())?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, watch: i32, mask: u32, name: &[u8]) -> Result<(), Failure> {
        let Some(place) = self.places.get(&watch) else { return Ok(()) };
        let path = if name.is_empty() { place.clone() } else { place.join(OsStr::from_bytes(name)) };
        let is_folder = mask & libc::IN_ISDIR != 0;
        let event = match () {
            () if mask & libc::IN_CREATE != 0 => "create",
            () if mask & (libc::IN_MOVED_FROM | libc::IN_MOVED_TO) != 0 => "rename",
            () if mask & (libc::IN_DELETE | libc::IN_DELETE_SELF) != 0 => "remove",
            () if mask & (libc::IN_MODIFY | libc::IN_CLOSE_WRITE) != 0 => "write",
            () if mask & libc::IN_ATTRIB != 0 => "chmod",
            () => {
                if mask & libc::IN_IGNORED != 0 {
                    self.places.remove(&watch);
                }
                return Ok(());
            }
        };
        if self.recursive && is_folder && mask & (libc::IN_CREATE | libc::IN_MOVED_TO) != 0 {
            // It may have gone since.
            drop(self.add(&path));
        }
        let size = std::fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        let time_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        tell(&json!({
            "type": "event", "path": path.to_string_lossy(), "event": event, "timestampUs": time_us, "size": size,
            "isDir": is_folder,
        }))
    }
}

/// The events in what was read of the kernel: watch, mask, name.
fn events(bytes: &[u8]) -> Vec<(i32, u32, &[u8])> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while let Some((header, behind)) = rest.split_at_checked(HEADER) {
        let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let Some((name, next)) = behind.split_at_checked(word(12) as usize) else { break };
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        found.push((word(0) as i32, word(4), name.get(..end).unwrap_or_default()));
        rest = next;
    }
    found
}

/// Tells what is watched, and then what changes.
pub(super) fn carry_out(words: &[&str]) -> Result<(), Failure> {
    let (recursive, paths) = match words {
        ["--recursive", "--", paths @ ..] => (true, paths),
        ["--", paths @ ..] => (false, paths),
        _ => return Err(usage()),
    };
    // SAFETY: the call makes a descriptor that nobody else owns.
    let events_of = unsafe { File::from_raw_fd(check(libc::inotify_init1(libc::IN_CLOEXEC))?) };
    let mut watcher = Watcher { events: events_of, places: HashMap::new(), recursive };
    for path in paths {
        watcher.add(Path::new(path))?;
    }
    tell(&json!({"type": "subscribed", "paths": paths}))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = watcher.events.read(&mut buffer)?;
        for (watch, mask, name) in events(buffer.get(..n).unwrap_or_default()) {
            watcher.tell(watch, mask, name)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_taken_apart() {
        let event = |watch: i32, mask: u32, name: &[u8]| {
            [&watch.to_ne_bytes()[..], &mask.to_ne_bytes(), &[0; 4], &(name.len() as u32).to_ne_bytes(), name].concat()
        };
        let bytes = [event(1, 2, b"a\0\0\0"), event(3, 4, b"")].concat();
        assert_eq!(events(&bytes), [(1, 2, &b"a"[..]), (3, 4, &b""[..])]);
        assert_eq!(events(&bytes[..18]), []);
        assert_eq!(events(&event(1, 2, b"name")[..17]), []);
    }
}
