//! `cairn serve --config FILE`: what flags say, as TOML.
//!
//! Invariants
//!   * the command line comes first, then the environment, then the file;
//!   * a key that is no flag of `serve`, and a value that its flag does not take, are refused: nothing is passed over.

use crate::args::Cli;
use crate::client::Failure;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Parser};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::{Table, Value};

/// Bytes of a file.
const FILE_MAX: u64 = 1 << 20;

/// The flags that may be keys: those of `serve`, and the pool.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let own = command.find_subcommand("serve").into_iter().flat_map(Command::get_arguments);
    let pool = command.get_arguments().filter(|arg| arg.get_id() == "pool");
    pool.chain(own).filter(|arg| !arg.is_hide_set() && !matches!(arg.get_long(), None | Some("config" | "help")))
}

/// What one value is on a command line.
fn word(key: &str, value: &Value, is_switch: bool) -> Result<Vec<OsString>, String> {
    let text = match value {
        Value::Boolean(on) if is_switch => return Ok(on.then(|| format!("--{key}").into()).into_iter().collect()),
        Value::String(text) if !is_switch => text.clone(),
        Value::Integer(number) if !is_switch => number.to_string(),
        Value::Float(number) if !is_switch => number.to_string(),
        Value::Boolean(on) => on.to_string(),
        Value::Array(all) if !is_switch => {
            let all = all.iter().map(|one| match one {
                Value::Array(_) => Err(format!("{key}: a list in a list")),
                one => word(key, one, false),
            });
            return all.collect::<Result<Vec<_>, _>>().map(|words| words.concat());
        }
        _ if is_switch => return Err(format!("{key} is true or false")),
        _ => return Err(format!("{key} is a text, a number, or a list of them")),
    };
    Ok(vec![format!("--{key}={text}").into()])
}

/// What the file adds to a command line that says what `given` has.
fn words(table: &Table, command: &Command, given: &ArgMatches) -> Result<Vec<OsString>, String> {
    let mut out = Vec::new();
    for (key, value) in table {
        let Some(flag) = flags(command).find(|flag| flag.get_long() == Some(key)) else {
            let known: Vec<&str> = flags(command).filter_map(Arg::get_long).collect();
            return Err(format!("there is no key {key:?}; there are: {}", known.join(", ")));
        };
        let said = given.value_source(flag.get_id().as_str());
        if matches!(said, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        out.extend(word(key, value, matches!(flag.get_action(), ArgAction::SetTrue))?);
    }
    Ok(out)
}

fn read(path: &Path) -> Result<Table, Failure> {
    let explain = Failure::of_file(path);
    let mut text = String::new();
    File::open(path).map_err(&explain)?.take(FILE_MAX).read_to_string(&mut text).map_err(&explain)?;
    text.parse().map_err(|e: toml::de::Error| wrong(path, e.to_string().trim_end()))
}

fn wrong(path: &Path, why: &str) -> Failure {
    Failure::new("invalid", format!("{}: {why}", path.display()))
}

/// The command line `args` with what the file at `path` adds.
pub fn merged(args: Vec<OsString>, path: &Path) -> Result<Cli, Failure> {
    let (table, command) = (read(path)?, Cli::command());
    let given = command.clone().get_matches_from(&args);
    let given = given.subcommand_matches("serve").ok_or_else(|| wrong(path, "it is for cairn serve"))?;
    let more = words(&table, &command, given).map_err(|why| wrong(path, &why))?;
    Cli::try_parse_from(args.into_iter().chain(more)).map_err(|e| {
        // What is wrong stands before the first empty line; how the command is used behind it.
        let text = e.render().to_string();
        let said: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        wrong(path, said.join(" ").trim_start_matches("error: "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;

    fn with(text: &str, more: &[&str]) -> Result<Cli, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cairn.toml");
        std::fs::write(&path, text).expect("a file");
        let path_text = path.to_str().expect("text");
        let args = ["cairn", "serve", "--config", path_text].into_iter().chain(more.iter().copied());
        merged(args.map(OsString::from).collect(), &path).map_err(|failure| failure.message)
    }

    #[test]
    fn a_file_says_what_flags_say_and_the_command_line_comes_first() {
        let text = "pool = '/a'\nnbd = ['unix:/x', 'unix:/y']\nlag = 5\nspares = 3\nsingle-writer = true\napi = '127.0.0.1:1'\n";
        let cli = with(text, &["--spares", "7"]).expect("a good file");
        let Verb::Serve(args) = &cli.verb else { panic!("it is serve") };
        assert_eq!((args.spares, args.lag, args.object.single_writer), (7, 5.0, true));
        assert_eq!((args.nbd.join(" "), args.api.api.map(|at| at.port())), ("unix:/x unix:/y".to_owned(), Some(1)));
        assert_eq!(cli.pool.as_deref(), Some(Path::new("/a")));
        let cli = with("single-writer = false\npool = '/a'", &["--pool", "/b"]).expect("a good file");
        assert_eq!(cli.pool.as_deref(), Some(Path::new("/b")));
    }

    #[test]
    fn what_a_file_must_not_say_is_told() {
        for (text, wanted) in [
            ("nothing = 1", "there is no key \"nothing\""),
            ("config = 'x'", "there is no key"),
            ("json = true", "there is no key"),
            ("single-writer = 'yes'", "single-writer is true or false"),
            ("[api]\nlisten = 'x'", "api is a text"),
            ("spares = 5000", "5000"),
            ("nbd = [['x']]", "a list in a list"),
            ("nbd = ", "1"),
            ("tls-cert = '/x'", "tls-key"),
        ] {
            let said = with(text, &[]).err().unwrap_or_default();
            assert!(said.contains(wanted) && said.contains("cairn.toml"), "{text}: {said}");
        }
    }
}
