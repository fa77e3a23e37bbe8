//! What the host says, for a person: nothing of it moves a terminal's cursor.

use serde_json::Value;

/// Longest text that is shown of one field.
const TEXT_MAX: usize = 2000;

/// A text without what a terminal would take for a command.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

fn cell(value: &Value) -> String {
    printable(&match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    })
}

/// `2026-01-31T17:02:44.123456Z` as `2026-01-31 17:02:44`.
fn moment(value: &Value) -> String {
    let text = cell(value);
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

/// Checkpoints as a table, the newest first.
pub(super) fn list(all: &Value) -> String {
    let all = all.as_array().map_or(&[][..], Vec::as_slice);
    let rows = all.iter().filter(|info| info["id"] != "Current");
    let rows: Vec<[String; 3]> =
        rows.map(|info| [cell(&info["id"]), moment(&info["create_time"]), cell(&info["comment"])]).collect();
    if rows.is_empty() {
        return "there are no checkpoints: sprite-env checkpoints create --comment TEXT".to_owned();
    }
    let width = rows.iter().map(|[id, ..]| id.chars().count()).max().unwrap_or(0).max(6);
    let line = |[id, time, comment]: &[String; 3]| format!("{id:width$}  {time:19}  {comment}").trim_end().to_owned();
    let head = ["ID", "CREATED (UTC)", "COMMENT"].map(str::to_owned);
    std::iter::once(&head).chain(&rows).map(line).collect::<Vec<_>>().join("\n")
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// Entries of a folder: mode, size, name; a folder's ends with `/`.
pub(super) fn files(found: &Value) -> String {
    let line = |entry: &Value| {
        let mark = if entry["type"] == "directory" { "/" } else { "" };
        format!("{:>4}  {:>12}  {}{mark}", cell(&entry["mode"]), cell(&entry["size"]), cell(&entry["name"]))
    };
    each(found, "entries").map(line).collect::<Vec<_>>().join("\n")
}

/// One line for each file that differs.
pub(super) fn differences(found: &Value) -> String {
    let line = |file: &Value| {
        let from = Some(cell(&file["from"])).filter(|from| !from.is_empty());
        let from = from.map(|from| format!("  (was /{from})")).unwrap_or_default();
        format!("{:10}  /{}{from}", cell(&file["change"]), cell(&file["path"]))
    };
    let lines: Vec<String> = each(found, "files").map(line).collect();
    if lines.is_empty() {
        return "no file differs".to_owned();
    }
    lines.join("\n")
}

/// An object as one line for each field that says something.
pub(super) fn fields(value: &Value) -> String {
    let fields: Vec<(&String, String)> =
        value.as_object().into_iter().flatten().map(|(key, value)| (key, cell(value))).collect();
    let fields: Vec<_> = fields.iter().filter(|(_, text)| !text.is_empty()).collect();
    let width = fields.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    fields.iter().map(|(key, text)| format!("{key:width$}  {text}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_is_a_table_and_a_comment_cannot_move_the_cursor() {
        let all = json!([
            {"id": "Current", "create_time": "2026-01-31T15:39:04Z"},
            {"id": "v2", "create_time": "2026-01-31T17:02:44.123456Z", "comment": "a\u{1b}[2Jb\nc"},
            {"id": "v1", "create_time": "2026-01-31T17:02:40Z", "comment": null},
        ]);
        let wanted =
            "ID      CREATED (UTC)        COMMENT\nv2      2026-01-31 17:02:44  a [2Jb c\nv1      2026-01-31 17:02:40";
        assert_eq!(list(&all), wanted);
        assert!(list(&json!([])).contains("create --comment") && list(&json!("rubbish")).contains("no checkpoints"));
        let entries =
            json!({"entries": [{"name": "a\n", "size": 5, "mode": "0644"}, {"name": "b", "type": "directory"}]});
        assert_eq!(files(&entries), "0644             5  a\n                    b/");
        let changed = json!({"files": [{"path": "b", "change": "renamed", "from": "a"}]});
        assert_eq!(differences(&changed), "renamed     /b  (was /a)");
        assert_eq!(fields(&json!({"id": "v1", "none": null, "history": ["v2", "v3"]})), "history  v2, v3\nid       v1");
    }
}
