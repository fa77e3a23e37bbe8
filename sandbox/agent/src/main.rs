//! The agent as a program of the guest: started by its init, runs until the guest ends; with words behind its name it does
//! one thing for the host.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if !args.is_empty() {
        return cairn_agent::carry_out(&args);
    }
    match cairn_agent::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cairn-agent: {e}");
            ExitCode::FAILURE
        }
    }
}
