//! Carrying out a guest's requests on the pool.
//!
//! Invariants
//!   * every request that is taken is answered once, in whatever order; what waits for the object store or for a sync
//!     holds up nothing behind it. A flush covers what was answered before it was taken;
//!   * one call of [`Guest::process`] does a bounded amount of work (`TURN_COST`) and begins a bounded number of requests.
//!
//! Not here: what becomes of one request (`carry`), turns and syncs (`server`), what a message means (`device`).

mod carry;

use crate::metrics::Metrics;
use crate::session::{Awaited, STORE_TIME};
use crate::vhost::device::{Device, Outcome};
use crate::vhost::limits::{ACTIVE_MAX, PARKED_MAX, RING_MAX};
use crate::vhost::message::{self, Refusal};
use crate::vhost::request::{self, Bounds, Status};
use crate::vhost::socket::{self, Got, Incoming, Received};
use crate::vhost::work::{Answer, Work};
use blockstore::{Arrival, Pool, View};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use tracing::{debug, warn};

/// Work of one turn: a request counts 1, 16 KiB of data 1.
const TURN_COST: u64 = 32;
/// Times that a request is carried out in vain before it waits on the spot.
const ROUNDS_MAX: u32 = 64;
/// Requests taken of a queue before the next one, at least.
const SHARE_LEAST: usize = 8;

/// A request that is answered when its volume has been synced.
#[derive(Clone, Copy, Debug)]
pub struct GuestWait(Answer);

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is left to begin.
    Idle,
    /// Others first, then go on.
    Yield,
    /// Nothing more is begun before something has come from the object store.
    Wait,
    /// The next request is a write, and there is no room for it yet.
    Hold,
}

/// A VMM's connection, and the device behind it.
pub struct Guest {
    socket: UnixStream,
    incoming: Incoming,
    device: Device,
    /// What the guest reads, and writes unless it is a checkpoint.
    pub view: View,
    export: String,
    /// Begun; the first is next.
    active: VecDeque<Work>,
    /// These wait for the object store.
    parked: Vec<Work>,
    /// Who waits for the base of a queue.
    stopping: Option<usize>,
    /// The queue that is looked at first.
    turn: usize,
    scratch: Vec<u8>,
    /// Nothing more is taken.
    pub closing: bool,
    /// Changes are made in smaller pieces: somebody else would wait for them.
    pub small_pieces: bool,
    /// The guest rings for its next request.
    resting: bool,
    /// When it last had work.
    pub busy_at: Instant,
}

impl Guest {
    /// A VMM that has just come for `view`, which it may only read if that is a checkpoint or `read_only`.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new(socket: &UnixStream, export: String, view: View, size: u64, read_only: bool) -> io::Result<Self> {
        let bounds = Bounds { size, read_only: read_only || view.checkpoint.is_some() };
        Ok(Self {
            socket: socket.try_clone()?,
            incoming: Incoming::default(),
            device: Device::new(bounds)?,
            view,
            export,
            active: VecDeque::new(),
            parked: Vec::new(),
            stopping: None,
            turn: 0,
            scratch: Vec::new(),
            closing: false,
            small_pieces: false,
            resting: false,
            busy_at: Instant::now(),
        })
    }

    /// What it has open.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// Readable when the guest has rung.
    pub fn bell(&self) -> RawFd {
        self.device.bell().fd()
    }

    /// Takes note of who has rung.
    pub fn heard(&self) {
        // Which queue it was does not matter: all are looked at.
        let _ = self.device.bell().wait(&mut Vec::new(), 0);
    }

    /// Whether messages have to wait.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether requests wait for the object store.
    pub fn is_waiting(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Whether all that was taken is answered, but for what waits for a sync.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.parked.is_empty()
    }

    /// Reads what the VMM has said, up to the first message that has to wait.
    ///
    /// # Errors
    /// Why the connection ends.
    pub fn listen(&mut self) -> Result<(), Refusal> {
        while self.stopping.is_none() {
            match self.incoming.read(&self.socket)? {
                Got::Later => return Ok(()),
                Got::End => return Err("it hung up"),
                Got::Message(received) => self.message(received)?,
            }
        }
        Ok(())
    }

    fn message(&mut self, received: Received) -> Result<(), Refusal> {
        let Received { header, payload, fds } = received;
        let asked = header.need_reply && self.device.has_answers();
        let parsed = message::parse(header.request, &payload, fds.len());
        debug!(request = header.request, ?parsed, "a VMM says");
        match parsed.and_then(|message| self.device.take(message, fds)) {
            Ok(Outcome::Answer((payload, file))) => self.say(header.request, &payload, file),
            Ok(Outcome::Stopping(queue)) => {
                self.stopping = Some(queue);
                self.finish_stop()
            }
            Ok(Outcome::Done) if asked => self.say(header.request, &0u64.to_le_bytes(), None),
            Ok(Outcome::Done) => Ok(()),
            Err(why) if asked => {
                warn!(export = self.export, why, "a VMM's message is refused");
                self.say(header.request, &1u64.to_le_bytes(), None)
            }
            Err(why) => Err(why),
        }
    }

    fn say(&self, request: u32, payload: &[u8], file: Option<std::os::fd::OwnedFd>) -> Result<(), Refusal> {
        use std::os::fd::AsFd;
        let bytes = message::encode(request, true, payload);
        let sent = socket::send(&self.socket, &bytes, file.as_ref().map(AsFd::as_fd));
        sent.map_err(|_| "it does not take its answers")
    }

    /// Answers who waits for a queue to settle, if it has.
    fn finish_stop(&mut self) -> Result<(), Refusal> {
        const GET_BASE: u32 = 11;
        let settled = |index: &usize| self.device.queues.get(*index).is_none_or(|queue| queue.is_settled());
        let Some(index) = self.stopping.filter(settled) else { return Ok(()) };
        self.stopping = None;
        let (payload, file) = self.device.stop(index);
        self.say(GET_BASE, &payload, file)
    }

    /// Whether there is something to take. Without asking the guest to ring it has to be looked for.
    pub fn has_more(&self) -> bool {
        let Some(memory) = &self.device.memory else { return false };
        !self.closing && self.device.queues.iter().any(|queue| queue.has_more(memory))
    }

    /// Asks the guest to ring for its next request; `true` when there is one already.
    pub fn rest(&mut self) -> bool {
        let Some(memory) = self.device.memory.as_ref().filter(|_| !self.closing) else { return false };
        self.resting = true;
        self.device.queues.iter().filter(|queue| queue.rest(memory)).count() > 0
    }

    fn wake(&mut self) {
        if std::mem::take(&mut self.resting) {
            if let Some(memory) = &self.device.memory {
                self.device.queues.iter().for_each(|queue| queue.wake(memory));
            }
        }
    }

    /// Carries out requests, and shows the guest the answers.
    ///
    /// # Errors
    /// Why the connection ends.
    pub fn process(
        &mut self,
        pool: &mut Pool,
        metrics: &mut Metrics,
        waits: &mut Vec<GuestWait>,
    ) -> Result<Next, Refusal> {
        self.wake();
        self.device.bounds.size = pool.view_size(self.view).unwrap_or(0);
        let mut spent = 0;
        let next = loop {
            self.unpark(metrics);
            if self.active.is_empty() {
                if self.parked.len() >= PARKED_MAX || self.is_waiting() && pool.is_fetching_much() {
                    break Next::Wait;
                }
                if spent < TURN_COST {
                    self.take();
                }
            }
            let Some(first) = self.active.front() else {
                let more = self.has_more();
                break if more { Next::Yield } else { Next::Idle };
            };
            if spent >= TURN_COST {
                break Next::Yield;
            }
            if first.takes_room() && pool.holds_writers() {
                break Next::Hold;
            }
            let patient = first.awaited.as_ref().is_some_and(is_desperate) && !pool.set_patient(true);
            spent += self.step(pool, metrics, waits);
            if patient {
                pool.set_patient(false);
            }
        };
        self.busy_at = Instant::now();
        self.show().map(|()| next)
    }

    /// Begins requests of each queue in turn.
    fn take(&mut self) {
        let Self { device, active, turn, closing, export, .. } = self;
        let (indirect, bounds) = (device.has_indirect(), device.bounds);
        let (Some(memory), count) = (&device.memory, device.queues.len()) else { return };
        if *closing || count == 0 {
            return;
        }
        *turn = (*turn + 1) % count;
        for step in 0..count {
            let index = (*turn + step) % count;
            let Some(queue) = device.queues.get_mut(index) else { continue };
            let share = (ACTIVE_MAX / count).max(SHARE_LEAST);
            for _ in 0..share {
                let taken = match queue.take(memory, indirect) {
                    Ok(Some(taken)) => taken,
                    Ok(None) => break,
                    Err(broken) => {
                        warn!(export, queue = index, why = broken.why(), "a guest's queue is broken");
                        queue.break_it(broken);
                        break;
                    }
                };
                let (queue_index, head) = (index as u16, taken.head);
                let refused =
                    |at, status| Answer { queue: queue_index, head, at, status, written: u32::from(at.is_some()) };
                match taken.chain {
                    Err(malformed) => {
                        debug!(export, why = malformed.why, "a guest's request is malformed");
                        queue.answer(refused(malformed.status, Status::IoError));
                    }
                    Ok(chain) => match request::parse(memory, chain, bounds) {
                        Ok(request) => active.push_back(Work::new(queue_index, head, request)),
                        Err(why) => queue.answer(refused(why.at, why.status)),
                    },
                }
            }
        }
    }

    /// Puts what has come from the object store in turn, and fails what never will.
    fn unpark(&mut self, metrics: &mut Metrics) {
        let mut at = 0;
        while let Some(work) = self.parked.get_mut(at) {
            let Some(awaited) = work.awaited.as_mut().filter(|awaited| awaited.is_over()) else {
                at += 1;
                continue;
            };
            let failure = awaited.take_failure();
            let work = self.parked.swap_remove(at);
            match failure {
                Some(e) => self.fail(&work, metrics, &e),
                None => self.active.push_front(work),
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        if let Some(queue) = self.device.queues.get_mut(usize::from(answer.queue)) {
            queue.answer(answer);
        }
    }

    /// Shows the guest the answers that there are.
    ///
    /// # Errors
    /// Why the connection ends.
    pub fn show(&mut self) -> Result<(), Refusal> {
        if let Some(memory) = &self.device.memory {
            self.device.queues.iter_mut().for_each(|queue| queue.show(memory));
            if memory.is_lost() {
                return Err("it has taken its memory away");
            }
        }
        self.finish_stop()
    }

    /// The sync that a request waited for is over. The guest is shown that by [`Guest::show`].
    pub fn synced(&mut self, wait: GuestWait, failure: Option<&str>) {
        let GuestWait(mut answer) = wait;
        if failure.is_some() {
            answer.status = Status::IoError;
        }
        self.answer(answer);
    }

    /// Takes note of a fetch; `true` when something can go on.
    pub fn arrived(&mut self, arrival: &Arrival) -> bool {
        let all = self.parked.iter_mut().filter_map(|work| work.awaited.as_mut());
        all.filter_map(|awaited| awaited.note(arrival).then_some(())).count() > 0
    }

    /// The volume has another size.
    pub fn resized(&mut self, size: u64) {
        self.device.resized(size);
    }

    /// The connection is ended by the server: whatever was asked and not answered fails, `waits` included.
    pub fn end(&mut self, waits: Vec<GuestWait>) {
        waits.into_iter().for_each(|wait| self.synced(wait, Some("it is taken away")));
        // A guest that goes on asking does not hold up anybody.
        for _ in 0..RING_MAX / SHARE_LEAST as u16 {
            self.take();
            let all: Vec<Work> = self.active.drain(..).chain(self.parked.drain(..)).collect();
            all.iter().for_each(|work| self.answer(Answer::to(work, Status::IoError)));
            // It is closed, whatever this leads to.
            let _ = self.show();
            if all.is_empty() {
                return;
            }
        }
    }
}

fn is_desperate(awaited: &Awaited) -> bool {
    awaited.is_beyond(STORE_TIME * 1000, ROUNDS_MAX)
}
