//! `list`: the sandboxes of an organization, once or for as long as somebody watches.

use super::args::Server;
use super::remote::{Content, Remote};
use super::table::{colours, lines};
use super::url::query;
use crate::client::Failure;
use serde_json::{json, Value};
use std::io::{self, IsTerminal, Write};
use vmm_glue::Terminal;

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

/// As many lines as a screen has room for, so that its first is still there to be drawn over.
fn fitting(mut all: Vec<String>, screen: u16) -> Vec<String> {
    let room = usize::from(screen).saturating_sub(2).max(1);
    let more = all.len().saturating_sub(room);
    if more > 0 {
        all.truncate(room);
        all.push(format!("… and {more} more: use --prefix"));
    }
    all
}

/// Shows the list anew whenever something changes, or tells each change in a line, where there is no terminal to show it on.
fn follow(remote: &Remote, prefix: &str, as_json: bool) -> Result<(), Failure> {
    let mut drawn = 0;
    let is_screen = io::stdout().is_terminal() && !as_json;
    let mut shown = Vec::new();
    remote.lines("GET", "/v1/sprites", Content::Nothing, &mut |line| {
        let mut out = io::stdout().lock();
        if is_screen {
            let now = fitting(lines(&rows(&all(remote, prefix)?), &COLUMNS, colours()), Terminal::size().rows);
            if now != shown {
                // Up to where the list began, and over it: a screen that is not cleared does not flicker. A line that is too
                // long is cut by the terminal: it would take two.
                let up = if drawn > 0 { format!("\x1b[{drawn}A\r") } else { String::new() };
                let text: String = now.iter().map(|line| format!("{line}\x1b[K\n")).collect();
                out.write_all(format!("{up}\x1b[?7l{text}\x1b[?7h\x1b[J").as_bytes())?;
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

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn a_list_fits_the_screen() {
        let all: Vec<String> = (0..30).map(|i| i.to_string()).collect();
        assert_eq!(fitting(all.clone(), 40).len(), 30);
        let some = fitting(all.clone(), 24);
        assert_eq!((some.len(), some.last().map(String::as_str)), (23, Some("… and 8 more: use --prefix")));
        assert_eq!(fitting(all, 0).len(), 2);
    }
}
