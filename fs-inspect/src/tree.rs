//! A file system as a tree of files, whichever format it has.
//!
//! Invariants
//!   * names never hold `/` or NUL and are never `.`, `..` or empty: whoever walks a tree can join them;
//!   * links are told, never followed;
//!   * a tree is shared between threads and does not change.

use crate::limits::RUNS_MAX;
use std::ops::Range;
use std::{fmt, io};

/// Number of a file in its tree.
pub type Inode = u64;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Bytes.
    File,
    /// Names.
    Directory,
    /// A symbolic link.
    Link,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Time since 1970; seconds may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What `stat` tells of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// Permissions with set-uid, set-gid and sticky: the lowest 12 bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that it has.
    pub links: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes that it takes.
    pub sectors: u64,
    /// Last read.
    pub accessed: Time,
    /// Contents last changed.
    pub modified: Time,
    /// Attributes last changed.
    pub changed: Time,
    /// Made, where the file system tells.
    pub created: Option<Time>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Tells files apart that had the same number one after the other.
    pub generation: u32,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name's bytes.
    pub name: Vec<u8>,
    /// The file.
    pub inode: Inode,
    /// What the directory says that it is, if it does.
    pub kind: Option<FileKind>,
    /// Hand it to [`Tree::entries`] to go on behind this entry.
    pub next: u64,
}

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, bytes; 0 at the file's end.
    pub len: u64,
    /// Where in the image it begins, if it lies there by itself.
    pub at: Option<u64>,
    /// Nothing is there: it reads as zeros.
    pub is_hole: bool,
}

/// Why something in a tree cannot be had.
#[derive(Debug)]
pub enum TreeError {
    /// There is no such file, name or attribute.
    NotFound,
    /// It is not a directory, not a link, not a file.
    WrongKind,
    /// The image is damaged there; says how.
    Damaged(String),
    /// It is sound, and nothing that this program reads; says what.
    Unsupported(String),
    /// The image could not be read.
    Io(io::Error),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such file"),
            Self::WrongKind => f.write_str("it is another kind of file"),
            Self::Damaged(how) => write!(f, "the file system is damaged: {how}"),
            Self::Unsupported(what) => write!(f, "cannot read {what}"),
            Self::Io(e) => write!(f, "reading the image: {e}"),
        }
    }
}

impl std::error::Error for TreeError {}

impl From<io::Error> for TreeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A read-only tree of files.
pub trait Tree: Send + Sync {
    /// Its root directory.
    fn root(&self) -> Inode;

    /// Bytes of the file system: no sound tree has more data in its files.
    fn size(&self) -> u64;

    /// What `stat` tells.
    fn attributes(&self, file: Inode) -> Result<Attributes, TreeError>;

    /// The file of this name in `directory`.
    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Inode, TreeError>;

    /// Hands the entries of `directory` behind `after` (0: all) to `each` until it returns `false`. Neither `.` nor `..`.
    fn entries(&self, directory: Inode, after: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), TreeError>;

    /// The directory that `directory` is in; the root is its own.
    fn parent(&self, directory: Inode) -> Result<Inode, TreeError>;

    /// Fills `out` from `offset` on; returns how many bytes there were before the end.
    fn read(&self, file: Inode, offset: u64, out: &mut [u8]) -> Result<usize, TreeError>;

    /// What the file's bytes from `offset` on are, as far as they are the same.
    fn extent(&self, file: Inode, offset: u64) -> Result<Extent, TreeError>;

    /// The first run of data of a file that ends behind `offset`, clipped to begin there; `None` when only holes follow.
    /// Behind `RUNS_MAX` holes another one counts as data, which it may: it reads as zeros.
    fn next_data(&self, file: Inode, offset: u64) -> Result<Option<Range<u64>>, TreeError> {
        let (mut at, mut holes) = (offset, 0);
        loop {
            match self.extent(file, at)? {
                Extent { len: 0, .. } => return Ok(None),
                Extent { len, is_hole: true, .. } if holes < RUNS_MAX => at = at.saturating_add(len),
                Extent { len, .. } => return Ok(Some(at..at.saturating_add(len))),
            }
            holes += 1;
        }
    }

    /// Where a symbolic link points.
    fn link_target(&self, link: Inode) -> Result<Vec<u8>, TreeError>;

    /// Names of the extended attributes, with their prefixes (`user.`, `system.posix_acl_access`).
    fn xattr_names(&self, file: Inode) -> Result<Vec<Vec<u8>>, TreeError>;

    /// Value of one.
    fn xattr(&self, file: Inode, name: &[u8]) -> Result<Vec<u8>, TreeError>;

    /// The bytes of the image that say what `file` is: where they have not changed, neither has what
    /// [`Tree::attributes`] tells.
    fn record(&self, file: Inode) -> Result<Range<u64>, TreeError>;

    /// The bytes of the image that are read from elsewhere in it, because a journal holds newer ones.
    fn overlaid(&self) -> Vec<Range<u64>>;
}
