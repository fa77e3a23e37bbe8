//! A root file system before it is one: paths with what they are, read from a tar archive.
//!
//! Invariants
//!   * nothing of an archive becomes a name on this machine: contents lie in files with numbers, in a folder of ours, so that
//!     an archive can neither write elsewhere nor ask for owners, devices or permissions that a user may not make;
//!   * folders come before what is in them, in one order, whatever the archive's;
//!   * a path has one meaning: the last one in the archive.

use super::tools::check;
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most files of an image, and their contents; an image that is larger is none of ours.
const NODES_MAX: usize = 4_000_000;
const BYTES_MAX: u64 = 1 << 40;
/// Longest path: the program that is told of them reads lines of 8 KiB.
const PATH_MAX: usize = 3000;
const NAME_MAX: usize = 255;
/// Extended attributes of archives are called so, as GNU tar writes them.
const XATTR: &str = "SCHILY.xattr.";
/// Longest value of one: what fits into a block of a file system beside its neighbours.
const XATTR_MAX: usize = 2048;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Folder,
    /// Contents, in a file of this machine.
    File(PathBuf, u64),
    /// Another name of the file at this path.
    Same(Vec<u8>),
    Symlink(Vec<u8>),
    /// `c` or `b`, major, minor.
    Device(char, u32, u32),
    Fifo,
}

/// A path's meaning, owner, permissions and time.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: u64,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

/// Paths without a leading slash; the root is the empty one.
pub(super) struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
    /// Where contents lie.
    spool: PathBuf,
    next: u64,
    bytes: u64,
    /// No time is later.
    epoch: u64,
}

fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().flat_map(char::escape_default).collect()
}

/// An archive's path as one of ours; `None` is one that cannot be in a file system.
fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." || part.len() > NAME_MAX || part.iter().any(|byte| matches!(byte, b'\n' | 0)) {
            return None;
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend(part);
    }
    (out.len() <= PATH_MAX).then_some(out)
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

impl Tree {
    /// An empty root file system, whose contents are to lie in the new folder `spool`.
    pub(super) fn new(spool: PathBuf, epoch: u64) -> Result<Self> {
        fs::create_dir(&spool).map_err(Error::of_file(&spool))?;
        let root = Node { what: What::Folder, mode: 0o755, uid: 0, gid: 0, mtime: epoch, xattrs: Vec::new() };
        Ok(Self { nodes: BTreeMap::from([(Vec::new(), root)]), spool, next: 0, bytes: 0, epoch })
    }

    /// Takes all that is in an archive.
    pub(super) fn read(&mut self, archive: impl Read) -> Result<()> {
        let broken = |e: io::Error| Error::failed(format!("the archive cannot be read: {e}"));
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(broken)? {
            check()?;
            let mut entry = entry.map_err(broken)?;
            self.take(&mut entry)?;
        }
        // What is behind the archive's end is taken, too: who writes it is not to fail.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
        Ok(())
    }

    fn take<R: Read>(&mut self, entry: &mut tar::Entry<R>) -> Result<()> {
        let broken = |e: io::Error| Error::failed(format!("the archive cannot be read: {e}"));
        let xattrs = xattrs(entry)?;
        let name = entry.path_bytes().into_owned();
        let path = plain(&name).ok_or_else(|| invalid(format!("{}: no file can be called so", shown(&name))))?;
        let target = || match entry.link_name_bytes() {
            Some(target) if !target.is_empty() && !target.iter().any(|byte| matches!(byte, b'\n' | 0)) => {
                Ok(target.into_owned())
            }
            _ => Err(invalid(format!("{}: it is a link to nothing that a file can be called", shown(&path)))),
        };
        let header = entry.header();
        let device = |kind| {
            let numbers = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
            What::Device(kind, numbers.0.unwrap_or(0), numbers.1.unwrap_or(0))
        };
        let mode = header.mode().map_err(broken)? & 0o7777;
        let (uid, gid) = (header.uid().map_err(broken)?, header.gid().map_err(broken)?);
        let mtime = header.mtime().map_err(broken)?.min(self.epoch);
        let what = match header.entry_type() {
            tar::EntryType::Directory => What::Folder,
            tar::EntryType::Symlink => What::Symlink(target()?),
            tar::EntryType::Link => {
                let target = target()?;
                What::Same(plain(&target).ok_or_else(|| invalid(format!("{}: a link out of it", shown(&path))))?)
            }
            tar::EntryType::Char => device('c'),
            tar::EntryType::Block => device('b'),
            tar::EntryType::Fifo => What::Fifo,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => self.spool(entry)?,
            tar::EntryType::XGlobalHeader => return Ok(()),
            other => return Err(invalid(format!("{}: entries of type {other:?} are not known", shown(&path)))),
        };
        if path.is_empty() && what != What::Folder {
            return Err(invalid("the archive's root is no folder".to_owned()));
        }
        self.insert(path, Node { what, mode, uid, gid, mtime, xattrs })
    }

    fn spool(&mut self, mut contents: impl Read) -> Result<What> {
        self.next += 1;
        let path = self.spool.join(self.next.to_string());
        let explain = Error::of_file(&path);
        let mut file = fs::File::create_new(&path).map_err(&explain)?;
        let room = BYTES_MAX.saturating_sub(self.bytes);
        let len = io::copy(&mut contents.by_ref().take(room), &mut file).map_err(&explain)?;
        if len == room {
            return Err(invalid("the archive has more than 1 TiB of contents".to_owned()));
        }
        self.bytes += len;
        drop(file);
        Ok(What::File(path.clone(), len))
    }

    fn insert(&mut self, path: Vec<u8>, node: Node) -> Result<()> {
        if self.nodes.len() >= NODES_MAX {
            return Err(invalid(format!("it has more than {NODES_MAX} files")));
        }
        // Folders that an archive leaves out are there all the same.
        let mut above = parent(&path).to_vec();
        while !self.nodes.contains_key(&above) {
            let folder =
                Node { what: What::Folder, mode: 0o755, uid: 0, gid: 0, mtime: self.epoch, xattrs: Vec::new() };
            let next = parent(&above).to_vec();
            self.nodes.insert(std::mem::replace(&mut above, next), folder);
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Puts a file of ours in, in place of what is there; it belongs to root.
    pub(super) fn put(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let what = self.spool(contents)?;
        self.own(path, mode, what)
    }

    /// Puts a symbolic link in, unless there is something.
    pub(super) fn link_if_free(&mut self, path: &str, target: &str) -> Result<()> {
        if self.nodes.contains_key(path.as_bytes()) {
            return Ok(());
        }
        self.own(path, 0o777, What::Symlink(target.as_bytes().to_vec()))
    }

    /// Makes sure that there is a folder.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        match self.nodes.get(path.as_bytes()).map(|node| &node.what) {
            // A link to one, as /lib is, serves as well.
            Some(What::Folder | What::Symlink(_)) => Ok(()),
            _ => self.own(path, mode, What::Folder),
        }
    }

    fn own(&mut self, path: &str, mode: u32, what: What) -> Result<()> {
        let node = Node { what, mode, uid: 0, gid: 0, mtime: self.epoch, xattrs: Vec::new() };
        self.insert(path.as_bytes().to_vec(), node)
    }

    /// Removes what is at a path and below it.
    pub(super) fn remove(&mut self, path: &str) {
        let below = [path.as_bytes(), b"/"].concat();
        self.nodes.retain(|have, _| have != path.as_bytes() && !have.starts_with(&below));
    }

    /// The contents of a file.
    pub(super) fn contents(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.nodes.get(path.as_bytes()).map(|node| &node.what) {
            Some(What::File(spooled, _)) => fs::read(spooled).map(Some).map_err(Error::of_file(spooled)),
            _ => Ok(None),
        }
    }

    /// Files below `folder` whose name ends so.
    pub(super) fn find<'a>(&'a self, folder: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.nodes.iter().filter(|(_, node)| matches!(node.what, What::File(..)));
        names
            .filter_map(|(path, _)| std::str::from_utf8(path).ok())
            .filter(move |path| path.starts_with(folder) && path.ends_with(end))
    }

    /// All of it, folders before what is in them.
    ///
    /// # Errors
    /// Something is in what is no folder, or another name of what is no file.
    pub(super) fn nodes(&self) -> Result<&BTreeMap<Vec<u8>, Node>> {
        for (path, node) in &self.nodes {
            let above = self.nodes.get(parent(path)).map(|node| &node.what);
            if above != Some(&What::Folder) {
                return Err(invalid(format!("{}: it is in what is no folder", shown(path))));
            }
            if let What::Same(target) = &node.what {
                if !matches!(self.nodes.get(target).map(|node| &node.what), Some(What::File(..))) {
                    return Err(invalid(format!("{}: it is another name of what is no file", shown(path))));
                }
            }
        }
        Ok(&self.nodes)
    }

    /// What an image needs beside the contents of its files is told by their number; bytes in blocks, and paths.
    pub(super) fn size(&self, block: u64) -> (u64, u64) {
        let bytes = self.nodes.values().map(|node| match &node.what {
            What::File(_, len) => len.next_multiple_of(block),
            What::Folder => block,
            What::Symlink(target) if target.len() >= 60 => block,
            _ => 0,
        });
        (bytes.sum(), self.nodes.len() as u64)
    }
}

fn xattrs<R: Read>(entry: &mut tar::Entry<R>) -> Result<Vec<(String, Vec<u8>)>> {
    let broken = |e: io::Error| Error::failed(format!("the archive cannot be read: {e}"));
    let mut found = Vec::new();
    for extension in entry.pax_extensions().map_err(broken)?.into_iter().flatten() {
        let extension = extension.map_err(broken)?;
        let key = extension.key().unwrap_or_default();
        if key.starts_with("GNU.sparse.") {
            let text = "the archive has files with holes in POSIX's form: make it without --sparse".to_owned();
            return Err(invalid(text));
        }
        let Some(name) = key.strip_prefix(XATTR) else { continue };
        // Access control lists have another form on disk; SELinux's labels belong to another machine's policy.
        let is_kept = ["security.capability", "user."].iter().any(|kept| name.starts_with(kept));
        let is_plain = name.len() <= NAME_MAX && name.chars().all(|c| c.is_ascii_graphic() && c != '"');
        let value = extension.value_bytes();
        if is_kept && is_plain && value.len() <= XATTR_MAX {
            found.push((name.to_owned(), value.to_vec()));
        }
    }
    found.sort();
    Ok(found)
}

/// Where a file of a tree lies, for who has to name it to a program.
pub(super) fn quoted(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    quote(path.as_os_str().as_bytes())
}

/// As one word of debugfs: within quotes only a quote means something, and two stand for one.
pub(super) fn quote(text: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in text {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(1000);
        header.set_gid(50);
        header.set_mtime(u64::from(u32::MAX));
        header
    }

    fn archive(fill: impl Fn(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().expect("an archive")
    }

    fn tree(bytes: &[u8]) -> (tempfile::TempDir, Result<Tree>) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tree = Tree::new(folder.path().join("spool"), 7).expect("a tree");
        let outcome = tree.read(bytes).and_then(|()| tree.nodes().map(drop));
        (folder, outcome.map(|()| tree))
    }

    #[test]
    fn an_archive_is_read_and_sorted_and_no_time_is_later_than_asked_for() {
        let bytes = archive(|builder| {
            let mut file = header(tar::EntryType::Regular, 3);
            builder.append_data(&mut file, "./usr/bin/tool", &b"one"[..]).expect("a file");
            builder.append_data(&mut file, "usr/bin/tool", &b"two"[..]).expect("the same file");
            let mut link = header(tar::EntryType::Link, 0);
            builder.append_link(&mut link, "usr/bin/again", "./usr/bin/tool").expect("a link");
            builder.append_data(&mut header(tar::EntryType::Fifo, 0), "fifo", io::empty()).expect("a fifo");
            builder
                .append_pax_extensions([("SCHILY.xattr.user.x", &b"v"[..]), ("SCHILY.xattr.system.x", b"v")])
                .expect("x");
            builder.append_link(&mut header(tar::EntryType::Symlink, 0), "a b", "to \"x\"").expect("a link");
        });
        let (_folder, tree) = tree(&bytes);
        let tree = tree.expect("a tree");
        let paths: Vec<String> = tree.nodes().expect("sound").keys().map(|path| shown(path)).collect();
        assert_eq!(paths, ["", "a b", "fifo", "usr", "usr/bin", "usr/bin/again", "usr/bin/tool"]);
        assert_eq!(tree.contents("usr/bin/tool").expect("read").as_deref(), Some(&b"two"[..]));
        let nodes = tree.nodes().expect("sound");
        let tool = &nodes[&b"usr/bin/tool"[..]];
        assert_eq!((tool.mode, tool.uid, tool.gid, tool.mtime), (0o4755, 1000, 50, 7));
        assert_eq!(nodes[&b"a b"[..]].what, What::Symlink(b"to \"x\"".to_vec()));
        assert_eq!(nodes[&b"a b"[..]].xattrs, [("user.x".to_owned(), b"v".to_vec())]);
        assert_eq!(quote(b"to \"x\""), b"\"to \"\"x\"\"\"");
    }

    #[test]
    fn an_archive_made_to_harm_is_refused() {
        let raw = |name: &[u8], kind, target: &str| {
            archive(|builder| {
                let mut header = header(kind, 0);
                header.as_old_mut().name[..name.len()].copy_from_slice(name);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
                header.set_cksum();
                builder.append(&header, io::empty()).expect("an entry");
            })
        };
        for (bytes, word) in [
            (raw(b"../../etc/passwd", tar::EntryType::Regular, ""), "called so"),
            (raw(b"x\nrdump / /tmp", tar::EntryType::Regular, ""), "called so"),
            (raw(b"x", tar::EntryType::Symlink, "y\nquit"), "link to nothing"),
            (raw(b"x", tar::EntryType::Symlink, ""), "link to nothing"),
            (raw(b"x", tar::EntryType::Link, "../../etc/shadow"), "a link out of it"),
            (raw(b"x", tar::EntryType::Link, "nowhere"), "no file"),
            (raw(b".", tar::EntryType::Regular, ""), "root is no folder"),
            (raw(b"x", tar::EntryType::new(b'Z'), ""), "not known"),
        ] {
            let said = tree(&bytes).1.err().expect(word).message;
            assert!(said.contains(word) && !said.contains('\n'), "{word}: {said}");
        }
        let within = archive(|builder| {
            builder.append_link(&mut header(tar::EntryType::Symlink, 0), "etc", "/tmp").expect("a link");
            builder.append_data(&mut header(tar::EntryType::Regular, 0), "etc/passwd", io::empty()).expect("a file");
        });
        assert!(tree(&within).1.err().expect("in a link").message.contains("no folder"));
        let whole = archive(|builder| {
            builder.append_data(&mut header(tar::EntryType::Regular, 9000), "x", &[1; 9000][..]).expect("a file");
        });
        assert!(tree(&whole[..4000]).1.is_err(), "cut short");
        assert!(tree(&[7; 4096]).1.is_err(), "no archive");
    }
}
