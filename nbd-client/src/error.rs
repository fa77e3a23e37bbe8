//! Why a session on an export ended, or a request failed.

use std::{fmt, io};

/// A failure of a session or of one request.
#[derive(Debug)]
pub enum Error {
    /// The connection broke.
    Connection(io::Error),
    /// The server does not let us have the export, in its words.
    Refused(String),
    /// The server answered a request with an error.
    Server {
        /// As the protocol numbers them (5 EIO, 28 ENOSPC).
        errno: u32,
        /// The server's words.
        why: String,
    },
    /// What came is not what the protocol says.
    Protocol(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(e) => write!(f, "the connection to the daemon broke: {e}"),
            Self::Refused(why) => write!(f, "the daemon refuses the export: {why}"),
            Self::Server { why, .. } => f.write_str(why),
            Self::Protocol(what) => write!(f, "the daemon does not speak NBD as expected: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Connection(e) => e,
            Error::Server { errno: 28, why } => Self::new(io::ErrorKind::StorageFull, why),
            other => Self::other(other.to_string()),
        }
    }
}
