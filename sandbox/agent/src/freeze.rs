//! Freezing the guest's file systems, so that what is on their disks is whole.
//!
//! Invariants
//!   * what was frozen is thawed when the value is dropped, at the latest;
//!   * nothing here writes to a file system, which would wait for ever.

use crate::sys::check;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

// linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

/// File systems that are frozen.
pub(crate) struct Frozen {
    files: Vec<File>,
    /// When they are thawed, whoever asks for it or not.
    pub(crate) until: Instant,
    pub(crate) took: Duration,
}

/// `\040` and its like in the kernel's tables as the characters they stand for.
fn unescape(word: &[u8]) -> OsString {
    let (mut out, mut rest) = (Vec::new(), word);
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                out.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Mount points of file systems on disks, one of each disk, the last mounted first.
fn mount_points(table: &[u8]) -> Vec<OsString> {
    let mut seen: Vec<&[u8]> = Vec::new();
    let mut points = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(device), Some(point), Some(_), Some(options)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let writable = options.split(|byte| *byte == b',').any(|option| option == b"rw");
        if device.starts_with(b"/dev/") && writable && !seen.contains(&device) {
            seen.push(device);
            points.push(unescape(point));
        }
    }
    points.reverse();
    points
}

impl Frozen {
    /// Freezes every file system on a disk.
    pub(crate) fn freeze(deadline: Duration) -> io::Result<Self> {
        let begin = Instant::now();
        let mut frozen = Self { files: Vec::new(), until: begin + deadline, took: Duration::ZERO };
        for point in mount_points(&std::fs::read("/proc/self/mounts")?) {
            let file = File::open(&point)?;
            // SAFETY: a plain system call on an open descriptor.
            match check(unsafe { libc::ioctl(file.as_raw_fd(), FIFREEZE as _, 0) }) {
                Ok(_) => frozen.files.push(file),
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        frozen.took = begin.elapsed();
        if Instant::now() >= frozen.until {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        Ok(frozen)
    }

    /// How many are frozen.
    pub(crate) fn count(&self) -> u16 {
        self.files.len() as u16
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        while let Some(file) = self.files.pop() {
            // SAFETY: a plain system call on an open descriptor. What is thawed already says so, which is well.
            unsafe { libc::ioctl(file.as_raw_fd(), FITHAW as _, 0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_written_to_are_found_once_each_and_the_last_mounted_first() {
        let table = b"/dev/vda / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0\n/dev/vdb /my\\040data xfs rw 0 0\n\
            /dev/vda /again ext4 rw 0 0\n/dev/vdc /cd iso9660 ro 0 0\nbroken\n";
        assert_eq!(mount_points(table), ["/my data", "/"]);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(b"a\\b\\777\\0"), "a\\b\\777\\0");
    }
}
