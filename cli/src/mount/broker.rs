//! Connections to the daemon's control socket, for a process that can open none: handed over through a socket that it has.
//!
//! Wire: the worker sends one byte, the keeper answers with one byte and, if that is [`GRANTED`], the connection.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

const ASK: u8 = b'c';
const GRANTED: u8 = b'y';
const REFUSED: u8 = b'n';
/// Room for the header of one descriptor, and the descriptor.
const CONTROL_BYTES: usize = 64;

/// Answers the worker's requests until it hangs up.
pub fn serve(worker: &mut UnixStream, control: &Path) -> io::Result<()> {
    let mut byte = [0];
    while worker.read(&mut byte)? > 0 {
        if byte[0] != ASK {
            return Err(io::Error::other("the worker asks for something unknown"));
        }
        match UnixStream::connect(control) {
            Ok(stream) => give(worker, stream.as_raw_fd())?,
            Err(_) => worker.write_all(&[REFUSED])?,
        }
    }
    Ok(())
}

/// Asks the keeper for a connection.
pub fn ask(keeper: &mut UnixStream) -> io::Result<UnixStream> {
    keeper.write_all(&[ASK])?;
    take(keeper)?.ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionRefused, "the daemon is not there"))
}

fn give(socket: &UnixStream, descriptor: RawFd) -> io::Result<()> {
    let byte = [GRANTED];
    let part = [IoSlice::new(&byte)];
    let mut control = [0u64; CONTROL_BYTES / 8];
    // SAFETY: all pointers are to values that live to the end of the call; the buffer has room for one descriptor with
    // its header, and is aligned for it.
    let sent = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = part.as_ptr().cast_mut().cast();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor);
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn take(socket: &UnixStream) -> io::Result<Option<UnixStream>> {
    let mut byte = [0];
    let mut control = [0u64; CONTROL_BYTES / 8];
    let mut part = [IoSliceMut::new(&mut byte)];
    // SAFETY: as above; the kernel writes no more than there is room.
    let (got, descriptor) = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = part.as_mut_ptr().cast();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
        let got = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
        let header = libc::CMSG_FIRSTHDR(&message);
        let rights = got > 0 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS;
        (got, rights.then(|| libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    if got == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the keeper is gone"));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(descriptor.map(|descriptor| UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[test]
    fn connections_are_handed_over_and_refusals_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control.sock");
        let (mut ours, mut theirs) = UnixStream::pair().expect("two sockets");
        let at = path.clone();
        let keeper = thread::spawn(move || serve(&mut ours, &at));
        assert_eq!(ask(&mut theirs).expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
        let listener = UnixListener::bind(&path).expect("a socket");
        let mut got = ask(&mut theirs).expect("a connection");
        listener.accept().expect("a client").0.write_all(b"hello").expect("it is connected");
        let mut text = [0; 5];
        got.read_exact(&mut text).expect("what was sent");
        assert_eq!(&text, b"hello");
        drop(theirs);
        keeper.join().expect("no panic").expect("it ends with the worker");
    }
}
