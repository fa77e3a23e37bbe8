//! What the host has done in the guest by running the agent as a command: `cairn-agent fs …`, `proxy`,
//! `ports`, `watch`, `relay`, `as`.
//!
//! Such a command is a process like any other: it has the rights of whoever it was started as, its output is taken as
//! fast as the host takes it, and it ends with its connection. Answers are JSON on standard output, an error is
//! one line of JSON on standard error and exit status 1.

mod account;
mod entry;
mod fs;
mod ports;
mod proxy;
mod watch;

use crate::place::ROOT;
use serde_json::json;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Why a verb failed.
pub(crate) struct Failure {
    error: io::Error,
    path: String,
}

impl Failure {
    pub(crate) fn of(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |error| Self { error, path: path.to_string_lossy().into_owned() }
    }

    /// The field's name for the reason.
    fn code(&self) -> &'static str {
        match self.error.raw_os_error() {
            Some(libc::ENOENT) => "ENOENT",
            Some(libc::EEXIST) => "EEXIST",
            Some(libc::ENOTDIR) => "ENOTDIR",
            Some(libc::EISDIR) => "EISDIR",
            Some(libc::EACCES) => "EACCES",
            Some(libc::EPERM | libc::EROFS) => "EPERM",
            // A program that runs, or a mount's folder.
            Some(libc::EBUSY | libc::ETXTBSY) => "EBUSY",
            Some(libc::ENOTEMPTY) => "ENOTEMPTY",
            Some(libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP | libc::EXDEV | libc::ENXIO | libc::EFBIG) => "EINVAL",
            Some(libc::ENOSPC | libc::EDQUOT) => "ENOSPC",
            _ if self.error.kind() == io::ErrorKind::InvalidInput => "EINVAL",
            _ => "EIO",
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { error, path: String::new() }
    }
}

fn usage() -> Failure {
    io::Error::new(io::ErrorKind::InvalidInput, "the agent was not asked in a way that it understands").into()
}

/// Carries out the verb that the command line names.
pub(crate) fn carry_out(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["fs", rest @ ..] => fs::carry_out(rest),
        ["proxy", host, port] => proxy::carry_out(host, port),
        ["ports"] => ports::watch(),
        ["watch", rest @ ..] => watch::carry_out(rest),
        ["relay"] => crate::relay::carry_out(Path::new(ROOT)).map_err(Failure::from),
        ["relay", "--at", root] => crate::relay::carry_out(Path::new(root)).map_err(Failure::from),
        _ => Err(usage()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, message) = (failure.code(), failure.error.to_string());
            let _ = writeln!(io::stderr(), "{}", json!({"code": code, "error": message, "path": failure.path}));
            ExitCode::FAILURE
        }
    }
}

/// Becomes a user of the guest and then a command, if the words behind the program's name ask for that.
pub fn run_as(args: &[std::ffi::OsString]) -> Option<ExitCode> {
    match args {
        [verb, rest @ ..] if verb == "as" => Some(account::run_as(rest)),
        _ => None,
    }
}

/// Writes one line of JSON.
pub(crate) fn tell(value: &serde_json::Value) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writing over a program that runs was told as a failure of the disk.
    #[test]
    fn what_is_the_callers_doing_is_no_failure_of_the_disk() {
        let code = |number: i32| Failure::from(io::Error::from_raw_os_error(number)).code();
        assert_eq!((code(libc::ETXTBSY), code(libc::EBUSY), code(libc::EROFS)), ("EBUSY", "EBUSY", "EPERM"));
        assert_eq!((code(libc::EXDEV), code(libc::ENOENT), code(libc::EIO)), ("EINVAL", "ENOENT", "EIO"));
    }
}
