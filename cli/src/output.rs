//! Answers as text.

use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(n) if key.ends_with("bytes") => n.as_u64().map_or(n.to_string(), human),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{k} {}", cell(key, v))).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Prints an answer: JSON, a table of `columns` for lists, or one field a line.
pub fn print(answer: &Value, json: bool, columns: &[&str]) {
    let mut out = io::stdout().lock();
    if json {
        let _ = writeln!(out, "{answer}");
        return;
    }
    match answer {
        Value::Array(rows) => {
            let table: Vec<Vec<String>> =
                std::iter::once(columns.iter().map(|c| c.trim_end_matches("_bytes").to_uppercase()).collect())
                    .chain(rows.iter().map(|row| columns.iter().map(|c| cell(c, &row[*c])).collect()))
                    .collect();
            let widths: Vec<usize> =
                (0..columns.len()).map(|i| table.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
            for row in table {
                let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
                let _ = writeln!(out, "{}", line.trim_end());
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                let _ = writeln!(out, "{:22} {}", key.trim_end_matches("_bytes").replace('_', " "), cell(key, value));
            }
        }
        other => {
            let _ = writeln!(out, "{}", other.as_str().map_or(other.to_string(), str::to_owned));
        }
    }
}

/// A line that shows how far long work has come; only on a terminal.
pub struct Progress {
    what: &'static str,
    shown: u64,
}

impl Progress {
    /// For work called `what`.
    pub fn new(what: &'static str) -> Self {
        Self { what, shown: u64::MAX }
    }

    /// `done` of `total`.
    pub fn show(&mut self, done: u64, total: u64) {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        if percent != self.shown && io::stderr().is_terminal() {
            self.shown = percent;
            let end = if done >= total { "\n" } else { "" };
            eprint!("\r{}: {percent:3} % ({} of {}){end}", self.what, human(done), human(total));
        }
    }
}
