//! Answers as text.

use serde_json::Value;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

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

/// Text as it can be shown on a terminal: what people write as a comment must not move its cursor.
pub fn printable(text: &str) -> String {
    let one = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(one).collect()
}

/// Fields that people look for first.
const FIRST: [&str; 6] = ["name", "id", "size_bytes", "create_time", "comment", "parent"];

/// Items of a list that are shown.
const SHOWN_MAX: usize = 100;

fn list(items: &[Value]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let line = |item: &Value| match (item["offset"].as_u64(), item["length"].as_u64()) {
        (Some(offset), Some(length)) => format!("\n  {offset:>16} + {}", human(length)),
        _ => format!("\n  {}", cell("", item)),
    };
    let lines: String = items.iter().take(SHOWN_MAX).map(line).collect();
    match items.len().saturating_sub(SHOWN_MAX) {
        0 => lines,
        more => format!("{lines}\n  … and {more} more: use --json"),
    }
}

fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) if key == "create_time" => {
            text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{}Z", seconds.replace('T', " ")))
        }
        Value::String(text) => printable(text),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Array(items) => list(items),
        Value::Object(map) if map.is_empty() => "none".to_owned(),
        Value::Number(n) if key.ends_with("bytes") => n.as_u64().map_or(n.to_string(), human),
        Value::Object(map) => {
            // A field's own name says its unit, or that of the map does for all of them.
            let unit = |k: &str| if k.ends_with("bytes") { "bytes" } else { key };
            map.iter().map(|(k, v)| format!("{k} {}", cell(unit(k), v))).collect::<Vec<_>>().join(", ")
        }
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
            let first = FIRST.iter().filter_map(|key| fields.get_key_value(*key));
            let rest = fields.iter().filter(|(key, _)| !FIRST.contains(&key.as_str()));
            for (key, value) in first.chain(rest) {
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
    /// The work is counted in bytes.
    bytes: bool,
    begin: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

/// Time between two looks of the line.
const REDRAW: Duration = Duration::from_millis(200);

impl Progress {
    /// For work called `what`, counted in bytes or in pieces.
    pub fn new(what: &'static str, bytes: bool) -> Self {
        Self { what, bytes, begin: Instant::now(), shown: None, terminal: io::stderr().is_terminal() }
    }

    /// `done` of `total`; of a total of no bytes nobody knows how much it is.
    pub fn show(&mut self, done: u64, total: u64) {
        if !self.terminal || self.shown.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        self.shown = Some(Instant::now());
        eprint!("\r\x1b[K{}", self.line(done, total, self.begin.elapsed()));
    }

    fn line(&self, done: u64, total: u64, time: Duration) -> String {
        let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(100);
        let rate = done as f64 / time.as_secs_f64().max(0.001);
        let left = total.saturating_sub(done) as f64 / rate.max(1.0);
        let left = match left as u64 {
            s if s < 120 => format!("{s} s"),
            s if s < 7200 => format!("{} min", s / 60),
            s => format!("{} h", s / 3600),
        };
        let count = |n: u64| if self.bytes { human(n) } else { n.to_string() };
        if self.bytes && total == 0 {
            return format!("{}  {}  {}/s", self.what, count(done), count(rate as u64));
        }
        let (done, total, rate) = (count(done), count(total), count(rate as u64));
        format!("{} {percent:3} %  {done} of {total}  {rate}/s  {left} left", self.what)
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }

    /// The work is done.
    pub fn end(&self, total: u64) {
        if self.terminal {
            let time = self.begin.elapsed();
            let rate = human((total as f64 / time.as_secs_f64().max(0.001)) as u64);
            eprintln!("\r\x1b[K{}: {} in {:.1} s ({rate}/s)", self.what, human(total), time.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit_inside_of_maps_too() {
        let store = serde_json::json!({"lag_bytes": 3 << 20, "manifest": 4});
        assert_eq!(cell("object_store", &store), "lag_bytes 3.0 MiB, manifest 4");
        assert_eq!(cell("checkpoint_exclusive_bytes", &serde_json::json!({"v1": 8192})), "v1 8.0 KiB");
    }

    #[test]
    fn progress_tells_amount_rate_and_time_left() {
        let line = Progress::new("import", true).line(1 << 30, 4 << 30, Duration::from_secs(2));
        assert_eq!(line, "import  25 %  1.0 GiB of 4.0 GiB  512.0 MiB/s  6 s left");
        assert!(Progress::new("check", false).line(0, 0, Duration::ZERO).contains("100 %"));
    }
}
