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
    if len == 0 || len % DESCRIPTOR_BYTES != 0 || len / DESCRIPTOR_BYTES > CHAIN_MAX {
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
