//! The `cairn` command.
//!
//! With a daemon on the pool a command goes to its control socket; without one it opens the pool
//! itself. Errors go to standard error, as JSON when answers are JSON. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 exists or busy, 5 damaged,
//! 6 no space.

mod api;
mod api_args;
mod args;
mod beside;
mod bucket;
mod client;
mod config;
mod export;
mod files;
mod guest_args;
mod image;
mod import;
mod jail;
mod link;
mod logging;
mod mount;
mod output;
mod requests;
mod sandbox;
mod serve;
mod store;
mod vm;
mod vm_store;

use args::{Cli, Verb};
use clap::{CommandFactory, Parser};
use client::Failure;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and versions are no errors.
        Err(e) if e.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            let text = e.render().to_string();
            return fail(&Failure::new("invalid", text.trim().trim_start_matches("error: ")), true);
        }
        Err(e) => e.exit(),
    };
    let json = cli.json;
    match configured(cli).and_then(|cli| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, json),
    }
}

/// With what a file adds, if one was named.
fn configured(cli: Cli) -> Result<Cli, Failure> {
    match &cli.verb {
        Verb::Serve(args) => match &args.config {
            Some(path) => config::merged(std::env::args_os().collect(), path),
            None => Ok(cli),
        },
        _ => Ok(cli),
    }
}

fn fail(failure: &Failure, json: bool) -> ExitCode {
    if json {
        eprintln!("{}", failure.json());
    } else {
        let lines: Vec<String> = failure.message.split('\n').map(output::printable).collect();
        eprintln!("cairn: {}", lines.join("\n"));
    }
    ExitCode::from(failure.code())
}

/// Writes the man pages into `folder`, which is made if need be.
fn man(folder: &Path) -> Result<(), Failure> {
    let explain = Failure::of_file(folder);
    std::fs::create_dir_all(folder).map_err(&explain)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(explain)
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.verb {
        Verb::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "cairn", &mut std::io::stdout());
            Ok(())
        }
        Verb::Man { folder } => man(folder),
        Verb::Serve(options) => serve::serve(cli, options),
        Verb::Vm(verb) => vm::vm(cli, verb),
        Verb::Image(verb) => image::image(cli, verb),
        Verb::Token(verb) => api::token(cli, verb),
        Verb::ApiServer { api, log_level, log_format } => {
            logging::start(*log_level, *log_format);
            api::serve(cli, api)
        }
        Verb::Inspect(verb) => files::inspect(&requests::pool_folder(cli)?, verb),
        Verb::Doctor => vm::doctor(cli),
        Verb::Sandbox(verb) => sandbox::run(verb, cli.json),
        verb => requests::run(cli, verb),
    }
}
