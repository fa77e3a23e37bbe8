//! The superblock: geometry, features, checksums.

use crate::le;
use crate::limits::GROUPS_MAX;
use crate::source::ReadAt;
use crate::tree::TreeError;

pub const AT: u64 = 1024;
pub const BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const FILETYPE: u32 = 0x2;
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const BITS64: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
const LARGEDIR: u32 = 0x4000;
/// Features that change nothing of what is read here, or that are read.
const KNOWN: u32 = FILETYPE
    | RECOVER
    | META_BG
    | 0x40
    | BITS64
    | 0x100
    | 0x200
    | 0x400
    | CSUM_SEED
    | LARGEDIR
    | 0x8000
    | 0x10000
    | 0x20000;
const UNKNOWN: [(u32, &str); 3] =
    [(0x1, "compression"), (0x8, "a device that holds nothing but a journal"), (0x1000, "data in directory entries")];
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_METADATA_CSUM: u32 = 0x400;
const RO_HUGE_FILE: u32 = 0x8;

/// What is needed of it.
#[derive(Clone, Debug)]
pub struct Superblock {
    pub block_size: u64,
    pub blocks: u64,
    pub inodes: u32,
    pub first_data_block: u64,
    pub blocks_per_group: u64,
    pub inodes_per_group: u32,
    pub inode_size: usize,
    pub descriptor_size: u64,
    pub groups: u64,
    /// Descriptors lie in their own groups from this one on, in units of those that fit a block.
    pub first_meta_bg: Option<u64>,
    pub filetype: bool,
    pub largedir: bool,
    pub huge_file: bool,
    pub needs_recovery: bool,
    pub journal: u32,
    /// Where checksums begin; `None` when the file system has none.
    pub seed: Option<u32>,
    sparse: bool,
    backups: Option<[u32; 2]>,
}

/// The kernel's crc32c: no inversion at either end.
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn damaged(what: impl Into<String>) -> TreeError {
    TreeError::Damaged(what.into())
}

impl Superblock {
    /// The superblock of an image; `None` when there is none of ext4.
    pub fn read(image: &dyn ReadAt) -> Result<Option<Self>, TreeError> {
        if image.size() < AT + BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = [0; BYTES];
        image.read_at(AT, &mut bytes)?;
        Self::parse(&bytes)
    }

    /// The same, from its bytes.
    pub fn parse(bytes: &[u8; BYTES]) -> Result<Option<Self>, TreeError> {
        if le::u16(bytes, 0x38) != MAGIC {
            return Ok(None);
        }
        let (compat, incompat, ro) = (le::u32(bytes, 0x5c), le::u32(bytes, 0x60), le::u32(bytes, 0x64));
        let unknown = incompat & !KNOWN;
        if unknown != 0 {
            let named: Vec<&str> =
                UNKNOWN.iter().filter(|(bit, _)| unknown & bit != 0).map(|(_, name)| *name).collect();
            let text = if named.is_empty() { format!("features {unknown:#x}") } else { named.join(", ") };
            return Err(TreeError::Unsupported(text));
        }
        let seed = match (ro & RO_METADATA_CSUM != 0, incompat & CSUM_SEED != 0) {
            (false, _) => None,
            (true, true) => Some(le::u32(bytes, 0x270)),
            (true, false) => Some(checksum(!0, &bytes[0x68..0x78])),
        };
        if seed.is_some() && checksum(!0, &bytes[..0x3fc]) != le::u32(bytes, 0x3fc) {
            return Err(damaged("the superblock's checksum does not match"));
        }
        let log = le::u32(bytes, 0x18);
        if log > 6 {
            return Err(damaged(format!("blocks of 2^{} bytes", u64::from(log) + 10)));
        }
        let is64 = incompat & BITS64 != 0;
        let high = if is64 { u64::from(le::u32(bytes, 0x150)) << 32 } else { 0 };
        let block_size = 1024u64 << log;
        let rev0 = le::u32(bytes, 0x4c) == 0;
        let all = Self {
            block_size,
            blocks: u64::from(le::u32(bytes, 0x4)) | high,
            inodes: le::u32(bytes, 0),
            first_data_block: le::u32(bytes, 0x14).into(),
            blocks_per_group: le::u32(bytes, 0x20).into(),
            inodes_per_group: le::u32(bytes, 0x28),
            inode_size: if rev0 { 128 } else { le::u16(bytes, 0x58).into() },
            descriptor_size: if is64 { le::u16(bytes, 0xfe).into() } else { 32 },
            groups: 0,
            first_meta_bg: (incompat & META_BG != 0).then(|| le::u32(bytes, 0x104).into()),
            filetype: incompat & FILETYPE != 0,
            largedir: incompat & LARGEDIR != 0,
            huge_file: ro & RO_HUGE_FILE != 0,
            needs_recovery: incompat & RECOVER != 0,
            journal: le::u32(bytes, 0xe0),
            seed,
            sparse: ro & RO_SPARSE_SUPER != 0,
            backups: (compat & COMPAT_SPARSE_SUPER2 != 0).then(|| [le::u32(bytes, 0x24c), le::u32(bytes, 0x250)]),
        };
        all.make_sense().map(Some)
    }

    fn make_sense(mut self) -> Result<Self, TreeError> {
        let size = self.inode_size as u64;
        if !(128..=self.block_size).contains(&size) || !size.is_power_of_two() {
            return Err(damaged(format!("inodes of {size} bytes")));
        }
        if !(32..=self.block_size).contains(&self.descriptor_size) || !self.descriptor_size.is_power_of_two() {
            return Err(damaged(format!("group descriptors of {} bytes", self.descriptor_size)));
        }
        // Clusters of several blocks make groups larger than eight times the bits of a block.
        let (blocks, inodes) = (self.blocks_per_group, u64::from(self.inodes_per_group));
        // Only with blocks of 1 KiB something lies before the first one: the boot sector.
        if self.first_data_block > 1 {
            return Err(damaged(format!("a first block {}", self.first_data_block)));
        }
        if blocks == 0 || inodes == 0 || inodes > 8 * self.block_size || self.blocks <= self.first_data_block {
            return Err(damaged("its geometry cannot be"));
        }
        self.groups = (self.blocks - self.first_data_block).div_ceil(blocks);
        if self.groups > GROUPS_MAX || self.blocks > u64::MAX / self.block_size {
            return Err(damaged(format!("{} blocks, more than any disk has", self.blocks)));
        }
        Ok(self)
    }

    fn has_copy(&self, group: u64) -> bool {
        if let Some(backups) = self.backups {
            return group == 0 || backups.iter().any(|copy| u64::from(*copy) == group);
        }
        let power = |base: u64| {
            std::iter::successors(Some(base), |n| n.checked_mul(base)).take_while(|n| *n <= group).any(|n| n == group)
        };
        !self.sparse || group <= 1 || [3, 5, 7].into_iter().any(power)
    }

    /// Block and byte in it of a group's descriptor.
    pub fn descriptor(&self, group: u64) -> (u64, usize) {
        let each = self.block_size / self.descriptor_size;
        let (index, at) = (group / each, (group % each * self.descriptor_size) as usize);
        // With clusters of blocks of 1 KiB the first group begins before the superblock's block.
        let own = AT / self.block_size;
        let block = match self.first_meta_bg {
            Some(first) if index >= first => {
                let home = index * each;
                let copy = if home == 0 { own + 1 - self.first_data_block } else { self.has_copy(home).into() };
                self.first_data_block + home * self.blocks_per_group + copy
            }
            _ => own + 1 + index,
        };
        (block, at)
    }
}
