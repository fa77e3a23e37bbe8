//! Where key-encryption keys come from: a file of this host, or a command that asks somebody else.
//!
//! Invariants
//!   * no key, wrapped or not, is in an error, in a log line or in an argument of a process;
//!   * a command cannot hold up its caller for longer than `COMMAND_TIME`, nor make it hold more than
//!     `OUTPUT_BYTES_MAX`.
//!
//! Not here: what the keys are for (`blockstore::object::sealed`).

mod command;
mod file;

pub use command::CommandKey;
pub use file::read_key_file;

use blockstore::object::Entropy;
use std::fs::File;
use std::io::Read;

/// The system's random bytes.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    /// # Panics
    /// If the system has no random bytes: there is nothing to go on with.
    fn fill(&self, buf: &mut [u8]) {
        let filled = File::open("/dev/urandom").and_then(|mut file| file.read_exact(buf));
        filled.expect("the system gives random bytes");
    }
}
