//! What a VMM says to set a device up, and the answers.

use super::{halves, other, words, Front, GUEST, USER, WAIT};
use crate::vhost::testing::send_message;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

impl Front {
    /// Sends a message.
    pub fn say(&self, request: u32, flags: u32, payload: &[u8], file: Option<&OwnedFd>) -> io::Result<()> {
        let mut bytes = halves(&[request, 1 | flags, payload.len() as u32]);
        bytes.extend(payload);
        send_message(&self.stream, &bytes, file.map(|file| file.as_fd()))
    }

    /// The payload of the answer to `request`, and the descriptor that came with it.
    pub fn hear(&mut self, request: u32) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut header = [0u8; 12];
        let file = receive_with_file(&self.stream, &mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if word(0) != request || word(4) & 4 == 0 {
            return Err(other(format!("an answer to {} instead of {request}", word(0))));
        }
        let mut payload = vec![0; word(8) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((payload, file))
    }

    fn ask(&mut self, request: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.say(request, 0, payload, None)?;
        Ok(self.hear(request)?.0)
    }

    fn ask_number(&mut self, request: u32) -> io::Result<u64> {
        let answer = self.ask(request, &[])?;
        Ok(u64::from_le_bytes(answer.as_slice().try_into().map_err(|_| other("no number"))?))
    }

    /// Says something that is done or refused.
    pub fn order(&mut self, request: u32, payload: &[u8], file: Option<&OwnedFd>) -> io::Result<()> {
        self.say(request, 8, payload, file)?;
        match self.hear(request)?.0.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(other(format!("message {request} is refused"))),
        }
    }

    pub(super) fn agree(&mut self) -> io::Result<()> {
        self.offered = self.ask_number(1)?;
        let protocol = self.ask_number(15)?;
        self.say(16, 0, &words(&[protocol]), None)?;
        if self.ask_number(17)? < u64::from(self.setup.queues) {
            return Err(other("too few queues"));
        }
        self.order(3, &[], None)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(WAIT))?;
        self.order(21, &[], Some(&theirs.into()))?;
        self.back = Some(ours);
        self.agreed = self.offered & self.setup.features;
        self.order(2, &words(&[self.agreed]), None)
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        self.track()?;
        self.hand_over()?;
        for queue in 0..self.setup.queues {
            self.start_queue(queue)?;
        }
        Ok(())
    }

    fn track(&mut self) -> io::Result<()> {
        if self.inflight.is_none() {
            let mut payload = words(&[0, 0]);
            payload.extend(self.setup.queues.to_le_bytes());
            payload.extend(self.setup.entries.to_le_bytes());
            payload.extend([0; 4]);
            self.say(31, 0, &payload, None)?;
            let (payload, file) = self.hear(31)?;
            self.inflight = Some((file.ok_or_else(|| other("no in-flight memory"))?, payload));
        }
        let Some((file, payload)) = self.inflight.take() else { return Ok(()) };
        let done = self.order(32, &payload, Some(&file));
        self.inflight = Some((file, payload));
        done
    }

    /// The message that hands the memory over.
    pub fn hand_over(&mut self) -> io::Result<()> {
        let mut payload = halves(&[1, 0]);
        payload.extend(words(&[GUEST, Self::bytes(self.setup), USER, 0]));
        let file = self.file.try_clone()?;
        self.order(5, &payload, Some(&file))
    }

    pub(super) fn start_queue(&mut self, queue: u16) -> io::Result<()> {
        let index = u32::from(queue);
        self.order(8, &halves(&[index, u32::from(self.setup.entries)]), None)?;
        let used: u16 = self.get(self.used(queue) + 2)?;
        self.order(10, &halves(&[index, u32::from(used)]), None)?;
        let user = USER - GUEST;
        let mut places = halves(&[index, 0]);
        places.extend(words(&[self.table(queue) + user, self.used(queue) + user, self.avail(queue) + user, 0]));
        self.order(9, &places, None)?;
        let ring = &self.rings[usize::from(queue)];
        let (kick, call, err) = (ring.kick.try_clone()?, ring.call.try_clone()?, ring.err.try_clone()?);
        for (request, fd) in [(13, call), (14, err), (12, kick)] {
            self.order(request, &words(&[u64::from(queue)]), Some(&fd))?;
        }
        self.order(18, &halves(&[index, 1]), None)
    }

    /// Starts a queue that was stopped.
    pub fn start_again(&mut self, queue: u16) -> io::Result<()> {
        self.start_queue(queue)
    }

    /// Takes a slot for a request that is written by hand.
    pub fn reserve(&mut self, queue: u16, slot: u16) {
        self.rings[usize::from(queue)].free.retain(|free| *free != slot);
    }

    /// Stops a queue; the available index that it would have gone on with.
    pub fn stop_queue(&mut self, queue: u16) -> io::Result<u32> {
        let answer = self.ask(11, &halves(&[u32::from(queue), 0]))?;
        Ok(u32::from_le_bytes(answer[4..8].try_into().map_err(|_| other("no base"))?))
    }

    /// The configuration space.
    pub fn config(&mut self) -> io::Result<Vec<u8>> {
        let mut payload = halves(&[0, 60, 0]);
        payload.extend([0; 60]);
        Ok(self.ask(24, &payload)?[12..].to_vec())
    }

    /// Waits for the message that says that the configuration has changed.
    pub fn await_config_change(&mut self) -> io::Result<()> {
        let back = self.back.as_mut().ok_or_else(|| other("no back channel"))?;
        let mut header = [0u8; 12];
        back.read_exact(&mut header)?;
        match header[0] {
            2 => Ok(()),
            request => Err(other(format!("message {request}"))),
        }
    }
}

/// Fills `into`, and takes the descriptor that comes with it.
fn receive_with_file(stream: &UnixStream, into: &mut [u8]) -> io::Result<Option<OwnedFd>> {
    let (mut have, mut file) = (0, None);
    while have < into.len() {
        let mut control = [0u64; 8];
        let rest = &mut into[have..];
        let mut piece = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        // SAFETY: all zeros is a value of it.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&mut piece, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        // SAFETY: `header` points to live buffers of the lengths that it says; one descriptor is taken, if any comes.
        unsafe {
            let n = libc::recvmsg(stream.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC);
            match n {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n if n < 0 => return Err(io::Error::last_os_error()),
                n => have += n as usize,
            }
            if let Some(one) = libc::CMSG_FIRSTHDR(&header).as_ref() {
                file = Some(OwnedFd::from_raw_fd(libc::CMSG_DATA(one).cast::<i32>().read_unaligned()));
            }
        }
    }
    Ok(file)
}
