//! The `cairn` command.
//!
//! With a daemon on the pool a command goes to its control socket; without one it opens the pool
//! itself. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 exists or busy, 5 damaged,
//! 6 no space.

mod args;
mod client;
mod copy;
mod link;
mod logging;
mod nbd;
mod output;
mod requests;
mod serve;

use args::{Cli, Verb};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cairn: {}", failure.message);
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), client::Failure> {
    match &cli.verb {
        Verb::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "cairn", &mut std::io::stdout());
            Ok(())
        }
        Verb::Man { folder } => clap_mangen::generate_to(Cli::command(), folder).map_err(client::Failure::from),
        Verb::Serve(options) => serve::serve(cli, options),
        verb => requests::run(cli, verb),
    }
}
