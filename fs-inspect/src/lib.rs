//! Looking into disk images that guests made, without letting the host's kernel near them.
//!
//! Promise: whatever an image holds, each call returns within bounds of time and memory that do not depend on what the
//! image claims; what cannot be read is an error that says why.

#![forbid(unsafe_code)]

mod source;
mod tree;

pub use source::ReadAt;
pub use tree::{Attributes, Entry, FileKind, Inode, Time, Tree, TreeError};
