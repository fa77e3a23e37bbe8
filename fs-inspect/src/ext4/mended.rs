//! Images that were changed on purpose, made to pass: for tests, so that they reach what lies behind checksums.

use super::superblock::{checksum, Superblock, AT, BYTES};
use crate::le;

const RO_COMPAT: usize = 0x64;
const RO_METADATA_CSUM: u32 = 0x400;
const CHECKSUM: usize = 0x3fc;

/// Makes the checksums of the superblock and of the groups match; or takes the feature away, if they are not to be `checked`.
pub fn mended(image: &mut [u8], checked: bool) {
    let Some(bytes) = image.get_mut(AT as usize..AT as usize + BYTES) else { return };
    if !checked {
        let ro = le::u32(bytes, RO_COMPAT) & !RO_METADATA_CSUM;
        bytes.get_mut(RO_COMPAT..RO_COMPAT + 4).into_iter().for_each(|field| field.copy_from_slice(&ro.to_le_bytes()));
        return;
    }
    let sum = checksum(!0, bytes.get(..CHECKSUM).unwrap_or_default());
    bytes.get_mut(CHECKSUM..).into_iter().for_each(|field| field.copy_from_slice(&sum.to_le_bytes()));
    let whole: Option<[u8; BYTES]> = (&*bytes).try_into().ok();
    let Some(Ok(Some(superblock))) = whole.map(|whole| Superblock::parse(&whole)) else { return };
    let Some(seed) = superblock.seed else { return };
    let size = superblock.descriptor_size as usize;
    for group in 0..superblock.groups {
        let (block, at) = superblock.descriptor(group);
        let at = block.saturating_mul(superblock.block_size).saturating_add(at as u64);
        let Some(bytes) = usize::try_from(at).ok().and_then(|at| image.get_mut(at..at.checked_add(size)?)) else {
            return;
        };
        let sum = super::block::group_checksum(seed, group, bytes) as u16;
        bytes.get_mut(0x1e..0x20).into_iter().for_each(|field| field.copy_from_slice(&sum.to_le_bytes()));
    }
}
