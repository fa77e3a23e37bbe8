//! What a command in a sandbox says on standard error, kept for our own message: a guest does not write to the terminal by itself.

use super::fds::read;
use crate::output::printable;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::JoinHandle;

/// Bytes that are kept; the rest is read and forgotten.
const KEPT: usize = 4096;

/// A place for it.
pub struct Aside {
    writer: io::PipeWriter,
    reading: JoinHandle<Vec<u8>>,
}

impl Aside {
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let reading = std::thread::spawn(move || {
            let (mut kept, mut buffer) = (Vec::new(), vec![0; KEPT]);
            while let Ok(got) = read(reader.as_raw_fd(), &mut buffer) {
                match got {
                    Some(0) => break,
                    got => {
                        let room = KEPT.saturating_sub(kept.len());
                        kept.extend(buffer.iter().take(got.unwrap_or(0).min(room)));
                    }
                }
            }
            kept
        });
        Ok(Self { writer, reading })
    }

    /// Where it is written.
    pub fn fd(&self) -> RawFd {
        self.writer.as_raw_fd()
    }

    /// All of it, as one line; for the end of a message, if there is anything.
    pub fn said(self) -> String {
        drop(self.writer);
        let kept = self.reading.join().unwrap_or_default();
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(printable).collect();
        match lines.is_empty() {
            true => String::new(),
            false => format!(": {}", lines.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_said_is_one_harmless_line() {
        let mut aside = Aside::new().expect("a pipe");
        aside.writer.write_all(b"tar: x: no\n\n \x1b[2J there\n").expect("a pipe");
        assert_eq!(aside.said(), ": tar: x: no; \\u{1b}[2J there");
        assert_eq!(Aside::new().expect("a pipe").said(), "");
        let mut aside = Aside::new().expect("a pipe");
        aside.writer.write_all(&[b'x'; 100_000]).expect("it is read");
        assert_eq!(aside.said().len(), KEPT + 2);
    }
}
