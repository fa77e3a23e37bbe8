//! Which names objects can have: the same for every store, so that what one takes all take.
//!
//! Invariants
//!   * a key, appended to a folder's path, names something inside that folder;
//!   * a name that is no key is never read, written or listed: what others keep beside us is not ours.

use super::store::{StoreError, StoreErrorKind, StoreResult};

/// Longest key in bytes. S3 allows 1024 together with the URL's prefix, a file system 255 for a component.
pub const KEY_BYTES_MAX: usize = 255;

/// Whether `key` can name an object: components of ASCII letters, digits, `.`, `_` and `-`, divided by
/// single `/`, none empty and none beginning with a dot.
pub fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed);
    key.len() <= KEY_BYTES_MAX && key.split('/').all(component)
}

/// Refuses a key that [`is_key`] does not like.
///
/// # Errors
/// `Invalid`, with the key.
pub fn check_key(key: &str) -> StoreResult<()> {
    if is_key(key) {
        return Ok(());
    }
    let shown: String = key.chars().take(KEY_BYTES_MAX).collect();
    Err(StoreError::new(
        StoreErrorKind::Invalid,
        format!(
            "{shown:?} cannot name an object: components of ASCII letters, digits, '.', '_' and '-', none beginning \
             with a dot, divided by '/', {KEY_BYTES_MAX} bytes at most"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_inside_their_folder() {
        for good in ["a", "a/b", "seg/0000-1f.cairn", "A_b", "a..b", &"k".repeat(KEY_BYTES_MAX)] {
            check_key(good).unwrap();
        }
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        for bad in
            ["", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/.", ".tmp/x", "a b", "a\0", "ä", "a%2f", &long]
        {
            assert_eq!(check_key(bad).unwrap_err().kind, StoreErrorKind::Invalid, "{bad:?}");
        }
    }
}
