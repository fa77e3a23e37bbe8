//! Space: which slots live, where their files are, and giving dead ones back.

mod compact;
mod files;
mod kept;
mod remote;
mod reserve;
mod table;
mod wants;

pub use compact::{compact, CompactJob};
pub use files::{segment_name, Handle, Segments};
pub use remote::{fetch_directory, store_error, FetchJob, Fetched, Remote};
pub use reserve::{give_up, Purpose, Reserve};
pub use table::{Segment, SegmentTable};
pub use wants::{Arrival, Missing};
