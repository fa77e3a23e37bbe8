//! Sealed bytes that somebody changes, for the fuzzer.

use super::chunk::{open, seal, DataKey, SALT};
use super::key::Secret;
use super::record::KeyRecord;

/// Seals `body`, has `change` change it, and opens it again: what it is then, unless it is refused or not all of it.
pub(crate) fn resealed(name: &str, body: &[u8], change: &mut dyn FnMut(&mut Vec<u8>)) -> Option<Vec<u8>> {
    let key = DataKey::new(Secret::new(&mut [7; 32]), "objects/any/1").ok()?;
    let mut bytes = seal(&key, name, [3; SALT], body).ok()?;
    change(&mut bytes);
    open(&key, name, 0, &mut bytes).ok().filter(|opening| opening.is_end).map(|opening| opening.plain)
}

/// Reads a wrapped key; what is accepted is the same when it is written and read again.
pub(crate) fn rewrapped(bytes: &[u8]) {
    if let Ok(found) = KeyRecord::decode("keys/any/first", bytes) {
        let again = found.encode().ok().and_then(|again| KeyRecord::decode("keys/any/first", &again).ok());
        assert!(again == Some(found), "a wrapped key is another one when it is written again");
    }
}
