//! Whole conversations over bytes in memory: for the fuzzer and the replay of its corpora.
//!
//! Each function takes any bytes and panics when the server does something it must not do.

mod handshake;
mod script;
mod transmission;

pub use handshake::handshake;
pub use transmission::transmission;
