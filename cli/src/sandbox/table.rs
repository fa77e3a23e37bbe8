//! Lists for people: columns, and colours where there is a terminal that wants them.

use crate::output::printable;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// Whether colours are wanted on standard output.
pub fn colours() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    io::stdout().is_terminal() && !dumb && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// What a cell is painted with.
fn paint(column: &str, text: &str) -> Option<&'static str> {
    match (column, text) {
        ("status", "running") => Some("\x1b[32m"),
        ("status", "warm") => Some("\x1b[33m"),
        ("status", _) => Some("\x1b[2m"),
        _ => None,
    }
}

fn cell(column: &str, value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        // Times to the second.
        Value::String(text) if column.ends_with("time") => printable(
            &text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{}Z", seconds.replace('T', " "))),
        ),
        Value::String(text) => printable(text),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(|one| cell("", one)).collect::<Vec<_>>().join(","),
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

/// The lines of a table.
pub fn lines(rows: &[Value], columns: &[&str], colours: bool) -> Vec<String> {
    let head = columns.iter().map(|column| column.to_uppercase()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|column| cell(column, &row[*column])).collect());
    let all: Vec<Vec<String>> = std::iter::once(head).chain(cells).collect();
    let width = |i: usize| all.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |(number, row): (usize, &Vec<String>)| {
        let cells = row.iter().zip(&widths).zip(columns).map(|((text, width), column)| {
            let padding = " ".repeat(width - text.chars().count().min(*width));
            match paint(column, text).filter(|_| colours && number > 0) {
                Some(colour) => format!("{colour}{text}\x1b[0m{padding}"),
                None => format!("{text}{padding}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all.iter().enumerate().map(line).collect()
}

/// Prints a table.
pub fn table(rows: &[Value], columns: &[&str]) {
    let mut out = io::stdout().lock();
    for line in lines(rows, columns, colours()) {
        let _ = writeln!(out, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_stand_below_each_other_also_in_colour() {
        let rows = [
            json!({"name": "web", "status": "running", "labels": ["a", "b"], "create_time": "2026-01-31T12:00:00.5Z"}),
            json!({"name": "a-long-name", "status": "cold", "labels": [], "create_time": "2026-01-31T12:00:00.5Z"}),
        ];
        let plain = lines(&rows, &["name", "status", "labels", "create_time"], false);
        assert_eq!(plain[0], "NAME         STATUS   LABELS  CREATE_TIME");
        assert_eq!(plain[1], "web          running  a,b     2026-01-31 12:00:00Z");
        assert_eq!(plain[2], "a-long-name  cold     -       2026-01-31 12:00:00Z");
        let painted = lines(&rows, &["status", "name"], true);
        assert_eq!(painted[1], "\x1b[32mrunning\x1b[0m  web");
        assert_eq!(painted[2], "\x1b[2mcold\x1b[0m     a-long-name");
    }

    #[test]
    fn what_others_wrote_moves_no_cursor() {
        let rows = [json!({"command": "a\x1b[2Jb"})];
        assert_eq!(lines(&rows, &["command"], true)[1], "a\\u{1b}[2Jb");
    }
}
