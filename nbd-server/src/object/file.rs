//! A store in a folder: one file per object, the key's components as its path.
//!
//! Invariants
//!   * a name appears only when the whole file behind it is on the medium; a put returns only when the name is, too;
//!   * of two conditional puts of a key, by whatever processes, link(2) lets one through;
//!   * everything happens below the folder, which must exist: a file system that is not mounted is not mistaken
//!     for an empty store;
//!   * unfinished files lie in `.tmp`, which no key can name, and are removed by whoever opens the store a day later.
//!
//! The file system must have hard links and keep the order of fsync and link; those of Linux and NFS do.

use super::check_put;
use crate::open::random_id;
use blockstore::object::{
    check_key, is_key, Created, ObjectEntry, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult,
    OBJECT_BYTES_MAX,
};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where files are written before they get their names.
const UNFINISHED: &str = ".tmp";
/// Age at which an unfinished file belongs to nobody any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A folder of objects.
pub struct FileStore {
    root: PathBuf,
    /// Folders whose names this process has made durable.
    durable: Mutex<HashSet<PathBuf>>,
}

/// A file on its way to a name; removed unless it arrives.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; after a crash, `remove_abandoned` does it.
        let _ = fs::remove_file(&self.0);
    }
}

fn kind_of(e: &io::Error) -> StoreErrorKind {
    match e.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreErrorKind::Denied,
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
            StoreErrorKind::Invalid
        }
        _ => StoreErrorKind::Unavailable,
    }
}

fn is_nothing(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl FileStore {
    /// Opens the store in `root`.
    ///
    /// # Errors
    /// `Invalid` if there is no such folder.
    pub fn open(root: &Path) -> StoreResult<Self> {
        let store = Self { root: root.to_owned(), durable: Mutex::default() };
        store.check_root("open", "")?;
        store.remove_abandoned();
        Ok(store)
    }

    fn error(&self, operation: &str, key: &str, e: &io::Error) -> StoreError {
        let shown = self.root.display();
        let text = match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!("{e}: make room there"),
            ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::DirectoryNotEmpty => {
                format!("{e}: a key and a folder of keys cannot have one name")
            }
            _ => e.to_string(),
        };
        StoreError::new(kind_of(e), format!("{operation} {key:?} in file://{shown}: {text}"))
    }

    /// Tells an absent object from an absent store.
    fn check_root(&self, operation: &str, key: &str) -> StoreResult<()> {
        match fs::metadata(&self.root) {
            Ok(found) if found.is_dir() => Ok(()),
            Err(e) if !is_nothing(&e) => Err(self.error(operation, key, &e)),
            _ => {
                let shown = self.root.display();
                let text = format!(
                    "{operation} {key:?} in file://{shown}: there is no such folder: is its file system mounted? A new \
                     store begins with mkdir -p {shown}"
                );
                Err(StoreError::new(StoreErrorKind::Invalid, text))
            }
        }
    }

    fn remove_abandoned(&self) {
        let Ok(entries) = fs::read_dir(self.root.join(UNFINISHED)) else { return };
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|found| found.modified());
            if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Writes `body` to a file without a name that matters, durably.
    fn write(&self, body: &[u8]) -> io::Result<Unfinished> {
        let folder = self.root.join(UNFINISHED);
        if let Err(e) = fs::create_dir(&folder) {
            if e.kind() != ErrorKind::AlreadyExists {
                return Err(e);
            }
        }
        let path = folder.join(format!("{:032x}", u128::from_le_bytes(random_id()?)));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let unfinished = Unfinished(path);
        file.write_all(body)?;
        file.sync_all()?;
        Ok(unfinished)
    }

    /// Makes `folder` and those above it, up to the root, and their names durable. What another process made and
    /// has not synced yet is synced here, too.
    fn prepare(&self, folder: &Path) -> io::Result<()> {
        let known = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if folder == self.root || known().contains(folder) {
            return Ok(());
        }
        let above = folder.parent().unwrap_or(&self.root);
        self.prepare(above)?;
        match fs::create_dir(folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => sync_folder(above)?,
        }
        known().insert(folder.to_owned());
        Ok(())
    }

    /// Writes `body` and lets `name` give it its name, in a folder that it makes if needed.
    fn publish<T>(&self, key: &str, body: &[u8], name: impl Fn(&Path, &Path) -> io::Result<T>) -> io::Result<T> {
        let target = self.root.join(key);
        let folder = target.parent().unwrap_or(&self.root);
        let unfinished = self.write(body)?;
        self.prepare(folder)?;
        let named = match name(&unfinished.0, &target) {
            // Somebody removed a folder since we made it.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.durable.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.prepare(folder)?;
                name(&unfinished.0, &target)
            }
            outcome => outcome,
        }?;
        // Also when the object was there: who hears `Exists` may rely on it, and its maker may not be this far yet.
        sync_folder(folder)?;
        Ok(named)
    }

    fn publish_checked<T>(
        &self,
        operation: &str,
        key: &str,
        body: &[u8],
        name: impl Fn(&Path, &Path) -> io::Result<T>,
    ) -> StoreResult<T> {
        check_put(operation, key, body)?;
        self.publish(key, body, name).map_err(|e| match self.check_root(operation, key) {
            Err(gone) if is_nothing(&e) => gone,
            _ => self.error(operation, key, &e),
        })
    }

    /// Appends to `out` what lies in the folder of `keys`, which end with `/` or are empty, in the order of keys.
    fn walk(&self, folder: &str, wanted: &Wanted, out: &mut Vec<ObjectEntry>) -> io::Result<()> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(self.root.join(folder)) {
            // A folder that went while we walked had no objects.
            Err(e) if is_nothing(&e) && !folder.is_empty() => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let (Some(name), Ok(found)) = (entry.file_name().to_str().map(str::to_owned), entry.file_type()) else {
                continue;
            };
            let key = format!("{folder}{name}");
            if is_key(&key) && found.is_dir() {
                names.push(format!("{key}/"));
            } else if is_key(&key) && found.is_file() {
                names.push(key);
            }
        }
        // A folder sorts as the keys in it do: with its `/`.
        names.sort_unstable();
        for name in names {
            if out.len() >= wanted.max {
                break;
            }
            if name.ends_with('/') {
                if wanted.is_in(&name) {
                    self.walk(&name, wanted, out)?;
                }
            } else if wanted.is(&name) {
                match fs::metadata(self.root.join(&name)) {
                    Ok(found) => out.push(ObjectEntry { key: name, size: found.len(), modified_us: modified(&found) }),
                    Err(e) if is_nothing(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

/// What a list asks for.
struct Wanted<'a> {
    prefix: &'a str,
    after: &'a str,
    max: usize,
}

impl Wanted<'_> {
    fn is(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && key > self.after
    }

    /// Whether keys that begin with `folder` can be wanted.
    fn is_in(&self, folder: &str) -> bool {
        let inside = folder.starts_with(self.prefix) || self.prefix.starts_with(folder);
        inside && (folder > self.after || self.after.starts_with(folder))
    }
}

fn modified(found: &fs::Metadata) -> u64 {
    let since = found.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The bytes of `range` of an open file.
fn read(file: &File, range: Range) -> io::Result<Result<Vec<u8>, String>> {
    let size = file.metadata()?.len();
    let (offset, len) = match range {
        Range::All => (0, size),
        Range::Part { offset, len } => (offset, len.min(size.saturating_sub(offset))),
    };
    if len > OBJECT_BYTES_MAX {
        return Ok(Err(format!("it has {size} bytes, and none of ours has more than {OBJECT_BYTES_MAX}")));
    }
    let mut body = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    match file.read_exact_at(&mut body, offset) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(Err("it was cut while it was read".to_owned())),
        outcome => outcome.map(|()| Ok(body)),
    }
}

impl ObjectStore for FileStore {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.publish_checked("put", key, body, |from, to| fs::rename(from, to))
    }

    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.publish_checked("put", key, body, |from, to| match fs::hard_link(from, to) {
            Ok(()) => Ok(Created::Yes),
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
            Err(_) if to.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            Err(_) => Ok(Created::Exists),
        })
    }

    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        check_key(key)?;
        let nothing = || {
            let text = format!("get {key:?} in file://{}: there is no such object", self.root.display());
            Err(StoreError::new(StoreErrorKind::NotFound, text))
        };
        let file = match File::open(self.root.join(key)) {
            Err(e) if is_nothing(&e) => return self.check_root("get", key).and_then(|()| nothing()),
            file => file.map_err(|e| self.error("get", key, &e))?,
        };
        if file.metadata().is_ok_and(|found| !found.is_file()) {
            return nothing();
        }
        let body = read(&file, range).map_err(|e| self.error("get", key, &e))?;
        body.map_err(|why| {
            let text = format!("get {key:?} in file://{}: {why}", self.root.display());
            StoreError::new(StoreErrorKind::Corrupt, text)
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        let mut out = Vec::new();
        let wanted = Wanted { prefix, after: after.unwrap_or_default(), max };
        self.check_root("list", prefix)?;
        self.walk("", &wanted, &mut out).map_err(|e| self.error("list", prefix, &e))?;
        Ok(out)
    }

    fn delete(&self, key: &str) -> StoreResult<()> {
        check_key(key)?;
        let path = self.root.join(key);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().unwrap_or(&self.root)).map_err(|e| self.error("delete", key, &e)),
            Err(e) if is_nothing(&e) => self.check_root("delete", key),
            Err(_) if path.is_dir() => Ok(()),
            Err(e) => Err(self.error("delete", key, &e)),
        }
    }
}
