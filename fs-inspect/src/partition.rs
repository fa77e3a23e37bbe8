//! Partition tables: GPT and MBR with its logical partitions.
//!
//! Invariants: ranges lie inside the image and are not empty; there are at most `PARTITIONS_MAX`.

use crate::le;
use crate::limits::PARTITIONS_MAX;
use crate::source::ReadAt;
use std::io;
use std::ops::Range;

const SECTOR: u64 = 512;

/// A partition's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub number: u32,
    /// Its bytes.
    pub range: Range<u64>,
}

/// The partitions of a disk; `None` when there is no table.
pub fn partitions(image: &dyn ReadAt) -> io::Result<Option<Vec<Entry>>> {
    for sector in [SECTOR, 4096] {
        if let Some(found) = gpt(image, sector)? {
            return Ok(Some(found));
        }
    }
    mbr(image)
}

fn read<const N: usize>(image: &dyn ReadAt, at: u64) -> io::Result<Option<[u8; N]>> {
    let mut out = [0; N];
    if at.checked_add(N as u64).is_none_or(|end| end > image.size()) {
        return Ok(None);
    }
    image.read_at(at, &mut out)?;
    Ok(Some(out))
}

fn entry(image: &dyn ReadAt, number: u32, first: u64, sectors: u64, sector: u64) -> Option<Entry> {
    let start = first.checked_mul(sector)?;
    let end = sectors.checked_mul(sector)?.checked_add(start)?.min(image.size());
    (start > 0 && start < end).then_some(Entry { number, range: start..end })
}

fn gpt(image: &dyn ReadAt, sector: u64) -> io::Result<Option<Vec<Entry>>> {
    let Some(header) = read::<92>(image, sector)?.filter(|header| header.starts_with(b"EFI PART")) else {
        return Ok(None);
    };
    let (table, count, size) = (le::u64(&header, 72), le::u32(&header, 80), u64::from(le::u32(&header, 84)));
    if !(128..=4096).contains(&size) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for index in 0..u64::from(count).min(PARTITIONS_MAX as u64) {
        let at = table.checked_mul(sector).and_then(|at| at.checked_add(index * size));
        let Some(bytes) = at.map(|at| read::<48>(image, at)).transpose()?.flatten() else { break };
        let (first, last) = (le::u64(&bytes, 32), le::u64(&bytes, 40));
        if bytes[..16] != [0; 16] && last >= first {
            found.extend(entry(image, index as u32 + 1, first, (last - first).saturating_add(1), sector));
        }
    }
    Ok(Some(found))
}

fn mbr(image: &dyn ReadAt) -> io::Result<Option<Vec<Entry>>> {
    let Some(first) = read::<512>(image, 0)?.filter(|bytes| le::u16(bytes, 510) == 0xaa55) else { return Ok(None) };
    let (mut found, mut extended) = (Vec::new(), None);
    for index in 0..4 {
        let at = 446 + 16 * index;
        let (status, kind) = (first[at], first[at + 4]);
        let (start, sectors) = (u64::from(le::u32(&first, at + 8)), u64::from(le::u32(&first, at + 12)));
        match kind {
            // A boot sector of a file system bears the same mark, but no such statuses.
            _ if status & 0x7f != 0 => return Ok(None),
            0 => {}
            0x05 | 0x0f | 0x85 => extended = Some(start),
            _ => found.extend(entry(image, index as u32 + 1, start, sectors, SECTOR)),
        }
    }
    if let Some(base) = extended {
        let (mut at, mut number) = (base, 5);
        while found.len() < PARTITIONS_MAX && number < 5 + PARTITIONS_MAX as u32 {
            let place = at.checked_mul(SECTOR).map(|at| read::<512>(image, at)).transpose()?.flatten();
            let Some(bytes) = place.filter(|bytes| le::u16(bytes, 510) == 0xaa55) else { break };
            let start = at.saturating_add(u64::from(le::u32(&bytes, 454)));
            found.extend(entry(image, number, start, u64::from(le::u32(&bytes, 458)), SECTOR));
            number += 1;
            match u64::from(le::u32(&bytes, 470)) {
                0 => break,
                next => at = base.saturating_add(next),
            }
        }
    }
    Ok((!found.is_empty()).then_some(found))
}
