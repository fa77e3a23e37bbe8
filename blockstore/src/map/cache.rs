//! Verified 4 KiB pages (map pages and directory pages) in memory, bounded, evicted by CLOCK.

use crate::error::Result;
use crate::limits::BLOCK;
use crate::types::SlotAddr;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Reads and verifies pages that the cache does not hold.
pub trait PageSource {
    /// The verified page at `addr`.
    fn load(&self, addr: SlotAddr) -> Result<Box<[u8; BLOCK]>>;
}

/// Multiplicative hashing: keys are addresses that we chose ourselves.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(v.into());
    }
    fn write_u64(&mut self, v: u64) {
        let mixed = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A map whose keys are numbers of ours.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

struct Frame {
    addr: SlotAddr,
    used: bool,
    page: Box<[u8; BLOCK]>,
}

/// The cache. Frames form the clock face; `index` finds them by address.
pub struct PageCache {
    frames: Vec<Frame>,
    index: NumberMap<u64, u32>,
    hand: usize,
    capacity: usize,
}

impl PageCache {
    /// A cache of at most `bytes`, and never less than 64 pages.
    pub fn new(bytes: u64) -> Self {
        let capacity = (bytes / BLOCK as u64).clamp(64, 1 << 31) as usize;
        Self { frames: Vec::new(), index: NumberMap::default(), hand: 0, capacity }
    }

    /// The page at `addr`, loaded from `source` when missing.
    pub fn get(&mut self, addr: SlotAddr, source: &dyn PageSource) -> Result<&[u8; BLOCK]> {
        let frame = match self.index.get(&addr.0) {
            Some(&frame) => frame as usize,
            None => {
                let page = source.load(addr)?;
                self.insert(addr, page)
            }
        };
        let frame = &mut self.frames[frame];
        frame.used = true;
        Ok(&frame.page)
    }

    /// The page at `addr`, if it is held.
    pub fn held(&self, addr: SlotAddr) -> Option<&[u8; BLOCK]> {
        let frame = self.index.get(&addr.0)?;
        Some(&self.frames[*frame as usize].page)
    }

    /// Forgets a page that nobody will ask for again.
    pub fn forget(&mut self, addr: SlotAddr) {
        let Some(at) = self.index.remove(&addr.0) else { return };
        self.frames.swap_remove(at as usize);
        if let Some(moved) = self.frames.get(at as usize) {
            self.index.insert(moved.addr.0, at);
        }
    }

    /// Adds a page that was just written.
    pub fn put(&mut self, addr: SlotAddr, page: Box<[u8; BLOCK]>) {
        match self.index.get(&addr.0) {
            Some(&frame) => self.frames[frame as usize].page = page,
            None => {
                self.insert(addr, page);
            }
        }
    }

    fn insert(&mut self, addr: SlotAddr, page: Box<[u8; BLOCK]>) -> usize {
        let frame = Frame { addr, used: false, page };
        let at = if self.frames.len() < self.capacity {
            self.frames.push(frame);
            self.frames.len() - 1
        } else {
            let at = self.victim();
            self.index.remove(&self.frames[at].addr.0);
            self.frames[at] = frame;
            at
        };
        self.index.insert(addr.0, at as u32);
        at
    }

    fn victim(&mut self) -> usize {
        loop {
            self.hand = (self.hand + 1) % self.frames.len();
            let frame = &mut self.frames[self.hand];
            if !std::mem::replace(&mut frame.used, false) {
                return self.hand;
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        (self.frames.len() * BLOCK) as u64
    }
}
