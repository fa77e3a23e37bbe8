//! The agent: carries out what the host of a guest asks for, one connection per virtio-serial port.
//!
//! Invariants
//!   * memory is bounded for each connection: output is not read while what was read before waits for the host, and
//!     standard input comes only as far as it was credited;
//!   * a connection that ends takes its command with it, and thaws what it has frozen;
//!   * frozen file systems are thawed by a deadline, whether or not the host still lives.
//!
//! The host is trusted: it could change the guest's disk at will.

mod child;
mod freeze;
mod place;
mod ports;
mod relay;
mod session;
mod sprite_env;
mod sys;
mod system;
mod verbs;

pub use ports::run;
pub use session::serve;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// What the binary is called as decides what it is: `sprite-env`, or with words behind its name a verb of the host's.
/// `None` when it is the agent itself. `words` begin with the name.
pub fn other_than_agent(words: &[OsString]) -> Option<ExitCode> {
    let (name, args) = words.split_first()?;
    // Whom a command's words are for takes them as they are.
    if let Some(status) = verbs::run_as(args) {
        return Some(status);
    }
    let args: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    match Path::new(name).file_name() {
        Some(name) if name == place::COMMAND => Some(sprite_env::run(&args)),
        _ if args.is_empty() => None,
        _ => Some(verbs::carry_out(&args)),
    }
}
