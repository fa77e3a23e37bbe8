//! Looking into disk images that guests made, without letting the host's kernel near them.
//!
//! Promise: whatever an image holds, each call returns within bounds of time and memory that do not depend on what the
//! image claims; what cannot be read is an error that says why.

#![forbid(unsafe_code)]

mod ahead;
mod contents;
mod diff;
mod ext4;
mod image;
mod le;
pub mod limits;
pub mod mount;
mod partition;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod tree;
mod walk;

pub use contents::{open, Contents, Partition};
pub use diff::{diff, Change, Difference};
pub use image::{FileImage, NbdImage, Window};
pub use source::ReadAt;
pub use tree::{Attributes, Entry, Extent, FileKind, Inode, Time, Tree, TreeError};
pub use walk::{find, Place};
