//! `list`: the sandboxes of an organization, once or for as long as somebody watches.

use super::args::Server;
use super::remote::{Content, Remote};
use super::table::{colours, lines};
use super::url::query;
use crate::client::Failure;
use serde_json::{json, Value};
use std::io::{self, IsTerminal, Write};

/// Pages of a list: fifty names each.
const PAGES_MAX: usize = 400;
const COLUMNS: [&str; 5] = ["name", "status", "create_time", "labels", "url"];

/// All sandboxes whose name begins so.
fn all(remote: &Remote, prefix: &str) -> Result<Vec<Value>, Failure> {
    let (mut found, mut token) = (Vec::new(), String::new());
    for _ in 0..PAGES_MAX {
        let words = query(&[("prefix", prefix), ("max_results", "50"), ("continuation_token", &token)]);
        let mut page = remote.ask("GET", &format!("/v1/sprites{words}"), Content::Nothing)?;
        if let Some(sprites) = page["sprites"].as_array_mut() {
            found.append(sprites);
        }
        match page["next_continuation_token"].as_str().filter(|next| page["has_more"] == true && *next != token) {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    Ok(found)
}

fn rows(found: &[Value]) -> Vec<Value> {
    let row = |sandbox: &Value| {
        json!({"name": sandbox["name"], "status": sandbox["status"], "create_time": sandbox["created_at"],
            "labels": sandbox["labels"], "url": sandbox["url"]})
    };
    found.iter().map(row).collect()
}

/// `list`.
pub fn list(server: &Server, prefix: &str, watch: bool, as_json: bool) -> Result<(), Failure> {
    let remote = Remote::found(server)?;
    if watch {
        return follow(&remote, prefix, as_json);
    }
    let found = all(&remote, prefix)?;
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{}", Value::Array(found))?;
        return Ok(());
    }
    for line in lines(&rows(&found), &COLUMNS, colours()) {
        let _ = writeln!(out, "{line}");
    }
    if found.is_empty() && out.is_terminal() {
        eprintln!("cairn: no sandboxes at {}: cairn create NAME makes one", remote.url.text);
    }
    Ok(())
}

/// Shows the list anew whenever something changes, or tells each change in a line, where there is no terminal to show it on.
fn follow(remote: &Remote, prefix: &str, as_json: bool) -> Result<(), Failure> {
    let mut drawn = 0;
    let is_screen = io::stdout().is_terminal() && !as_json;
    let mut shown = Vec::new();
    remote.lines("GET", "/v1/sprites", Content::Nothing, &mut |line| {
        let mut out = io::stdout().lock();
        if is_screen {
            let now = lines(&rows(&all(remote, prefix)?), &COLUMNS, colours());
            if now != shown {
                // Up to where the list began, and over it: a screen that is not cleared does not flicker.
                let up = if drawn > 0 { format!("\x1b[{drawn}A\r") } else { String::new() };
                let text: String = now.iter().map(|line| format!("{line}\x1b[K\n")).collect();
                out.write_all(format!("{up}{text}\x1b[J").as_bytes())?;
                (drawn, shown) = (now.len(), now);
            }
        } else if let Some(name) = line["name"].as_str().filter(|name| name.starts_with(prefix)) {
            let text = match as_json {
                true => line.to_string(),
                false => format!(
                    "{} {name} {}",
                    line["timestamp"].as_str().unwrap_or("-"),
                    line["status"].as_str().unwrap_or("-")
                ),
            };
            writeln!(out, "{text}")?;
        }
        out.flush()?;
        Ok(true)
    })?;
    Err(Failure::new("io", format!("{} ended what it tells: it was stopped", remote.url.text)))
}
