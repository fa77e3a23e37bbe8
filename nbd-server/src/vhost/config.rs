//! The configuration space of the block device: what a driver is told of the disk.

use super::limits::{QUEUES_MAX, RANGES_MAX, RANGE_SECTORS_MAX, SEGMENTS_MAX};
use super::request::SECTOR;

/// What a VMM may ask for at most.
pub const CONFIG_BYTES: usize = 256;
/// Log2 of the sectors in a block of the store.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// The configuration of a disk of `size` bytes.
pub fn config(size: u64) -> [u8; CONFIG_BYTES] {
    let mut fields = Vec::with_capacity(CONFIG_BYTES);
    fields.extend((size / SECTOR).to_le_bytes());
    // The largest segment: not bounded, and so not offered.
    fields.extend(0u32.to_le_bytes());
    fields.extend(SEGMENTS_MAX.to_le_bytes());
    // No geometry.
    fields.extend([0; 4]);
    fields.extend((SECTOR as u32).to_le_bytes());
    fields.extend([PHYSICAL_BLOCK_EXP, 0]);
    fields.extend((1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    fields.extend(0u32.to_le_bytes());
    // Written back, and not to be changed.
    fields.extend([1, 0]);
    fields.extend(QUEUES_MAX.to_le_bytes());
    for zero in [false, true] {
        fields.extend(RANGE_SECTORS_MAX.to_le_bytes());
        fields.extend((RANGES_MAX as u32).to_le_bytes());
        if !zero {
            fields.extend((1u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
        }
    }
    // Zeroing may give space back.
    fields.push(1);
    let mut out = [0; CONFIG_BYTES];
    out.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    out
}
