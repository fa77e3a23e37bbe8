//! Heads, checkpoints and forks: a tree of roots, and the exact account of what only one holds.

mod reap;
mod release;
mod roots;
mod tidy;

pub use reap::{can_reap, reap_step};
pub use release::{prepare, release, release_node};
pub use roots::{Root, Roots};
pub use tidy::{tidy, tidy_below};
