//! A key-encryption key that this host has itself.

use super::super::{Entropy, StoreError, StoreErrorKind, StoreResult};
use super::chunk::{cipher, derive, hex};
use super::key::{KeyId, KeyWrap, Secret};
use ring::aead::{Aad, Nonce};
use std::sync::Arc;
use zeroize::Zeroize;

const SALT: usize = 16;

/// A key-encryption key in memory. What it wraps is a salt of 16 random bytes, then AES-256-GCM of the key with nonce 0 under
/// a key derived from that salt; so no number of wrapped keys makes a nonce repeat.
pub struct LocalKey {
    secret: Secret,
    id: KeyId,
    entropy: Arc<dyn Entropy>,
}

impl LocalKey {
    /// The key-encryption key `secret`. Its name is derived from it and tells nothing about it.
    ///
    /// # Errors
    /// None that is known: deriving the name does not fail.
    pub fn new(secret: Secret, entropy: Arc<dyn Entropy>) -> StoreResult<Self> {
        let mut name = [0; 8];
        derive(&secret, &[], &[b"cairn key id"], &mut name)?;
        let id = KeyId::new(hex(&name))?;
        Ok(Self { secret, id, entropy })
    }
}

impl KeyWrap for LocalKey {
    fn id(&self) -> KeyId {
        self.id.clone()
    }

    fn wrap(&self, key: &Secret) -> StoreResult<Vec<u8>> {
        let mut salt = [0; SALT];
        self.entropy.fill(&mut salt);
        let cipher = cipher(&self.secret, &salt, &[b"cairn key wrap"])?;
        let mut sealed = *key.expose();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = cipher.seal_in_place_separate_tag(nonce, Aad::empty(), &mut sealed);
        let tag = tag.map_err(|_| StoreError::new(StoreErrorKind::Invalid, "a key cannot be wrapped"))?;
        Ok([&salt, sealed.as_slice(), tag.as_ref()].concat())
    }

    fn unwrap(&self, wrapped: &[u8]) -> StoreResult<Secret> {
        let damaged = || StoreError::new(StoreErrorKind::Corrupt, "the wrapped key is damaged");
        let (salt, sealed) = wrapped.split_at_checked(SALT).ok_or_else(damaged)?;
        let cipher = cipher(&self.secret, salt, &[b"cairn key wrap"])?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let opened = cipher.open_in_place(nonce, Aad::empty(), &mut sealed).map_err(|_| damaged())?;
        let mut bytes = <[u8; 32]>::try_from(&*opened).map_err(|_| damaged())?;
        sealed.zeroize();
        Ok(Secret::new(&mut bytes))
    }
}
