//! `cairn mount`: checkpoints as folders, served by a process that has nothing but a connection.
//!
//! Three processes, each of this program. The command returns when the folder is mounted. The *keeper* goes on: it hands out
//! connections to the daemon and takes the mount away when its worker ends. The *worker* mounts, gives up its user, its network and
//! nearly all system calls, and only then looks at what guests made.
//!
//! Invariants
//!   * no byte of a guest's is looked at outside of the worker;
//!   * when the worker is gone, so is the mount, within a second: nothing that is asked there waits for ever.

mod broker;
mod keeper;
mod pool;
mod worker;

pub use keeper::{end_beside, keep, serve_beside, start, unmount, Wanted};
pub use worker::work;
