//! Bounded little-endian reading and appending: the only way bytes become numbers here.
//!
//! A [`Reader`] never panics and never allocates more than the bytes it was given.

use crate::error::{Error, Result};

/// Takes values off the front of a byte slice.
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`; `what` names the structure in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        match (self.rest.get(..n), self.rest.get(n..)) {
            (Some(head), Some(tail)) => {
                self.rest = tail;
                Ok(head)
            }
            _ => Err(Error::corrupt(format!("{} ends early: {n} bytes wanted, {} left", self.what, self.rest.len()))),
        }
    }

    /// Bytes not yet taken.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::corrupt(format!("{other} is neither 0 nor 1"))),
        }
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A string with a 16-bit length.
    pub fn text(&mut self) -> Result<String> {
        let len = usize::from(self.u16()?);
        let what = self.what;
        String::from_utf8(self.bytes(len)?.to_vec()).map_err(|_| Error::corrupt(format!("{what}: text is not UTF-8")))
    }
}

/// Appends values to a byte vector.
pub trait Append {
    /// A byte.
    fn put_u8(&mut self, v: u8);
    /// Two bytes.
    fn put_u16(&mut self, v: u16);
    /// Four bytes.
    fn put_u32(&mut self, v: u32);
    /// Eight bytes.
    fn put_u64(&mut self, v: u64);
    /// Five bytes: a slot address.
    fn put_u40(&mut self, v: u64);
    /// A string with a 16-bit length; the caller bounded it.
    fn put_text(&mut self, v: &str);
}

impl Append for Vec<u8> {
    fn put_u8(&mut self, v: u8) {
        self.push(v);
    }
    fn put_u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }
    fn put_u40(&mut self, v: u64) {
        self.extend(v.to_le_bytes().into_iter().take(5));
    }
    fn put_text(&mut self, v: &str) {
        debug_assert!(v.len() <= usize::from(u16::MAX));
        self.put_u16(v.len() as u16);
        self.extend_from_slice(v.as_bytes());
    }
}

/// CRC-32 (IEEE) of a structure whose own checksum field, 4 bytes at `at`, counts as zero.
pub fn checksum_without(bytes: &[u8], at: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes.get(..at).unwrap_or_default());
    hasher.update(&[0; 4]);
    hasher.update(bytes.get(at.saturating_add(4)..).unwrap_or_default());
    hasher.finalize()
}

/// Computes and stores the checksum that [`checksum_without`] verifies.
pub fn seal_checksum(bytes: &mut [u8], at: usize) -> u32 {
    let crc = checksum_without(bytes, at);
    if let Some(field) = bytes.get_mut(at..at.saturating_add(4)) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    crc
}
