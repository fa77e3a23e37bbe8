//! The device as a VMM has set it up, message by message.
//!
//! Invariants
//!   * a refused message changes nothing; if its sender waits for an answer it gets one, else the connection ends;
//!   * what was agreed on does not change while a queue runs, but for the log of changed pages;
//!   * descriptors that ring are event counters, so that ringing never waits, and each is watched by the device's own
//!     [`Poll`], which forgets it before it is closed.
//!
//! Not here: bytes of messages (`message`), requests (`guest`).

use super::config::{config, CONFIG_BYTES};
use super::inflight::bytes_each;
use super::limits::{QUEUES_MAX, RING_MAX};
use super::mapping::{memory_file, Mapping};
use super::message::{self, Event, Inflight, Message, Refusal};
use super::queue::Queue;
use super::regions::Regions;
use super::request::Bounds;
use super::ring::Places;
use crate::poll::{self, Poll};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tracing::debug;

/// What can be agreed on with the driver.
mod feature {
    pub const SEGMENTS: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const QUEUES: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const LOG: u64 = 1 << 26;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// What can be agreed on with the VMM.
mod protocol {
    pub const QUEUES: u64 = 1;
    pub const LOG_FILE: u64 = 1 << 1;
    pub const ANSWERS: u64 = 1 << 3;
    pub const BACK_CHANNEL: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT: u64 = 1 << 12;
    pub const ALL: u64 = QUEUES | LOG_FILE | ANSWERS | BACK_CHANNEL | CONFIG | INFLIGHT;
}

/// The message of the back channel that says that the configuration has changed.
const CONFIG_CHANGED: u32 = 2;

/// An answer: its payload, and a descriptor that goes with it.
pub type Answer = (Vec<u8>, Option<OwnedFd>);

/// What a message led to.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing is to be said.
    Done,
    /// The answer that its kind has.
    Answer(Answer),
    /// The answer is the base of this queue, once that has settled.
    Stopping(usize),
}

/// The device.
pub struct Device {
    pub queues: Vec<Queue>,
    pub memory: Option<Regions>,
    pub bounds: Bounds,
    features: u64,
    protocol: u64,
    inflight: Option<Arc<Mapping>>,
    back: Option<OwnedFd>,
    bell: Poll,
}

fn number(value: u64) -> Outcome {
    Outcome::Answer((value.to_le_bytes().to_vec(), None))
}

/// Whether a descriptor is an event counter.
fn is_counter(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|to| to.as_os_str() == "anon_inode:[eventfd]")
}

fn refuse(what: Refusal) -> impl Fn(io::Error) -> Refusal {
    move |error| {
        debug!(%error, what, "a VMM's message is refused");
        what
    }
}

impl Device {
    /// A device that nobody has set up.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new(bounds: Bounds) -> io::Result<Self> {
        Ok(Self {
            queues: Vec::new(),
            memory: None,
            bounds,
            features: 0,
            protocol: 0,
            inflight: None,
            back: None,
            bell: Poll::new()?,
        })
    }

    /// What rings when a queue does.
    pub fn bell(&self) -> &Poll {
        &self.bell
    }

    fn offered(&self) -> u64 {
        use feature::*;
        let changes = if self.bounds.read_only { READ_ONLY } else { DISCARD | WRITE_ZEROES };
        let disk = SEGMENTS | BLOCK_SIZE | FLUSH | TOPOLOGY | QUEUES | changes;
        disk | LOG | INDIRECT | EVENT_IDX | PROTOCOL | VERSION_1
    }

    /// Whether requests may have indirect descriptors.
    pub fn has_indirect(&self) -> bool {
        self.features & feature::INDIRECT != 0
    }

    /// Whether the driver flushes: otherwise every change must be durable before it is answered.
    pub fn has_flush(&self) -> bool {
        self.features & feature::FLUSH != 0
    }

    /// Whether messages that ask for an answer get one, whatever their kind.
    pub fn has_answers(&self) -> bool {
        self.protocol & protocol::ANSWERS != 0
    }

    fn runs(&self) -> bool {
        self.queues.iter().any(Queue::is_running)
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue, Refusal> {
        let count = index as usize + 1;
        if count > usize::from(QUEUES_MAX) {
            return Err("a queue beyond the last one");
        }
        if self.queues.len() < count {
            // Without protocol features queues cannot be enabled, and are so from the beginning.
            let enabled = self.features & feature::PROTOCOL == 0;
            self.queues.resize_with(count, || Queue::new(enabled));
        }
        self.queues.get_mut(index as usize).ok_or("a queue beyond the last one")
    }

    /// A queue whose setup may still change.
    fn still_queue(&mut self, index: u32) -> Result<&mut Queue, Refusal> {
        let queue = self.queue(index)?;
        if queue.is_running() {
            return Err("a queue that runs cannot be changed");
        }
        Ok(queue)
    }

    fn start(&mut self, index: usize) -> Result<(), Refusal> {
        let (event_idx, memory) = (self.features & feature::EVENT_IDX != 0, self.memory.as_ref());
        let inflight = self.inflight.as_ref();
        let Some(queue) = self.queues.get_mut(index) else { return Ok(()) };
        queue.start(index, memory, event_idx, inflight)
    }

    /// Takes a message with its descriptors.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn take(&mut self, message: Message, fds: Vec<OwnedFd>) -> Result<Outcome, Refusal> {
        let mut fds = fds;
        match message {
            Message::GetFeatures => return Ok(number(self.offered())),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::GetProtocolFeatures => return Ok(number(protocol::ALL)),
            Message::SetProtocolFeatures(features) => {
                if features & !protocol::ALL != 0 {
                    return Err("protocol features that were not offered");
                }
                self.protocol = features;
            }
            Message::Owner | Message::SetLogFd | Message::SetConfig => {}
            Message::SetMemory(told) => {
                let made = Regions::new(&told, fds);
                let mut made = made.map_err(refuse("memory that cannot be mapped"))?;
                made.inherit(self.memory.take());
                self.queues.iter_mut().for_each(|queue| queue.moved(&made));
                self.memory = Some(made);
            }
            Message::SetLog { len, offset } => {
                let (Some(memory), Some(file)) = (&mut self.memory, fds.pop()) else {
                    return Err("a log of changes to no memory");
                };
                memory.log_in(&file, offset, len).map_err(refuse("a log that cannot be mapped"))?;
                return Ok(number(0));
            }
            Message::SetSize { queue, entries } => self.still_queue(queue)?.set_size(entries)?,
            Message::SetBase { queue, next } => self.still_queue(queue)?.set_base(next)?,
            Message::SetPlaces { queue, table, used, available, .. } => {
                self.queue(queue)?.set_places(Places { table, available, used })?;
                self.start(queue as usize)?;
            }
            Message::GetBase(queue) => {
                self.queue(queue)?.stopping = true;
                return Ok(Outcome::Stopping(queue as usize));
            }
            Message::SetEvent { queue, event, .. } => self.set_event(queue, event, fds.pop())?,
            Message::GetQueues => return Ok(number(u64::from(QUEUES_MAX))),
            Message::Enable { queue, on } => self.queue(queue)?.enabled = on,
            Message::SetBackChannel => self.back = fds.pop(),
            Message::GetConfig { offset, len, flags } => return Ok(self.config(offset, len, flags)),
            Message::GetInflight(wanted) => return self.new_inflight(wanted),
            Message::SetInflight(told) => self.set_inflight(told, fds.pop())?,
            Message::Unknown(_) => return Err("a message that was not offered"),
        }
        Ok(Outcome::Done)
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        if features & !self.offered() != 0 {
            return Err("features that were not offered");
        }
        if self.runs() && (features ^ self.features) & !feature::LOG != 0 {
            return Err("features cannot change while a queue runs");
        }
        self.features = features;
        if let Some(memory) = &mut self.memory {
            memory.logging = features & feature::LOG != 0;
        }
        if features & feature::PROTOCOL == 0 {
            self.queues.iter_mut().for_each(|queue| queue.enabled = true);
        }
        Ok(())
    }

    fn set_event(&mut self, index: u8, event: Event, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        if fd.as_ref().is_some_and(|fd| !is_counter(fd)) {
            return Err("a descriptor to ring that is no event counter");
        }
        let queue = self.queue(u32::from(index))?;
        match event {
            Event::Call => queue.call = fd,
            Event::Err => queue.err = fd,
            Event::Kick => {
                let fd = fd.ok_or("a queue that is never rung")?;
                if let Some(before) = queue.kick.take() {
                    forget(&self.bell, &before);
                }
                let added = self.bell.add(fd.as_raw_fd(), u64::from(index), poll::READ | poll::EDGE);
                added.map_err(refuse("a descriptor that cannot be watched"))?;
                self.queue(u32::from(index))?.kick = Some(fd);
                self.start(usize::from(index))?;
            }
        }
        Ok(())
    }

    /// Stops a queue that has settled: the answer to who asked for its base.
    pub fn stop(&mut self, index: usize) -> Answer {
        let mut base = 0;
        if let Some(queue) = self.queues.get_mut(index) {
            if let Some(kick) = &queue.kick {
                forget(&self.bell, kick);
            }
            base = queue.stop();
        }
        let mut payload = (index as u32).to_le_bytes().to_vec();
        payload.extend(u32::from(base).to_le_bytes());
        (payload, None)
    }

    fn config(&self, offset: u32, len: u32, flags: u32) -> Outcome {
        let bytes = config(self.bounds.size);
        let (start, end) = (offset as usize, (offset as usize).saturating_add(len as usize));
        // An answer of no length says that there is no such part.
        let part = bytes.get(start..end.min(CONFIG_BYTES)).filter(|part| part.len() == len as usize);
        let answer = part.map_or_else(Vec::new, |part| message::config_answer(offset, flags, part));
        Outcome::Answer((answer, None))
    }

    fn new_inflight(&mut self, wanted: Inflight) -> Result<Outcome, Refusal> {
        let Inflight { queues, entries, .. } = wanted;
        if queues == 0 || queues > QUEUES_MAX || entries == 0 || entries > RING_MAX {
            return Err("in-flight memory for queues that cannot be");
        }
        let len = bytes_each(entries) * u64::from(queues);
        let file = memory_file(len).map_err(refuse("no in-flight memory"))?;
        let answer = message::inflight_answer(&Inflight { len, offset: 0, ..wanted });
        Ok(Outcome::Answer((answer, Some(file))))
    }

    fn set_inflight(&mut self, told: Inflight, file: Option<OwnedFd>) -> Result<(), Refusal> {
        let file = file.ok_or("in-flight memory without its file")?;
        if self.runs() {
            return Err("in-flight memory cannot change while a queue runs");
        }
        if told.len > bytes_each(RING_MAX) * u64::from(QUEUES_MAX) {
            return Err("in-flight memory that is too long");
        }
        let mapping =
            Mapping::new(&file, told.offset, told.len).map_err(refuse("in-flight memory that cannot be mapped"))?;
        self.inflight = Some(Arc::new(mapping));
        Ok(())
    }

    /// The disk has another size: its VMM is told, if it listens.
    pub fn resized(&mut self, size: u64) {
        self.bounds.size = size;
        if let Some(back) = &self.back {
            // Who does not take it, or is no socket, is not told.
            let _ = super::socket::send(back, &message::encode(CONFIG_CHANGED, false, &[]), None);
        }
    }
}

fn forget(bell: &Poll, kick: &OwnedFd) {
    if let Err(error) = bell.remove(kick.as_raw_fd()) {
        debug!(%error, "a descriptor was not watched");
    }
}
