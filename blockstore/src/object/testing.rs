//! What of a bucket is read inside this module only, for the fuzzer.

use super::pins::Pin;
use super::reach::manifest_place;
use super::sealed;
use super::ObjectEntry;
use crate::format::manifest::manifest_key;

/// The key of a pin, from what its key says.
pub(crate) fn pin_again(key: &str) -> Option<String> {
    let entry = ObjectEntry { key: key.to_owned(), size: 1, modified_us: 0 };
    Pin::from_entry(&entry).ok().map(|pin| pin.key())
}

/// The key of a manifest, from what its key says.
pub(crate) fn place_again(key: &str) -> Option<String> {
    manifest_place(key).ok().map(|(name, number)| manifest_key(name, number))
}

pub(crate) use sealed::testing::{resealed, rewrapped};
