//! One queue: what a VMM has said of it, its ring once that runs, and the answers that wait to be shown.
//!
//! Invariants
//!   * size, places and base are frozen while the ring runs, which is from the descriptor that rings it to its stop;
//!   * every head that is taken is answered once: `busy` heads are those begun and not shown;
//!   * a broken queue takes nothing more; what it has begun is still answered, so that it can be stopped.

use super::chain::{self, Chain, Malformed};
use super::inflight::Tracker;
use super::mapping::Mapping;
use super::message::Refusal;
use super::regions::Regions;
use super::ring::{is_size, Broken, Places, Ring};
use super::work::Answer;
use crate::poll;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// A queue of a guest.
#[derive(Default)]
pub struct Queue {
    entries: u16,
    base: u16,
    /// The VMM's addresses.
    told: Option<Places>,
    pub kick: Option<OwnedFd>,
    pub call: Option<OwnedFd>,
    pub err: Option<OwnedFd>,
    pub enabled: bool,
    /// Nothing more is taken: somebody waits for it to settle.
    pub stopping: bool,
    pub broken: Option<Broken>,
    ring: Option<Ring>,
    tracker: Option<Tracker>,
    /// Begun by a process before this one, to be carried out again.
    again: VecDeque<u16>,
    begun: Vec<bool>,
    busy: usize,
    answers: Vec<Answer>,
}

/// A request that was taken.
pub struct Taken {
    pub head: u16,
    pub chain: Result<Chain, Malformed>,
}

fn translate(memory: &Regions, told: Places) -> Option<Places> {
    let to = |user| memory.guest_address(user);
    Some(Places { table: to(told.table)?, available: to(told.available)?, used: to(told.used)? })
}

impl Queue {
    /// A queue that nothing has been said of.
    pub fn new(enabled: bool) -> Self {
        Self { enabled, ..Self::default() }
    }

    fn is_open(&self) -> bool {
        self.enabled && !self.stopping && self.broken.is_none()
    }

    /// Whether the ring runs.
    pub fn is_running(&self) -> bool {
        self.ring.is_some()
    }

    pub fn set_size(&mut self, entries: u32) -> Result<(), Refusal> {
        let entries = u16::try_from(entries).ok().filter(|entries| is_size(*entries));
        self.entries = entries.ok_or("a size that no queue can have")?;
        Ok(())
    }

    pub fn set_base(&mut self, next: u32) -> Result<(), Refusal> {
        self.base = u16::try_from(next).map_err(|_| "a base that no queue can have")?;
        Ok(())
    }

    /// Takes the VMM's addresses; while the ring runs they can only be said once more.
    pub fn set_places(&mut self, told: Places) -> Result<(), Refusal> {
        if self.is_running() && self.told != Some(told) {
            return Err("a queue that runs cannot be moved");
        }
        self.told = Some(told);
        Ok(())
    }

    /// Starts the ring when all that is needed has been said.
    pub fn start(
        &mut self,
        index: usize,
        memory: Option<&Regions>,
        event_idx: bool,
        inflight: Option<&Arc<Mapping>>,
    ) -> Result<(), Refusal> {
        let (Some(told), Some(memory)) = (self.told, memory) else { return Ok(()) };
        if self.is_running() || self.kick.is_none() || self.entries == 0 {
            return Ok(());
        }
        let places = translate(memory, told).ok_or("a queue outside the guest's memory")?;
        let ring = Ring::new(memory, self.entries, places, event_idx, self.base);
        let mut ring = ring.ok_or("a queue that is not, or not rightly, in the guest's memory")?;
        self.tracker = match inflight {
            None => None,
            Some(inflight) => Some(Tracker::new(inflight, index, self.entries).ok_or("no room to track the queue")?),
        };
        self.again.clear();
        if let Some(heads) = self.tracker.as_mut().and_then(|tracker| tracker.recover(ring.used())) {
            // What was taken before is what was answered and what was not.
            ring.go_on_at(ring.used().wrapping_add(heads.len() as u16));
            self.again.extend(heads);
        }
        self.begun = vec![false; usize::from(self.entries)];
        (self.busy, self.broken) = (0, None);
        self.answers.clear();
        // Until it rests, it is looked at.
        if let Err(broken) = ring.wake(memory) {
            self.broken = Some(broken);
        }
        self.ring = Some(ring);
        Ok(())
    }

    /// The memory is another one now.
    pub fn moved(&mut self, memory: &Regions) {
        if let (Some(ring), Some(told)) = (&mut self.ring, self.told) {
            match translate(memory, told) {
                Some(places) if places == ring.places() => {}
                Some(places) => ring.move_to(places),
                None => self.broken = Some(Broken::Outside),
            }
        }
    }

    /// Whether all that was begun has been shown.
    pub fn is_settled(&self) -> bool {
        self.busy == 0
    }

    /// Stops the ring; the entry that it would have taken next.
    pub fn stop(&mut self) -> u16 {
        (self.kick, self.tracker, self.stopping) = (None, None, false);
        if let Some(ring) = self.ring.take() {
            self.base = ring.next();
        }
        self.base
    }

    /// Whether there is something to take.
    pub fn has_more(&self, memory: &Regions) -> bool {
        let Some(ring) = self.ring.as_ref().filter(|_| self.is_open()) else { return false };
        // What is wrong with it is found when it is taken.
        !self.again.is_empty() || ring.available(memory) != Ok(0)
    }

    /// Takes a request.
    pub fn take(&mut self, memory: &Regions, indirect: bool) -> Result<Option<Taken>, Broken> {
        let open = self.is_open();
        let Some(ring) = self.ring.as_mut().filter(|_| open) else { return Ok(None) };
        let again = self.again.pop_front();
        let Some(head) = again.map_or_else(|| ring.take(memory), |head| Ok(Some(head)))? else { return Ok(None) };
        let begun = self.begun.get_mut(usize::from(head)).ok_or(Broken::NoSuchHead)?;
        if std::mem::replace(begun, true) {
            return Err(Broken::Twice);
        }
        self.busy += 1;
        if let Some(tracker) = self.tracker.as_mut().filter(|_| again.is_none()) {
            tracker.begin(head);
        }
        let chain = chain::walk(memory, ring.places().table, ring.size(), head, indirect);
        Ok(Some(Taken { head, chain }))
    }

    /// An answer, to be shown with the next ones.
    pub fn answer(&mut self, answer: Answer) {
        self.answers.push(answer);
    }

    /// Shows the guest the answers that there are, and rings it if it wants that.
    pub fn show(&mut self, memory: &Regions) {
        if self.answers.is_empty() {
            return;
        }
        let answers = std::mem::take(&mut self.answers);
        if let Err(broken) = self.show_all(memory, &answers) {
            self.broken.get_or_insert(broken);
        }
        for answer in &answers {
            if let Some(begun) = self.begun.get_mut(usize::from(answer.head)) {
                self.busy -= usize::from(std::mem::replace(begun, false));
            }
        }
        self.answers = answers;
        self.answers.clear();
    }

    fn show_all(&mut self, memory: &Regions, answers: &[Answer]) -> Result<(), Broken> {
        use super::memory::Memory;
        let Some(ring) = &mut self.ring else { return Ok(()) };
        for (ahead, answer) in answers.iter().enumerate() {
            if let Some(at) = answer.at {
                // Its place was checked when it was taken; memory that has gone since takes the queue with it.
                memory.write(at, &[answer.status as u8])?;
            }
            ring.fill(memory, ahead as u16, answer.head, answer.written)?;
            if let Some(tracker) = &self.tracker {
                tracker.prepare(answer.head);
            }
        }
        ring.publish(memory, answers.len() as u16)?;
        if let Some(tracker) = &self.tracker {
            tracker.shown(answers.iter().map(|answer| answer.head), ring.used());
        }
        if ring.must_tell(memory)? {
            if let Some(call) = &self.call {
                poll::signal_event(call.as_raw_fd());
            }
        }
        Ok(())
    }

    /// Asks the guest to ring; `true` when there is something to take already.
    pub fn rest(&self, memory: &Regions) -> bool {
        self.ring.as_ref().filter(|_| self.is_open()).is_some_and(|ring| ring.rest(memory) != Ok(false))
    }

    /// Lets the guest be quiet.
    pub fn wake(&self, memory: &Regions) {
        if let Some(ring) = self.ring.as_ref().filter(|_| self.broken.is_none()) {
            // If its memory is gone, taking will find that.
            let _ = ring.wake(memory);
        }
    }

    /// No more is taken from it.
    pub fn break_it(&mut self, why: Broken) {
        if self.broken.is_none() {
            self.broken = Some(why);
            if let Some(err) = &self.err {
                poll::signal_event(err.as_raw_fd());
            }
        }
    }
}
