//! Frames: where one ends and the next begins.
//!
//! Invariant: between calls a decoder holds less than one frame that is not complete and what its caller has pushed at once.

use crate::{ProtocolError, PAYLOAD_MAX};

/// Bytes of a frame before its payload.
pub const HEADER: usize = 5;

/// Takes bytes in any pieces and gives whole frames.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// What lies before it has been given.
    start: usize,
}

impl Decoder {
    /// Takes bytes that came; callers push no more than they read at once.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend(bytes);
    }

    /// The next frame's kind and payload, or `None` when it is not all there.
    ///
    /// # Errors
    /// It is longer than [`PAYLOAD_MAX`].
    pub fn frame(&mut self) -> Result<Option<(u8, &[u8])>, ProtocolError> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let Some((&[a, b, c, d, kind], payload)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > PAYLOAD_MAX {
            return Err(ProtocolError("a frame that is longer than any message"));
        }
        let Some(payload) = payload.get(..len) else { return Ok(None) };
        self.start = self.start.saturating_add(HEADER).saturating_add(len);
        Ok(Some((kind, payload)))
    }

    /// Gives up decoding: the bytes that no frame was made of.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.split_off(self.start.min(self.bytes.len()))
    }

    /// Whether a frame has begun and not ended.
    pub fn is_within_frame(&self) -> bool {
        self.start < self.bytes.len()
    }
}

/// Appends a frame whose payload `fill` appends.
///
/// # Errors
/// The payload is longer than [`PAYLOAD_MAX`]; nothing is appended then.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), ProtocolError> {
    let mut payload = Vec::new();
    fill(&mut payload);
    if payload.len() > PAYLOAD_MAX {
        return Err(ProtocolError("a message that is too long: arguments and variables may have 64 KiB in all"));
    }
    out.extend((payload.len() as u32).to_le_bytes());
    out.push(kind);
    out.extend(payload);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_however_their_bytes_come() {
        let mut bytes = Vec::new();
        put(&mut bytes, 3, |out| out.extend(b"abc")).expect("short");
        put(&mut bytes, 4, |_| {}).expect("short");
        let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
        for byte in bytes {
            decoder.push(&[byte]);
            while let Some((kind, payload)) = decoder.frame().expect("frames") {
                seen.push((kind, payload.to_vec()));
            }
        }
        assert_eq!(seen, [(3, b"abc".to_vec()), (4, Vec::new())]);
        assert!(!decoder.is_within_frame());
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_anything_is_kept_for_it() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert!(decoder.frame().is_err());
        assert!(put(&mut Vec::new(), 1, |out| out.resize(PAYLOAD_MAX + 1, 0)).is_err());
    }
}
