//! Blocks: those of metadata kept, those of data passed through, and in place of either what the journal holds.

use super::superblock::{checksum, Superblock, AT, BYTES};
use crate::le;
use crate::limits::BLOCKS_KEPT;
use crate::source::ReadAt;
use crate::tree::TreeError;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A block of the journal that stands for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Where in the image's blocks.
    pub from: u64,
    /// Its first four bytes are the journal's magic, and were taken out.
    pub escaped: bool,
}

/// What was read lately, in the order in which it came.
#[derive(Default)]
struct Kept {
    blocks: HashMap<u64, Arc<Vec<u8>>>,
    order: VecDeque<u64>,
}

/// The blocks of a file system.
pub struct Blocks {
    image: Arc<dyn ReadAt>,
    pub superblock: Superblock,
    overlay: BTreeMap<u64, Replayed>,
    kept: Mutex<Kept>,
}

impl Blocks {
    pub fn new(image: Arc<dyn ReadAt>, superblock: Superblock) -> Self {
        Self { image, superblock, overlay: BTreeMap::new(), kept: Mutex::default() }
    }

    /// From now on these are found in place of others.
    pub fn overlay(&mut self, journal: BTreeMap<u64, Replayed>) {
        self.overlay = journal;
        self.kept = Mutex::default();
    }

    /// The bytes of the image that the journal stands for.
    pub fn overlaid(&self) -> Vec<Range<u64>> {
        let size = self.superblock.block_size;
        let mut all: Vec<Range<u64>> = Vec::new();
        for block in self.overlay.keys() {
            match all.last_mut().filter(|last| last.end == block * size) {
                Some(last) => last.end += size,
                None => all.push(block * size..(block + 1) * size),
            }
        }
        all
    }

    pub fn size(&self) -> u64 {
        self.superblock.block_size
    }

    /// Bytes of the image, whatever the superblock claims.
    pub fn image_size(&self) -> u64 {
        self.image.size()
    }

    /// Fills `out` with whole blocks from `first` on, as they count.
    pub fn read(&self, first: u64, out: &mut [u8]) -> Result<(), TreeError> {
        let size = self.size() as usize;
        let count = (out.len() / size) as u64;
        let end = first.checked_add(count).filter(|end| *end <= self.superblock.blocks);
        let end = end.ok_or_else(|| TreeError::Damaged(format!("block {first} lies beyond the file system's end")))?;
        self.image.read_at(first * self.size(), out)?;
        for (block, replayed) in self.overlay.range(first..end) {
            let at = (block - first) as usize * size;
            if let Some(place) = out.get_mut(at..at + size) {
                self.image.read_at(replayed.from * self.size(), place)?;
                if replayed.escaped {
                    place[..4].copy_from_slice(&super::journal::MAGIC.to_be_bytes());
                }
            }
        }
        Ok(())
    }

    /// A block of metadata.
    pub fn get(&self, block: u64) -> Result<Arc<Vec<u8>>, TreeError> {
        if let Some(held) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).blocks.get(&block) {
            return Ok(held.clone());
        }
        let mut bytes = vec![0; self.size() as usize];
        self.read(block, &mut bytes)?;
        let bytes = Arc::new(bytes);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.blocks.insert(block, bytes.clone()).is_none() {
            kept.order.push_back(block);
        }
        let kept = &mut *kept;
        while kept.order.len() > BLOCKS_KEPT * 4096 / bytes.len().max(4096) {
            if let Some(oldest) = kept.order.pop_front() {
                kept.blocks.remove(&oldest);
            }
        }
        Ok(bytes)
    }

    /// The superblock's bytes, as they count.
    pub fn superblock_bytes(&self) -> Result<[u8; BYTES], TreeError> {
        let size = self.size();
        let block = self.get(AT / size)?;
        let at = (AT % size) as usize;
        let bytes = block.get(at..at + BYTES).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| TreeError::Damaged("the superblock is cut off".to_owned()))
    }

    /// The first block of a group's inode table.
    pub fn inode_table(&self, group: u64) -> Result<u64, TreeError> {
        let (block, at) = self.superblock.descriptor(group);
        let (block, size) = (self.get(block)?, self.superblock.descriptor_size as usize);
        let bytes = block.get(at..at + size).unwrap_or_default();
        if let Some(seed) = self.superblock.seed {
            if group_checksum(seed, group, bytes) as u16 != le::u16(bytes, 0x1e) {
                return Err(TreeError::Damaged(format!("the checksum of group {group} does not match")));
            }
        }
        let high = if size > 32 { u64::from(le::u32(bytes, 0x28)) << 32 } else { 0 };
        Ok(u64::from(le::u32(bytes, 8)) | high)
    }
}

/// The checksum of a group's descriptor, of which 16 bits are kept in it.
pub fn group_checksum(seed: u32, group: u64, descriptor: &[u8]) -> u32 {
    let sum = checksum(checksum(seed, &(group as u32).to_le_bytes()), descriptor.get(..0x1e).unwrap_or_default());
    checksum(checksum(sum, &[0, 0]), descriptor.get(0x20..).unwrap_or_default())
}
