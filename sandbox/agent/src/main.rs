//! The agent as a program of the guest: started by its init, runs until the guest ends; with words behind its name it does
//! one thing for the host; as `sprite-env` it asks the host for something.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(status) = cairn_agent::other_than_agent(&words) {
        return status;
    }
    match cairn_agent::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cairn-agent: {e}");
            ExitCode::FAILURE
        }
    }
}
