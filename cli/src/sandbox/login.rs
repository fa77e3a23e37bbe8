//! `login`: a token for a server, tried once and kept.
//!
//! The token comes from a file, from standard input or from a terminal that does not show it; never from the command line, where every
//! process of this machine could read it.

use super::args::Server;
use super::credentials::{place, Credentials};
use super::fds::{read, wait, Signals};
use super::remote::{Content, Remote};
use super::url::{self, Url};
use crate::client::Failure;
use crate::output::print;
use serde_json::json;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

/// Bytes of a token at most.
const TOKEN_MAX: u64 = 4096;

/// The terminal without echo, until the value is dropped.
struct Silent(libc::termios);

impl Silent {
    fn begin() -> io::Result<Self> {
        // SAFETY: the calls fill and read plain memory that lives through them.
        unsafe {
            let mut before: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(0, &mut before) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut silent = before;
            silent.c_lflag &= !libc::ECHO;
            if libc::tcsetattr(0, libc::TCSAFLUSH, &silent) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(before))
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // SAFETY: the call reads plain memory that lives through it.
        unsafe { libc::tcsetattr(0, libc::TCSAFLUSH, &self.0) };
    }
}

/// A line from the terminal, which does not show it. A signal that would end us ends this first, so that the terminal is as it was.
fn asked(prompt: &str) -> Result<String, Failure> {
    let signals = Signals::take()?;
    let silent = Silent::begin()?;
    // Afterwards: who sees it can type without being seen.
    eprint!("{prompt}");
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    while !line.contains(&b'\n') && line.len() < TOKEN_MAX as usize {
        let [_, signal] = wait([Some((0, libc::POLLIN)), signals.wanted()], None)?;
        let number = signal.then(|| signals.next()).flatten().filter(|number| *number != libc::SIGWINCH);
        if let Some(number) = number {
            drop(silent);
            eprintln!();
            std::process::exit(128 + number);
        }
        if signal {
            continue;
        }
        match read(0, &mut buffer)? {
            None => {}
            Some(0) => break,
            Some(got) => line.extend(buffer.get(..got).unwrap_or_default()),
        }
    }
    drop(silent);
    eprintln!();
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

fn token(file: Option<&Path>, url: &Url) -> Result<String, Failure> {
    let mut text = String::new();
    if let Some(path) = file {
        let from = std::fs::File::open(path).map_err(Failure::of_file(path))?;
        from.take(TOKEN_MAX).read_to_string(&mut text).map_err(Failure::of_file(path))?;
    } else if io::stdin().is_terminal() {
        text = asked(&format!("Token for {} (cairn token create makes one, beside the pool): ", url.text))?;
    } else {
        io::stdin().lock().take(TOKEN_MAX).read_line(&mut text)?;
    }
    Ok(text.trim().to_owned())
}

/// `login`.
pub fn login(url: Option<&str>, file: Option<&Path>, server: &Server, json: bool) -> Result<(), Failure> {
    let path =
        place().ok_or_else(|| Failure::new("invalid", "where is the token to be kept? set HOME or XDG_CONFIG_HOME"))?;
    let from_environment = std::env::var("CAIRN_URL").ok().filter(|url| !url.is_empty());
    let url = Url::parse(url.or(from_environment.as_deref()).unwrap_or(url::DEFAULT))?;
    if !url.tls && !url.is_near() && !json {
        eprintln!("cairn: {} is not encrypted: whoever is on the way can read the token", url.text);
    }
    let token = token(file, &url)?;
    let remote = Remote::new(url.clone(), token.clone(), server.ca_file.as_deref())?;
    let answer = remote.ask("GET", "/v1/organization", Content::Nothing)?;
    let mut kept = Credentials::load(&path)?;
    let ca_file = server.ca_file.as_deref().filter(|_| url.tls).map(std::path::absolute).transpose()?;
    kept.keep(&url.text, &token, ca_file);
    kept.save(&path)?;
    print(&json!({"url": url.text, "organization": answer["organization"]["slug"], "kept_in": path}), json, &[]);
    for key in ["CAIRN_TOKEN", "CAIRN_URL"] {
        if std::env::var_os(key).is_some_and(|set| !set.is_empty()) && !json {
            eprintln!("cairn: {key} is set, and goes before what was kept now");
        }
    }
    Ok(())
}
