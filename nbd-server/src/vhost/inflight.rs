//! What of a queue survives this process: which requests were begun and not answered.
//!
//! The memory belongs to the VMM, which gives it to the next process. Its layout is that of `vhost-user.rst`, "Inflight I/O
//! tracking", for split virtqueues. A request is marked when it is begun; answers are shown to the guest in batches, and the
//! list of the last batch tells which marks are stale when the process ends between showing and unmarking.
//!
//! Invariants
//!   * before a request is begun it is marked, and it stays so until the guest can see its answer;
//!   * of what is read here nothing is believed: a head is one of the ring's, a list no longer than it.

use super::mapping::Mapping;
use std::sync::atomic::{fence, Ordering};
use std::sync::Arc;
use vm_memory::{AtomicAccess, Bytes};

const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST_BATCH: usize = 12;
const AT_USED: usize = 14;
/// In an entry: the mark, the next one of its batch, and its place in the order of beginning.
const AT_MARK: usize = 0;
const AT_NEXT: usize = 6;
const AT_ORDER: usize = 8;
/// Each queue begins on a cache line of its own.
const ALIGN: usize = 64;

/// Bytes for each queue of `entries`.
pub fn bytes_each(entries: u16) -> u64 {
    (HEADER_BYTES + ENTRY_BYTES * usize::from(entries)).next_multiple_of(ALIGN) as u64
}

/// The part of one queue.
pub struct Tracker {
    memory: Arc<Mapping>,
    start: usize,
    entries: u16,
    order: u64,
}

impl Tracker {
    /// The part of queue `index`, if `memory` has one.
    pub fn new(memory: &Arc<Mapping>, index: usize, entries: u16) -> Option<Self> {
        let each = bytes_each(entries) as usize;
        let start = each.checked_mul(index)?;
        let end = start.checked_add(each)?;
        (end <= memory.slice().len()).then(|| Self { memory: memory.clone(), start, entries, order: 0 })
    }

    // Every place is inside the mapping by construction: then these cannot fail.
    fn get<T: AtomicAccess + Default>(&self, at: usize) -> T {
        self.memory.slice().load(self.start + at, Ordering::Acquire).unwrap_or_default()
    }

    fn set<T: AtomicAccess>(&self, at: usize, value: T) {
        let _ = self.memory.slice().store(value, self.start + at, Ordering::Release);
    }

    fn entry(&self, head: u16) -> usize {
        HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    /// Learns what was begun and not answered, in the order of beginning, when `used` entries have been shown to the guest;
    /// `None` when nothing has been tracked yet.
    pub fn recover(&mut self, used: u16) -> Option<Vec<u16>> {
        let batch = used.wrapping_sub(self.get(AT_USED));
        if self.get::<u16>(AT_VERSION) != VERSION || self.get::<u16>(AT_ENTRIES) != self.entries || batch > self.entries
        {
            self.begin_anew(used);
            return None;
        }
        // Shown, and perhaps not unmarked any more.
        let mut head: u16 = self.get(AT_LAST_BATCH);
        for _ in 0..batch {
            if head >= self.entries {
                break;
            }
            self.set(self.entry(head) + AT_MARK, 0u8);
            head = self.get(self.entry(head) + AT_NEXT);
        }
        self.set(AT_USED, used);
        let marked = (0..self.entries).filter(|head| self.get::<u8>(self.entry(*head) + AT_MARK) == 1);
        let mut found: Vec<(u64, u16)> = marked.map(|head| (self.get(self.entry(head) + AT_ORDER), head)).collect();
        found.sort_unstable();
        self.order = found.last().map_or(0, |(order, _)| order.wrapping_add(1));
        Some(found.into_iter().map(|(_, head)| head).collect())
    }

    fn begin_anew(&mut self, used: u16) {
        for head in 0..self.entries {
            self.set(self.entry(head) + AT_MARK, 0u8);
        }
        self.set(AT_LAST_BATCH, 0u16);
        self.set(AT_ENTRIES, self.entries);
        self.set(AT_USED, used);
        self.set(AT_VERSION, VERSION);
    }

    /// A request is begun.
    pub fn begin(&mut self, head: u16) {
        let entry = self.entry(head);
        self.set(entry + AT_ORDER, self.order);
        self.order = self.order.wrapping_add(1);
        self.set(entry + AT_MARK, 1u8);
        fence(Ordering::SeqCst);
    }

    /// The answer to a request is about to be shown.
    pub fn prepare(&self, head: u16) {
        self.set(self.entry(head) + AT_NEXT, self.get::<u16>(AT_LAST_BATCH));
        self.set(AT_LAST_BATCH, head);
    }

    /// The answers to these have been shown, which makes `used` in all.
    pub fn shown(&self, heads: impl Iterator<Item = u16>, used: u16) {
        fence(Ordering::SeqCst);
        heads.for_each(|head| self.set(self.entry(head) + AT_MARK, 0u8));
        self.set(AT_USED, used);
    }
}
