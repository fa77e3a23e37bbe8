//! What a chain asks for (virtio 1.2, 5.2.6).
//!
//! Invariants
//!   * header and ranges are copied once; offsets and lengths have been multiplied out without overflow;
//!   * what is asked of the disk lies inside it, in whole sectors;
//!   * `status` is a byte of the guest's memory that no data goes to.

use super::chain::{last_byte, Buffer, Chain};
use super::limits::RANGES_MAX;
use super::memory::{Fault, Memory};
use super::wire::{u32_at, u64_at};

/// What the protocol counts in.
pub const SECTOR: u64 = 512;
/// Bytes of an answer to GET_ID.
pub const ID_BYTES: usize = 20;
const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
const UNMAP: u32 = 1;

/// The answer in a request's status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done, or not all of it.
    IoError = 1,
    /// Nothing of this kind is done here.
    Unsupported = 2,
}

/// A part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Zeros are to take space.
    pub store: bool,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Data from here on into the buffers.
    Read(u64),
    /// Data from the buffers from here on.
    Write(u64),
    /// What was answered before is to be durable.
    Flush,
    /// The disk's name.
    Id,
    /// Whole blocks of these are no longer needed.
    Discard(Vec<Range>),
    /// These are to read as zeros.
    Zero(Vec<Range>),
}

/// A request that can be begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub wanted: Wanted,
    /// Where data comes from or goes to.
    pub buffers: Vec<Buffer>,
    /// Bytes in `buffers`, or of all ranges.
    pub length: u64,
    /// Where the status goes.
    pub status: u64,
}

/// What can be asked of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes.
    pub size: u64,
    /// Nothing may change.
    pub read_only: bool,
}

/// A request that is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where the status goes; without it the request is only given back.
    pub at: Option<u64>,
    /// The answer.
    pub status: Status,
}

/// Bytes of `buffers`: as many as 2^10 of them of 2^32 each, at most.
pub fn bytes(buffers: &[Buffer]) -> u64 {
    buffers.iter().fold(0, |sum, buffer| sum.saturating_add(u64::from(buffer.len)))
}

/// Understands a chain.
///
/// # Errors
/// The answer to one that cannot be carried out.
pub fn parse(memory: &dyn Memory, chain: Chain, bounds: Bounds) -> Result<Request, Refused> {
    let Chain { mut readable, mut writable } = chain;
    let at = last_byte(&writable);
    let refuse = |status| Refused { at, status };
    let status = at.ok_or_else(|| refuse(Status::IoError))?;
    take_last_byte(&mut writable);
    let mut header = [0; HEADER_BYTES];
    take_front(memory, &mut readable, &mut header).map_err(|Fault| refuse(Status::IoError))?;
    let kind = u32_at(&header, 0).unwrap_or(u32::MAX);
    let sector = u64_at(&header, 8).unwrap_or(u64::MAX);
    let (wanted, buffers) = match kind {
        0 => (Wanted::Read(offset(sector).map_err(refuse)?), writable),
        1 => (Wanted::Write(offset(sector).map_err(refuse)?), readable),
        4 => (Wanted::Flush, Vec::new()),
        8 => (Wanted::Id, writable),
        11 | 13 => {
            let ranges = ranges(memory, &mut readable, kind == 13).map_err(refuse)?;
            (if kind == 11 { Wanted::Discard(ranges) } else { Wanted::Zero(ranges) }, Vec::new())
        }
        _ => return Err(refuse(Status::Unsupported)),
    };
    let length = match &wanted {
        Wanted::Discard(ranges) | Wanted::Zero(ranges) => ranges.iter().map(|range| range.length).sum(),
        _ => bytes(&buffers),
    };
    let request = Request { wanted, length, buffers, status };
    request.check(bounds).map_err(refuse)?;
    Ok(request)
}

impl Request {
    /// Whether the disk has what is asked for.
    fn check(&self, bounds: Bounds) -> Result<(), Status> {
        let changes = matches!(self.wanted, Wanted::Write(_) | Wanted::Discard(_) | Wanted::Zero(_));
        if changes && bounds.read_only {
            return Err(Status::IoError);
        }
        let inside = |offset: u64, length: u64| {
            let fits = offset.checked_add(length).is_some_and(|end| end <= bounds.size);
            if fits && length.is_multiple_of(SECTOR) {
                Ok(())
            } else {
                Err(Status::IoError)
            }
        };
        match &self.wanted {
            Wanted::Read(offset) | Wanted::Write(offset) => inside(*offset, self.length),
            Wanted::Discard(ranges) | Wanted::Zero(ranges) => {
                ranges.iter().try_for_each(|range| inside(range.offset, range.length))
            }
            Wanted::Flush => Ok(()),
            Wanted::Id if self.length >= ID_BYTES as u64 => Ok(()),
            Wanted::Id => Err(Status::IoError),
        }
    }
}

fn offset(sector: u64) -> Result<u64, Status> {
    sector.checked_mul(SECTOR).ok_or(Status::IoError)
}

fn ranges(memory: &dyn Memory, readable: &mut Vec<Buffer>, zero: bool) -> Result<Vec<Range>, Status> {
    let len = usize::try_from(bytes(readable)).map_err(|_| Status::IoError)?;
    let count = len / RANGE_BYTES;
    if !len.is_multiple_of(RANGE_BYTES) || count == 0 || count > RANGES_MAX {
        return Err(Status::IoError);
    }
    let mut raw = vec![0; len];
    take_front(memory, readable, &mut raw).map_err(|Fault| Status::IoError)?;
    let range = |bytes: &[u8]| {
        let (sector, sectors, flags) = (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12));
        let (Some(sector), Some(sectors), Some(flags)) = (sector, sectors, flags) else { return Err(Status::IoError) };
        if flags & !(if zero { UNMAP } else { 0 }) != 0 {
            return Err(Status::Unsupported);
        }
        let (offset, length) = (offset(sector)?, u64::from(sectors) * SECTOR);
        Ok(Range { offset, length, store: zero && flags & UNMAP == 0 })
    };
    raw.chunks_exact(RANGE_BYTES).map(range).collect()
}

fn take_last_byte(buffers: &mut Vec<Buffer>) {
    if let Some(last) = buffers.last_mut() {
        last.len = last.len.saturating_sub(1);
        if last.len == 0 {
            buffers.pop();
        }
    }
}

/// Copies the front of `buffers` and takes it off them.
fn take_front(memory: &dyn Memory, buffers: &mut Vec<Buffer>, out: &mut [u8]) -> Result<(), Fault> {
    gather(memory, buffers, 0, out)?;
    let mut left = out.len() as u64;
    buffers.retain_mut(|buffer| {
        let cut = left.min(u64::from(buffer.len));
        left = left.saturating_sub(cut);
        buffer.at = buffer.at.saturating_add(cut);
        buffer.len = buffer.len.saturating_sub(cut as u32);
        buffer.len > 0
    });
    Ok(())
}

/// Copies out of `buffers`, from the byte `skip` of them on.
pub fn gather(memory: &dyn Memory, buffers: &[Buffer], skip: u64, out: &mut [u8]) -> Result<(), Fault> {
    let mut rest = out;
    for (at, len) in pieces(buffers, skip) {
        let (piece, behind) = rest.split_at_mut(len.min(rest.len()));
        memory.read(at, piece)?;
        rest = behind;
        if rest.is_empty() {
            return Ok(());
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Fault)
    }
}

/// Copies into `buffers`, from the byte `skip` of them on.
pub fn scatter(memory: &dyn Memory, buffers: &[Buffer], skip: u64, data: &[u8]) -> Result<(), Fault> {
    let mut rest = data;
    for (at, len) in pieces(buffers, skip) {
        let (piece, behind) = rest.split_at(len.min(rest.len()));
        memory.write(at, piece)?;
        rest = behind;
        if rest.is_empty() {
            return Ok(());
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Fault)
    }
}

/// Address and length of each piece of `buffers` behind their first `skip` bytes.
fn pieces(buffers: &[Buffer], skip: u64) -> impl Iterator<Item = (u64, usize)> + '_ {
    let mut skip = skip;
    buffers.iter().filter_map(move |buffer| {
        let cut = skip.min(u64::from(buffer.len));
        skip = skip.saturating_sub(cut);
        let len = u64::from(buffer.len).saturating_sub(cut);
        (len > 0).then(|| (buffer.at.saturating_add(cut), len as usize))
    })
}
