//! [`Disk`] on a folder of the operating system, through the page cache.
//!
//! Buffered on purpose: an acknowledged write only has to reach the kernel, and recent blocks are
//! read back from the cache (measurement: `docs/decisions/0002-buffered-log.md`).

#![expect(clippy::disallowed_methods, reason = "the one place that reaches the operating system's files")]

use super::{Disk, DiskSpace, File};
use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Files of a pool folder.
pub struct OsDisk {
    folder: PathBuf,
    writes: bool,
}

impl OsDisk {
    /// The disk on an existing `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), writes: true }
    }

    /// The same, but files are opened for reading alone: for an [`super::Overlay`].
    pub fn read_only(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), writes: false }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

impl Disk for OsDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.path(name))?;
        Ok(Arc::new(OsFile::new(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OsFile::new(fs::OpenOptions::new().read(true).write(self.writes).open(self.path(name))?)))
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            if let Ok(name) = entry?.file_name().into_string() {
                if name.starts_with(prefix) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        fs::hard_link(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        sync_folder(&self.folder)
    }

    fn space(&self) -> io::Result<Option<DiskSpace>> {
        let path = CString::new(self.folder.as_os_str().as_bytes())?;
        // SAFETY: the call fills plain memory that lives through it, and reads a string that ends in NUL.
        let found = unsafe {
            let mut found: libc::statvfs = std::mem::zeroed();
            if libc::statvfs(path.as_ptr(), &mut found) != 0 {
                return Err(io::Error::last_os_error());
            }
            found
        };
        let (free, total) =
            (found.f_bavail as u64 * found.f_frsize as u64, found.f_blocks as u64 * found.f_frsize as u64);
        Ok(Some(DiskSpace { free, total }))
    }
}

struct OsFile {
    file: fs::File,
    /// Whether a sync has failed; held while one runs.
    sync_failed: Mutex<bool>,
}

impl OsFile {
    fn new(file: fs::File) -> Self {
        Self { file, sync_failed: Mutex::new(false) }
    }
}

impl File for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Straight into the spare room of `out`, which need not be filled with zeros first.
    fn read_onto(&self, out: &mut Vec<u8>, len: usize, offset: u64) -> io::Result<()> {
        let start = out.len();
        out.reserve(len);
        let mut done = 0;
        while done < len {
            let room = &mut out.spare_capacity_mut()[done..len];
            let at = (offset + done as u64) as libc::off_t;
            // SAFETY: `room` is writable memory of this length, and the kernel only writes to it.
            let read = unsafe { libc::pread(self.file.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), at) };
            match usize::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
        // SAFETY: the calls above have initialised `len` bytes behind `start`, within the capacity.
        unsafe { out.set_len(start + len) };
        Ok(())
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        const IOV_MAX: usize = 1024;
        for chunk in bufs.chunks(IOV_MAX) {
            let total: usize = chunk.iter().map(|b| b.len()).sum();
            // SAFETY: `chunk` is a live array of iovec-compatible `IoSlice`s (guaranteed ABI
            // compatible by std), its length fits c_int, and the kernel only reads from them.
            let wrote = unsafe {
                libc::pwritev(self.file.as_raw_fd(), chunk.as_ptr().cast(), chunk.len() as i32, offset as libc::off_t)
            };
            if wrote < 0 {
                return Err(io::Error::last_os_error());
            }
            if wrote as usize != total {
                write_rest(&self.file, chunk, wrote as usize, offset)?;
            }
            offset += total as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *failed {
            return Err(io::Error::other("an earlier sync of the file failed"));
        }
        self.file.sync_data().inspect_err(|_| *failed = true)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: a plain system call on an open descriptor; it touches no memory of ours.
        let done = unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE)
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// While it waits no sync of the file ends: the kernel tells of a failed write-back only once, and may
    /// tell it here.
    fn wait_for_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        const WAIT: libc::c_uint =
            libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let mut failed = self.sync_failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // To the kernel a length of 0 is the rest of the file.
        if len == 0 {
            return Ok(());
        }
        // SAFETY: a plain system call on an open descriptor; it touches no memory of ours.
        let done =
            unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset as libc::off_t, len as libc::off_t, WAIT) };
        if done == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // The call itself is not to be had: nothing was written, and nothing told.
            e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EPERM)) => Ok(()),
            e => {
                *failed = true;
                Err(e)
            }
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        // SAFETY: a plain system call on an open descriptor; it touches no memory of ours.
        let done = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, len as libc::off_t) };
        if done == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// Finishes a short vectored write buffer by buffer: rare, so kept simple.
fn write_rest(file: &fs::File, bufs: &[IoSlice<'_>], mut done: usize, offset: u64) -> io::Result<()> {
    let mut at = offset;
    for buf in bufs {
        let skip = done.min(buf.len());
        file.write_all_at(&buf[skip..], at + skip as u64)?;
        done -= skip;
        at += buf.len() as u64;
    }
    Ok(())
}
