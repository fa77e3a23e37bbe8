//! The file `cairn.pool`: says that a folder is a pool, which one, and of which format.

use super::codec::{checksum_without, seal_checksum, Append, Reader};
use super::VERSION;
use crate::error::{Error, Result};
use crate::limits::BLOCK;

/// First bytes of a pool.
pub const MAGIC: &[u8; 8] = b"CAIRNPL\n";
const CRC_AT: usize = 12;

/// Identity of a pool; written once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random identity, repeated in segments and anchors so that files of another pool are noticed.
    pub pool: [u8; 16],
    /// Creation time, microseconds since 1970: for people who find the file.
    pub created_us: u64,
}

impl Superblock {
    /// One block of bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.extend_from_slice(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_u32(0);
        out.extend_from_slice(&self.pool);
        out.put_u64(self.created_us);
        out.resize(BLOCK, 0);
        seal_checksum(&mut out, CRC_AT);
        out
    }

    /// Verifies and reads; errors tell a foreign file, a newer version and damage apart.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, "pool superblock");
        if r.bytes(8)? != MAGIC {
            return Err(Error::corrupt("cairn.pool is not a Cairn pool superblock (wrong magic)"));
        }
        let version = r.u16()?;
        r.u16()?;
        // Magic, version and checksum keep their places in every version: damage is told from age.
        if r.u32()? != checksum_without(bytes, CRC_AT) {
            return Err(Error::corrupt("cairn.pool is damaged (checksum mismatch)"));
        }
        if version != VERSION {
            return Err(Error::invalid(format!(
                "the pool has format version {version}, this program reads version {VERSION}: use a newer cairn"
            )));
        }
        let mut pool = [0; 16];
        pool.copy_from_slice(r.bytes(16)?);
        Ok(Self { pool, created_us: r.u64()? })
    }
}
