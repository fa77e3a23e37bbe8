//! One error type for the whole store: a small kind that tells the caller what to do, and a
//! sentence that tells a person what is wrong and how to mend it.

use std::fmt;
use std::io;

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request cannot be right in any state: mend the request.
    Invalid,
    /// The named volume or checkpoint does not exist.
    NotFound,
    /// The name is taken: choose another.
    Exists,
    /// Somebody else uses the pool or volume: wait, or stop them.
    Busy,
    /// Bytes on disk do not verify: restore from a checkpoint or another copy.
    Corrupt,
    /// No space is left: free some (trim, delete checkpoints) and retry.
    NoSpace,
    /// The pool stopped accepting changes after a failed sync: reopen it.
    Closed,
    /// What is asked for is in the object store: fetch it (`Pool::take_fetches`) and ask again.
    Absent,
    /// The object store does not answer: try again later.
    Unavailable,
    /// The object store refuses: mend its URL or the credentials.
    Denied,
    /// Another host has taken the volume over: this one must let go of it.
    Fenced,
    /// The operating system refused an operation on the pool's files.
    Io,
}

/// A failure of a store operation.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` explained by `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Whether the operating system says that there is no space left.
    pub(crate) fn is_no_space(source: &io::Error) -> bool {
        matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
            || source.kind() == io::ErrorKind::StorageFull
    }

    /// Wraps an operating-system error; a full disk keeps its own kind.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = if Self::is_no_space(&source) { ErrorKind::NoSpace } else { ErrorKind::Io };
        Self { kind, message: context.into(), source: Some(source) }
    }

    /// A sync failed: what it was to write may be gone, whatever the system calls its reason, and
    /// only recovery can tell.
    pub(crate) fn sync(context: &str, source: &io::Error) -> Self {
        Self::new(ErrorKind::Closed, format!("{context}: a sync failed: {source}"))
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
