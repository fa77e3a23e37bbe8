//! Virtual machines on volumes: starting, freezing, suspending and ending them.
//!
//! A machine is a folder in a pool: what it is ([`Machine`]), its console, its sockets. Nothing of it lives in the
//! process that started it: a keeper holds the VMM, and every command finds both again through that folder.
//!
//! Invariants
//!   * a disk is always declared raw: nothing in its content is ever taken for a format;
//!   * what a guest or a VMM sends is bounded, and waited for with a deadline;
//!   * memory is resumed only beside the disk that it was saved with;
//!   * state is written to a new file, synced and renamed.
//!
//! Not here: how a pool keeps volumes; it is reached through [`Store`].

mod accel;
mod agent;
mod cgroup;
mod console;
mod disk;
mod error;
mod files;
mod image;
mod keeper;
mod machine;
mod qemu;
mod store;
mod terminal;
mod vmm;

pub use accel::{Accel, Probe};
pub use agent::{run_as, Agent, Begun, ExecEnd, Port};
pub use console::tail;
pub use disk::{Disk, Transport};
pub use error::{Error, Kind, Result};
pub use image::{
    build, build_tiny, built_in_recipe, import, Image, Images, Import, Interruptible, Listener, Progress, Recipe,
};
pub use keeper::keep;
pub use machine::{Cut, Ended, Machine, Machines, New, Status};
pub use qemu::Qemu;
pub use sandbox_protocol::{Exec, Window};
pub use store::Store;
pub use terminal::Terminal;
pub use vmm::{Stats, Vmm};
