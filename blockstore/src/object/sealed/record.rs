//! Bytes of a wrapped key: the small object that says which data key a scope has.

use super::super::{StoreError, StoreErrorKind, StoreResult};
use super::chunk::{DataKeyId, VERSION};
use super::key::KeyId;
use crate::format::codec::{checksum_without, seal_checksum, Append, Reader};

/// Longest wrapped key. A longer one is refused, so that a store cannot make us hold much.
pub const WRAPPED_BYTES_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"CAIRNKY\n";
const CHECKSUM_AT: usize = 12;

/// A data key's name and, unless it was retired, the key wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    pub data_key: DataKeyId,
    pub wrapped: Option<(KeyId, Vec<u8>)>,
}

impl KeyRecord {
    pub fn is_wrapped_by(&self, id: &KeyId) -> bool {
        self.wrapped.as_ref().is_some_and(|(by, _)| by == id)
    }

    pub fn encode(&self) -> StoreResult<Vec<u8>> {
        let (by, wrapped) = match &self.wrapped {
            Some((by, wrapped)) => (by.as_str(), wrapped.as_slice()),
            None => ("", [].as_slice()),
        };
        if wrapped.len() > WRAPPED_BYTES_MAX {
            let text =
                format!("key {by} wraps a key in {} bytes; at most {WRAPPED_BYTES_MAX} are stored", wrapped.len());
            return Err(StoreError::new(StoreErrorKind::Invalid, text));
        }
        let mut out = MAGIC.to_vec();
        out.put_u16(VERSION.into());
        out.put_u16(0);
        out.put_u32(0);
        out.extend(self.data_key);
        out.put_text(by);
        out.put_u16(wrapped.len() as u16);
        out.extend(wrapped);
        seal_checksum(&mut out, CHECKSUM_AT);
        Ok(out)
    }

    /// Reads the object `name`.
    pub fn decode(name: &str, bytes: &[u8]) -> StoreResult<Self> {
        let corrupt = |why: &str| StoreError::new(StoreErrorKind::Corrupt, format!("wrapped key {name}: {why}"));
        let parse = || -> crate::Result<(u16, bool, Self)> {
            let mut reader = Reader::new(bytes, "it");
            let is_ours = reader.bytes(MAGIC.len())? == MAGIC;
            let version = reader.u16()?;
            reader.u16()?;
            let is_whole = reader.u32()? == checksum_without(bytes, CHECKSUM_AT);
            if !is_ours || !is_whole {
                return Err(crate::Error::corrupt("its magic or checksum is wrong"));
            }
            if version != VERSION.into() {
                return Ok((version, true, Self { data_key: [0; 8], wrapped: None }));
            }
            let mut data_key = [0; 8];
            data_key.copy_from_slice(reader.bytes(8)?);
            let by = reader.text()?;
            let len = usize::from(reader.u16()?);
            let wrapped = reader.bytes(len)?.to_vec();
            let wrapped = match KeyId::new(by.as_str()) {
                Ok(by) => Some((by, wrapped)),
                Err(_) if by.is_empty() && len == 0 => None,
                Err(_) => return Err(crate::Error::corrupt("it names no key")),
            };
            Ok((version, reader.left() == 0 && len <= WRAPPED_BYTES_MAX, Self { data_key, wrapped }))
        };
        match parse() {
            Ok((version, ..)) if version != VERSION.into() => {
                let text = format!("wrapped key {name} has version {version}; this program reads version {VERSION}");
                Err(StoreError::new(StoreErrorKind::Invalid, text))
            }
            Ok((_, true, record)) => Ok(record),
            Ok(_) => Err(corrupt("its length is wrong")),
            Err(e) => Err(corrupt(&e.to_string())),
        }
    }
}
