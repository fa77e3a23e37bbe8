//! Copying files and folders out of a sandbox: a file as the body of an answer, a folder as an archive of the guest's `tar`.
//!
//! Until all of it is there a copy has another name; one that breaks off is removed.

use super::aside::Aside;
use super::fds::Signals;
use super::place::{Place, Placed};
use super::push::{guest_path, look, Found};
use super::remote::{Content, Sandbox};
use super::run::{begun, status_of, Wanted};
use super::talk::{End, Ends};
use super::tar::Reader;
use super::url::query;
use crate::client::Failure;
use crate::output::{printable, Progress};
use serde_json::{json, Value};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What packs the folder that is its first word.
const PACK: &str = "cd -- \"$1\" && exec tar -c -f - .";

/// `pull SRC DEST`.
pub fn pull(sandbox: &Sandbox, source: &str, dest: &Path, json: bool) -> Result<Value, Failure> {
    let source = guest_path(source)?;
    let trimmed = if source.len() > 1 { source.trim_end_matches('/') } else { source };
    let found = look(sandbox, trimmed)?;
    if dest.as_os_str() == "-" {
        return match found {
            Found::File { size, .. } => {
                let bytes = read(sandbox, trimmed, size, &mut io::stdout().lock())?;
                Ok(json!({"pulled": "-", "files": 1, "copied_bytes": bytes, "skipped": []}))
            }
            Found::Folder => Err(Failure::new("invalid", format!("{source} is a folder: give a place for it"))),
            Found::Nothing => Err(nothing(sandbox, source)),
        };
    }
    let target = match dest.is_dir() {
        false => dest.to_owned(),
        true => match trimmed.rsplit('/').next().filter(|name| !name.is_empty() && *name != "." && *name != "..") {
            Some(name) => dest.join(name),
            None => return Err(Failure::new("invalid", format!("{source} has no name: give one for the copy"))),
        },
    };
    let placed = match found {
        Found::Nothing => return Err(nothing(sandbox, source)),
        Found::File { mode, size } => file(sandbox, trimmed, &target, mode, size)?,
        Found::Folder => folder(sandbox, trimmed, &target)?,
    };
    for name in placed.skipped.iter().filter(|_| !json) {
        eprintln!("cairn: {}: neither file, folder nor link: left out", printable(name));
    }
    let (files, bytes) = (placed.files, placed.bytes);
    Ok(json!({"pulled": target, "files": files, "copied_bytes": bytes, "skipped": placed.skipped}))
}

fn nothing(sandbox: &Sandbox, source: &str) -> Failure {
    Failure::new("not_found", format!("there is no {source:?} in {}", sandbox.name))
}

/// A name beside the copy's, for as long as it is not whole.
fn part(target: &Path) -> Result<PathBuf, Failure> {
    let name = target.file_name().ok_or_else(|| Failure::new("invalid", format!("{}: no name", target.display())))?;
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(format!(".part-{}", std::process::id()));
    Ok(target.with_file_name(part))
}

/// The bytes of a file.
fn read(sandbox: &Sandbox, source: &str, total: u64, to: &mut dyn Write) -> Result<u64, Failure> {
    let path = sandbox.path(&format!("/fs/read{}", query(&[("path", source)])));
    let answer = sandbox.remote.send("GET", &path, "application/octet-stream", Content::Nothing)?;
    let answer = sandbox.remote.good(answer).map_err(|failure| sandbox.named(failure))?;
    let (mut from, mut progress, mut done) = (answer.into_body().into_reader(), Progress::new("pull", true), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = from.read(&mut buffer).map_err(|e| sandbox.remote.broken(&e))?;
        if got == 0 {
            progress.clear();
            to.flush()?;
            return Ok(done);
        }
        to.write_all(buffer.get(..got).unwrap_or_default())?;
        done += got as u64;
        progress.show(done, total);
    }
}

fn file(sandbox: &Sandbox, source: &str, target: &Path, mode: u32, size: u64) -> Result<Placed, Failure> {
    if target.is_dir() {
        let text = format!("{} is a folder: it is not replaced by a file", target.display());
        return Err(Failure::new("exists", text));
    }
    let part = part(target)?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let to = to.as_mut().map_err(|e| Failure::of_file(target)(io::Error::new(e.kind(), e.to_string())))?;
    let done = read(sandbox, source, size, to).and_then(|bytes| {
        to.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
        fs::rename(&part, target).map_err(Failure::of_file(target))?;
        Ok(Placed { files: 1, bytes, skipped: Vec::new() })
    });
    if done.is_err() {
        let _ = fs::remove_file(&part);
    }
    done
}

fn folder(sandbox: &Sandbox, source: &str, target: &Path) -> Result<Placed, Failure> {
    let exists = || {
        let text =
            format!("{} is there: a folder is not written over; give another name, or remove it", target.display());
        Failure::new("exists", text)
    };
    if fs::symlink_metadata(target).is_ok() {
        return Err(exists());
    }
    let part = part(target)?;
    DirBuilder::new().mode(0o700).create(&part).map_err(Failure::of_file(target))?;
    let done = unpack(sandbox, source, &part).and_then(|placed| {
        // Of two that came meanwhile the other stays: a folder takes the place of an empty one only.
        fs::rename(&part, target).map_err(|_| exists())?;
        Ok(placed)
    });
    if done.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    done
}

fn unpack(sandbox: &Sandbox, source: &str, part: &Path) -> Result<Placed, Failure> {
    let place = Place::new(part)?;
    let words = ["sh", "-c", PACK, "sh", source].map(str::to_owned);
    let talk = begun(sandbox, &Wanted { command: &words, ..Wanted::default() })?;
    let (reader, writer) = io::pipe()?;
    let (signals, aside) = (Signals::take()?, Aside::new()?);
    let filling = std::thread::spawn(move || {
        let mut progress = Progress::new("pull", true);
        let filled = place.fill(&mut Reader::new(reader), &mut |bytes| progress.show(bytes, 0));
        progress.clear();
        filled
    });
    let ended = talk.run(&Ends { stdin: None, stdout: writer.as_raw_fd(), stderr: aside.fd() }, &signals, false);
    // Who fills hears that this is the end.
    drop(writer);
    let filled = filling.join().map_err(|_| Failure::new("io", "unpacking failed in a way that was not foreseen"))?;
    match (status_of(ended, sandbox)?, filled) {
        (End::Exited(0), Ok(placed)) => Ok(placed),
        (End::Exited(0) | End::Unread, Err(e)) => Err(Failure::new("io", format!("{source}: {e}"))),
        (End::Exited(127), _) => Err(Failure::new("missing", "the sandbox has no tar, which gives folders")),
        (End::Told(_), _) => Err(Failure::new("io", "interrupted: nothing was copied")),
        (end, _) => {
            let text = format!("{source}: tar in the sandbox did not give all of it ({end:?}){}", aside.said());
            Err(Failure::new("io", text))
        }
    }
}
