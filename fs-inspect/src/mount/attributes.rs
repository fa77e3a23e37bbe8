//! What `stat` tells, in FUSE's words.

use crate::tree::{Attributes, FileKind, Time, TreeError};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime};

/// How long the kernel may keep what cannot change.
pub const KEPT: Duration = Duration::from_secs(3600);
/// How old what can change may be.
pub const LOOKED: Duration = Duration::from_millis(400);

/// A tree's error as the system knows it.
pub fn errno(e: &TreeError) -> Errno {
    match e {
        TreeError::NotFound => Errno::ENOENT,
        TreeError::WrongKind => Errno::EINVAL,
        TreeError::Unsupported(_) => Errno::EOPNOTSUPP,
        TreeError::Damaged(_) | TreeError::Io(_) => Errno::EIO,
    }
}

/// A kind of file.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Link => FileType::Symlink,
        FileKind::Character => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

fn time(of: Time) -> SystemTime {
    let (seconds, rest) = (Duration::from_secs(of.seconds.unsigned_abs()), Duration::from_nanos(of.nanoseconds.into()));
    let whole = match of.seconds >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(seconds),
        false => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    whole.and_then(|whole| whole.checked_add(rest)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A file of a checkpoint.
pub fn file_attributes(number: u64, of: &Attributes) -> FileAttr {
    let (major, minor) = of.device;
    FileAttr {
        ino: INodeNo(number),
        size: of.size,
        blocks: of.sectors,
        atime: time(of.accessed),
        mtime: time(of.modified),
        ctime: time(of.changed),
        crtime: of.created.map_or(SystemTime::UNIX_EPOCH, time),
        kind: file_type(of.kind),
        perm: of.mode,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        // As the kernel hands it out: 12 bits of major number between 8 and 12 of minor.
        rdev: minor & 0xff | major << 8 & 0xf_ff00 | minor << 12 & 0xfff0_0000,
        blksize: 4096,
        flags: 0,
    }
}

/// Something of ours, made at `created`, seconds since 1970.
pub fn plain(number: u64, kind: FileType, size: u64, created: u64) -> FileAttr {
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(created);
    let perm = if kind == FileType::RegularFile { 0o444 } else { 0o555 };
    let nlink = if kind == FileType::Directory { 2 } else { 1 };
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: made,
        mtime: made,
        ctime: made,
        crtime: made,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
