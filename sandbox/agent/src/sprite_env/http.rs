//! A client of the host's API: one request over one connection, HTTP/1.1.
//!
//! Invariants
//!   * no answer makes it keep more than [`HEAD_MAX`] of a head; a body is read as it comes;
//!   * a body that ends before it should is an error, never a short body.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest head of an answer, bytes.
const HEAD_MAX: u64 = 16 << 10;
/// How long a host may take to say the next thing: a checkpoint with memory takes its time.
const SILENCE: Duration = Duration::from_secs(180);
/// How long a socket may take to be there: a machine that has just started or was restored gets it in a moment.
const CONNECT: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// An answer whose body has not been read.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Body,
}

/// Where a body ends.
enum Framing {
    /// Behind so many bytes.
    Length(u64),
    /// Behind the last piece; so many bytes of the present one are left.
    Chunks { left: u64, is_first: bool },
    /// With the connection.
    Connection,
}

/// A body, without what frames it.
pub(super) struct Body {
    from: Box<dyn BufRead>,
    framing: Framing,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the host's answer cannot be read: {what}"))
}

pub(super) fn cut() -> io::Error {
    let text = "the connection ended before the answer did: the machine may have been restored or restarted meanwhile";
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// Connects to the first of `sockets` where somebody listens, and waits for that for a while.
pub(super) fn connect(sockets: &[PathBuf]) -> io::Result<UnixStream> {
    let begin = Instant::now();
    loop {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for socket in sockets {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(stream),
                Err(e) if e.kind() == io::ErrorKind::NotFound && last.kind() != io::ErrorKind::NotFound => {}
                Err(e) => last = e,
            }
        }
        let may_come = matches!(last.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        if !may_come || begin.elapsed() > CONNECT {
            return Err(last);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Where the host's socket is.
pub(super) fn sockets() -> Vec<PathBuf> {
    use crate::place::{ROOT, SOCKET, SPARE};
    [ROOT, SPARE].map(|root| Path::new(root).join(SOCKET)).to_vec()
}

/// Asks; the head of the answer is there then.
pub(super) fn ask(mut stream: UnixStream, method: &str, path: &str, body: Option<&str>) -> io::Result<Answer> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let body = body.unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: sprite\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n",
        body.len()
    );
    // One that is refused is told so before it was read: what is answered counts, not whether all was written.
    let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
    answer(Box::new(BufReader::new(stream)))
}

fn line(from: &mut dyn BufRead, left: &mut u64) -> io::Result<String> {
    let mut text = Vec::new();
    let read = from.take(*left).read_until(b'\n', &mut text)? as u64;
    *left = left.saturating_sub(read);
    match text.strip_suffix(b"\n") {
        Some(line) => Ok(String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()),
        None if *left == 0 => Err(wrong("its head is too long")),
        None => Err(cut()),
    }
}

fn answer(mut from: Box<dyn BufRead>) -> io::Result<Answer> {
    let mut left = HEAD_MAX;
    let first = line(&mut *from, &mut left)?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).and_then(|n| n.parse().ok());
    let status: u16 = status.ok_or_else(|| wrong("it is no HTTP"))?;
    let mut framing = if status == 204 { Framing::Length(0) } else { Framing::Connection };
    loop {
        let header = line(&mut *from, &mut left)?;
        if header.is_empty() {
            return Ok(Answer { status, body: Body { from, framing } });
        }
        let (name, value) = header.split_once(':').ok_or_else(|| wrong("a header without a name"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(wrong("it is encoded"));
            }
            framing = Framing::Chunks { left: 0, is_first: true };
        } else if name.eq_ignore_ascii_case("content-length") && matches!(framing, Framing::Connection) {
            framing = Framing::Length(value.parse().map_err(|_| wrong("its length is no number"))?);
        }
    }
}

impl Body {
    /// The size of the next piece; 0 is the last.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<u64> {
        let mut left = HEAD_MAX;
        if !is_first && !line(&mut *self.from, &mut left)?.is_empty() {
            return Err(wrong("a piece is longer than it said"));
        }
        let size = line(&mut *self.from, &mut left)?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_| wrong("the size of a piece is no number"))?;
        // What may follow the last piece ends with an empty line.
        while size == 0 && !line(&mut *self.from, &mut left)?.is_empty() {}
        Ok(size)
    }

    /// All of it, up to `max` bytes.
    pub(super) fn text(self, max: u64) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.take(max).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunks { left: 0, is_first } = self.framing {
            self.framing = match self.next_chunk(is_first)? {
                0 => Framing::Length(0),
                left => Framing::Chunks { left, is_first: false },
            };
        }
        let left = match &mut self.framing {
            Framing::Connection => return self.from.read(buffer),
            Framing::Length(left) | Framing::Chunks { left, .. } => left,
        };
        let max = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let Some(room) = buffer.get_mut(..max).filter(|room| !room.is_empty()) else { return Ok(0) };
        match self.from.read(room)? {
            0 => Err(cut()),
            n => {
                *left = left.saturating_sub(n as u64);
                Ok(n)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> io::Result<(u16, String)> {
        let answer = answer(Box::new(io::Cursor::new(bytes.to_vec())))?;
        Ok((answer.status, answer.body.text(1 << 20)?))
    }

    #[test]
    fn bodies_end_where_their_heads_say() {
        for (bytes, wanted) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody and more"[..], (200, "body")),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length:2\r\n\r\nno", (404, "no")),
            (b"HTTP/1.0 200 OK\r\n\r\nall of it", (200, "all of it")),
            (b"HTTP/1.1 204 No Content\r\n\r\n", (204, "")),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n1;x=y\r\n!\r\n0\r\nA: b\r\n\r\nmore",
                (200, "body!"),
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (200, "")),
        ] {
            let found = whole(bytes).expect("an answer");
            assert_eq!((found.0, found.1.as_str()), wanted);
        }
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error_and_never_a_short_body() {
        let good = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        for cut in 0..good.len() {
            assert!(whole(&good[..cut]).is_err(), "cut after {cut}");
        }
        let head = |header: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n{body}").into_bytes();
        for bytes in [
            head("Content-Length: 5", "four"),
            head("Content-Length: -1", ""),
            head("Transfer-Encoding: gzip", ""),
            head("Transfer-Encoding: chunked", "ffffffffffffffffff\r\nx"),
            head("Transfer-Encoding: chunked", "2\r\nbody\r\n0\r\n\r\n"),
            head(&"a: b\r\n".repeat(5000), ""),
            head("nothing", ""),
            b"SSH-2.0\r\n\r\n".to_vec(),
            vec![b'x'; 1 << 20],
        ] {
            assert!(whole(&bytes).is_err());
        }
    }
}
