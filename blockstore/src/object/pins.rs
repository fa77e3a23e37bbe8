//! Pins: which volumes may refer to the objects that a pool has made.
//!
//! A pin is a small object `pins/<maker>/<pool>/<volume>`. Its key says it all: `pool` owns, or is about to own,
//! manifests of `volume` that name objects of `maker`. Its text is for people.
//!
//! Invariants
//!   * a pin is there before the manifest that needs it, and, when a volume is taken over, before the manifest is
//!     read whose objects it protects;
//!   * a pin protects nothing by itself: it makes the maker look at every manifest before it deletes anything. So a
//!     pin too many costs requests, never space;
//!   * a pin has no date at which it ends: it is removed by its owner with the volume's last word, or by whoever has
//!     marked the whole bucket, a day after it was put, and found that the volume does not need it.

use super::reach::{each, Marked};
use super::tier::hex;
use super::{ObjectEntry, ObjectStore};
use crate::error::{Error, Result};
use crate::format::manifest::{Manifest, Tenure};
use crate::limits::PIN_SPENT_AFTER_US;
use crate::space::store_error;
use std::collections::BTreeSet;

/// A pin, as its key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub maker: [u8; 16],
    pub pool: [u8; 16],
    pub name: String,
    pub modified_us: u64,
}

/// Sixteen bytes from the text that [`hex`] makes of them.
pub(crate) fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    if text.len() != 32 {
        return None;
    }
    for (byte, at) in out.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    (hex(&out) == text).then_some(out)
}

impl Pin {
    pub fn key(&self) -> String {
        pin_key(&self.maker, &self.pool, &self.name)
    }

    pub fn from_entry(entry: &ObjectEntry) -> Result<Self> {
        let parse = || {
            let mut parts = entry.key.strip_prefix("pins/")?.splitn(3, '/');
            let (maker, pool, name) = (unhex(parts.next()?)?, unhex(parts.next()?)?, parts.next()?.to_owned());
            (!name.contains('/')).then_some(Self { maker, pool, name, modified_us: entry.modified_us })
        };
        parse().ok_or_else(|| Error::corrupt(format!("{} is no pin that this program understands", entry.key)))
    }

    /// Whether nothing is lost without it: `marked` is what is reachable, `pins` are all pins of its maker.
    pub fn is_spent(&self, pins: &[Self], marked: &Marked, now_us: u64) -> bool {
        if self.modified_us.saturating_add(PIN_SPENT_AFTER_US) > now_us {
            return false;
        }
        let Some(seen) = marked.volumes.get(&self.name) else { return true };
        let owned = seen.tenure == Tenure::Owned;
        // The owner believes that its pin is there, and puts it once.
        if owned && seen.pool == self.pool {
            return false;
        }
        let of_owner = |pin: &Self| pin.maker == self.maker && pin.pool == seen.pool && pin.name == self.name;
        !seen.makers.contains(&self.maker) || (owned && pins.iter().any(of_owner))
    }
}

/// Key of a pin.
pub(crate) fn pin_key(maker: &[u8; 16], pool: &[u8; 16], name: &str) -> String {
    format!("pins/{}/{}/{name}", hex(maker), hex(pool))
}

/// The pools whose objects a manifest names.
pub(crate) fn makers(manifest: &Manifest) -> BTreeSet<[u8; 16]> {
    manifest.objects.keys().map(|id| id.pool).collect()
}

/// Puts the pins of `pool` for the volume `name` at `makers`.
pub(crate) fn pin(
    store: &dyn ObjectStore,
    makers: &BTreeSet<[u8; 16]>,
    pool: &[u8; 16],
    name: &str,
    number: u64,
    time_us: u64,
) -> Result<()> {
    let text = format!("cairn pin 1\npool {}\nvolume {name}\nmanifest {number}\ntime_us {time_us}\n", hex(pool));
    for maker in makers {
        let key = pin_key(maker, pool, name);
        store.put(&key, text.as_bytes()).map_err(|e| store_error(&format!("pinning {key}"), &e))?;
    }
    Ok(())
}

/// Removes pins whose volume needs them no more. One that stays costs requests, until it is found to be spent.
pub(crate) fn unpin(store: &dyn ObjectStore, makers: &BTreeSet<[u8; 16]>, pool: &[u8; 16], name: &str) {
    for maker in makers {
        let _ = store.delete(&pin_key(maker, pool, name));
    }
}

/// All pins at `maker`, or at all.
pub(crate) fn pins_at(store: &dyn ObjectStore, maker: Option<&[u8; 16]>) -> Result<Vec<Pin>> {
    let prefix = maker.map_or("pins/".to_owned(), |maker| format!("pins/{}/", hex(maker)));
    let mut pins = Vec::new();
    each(store, &prefix, &mut |entry| {
        pins.push(Pin::from_entry(entry)?);
        Ok(())
    })?;
    Ok(pins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::reach::Seen;

    #[test]
    fn a_pin_is_what_its_key_says_and_spent_when_nobody_needs_it() {
        let (maker, pool, other) = ([0xa0; 16], [0x0b; 16], [3; 16]);
        let entry = |key: String| ObjectEntry { key, size: 1, modified_us: 5 };
        let pin = Pin::from_entry(&entry(pin_key(&maker, &pool, "my-disk.2"))).unwrap();
        assert_eq!(pin, Pin { maker, pool, name: "my-disk.2".into(), modified_us: 5 });
        for bad in ["pins/a/b/c".to_owned(), format!("{}/x", pin.key()), pin.key().to_uppercase()] {
            assert!(Pin::from_entry(&entry(bad)).is_err());
        }
        let mut marked = Marked::default();
        let late = PIN_SPENT_AFTER_US + 5;
        assert!(pin.is_spent(&[], &marked, late), "there is no such volume");
        assert!(!pin.is_spent(&[], &marked, late - 1), "it may just have been put");
        let seen = |pool, tenure, makers: &[[u8; 16]]| Seen {
            number: 1,
            tenure,
            epoch: 1,
            pool,
            pool_epoch: 1,
            maker: pool,
            volume: crate::types::VolumeId(1),
            bytes: 0,
            makers: makers.iter().copied().collect(),
        };
        let mut with = |pool, tenure, makers: &[[u8; 16]], pins: &[Pin]| {
            marked.volumes.insert("my-disk.2".into(), seen(pool, tenure, makers));
            pin.is_spent(pins, &marked, late)
        };
        let theirs = Pin { pool: other, ..pin.clone() };
        assert!(!with(pool, Tenure::Owned, &[], &[]), "the owner relies on it");
        assert!(!with(pool, Tenure::Detached, &[maker], &[]), "whoever attaches it next relies on it");
        assert!(with(pool, Tenure::Detached, &[other], &[]));
        assert!(!with(other, Tenure::Owned, &[maker], &[]), "the new owner has no pin yet");
        assert!(with(other, Tenure::Owned, &[maker], &[theirs]));
        assert!(with(other, Tenure::Deleted, &[], &[]));
    }
}
