//! `exec`, `console` and `sessions`: commands in a sandbox, and this terminal.
//!
//! The exit status is the command's. When the connection is lost it is 1, and a line says so; what the terminal was before it is again,
//! whatever ends us.

use super::args::{ExecArgs, SessionVerb};
use super::fds::{Outlet, Signals};
use super::ports::{forward_all, Voice};
use super::push::{guest_path, put};
use super::remote::{Content, Sandbox};
use super::socket::Socket;
use super::table::table;
use super::talk::{End, Ends, Talk};
use super::url::encoded;
use crate::client::Failure;
use crate::output::print;
use serde_json::{json, Value};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tungstenite::Bytes;
use vmm_glue::Terminal;

/// The best shell that the guest has, as a login would start it.
const SHELL: &str = "for shell in \"$SHELL\" bash sh; do \
                     command -v \"$shell\" >/dev/null 2>&1 && exec \"$shell\" -l; done; exec /bin/sh";
/// How long a command runs before its ports are looked after: most are over by then.
const FORWARD_AFTER: Duration = Duration::from_secs(1);
/// How long a session may take to end by a signal.
const KILL: &str = "10s";
/// What a program in the guest may have turned on, and would leave on: the mouse, pasting in brackets, a hidden cursor, colours.
const SOBER: &[u8] = b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m\r\n";
/// How long that may take.
const SOBERING: Duration = Duration::from_millis(500);

/// A command that is to be begun.
#[derive(Default)]
pub struct Wanted<'a> {
    pub command: &'a [String],
    pub env: &'a [String],
    pub dir: Option<&'a str>,
    pub tty: bool,
}

impl Wanted<'_> {
    fn query(&self) -> String {
        let size = Terminal::size();
        let (rows, columns) = (size.rows.to_string(), size.columns.to_string());
        let mut pairs: Vec<(&str, &str)> = self.command.iter().map(|word| ("cmd", word.as_str())).collect();
        pairs.extend(self.command.first().map(|word| ("path", word.as_str())));
        pairs.push(("stdin", "true"));
        pairs.extend(self.env.iter().map(|variable| ("env", variable.as_str())));
        pairs.extend(self.dir.map(|dir| ("dir", dir)));
        if self.tty {
            pairs.extend([("tty", "true"), ("rows", &rows), ("cols", &columns)]);
        }
        super::url::query(&pairs)
    }
}

/// Begins a command.
pub fn begun(sandbox: &Sandbox, wanted: &Wanted<'_>) -> Result<Talk, Failure> {
    open(sandbox, &format!("/exec{}", wanted.query()))
}

fn open(sandbox: &Sandbox, path: &str) -> Result<Talk, Failure> {
    let socket = Socket::open(&sandbox.remote, &sandbox.path(path)).map_err(|failure| sandbox.named(failure))?;
    Talk::begin(socket).map_err(|e| sandbox.remote.broken(&e))
}

/// The end, or what is to be said of a lost connection.
pub fn status_of(ended: io::Result<End>, sandbox: &Sandbox) -> Result<End, Failure> {
    ended.map_err(|e| sandbox.remote.broken(&e))
}

/// Lets a command have this terminal, and ends this process as the command ends. `keys`: Ctrl-\ leaves it.
fn carry(sandbox: Sandbox, talk: Talk, keys: bool, forward: Option<Duration>, json: bool) -> Result<(), Failure> {
    let (id, tty) = (talk.running.id.clone(), talk.running.tty);
    let signals = Signals::take()?;
    let terminal = if tty { Terminal::raw()? } else { None };
    let sandbox = Arc::new(sandbox);
    if let Some(after) = forward {
        forward_all(sandbox.clone(), Voice { raw: terminal.is_some(), json }, after);
    }
    let ended = talk.run(&Ends::own(), &signals, keys);
    let is_raw = terminal.is_some();
    drop(terminal);
    if is_raw && !matches!(ended, Ok(End::Exited(_))) {
        // A terminal that nobody reads may take none of it.
        let mut screen = Outlet::new(1);
        screen.put(Bytes::from_static(SOBER));
        screen.go_for(SOBERING);
    }
    // From here on who wants to end us can.
    drop(signals);
    let code = match status_of(ended, &sandbox)? {
        End::Exited(code) => i32::from(code),
        End::Left => {
            let again = format!("cairn sessions attach -s {} {id}", sandbox.name);
            match json {
                true => eprintln!("{}", json!({"left": id, "sandbox": sandbox.name})),
                false => eprintln!("cairn: session {id} goes on without you; back to it: {again}"),
            }
            0
        }
        End::Unread => 128 + libc::SIGPIPE,
        End::Told(signal) => 128 + signal,
    };
    if code == 0 {
        return Ok(());
    }
    std::process::exit(code);
}

/// `exec`.
pub fn exec(args: &ExecArgs, json: bool) -> Result<(), Failure> {
    for variable in &args.env {
        if variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            return Err(Failure::new("invalid", format!("--env {variable:?}: write NAME=VALUE")));
        }
    }
    let sandbox = Sandbox::found(args.at.sandbox.as_deref(), &args.at.server)?;
    for pair in &args.file {
        let parts = pair.split_once(':').filter(|(source, _)| !source.is_empty());
        let (source, dest) = parts.ok_or_else(|| {
            Failure::new("invalid", format!("--file {pair:?}: write SRC:DEST, as in a.txt:/root/a.txt"))
        })?;
        let (source, dest) = (Path::new(source), guest_path(dest)?);
        let mut file = File::open(source).map_err(Failure::of_file(source))?;
        let meta = file.metadata().map_err(Failure::of_file(source))?;
        if !meta.is_file() {
            return Err(Failure::new("invalid", format!("--file {}: it is no file", source.display())));
        }
        put(&sandbox, dest, meta.mode() & 0o777, Some(meta.len()), &mut file)?;
    }
    let mut env = args.env.clone();
    if args.tty {
        env.extend(term(&env));
    }
    let wanted = Wanted { command: &args.command, env: &env, dir: args.dir.as_deref(), tty: args.tty };
    let talk = begun(&sandbox, &wanted)?;
    carry(sandbox, talk, false, (!args.no_port_forward).then_some(FORWARD_AFTER), json)
}

/// What kind of terminal this is, unless that was said.
fn term(said: &[String]) -> Option<String> {
    let own = std::env::var("TERM").ok().filter(|term| !term.is_empty() && term != "dumb")?;
    (!said.iter().any(|variable| variable.starts_with("TERM="))).then(|| format!("TERM={own}"))
}

/// `console`.
pub fn console(sandbox: Sandbox, no_port_forward: bool, json: bool) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        let text = "a console needs a terminal: use cairn exec -- COMMAND, or cairn exec -t for one without keys";
        return Err(Failure::new("invalid", text));
    }
    let command = ["sh", "-c", SHELL].map(str::to_owned);
    let env: Vec<String> = term(&[]).into_iter().collect();
    let talk = begun(&sandbox, &Wanted { command: &command, env: &env, dir: None, tty: true })?;
    if !json {
        eprintln!("cairn: {}; Ctrl-\\ leaves this session, which then goes on", sandbox.name);
    }
    carry(sandbox, talk, true, (!no_port_forward).then_some(Duration::ZERO), json)
}

/// `sessions`.
pub fn sessions(verb: &SessionVerb, json: bool) -> Result<(), Failure> {
    let (SessionVerb::List { at } | SessionVerb::Attach { at, .. } | SessionVerb::Kill { at, .. }) = verb;
    let sandbox = Sandbox::found(at.sandbox.as_deref(), &at.server)?;
    match verb {
        SessionVerb::List { .. } => {
            let answer = sandbox.ask("GET", "/exec", Content::Nothing)?;
            if json {
                print(&answer["sessions"], true, &[]);
                return Ok(());
            }
            let all = answer["sessions"].as_array().into_iter().flatten().map(|session| {
                let yes = |key: &str| if session[key] == true { "yes" } else { "no" };
                json!({"id": session["id"], "tty": yes("tty"), "active": yes("is_active"),
                    "create_time": session["created"], "command": session["command"]})
            });
            table(&all.collect::<Vec<_>>(), &["id", "tty", "active", "create_time", "command"]);
            Ok(())
        }
        SessionVerb::Attach { id, no_port_forward, .. } => {
            let talk =
                open(&sandbox, &format!("/exec/{}", encoded(id))).map_err(|failure| gone(&sandbox, id, failure))?;
            carry(sandbox, talk, true, (!no_port_forward).then_some(Duration::ZERO), json)
        }
        SessionVerb::Kill { id, signal, .. } => {
            let signal = format!("SIG{}", signal.trim_start_matches("SIG"));
            let words = super::url::query(&[("signal", &signal), ("timeout", KILL)]);
            let path = sandbox.path(&format!("/exec/{}/kill{words}", encoded(id)));
            let mut code = Value::Null;
            let told = sandbox.remote.lines("POST", &path, Content::Nothing, &mut |line| {
                if line["type"] == "complete" {
                    code = line["exit_code"].clone();
                }
                Ok(true)
            });
            told.map_err(|failure| gone(&sandbox, id, sandbox.named(failure)))?;
            print(&json!({"killed": id, "signal": signal, "exit_code": code}), json, &[]);
            Ok(())
        }
    }
}

/// A session that is not there is said to be so.
fn gone(sandbox: &Sandbox, id: &str, failure: Failure) -> Failure {
    if failure.kind == "not_found" && failure.message.contains("session") {
        let text = format!("no session {id} runs in {}: cairn sessions list -s {}", sandbox.name, sandbox.name);
        return Failure::new("not_found", text);
    }
    failure
}
