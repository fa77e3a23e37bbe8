//! Replacing the key-encryption key of a store: data keys are wrapped anew, data stays as it is.
//!
//! Invariants
//!   * Nothing is removed before the same data key, wrapped by the new key, was read back from the store and unwrapped.
//!   * Until [`rewrap`] is done everywhere, the old key opens every scope; from then on the new one does. Between
//!     [`rewrap`] and [`retire`] both do, and that is when hosts change over.
//!   * Every step may be interrupted and repeated. A put that a lost request delivers late does no harm: at worst an old wrapped
//!     key comes back. A removal that arrives late harms those who have gone back to the key that it retires:
//!     whoever returns to a key lets requests of its retirement die out first.
//!
//! A host that still has the old key when it is retired keeps the data keys it has in memory, and may make a new
//! scope under the old key: rotating again takes care of it.

use super::super::{Created, ObjectStore, StoreError, StoreErrorKind, StoreResult};
use super::key::KeyWrap;
use super::keyring::{first_name, look_up, look_up_own, read, wrapped, wrapped_name, Found};
use super::record::KeyRecord;
use super::KEYS;

/// Scopes asked for in one list.
const PAGE: usize = 1000;

/// What a rotation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Scopes that there are.
    pub scopes: u64,
    /// Of them, those whose data key was wrapped by the new key now.
    pub rewrapped: u64,
    /// Of them, those that neither key opens; they were left alone.
    pub foreign: u64,
}

/// Wraps every data key in `store` by `new`, too, where `old` opens it.
///
/// # Errors
/// Those of the store and of the keys; what was done stays done.
pub fn rewrap(store: &dyn ObjectStore, old: &dyn KeyWrap, new: &dyn KeyWrap) -> StoreResult<Rotation> {
    each_scope(store, old, new, |_| Ok(()))
}

/// Makes sure that `new` opens every scope that `old` opens, and then removes what `old` wrapped.
///
/// # Errors
/// Those of the store and of the keys; what was done stays done.
pub fn retire(store: &dyn ObjectStore, old: &dyn KeyWrap, new: &dyn KeyWrap) -> StoreResult<Rotation> {
    let old_id = old.id();
    each_scope(store, old, new, |scope| {
        let name = first_name(scope);
        if let Some(first) = read(store, &name)?.filter(|first| first.is_wrapped_by(&old_id)) {
            store.put(&name, &KeyRecord { wrapped: None, ..first }.encode()?)?;
        }
        let name = wrapped_name(scope, &old_id);
        // A removal of what is not there could arrive late, when it is there again.
        if read(store, &name)?.is_some() {
            store.delete(&name)?;
        }
        Ok(())
    })
}

/// [`rewrap`], and when that is done for all of `store`, [`retire`].
///
/// # Errors
/// Those of the store and of the keys; what was done stays done, and a repetition does the rest.
pub fn rotate(store: &dyn ObjectStore, old: &dyn KeyWrap, new: &dyn KeyWrap) -> StoreResult<Rotation> {
    let first = rewrap(store, old, new)?;
    let second = retire(store, old, new)?;
    Ok(Rotation { rewrapped: first.rewrapped.saturating_add(second.rewrapped), ..second })
}

/// Calls `then` for every scope that `new` opens, after making sure that it does where `old` can help.
fn each_scope(
    store: &dyn ObjectStore,
    old: &dyn KeyWrap,
    new: &dyn KeyWrap,
    then: impl Fn(&str) -> StoreResult<()>,
) -> StoreResult<Rotation> {
    if old.id() == new.id() {
        let text = format!("the old key and the new one are the same, {}", old.id());
        return Err(StoreError::new(StoreErrorKind::Invalid, text));
    }
    let (mut done, mut after) = (Rotation::default(), None::<String>);
    loop {
        let page = store.list(KEYS, after.as_deref(), PAGE)?;
        let Some(last) = page.last() else { return Ok(done) };
        after = Some(last.key.clone());
        // Every scope has its `first`, so none is met twice.
        for entry in &page {
            let Some(scope) = entry.key.strip_prefix(KEYS).and_then(|key| key.strip_suffix("/first")) else { continue };
            done.scopes = done.scopes.saturating_add(1);
            match ensure(store, scope, old, new)? {
                Ensured::Already => then(scope)?,
                Ensured::Now => {
                    done.rewrapped = done.rewrapped.saturating_add(1);
                    then(scope)?;
                }
                Ensured::Foreign => done.foreign = done.foreign.saturating_add(1),
            }
        }
    }
}

enum Ensured {
    Already,
    Now,
    Foreign,
}

/// Makes sure that `new` opens `scope`, by an object of its own where there is something of `old` to retire: that
/// is not `first`, which a retirement that was given up may still empty.
fn ensure(store: &dyn ObjectStore, scope: &str, old: &dyn KeyWrap, new: &dyn KeyWrap) -> StoreResult<Ensured> {
    if look_up_own(store, scope, new)?.is_some() {
        return Ok(Ensured::Already);
    }
    let Found::Key(key) = look_up(store, scope, old)? else {
        let is_ours = matches!(look_up(store, scope, new)?, Found::Key(_));
        return Ok(if is_ours { Ensured::Already } else { Ensured::Foreign });
    };
    let name = wrapped_name(scope, &new.id());
    let created = store.put_if_absent(&name, &wrapped(&key, new)?.encode()?)?;
    match look_up_own(store, scope, new)? {
        Some(found) if found.id != key.id => {
            let text = format!("{name} holds another data key than {}", first_name(scope));
            Err(StoreError::new(StoreErrorKind::Corrupt, text))
        }
        Some(_) if created == Created::Yes => Ok(Ensured::Now),
        Some(_) => Ok(Ensured::Already),
        None => {
            Err(StoreError::new(StoreErrorKind::Unavailable, format!("{name} was put and is not found: try again")))
        }
    }
}
