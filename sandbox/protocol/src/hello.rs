//! The beginning of a connection: a fixed mark that can be found behind the rest of an earlier one.

use crate::{ProtocolError, VERSION};

const MAGIC: [u8; 8] = *b"\xff\x00CAIRN\xfe";
/// Bytes of a hello.
pub const HELLO_LEN: usize = 26;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The host, which begins.
    Host,
    /// The agent, which repeats the host's number.
    Agent,
}

/// The beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who says it.
    pub side: Side,
    /// The sender's version of the protocol.
    pub version: u8,
    /// The host's choice, different for each connection.
    pub nonce: [u8; 16],
}

impl Hello {
    /// A hello of this version.
    pub fn new(side: Side, nonce: [u8; 16]) -> Self {
        Self { side, version: VERSION, nonce }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(match self.side {
            Side::Host => 0,
            Side::Agent => 1,
        });
        out.push(self.version);
        out.extend(self.nonce);
        out
    }

    /// Finds the first hello of `side` in `bytes`; with it, how many bytes lead up to its end. Without one, the
    /// number is how many bytes can be forgotten: no hello begins in them.
    ///
    /// # Errors
    /// It is there, and of another version.
    pub fn find(bytes: &[u8], side: Side) -> Result<(Option<Self>, usize), ProtocolError> {
        for (at, window) in bytes.windows(HELLO_LEN).enumerate() {
            let Some((magic, rest)) = window.split_first_chunk::<8>() else { continue };
            let Some((&[who, version], rest)) = rest.split_first_chunk::<2>() else { continue };
            let Ok(nonce) = <[u8; 16]>::try_from(rest) else { continue };
            if *magic != MAGIC || who != u8::from(side == Side::Agent) {
                continue;
            }
            if version != VERSION {
                return Err(ProtocolError("the other side speaks another version of the agent's protocol"));
            }
            return Ok((Some(Self { side, version, nonce }), at.saturating_add(HELLO_LEN)));
        }
        Ok((None, bytes.len().saturating_sub(HELLO_LEN.saturating_sub(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_found_behind_what_was_left_of_an_earlier_connection() {
        let hello = Hello::new(Side::Host, *b"0123456789abcdef");
        let mut bytes = b"rest of a frame \xff\x00CAIR".to_vec();
        bytes.extend(Hello::new(Side::Agent, [7; 16]).encode());
        let before = bytes.len();
        bytes.extend(hello.encode());
        bytes.extend(b"next");
        assert_eq!(Hello::find(&bytes, Side::Host), Ok((Some(hello), before + HELLO_LEN)));
    }

    #[test]
    fn half_a_hello_is_kept_and_what_cannot_be_one_is_not() {
        let mut bytes = vec![9; 100];
        bytes.extend(&Hello::new(Side::Host, [1; 16]).encode()[..HELLO_LEN - 1]);
        let (found, forget) = Hello::find(&bytes, Side::Host).expect("no other version");
        assert!(found.is_none() && forget == 100, "{forget}");
    }

    #[test]
    fn another_version_is_an_error() {
        let mut bytes = Hello::new(Side::Agent, [1; 16]).encode();
        bytes[9] = VERSION + 1;
        assert!(Hello::find(&bytes, Side::Agent).is_err());
    }
}
