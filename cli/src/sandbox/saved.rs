//! Checkpoints of sandboxes: `checkpoint`, `restore` and `fork`, where a sandbox is meant and no volume.
//!
//! Which is meant follows from the words alone, never from what there happens to be:
//!   * with `-s NAME` a sandbox;
//!   * without it, as many words as a volume's form has mean a volume (`restore disk v1`, or `restore disk@v1`);
//!   * without it and with the volume left out, the sandbox in use (`restore v1`).

use super::args::At;
use super::chosen::in_use;
use super::manage;
use super::remote::{Content, Sandbox};
use super::url::{encoded, query};
use crate::client::Failure;
use crate::output::{human, print, printable};
use serde_json::{json, Value};
use std::io::{self, IsTerminal, Write};

/// What the words of a command mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Meant<'a> {
    /// A volume, and one of its checkpoints unless that is in the volume's own word.
    Volume(&'a str, Option<&'a str>),
    /// A sandbox, and what was said beside it.
    Sandbox(&'a str),
}

/// The meaning of `[VOL]`: commands about all checkpoints.
pub fn whole<'a>(at: &At, volume: Option<&'a str>) -> Result<Meant<'a>, Failure> {
    match (&at.sandbox, volume) {
        (Some(_), Some(volume)) => Err(both(volume)),
        (None, Some(volume)) => Ok(Meant::Volume(volume, None)),
        (None, None) if in_use().is_none() => Err(neither("VOL")),
        (_, None) => Ok(Meant::Sandbox("")),
    }
}

/// The meaning of `[VOL] ID`, or `VOL@ID`.
pub fn one<'a>(at: &At, volume: Option<&'a str>, id: &'a str) -> Result<Meant<'a>, Failure> {
    match (&at.sandbox, volume) {
        (Some(_), Some(volume)) => Err(both(volume)),
        (Some(_), None) => Ok(Meant::Sandbox(id)),
        (None, Some(volume)) => Ok(Meant::Volume(volume, Some(id))),
        (None, None) if id.contains('@') => Ok(Meant::Volume(id, None)),
        (None, None) if in_use().is_none() => Err(neither(&match is_id(id) {
            true => format!("VOL {id}, or VOL@{id},"),
            false => format!("{id} v1, or {id}@v1,"),
        })),
        (None, None) => Ok(Meant::Sandbox(id)),
    }
}

/// The meaning of `[SOURCE] NEW`.
pub fn forked<'a>(at: &At, source: Option<&'a str>, new: &'a str) -> Result<Meant<'a>, Failure> {
    match (&at.sandbox, source) {
        (Some(_), Some(source)) => Err(both(source)),
        (None, Some(source)) => Ok(Meant::Volume(source, Some(new))),
        (None, None) if in_use().is_none() => Err(neither(&format!("VOL {new}"))),
        (_, None) => Ok(Meant::Sandbox(new)),
    }
}

/// Whether a word looks like a checkpoint, and not like a volume.
fn is_id(word: &str) -> bool {
    let digits = word.strip_prefix("auto-").or_else(|| word.strip_prefix('v'));
    word == "Current"
        || digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn both(volume: &str) -> Failure {
    Failure::new("invalid", format!("with -s NAME the sandbox is known: leave {volume:?} out, or -s for the volume"))
}

fn neither(form: &str) -> Failure {
    let text = format!(
        "of what? say {form} for a volume, -s NAME for a sandbox, or cairn use NAME for the sandbox of this folder"
    );
    Failure::new("invalid", text)
}

/// Carries out what is told line by line; the lines that inform, and an error if it ends in one or in nothing.
fn told(sandbox: &Sandbox, rest: &str, body: &Value) -> Result<Vec<String>, Failure> {
    let (mut lines, mut outcome) = (Vec::new(), None);
    let path = sandbox.path(rest);
    let asked = sandbox.remote.lines("POST", &path, Content::Json(body), &mut |line| {
        match line["type"].as_str() {
            Some("complete") => outcome = Some(Ok(())),
            Some("error") => {
                let text = line["error"].as_str().or(line["data"].as_str()).unwrap_or("it failed");
                let kind = if text.contains("not found") { "not_found" } else { "io" };
                outcome = Some(Err(Failure::new(kind, text)));
            }
            _ => lines.extend(line["data"].as_str().map(str::to_owned)),
        }
        Ok(true)
    });
    asked.map_err(|failure| sandbox.named(failure))?;
    let silent =
        || Failure::new("io", format!("{} ended its answer too early: it may be done or not", sandbox.remote.url.text));
    outcome.ok_or_else(silent)?.map(|()| lines)
}

/// A line that shows that something goes on, on a terminal.
fn busy(what: &str) -> impl Drop {
    struct Line(bool);
    impl Drop for Line {
        fn drop(&mut self) {
            if self.0 {
                eprint!("\r\x1b[K");
            }
        }
    }
    let terminal = io::stderr().is_terminal();
    if terminal {
        eprint!("{what} …");
        let _ = io::stderr().flush();
    }
    Line(terminal)
}

/// What people see of a checkpoint.
fn shown(checkpoint: &Value) -> Value {
    let mut shown = checkpoint.clone();
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("source_id");
        if let Some(bytes) = fields.remove("bytes_exclusive").and_then(|bytes| bytes.as_u64()) {
            fields.insert("exclusive".to_owned(), json!(human(bytes)));
        }
    }
    shown
}

fn tell(checkpoint: &Value, json: bool) {
    print(&if json { checkpoint.clone() } else { shown(checkpoint) }, json, &[]);
}

fn get(sandbox: &Sandbox, id: &str) -> Result<Value, Failure> {
    let found = sandbox.ask("GET", &format!("/checkpoints/{}", encoded(id)), Content::Nothing);
    found.map_err(|failure| missing(sandbox, id, failure))
}

fn missing(sandbox: &Sandbox, id: &str, failure: Failure) -> Failure {
    if failure.kind == "not_found" && !failure.message.contains("there is no sandbox") {
        let text = format!("{} has no checkpoint {id:?}: cairn checkpoint list -s {}", sandbox.name, sandbox.name);
        return Failure::new("not_found", text);
    }
    failure
}

/// `checkpoint create`.
pub fn create(at: &At, comment: &str, memory: bool, json: bool) -> Result<(), Failure> {
    let sandbox = Sandbox::found(at.sandbox.as_deref(), &at.server)?;
    let line = busy("checkpoint");
    let lines = told(&sandbox, "/checkpoint", &json!({"comment": comment, "memory": memory}))?;
    drop(line);
    let after = |key: &str| lines.iter().find_map(|line| line.trim().strip_prefix(key).map(str::trim));
    let id = after("ID:").ok_or_else(|| Failure::new("io", "the server did not say which checkpoint it made"))?;
    if let Some(why) = after("As after a power loss:").filter(|_| !json) {
        eprintln!("cairn: the guest did not help, so that {id} is as after a power loss: {}", printable(why));
    }
    tell(&get(&sandbox, id)?, json);
    Ok(())
}

/// `checkpoint list`.
pub fn list(at: &At, all: bool, json: bool) -> Result<(), Failure> {
    let sandbox = Sandbox::found(at.sandbox.as_deref(), &at.server)?;
    let words = if all { query(&[("includeAuto", "true")]) } else { String::new() };
    let found = sandbox.ask("GET", &format!("/checkpoints{words}"), Content::Nothing)?;
    // Oldest first and without the present, as the checkpoints of a volume are listed.
    let mut rows: Vec<Value> =
        found.as_array().into_iter().flatten().filter(|one| one["id"] != "Current").cloned().collect();
    rows.reverse();
    print(&Value::Array(rows), json, &["id", "create_time", "is_auto", "comment"]);
    Ok(())
}

/// `checkpoint get`.
pub fn show(at: &At, id: &str, json: bool) -> Result<(), Failure> {
    tell(&get(&Sandbox::found(at.sandbox.as_deref(), &at.server)?, id)?, json);
    Ok(())
}

/// `checkpoint delete`.
pub fn delete(at: &At, id: &str, json: bool) -> Result<(), Failure> {
    let sandbox = Sandbox::found(at.sandbox.as_deref(), &at.server)?;
    let done = sandbox.ask("DELETE", &format!("/checkpoints/{}", encoded(id)), Content::Nothing);
    done.map_err(|failure| missing(&sandbox, id, failure))?;
    print(&json!({"deleted": id}), json, &[]);
    Ok(())
}

/// `restore`.
pub fn restore(at: &At, id: &str, json: bool) -> Result<(), Failure> {
    let sandbox = Sandbox::found(at.sandbox.as_deref(), &at.server)?;
    let line = busy("restore");
    told(&sandbox, &format!("/checkpoints/{}/restore", encoded(id)), &json!({}))
        .map_err(|failure| missing(&sandbox, id, failure))?;
    drop(line);
    // What was replaced is kept: the newest that nobody asked for.
    let all = sandbox.ask("GET", "/checkpoints?includeAuto=true", Content::Nothing)?;
    let undo = all.as_array().into_iter().flatten().find(|one| one["is_auto"] == true);
    print(&json!({"restored": id, "undo": undo.map(|one| one["id"].clone())}), json, &[]);
    Ok(())
}

/// `fork`. With `-s NAME@ID` from a checkpoint.
pub fn fork(at: &At, new: &str, json: bool) -> Result<(), Failure> {
    let (name, id) = match at.sandbox.as_deref().map(|said| said.split_once('@').ok_or(said)) {
        None => (None, None),
        Some(Ok((name, id))) => (Some(name), Some(id)),
        Some(Err(name)) => (Some(name), None),
    };
    let new = super::chosen::sandbox(Some(new))?;
    let sandbox = Sandbox::found(name, &at.server)?;
    let source = id.map_or_else(|| sandbox.name.clone(), |id| format!("{}@{id}", sandbox.name));
    let made = manage::make(&sandbox.remote, &json!({"name": new, "from": manage::source(&source)}));
    let made = made.map_err(|failure| match id {
        Some(id) => missing(&sandbox, id, failure),
        None => failure,
    })?;
    let told = json!({"name": made["name"], "status": made["status"], "parent": source, "url": made["url"]});
    print(&if json { made } else { told }, json, &[]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: Option<&str>) -> At {
        At { sandbox: name.map(str::to_owned), ..At::default() }
    }

    #[test]
    fn the_words_alone_say_what_is_meant() {
        let (own, none) = (at(Some("web")), at(None));
        assert_eq!(whole(&none, Some("disk")).ok(), Some(Meant::Volume("disk", None)));
        assert_eq!(whole(&own, None).ok(), Some(Meant::Sandbox("")));
        assert_eq!(one(&none, Some("disk"), "v1").ok(), Some(Meant::Volume("disk", Some("v1"))));
        assert_eq!(one(&none, None, "disk@v1").ok(), Some(Meant::Volume("disk@v1", None)));
        assert_eq!(one(&own, None, "v1").ok(), Some(Meant::Sandbox("v1")));
        assert_eq!(forked(&none, Some("disk@v1"), "new").ok(), Some(Meant::Volume("disk@v1", Some("new"))));
        assert_eq!(forked(&own, None, "new").ok(), Some(Meant::Sandbox("new")));
        // Both are one too many.
        let both = [whole(&own, Some("disk")), one(&own, Some("a"), "b"), forked(&own, Some("a"), "b")];
        assert!(both.iter().all(Result::is_err));
    }
}
