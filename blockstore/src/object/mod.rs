//! The object tier: a volume's durable home in an object store.
//!
//! Everything the crate knows of such a store goes through [`ObjectStore`], so that a simulator can fail, delay
//! and lose requests. Calls block: they are made by jobs, never by the pool's owner.

mod abandoned;
mod attach;
mod attach_job;
mod bucket;
mod claim;
mod clean;
mod counts;
mod entropy;
mod key;
mod lease;
mod outcome;
mod pins;
mod reach;
mod round;
pub mod sealed;
mod store;
mod survey;
mod sweep;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod testing;
mod tier;
mod upload;
mod worn;

pub use crate::format::manifest::Tenure;
pub use attach_job::AttachJob;
pub use bucket::{check_bucket, BucketReport, VolumeBytes};
pub use claim::{newest_manifest, ClaimJob};
pub use clean::{CleanJob, ObjectCleaning};
pub use counts::StoreCounts;
pub use entropy::Entropy;
pub use key::{check_key, is_key, KEY_BYTES_MAX};
pub use lease::LeaseJob;
pub use reach::{list_volumes, volume_seen, Seen};
pub use store::{Created, ObjectEntry, ObjectStore, Range, StoreError, StoreErrorKind, StoreResult, OBJECT_BYTES_MAX};
pub use sweep::{sweep, SweepReport};
pub(crate) use tier::{Chain, Tier};
pub use tier::{ObjectTier, RemoteStatus, Sent, Standing, TierJob};
pub use upload::UploadJob;
