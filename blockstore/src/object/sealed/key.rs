//! Keys: secrets of 256 bits, the names of keys that wrap others, and who wraps.

use super::super::{StoreError, StoreErrorKind, StoreResult};
use std::fmt;
use zeroize::Zeroize;

/// Longest name of a key. It is part of an object's key.
pub const KEY_ID_BYTES_MAX: usize = 64;

/// A key of 256 bits. Never shown, and overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The secret of these bytes; the caller's copy is overwritten.
    pub fn new(bytes: &mut [u8; 32]) -> Self {
        let secret = Self(*bytes);
        bytes.zeroize();
        secret
    }

    /// The bytes, for ciphers and for those who wrap.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The name of a key-encryption key: 1 to [`KEY_ID_BYTES_MAX`] ASCII letters, digits, `.`, `_` and `-`. No secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// Checks a name. `first`, `.` and `..` mean something else.
    ///
    /// # Errors
    /// `Invalid`, with what a name may be.
    pub fn new(name: impl Into<String>) -> StoreResult<Self> {
        let name = name.into();
        let fits = (1..=KEY_ID_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !fits || matches!(name.as_str(), "first" | "." | "..") {
            let text = format!(
                "{name:?} cannot name a key: 1 to {KEY_ID_BYTES_MAX} letters, digits, '.', '_' and '-', and not \"first\""
            );
            return Err(StoreError::new(StoreErrorKind::Invalid, text));
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key-encryption key, or somebody who holds one and lends its use. Calls may block.
pub trait KeyWrap: Send + Sync {
    /// Names the key: equal names mean that what one has wrapped the other can unwrap.
    fn id(&self) -> KeyId;
    /// Encrypts `key`; at most [`super::WRAPPED_BYTES_MAX`] bytes.
    fn wrap(&self, key: &Secret) -> StoreResult<Vec<u8>>;
    /// Decrypts what `wrap` made. `Corrupt` if nobody with this key can have made it, `Denied` if it is not to be
    /// had, `Unavailable` if it cannot be had now.
    fn unwrap(&self, wrapped: &[u8]) -> StoreResult<Secret>;
}
