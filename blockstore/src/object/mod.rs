//! The object tier: a volume's durable home in an object store.
//!
//! Everything the crate knows of such a store goes through [`ObjectStore`], so that a simulator can fail, delay
//! and lose requests. Calls block: they are made by jobs, never by the pool's owner.

mod counts;
mod key;
mod store;

pub use counts::StoreCounts;
pub use key::{check_key, is_key, KEY_BYTES_MAX};
pub use store::{Created, ObjectEntry, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult, OBJECT_BYTES_MAX};
