//! The storage daemon: serves the volumes of one pool over NBD, and takes commands on a control
//! socket.
//!
//! One thread owns the pool, every socket and the log: a request crosses no lock and no thread from
//! the bytes of the socket to the reply. What blocks (syncing, anchors, packing, preparing segments)
//! runs on worker threads and reports back.

mod audits;
pub mod control;
mod exports;
mod jobs;
mod keys;
mod metrics;
pub mod nbd;
pub mod object;
mod open;
mod poll;
mod server;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod vhost;

pub use keys::{read_key_file, CommandKey, SystemEntropy};
pub use open::{is_read_only, open_pool, open_pool_with, open_to_look, random_id, while_in_use, PoolLock, SystemClock};
pub use poll::hold_signals;
pub use server::{Listen, Server, ServerOptions, Stopper, LAG};
pub use tls::{Tls, TlsFiles};
