//! Inodes: what `stat` tells, and the bytes of files.

use super::block::Blocks;
use super::extent::{self, Mapping};
use super::superblock::checksum;
use super::xattr;
use crate::le;
use crate::limits::LINK_BYTES_MAX;
use crate::tree::{Attributes, Extent, FileKind, Inode, Time, TreeError};
use std::ops::Range;

const FLAG_ENCRYPT: u32 = 0x800;
const FLAG_HUGE_FILE: u32 = 0x4_0000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
/// Where the 60 bytes of block numbers, extents, or the file itself are.
const BODY: Range<usize> = 0x28..0x64;

/// An inode, with its bytes.
pub struct Node {
    pub number: Inode,
    pub bytes: Vec<u8>,
    pub flags: u32,
    pub size: u64,
    pub kind: FileKind,
    /// Where the checksums of what belongs to it begin.
    pub seed: Option<u32>,
}

fn damaged(number: Inode, what: &str) -> TreeError {
    TreeError::Damaged(format!("inode {number}: {what}"))
}

/// The bytes of the image in which an inode lies.
pub fn place(blocks: &Blocks, number: Inode) -> Result<Range<u64>, TreeError> {
    let s = &blocks.superblock;
    if number == 0 || number > u64::from(s.inodes) {
        return Err(damaged(number, "there is none of this number"));
    }
    let (group, index) = ((number - 1) / u64::from(s.inodes_per_group), (number - 1) % u64::from(s.inodes_per_group));
    if group >= s.groups {
        return Err(damaged(number, "it lies in a group that is not there"));
    }
    let table = blocks.inode_table(group)?;
    let at = table.checked_mul(s.block_size).and_then(|at| at.checked_add(index * s.inode_size as u64));
    let at = at.ok_or_else(|| damaged(number, "its table lies beyond all disks"))?;
    Ok(at..at + s.inode_size as u64)
}

impl Node {
    pub fn read(blocks: &Blocks, number: Inode) -> Result<Self, TreeError> {
        let (place, size) = (place(blocks, number)?, blocks.size());
        let block = blocks.get(place.start / size)?;
        let at = (place.start % size) as usize;
        let bytes = block.get(at..at + blocks.superblock.inode_size).unwrap_or_default().to_vec();
        let mode = le::u16(&bytes, 0);
        let kind = match mode >> 12 {
            0x1 => FileKind::Fifo,
            0x2 => FileKind::Character,
            0x4 => FileKind::Directory,
            0x6 => FileKind::Block,
            0x8 => FileKind::File,
            0xa => FileKind::Link,
            0xc => FileKind::Socket,
            // Never used, or given back.
            0 => return Err(TreeError::NotFound),
            _ => return Err(damaged(number, "it is no kind of file")),
        };
        let (flags, links) = (le::u32(&bytes, 0x20), le::u16(&bytes, 0x1a));
        let is_large = kind == FileKind::File || kind == FileKind::Directory && blocks.superblock.largedir;
        let high = if is_large { u64::from(le::u32(&bytes, 0x6c)) << 32 } else { 0 };
        let mut node = Self { number, flags, size: u64::from(le::u32(&bytes, 4)) | high, kind, seed: None, bytes };
        node.seed = node.verify(blocks)?;
        if links == 0 {
            return Err(TreeError::NotFound);
        }
        Ok(node)
    }

    /// Verifies the checksum; returns where those of what belongs to it begin.
    fn verify(&self, blocks: &Blocks) -> Result<Option<u32>, TreeError> {
        let Some(seed) = blocks.superblock.seed else { return Ok(None) };
        let seed =
            checksum(checksum(seed, &(self.number as u32).to_le_bytes()), &le::u32(&self.bytes, 0x64).to_le_bytes());
        let (mut plain, mut expected) = (self.bytes.clone(), u32::from(le::u16(&self.bytes, 0x7c)));
        plain.get_mut(0x7c..0x7e).into_iter().for_each(|field| field.fill(0));
        let wide = self.extra() >= 4;
        if wide {
            expected |= u32::from(le::u16(&self.bytes, 0x82)) << 16;
            plain.get_mut(0x82..0x84).into_iter().for_each(|field| field.fill(0));
        }
        let found = checksum(seed, &plain);
        if (if wide { found } else { found & 0xffff }) != expected {
            return Err(damaged(self.number, "its checksum does not match"));
        }
        Ok(Some(seed))
    }

    /// Bytes of fields behind the first 128.
    pub fn extra(&self) -> usize {
        if self.bytes.len() <= 128 {
            return 0;
        }
        usize::from(le::u16(&self.bytes, 0x80)).min(self.bytes.len() - 128)
    }

    /// The 60 bytes of block numbers, extents, or the file itself.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(BODY).unwrap_or_default()
    }

    pub fn is_inline(&self) -> bool {
        self.flags & FLAG_INLINE_DATA != 0
    }

    /// Block of its extended attributes; 0 when there is none.
    pub fn xattr_block(&self) -> u64 {
        u64::from(le::u32(&self.bytes, 0x68)) | u64::from(le::u16(&self.bytes, 0x76)) << 32
    }

    pub fn expect_file(&self) -> Result<(), TreeError> {
        if self.kind != FileKind::File {
            return Err(TreeError::WrongKind);
        }
        self.expect_plain()
    }

    fn expect_plain(&self) -> Result<(), TreeError> {
        if self.flags & FLAG_ENCRYPT != 0 {
            return Err(TreeError::Unsupported("a file that the guest encrypted".to_owned()));
        }
        Ok(())
    }

    fn time(&self, at: usize, extra: usize) -> Time {
        let seconds = i64::from(le::u32(&self.bytes, at) as i32);
        if self.extra() + 128 < extra + 4 {
            return Time { seconds, nanoseconds: 0 };
        }
        let more = le::u32(&self.bytes, extra);
        Time { seconds: seconds + (i64::from(more & 3) << 32), nanoseconds: (more >> 2).min(999_999_999) }
    }

    /// Units of 512 bytes.
    fn sectors(&self, blocks: &Blocks) -> u64 {
        let low = u64::from(le::u32(&self.bytes, 0x1c));
        if !blocks.superblock.huge_file {
            return low;
        }
        let all = low | u64::from(le::u16(&self.bytes, 0x74)) << 32;
        if self.flags & FLAG_HUGE_FILE != 0 {
            return all.saturating_mul(blocks.size() / 512);
        }
        all
    }

    pub fn attributes(&self, blocks: &Blocks) -> Result<Attributes, TreeError> {
        let id = |low, high| u32::from(le::u16(&self.bytes, low)) | u32::from(le::u16(&self.bytes, high)) << 16;
        let is_device = matches!(self.kind, FileKind::Block | FileKind::Character);
        let device = match (is_device, le::u32(self.body(), 0), le::u32(self.body(), 4)) {
            (false, ..) => (0, 0),
            (true, 0, new) => (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00),
            (true, old, _) => (old >> 8 & 0xff, old & 0xff),
        };
        let has_birth = self.extra() + 128 >= 0x94;
        Ok(Attributes {
            kind: self.kind,
            mode: le::u16(&self.bytes, 0) & 0o7777,
            uid: id(2, 0x78),
            gid: id(0x18, 0x7a),
            links: le::u16(&self.bytes, 0x1a).into(),
            size: self.size,
            sectors: self.sectors(blocks),
            accessed: self.time(8, 0x8c),
            modified: self.time(0x10, 0x88),
            changed: self.time(0xc, 0x84),
            created: has_birth.then(|| self.time(0x90, 0x94)),
            device,
            generation: le::u32(&self.bytes, 0x64),
        })
    }

    /// Where a block of the file lies, and for how many it goes on like that.
    pub fn map(&self, blocks: &Blocks, block: u64) -> Result<Mapping, TreeError> {
        if self.flags & FLAG_EXTENTS != 0 {
            extent::by_extents(blocks, self, block)
        } else {
            extent::by_pointers(blocks, self, block)
        }
    }

    /// All of a file that lies in its inode.
    pub fn inline(&self, blocks: &Blocks) -> Result<Vec<u8>, TreeError> {
        let mut data = self.body().to_vec();
        if self.size > data.len() as u64 || self.kind == FileKind::Directory {
            data.extend(xattr::inline_rest(blocks, self)?);
        }
        if self.kind != FileKind::Directory {
            if self.size > data.len() as u64 {
                return Err(damaged(self.number, "it is longer than what its inode holds"));
            }
            data.truncate(self.size as usize);
        }
        Ok(data)
    }

    pub fn read_at(&self, blocks: &Blocks, offset: u64, out: &mut [u8]) -> Result<usize, TreeError> {
        self.expect_plain()?;
        let len = (out.len() as u64).min(self.size.saturating_sub(offset)) as usize;
        let out = out.get_mut(..len).unwrap_or_default();
        if self.is_inline() {
            let data = self.inline(blocks)?;
            let from = data.get((offset as usize).min(data.len())..).unwrap_or_default();
            let held = from.len().min(len);
            out[..held].copy_from_slice(&from[..held]);
            out[held..].fill(0);
            return Ok(len);
        }
        let size = blocks.size();
        let (mut at, end) = (offset, offset + len as u64);
        while at < end {
            let mapping = self.map(blocks, at / size)?;
            let run_end = (at / size).saturating_add(mapping.blocks.max(1)).saturating_mul(size);
            let until = run_end.min(end);
            let piece = out.get_mut((at - offset) as usize..(until - offset) as usize).unwrap_or_default();
            match mapping.from {
                None => piece.fill(0),
                Some(from) => copy(blocks, from, at % size, piece)?,
            }
            at = until;
        }
        Ok(len)
    }

    pub fn extent(&self, blocks: &Blocks, offset: u64) -> Result<Extent, TreeError> {
        let left = self.size.saturating_sub(offset);
        if self.is_inline() {
            self.inline(blocks)?;
        }
        if left == 0 || self.is_inline() {
            return Ok(Extent { len: left, at: None, is_hole: false });
        }
        let size = blocks.size();
        let mapping = self.map(blocks, offset / size)?;
        let len = mapping.blocks.max(1).saturating_mul(size).saturating_sub(offset % size);
        let at = mapping.from.map(|from| from * size + offset % size);
        Ok(Extent { len: len.min(left), at, is_hole: mapping.from.is_none() })
    }

    pub fn link_target(&self, blocks: &Blocks) -> Result<Vec<u8>, TreeError> {
        if self.kind != FileKind::Link {
            return Err(TreeError::WrongKind);
        }
        self.expect_plain()?;
        if self.size > LINK_BYTES_MAX {
            return Err(damaged(self.number, "a symbolic link that is longer than any"));
        }
        let mut target = vec![0; self.size as usize];
        let own = if self.xattr_block() == 0 { 0 } else { blocks.size() / 512 };
        let fast = self.flags & (FLAG_EXTENTS | FLAG_INLINE_DATA) == 0 && self.sectors(blocks) <= own;
        match self.body().get(..target.len()).filter(|_| fast) {
            Some(body) => target.copy_from_slice(body),
            None => drop(self.read_at(blocks, 0, &mut target)?),
        }
        Ok(target)
    }
}

/// Fills `out` from the byte `skip` of the block `from` on; blocks follow one another.
fn copy(blocks: &Blocks, from: u64, skip: u64, out: &mut [u8]) -> Result<(), TreeError> {
    let size = blocks.size() as usize;
    let (mut block, mut rest) = (from, out);
    let head = if skip > 0 || rest.len() < size { (size - skip as usize).min(rest.len()) } else { 0 };
    let mut whole = vec![0; size];
    if head > 0 {
        blocks.read(block, &mut whole)?;
        let (first, behind) = rest.split_at_mut(head);
        first.copy_from_slice(whole.get(skip as usize..skip as usize + head).unwrap_or_default());
        (block, rest) = (block + 1, behind);
    }
    let (middle, tail) = rest.split_at_mut(rest.len() / size * size);
    if !middle.is_empty() {
        blocks.read(block, middle)?;
        block += (middle.len() / size) as u64;
    }
    if !tail.is_empty() {
        blocks.read(block, &mut whole)?;
        tail.copy_from_slice(&whole[..tail.len()]);
    }
    Ok(())
}
