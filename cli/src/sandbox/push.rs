//! Copying files and folders into a sandbox: a file as the body of a request, a folder as an archive that the guest's `tar` unpacks.

use super::aside::Aside;
use super::fds::Signals;
use super::remote::{Content, Sandbox};
use super::run::{begun, status_of, Wanted};
use super::talk::{End, Ends};
use super::tar::{end, pad, write_entry, Entry, Kind};
use super::url::query;
use crate::client::Failure;
use crate::output::{printable, Progress};
use serde_json::{json, Value};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What unpacks, in the folder that is its first word.
const UNPACK: &str = "mkdir -p -- \"$1\" && cd -- \"$1\" && exec tar -x -p -f -";

/// What was copied.
#[derive(Default)]
struct Sum {
    files: u64,
    bytes: u64,
    skipped: Vec<String>,
}

/// A path in a sandbox, from its root.
pub fn guest_path(path: &str) -> Result<&str, Failure> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Failure::new(
            "invalid",
            format!("{path:?}: say where in the sandbox from its root, as in /root/x"),
        ));
    }
    Ok(path)
}

/// What is at a path in a sandbox.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Folder,
    File { mode: u32, size: u64 },
}

/// Looks at a path.
pub fn look(sandbox: &Sandbox, path: &str) -> Result<Found, Failure> {
    let answer = match sandbox.ask("GET", &format!("/fs/list{}", query(&[("path", path)])), Content::Nothing) {
        Err(failure) if failure.kind == "not_found" && !failure.message.contains("there is no sandbox") => {
            return Ok(Found::Nothing);
        }
        other => other?,
    };
    // A file has one entry: itself. What is in a folder has longer paths.
    let entry = answer["entries"].as_array().and_then(|all| all.first());
    let own = entry.filter(|entry| entry["path"].as_str() == Some(path) && entry["isDir"] != true);
    Ok(match own {
        None => Found::Folder,
        Some(entry) => {
            let mode = entry["mode"].as_str().and_then(|text| u32::from_str_radix(text, 8).ok());
            let mode = mode.filter(|_| entry["type"] == "file").unwrap_or(0o644);
            Found::File { mode, size: entry["size"].as_u64().unwrap_or(0) }
        }
    })
}

/// `push SRC… DEST`.
pub fn push(sandbox: &Sandbox, sources: &[PathBuf], dest: &str, json: bool) -> Result<Value, Failure> {
    let wanted = guest_path(dest)?;
    let trimmed = wanted.trim_end_matches('/');
    let is_folder = match look(sandbox, if trimmed.is_empty() { "/" } else { trimmed })? {
        Found::Folder => true,
        Found::File { .. } if wanted.ends_with('/') || sources.len() > 1 => {
            return Err(Failure::new("invalid", format!("{dest} is a file in {}, and no folder", sandbox.name)));
        }
        Found::File { .. } => false,
        Found::Nothing => wanted.ends_with('/') || sources.len() > 1,
    };
    let mut sum = Sum::default();
    for source in sources {
        let target = match is_folder {
            false => trimmed.to_owned(),
            true => format!("{trimmed}/{}", name_of(source)?),
        };
        if source.as_os_str() == "-" {
            sum.bytes += put(sandbox, &target, 0o644, None, &mut io::stdin().lock())?;
            sum.files += 1;
            continue;
        }
        let meta = fs::metadata(source).map_err(Failure::of_file(source))?;
        if meta.is_dir() {
            folder(sandbox, source, &target, &mut sum)?;
        } else {
            let mut file = File::open(source).map_err(Failure::of_file(source))?;
            sum.bytes += put(sandbox, &target, meta.mode() & 0o777, Some(meta.len()), &mut file)?;
            sum.files += 1;
        }
    }
    for name in sum.skipped.iter().filter(|_| !json) {
        eprintln!("cairn: {}: neither file, folder nor link: left out", printable(name));
    }
    Ok(json!({"pushed": dest, "files": sum.files, "copied_bytes": sum.bytes, "skipped": sum.skipped}))
}

/// The name of a file in its folder.
fn name_of(source: &Path) -> Result<String, Failure> {
    let bad = || Failure::new("invalid", format!("{}: say what it is to be called in the sandbox", source.display()));
    // `.` and `..` have a name, too.
    let whole = match source.file_name() {
        Some(name) if source.as_os_str() != "-" => return name.to_str().map(str::to_owned).ok_or_else(bad),
        Some(_) => return Err(bad()),
        None => fs::canonicalize(source).map_err(Failure::of_file(source))?,
    };
    whole.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(bad)
}

/// Bytes on their way, counted and shown.
struct Counted<'a, R> {
    from: R,
    done: u64,
    total: Option<u64>,
    progress: &'a mut Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(buffer)?;
        self.done += got as u64;
        self.progress.show(self.done, self.total.unwrap_or(0));
        Ok(got)
    }
}

/// One file, as the body of a request; how many bytes it had.
pub fn put(
    sandbox: &Sandbox,
    target: &str,
    mode: u32,
    total: Option<u64>,
    from: &mut dyn Read,
) -> Result<u64, Failure> {
    let mut progress = Progress::new("push", true);
    let mut from = Counted { from, done: 0, total, progress: &mut progress };
    let mode = format!("{mode:04o}");
    let words = query(&[("path", target), ("mode", &mode), ("mkdirParents", "true")]);
    let answer = sandbox.ask("PUT", &format!("/fs/write{words}"), Content::Bytes(&mut from));
    let done = from.done;
    progress.clear();
    answer.map(|_| done)
}

/// A folder, as an archive.
fn folder(sandbox: &Sandbox, source: &Path, target: &str, sum: &mut Sum) -> Result<(), Failure> {
    let words = ["sh", "-c", UNPACK, "sh", target].map(str::to_owned);
    let talk = begun(sandbox, &Wanted { command: &words, ..Wanted::default() })?;
    let (reader, writer) = io::pipe()?;
    let (signals, aside) = (Signals::take()?, Aside::new()?);
    let source = source.to_owned();
    let packing = std::thread::spawn(move || pack(&source, writer));
    let ends = Ends { stdin: Some(reader.as_raw_fd()), stdout: aside.fd(), stderr: aside.fd() };
    let ended = talk.run(&ends, &signals, false);
    // Who packs hears that nobody reads any more.
    drop(reader);
    let packed = packing.join().map_err(|_| Failure::new("io", "packing failed in a way that was not foreseen"))?;
    let status = status_of(ended, sandbox)?;
    let (own, outcome) = packed;
    match (status, outcome) {
        (End::Exited(0), Ok(())) => {}
        (_, Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => return Err(Failure::new("io", e.to_string())),
        (End::Exited(127), _) => return Err(Failure::new("missing", "the sandbox has no tar, which takes folders")),
        (End::Told(_), _) => return Err(Failure::new("io", "interrupted: a part of it was copied")),
        (end, _) => {
            let text = format!("{target}: tar in the sandbox did not take all of it ({end:?}){}", aside.said());
            return Err(Failure::new("io", text));
        }
    }
    sum.files += own.files;
    sum.bytes += own.bytes;
    sum.skipped.extend(own.skipped);
    Ok(())
}

/// Packs a folder; what was packed, and whether all of it was.
fn pack(source: &Path, to: io::PipeWriter) -> (Sum, io::Result<()>) {
    let mut pack =
        Pack { to: BufWriter::with_capacity(64 << 10, to), sum: Sum::default(), progress: Progress::new("push", true) };
    let done = pack.all(source);
    pack.progress.clear();
    (pack.sum, done)
}

struct Pack {
    to: BufWriter<io::PipeWriter>,
    sum: Sum,
    progress: Progress,
}

impl Pack {
    fn all(&mut self, source: &Path) -> io::Result<()> {
        let about = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        // Folders that are not packed yet: a tree of any depth takes no stack.
        let mut open = vec![(source.to_owned(), b"./".to_vec())];
        while let Some((path, name)) = open.pop() {
            let meta = fs::metadata(&path).map_err(|e| about(&path, e))?;
            self.head(&meta, &name, Kind::Folder, 0)?;
            let children = fs::read_dir(&path).map_err(|e| about(&path, e))?;
            let mut children: Vec<PathBuf> =
                children.map(|child| child.map(|child| child.path())).collect::<io::Result<_>>()?;
            children.sort();
            for child in children {
                let own = child.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
                let mut name = [name.as_slice(), &own].concat();
                let meta = fs::symlink_metadata(&child).map_err(|e| about(&child, e))?;
                let kind = meta.file_type();
                if kind.is_dir() {
                    name.push(b'/');
                    open.push((child, name));
                } else if kind.is_symlink() {
                    let target = fs::read_link(&child).map_err(|e| about(&child, e))?;
                    self.head(&meta, &name, Kind::Link(target.as_os_str().as_bytes().to_vec()), 0)?;
                    self.sum.files += 1;
                } else if kind.is_file() {
                    let file = File::open(&child).map_err(|e| about(&child, e))?;
                    self.file(file, &name).map_err(|e| about(&child, e))?;
                } else {
                    self.sum.skipped.push(child.display().to_string());
                }
            }
        }
        end(&mut self.to)?;
        self.to.flush()
    }

    fn head(&mut self, meta: &Metadata, name: &[u8], kind: Kind, size: u64) -> io::Result<()> {
        let (name, mode, time) = (name.to_vec(), meta.mode() & 0o777, meta.mtime());
        write_entry(&mut self.to, &Entry { name, kind, mode, size, time })
    }

    /// A file with the size that it has now: one that changes meanwhile is an error.
    fn file(&mut self, mut file: File, name: &[u8]) -> io::Result<()> {
        let meta = file.metadata()?;
        let mut left = meta.len();
        self.head(&meta, name, Kind::File, left)?;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let got = (&mut file).take(left).read(&mut buffer)?;
            if got == 0 {
                return Err(io::Error::other("it became shorter while it was read"));
            }
            self.to.write_all(buffer.get(..got).unwrap_or_default())?;
            left -= got as u64;
            self.sum.bytes += got as u64;
            self.progress.show(self.sum.bytes, 0);
        }
        self.sum.files += 1;
        pad(&mut self.to, meta.len())
    }
}
