//! What one client knows of its volume when the pool itself may be lost: all its changes, in order, and how
//! many of them must be there. After that the volume must be what some number of the changes made of it, at least so many.
//!
//! Invariants
//!   * one request is on its way at a time: the order of the changes is that in which they are listed;
//!   * floor <= acknowledged <= changes.len() <= acknowledged + 1;
//!   * a state is a prefix if one number of changes explains every block of it.

use super::{noise, wire};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

pub const BLOCK: usize = 4096;
/// Blocks of the volume: few, so that most are overwritten many times.
pub const BLOCKS: u64 = 1024;
const RUN_MAX: u64 = 40;

/// A change: blocks `first..first + count` get the stamp, or become zeros.
struct Change {
    stamp: u64,
    first: u64,
    count: u64,
}

pub struct History {
    /// Stamps of all blocks before the first change; 0 for zeros.
    base: Vec<u64>,
    changes: Vec<Change>,
    pub acknowledged: usize,
    /// So many changes must survive whatever happens.
    pub floor: usize,
    next: u64,
}

/// Where a volume stands in its history.
#[derive(Debug)]
pub struct Found {
    /// How many changes it has.
    pub prefix: usize,
    /// How many it was told are done, and it has not.
    pub lost: usize,
}

/// A block as the change `stamp` leaves it.
fn content(stamp: u64, block: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; BLOCK];
    }
    let mut data = noise(stamp ^ block << 40, BLOCK);
    data[..8].copy_from_slice(&stamp.to_le_bytes());
    data
}

/// The stamps of all blocks.
///
/// # Errors
/// A block that no change ever made so.
fn stamps(data: &[u8]) -> Result<Vec<u64>, String> {
    let one = |(block, data): (u64, &[u8])| {
        let stamp = data[..8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b));
        match content(stamp, block) == data {
            true => Ok(stamp),
            false => Err(format!("block {block} holds what nobody wrote there (it says {stamp})")),
        }
    };
    (0u64..).zip(data.chunks_exact(BLOCK)).map(one).collect()
}

/// The stamps of all blocks of a volume.
///
/// # Errors
/// Also when it cannot be read.
pub fn read_stamps(stream: &mut UnixStream) -> Result<Vec<u64>, String> {
    let len = BLOCKS as usize * BLOCK;
    let asked = ask(stream, &wire::request(wire::READ, 0, 9, 0, len as u32), 9);
    match asked.map_err(|e| format!("no answer to a read: {e}"))? {
        true => stamps(&wire::take(stream, len).map_err(|e| format!("half an answer to a read: {e}"))?),
        false => Err("a read failed".to_owned()),
    }
}

/// Sends one request and takes its reply: whether it was done.
pub fn ask(stream: &mut UnixStream, bytes: &[u8], cookie: u64) -> io::Result<bool> {
    stream.write_all(bytes)?;
    let header = wire::take(stream, 16)?;
    assert_eq!((wire::be(&header[..4]) as u32, wire::be(&header[8..])), (wire::SIMPLE_REPLY, cookie), "a whole reply");
    Ok(wire::be(&header[4..8]) == 0)
}

impl History {
    /// Of a volume of zeros.
    pub fn new() -> Self {
        Self::from_state(vec![0; BLOCKS as usize], 0)
    }

    /// Of a volume with these stamps; its own begin far above.
    pub fn of(base: Vec<u64>) -> Self {
        Self::from_state(base, 1 << 40)
    }

    fn from_state(base: Vec<u64>, next: u64) -> Self {
        Self { base, changes: Vec::new(), acknowledged: 0, floor: 0, next }
    }

    /// One more change; `false` when it was refused.
    pub fn change(&mut self, stream: &mut UnixStream, random: u64) -> io::Result<bool> {
        let first = random % (BLOCKS - RUN_MAX);
        let count = if random >> 32 & 3 == 0 { 1 + (random >> 40) % RUN_MAX } else { 1 };
        self.next += 1;
        let cookie = self.next;
        let (offset, len) = (first * BLOCK as u64, count as u32 * BLOCK as u32);
        let (stamp, bytes) = match random >> 34 & 31 {
            0 => (0, wire::request(wire::ZEROES, 0, cookie, offset, len)),
            1 => (0, wire::request(wire::TRIM, 0, cookie, offset, len)),
            _ => {
                let mut bytes = wire::request(wire::WRITE, 0, cookie, offset, len);
                (first..first + count).for_each(|block| bytes.extend(content(cookie, block)));
                (cookie, bytes)
            }
        };
        self.changes.push(Change { stamp, first, count });
        let done = ask(stream, &bytes, cookie)?;
        if done {
            self.acknowledged = self.changes.len();
        }
        Ok(done)
    }

    /// Waits for a flush; `false` when it was refused.
    pub fn flush(&mut self, stream: &mut UnixStream) -> io::Result<bool> {
        ask(stream, &wire::request(wire::FLUSH, 0, 7, 0, 0), 7)
    }

    pub fn must_survive(&mut self, changes: usize) {
        self.floor = self.floor.max(changes);
    }

    /// All stamps after every change.
    pub fn state(&self) -> Vec<u64> {
        let mut state = self.base.clone();
        for change in &self.changes {
            state[change.first as usize..(change.first + change.count) as usize].fill(change.stamp);
        }
        state
    }

    /// The greatest number of changes that explains `found`, if any does.
    fn prefix(&self, found: &[u64]) -> Option<usize> {
        // Of each number of changes, how many more blocks it explains than the one before; then how many in all.
        let mut explains = vec![0i64; self.changes.len() + 2];
        let mut since: Vec<(u64, usize)> = self.base.iter().map(|stamp| (*stamp, 0)).collect();
        let mut over = |block: usize, (stamp, from): (u64, usize), upto: usize| {
            if found.get(block) == Some(&stamp) {
                explains[from] += 1;
                explains[upto] -= 1;
            }
        };
        for (change, number) in self.changes.iter().zip(1..) {
            let (first, count) = (change.first as usize, change.count as usize);
            for (block, last) in since.iter_mut().enumerate().skip(first).take(count) {
                over(block, *last, number);
                *last = (change.stamp, number);
            }
        }
        since.iter().enumerate().for_each(|(block, last)| over(block, *last, self.changes.len() + 1));
        let all = explains[..=self.changes.len()].iter().scan(0, |sum, more| {
            *sum += more;
            Some(*sum)
        });
        all.enumerate().filter(|(_, blocks)| *blocks == BLOCKS as i64).map(|(number, _)| number).last()
    }

    /// Compares the volume with what is known; what is there is where it goes on from.
    ///
    /// # Errors
    /// The volume is no prefix, or one that lacks what must be there.
    pub fn audit(&mut self, stream: &mut UnixStream) -> Result<Found, String> {
        let found = read_stamps(stream)?;
        let (all, floor) = (self.changes.len(), self.floor);
        let prefix = self.prefix(&found).ok_or_else(|| format!("no prefix of {all} changes"))?;
        if prefix < floor {
            return Err(format!(
                "{prefix} changes are there, {floor} must be, {} were acknowledged",
                self.acknowledged
            ));
        }
        let lost = self.acknowledged.saturating_sub(prefix);
        *self = Self::from_state(found, self.next);
        Ok(Found { prefix, lost })
    }

    /// For canaries: as if a change that can still be seen, not the last, had never happened.
    pub fn forget_one(&mut self) {
        let state = self.state();
        let seen = |change: &Change| change.stamp != 0 && state.contains(&change.stamp);
        let before_the_last = &self.changes[..self.changes.len() - 1];
        let number = before_the_last.iter().rposition(seen).expect("a change that can be seen");
        self.changes.remove(number);
    }
}
