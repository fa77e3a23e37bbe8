//! A guest's console as a file with a bound.
//!
//! Invariant: `console.log` and `console.log.1` together have at most twice [`PART_MAX`] bytes, whatever a guest prints.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes after which the log begins anew; the part before is kept beside it.
const PART_MAX: u64 = 1 << 20;
const NAME: &str = "console.log";
const OLDER: &str = "console.log.1";

/// Writes a console's bytes.
pub(crate) struct Ring {
    folder: PathBuf,
    file: File,
    len: u64,
}

impl Ring {
    /// Goes on with the console in `folder`.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(NAME))?;
        let len = file.metadata()?.len();
        Ok(Self { folder: folder.to_owned(), file, len })
    }

    /// Appends.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.len >= PART_MAX {
                fs::rename(self.folder.join(NAME), self.folder.join(OLDER))?;
                *self = Self::open(&self.folder)?;
            }
            let room = usize::try_from(PART_MAX.saturating_sub(self.len)).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all(now)?;
            self.len += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }
}

/// The last bytes of a console, at most so many; nothing if there is none. Guests write them: they may be anything.
pub fn tail(folder: &Path, bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut left = bytes;
    for name in [NAME, OLDER] {
        let mut part = Vec::new();
        let read = File::open(folder.join(name)).and_then(|mut file| {
            let len = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(len.saturating_sub(left)))?;
            file.take(left).read_to_end(&mut part)
        });
        if read.is_ok() {
            left = left.saturating_sub(part.len() as u64);
            part.extend(out);
            out = part;
        }
    }
    out
}

/// The end of a console for an error message: printable, and not long.
pub(crate) fn evidence(folder: &Path) -> String {
    const LINES: usize = 15;
    let bytes = tail(folder, 4096);
    let text = String::from_utf8_lossy(&bytes);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LINES);
    match lines.get(from..).unwrap_or_default() {
        [] => "\n--- its console is empty".to_owned(),
        last => format!("\n--- end of its console\n{}", last.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_prints_without_end_fills_no_disk_and_its_last_words_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ring = Ring::open(folder.path()).expect("a console");
        for number in 0..5000_u32 {
            ring.write(format!("{number:08} {}\n", "x".repeat(1000)).as_bytes()).expect("written");
        }
        let sizes = [NAME, OLDER].map(|name| fs::metadata(folder.path().join(name)).expect("a part").len());
        assert!(sizes.iter().all(|size| *size <= PART_MAX), "{sizes:?}");
        let last = tail(folder.path(), PART_MAX + 1000);
        assert_eq!(last.len() as u64, PART_MAX + 1000, "the parts are put together");
        let text = String::from_utf8(last).expect("text");
        let numbers: Vec<u32> = text.lines().skip(1).filter_map(|line| line.get(..8)?.parse().ok()).collect();
        assert_eq!(numbers.last(), Some(&4999));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is lost between the parts");
    }

    #[test]
    fn evidence_moves_no_cursor() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(evidence(folder.path()).contains("empty"));
        Ring::open(folder.path()).and_then(|mut ring| ring.write(b"\x1b[2Jpanic\r\n\n\xff\n")).expect("written");
        let said = evidence(folder.path());
        assert!(said.contains("[2Jpanic") && !said.contains('\x1b') && !said.contains('\r'), "{said:?}");
    }
}
