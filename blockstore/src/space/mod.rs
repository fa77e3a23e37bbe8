//! Space: which slots live, where their files are, and giving dead ones back.

mod compact;
mod files;
mod table;

pub use compact::{compact, CompactJob};
pub use files::{segment_name, Segments};
pub use table::{Segment, SegmentTable};
