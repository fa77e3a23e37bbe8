//! The sandbox API: its server beside a daemon, and `cairn token`.

use crate::api_args::ApiArgs;
use crate::args::{Cli, ServeArgs};
use crate::beside::Beside;
use crate::client::Failure;
use crate::guest_args::TokenVerb;
use crate::output::print;
use crate::requests::pool_folder;
use crate::vm::machines;
use crate::vm_store::Daemon;
use clap::builder::PossibleValue;
use clap::ValueEnum;
use nbd_server::{Listen, Tls, TlsFiles};
use sandbox_server::{create_token, first_token, revoke_token, rfc3339, tokens, Limits, Options, Scope, REGISTRY};
use serde_json::{json, Value};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tracing::{info, warn};

/// The organization of whoever is not asked.
const ORG: &str = "local";
/// The longest life of a token that has an end.
const EXPIRES_MAX: Duration = Duration::from_secs(100 * 365 * 86400);
const COLUMNS: &[&str] = &["id", "org", "scope", "create_time", "expire_time"];

/// Where machines find their disks when the daemon was not told: in the pool's folder.
pub fn own_socket(folder: &Path, listen: &mut Vec<Listen>) -> io::Result<()> {
    if !listen.iter().any(|listen| matches!(listen, Listen::Unix(_))) {
        // The folder may be about to be made.
        listen.push(Listen::Unix(std::path::absolute(folder.join("nbd.sock"))?));
    }
    Ok(())
}

/// Keeps a server of the API beside the daemon; at the first start a token is printed.
pub fn serve_beside(folder: &Path, args: &ServeArgs) -> io::Result<Beside> {
    if let Some(token) = first_token(&folder.join(REGISTRY), ORG)? {
        println!("cairn: the first token of this pool, shown this once: {}", token.text());
    }
    let name = |value: Option<PossibleValue>| value.map(|value| value.get_name().to_owned()).unwrap_or_default();
    let log = [name(args.log_level.to_possible_value()), name(args.log_format.to_possible_value())];
    let (folder, words) = (std::path::absolute(folder)?, args.api.words());
    Beside::keep("api", move || {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "cairn".into()));
        command.arg("--pool").arg(&folder).arg("api-server").args(&words).args(&log);
        command.stdin(Stdio::null());
        command
    })
}

/// What the API speaks TLS with.
pub fn tls(args: &ApiArgs) -> Result<Option<Tls>, Failure> {
    let (Some(cert), Some(key)) = (args.api_tls_cert.clone(), args.api_tls_key.clone()) else { return Ok(None) };
    let files = TlsFiles { cert, key, client_ca: None };
    Tls::load(&files).map(Some).map_err(|e| Failure::new("invalid", format!("TLS: {e}")))
}

/// Is the server of the API.
pub fn serve(cli: &Cli, args: &ApiArgs) -> Result<(), Failure> {
    let folder = pool_folder(cli)?;
    let listen = args.api.ok_or_else(|| Failure::new("invalid", "where? give --api HOST:PORT"))?;
    let tls = tls(args)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    if tls.is_none() && !listen.ip().is_loopback() {
        warn!("tokens are readable on the network: add --api-tls-cert and --api-tls-key, or put a proxy with TLS before it");
    }
    let options = Options {
        listen,
        registry: folder.join(REGISTRY),
        machines: machines(&folder)?,
        pool: Box::new(Daemon::of(&folder)),
        image: args.api_image.clone(),
        limits: Limits { sandboxes: args.api_max_sandboxes, open: args.api_max_requests },
        tls: tls.map(|tls| tls.config()),
    };
    let told = |at: SocketAddr| info!(url = format!("{scheme}://{at}"), "the sandbox API is served");
    sandbox_server::run(options, told).map_err(|e| Failure::new("io", format!("the sandbox API on {listen}: {e}")))
}

fn lasts(text: &str) -> Result<Duration, Failure> {
    sandbox_server::duration(text)
        .filter(|time| !time.is_zero() && *time <= EXPIRES_MAX)
        .ok_or_else(|| Failure::new("invalid", format!("--expires {text:?} is not a time: use 1h, 30d")))
}

/// Carries out a command on tokens.
pub fn token(cli: &Cli, verb: &TokenVerb) -> Result<(), Failure> {
    let folder = pool_folder(cli)?;
    let registry = folder.join(REGISTRY);
    if !folder.is_dir() {
        let text = format!("there is no pool in {}: cairn serve --api makes it", folder.display());
        return Err(Failure::new("not_found", text));
    }
    if !registry.exists() && !matches!(verb, TokenVerb::Create { .. }) {
        return Err(Failure::new("not_found", "this pool has no sandboxes and no tokens: cairn serve --api"));
    }
    match verb {
        TokenVerb::Create { scope, expires, org } => {
            let known = Scope::parse(scope);
            let scope =
                known.ok_or_else(|| Failure::new("invalid", format!("--scope {scope:?}: say org, or sandbox:NAME")))?;
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if org.is_empty() || org.len() > 64 || !org.chars().all(plain) {
                return Err(Failure::new("invalid", format!("--org {org:?}: use letters, digits and '-'")));
            }
            let lasts = expires.as_deref().map(lasts).transpose()?;
            let token = create_token(&registry, org, &scope, lasts).map_err(Failure::of_file(&registry))?;
            match cli.json {
                true => print(&json!({"token": token.text(), "id": token.id}), true, &[]),
                false => println!("{}", token.text()),
            }
        }
        TokenVerb::List => {
            let all = tokens(&registry)?;
            let told = all.iter().map(|token| {
                let end = token.expires_us.map(rfc3339);
                json!({"id": token.id, "org": token.org, "scope": token.scope,
                    "create_time": rfc3339(token.created_us), "expire_time": end})
            });
            print(&Value::Array(told.collect()), cli.json, COLUMNS);
        }
        TokenVerb::Revoke { id } => {
            if !revoke_token(&registry, id)? {
                return Err(Failure::new("not_found", format!("there is no token {id:?}: cairn token list")));
            }
            print(&json!({"revoked": id}), cli.json, &[]);
        }
    }
    Ok(())
}
