//! The agent as a program of the guest: started by its init, runs until the guest ends.

use std::process::ExitCode;

fn main() -> ExitCode {
    match cairn_agent::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cairn-agent: {e}");
            ExitCode::FAILURE
        }
    }
}
