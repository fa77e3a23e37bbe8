//! The one error type: what kind it is, and what to tell a person.

use std::fmt;
use std::io;
use std::path::Path;

/// What a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ask for something else.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// There is one already.
    Exists,
    /// Somebody else uses it: try later.
    Busy,
    /// The guest, the VMM or this machine failed.
    Failed,
    /// A program or a device that this machine lacks.
    Missing,
}

/// Why something was not done.
#[derive(Debug)]
pub struct Error {
    /// What a caller can do about it.
    pub kind: Kind,
    /// For a person.
    pub message: String,
}

/// What most functions here return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Names the file that a failure of the system is about.
    pub fn of_file(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |e| {
            let kind = if e.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Failed };
            Self::new(kind, format!("{}: {e}", path.display()))
        }
    }

    /// The same error, with what was being done.
    pub fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::failed(error.to_string())
    }
}
