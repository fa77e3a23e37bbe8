//! Which names objects can have: the same for every store, so that what one takes all take.
//!
//! Invariants
//!   * a key, appended to a folder's path, names something inside that folder;
//!   * a name that is no key is never read, written or listed: what others keep beside us is not ours.

use super::store::{StoreError, StoreErrorKind, StoreResult};

/// Longest key in bytes: the longest volume name has room in it. S3 allows 1024 together with the URL's prefix.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest component: what a file system allows.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Whether `key` can name an object: components of ASCII letters, digits, `.`, `_` and `-`, divided by
/// single `/`, none empty and none beginning with a dot.
pub fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let component = |part: &str| {
        !part.is_empty() && part.len() <= COMPONENT_BYTES_MAX && !part.starts_with('.') && part.bytes().all(allowed)
    };
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
        let part = "k".repeat(COMPONENT_BYTES_MAX);
        let longest = format!("{part}/{}/k", &part[1..]);
        assert_eq!(longest.len(), KEY_BYTES_MAX);
        for good in ["a", "a/b", "seg/0000-1f.cairn", "A_b", "a..b", &part, &longest] {
            check_key(good).unwrap();
        }
        let (part, key) = (format!("a/{part}k"), format!("{longest}k"));
        let bad = ["", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/.", ".tmp/x", "a b", "a\0", "ä", "a%2f"];
        for bad in bad.into_iter().chain([part.as_str(), &key]) {
            assert_eq!(check_key(bad).unwrap_err().kind, StoreErrorKind::Invalid, "{bad:?}");
        }
    }
}
