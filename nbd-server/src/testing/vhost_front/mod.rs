//! The smallest honest VMM and driver: memory, rings and eventfds, over vhost-user. It speaks the protocol by its own hand,
//! so that a mistake in the daemon's reading of it is not made twice; and it can be made to lie.

mod messages;

use crate::poll;
use crate::vhost::testing::{memory_file, send_message};
use crate::vhost::Mapping;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{fence, Ordering};
use std::time::{Duration, Instant};
use vm_memory::Bytes;

/// Where the guest has its memory, and the VMM.
pub const GUEST: u64 = 0x1000_0000;
const USER: u64 = 0x7f00_0000_0000;
/// Bytes of a queue's rings, and of one request: its header, its status, an indirect table, and data.
const RING_BYTES: u64 = 64 << 10;
const AT_STATUS: u64 = 64;
const AT_TABLE: u64 = 128;
const AT_DATA: u64 = 4096;
const WAIT: Duration = Duration::from_secs(20);

/// Feature bits.
pub mod feature {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const RO: u64 = 1 << 5;
    pub const FLUSH: u64 = 1 << 9;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    /// What a Linux driver takes.
    pub const USUAL: u64 = FLUSH | DISCARD | WRITE_ZEROES | INDIRECT | EVENT_IDX | PROTOCOL | VERSION_1;
}

/// How a guest is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Queues.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
    /// Data bytes of a request at most.
    pub data: u64,
    /// Features that the driver wants, of those offered.
    pub features: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self { queues: 1, entries: 128, data: 64 << 10, features: feature::USUAL }
    }
}

struct Ring {
    kick: OwnedFd,
    call: OwnedFd,
    err: OwnedFd,
    available: u16,
    used: u16,
    /// The available index when the device was last rung, or might have been.
    rung: u16,
    free: Vec<u16>,
}

/// A guest.
pub struct Front {
    stream: UnixStream,
    setup: Setup,
    file: OwnedFd,
    memory: Mapping,
    rings: Vec<Ring>,
    inflight: Option<(OwnedFd, Vec<u8>)>,
    back: Option<UnixStream>,
    /// What the device offered.
    pub offered: u64,
    /// What was agreed on.
    pub agreed: u64,
}

/// An answered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Which request.
    pub slot: u16,
    /// Its status byte.
    pub status: u8,
    /// The length in its used entry.
    pub written: u32,
}

fn other(why: impl Into<String>) -> io::Error {
    io::Error::other(why.into())
}

fn words(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn halves(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Front {
    /// A guest on the volume behind `socket`.
    pub fn connect(socket: &Path, setup: Setup) -> io::Result<Self> {
        let mut front = Self::quiet(socket, setup)?;
        front.agree()?;
        front.start()?;
        Ok(front)
    }

    /// One that has said nothing yet.
    pub fn quiet(socket: &Path, setup: Setup) -> io::Result<Self> {
        let len = Self::bytes(setup);
        let file = memory_file(len)?;
        let memory = Mapping::new(&file, 0, len)?;
        let ring = |_| {
            Ok(Ring {
                kick: poll::event_fd()?,
                call: poll::event_fd()?,
                err: poll::event_fd()?,
                available: 0,
                used: 0,
                rung: 0,
                free: (0..setup.entries / 3).rev().collect(),
            })
        };
        let rings = (0..setup.queues).map(ring).collect::<io::Result<_>>()?;
        let stream = Self::dial(socket)?;
        Ok(Self { stream, setup, file, memory, rings, inflight: None, back: None, offered: 0, agreed: 0 })
    }

    /// One that has agreed on features, and handed nothing over.
    pub fn agreed(socket: &Path, setup: Setup) -> io::Result<Self> {
        let mut front = Self::quiet(socket, setup)?;
        front.agree()?;
        Ok(front)
    }

    /// A guest whose memory can be made shorter.
    pub fn unsealed(socket: &Path, setup: Setup) -> io::Result<Self> {
        let mut front = Self::quiet(socket, setup)?;
        // SAFETY: the name is a C string, and nobody else owns the new descriptor.
        front.file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        let len = Self::bytes(setup);
        std::fs::File::from(front.file.try_clone()?).set_len(len)?;
        front.memory = Mapping::new(&front.file, 0, len)?;
        front.agree()?;
        front.start()?;
        Ok(front)
    }

    /// Takes all of its memory away.
    pub fn shrink(&self) -> io::Result<()> {
        std::fs::File::from(self.file.try_clone()?).set_len(0)
    }

    /// Its memory's file.
    pub fn file(&self) -> OwnedFd {
        self.file.try_clone().expect("a descriptor")
    }

    /// Sends a message with a descriptor in each of `count` parts.
    pub fn say_with_surplus(&self, request: u32, payload: &[u8], count: usize) -> io::Result<()> {
        let mut bytes = halves(&[request, 9, payload.len() as u32]);
        bytes.extend(payload);
        for (i, byte) in bytes.iter().enumerate() {
            send_message(&self.stream, &[*byte], (i < count).then_some(self.file.as_fd()))?;
        }
        Ok(())
    }

    fn dial(socket: &Path) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(WAIT))?;
        Ok(stream)
    }

    fn bytes(setup: Setup) -> u64 {
        let slots = u64::from(setup.queues) * u64::from(setup.entries / 3);
        u64::from(setup.queues) * RING_BYTES + slots * (AT_DATA + setup.data)
    }

    /// The daemon was restarted: the same guest comes again, with what it had under way.
    pub fn reconnect(&mut self, socket: &Path) -> io::Result<()> {
        self.stream = Self::dial(socket)?;
        self.agree()?;
        self.start()
    }

    /// Where the descriptors of a queue are.
    pub fn table(&self, queue: u16) -> u64 {
        GUEST + u64::from(queue) * RING_BYTES
    }

    /// Where a queue's available ring is.
    pub fn avail(&self, queue: u16) -> u64 {
        self.table(queue) + (32 << 10)
    }

    /// Where its used ring is.
    pub fn used(&self, queue: u16) -> u64 {
        self.table(queue) + (48 << 10)
    }

    /// Where the memory of a request is.
    pub fn place(&self, queue: u16, slot: u16) -> u64 {
        let slots = u64::from(self.setup.entries / 3);
        let index = u64::from(queue) * slots + u64::from(slot);
        GUEST + u64::from(self.setup.queues) * RING_BYTES + index * (AT_DATA + self.setup.data)
    }

    fn get<T: vm_memory::AtomicAccess>(&self, at: u64) -> io::Result<T> {
        self.memory.slice().load((at - GUEST) as usize, Ordering::Acquire).map_err(io::Error::other)
    }

    /// Writes a number at a place that is aligned for it.
    pub fn set<T: vm_memory::AtomicAccess>(&self, at: u64, value: T) -> io::Result<()> {
        self.memory.slice().store(value, (at - GUEST) as usize, Ordering::Release).map_err(io::Error::other)
    }

    /// Writes bytes of the guest's memory.
    pub fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.slice().write_slice(bytes, (at - GUEST) as usize).map_err(io::Error::other)
    }

    /// Writes a descriptor of the table at `table`.
    pub fn describe(&self, table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) -> io::Result<()> {
        let mut bytes = words(&[at]);
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes)
    }

    /// Makes a request available: `out` is read by the device, `space` bytes are for it to fill. The slot; `None` when all
    /// are under way. The device is rung by [`Front::ring`].
    pub fn submit(&mut self, queue: u16, kind: u32, sector: u64, out: &[u8], space: u32) -> io::Result<Option<u16>> {
        let Some(slot) = self.rings[usize::from(queue)].free.pop() else { return Ok(None) };
        let place = self.place(queue, slot);
        let mut header = halves(&[kind, 0]);
        header.extend(words(&[sector]));
        self.put(place, &header)?;
        self.put(place + AT_STATUS, &[0xff])?;
        self.put(place + AT_DATA, out)?;
        let indirect = self.agreed & feature::INDIRECT != 0;
        let (table, first) = match indirect {
            true => (place + AT_TABLE, 0),
            false => (self.table(queue), 3 * slot),
        };
        let mut parts = vec![(place, 16, 0)];
        if !out.is_empty() {
            parts.push((place + AT_DATA, out.len() as u32, 0));
        }
        if space > 0 {
            parts.push((place + AT_DATA, space, 2));
        }
        parts.push((place + AT_STATUS, 1, 2));
        let count = parts.len() as u16;
        for (i, (at, len, write)) in (0u16..).zip(parts) {
            let next = u16::from(i + 1 < count);
            self.describe(table, first + i, at, len, write | next, first + i + 1)?;
        }
        if indirect {
            self.describe(self.table(queue), 3 * slot, table, 16 * u32::from(count), 4, 0)?;
        }
        self.offer(queue, 3 * slot)?;
        Ok(Some(slot))
    }

    /// Makes the request that begins at `head` available.
    pub fn offer(&mut self, queue: u16, head: u16) -> io::Result<()> {
        let at = self.avail(queue);
        let ring = &mut self.rings[usize::from(queue)];
        let entry = u64::from(ring.available % self.setup.entries);
        ring.available = ring.available.wrapping_add(1);
        let available = ring.available;
        self.set(at + 4 + 2 * entry, head)?;
        self.set(at + 2, available)
    }

    /// Rings the device, unless it has asked not to be.
    pub fn ring(&mut self, queue: u16) -> io::Result<()> {
        fence(Ordering::SeqCst);
        let ring = &self.rings[usize::from(queue)];
        let (now, before) = (ring.available, ring.rung);
        let must = if self.agreed & feature::EVENT_IDX != 0 {
            let wished: u16 = self.get(self.used(queue) + 4 + 8 * u64::from(self.setup.entries))?;
            now.wrapping_sub(wished).wrapping_sub(1) < now.wrapping_sub(before)
        } else {
            self.get::<u16>(self.used(queue))? & 1 == 0
        };
        let ring = &mut self.rings[usize::from(queue)];
        ring.rung = now;
        if must {
            poll::signal_event(ring.kick.as_raw_fd());
        }
        Ok(())
    }

    /// Rings the device, whatever it wants.
    pub fn ring_loudly(&self, queue: u16) {
        poll::signal_event(self.rings[usize::from(queue)].kick.as_raw_fd());
    }

    /// Takes the next answer, if there is one.
    pub fn poll(&mut self, queue: u16) -> io::Result<Option<Done>> {
        let (at, used) = (self.used(queue), self.rings[usize::from(queue)].used);
        if self.get::<u16>(at + 2)? == used {
            return Ok(None);
        }
        let entry = at + 4 + 8 * u64::from(used % self.setup.entries);
        let (head, written) = (self.get::<u32>(entry)? as u16, self.get::<u32>(entry + 4)?);
        let slot = head / 3;
        let ring = &mut self.rings[usize::from(queue)];
        ring.used = used.wrapping_add(1);
        if ring.free.contains(&slot) {
            return Err(other(format!("request {slot} is answered a second time")));
        }
        ring.free.push(slot);
        let status = self.get(self.place(queue, slot) + AT_STATUS)?;
        Ok(Some(Done { slot, status, written }))
    }

    /// Waits for the next answer, as a driver does: asleep until it is rung.
    pub fn wait(&mut self, queue: u16) -> io::Result<Done> {
        let until = Instant::now() + WAIT;
        loop {
            if let Some(done) = self.poll(queue)? {
                return Ok(done);
            }
            let ring = &self.rings[usize::from(queue)];
            // The wish to be rung for the next one, and another look.
            self.set(self.avail(queue) + 4 + 2 * u64::from(self.setup.entries), ring.used)?;
            fence(Ordering::SeqCst);
            if self.get::<u16>(self.used(queue) + 2)? != ring.used {
                continue;
            }
            poll::wait_two((Some(ring.call.as_raw_fd()), poll::READ_EVENTS), (None, 0), 1000)?;
            poll::drain(ring.call.as_raw_fd());
            if Instant::now() > until {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    /// Whether the device says that a queue is broken.
    pub fn is_broken(&self, queue: u16) -> bool {
        let ring = &self.rings[usize::from(queue)];
        let ready = poll::wait_two((Some(ring.err.as_raw_fd()), poll::READ_EVENTS), (None, 0), 5000);
        ready.is_ok_and(|(ready, _)| ready.read)
    }

    /// One request from beginning to end; its status.
    pub fn call(&mut self, queue: u16, kind: u32, sector: u64, out: &[u8], space: u32) -> io::Result<(u8, Vec<u8>)> {
        let slot = self.submit(queue, kind, sector, out, space)?.ok_or_else(|| other("all slots are under way"))?;
        self.ring(queue)?;
        let done = self.wait(queue)?;
        if done.slot != slot {
            return Err(other(format!("request {} is answered instead of {slot}", done.slot)));
        }
        Ok((done.status, self.data(queue, slot, space as usize)?))
    }

    /// Data of a request.
    pub fn data(&self, queue: u16, slot: u16, len: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; len];
        let at = self.place(queue, slot) + AT_DATA - GUEST;
        self.memory.slice().read_slice(&mut data, at as usize).map_err(io::Error::other)?;
        Ok(data)
    }

    /// Requests that can be made available.
    pub fn free(&self, queue: u16) -> usize {
        self.rings[usize::from(queue)].free.len()
    }
}
