//! Making, choosing, looking at and ending sandboxes; requests as they are.

use super::args::{CreateArgs, RequestArgs, Server};
use super::chosen::{self, is_name, sandbox};
use super::remote::{kind_of, Content, Remote, Sandbox};
use crate::args::parse_size;
use crate::client::Failure;
use crate::output::{print, printable};
use serde_json::{json, Value};
use std::io::{self, BufRead, IsTerminal, Read, Write};

/// What people see of a sandbox.
fn shown(sandbox: &Value) -> Value {
    let field = |key: &str| sandbox[key].clone();
    json!({"name": field("name"), "status": field("status"), "create_time": field("created_at"),
        "url": field("url"), "labels": field("labels"), "config": field("config")})
}

fn tell(sandbox: &Value, json: bool) {
    print(&if json { sandbox.clone() } else { shown(sandbox) }, json, &[]);
}

/// A size as the whole number of `unit`s that the API takes.
fn size(flag: &str, text: &str, unit: u64, name: &str) -> Result<u64, Failure> {
    let bytes = parse_size(text).filter(|bytes| *bytes > 0 && bytes % unit == 0);
    let bad = || Failure::new("invalid", format!("{flag} {text:?}: use whole {name}, as in 2G"));
    bytes.map(|bytes| bytes / unit).ok_or_else(bad)
}

/// `NAME[@ID]` as the API says it.
pub fn source(text: &str) -> Value {
    match text.split_once('@') {
        Some((name, id)) => json!({"sprite": name, "checkpoint": id}),
        None => json!({"sprite": text}),
    }
}

/// Makes a sandbox of what the body says.
pub fn make(remote: &Remote, body: &Value) -> Result<Value, Failure> {
    remote.ask("POST", "/v1/sprites", Content::Json(body)).map_err(|failure| match failure.kind.as_str() {
        "not_found" if failure.message == "sprite not found" => {
            let text = format!("there is no sandbox {}: cairn list", body["from"]["sprite"]);
            Failure::new("not_found", text)
        }
        "exists" => {
            let text = format!("there is a sandbox {} already: cairn list, or cairn destroy it first", body["name"]);
            Failure::new("exists", text)
        }
        _ => failure,
    })
}

/// `create`.
pub fn create(args: &CreateArgs, json: bool) -> Result<(), Failure> {
    let name = sandbox(Some(&args.name))?;
    let mut config = serde_json::Map::new();
    config.extend(args.cpus.map(|cpus| ("cpus".to_owned(), json!(cpus))));
    if let Some(text) = &args.memory {
        config.insert("ram_mb".to_owned(), json!(size("--memory", text, 1 << 20, "M")?));
    }
    if let Some(text) = &args.disk {
        config.insert("storage_gb".to_owned(), json!(size("--disk", text, 1 << 30, "G")?));
    }
    let mut body = json!({"name": name, "labels": args.label, "config": config});
    if let Some(image) = &args.image {
        body["from"] = json!({"image": image});
    }
    if let Some(from) = &args.from {
        body["from"] = source(from);
    }
    let made = make(&Remote::found(&args.server)?, &body)?;
    tell(&made, json);
    Ok(())
}

/// `info`.
pub fn info(sandbox: &Sandbox, json: bool) -> Result<(), Failure> {
    tell(&sandbox.ask("GET", "", Content::Nothing)?, json);
    Ok(())
}

/// `use`.
pub fn choose(name: Option<&str>, server: &Server, json: bool) -> Result<(), Failure> {
    let Some(name) = name else {
        let found = chosen::in_use();
        let none = || Failure::new("not_found", "no sandbox is in use here: cairn use NAME");
        let (name, by) = found.ok_or_else(none)?;
        print(&json!({"sandbox": name, "chosen_by": by}), json, &[]);
        return Ok(());
    };
    let sandbox = Sandbox::found(Some(name), server)?;
    sandbox.ask("GET", "", Content::Nothing)?;
    let path = chosen::choose(&std::env::current_dir()?, name)?;
    print(&json!({"sandbox": name, "chosen_by": path}), json, &[]);
    if std::env::var_os("CAIRN_SANDBOX").is_some_and(|set| !set.is_empty()) && !json {
        eprintln!("cairn: CAIRN_SANDBOX is set, and goes before it");
    }
    Ok(())
}

/// `destroy`.
pub fn destroy(name: &str, force: bool, server: &Server, json: bool) -> Result<(), Failure> {
    if !is_name(name) {
        return Err(Failure::new("invalid", format!("{name:?} is no sandbox's name")));
    }
    let sandbox = Sandbox::found(Some(name), server)?;
    if !force {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let text = format!("{name} and its checkpoints would be gone for good: give --force to have that done");
            return Err(Failure::new("invalid", text));
        }
        // One that is not there is not asked about.
        sandbox.ask("GET", "", Content::Nothing)?;
        eprint!("{name} and its checkpoints will be gone for good. Destroy it? [y/N] ");
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().lock().take(64).read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Failure::new("io", format!("{name} was not destroyed")));
        }
    }
    sandbox.ask("DELETE", "", Content::Nothing)?;
    print(&json!({"destroyed": name}), json, &[]);
    Ok(())
}

/// `api`.
pub fn api(args: &RequestArgs) -> Result<(), Failure> {
    let remote = Remote::found(&args.server)?;
    let method = args.method.to_ascii_uppercase();
    let path = format!("/{}", args.path.trim_start_matches('/'));
    let body = match args.data.as_deref().map(|data| (data, data.strip_prefix('@'))) {
        None => None,
        Some((_, Some("-"))) => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes)?;
            Some(bytes)
        }
        Some((_, Some(file))) => Some(std::fs::read(file).map_err(Failure::of_file(file.as_ref()))?),
        Some((text, None)) => Some(text.as_bytes().to_vec()),
    };
    let mut reader = body.as_deref();
    let content = match &mut reader {
        None => Content::Nothing,
        Some(bytes) => Content::Bytes(bytes),
    };
    let answer = remote.send(&method, &path, "*/*", content)?;
    let status = answer.status();
    let mut from = answer.into_body().into_reader();
    let (mut out, mut buffer, mut last) = (io::stdout().lock(), vec![0; 64 << 10], None);
    loop {
        let got = from.read(&mut buffer).map_err(|e| remote.broken(&e))?;
        let bytes = buffer.get(..got).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        out.write_all(bytes)?;
        // Lines of a stream are seen as they come.
        out.flush()?;
        last = bytes.last().copied();
    }
    if out.is_terminal() && last.is_some_and(|byte| byte != b'\n') {
        writeln!(out)?;
    }
    match status.as_u16() {
        200..=399 => Ok(()),
        code => Err(Failure::new(kind_of(code), format!("{method} {}: {status}", printable(&path)))),
    }
}
