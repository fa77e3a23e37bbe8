//! Puts what an archive of a guest's has into a new folder of this machine.
//!
//! Invariants
//!   * nothing is made or changed outside of the folder: names are taken apart, and each folder on the way is opened from the one
//!     before it without following links;
//!   * a guest's files get no power here: no owners, set-id bits, devices or pipes;
//!   * a link may point anywhere, as it does in the guest; nothing here follows it.

use super::tar::{Entry, Kind, Reader};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Bytes of names of folders whose permissions are set at the end.
const FOLDERS_MAX: usize = 64 << 20;
/// Permissions that are kept.
const KEPT: u32 = 0o777;

/// How much was put.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Placed {
    pub files: u64,
    pub bytes: u64,
    /// What is neither file, folder nor link.
    pub skipped: Vec<String>,
}

/// Names of skipped things that are kept.
const SKIPPED_MAX: usize = 100;

/// A name's parts. None is empty, `.` or `..`.
fn parts(name: &[u8]) -> io::Result<Vec<CString>> {
    let bad = || {
        let name = String::from_utf8_lossy(name).into_owned();
        io::Error::new(io::ErrorKind::InvalidData, format!("the archive has a name that leads out of it: {name:?}"))
    };
    if name.starts_with(b"/") || name.is_empty() {
        return Err(bad());
    }
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let part = |part: &[u8]| if part == b".." { Err(bad()) } else { CString::new(part).map_err(|_| bad()) };
    parts.map(part).collect()
}

fn checked(outcome: i32) -> io::Result<i32> {
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(outcome)
    }
}

fn open_folder(at: RawFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the name lives through the call; the descriptor is nobody else's.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(libc::openat(at, name.as_ptr(), flags))?)) }
}

fn make_folder(at: RawFd, name: &CStr) -> io::Result<()> {
    // SAFETY: the name lives through the call.
    match checked(unsafe { libc::mkdirat(at, name.as_ptr(), 0o700) }) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

fn times(at: i64) -> [libc::timespec; 2] {
    [libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }, libc::timespec { tv_sec: at, tv_nsec: 0 }]
}

/// The folder that is filled.
pub struct Place {
    root: OwnedFd,
    /// Permissions and times of folders, which are set when nothing is put into them any more.
    folders: Vec<(Vec<u8>, u32, i64)>,
    names: usize,
    placed: Placed,
}

impl Place {
    /// In `folder`, which is empty and ours.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let root = OwnedFd::from(File::open(folder)?);
        Ok(Self { root, folders: Vec::new(), names: 0, placed: Placed::default() })
    }

    /// The folder that `parts` lie in, made where it is not there.
    fn within(&self, parts: &[CString]) -> io::Result<OwnedFd> {
        let mut at = self.root.try_clone()?;
        for part in parts {
            make_folder(at.as_raw_fd(), part)?;
            at = open_folder(at.as_raw_fd(), part)?;
        }
        Ok(at)
    }

    /// Puts all of an archive, and tells how many bytes it has put now and then.
    pub fn fill(mut self, archive: &mut Reader<impl Read>, told: &mut dyn FnMut(u64)) -> io::Result<Placed> {
        while let Some(entry) = archive.next()? {
            self.put(&entry, archive, told)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", String::from_utf8_lossy(&entry.name))))?;
            told(self.placed.bytes);
        }
        // The deepest come first: one that nobody may enter any more holds up nobody.
        self.folders.sort_by_key(|(name, _, _)| std::cmp::Reverse(name.split(|byte| *byte == b'/').count()));
        for (name, mode, time) in std::mem::take(&mut self.folders) {
            let folder = self.within(&parts(&name)?)?;
            // SAFETY: the descriptor is open, and the times live through the call.
            unsafe {
                checked(libc::futimens(folder.as_raw_fd(), times(time).as_ptr()))?;
                checked(libc::fchmod(folder.as_raw_fd(), mode & KEPT))?;
            }
        }
        Ok(self.placed)
    }

    fn put(&mut self, entry: &Entry, archive: &mut Reader<impl Read>, told: &mut dyn FnMut(u64)) -> io::Result<()> {
        let parts = parts(&entry.name)?;
        if entry.kind == Kind::Folder {
            self.within(&parts)?;
            self.names += entry.name.len();
            if self.names > FOLDERS_MAX {
                return Err(io::Error::other("there are too many folders"));
            }
            self.folders.push((entry.name.clone(), entry.mode, entry.time));
            return Ok(());
        }
        let (name, folders) = parts.split_last().ok_or_else(|| io::Error::other("the archive's root is no folder"))?;
        let folder = self.within(folders)?;
        let at = folder.as_raw_fd();
        if entry.kind != Kind::Other {
            // The same name again takes the place of what it was before, as tar does it.
            // SAFETY: the name lives through the call.
            let _ = unsafe { libc::unlinkat(at, name.as_ptr(), 0) };
        }
        match &entry.kind {
            Kind::File => {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
                // SAFETY: the name lives through the call; the descriptor is nobody else's.
                let mut file = unsafe { File::from_raw_fd(checked(libc::openat(at, name.as_ptr(), flags, 0o600))?) };
                self.copy(archive, &mut file, told)?;
                // SAFETY: the descriptor is open, and the times live through the call.
                unsafe {
                    checked(libc::fchmod(file.as_raw_fd(), entry.mode & KEPT))?;
                    checked(libc::futimens(file.as_raw_fd(), times(entry.time).as_ptr()))?;
                }
            }
            Kind::Link(target) => {
                let target = CString::new(target.as_slice()).map_err(io::Error::other)?;
                // SAFETY: the names live through the calls.
                unsafe {
                    checked(libc::symlinkat(target.as_ptr(), at, name.as_ptr()))?;
                    libc::utimensat(at, name.as_ptr(), times(entry.time).as_ptr(), libc::AT_SYMLINK_NOFOLLOW);
                }
            }
            Kind::Same(target) => {
                let target = self::parts(target)?;
                let (first, folders) = target.split_last().ok_or_else(|| io::Error::other("it names the root"))?;
                let from = self.within(folders)?;
                // SAFETY: the names live through the call. Without AT_SYMLINK_FOLLOW a link gets another name itself.
                unsafe { checked(libc::linkat(from.as_raw_fd(), first.as_ptr(), at, name.as_ptr(), 0))? };
            }
            Kind::Other => {
                if self.placed.skipped.len() < SKIPPED_MAX {
                    self.placed.skipped.push(String::from_utf8_lossy(&entry.name).into_owned());
                }
                return Ok(());
            }
            Kind::Folder => {}
        }
        self.placed.files += 1;
        Ok(())
    }

    fn copy(&mut self, from: &mut impl Read, to: &mut File, told: &mut dyn FnMut(u64)) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let got = from.read(&mut buffer)?;
            if got == 0 {
                return Ok(());
            }
            to.write_all(buffer.get(..got).unwrap_or_default())?;
            self.placed.bytes += got as u64;
            told(self.placed.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::{end, pad, write_entry};
    use super::*;
    use std::fs;
    use std::os::unix::fs::{symlink, MetadataExt};

    fn filled(folder: &Path, entries: &[(&str, Kind, &str)]) -> io::Result<Placed> {
        let mut out = Vec::new();
        for (name, kind, bytes) in entries {
            let (name, size) = (name.as_bytes().to_vec(), bytes.len() as u64);
            write_entry(&mut out, &Entry { name, kind: kind.clone(), mode: 0o4755, size, time: 1_700_000_000 })?;
            out.extend(bytes.as_bytes());
            pad(&mut out, size)?;
        }
        end(&mut out)?;
        Place::new(folder)?.fill(&mut Reader::new(&out[..]), &mut |_| ())
    }

    #[test]
    fn trees_are_made_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let entries = [
            ("./", Kind::Folder, ""),
            ("./a b/", Kind::Folder, ""),
            ("./a b/x\ny", Kind::File, "text"),
            ("./a b/same", Kind::Same(b"./a b/x\ny".to_vec()), ""),
            ("./deep/er/file", Kind::File, "more"),
            ("./link", Kind::Link(b"/etc/passwd".to_vec()), ""),
            ("./again", Kind::File, "first"),
            ("./again", Kind::File, "second"),
        ];
        let placed = filled(folder.path(), &entries).expect("an archive");
        assert_eq!((placed.files, placed.bytes), (6, 4 + 4 + 5 + 6));
        let at = |name: &str| folder.path().join(name);
        assert_eq!(fs::read_to_string(at("a b/x\ny")).expect("a file"), "text");
        assert_eq!(fs::read_to_string(at("again")).expect("a file"), "second");
        let meta = fs::metadata(at("a b/same")).expect("a file");
        assert_eq!((meta.mode() & 0o7777, meta.nlink(), meta.mtime()), (0o755, 2, 1_700_000_000));
        assert_eq!(fs::metadata(at("a b")).expect("a folder").mtime(), 1_700_000_000);
        assert_eq!(fs::read_link(at("link")).expect("a link"), Path::new("/etc/passwd"));
    }

    #[test]
    fn nothing_comes_to_lie_outside() {
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("kept"), "kept").expect("a file");
        let to_outside = outside.path().to_string_lossy().into_owned().into_bytes();
        let kept = outside.path().join("kept").to_string_lossy().into_owned().into_bytes();
        let link = || Kind::Link(to_outside.clone());
        let cases: [&[(&str, Kind, &str)]; 9] = [
            &[("../out", Kind::File, "x")],
            &[("a/../../out", Kind::File, "x")],
            &[("/tmp/out", Kind::File, "x")],
            &[("", Kind::File, "x")],
            // By way of a link that was put before.
            &[("d", link(), ""), ("d/out", Kind::File, "x")],
            &[("d", link(), ""), ("d/", Kind::Folder, "")],
            &[("d", link(), ""), ("d/deep/out", Kind::File, "x")],
            // By another name of what is outside.
            &[("h", Kind::Same(kept.clone()), ""), ("h", Kind::File, "x")],
            &[("h", Kind::Same(b"../kept".to_vec()), "")],
        ];
        for case in cases {
            let folder = tempfile::tempdir().expect("a folder");
            assert!(filled(folder.path(), case).is_err(), "{case:?}");
        }
        // A file in the place of a link, or a second name of one, changes nothing behind it.
        let folder = tempfile::tempdir().expect("a folder");
        let link = Kind::Link(kept.clone());
        let good = [
            ("l", link.clone(), ""),
            ("m", Kind::Same(b"l".to_vec()), ""),
            ("m", Kind::File, "x"),
            ("l", Kind::File, "x"),
        ];
        assert!(filled(folder.path(), &good).is_ok());
        assert_eq!(fs::read_to_string(outside.path().join("kept")).expect("a file"), "kept");
        assert_eq!(fs::read_dir(outside.path()).expect("a folder").count(), 1);
        // Folders' permissions are set without following links, too: one that became a link since is an error.
        let folder = tempfile::tempdir().expect("a folder");
        symlink(outside.path(), folder.path().join("d")).expect("a link");
        assert!(filled(folder.path(), &[("d/", Kind::Folder, "")]).is_err());
    }
}
