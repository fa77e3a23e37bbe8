//! The guest's memory as its VMM has handed it over.
//!
//! Invariants
//!   * regions overlap neither in the guest's addresses nor in the VMM's, and none wraps around;
//!   * an access may go from one region into the next, and never beyond;
//!   * while changes are logged, every byte written through here has its page marked.

use super::limits::LOG_BYTES_MAX;
use super::mapping::Mapping;
use super::memory::{Fault, Memory};
use super::message::Region as Told;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use vm_memory::{Bytes, VolatileMemory};

const PAGE: u64 = 4096;

struct Region {
    guest: u64,
    user: u64,
    len: u64,
    mapping: Mapping,
}

/// All of it.
pub struct Regions {
    all: Vec<Region>,
    log: Option<Mapping>,
    /// Changes are logged.
    pub logging: bool,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    // Neither wraps around.
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

impl Regions {
    /// Maps what a VMM names; the files are closed.
    ///
    /// # Errors
    /// It cannot be.
    pub fn new(told: &[Told], files: Vec<OwnedFd>) -> io::Result<Self> {
        let mut all: Vec<Region> = Vec::with_capacity(told.len());
        for (told, file) in told.iter().zip(files) {
            let &Told { guest, len, user, offset } = told;
            if guest.checked_add(len).is_none() || user.checked_add(len).is_none() {
                return Err(invalid("a region that wraps around"));
            }
            let clash = |other: &Region| {
                overlap((guest, len), (other.guest, other.len)) || overlap((user, len), (other.user, other.len))
            };
            if all.iter().any(clash) {
                return Err(invalid("regions that overlap"));
            }
            all.push(Region { guest, user, len, mapping: Mapping::new(&file, offset, len)? });
        }
        Ok(Self { all, log: None, logging: false })
    }

    /// What of `before` stays when these take its place: where changes are logged.
    pub fn inherit(&mut self, before: Option<Self>) {
        if let Some(before) = before {
            (self.log, self.logging) = (before.log, before.logging);
        }
    }

    /// Logs changed pages in this file from now on, when `logging`.
    ///
    /// # Errors
    /// It is too long, or no memory file.
    pub fn log_in(&mut self, file: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
        if len > LOG_BYTES_MAX {
            return Err(invalid("a log that is too long"));
        }
        self.log = Some(Mapping::new(file, offset, len)?);
        Ok(())
    }

    /// The guest's address of what the VMM has at `user`.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        self.all.iter().find_map(|region| {
            let into = user.checked_sub(region.user).filter(|into| *into < region.len)?;
            region.guest.checked_add(into)
        })
    }

    /// Whether its owner has taken some of it away.
    pub fn is_lost(&self) -> bool {
        self.all.iter().any(|region| region.mapping.is_lost())
    }

    fn at(&self, at: u64) -> Option<(&Region, u64)> {
        self.all.iter().find_map(|region| {
            let into = at.checked_sub(region.guest).filter(|into| *into < region.len)?;
            Some((region, into))
        })
    }

    /// Calls `each` with region, place in it, and place and length in the whole, for each part of an access.
    fn parts(
        &self,
        at: u64,
        len: usize,
        mut each: impl FnMut(&Region, usize, std::ops::Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let place = at.checked_add(done as u64).ok_or(Fault)?;
            let (region, into) = self.at(place).ok_or(Fault)?;
            let left = (len - done) as u64;
            let take = left.min(region.len.saturating_sub(into)) as usize;
            each(region, into as usize, done..done + take)?;
            if region.mapping.is_lost() {
                return Err(Fault);
            }
            done += take;
        }
        Ok(())
    }

    fn mark(&self, at: u64, len: usize) {
        let Some(log) = self.log.as_ref().filter(|_| self.logging && len > 0) else { return };
        let last = at.saturating_add(len as u64 - 1) / PAGE;
        for page in at / PAGE..=last {
            // What the VMM's own log has no place for it does not ask about.
            let Ok(byte) = usize::try_from(page / 8) else { return };
            if let Ok(bits) = log.slice().get_atomic_ref::<AtomicU8>(byte) {
                bits.fetch_or(1 << (page % 8), Ordering::Release);
            }
        }
    }
}

impl Memory for Regions {
    fn holds(&self, at: u64, len: u64) -> bool {
        let Some(end) = at.checked_add(len) else { return false };
        let mut place = at;
        while place < end {
            let Some((region, into)) = self.at(place) else { return false };
            place = place.saturating_add(region.len.saturating_sub(into));
        }
        true
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.parts(at, out.len(), |region, into, part| {
            region.mapping.slice().read_slice(out.get_mut(part).ok_or(Fault)?, into).map_err(|_| Fault)
        })
    }

    fn write(&self, at: u64, data: &[u8]) -> Result<(), Fault> {
        if !self.holds(at, data.len() as u64) {
            return Err(Fault);
        }
        self.parts(at, data.len(), |region, into, part| {
            region.mapping.slice().write_slice(data.get(part).ok_or(Fault)?, into).map_err(|_| Fault)
        })?;
        self.mark(at, data.len());
        Ok(())
    }

    fn load(&self, at: u64) -> Result<u16, Fault> {
        let (region, into) = self.at(at).ok_or(Fault)?;
        let value: u16 = region.mapping.slice().load(into as usize, Ordering::Acquire).map_err(|_| Fault)?;
        if region.mapping.is_lost() {
            return Err(Fault);
        }
        Ok(u16::from_le(value))
    }

    fn store(&self, at: u64, value: u16) -> Result<(), Fault> {
        let (region, into) = self.at(at).ok_or(Fault)?;
        region.mapping.slice().store(value.to_le(), into as usize, Ordering::Release).map_err(|_| Fault)?;
        self.mark(at, 2);
        if region.mapping.is_lost() {
            return Err(Fault);
        }
        Ok(())
    }
}
