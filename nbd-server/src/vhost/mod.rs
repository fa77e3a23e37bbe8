//! vhost-user-blk: a guest's requests straight out of its memory.
//!
//! A VMM hands over its guest's memory and, per queue, a ring of requests in it with two eventfds; nothing of a request
//! crosses a socket. [`message`] and [`socket`] are what the VMM says, [`device`] what it has said so far; [`ring`],
//! [`chain`] and [`request`] are what the guest asks, [`inflight`] what survives this process, and [`guest`] carries
//! requests out on the pool.
//!
//! Sources: QEMU's `vhost-user.rst`; the OASIS VIRTIO specification 1.2 (2.7 split virtqueues, 5.2 block device).
//!
//! Invariants
//!   * no byte of a guest or of a VMM can panic or be followed outside the memory that was handed over;
//!   * descriptors and request headers are copied once, and only the copy is looked at;
//!   * a bad request costs the guest that request or that queue; a bad message costs the VMM its connection.
//!
//! Not here: sockets in folders, turns, syncs (`server`).

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used))]

mod chain;
mod config;
mod device;
pub(crate) mod guest;
mod inflight;
mod limits;
mod mapping;
mod memory;
mod message;
mod queue;
mod regions;
mod request;
mod ring;
mod socket;
mod wire;
mod work;

pub(crate) use guest::{Guest, GuestWait, Next};
#[cfg(feature = "testing")]
pub(crate) use mapping::Mapping;

/// What the fuzzer takes apart.
#[cfg(feature = "testing")]
pub(crate) mod testing {
    pub(crate) use super::chain::walk;
    pub(crate) use super::mapping::memory_file;
    pub(crate) use super::memory::testing::Array;
    pub(crate) use super::memory::Memory;
    pub(crate) use super::message::{header, parse as parse_message};
    pub(crate) use super::request::{parse as parse_request, Bounds, Wanted};
    pub(crate) use super::ring::{Places, Ring};
    pub(crate) use super::socket::send as send_message;
}
