//! Object stores: what stands behind the URL of a pool's durable home.
//!
//! | URL | store |
//! |---|---|
//! | `file:///folder` | files below a folder that exists, taken as written |
//! | `s3://bucket` or `s3://bucket/prefix` | a bucket of S3 or of a server that speaks its protocol |
//!
//! Invariants
//!   * opening contacts nobody: [`probe`] tells whether a store can be used as this one must be;
//!   * no message contains a credential.
//!
//! Not here: what is kept in a store (`blockstore::object`).

mod cache;
mod connect;
mod file;
mod metered;
mod probe;
#[cfg(feature = "s3")]
mod s3;

pub use cache::{CacheCounts, CachedStore};
pub use connect::{ConnectOptions, Connected, Counted};
pub use file::FileStore;
pub use metered::Metered;
pub use probe::probe;
#[cfg(feature = "s3")]
pub use s3::S3Store;

use blockstore::object::{check_key, is_key, ObjectStore, StoreError, StoreErrorKind, StoreResult, OBJECT_BYTES_MAX};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest prefix of a URL in bytes, so that a key behind it is within S3's 1024.
const PREFIX_BYTES_MAX: usize = 512;

/// How to reach a store. What is `None` is taken from where the AWS command line takes it: the
/// environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, ...) and the profile.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The server's URL, when it is not Amazon's.
    pub endpoint: Option<String>,
    /// Whether the bucket goes into the path and not into the host's name; by default it does with an
    /// endpoint of one's own.
    pub path_style: Option<bool>,
    /// The region; `us-east-1` when there is none anywhere.
    pub region: Option<String>,
    /// A profile of the configuration and credentials files.
    pub profile: Option<String>,
    /// A file of credentials in the format of `~/.aws/credentials`, used instead of everything else.
    pub credentials_file: Option<PathBuf>,
    /// Time for one attempt of a request, to which time for its bytes is added.
    pub attempt_timeout: Duration,
    /// Attempts of one request, the first included.
    pub attempts: u32,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            path_style: None,
            region: None,
            profile: None,
            credentials_file: None,
            attempt_timeout: Duration::from_secs(15),
            attempts: 3,
        }
    }
}

/// Opens the store of `url`.
///
/// # Errors
/// `Invalid` for a URL that names no store, or a folder that does not exist; `Denied` for a folder that may
/// not be entered. A bucket is not looked at.
pub fn open_store(url: &str, options: &StoreOptions) -> StoreResult<Arc<dyn ObjectStore>> {
    match Place::parse(url)? {
        Place::Folder(path) => Ok(Arc::new(FileStore::open(path)?)),
        Place::Bucket { bucket, prefix } => open_bucket(bucket, prefix, options),
    }
}

#[cfg(feature = "s3")]
fn open_bucket(bucket: &str, prefix: &str, options: &StoreOptions) -> StoreResult<Arc<dyn ObjectStore>> {
    Ok(Arc::new(S3Store::open(bucket, prefix, options)?))
}

#[cfg(not(feature = "s3"))]
fn open_bucket(bucket: &str, _: &str, _: &StoreOptions) -> StoreResult<Arc<dyn ObjectStore>> {
    let text = format!("s3://{bucket}: this program was built without S3 (its feature `s3`)");
    Err(StoreError::new(StoreErrorKind::Invalid, text))
}

/// What a URL names.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Folder(&'a Path),
    Bucket { bucket: &'a str, prefix: &'a str },
}

impl<'a> Place<'a> {
    fn parse(url: &'a str) -> StoreResult<Self> {
        let invalid = |why: &str| Err(StoreError::new(StoreErrorKind::Invalid, format!("{url:?}: {why}")));
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return invalid("the folder must be an absolute path, as in file:///srv/objects");
            }
            return Ok(Self::Folder(Path::new(path)));
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return invalid("a store is given as file:///folder or s3://bucket/prefix");
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(allowed) || !has_plain_ends(bucket) {
            return invalid(
                "a bucket's name has 3 to 63 lower-case letters, digits, '.' and '-', as in s3://bucket/prefix",
            );
        }
        if prefix.len() > PREFIX_BYTES_MAX || !(prefix.is_empty() || prefix.split('/').all(is_key)) {
            return invalid("the prefix has letters, digits, '.', '_' and '-', divided by single '/'");
        }
        Ok(Self::Bucket { bucket, prefix })
    }
}

/// Refuses what no store takes.
fn check_put(operation: &str, key: &str, body: &[u8]) -> StoreResult<()> {
    check_key(key)?;
    if body.len() as u64 > OBJECT_BYTES_MAX {
        let text = format!("{operation} {key:?}: an object has at most {OBJECT_BYTES_MAX} bytes, not {}", body.len());
        return Err(StoreError::new(StoreErrorKind::Invalid, text));
    }
    Ok(())
}

/// A name that begins and ends with a letter or digit: it then cannot be taken for a path of its own.
fn has_plain_ends(name: &str) -> bool {
    let plain = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    plain(name.bytes().next()) && plain(name.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_folder_or_a_bucket() {
        let bucket = |bucket, prefix| Place::Bucket { bucket, prefix };
        let good = [
            ("file:///srv/objects", Place::Folder(Path::new("/srv/objects"))),
            ("s3://disks", bucket("disks", "")),
            ("s3://disks/", bucket("disks", "")),
            ("s3://my-disks.eu/team/a_1/", bucket("my-disks.eu", "team/a_1")),
        ];
        for (url, place) in good {
            assert_eq!(Place::parse(url).expect(url), place);
        }
        let bad = [
            "",
            "/srv",
            "file://srv",
            "file:srv",
            "http://x",
            "s3:",
            "s3://",
            "s3:///a",
            "s3://ab",
            "s3://Disks",
            "s3://disks-/a",
            "s3://../a",
            "s3://disks/../a",
            "s3://disks/a//b",
            "s3://disks/a b",
            "s3://key:secret@disks",
            "S3://disks",
        ];
        for url in bad {
            assert_eq!(Place::parse(url).expect_err(url).kind, StoreErrorKind::Invalid);
        }
    }
}
