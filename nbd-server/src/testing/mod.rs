//! Whole conversations over bytes in memory, for the fuzzer and the replay of its corpora; a network that is
//! slow or fails, for tests and measurements of object stores.
//!
//! [`handshake`] and [`transmission`] take any bytes and panic when the server does something it must not do.

mod handshake;
mod script;
mod slow_proxy;
mod transmission;
mod vhost;
mod vhost_front;

pub use handshake::handshake;
pub use slow_proxy::{HttpFault, SlowProxy};
pub use transmission::transmission;
pub use vhost::vhost_user;
pub use vhost_front::{feature, Done, Front, Setup, GUEST};
