//! Heads, checkpoints and forks: a tree of roots, and the exact account of what only one holds.

mod reap;
mod release;
mod roots;

pub use reap::{can_reap, reap_step};
pub use release::release;
pub use roots::{Root, Roots};
