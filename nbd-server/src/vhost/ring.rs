//! A split ring: what the guest has made available, and what it is told is used.
//!
//! Invariants
//!   * `used - next <= size` (modulo 2^16): no more is taken than was made available, and no more than the ring holds
//!     can be: an index that has run away breaks the queue;
//!   * size and places do not change in the life of a [`Ring`]; every place is checked against the memory by each access;
//!   * between [`Ring::rest`] and [`Ring::wake`] the guest rings for new requests, otherwise it need not.

use super::limits::RING_MAX;
use super::memory::{offset, Fault, Memory};
use std::sync::atomic::{fence, Ordering};

/// Why a queue is served no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The ring is not, or no longer, in the guest's memory.
    Outside,
    /// More is available than the ring holds.
    RanAway,
    /// A request begins at no descriptor.
    NoSuchHead,
    /// A request is made available that is still being carried out.
    Twice,
}

impl Broken {
    /// For the log.
    pub fn why(self) -> &'static str {
        match self {
            Broken::Outside => "its ring is not in the guest's memory",
            Broken::RanAway => "more is available than its ring holds",
            Broken::NoSuchHead => "a request begins at no descriptor",
            Broken::Twice => "a request was made available again while it was carried out",
        }
    }
}

impl From<Fault> for Broken {
    fn from(_: Fault) -> Self {
        Broken::Outside
    }
}

/// Where the three parts of a ring are, guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Descriptors.
    pub table: u64,
    /// What the guest makes available.
    pub available: u64,
    /// What it is told is used.
    pub used: u64,
}

/// A ring that is being served.
pub struct Ring {
    size: u16,
    places: Places,
    event_idx: bool,
    /// The available entry that is next.
    next: u16,
    /// The used entry that is next.
    used: u16,
    /// `used` when the guest was last told, or considered to be.
    told: u16,
}

/// Tells the driver not to ring (without event indices).
const NO_NOTIFY: u16 = 1;
/// The driver asks not to be interrupted (without event indices).
const NO_INTERRUPT: u16 = 1;

impl Ring {
    /// A ring of `size` entries, a power of two up to [`RING_MAX`], whose parts lie in `memory`; `None` when it cannot be.
    /// It goes on with the available entry `next`.
    pub fn new(memory: &dyn Memory, size: u16, places: Places, event_idx: bool, next: u16) -> Option<Self> {
        let entries = u64::from(size);
        let fits = is_size(size)
            && places.table.is_multiple_of(16)
            && places.available.is_multiple_of(2)
            && places.used.is_multiple_of(4)
            && memory.holds(places.table, 16 * entries)
            && memory.holds(places.available, 6 + 2 * entries)
            && memory.holds(places.used, 6 + 8 * entries);
        if !fits {
            return None;
        }
        let used = memory.load(places.used.checked_add(2)?).ok()?;
        Some(Self { size, places, event_idx, next, used, told: used })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where its parts are.
    pub fn places(&self) -> Places {
        self.places
    }

    /// The available entry that is next.
    pub fn next(&self) -> u16 {
        self.next
    }

    /// Entries used so far, modulo 2^16.
    pub fn used(&self) -> u16 {
        self.used
    }

    /// Goes on with the available entry `next`.
    pub fn go_on_at(&mut self, next: u16) {
        self.next = next;
    }

    /// The same ring, whose parts are somewhere else now.
    pub fn move_to(&mut self, places: Places) {
        self.places = places;
    }

    /// Requests available.
    pub fn available(&self, memory: &dyn Memory) -> Result<u16, Broken> {
        let count = memory.load(offset(self.places.available, 2)?)?.wrapping_sub(self.next);
        if count > self.size {
            return Err(Broken::RanAway);
        }
        Ok(count)
    }

    /// Takes the first descriptor of the next request.
    pub fn take(&mut self, memory: &dyn Memory) -> Result<Option<u16>, Broken> {
        if self.available(memory)? == 0 {
            return Ok(None);
        }
        let entry = u64::from(self.next % self.size);
        let head = memory.load(offset(self.places.available, 4 + 2 * entry)?)?;
        if head >= self.size {
            return Err(Broken::NoSuchHead);
        }
        self.next = self.next.wrapping_add(1);
        Ok(Some(head))
    }

    /// Writes the used entry that is `ahead` entries behind the last one published: the guest does not see it yet.
    pub fn fill(&self, memory: &dyn Memory, ahead: u16, head: u16, written: u32) -> Result<(), Broken> {
        let entry = u64::from(self.used.wrapping_add(ahead) % self.size);
        let mut bytes = [0; 8];
        let (id, len) = bytes.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        len.copy_from_slice(&written.to_le_bytes());
        Ok(memory.write(offset(self.places.used, 4 + 8 * entry)?, &bytes)?)
    }

    /// Shows the guest `count` more used entries.
    pub fn publish(&mut self, memory: &dyn Memory, count: u16) -> Result<(), Broken> {
        self.used = self.used.wrapping_add(count);
        Ok(memory.store(offset(self.places.used, 2)?, self.used)?)
    }

    /// Whether the guest wants to be interrupted for what was published since it was last asked.
    pub fn must_tell(&mut self, memory: &dyn Memory) -> Result<bool, Broken> {
        if self.used == self.told {
            return Ok(false);
        }
        // What was published must be visible before the guest's wish is read: it does the opposite.
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.told, self.used);
        if !self.event_idx {
            return Ok(memory.load(self.places.available)? & NO_INTERRUPT == 0);
        }
        let wished = memory.load(offset(self.places.available, 4 + 2 * u64::from(self.size))?)?;
        Ok(self.used.wrapping_sub(wished).wrapping_sub(1) < self.used.wrapping_sub(before))
    }

    /// Asks the guest to ring for its next request. `true` when that has come already.
    pub fn rest(&self, memory: &dyn Memory) -> Result<bool, Broken> {
        if self.event_idx {
            memory.store(offset(self.places.used, 4 + 8 * u64::from(self.size))?, self.next)?;
        } else {
            memory.store(self.places.used, 0)?;
        }
        // The wish must be visible before the index is read again.
        fence(Ordering::SeqCst);
        Ok(self.available(memory)? > 0)
    }

    /// Lets the guest be quiet: its requests are looked for anyway. With event indices the stale wish does that.
    pub fn wake(&self, memory: &dyn Memory) -> Result<(), Broken> {
        if !self.event_idx {
            memory.store(self.places.used, NO_NOTIFY)?;
        }
        Ok(())
    }
}

/// Whether a ring can have so many entries.
pub fn is_size(size: u16) -> bool {
    size.is_power_of_two() && size <= RING_MAX
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::super::memory::testing::Array;
    use super::*;

    const PLACES: Places = Places { table: 0, available: 0x100, used: 0x200 };

    fn ring(event_idx: bool) -> (Array, Ring) {
        let memory = Array::new(0, vec![0; 0x400]);
        let ring = Ring::new(&memory, 8, PLACES, event_idx, 0).expect("it fits");
        (memory, ring)
    }

    fn offer(memory: &Array, index: u16, head: u16) {
        memory.store(0x104 + 2 * u64::from((index - 1) % 8), head).expect("inside");
        memory.store(0x102, index).expect("inside");
    }

    #[test]
    fn places_and_sizes_that_cannot_be_are_refused() {
        let memory = Array::new(0, vec![0; 0x400]);
        for size in [0, 3, 12, 2048, u16::MAX] {
            assert!(Ring::new(&memory, size, PLACES, true, 0).is_none(), "{size}");
        }
        for places in [
            Places { table: 8, ..PLACES },
            Places { available: 0x101, ..PLACES },
            Places { used: 0x202, ..PLACES },
            Places { table: 0x390, ..PLACES },
            Places { used: 0x3c0, ..PLACES },
            Places { available: u64::MAX - 1, ..PLACES },
        ] {
            assert!(Ring::new(&memory, 8, places, true, 0).is_none(), "{places:?}");
        }
    }

    #[test]
    fn an_index_that_runs_away_breaks_the_queue() {
        let (memory, mut ring) = ring(true);
        assert_eq!(ring.take(&memory), Ok(None));
        memory.store(0x102, 9).expect("inside");
        assert_eq!(ring.take(&memory), Err(Broken::RanAway));
        memory.store(0x102, u16::MAX).expect("inside");
        assert_eq!(ring.take(&memory), Err(Broken::RanAway));
        offer(&memory, 1, 8);
        assert_eq!(ring.take(&memory), Err(Broken::NoSuchHead));
        offer(&memory, 1, 7);
        assert_eq!(ring.take(&memory), Ok(Some(7)));
        assert_eq!(ring.take(&memory), Ok(None));
    }

    #[test]
    fn the_guest_is_interrupted_when_it_wants_to_be() {
        let (memory, mut ring) = ring(true);
        // The wish: for the third.
        memory.store(0x104 + 16, 2).expect("inside");
        for (n, told) in [(1, false), (2, false), (3, true), (4, false)] {
            ring.publish(&memory, 1).expect("inside");
            assert_eq!(ring.must_tell(&memory), Ok(told), "{n}");
        }
        assert_eq!(ring.must_tell(&memory), Ok(false), "nothing new");
        let (memory, mut ring) = self::ring(false);
        ring.publish(&memory, 1).expect("inside");
        assert_eq!(ring.must_tell(&memory), Ok(true));
        memory.store(0x100, NO_INTERRUPT).expect("inside");
        ring.publish(&memory, 1).expect("inside");
        assert_eq!(ring.must_tell(&memory), Ok(false));
    }

    #[test]
    fn who_rests_sees_what_came_meanwhile() {
        for event_idx in [true, false] {
            let (memory, ring) = ring(event_idx);
            assert_eq!(ring.rest(&memory), Ok(false));
            offer(&memory, 1, 0);
            assert_eq!(ring.rest(&memory), Ok(true));
        }
    }
}
