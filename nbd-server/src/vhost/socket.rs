//! Messages over a Unix socket, with the file descriptors that come and go with them.
//!
//! Invariants
//!   * every descriptor that arrives is owned from then on, and closed unless its message is taken;
//!   * reading takes no byte beyond the message in turn, so that descriptors stay with theirs;
//!   * nothing here waits.

use super::limits::FDS_MAX;
use super::message::{self, Header, Refusal, HEADER_BYTES};
use std::io;
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for the descriptors of a message, and its header; aligned as that has to be.
#[repr(C, align(8))]
struct Control([u8; 64]);

const _: () = assert!(size_of::<libc::cmsghdr>() + FDS_MAX * size_of::<RawFd>() <= 64);

/// A message as it came.
pub struct Received {
    pub header: Header,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// What became of a try to read a message.
pub enum Got {
    /// A whole one.
    Message(Received),
    /// The rest has not come yet.
    Later,
    /// Nothing more will come.
    End,
}

/// A message that is arriving.
#[derive(Default)]
pub struct Incoming {
    header: Option<Header>,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Reads on.
    ///
    /// # Errors
    /// What comes is no message.
    pub fn read(&mut self, socket: &impl AsFd) -> Result<Got, Refusal> {
        loop {
            let wanted = self.header.map_or(HEADER_BYTES, |header| header.size as usize);
            if self.bytes.len() == wanted {
                let bytes = std::mem::take(&mut self.bytes);
                let Some(header) = self.header.take() else {
                    let array = bytes.as_slice().try_into().map_err(|_| "a header that is cut off")?;
                    self.header = Some(message::header(array)?);
                    continue;
                };
                return Ok(Got::Message(Received { header, payload: bytes, fds: std::mem::take(&mut self.fds) }));
            }
            let have = self.bytes.len();
            self.bytes.resize(wanted, 0);
            let got = receive(socket.as_fd(), self.bytes.get_mut(have..).unwrap_or_default(), &mut self.fds);
            self.bytes.truncate(have + got.as_ref().map_or(0, |(n, _)| *n));
            match got {
                Ok((_, true)) => return Err("a message with too many descriptors"),
                Ok((0, _)) => return Ok(Got::End),
                Ok(_) if self.fds.len() > FDS_MAX => return Err("a message with too many descriptors"),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Got::Later),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(Got::End),
            }
        }
    }
}

/// Bytes read, and whether descriptors were left out.
fn receive(socket: BorrowedFd<'_>, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<(usize, bool)> {
    let mut control = Control([0; 64]);
    let mut piece = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut header = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: all zeros is a value of it.
    let header = unsafe { header.assume_init_mut() };
    (header.msg_iov, header.msg_iovlen) = (&mut piece, 1);
    (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), control.0.len());
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `header` points to live buffers of the lengths that it says.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), header, flags) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the control buffer with well-formed headers; each descriptor in them is open, new and
    // nobody else's, and is read once.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(one) = at.as_ref() {
            if one.cmsg_level == libc::SOL_SOCKET && one.cmsg_type == libc::SCM_RIGHTS {
                let bytes = one.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(at).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    Ok((n as usize, header.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Sends a message, with a descriptor or without.
///
/// # Errors
/// The other side does not take it at once: it reads no answers.
pub fn send(socket: &impl AsFd, bytes: &[u8], with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: all zeros is a value of it.
    let header = unsafe { header.assume_init_mut() };
    (header.msg_iov, header.msg_iovlen) = (&mut piece, 1);
    if let Some(fd) = with {
        // SAFETY: the length of one descriptor; the buffer has room for it and is aligned for its header.
        unsafe {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
            if let Some(one) = libc::CMSG_FIRSTHDR(header).as_mut() {
                one.cmsg_level = libc::SOL_SOCKET;
                one.cmsg_type = libc::SCM_RIGHTS;
                one.cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
                libc::CMSG_DATA(one).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `header` points to live buffers of the lengths that it says; nothing is written through it.
    let n = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), header, flags) };
    match usize::try_from(n) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
