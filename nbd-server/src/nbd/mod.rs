//! The NBD protocol as pure code: bytes in, decisions and bytes out. No sockets, no clock.
//!
//! Source: the NetworkBlockDevice project's `proto.md`. Every length is compared with a limit before
//! anything is allocated for it; nothing a client sends can panic.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

mod gate;
mod handshake;
pub mod limits;
mod option;
mod reply;
mod request;
mod wire;

pub use gate::{Gate, GateStep};
pub use handshake::{ExportInfo, Exports, Handshake, HandshakeStep, MetaContext, Negotiated, OpenError};
pub use reply::{block_status, data_header, error, hole, none, simple, Errno};
pub use request::{parse, FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_PAYLOAD_LEN, FLAG_REQ_ONE};
pub use request::{Command, Parsed, Request, StatusFilter};
