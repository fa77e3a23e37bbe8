//! From a head to the buffers of one request.
//!
//! Invariants
//!   * each descriptor is copied once, and a table of indirect ones as a whole;
//!   * a walk ends after at most as many descriptors as the ring has, or `CHAIN_MAX` in an indirect table;
//!   * every buffer of a [`Chain`] lies in the guest's memory and has a length; what the guest reads comes first.

use super::limits::CHAIN_MAX;
use super::memory::{Fault, Memory};
use super::wire::{u16_at, u32_at, u64_at};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: usize = 16;

/// A piece of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub at: u64,
    /// Bytes, at least one.
    pub len: u32,
}

/// The buffers of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the device reads.
    pub readable: Vec<Buffer>,
    /// What the device writes.
    pub writable: Vec<Buffer>,
}

/// A request that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong, for the log.
    pub why: &'static str,
    /// Where its status would be, if that much is known.
    pub status: Option<u64>,
}

fn malformed(why: &'static str) -> Malformed {
    Malformed { why, status: None }
}

struct Descriptor {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn descriptor(bytes: &[u8]) -> Option<Descriptor> {
    Some(Descriptor {
        at: u64_at(bytes, 0)?,
        len: u32_at(bytes, 8)?,
        flags: u16_at(bytes, 12)?,
        next: u16_at(bytes, 14)?,
    })
}

/// What has been walked.
#[derive(Default)]
struct Walk {
    chain: Chain,
    /// The first thing that is wrong with a chain whose end is found all the same.
    wrong: Option<&'static str>,
}

impl Walk {
    fn add(&mut self, memory: &dyn Memory, found: &Descriptor) {
        let buffer = Buffer { at: found.at, len: found.len };
        if found.len == 0 {
            self.wrong.get_or_insert("a buffer of no length");
        } else if !memory.holds(found.at, u64::from(found.len)) {
            self.wrong.get_or_insert("a buffer outside the guest's memory");
        } else if found.flags & WRITE != 0 {
            self.chain.writable.push(buffer);
            return;
        } else if !self.chain.writable.is_empty() {
            self.wrong.get_or_insert("a buffer to read behind one to write");
        } else {
            self.chain.readable.push(buffer);
            return;
        }
        if found.flags & WRITE != 0 {
            // The last of those to write is where the status goes: it must be the one that is meant.
            self.chain.writable.clear();
        }
    }

    fn end(self) -> Result<Chain, Malformed> {
        match self.wrong {
            None => Ok(self.chain),
            Some(why) => Err(Malformed { why, status: last_byte(&self.chain.writable) }),
        }
    }
}

/// The last byte of the last of `buffers`.
pub fn last_byte(buffers: &[Buffer]) -> Option<u64> {
    buffers.last().and_then(|last| last.at.checked_add(u64::from(last.len)))?.checked_sub(1)
}

/// Follows the request that begins at `head` of the table of `size` descriptors at `table`.
pub fn walk(memory: &dyn Memory, table: u64, size: u16, head: u16, indirect: bool) -> Result<Chain, Malformed> {
    let lost = |Fault| malformed("a descriptor outside the guest's memory");
    let (mut walk, mut index) = (Walk::default(), head);
    for _ in 0..size {
        if index >= size {
            return Err(malformed("a descriptor that is none"));
        }
        let mut bytes = [0; DESCRIPTOR_BYTES];
        let at = super::memory::offset(table, u64::from(index) * DESCRIPTOR_BYTES as u64).map_err(lost)?;
        memory.read(at, &mut bytes).map_err(lost)?;
        let found = descriptor(&bytes).ok_or_else(|| malformed("a descriptor that is cut off"))?;
        if found.flags & INDIRECT != 0 {
            if !indirect {
                return Err(malformed("an indirect descriptor, which was not agreed on"));
            }
            if found.flags & NEXT != 0 {
                return Err(malformed("an indirect descriptor that goes on"));
            }
            walk_table(memory, &found, &mut walk)?;
            return walk.end();
        }
        walk.add(memory, &found);
        if found.flags & NEXT == 0 {
            return walk.end();
        }
        index = found.next;
    }
    Err(malformed("descriptors without end"))
}

fn walk_table(memory: &dyn Memory, outer: &Descriptor, walk: &mut Walk) -> Result<(), Malformed> {
    let len = outer.len as usize;
    if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) || len / DESCRIPTOR_BYTES > CHAIN_MAX {
        return Err(malformed("an indirect table of a length that it cannot have"));
    }
    let mut table = vec![0; len];
    memory.read(outer.at, &mut table).map_err(|Fault| malformed("an indirect table outside the guest's memory"))?;
    let (count, mut index) = (len / DESCRIPTOR_BYTES, 0);
    for _ in 0..count {
        let bytes = table.get(index * DESCRIPTOR_BYTES..).unwrap_or_default();
        let found = descriptor(bytes).ok_or_else(|| malformed("a descriptor that is none, in an indirect table"))?;
        if found.flags & INDIRECT != 0 {
            return Err(malformed("an indirect table in another"));
        }
        walk.add(memory, &found);
        if found.flags & NEXT == 0 {
            return Ok(());
        }
        index = usize::from(found.next);
    }
    Err(malformed("descriptors without end, in an indirect table"))
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::super::memory::testing::Array;
    use super::*;

    const BASE: u64 = 0x4000;
    const RAM: usize = 0x4000;
    const TABLE: u64 = BASE;
    const DATA: u64 = BASE + 0x1000;

    type Told = (u64, u32, u16, u16);

    fn memory(at: u64, told: &[Told]) -> Array {
        let memory = Array::new(BASE, vec![0; RAM]);
        put(&memory, at, told);
        memory
    }

    fn put(memory: &Array, at: u64, told: &[Told]) {
        for (i, (address, len, flags, next)) in (0u64..).zip(told) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            memory.write(at + 16 * i, &bytes).expect("inside");
        }
    }

    fn walked(told: &[Told]) -> Result<Chain, Malformed> {
        walk(&memory(TABLE, told), TABLE, 8, 0, true)
    }

    fn fails(told: &[Told], words: &str, status: Option<u64>) {
        let malformed = walked(told).expect_err(words);
        assert!(malformed.why.contains(words), "{} is not {words}", malformed.why);
        assert_eq!(malformed.status, status, "{words}");
    }

    #[test]
    fn an_honest_request_is_what_its_descriptors_say() {
        let chain = walked(&[(DATA, 16, NEXT, 3), (0, 0, 0, 0), (0, 0, 0, 0), (DATA + 64, 512, NEXT | WRITE, 1)]);
        // The third descriptor is none: the chain goes on at the second, which has no length.
        assert!(chain.is_err());
        let chain = walked(&[(DATA, 16, NEXT, 1), (DATA + 64, 512, NEXT | WRITE, 2), (DATA + 16, 1, WRITE, 0)]);
        let chain = chain.expect("honest");
        assert_eq!(chain.readable, [Buffer { at: DATA, len: 16 }]);
        assert_eq!(chain.writable, [Buffer { at: DATA + 64, len: 512 }, Buffer { at: DATA + 16, len: 1 }]);
    }

    #[test]
    fn what_does_not_end_ends() {
        fails(&[(DATA, 16, NEXT, 0)], "without end", None);
        fails(&[(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)], "without end", None);
        fails(&[(DATA, 16, NEXT, 8)], "that is none", None);
        fails(&[(DATA, 16, NEXT, u16::MAX)], "that is none", None);
    }

    #[test]
    fn what_lies_elsewhere_is_not_touched() {
        let end = BASE + RAM as u64;
        for (at, len) in [(0, 16), (end - 15, 16), (u64::MAX - 3, 16), (BASE, u32::MAX), (end, 1), (BASE - 1, 2)] {
            let status = (DATA, 1, WRITE, 0);
            fails(&[(at, len, NEXT, 1), status], "outside", Some(DATA));
            fails(&[(at, len, NEXT | WRITE, 1), status], "outside", Some(DATA));
            fails(&[(at, len, INDIRECT, 0)], "table", None);
        }
    }

    #[test]
    fn what_is_in_the_wrong_place_is_answered_where_the_status_is() {
        fails(&[(DATA, 0, NEXT, 1), (DATA, 1, WRITE, 0)], "no length", Some(DATA));
        fails(&[(DATA, 1, NEXT | WRITE, 1), (DATA, 16, NEXT, 2), (DATA + 9, 4, WRITE, 0)], "behind", Some(DATA + 12));
        // The last one is where the status would be, and is none.
        fails(&[(DATA, 16, NEXT, 1), (DATA, 1, NEXT | WRITE, 2), (0, 1, WRITE, 0)], "outside", None);
    }

    #[test]
    fn tables_are_what_they_may_be() {
        let table = DATA + 0x100;
        for len in [0, 1, 15, 17, 16 * (CHAIN_MAX as u32 + 1), u32::MAX - 15] {
            fails(&[(table, len, INDIRECT, 0)], "table", None);
        }
        fails(&[(table, 32, INDIRECT | NEXT, 1)], "goes on", None);
        let inner = |told: &[Told]| {
            let memory = memory(TABLE, &[(table, 32, INDIRECT, 0)]);
            put(&memory, table, told);
            walk(&memory, TABLE, 8, 0, true)
        };
        let why = |told: &[Told]| inner(told).expect_err("malformed").why;
        assert!(why(&[(table, 32, INDIRECT, 0)]).contains("in another"));
        assert!(why(&[(DATA, 16, NEXT, 0)]).contains("without end"));
        assert!(why(&[(DATA, 16, NEXT, 2)]).contains("none"));
        assert_eq!(inner(&[(DATA, 16, NEXT, 1), (DATA, 1, WRITE, 0)]).expect("honest").writable.len(), 1);
        let memory = memory(TABLE, &[(table, 32, INDIRECT, 0)]);
        assert!(walk(&memory, TABLE, 8, 0, false).expect_err("not agreed on").why.contains("agreed"));
    }
}
