//! What a host and the agent in its guest say to each other: bytes to messages and back, and nothing else.
//!
//! A connection begins with a [`Hello`] from each side. The host's carries a number that the agent repeats, so that
//! what is left in the pipe of an earlier connection is told apart. Frames follow: the payload's length (4 bytes,
//! little-endian), the kind (1 byte), the payload. Each connection carries one command, or controls one after the other.
//!
//! Invariants
//!   * no bytes make a parser panic, nor keep more than [`PAYLOAD_MAX`] of them;
//!   * what is encoded is decoded to the same message, and bytes behind a message's end are an error;
//!   * nothing is allocated for a length before as many bytes are there.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod fields;
mod frame;
mod hello;
mod message;
mod relay;
#[cfg(feature = "testing")]
pub mod testing;

pub use frame::{Decoder, HEADER};
pub use hello::{Hello, Side, HELLO_LEN};
pub use message::{Exec, Reply, Request, Window};
pub use relay::{Relay, Relayed, RELAY_CONNECTIONS, RELAY_DATA_MAX, RELAY_WINDOW};

use std::fmt;

/// Version of the protocol; both sides must have the same.
pub const VERSION: u8 = 1;
/// Longest payload of a frame, bytes: more is an error, and so neither side keeps more.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// Bytes of standard input that a host may send before they are credited; an agent never holds more.
pub const STDIN_WINDOW: usize = 64 << 10;
/// Bytes of output in one frame; larger ones would hold up what is urgent.
pub const OUTPUT_MAX: usize = 32 << 10;
/// Arguments and variables of one command; more is refused.
pub const WORDS_MAX: usize = 4096;

/// Bytes that are no message of this protocol: the connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError(pub &'static str);

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ProtocolError {}
