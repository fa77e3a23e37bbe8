//! Batch header: one block that describes and protects the data blocks behind it.

use super::codec::{checksum_without, seal_checksum, Append, Reader};
use super::record::Record;
use super::VERSION;
use crate::error::{Error, Result};
use crate::limits::{BATCH_BLOCKS_MAX, BLOCK};
use crate::types::{Lsn, SlotAddr, VolumeId};

const MAGIC: u32 = u32::from_le_bytes(*b"CBAT");
const CRC_AT: usize = 8;
const PREVIOUS_AT: usize = CRC_AT + size_of::<u32>();
/// Bytes before the records.
pub const HEADER_BYTES: usize = 56;
/// Bytes that records and block checksums share.
pub const BODY_BYTES: usize = BLOCK - HEADER_BYTES;
/// A batch of the largest size leaves room for its records.
const _: () = assert!(BATCH_BLOCKS_MAX * size_of::<u32>() < BODY_BYTES && BATCH_BLOCKS_MAX <= u16::MAX as usize);

/// What the next batch header of a stream must say of itself. Bytes that say something else are not
/// the next batch, whatever they are: left-overs of a recycled file, or blocks that a guest made to
/// look like a header. So nothing else about them is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The stream.
    pub volume: VolumeId,
    /// The opening that wrote it; `None` when it may be any (the anchored part of a segment).
    pub epoch: Option<u64>,
    /// Its place.
    pub addr: SlotAddr,
    /// Checksum of the header before it.
    pub previous_crc: u32,
}

impl Identity {
    /// What `bytes` say of the header before them, at a given place: for those who look for any batch
    /// there, and verify its chain otherwise.
    pub fn claimed(bytes: &[u8], volume: VolumeId, epoch: Option<u64>, addr: SlotAddr) -> Self {
        let field = bytes.get(PREVIOUS_AT..).and_then(|rest| rest.first_chunk());
        Self { volume, epoch, addr, previous_crc: field.map_or(0, |bytes| u32::from_le_bytes(*bytes)) }
    }
}

impl Identity {
    /// Whether `bytes` are this batch's header but for one field, and do not verify: damaged, then, or
    /// torn. Left-overs of another life of the file differ in more, those of another opening verify.
    pub fn resembles(&self, bytes: &[u8]) -> bool {
        let own = bytes.get(CRC_AT..).and_then(|rest| rest.first_chunk()).map(|crc| u32::from_le_bytes(*crc));
        if own == Some(checksum_without(bytes, CRC_AT)) {
            return false;
        }
        let (mut magic_version, mut places) = (Vec::with_capacity(6), Vec::with_capacity(24));
        magic_version.put_u32(MAGIC);
        magic_version.put_u16(VERSION);
        places.put_u64(self.volume.0);
        places.put_u64(self.epoch.unwrap_or_default());
        places.put_u64(self.addr.0);
        let is = |at: usize, field: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(field));
        let fields = places.chunks(8).zip([16, 24, 32]).filter(|(field, at)| is(*at, field)).count();
        let first = is(0, &magic_version);
        let previous = is(PREVIOUS_AT, &self.previous_crc.to_le_bytes());
        fields.saturating_add(usize::from(first)).saturating_add(usize::from(previous)) >= 4
    }
}

/// A decoded batch header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The stream it belongs to: a batch of another volume never replays here.
    pub volume: VolumeId,
    /// Who wrote it: one opening of the pool. A batch left over from before a crash never joins
    /// the chain that continues after it.
    pub epoch: u64,
    /// Where it was written: a misdirected or recycled block is noticed.
    pub addr: SlotAddr,
    /// Number of the first record.
    pub first_lsn: Lsn,
    /// Checksum of the stream's previous batch header: a missing batch is noticed.
    pub previous_crc: u32,
    /// The changes.
    pub records: Vec<Record>,
    /// CRC-32 of each data block.
    pub crcs: Vec<u32>,
}

impl Batch {
    /// One block of bytes, and its checksum. The caller keeps records and checksums within
    /// [`BODY_BYTES`].
    pub fn encode(&self) -> (Vec<u8>, u32) {
        let mut out = Vec::with_capacity(BLOCK);
        out.put_u32(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u32(self.previous_crc);
        out.put_u64(self.volume.0);
        out.put_u64(self.epoch);
        out.put_u64(self.addr.0);
        out.put_u64(self.first_lsn.0);
        out.put_u16(self.records.len() as u16);
        out.put_u16(self.crcs.len() as u16);
        out.put_u32(0);
        self.records.iter().for_each(|record| record.encode(&mut out));
        self.crcs.iter().for_each(|crc| out.put_u32(*crc));
        assert!(out.len() <= BLOCK, "a batch header outgrew its block");
        out.resize(BLOCK, 0);
        let crc = seal_checksum(&mut out, CRC_AT);
        (out, crc)
    }

    /// Verifies and reads a header and its checksum; `None` when these bytes are not the batch that
    /// `expected` describes (the end of a log, usually). An error means that they are, and make no
    /// sense.
    pub fn decode(bytes: &[u8], expected: &Identity) -> Result<Option<(Self, u32)>> {
        let mut r = Reader::new(bytes, "batch header");
        if bytes.len() != BLOCK || r.u32()? != MAGIC {
            return Ok(None);
        }
        let version = r.u16()?;
        r.u16()?;
        let crc = r.u32()?;
        // A batch of a newer version cannot follow: its program would have replaced the anchor.
        if version != VERSION || crc != checksum_without(bytes, CRC_AT) {
            return Ok(None);
        }
        let previous_crc = r.u32()?;
        let (volume, epoch) = (VolumeId(r.u64()?), r.u64()?);
        let (addr, first_lsn) = (SlotAddr(r.u64()?), Lsn(r.u64()?));
        let found = Identity { volume, epoch: expected.epoch.map(|_| epoch), addr, previous_crc };
        if found != *expected {
            return Ok(None);
        }
        let (record_count, block_count) = (r.u16()?, usize::from(r.u16()?));
        r.u32()?;
        if block_count > BATCH_BLOCKS_MAX {
            return Err(Error::corrupt(format!("a batch claims {block_count} blocks")));
        }
        let mut records = Vec::new();
        let mut blocks = 0u64;
        for _ in 0..record_count {
            let record = Record::decode(&mut r)?;
            blocks = record.data_blocks().saturating_add(blocks);
            records.push(record);
        }
        if blocks != block_count as u64 {
            return Err(Error::corrupt(format!("a batch's records name {blocks} blocks, its header {block_count}")));
        }
        let mut crcs = Vec::with_capacity(block_count);
        for _ in 0..block_count {
            crcs.push(r.u32()?);
        }
        Ok(Some((Self { volume, epoch, addr, first_lsn, previous_crc, records, crcs }, crc)))
    }
}
