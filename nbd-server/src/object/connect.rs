//! The store behind a pool: opened, counted, sealed, and looked at before it is trusted.
//!
//! Invariants
//!   * nothing is put into a bucket that holds something else, nor into one without working conditional writes unless
//!     that was asked for: until both have been seen every request is refused;
//!   * a store that does not answer yet is asked again with the next request;
//!   * a store that hangs is given up after [`PATIENCE`]: a pool that has everything here opens without it.

use super::{open_store, probe, Metered, StoreOptions};
use crate::keys::SystemEntropy;
use blockstore::object::sealed::{KeyWrap, Plain, Sealed, MARKER};
use blockstore::object::{
    Created, ObjectEntry, ObjectStore, ObjectTier, Range, StoreError, StoreErrorKind, StoreResult,
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the first look may take: longer, and the store counts as not answering, while it is still being looked at.
const PATIENCE: Duration = Duration::from_secs(5);
/// What marks a bucket, or a prefix, as ours.
const MARK: &[u8] = b"cairn object store, version 1\n";

/// How a pool reaches its store.
pub struct ConnectOptions {
    /// `file:///folder` or `s3://bucket/prefix`.
    pub url: String,
    /// How to reach a bucket.
    pub store: StoreOptions,
    /// What wraps the keys that everything is encrypted with; without it nothing is.
    pub key: Option<Arc<dyn KeyWrap>>,
    /// The user says that nobody else writes there.
    pub single_writer: bool,
}

/// The counts of a store.
pub type Counted = Arc<Metered<Arc<dyn ObjectStore>>>;

/// A connected store.
pub struct Connected {
    /// For the pool.
    pub tier: ObjectTier,
    /// As the bucket has it, without keys: for replacing the key that wraps them.
    pub raw: Counted,
    guard: Arc<Guard>,
}

impl Connected {
    /// Opens the store; asks nothing of it.
    ///
    /// # Errors
    /// As [`open_store`].
    pub fn open(options: &ConnectOptions) -> StoreResult<Self> {
        let raw: Counted = Arc::new(Metered::new(open_store(&options.url, &options.store)?));
        let (url, single_writer) = (options.url.clone(), options.single_writer);
        let guard =
            Arc::new(Guard { first: Arc::new(First::new(url, raw.clone(), single_writer)), inner: raw.clone() });
        let guarded: Arc<dyn ObjectStore> = guard.clone();
        let store: Arc<dyn ObjectStore> = match &options.key {
            Some(key) => Arc::new(Sealed::new(guarded, key.clone(), Arc::new(SystemEntropy))),
            None => Arc::new(Plain::new(guarded)),
        };
        Ok(Self { tier: ObjectTier { store, entropy: Arc::new(SystemEntropy) }, raw, guard })
    }

    /// Looks at the store now.
    ///
    /// # Errors
    /// Why it cannot be used, or not yet.
    pub fn look(&self) -> StoreResult<()> {
        self.guard.first.look(PATIENCE)
    }
}

/// Lets requests through once the store has been looked at.
struct Guard {
    first: Arc<First>,
    inner: Counted,
}

impl Guard {
    fn inner(&self) -> StoreResult<&Counted> {
        self.first.look(PATIENCE)?;
        Ok(&self.inner)
    }
}

/// What is known of the first look.
enum Look {
    Not,
    Running,
    /// Somebody waited for this and has not heard of it.
    Failed(StoreError),
    Fine,
}

/// The first look at a store.
struct First {
    url: String,
    inner: Counted,
    single_writer: bool,
    look: Mutex<Look>,
    changed: Condvar,
}

impl First {
    fn new(url: String, inner: Counted, single_writer: bool) -> Self {
        Self { url, inner, single_writer, look: Mutex::new(Look::Not), changed: Condvar::new() }
    }

    fn locked(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, or waits for who does, at most this long.
    fn look(self: &Arc<Self>, patience: Duration) -> StoreResult<()> {
        let unavailable = |text: String| Err(StoreError::new(StoreErrorKind::Unavailable, text));
        let mut look = self.locked();
        if matches!(*look, Look::Not) {
            let first = self.clone();
            let run = move || {
                let outcome = first.examine();
                *first.locked() = outcome.map_or_else(Look::Failed, |()| Look::Fine);
                first.changed.notify_all();
            };
            if let Err(e) = std::thread::Builder::new().name("first-look".to_owned()).spawn(run) {
                return unavailable(format!("no thread to look at {}: {e}", self.url));
            }
            *look = Look::Running;
        }
        let running = |look: &mut Look| matches!(look, Look::Running);
        let (mut look, _) =
            self.changed.wait_timeout_while(look, patience, running).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *look, Look::Not) {
            Look::Fine => {
                *look = Look::Fine;
                Ok(())
            }
            Look::Running => {
                *look = Look::Running;
                let seconds = patience.as_secs_f32();
                unavailable(format!("{} has not answered for {seconds} s: check network and endpoint", self.url))
            }
            Look::Failed(e) => Err(e),
            // Another who waited has taken the failure.
            Look::Not => unavailable(format!("{} could not be looked at", self.url)),
        }
    }

    fn examine(&self) -> StoreResult<()> {
        let invalid = |text: String| Err(StoreError::new(StoreErrorKind::Invalid, text));
        match self.inner.get(MARKER, Range::All) {
            Ok(mark) if mark == MARK => {}
            Ok(_) => {
                return invalid(format!("{} was made by another version of cairn: use that one", self.url));
            }
            Err(e) if e.kind == StoreErrorKind::NotFound => {
                let strangers = self.inner.list("", None, 2)?;
                if let Some(stranger) = strangers.iter().find(|entry| !entry.key.starts_with("probe/")) {
                    return invalid(format!(
                        "{} holds something else ({}): give an empty bucket, or a prefix of its own",
                        self.url, stranger.key
                    ));
                }
                if !self.single_writer {
                    probe(&self.inner)?;
                }
                self.inner.put_if_absent(MARKER, MARK)?;
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        if !self.single_writer {
            probe(&self.inner)?;
        }
        Ok(())
    }
}

impl ObjectStore for Guard {
    fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
        self.inner()?.put(key, body)
    }
    fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
        self.inner()?.put_if_absent(key, body)
    }
    fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
        self.inner()?.get(key, range)
    }
    fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
        self.inner()?.list(prefix, after, max)
    }
    fn delete(&self, key: &str) -> StoreResult<()> {
        self.inner()?.delete(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &std::path::Path) -> Connected {
        let url = format!("file://{}", folder.display());
        let options = ConnectOptions { url, store: StoreOptions::default(), key: None, single_writer: false };
        Connected::open(&options).expect("the folder exists")
    }

    #[test]
    fn an_empty_folder_is_marked_and_a_strange_one_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path()).tier.store;
        store.put("volumes/disk/1", b"x").expect("the first request looks and goes on");
        open(folder.path()).look().expect("it is ours");
        let strange = tempfile::tempdir().expect("a folder");
        std::fs::write(strange.path().join("photo"), b"x").expect("a file");
        let refusal = open(strange.path()).tier.store.put("a", b"b").expect_err("not ours");
        assert!(refusal.message.contains("photo"), "{refusal}");
        assert_eq!(refusal.kind, StoreErrorKind::Invalid);
    }

    /// A folder whose gets wait for a word.
    struct Hanging(Arc<dyn ObjectStore>, Mutex<std::sync::mpsc::Receiver<()>>);

    impl ObjectStore for Hanging {
        fn put(&self, key: &str, body: &[u8]) -> StoreResult<()> {
            self.0.put(key, body)
        }
        fn put_if_absent(&self, key: &str, body: &[u8]) -> StoreResult<Created> {
            self.0.put_if_absent(key, body)
        }
        fn get(&self, key: &str, range: Range) -> StoreResult<Vec<u8>> {
            // An end of the channel is a word, too.
            let _ = self.1.lock().unwrap_or_else(PoisonError::into_inner).recv();
            self.0.get(key, range)
        }
        fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> StoreResult<Vec<ObjectEntry>> {
            self.0.list(prefix, after, max)
        }
        fn delete(&self, key: &str) -> StoreResult<()> {
            self.0.delete(key)
        }
    }

    #[test]
    fn a_store_that_hangs_is_given_up_and_used_when_it_answers() {
        let folder = tempfile::tempdir().expect("a folder");
        let (say, word) = std::sync::mpsc::channel();
        let files = open_store(&format!("file://{}", folder.path().display()), &StoreOptions::default());
        let store: Arc<dyn ObjectStore> = Arc::new(Hanging(files.expect("a store"), Mutex::new(word)));
        let first = Arc::new(First::new("the folder".to_owned(), Arc::new(Metered::new(store)), false));
        let begin = std::time::Instant::now();
        for _ in 0..3 {
            let error = first.look(Duration::from_millis(20)).expect_err("nothing is heard");
            assert!(error.kind == StoreErrorKind::Unavailable && error.message.contains("not answered"), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
        drop(say);
        first.look(Duration::from_secs(30)).expect("it answers");
        first.look(Duration::ZERO).expect("and is known");
    }
}
