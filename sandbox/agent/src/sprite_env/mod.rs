//! `sprite-env`: what a machine can ask of its host from within, as a command. Another name of the agent's binary.
//!
//! It exits with 0; 1 when the host refuses or fails; 2 when it was asked in a way that it does not understand; 3 when the
//! host cannot be reached.

mod http;
mod show;

use crate::place::COMMAND;
use http::Answer;
use serde_json::{json, Value};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = include_str!("help.txt");
/// Longest answer that is read as a whole; lists of thousands of checkpoints are far shorter.
const ANSWER_MAX: u64 = 16 << 20;

/// What went wrong.
enum Trouble {
    /// The host refuses, or failed.
    Refused(String),
    /// Nobody understands what was asked.
    Usage(String),
    /// The host is not there.
    Unreachable(String),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Refused(match e.kind() {
            io::ErrorKind::ConnectionReset => http::cut().to_string(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the host does not answer: try again".to_owned(),
            _ => e.to_string(),
        })
    }
}

/// What is wanted besides the command.
struct Options {
    json: bool,
    sockets: Vec<PathBuf>,
    comment: Option<String>,
    history: Option<String>,
    include_auto: bool,
    words: Vec<String>,
}

impl Options {
    fn of(args: &[String]) -> Result<Self, Trouble> {
        let (json, include_auto, comment, history, words) = (false, false, None, None, Vec::new());
        let mut options = Self { json, sockets: http::sockets(), comment, history, include_auto, words };
        let mut rest = args.iter();
        while let Some(word) = rest.next() {
            let (name, within) = match word.split_once('=').filter(|(name, _)| name.starts_with("--")) {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let mut value = || {
                let found = within.clone().or_else(|| rest.next().cloned());
                found.ok_or_else(|| Trouble::Usage(format!("{name} needs a value behind it")))
            };
            match name {
                "--json" => options.json = true,
                "--include-auto" => options.include_auto = true,
                "--comment" => options.comment = Some(value()?),
                "--history" => options.history = Some(value()?),
                "--socket" => options.sockets = vec![PathBuf::from(value()?)],
                _ if name.starts_with('-') && name.len() > 1 => {
                    return Err(Trouble::Usage(format!("there is no option {name}")));
                }
                _ => options.words.push(word.clone()),
            }
        }
        Ok(options)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Result<Answer, Trouble> {
        let stream = http::connect(&self.sockets).map_err(|e| {
            let (at, why) = (self.sockets.first().map_or(Path::new(""), PathBuf::as_path).display(), e.kind());
            Trouble::Unreachable(match why {
                io::ErrorKind::NotFound => {
                    format!("{at} is not there: this machine is not run by a host with a sandbox API")
                }
                io::ErrorKind::ConnectionRefused => format!("nobody listens on {at}: the host's API does not run now"),
                _ => format!("{at}: {e}"),
            })
        })?;
        Ok(http::ask(stream, method, path, body)?)
    }

    /// A whole answer that is no refusal, as JSON.
    fn value(&self, method: &str, path: &str) -> Result<Value, Trouble> {
        let answer = self.ask(method, path, None)?;
        let is_good = answer.status < 300;
        let text = answer.body.text(ANSWER_MAX)?;
        match serde_json::from_str(&text) {
            Ok(value) if is_good => Ok(value),
            _ if is_good => Err(Trouble::Refused("the host's answer is no JSON".to_owned())),
            _ => Err(Trouble::Refused(reason(&text))),
        }
    }
}

/// Why a host refuses.
fn reason(text: &str) -> String {
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    let found = said["message"].as_str().or(said["error"].as_str()).or(said["errors"][0].as_str());
    let plain = if text.trim().is_empty() { "the host refuses" } else { text.trim() };
    show::printable(found.unwrap_or(plain))
}

/// Prints, in such a way that a pipe that is closed is no fault.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// The path of a checkpoint. What is no plain name is no checkpoint's, and cannot become another path.
fn path_of(id: &str) -> Result<String, Trouble> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !id.is_empty() && id.chars().all(is_plain) && !id.starts_with('.') {
        return Ok(format!("/v1/checkpoints/{id}"));
    }
    Err(Trouble::Usage(format!("{id:?} is no checkpoint's name: they are called v1, v2, ...")))
}

fn list(options: &Options) -> Result<(), Trouble> {
    let mut query = Vec::new();
    query.extend(options.include_auto.then(|| "includeAuto=true".to_owned()));
    if let Some(id) = &options.history {
        path_of(id)?;
        query.push(format!("history={id}"));
    }
    let mark = if query.is_empty() { "" } else { "?" };
    let all = options.value("GET", &format!("/v1/checkpoints{mark}{}", query.join("&")))?;
    print(&if options.json { pretty(&all) } else { show::list(&all) });
    Ok(())
}

/// Tells what the host tells line by line; the last line says how it went.
fn told(options: &Options, path: &str, body: Option<&str>, quiet: bool) -> Result<String, Trouble> {
    let answer = options.ask("POST", path, body)?;
    if answer.status >= 300 {
        return Err(Trouble::Refused(reason(&answer.body.text(ANSWER_MAX)?)));
    }
    let mut end = None;
    for line in BufReader::new(answer.body).lines() {
        let line = line?;
        if options.json && !line.is_empty() {
            print(&line);
        }
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        match (said["type"].as_str(), said["data"].as_str().or(said["error"].as_str())) {
            (Some("complete"), Some(text)) => end = Some(Ok(show::printable(text))),
            (Some("error"), Some(text)) => end = Some(Err(Trouble::Refused(show::printable(text)))),
            (Some("info"), Some(text)) if !options.json && !quiet => print(&show::printable(text)),
            _ => {}
        }
    }
    end.unwrap_or_else(|| Err(Trouble::Refused("the host did not say how it went: look with list".to_owned())))
}

fn create(options: &Options) -> Result<(), Trouble> {
    let body = json!({"comment": options.comment.as_deref().unwrap_or_default()}).to_string();
    let text = told(options, "/v1/checkpoint", Some(&body), true)?;
    if !options.json {
        print(&text);
    }
    Ok(())
}

fn restore(options: &Options, id: &str) -> Result<(), Trouble> {
    told(options, &format!("{}/restore", path_of(id)?), None, true)?;
    if !options.json {
        print(&format!(
            "Restoring {id}: the machine restarts now, and every process in it ends, this one's shell included.\n\
             What the disk was until now is kept: sprite-env checkpoints list --include-auto"
        ));
    }
    Ok(())
}

fn delete(options: &Options, id: &str) -> Result<(), Trouble> {
    let answer = options.ask("DELETE", &path_of(id)?, None)?;
    if answer.status >= 300 {
        return Err(Trouble::Refused(reason(&answer.body.text(ANSWER_MAX)?)));
    }
    print(&if options.json { pretty(&json!({"deleted": id})) } else { format!("Checkpoint {id} deleted") });
    Ok(())
}

/// A path of a file as a query says it.
fn query_of(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// What was in a folder.
fn files(options: &Options, id: &str, path: &str) -> Result<(), Trouble> {
    let found = options.value("GET", &format!("{}/fs/list?path={}", path_of(id)?, query_of(path)))?;
    print(&if options.json { pretty(&found) } else { show::files(&found) });
    Ok(())
}

/// Which files differ between two states.
fn differences(options: &Options, id: &str, other: &str) -> Result<(), Trouble> {
    path_of(other)?;
    let found = options.value("GET", &format!("{}/diff/{other}", path_of(id)?))?;
    print(&if options.json { pretty(&found) } else { show::differences(&found) });
    Ok(())
}

/// A file as it was.
fn cat(options: &Options, id: &str, path: &str) -> Result<(), Trouble> {
    let mut answer = options.ask("GET", &format!("{}/fs/read?path={}", path_of(id)?, query_of(path)), None)?;
    if answer.status >= 300 {
        return Err(Trouble::Refused(reason(&answer.body.text(ANSWER_MAX)?)));
    }
    let mut out = io::stdout().lock();
    io::copy(&mut answer.body, &mut out)?;
    Ok(out.flush()?)
}

/// A request as it is said, and the answer as it comes.
fn api(options: &Options, method: &str, path: &str, body: Option<&str>) -> Result<(), Trouble> {
    let is_word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    if !is_word(method) || !is_word(path) || !path.starts_with('/') {
        return Err(Trouble::Usage("say a method and a path: sprite-env api GET /v1/checkpoints".to_owned()));
    }
    let mut answer = options.ask(method, path, body)?;
    let mut out = io::stdout().lock();
    io::copy(&mut answer.body, &mut out)?;
    out.flush()?;
    match answer.status {
        ..300 => Ok(()),
        status => Err(Trouble::Refused(format!("the host answers with status {status}"))),
    }
}

/// The machine's own curl, over the host's socket. A path stands for the host's address.
fn curl(options: &Options, words: &[String]) -> Result<(), Trouble> {
    let socket = options.sockets.iter().find(|socket| socket.exists()).or(options.sockets.first());
    let place = |word: &String| if word.starts_with("/v1/") { format!("http://sprite{word}") } else { word.clone() };
    let mut command = Command::new("curl");
    command.arg("--unix-socket").args(socket).args(words.iter().map(place));
    Err(Trouble::Usage(format!("curl cannot be started: {}: use sprite-env api", command.exec())))
}

fn carry_out(args: &[String]) -> Result<(), Trouble> {
    let curls = args.first().is_some_and(|word| word == "curl");
    if !curls && args.iter().any(|word| word == "--help" || word == "-h") || args.is_empty() {
        print(HELP.trim_end());
        return Ok(());
    }
    if curls {
        return curl(&Options::of(&[])?, args.get(1..).unwrap_or_default());
    }
    let options = Options::of(args)?;
    let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["help"] | ["checkpoints" | "checkpoint", "help"] => print(HELP.trim_end()),
        ["info"] => {
            let info = options.value("GET", "/v1/info")?;
            print(&if options.json { pretty(&info) } else { show::fields(&info) });
        }
        ["checkpoints" | "checkpoint", "list" | "ls"] => list(&options)?,
        ["checkpoints" | "checkpoint", "get" | "info", id] => {
            let found = options.value("GET", &path_of(id)?)?;
            print(&if options.json { pretty(&found) } else { show::fields(&found) });
        }
        ["checkpoints" | "checkpoint", "create"] => create(&options)?,
        ["checkpoints" | "checkpoint", "restore", id] => restore(&options, id)?,
        ["checkpoints" | "checkpoint", "delete" | "rm", id] => delete(&options, id)?,
        ["checkpoints" | "checkpoint", "files", id] => files(&options, id, "/")?,
        ["checkpoints" | "checkpoint", "files", id, path] => files(&options, id, path)?,
        ["checkpoints" | "checkpoint", "cat", id, path] => cat(&options, id, path)?,
        ["checkpoints" | "checkpoint", "diff", id] => differences(&options, id, "Current")?,
        ["checkpoints" | "checkpoint", "diff", id, other] => differences(&options, id, other)?,
        ["api", method, path] => api(&options, method, path, None)?,
        ["api", method, path, body] => api(&options, method, path, Some(body))?,
        _ => return Err(Trouble::Usage(format!("there is no command {:?}", words.join(" ")))),
    }
    Ok(())
}

/// Carries out what the command line says.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let (text, code) = match carry_out(args) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Trouble::Refused(text)) => (text, 1),
        Err(Trouble::Usage(text)) => (format!("{text}\nsprite-env --help tells what there is"), 2),
        Err(Trouble::Unreachable(text)) => (text, 3),
    };
    let _ = writeln!(io::stderr(), "{COMMAND}: {text}");
    ExitCode::from(code)
}
