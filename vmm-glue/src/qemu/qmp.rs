//! QEMU's monitor protocol: a line of JSON to it, lines of JSON from it.
//!
//! Invariants
//!   * a line is bounded before it is kept, and waited for with a deadline;
//!   * events between a command and its answer are passed over; an answer belongs to the command that was sent last.

use crate::{Error, Kind, Result};
use serde_json::{json, Value};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The monitor's socket in a machine's folder.
pub(crate) const SOCKET: &str = "qmp.sock";
/// Longest line; QEMU's longest answers to what we ask have a few kilobytes.
const LINE_MAX: usize = 1 << 20;

/// A connection to a monitor. QEMU serves one at a time.
pub(crate) struct Qmp {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// Reads the greeting and begins.
    pub(crate) fn greet(&mut self, wait: Duration) -> Result<()> {
        let greeting = self.line(Instant::now() + wait)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::failed("what listens on its monitor's socket is no QEMU"));
        }
        self.execute("qmp_capabilities", &json!({}), wait).map(drop)
    }

    /// Carries out a command; what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value, wait: Duration) -> Result<Value> {
        let deadline = Instant::now() + wait;
        self.stream.set_write_timeout(Some(wait.max(Duration::from_millis(1))))?;
        self.stream.write_all(request(command, arguments).as_bytes()).map_err(|e| gone(command, &e))?;
        self.answer(command, deadline)
    }

    /// As [`Qmp::execute`], with an open file beside the command.
    pub(crate) fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        file: &File,
        wait: Duration,
    ) -> Result<Value> {
        let deadline = Instant::now() + wait;
        send_with(&self.stream, request(command, arguments).as_bytes(), file).map_err(|e| gone(command, &e))?;
        self.answer(command, deadline)
    }

    fn answer(&mut self, command: &str, deadline: Instant) -> Result<Value> {
        loop {
            let mut line = self.line(deadline).map_err(|e| e.about(&format!("QEMU's {command}")))?;
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = line.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason was given");
                return Err(Error::failed(format!("QEMU's {command}: {why}")));
            }
        }
    }

    /// The next line.
    fn line(&mut self, deadline: Instant) -> Result<Value> {
        let mut buffer = [0; 4096];
        let mut searched = 0;
        loop {
            let found = self.bytes.get(searched..).unwrap_or_default().iter().position(|byte| *byte == b'\n');
            if let Some(end) = found {
                let line: Vec<u8> = self.bytes.drain(..=searched + end).collect();
                return serde_json::from_slice(&line).map_err(|e| Error::failed(format!("not JSON from QEMU: {e}")));
            }
            searched = self.bytes.len();
            if searched > LINE_MAX {
                return Err(Error::failed("a line from QEMU without an end"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(Kind::Busy, "no answer in time"));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Error::failed("it has ended")),
                Ok(n) => self.bytes.extend(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted || e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(gone("monitor", &e)),
            }
        }
    }
}

fn request(command: &str, arguments: &Value) -> String {
    format!("{}\n", json!({"execute": command, "arguments": arguments}))
}

fn gone(command: &str, e: &io::Error) -> Error {
    Error::failed(format!("QEMU's {command}: {e}"))
}

/// Sends bytes and, with the first of them, a copy of an open file.
fn send_with(stream: &UnixStream, bytes: &[u8], file: &File) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // Room and alignment for one descriptor's header.
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: all memory named in the message lives through the call; the header is written within `control`, which is
    // longer than CMSG_SPACE of one descriptor.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as _;
        std::ptr::copy_nonoverlapping((&raw const fd).cast(), libc::CMSG_DATA(header), size_of::<libc::c_int>());
        libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    match usize::try_from(sent) {
        Ok(sent) => (&*stream).write_all(bytes.get(sent..).unwrap_or_default()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const WAIT: Duration = Duration::from_secs(10);

    /// A monitor that says `bytes`, whatever it is asked, and then ends.
    fn saying(bytes: Vec<u8>) -> Qmp {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        thread::spawn(move || {
            let _ = theirs.write_all(&bytes);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        Qmp::new(ours)
    }

    #[test]
    fn events_before_an_answer_are_passed_over() {
        let mut qmp = saying(
            b"{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}\n{\"error\": {\"desc\": \"no\"}}\n".to_vec(),
        );
        qmp.greet(WAIT).expect("greeted");
        assert_eq!(qmp.execute("query-status", &json!({}), WAIT).expect("answered")["status"], "paused");
        assert!(qmp.execute("stop", &json!({}), WAIT).expect_err("refused").message.contains("no"));
        assert!(qmp.execute("stop", &json!({}), WAIT).expect_err("ended").message.contains("stop"));
    }

    #[test]
    fn what_is_no_monitor_is_an_error_and_keeps_nothing() {
        for bytes in [&b"SSH-2.0\n"[..], b"{}\n", b"[1]\n", b"\n", b"", b"\xff\xfe\n", b"{\"QMP\": {}}\n\"x\"\n"] {
            assert!(saying(bytes.to_vec()).greet(WAIT).is_err(), "{bytes:?}");
        }
        let mut endless = saying(vec![b'x'; LINE_MAX + 100_000]);
        assert!(endless.greet(WAIT).expect_err("endless").message.contains("without an end"));
        assert!(endless.bytes.len() <= LINE_MAX + 8192);
    }

    #[test]
    fn a_monitor_that_says_nothing_is_not_waited_for_beyond_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let refused = Qmp::new(ours).greet(Duration::from_millis(20)).expect_err("silence");
        assert_eq!(refused.kind, Kind::Busy);
    }

    #[test]
    fn a_file_travels_beside_its_command() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        send_with(&ours, b"hello", &File::open("/dev/null").expect("a file")).expect("sent");
        let (mut buffer, mut control) = ([0_u8; 16], [0_u64; 8]);
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all memory named in the message lives through the call.
        let (got, len) = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            (libc::recvmsg(theirs.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC), message.msg_controllen)
        };
        assert_eq!(got, 5);
        assert!(len > 0, "a descriptor came");
    }
}
