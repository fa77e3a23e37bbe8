//! Records: the changes a log is made of, as they stand in a batch header.

use super::codec::{Append, Reader};
use crate::error::{Error, Result};
use crate::types::{CheckpointName, Durability, VolumeId};

/// One change. The order of records is the order of changes; applying them in that order to the
/// state of an anchor gives the state of the pool, while running and after a crash alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// `count` data blocks of the batch become blocks `block..block+count` of the volume.
    Write { block: u64, count: u64 },
    /// Blocks become holes (a trim, or zeros written).
    Trim { block: u64, count: u64 },
    /// A volume comes to be.
    CreateVolume { id: VolumeId, name: String, size: u64, time_us: u64 },
    /// A volume and its checkpoints go.
    DeleteVolume { id: VolumeId },
    /// The volume's size changes.
    Resize { size: u64 },
    /// The head's state gets a name.
    Checkpoint { name: CheckpointName, time_us: u64, comment: String },
    /// A checkpoint's name goes.
    DeleteCheckpoint { name: CheckpointName },
    /// The head becomes `name` again; what it was is kept as `undo`.
    Restore { name: CheckpointName, undo: CheckpointName, time_us: u64 },
    /// A new volume starts as this volume's head, or as one of its checkpoints.
    Fork { from: Option<CheckpointName>, id: VolumeId, name: String, time_us: u64 },
    /// What a flush of the volume waits for changes.
    SetDurability { durability: Durability },
    /// Whether the head can be changed.
    SetReadOnly { read_only: bool },
}

fn put_checkpoint(out: &mut Vec<u8>, name: CheckpointName) {
    out.put_u8(u8::from(name.is_auto));
    out.put_u32(name.number);
}

fn checkpoint(r: &mut Reader<'_>) -> Result<CheckpointName> {
    Ok(CheckpointName { is_auto: r.u8()? != 0, number: r.u32()? })
}

impl Record {
    /// Data blocks the record brings along.
    pub fn data_blocks(&self) -> u64 {
        match self {
            Record::Write { count, .. } => *count,
            _ => 0,
        }
    }

    /// Whether other logs build on it: what they hold means nothing without it.
    pub fn is_structural(&self) -> bool {
        matches!(self, Record::CreateVolume { .. } | Record::DeleteVolume { .. } | Record::Fork { .. })
    }

    /// Whether it changes what the volume's head shows.
    pub fn changes_head(&self) -> bool {
        use Record::{Resize, Restore, Trim, Write};
        matches!(self, Write { .. } | Trim { .. } | Resize { .. } | Restore { .. })
    }

    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Write { block, count } => {
                out.put_u8(1);
                out.put_u64(*block);
                out.put_u16(*count as u16);
            }
            Record::Trim { block, count } => {
                out.put_u8(2);
                out.put_u64(*block);
                out.put_u64(*count);
            }
            Record::CreateVolume { id, name, size, time_us } => {
                out.put_u8(3);
                out.put_u64(id.0);
                out.put_text(name);
                out.put_u64(*size);
                out.put_u64(*time_us);
            }
            Record::DeleteVolume { id } => {
                out.put_u8(4);
                out.put_u64(id.0);
            }
            Record::Resize { size } => {
                out.put_u8(5);
                out.put_u64(*size);
            }
            Record::Checkpoint { name, time_us, comment } => {
                out.put_u8(6);
                put_checkpoint(out, *name);
                out.put_u64(*time_us);
                out.put_text(comment);
            }
            Record::DeleteCheckpoint { name } => {
                out.put_u8(7);
                put_checkpoint(out, *name);
            }
            Record::Restore { name, undo, time_us } => {
                out.put_u8(8);
                put_checkpoint(out, *name);
                put_checkpoint(out, *undo);
                out.put_u64(*time_us);
            }
            Record::Fork { from, id, name, time_us } => {
                out.put_u8(9);
                out.put_u8(u8::from(from.is_some()));
                put_checkpoint(out, from.unwrap_or(CheckpointName { is_auto: false, number: 0 }));
                out.put_u64(id.0);
                out.put_text(name);
                out.put_u64(*time_us);
            }
            Record::SetDurability { durability } => {
                out.put_u8(10);
                out.put_u32(durability.bits());
            }
            Record::SetReadOnly { read_only } => {
                out.put_u8(11);
                out.put_u8(u8::from(*read_only));
            }
        }
    }

    /// Reads one record.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(match r.u8()? {
            1 => Record::Write { block: r.u64()?, count: u64::from(r.u16()?) },
            2 => Record::Trim { block: r.u64()?, count: r.u64()? },
            3 => Record::CreateVolume { id: VolumeId(r.u64()?), name: r.text()?, size: r.u64()?, time_us: r.u64()? },
            4 => Record::DeleteVolume { id: VolumeId(r.u64()?) },
            5 => Record::Resize { size: r.u64()? },
            6 => Record::Checkpoint { name: checkpoint(r)?, time_us: r.u64()?, comment: r.text()? },
            7 => Record::DeleteCheckpoint { name: checkpoint(r)? },
            8 => Record::Restore { name: checkpoint(r)?, undo: checkpoint(r)?, time_us: r.u64()? },
            9 => {
                let has_from = r.u8()? != 0;
                let from = checkpoint(r)?;
                let id = VolumeId(r.u64()?);
                Record::Fork { from: has_from.then_some(from), id, name: r.text()?, time_us: r.u64()? }
            }
            10 => Record::SetDurability { durability: Durability::of_bits(r.u32()?) },
            11 => Record::SetReadOnly { read_only: r.flag()? },
            other => return Err(Error::corrupt(format!("record kind {other} is unknown"))),
        })
    }
}
