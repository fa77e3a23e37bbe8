//! What one client knows of its volume: what was acknowledged, and what was on its way when the
//! daemon died. After that each block must hold the former or any of the latter.

use super::{noise, wire};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

pub const BLOCK: usize = 4096;
/// Blocks of the volume: few, so that most are overwritten many times.
pub const BLOCKS: u64 = 2048;
const WINDOW: usize = 16;
const RUN_MAX: u64 = 40;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Zero,
    Flush,
}

struct Request {
    kind: Kind,
    stamp: u64,
    first: u64,
    count: u64,
}

pub struct Ledger {
    /// Of each block: the newest acknowledged change, 0 for none. Odd stamps are zeros.
    acked: Vec<u64>,
    in_flight: VecDeque<Request>,
    next: u64,
    pub acknowledged: u64,
    /// What the volume's newest checkpoint must hold, and its name.
    pub checkpoint: Option<(String, Vec<u64>)>,
}

/// A block as the change `stamp` leaves it.
fn content(stamp: u64, block: u64) -> Vec<u8> {
    if stamp == 0 || stamp % 2 == 1 {
        return vec![0; BLOCK];
    }
    let mut data = noise(stamp ^ block << 40, BLOCK);
    data[..8].copy_from_slice(&stamp.to_le_bytes());
    data
}

/// The change that a block's bytes say they come from.
fn stamp_of(data: &[u8]) -> u64 {
    data[..8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

impl Ledger {
    pub fn new() -> Self {
        let acked = vec![0; BLOCKS as usize];
        Self { acked, in_flight: VecDeque::new(), next: 2, acknowledged: 0, checkpoint: None }
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Everything has been answered: this is what a checkpoint taken now must hold.
    pub fn state(&self) -> Vec<u64> {
        assert!(self.is_idle());
        self.acked.clone()
    }

    /// Sends one more request, and reads replies until the window has room.
    pub fn turn(&mut self, stream: &mut UnixStream, random: u64) -> io::Result<()> {
        let first = random % (BLOCKS - RUN_MAX);
        let count = if random >> 32 & 3 == 0 { 1 + (random >> 40) % RUN_MAX } else { 1 };
        let kind = match random >> 34 & 31 {
            0..=1 => Kind::Zero,
            2 => Kind::Flush,
            _ => Kind::Write,
        };
        self.next += 2;
        let stamp = self.next + u64::from(kind == Kind::Zero);
        let (offset, len) = (first * BLOCK as u64, count as usize * BLOCK);
        let bytes = match kind {
            Kind::Write => {
                let mut bytes = wire::request(wire::WRITE, 0, stamp, offset, len as u32);
                (first..first + count).for_each(|block| bytes.extend(content(stamp, block)));
                bytes
            }
            Kind::Zero => wire::request(wire::ZEROES, 0, stamp, offset, len as u32),
            Kind::Flush => wire::request(wire::FLUSH, 0, stamp, 0, 0),
        };
        self.in_flight.push_back(Request { kind, stamp, first, count });
        stream.write_all(&bytes)?;
        while self.in_flight.len() >= WINDOW {
            self.reply(stream)?;
        }
        Ok(())
    }

    /// Takes one reply; flushes may be overtaken.
    pub fn reply(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        let header = wire::take(stream, 16)?;
        assert_eq!(wire::be(&header[..4]) as u32, wire::SIMPLE_REPLY, "a whole reply");
        assert_eq!(wire::be(&header[4..8]), 0, "no request may fail");
        let stamp = wire::be(&header[8..]);
        let at = self.in_flight.iter().position(|r| r.stamp == stamp).expect("a reply to a request of ours");
        let request = self.in_flight.remove(at).expect("it is there");
        self.acknowledged += 1;
        if request.kind != Kind::Flush {
            for block in request.first..request.first + request.count {
                let acked = &mut self.acked[block as usize];
                *acked = (*acked).max(stamp);
            }
        }
        Ok(())
    }

    /// Compares the volume with what is known, block by block; returns the lost ones. What was on its
    /// way is settled from now on.
    pub fn audit(&mut self, stream: &mut UnixStream) -> Vec<String> {
        let data = super::read(stream, 0, BLOCKS as usize * BLOCK);
        let mut lost = Vec::new();
        for (block, data) in (0u64..).zip(data.chunks_exact(BLOCK)) {
            let touches = |r: &&Request| r.kind != Kind::Flush && (r.first..r.first + r.count).contains(&block);
            let acked = self.acked[block as usize];
            let later = self.in_flight.iter().filter(touches).map(|r| r.stamp).filter(|stamp| *stamp > acked);
            let found = std::iter::once(acked).chain(later).find(|stamp| content(*stamp, block) == data);
            match found {
                Some(stamp) => self.acked[block as usize] = stamp,
                None => {
                    lost.push(format!("block {block}: change {acked} was acknowledged, {} is there", stamp_of(data)))
                }
            }
        }
        self.in_flight.clear();
        lost
    }
}

/// Compares a checkpoint with the state it was taken of.
pub fn audit_state(stream: &mut UnixStream, state: &[u64]) -> Vec<String> {
    let data = super::read(stream, 0, BLOCKS as usize * BLOCK);
    let blocks = data.chunks_exact(BLOCK).zip(0u64..);
    let wrong = blocks.filter(|(data, block)| content(state[*block as usize], *block) != *data);
    wrong.map(|(data, block)| format!("checkpoint, block {block}: {} is there", stamp_of(data))).collect()
}
