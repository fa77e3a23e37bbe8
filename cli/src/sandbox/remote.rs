//! A server of the sandbox API: where it is, who we are to it, and requests over HTTP.
//!
//! Invariants
//!   * the token goes to the server that it belongs to: redirects are not followed, proxies of the environment not used;
//!   * no answer is held that is longer than `ANSWER_MAX`, no line that is longer than `LINE_MAX`;
//!   * what the server says of a failure reaches the user, and with it what to do.

use super::args::Server;
use super::chosen::sandbox;
use super::credentials::{place, Credentials};
use super::url::{self, encoded, Url};
use crate::client::Failure;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{header, Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

/// Bytes of an answer.
const ANSWER_MAX: u64 = 64 << 20;
/// Bytes of a line of an answer.
const LINE_MAX: u64 = 1 << 20;
/// Bytes of what is said of a failure.
const REFUSAL_MAX: u64 = 64 << 10;
/// How long a connection may take to be made.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin: a guest may have to boot first, without hardware's help.
pub const ANSWER: Duration = Duration::from_secs(300);

/// A server.
pub struct Remote {
    pub url: Url,
    pub token: String,
    /// Authorities for `https`.
    pub roots: Vec<CertificateDer<'static>>,
    agent: Agent,
}

/// What goes with a request.
pub enum Content<'a> {
    Nothing,
    Json(&'a Value),
    Bytes(&'a mut dyn Read),
}

/// The authorities in a file, or this system's.
fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let Some(path) = file else {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let text = "this system has no certificate authorities: give --ca-file PEM (Debian: ca-certificates)";
            return Err(Failure::new("missing", text));
        }
        return Ok(found.certs);
    };
    let bad = |e: &dyn std::fmt::Display| Failure::new("invalid", format!("{}: {e}", path.display()));
    let all = CertificateDer::pem_file_iter(path).map_err(|e| bad(&e))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|e| bad(&e))?;
    match all.is_empty() {
        true => Err(bad(&"there is no certificate in it")),
        false => Ok(all),
    }
}

fn variable(key: &str) -> Option<String> {
    std::env::var(key).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The server, the token and the authorities that the environment names, else those that were logged in with.
fn who(server: &Server) -> Result<(Url, String, Option<PathBuf>), Failure> {
    let (url, token) = (variable("CAIRN_URL"), variable("CAIRN_TOKEN"));
    let kept = match (&token, place().map(|path| Credentials::load(&path))) {
        (_, None) => Credentials::default(),
        (None, Some(kept)) => kept?,
        // With all that is needed in the environment nothing that is kept keeps a command from working.
        (Some(_), Some(kept)) => kept.unwrap_or_default(),
    };
    // A token of the environment is for the server of the environment, or the usual one: never for what was logged in to.
    let current = kept.current.as_deref().filter(|_| token.is_none());
    let url = Url::parse(url.as_deref().or(current).unwrap_or(url::DEFAULT))?;
    let token = token.or_else(|| kept.token(&url.text).map(str::to_owned));
    let token = token.ok_or_else(|| {
        let text = format!(
            "no token for {}: say cairn login {}, or set CAIRN_TOKEN (cairn token create makes one, beside the pool)",
            url.text, url.text
        );
        Failure::new("denied", text)
    })?;
    let ca_file = server.ca_file.clone().or_else(|| kept.ca_file(&url.text).map(Path::to_owned));
    Ok((url, token, ca_file))
}

impl Remote {
    /// The server that commands go to.
    pub fn found(server: &Server) -> Result<Self, Failure> {
        let (url, token, ca_file) = who(server)?;
        Self::new(url, token, ca_file.as_deref())
    }

    /// One that is known.
    pub fn new(url: Url, token: String, ca_file: Option<&Path>) -> Result<Self, Failure> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::new("invalid", "that is no token: use the line that cairn token create prints"));
        }
        // What is read and looked through takes milliseconds, which plain HTTP does not need.
        let roots = if url.tls { roots(ca_file)? } else { Vec::new() };
        let own: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&own))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")))
            .allow_non_standard_methods(true)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .build()
            .new_agent();
        Ok(Self { url, token, roots, agent })
    }

    /// Sends a request; the answer, whatever its status.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        content: Content<'_>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url.text));
        request =
            request.header(header::AUTHORIZATION, format!("Bearer {}", self.token)).header(header::ACCEPT, accept);
        let bad = |e: ureq::http::Error| Failure::new("invalid", format!("{method} {path}: {e}"));
        let answer = match content {
            Content::Nothing => self.agent.run(request.body(()).map_err(bad)?),
            Content::Json(value) => {
                let request = request.header(header::CONTENT_TYPE, "application/json");
                self.agent.run(request.body(value.to_string()).map_err(bad)?)
            }
            Content::Bytes(reader) => {
                let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
                self.agent.run(request.body(SendBody::from_reader(reader)).map_err(bad)?)
            }
        };
        answer.map_err(|e| self.unreachable(e))
    }

    /// Sends a request and waits for a good answer.
    pub fn ask(&self, method: &str, path: &str, content: Content<'_>) -> Result<Value, Failure> {
        let mut answer = self.good(self.send(method, path, "application/json", content)?)?;
        let bytes = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
        let bytes = bytes.map_err(|e| self.unreachable(e))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        let strange =
            || Failure::new("io", format!("{} answers with no JSON: is it a server of cairn?", self.url.text));
        serde_json::from_slice(&bytes).map_err(|_| strange())
    }

    /// Sends a request and hands over a good answer line by line, as lines come; `each` tells whether to go on.
    pub fn lines(
        &self,
        method: &str,
        path: &str,
        content: Content<'_>,
        each: &mut dyn FnMut(Value) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let answer = self.good(self.send(method, path, "application/x-ndjson", content)?)?;
        let mut lines = BufReader::new(answer.into_body().into_reader());
        loop {
            let mut line = Vec::new();
            let count = (&mut lines).take(LINE_MAX).read_until(b'\n', &mut line).map_err(|e| self.broken(&e))?;
            if count == 0 {
                return Ok(());
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line = serde_json::from_slice(&line);
            let line = line.map_err(|_| Failure::new("io", format!("{} breaks off in a line", self.url.text)))?;
            if !each(line)? {
                return Ok(());
            }
        }
    }

    /// An answer that is no refusal.
    pub fn good(&self, answer: Response<Body>) -> Result<Response<Body>, Failure> {
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let place = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut said = Vec::new();
        let _ = answer.into_body().into_reader().take(REFUSAL_MAX).read_to_end(&mut said);
        match place.filter(|_| (300..400).contains(&status)) {
            Some(place) => Err(Failure::new("io", format!("{} sends to {place}: use that URL", self.url.text))),
            None => Err(self.refused(status, &said)),
        }
    }

    /// A refusal as a failure.
    pub fn refused(&self, status: u16, said: &[u8]) -> Failure {
        let kind = kind_of(status);
        let text = reason(said).unwrap_or_else(|| format!("status {status}"));
        match status {
            401 => Failure::new(
                kind,
                format!(
                    "{} does not take this token ({text}): make one beside its pool with cairn token create, and say \
                     cairn login {} or set CAIRN_TOKEN",
                    self.url.text, self.url.text
                ),
            ),
            _ => Failure::new(kind, text),
        }
    }

    /// A connection that ended too early.
    pub fn broken(&self, e: &io::Error) -> Failure {
        Failure::new("io", format!("{}: the connection broke off: {e}", self.url.text))
    }

    /// Why the server could not be asked.
    pub fn unreachable(&self, e: ureq::Error) -> Failure {
        match e {
            ureq::Error::Io(e) => self.not_connected(&e),
            ureq::Error::Rustls(e) => self.untrusted(&e),
            ureq::Error::HostNotFound => {
                Failure::new("unavailable", format!("{}: there is no host {}", self.url.text, self.url.host))
            }
            ureq::Error::Timeout(what) => {
                Failure::new("unavailable", format!("{} does not answer in time ({what})", self.url.text))
            }
            ureq::Error::Protocol(e) => {
                let hint = if self.url.tls { "" } else { ": should its URL begin with https://?" };
                Failure::new("io", format!("{} does not speak HTTP ({e}){hint}", self.url.text))
            }
            e => Failure::new("io", format!("{}: {e}", self.url.text)),
        }
    }

    /// Why there is no connection.
    pub fn not_connected(&self, e: &io::Error) -> Failure {
        let tls = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(e) = tls {
            return self.untrusted(e);
        }
        match e.kind() {
            io::ErrorKind::ConnectionRefused => {
                let text = match self.url.is_near() {
                    true => "does it run? cairn serve --pool DIR --api, or cairn login URL for another one",
                    false => "does it run there, and does it listen on that address?",
                };
                Failure::new("unavailable", format!("nobody listens at {}: {text}", self.url.text))
            }
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Failure::new("unavailable", format!("{} does not answer in time", self.url.text))
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset if !self.url.tls => {
                let text = "was it stopped, or should its URL begin with https://?";
                Failure::new("io", format!("{} closed the connection without an answer: {text}", self.url.text))
            }
            _ => Failure::new("io", format!("{}: {e}", self.url.text)),
        }
    }

    fn untrusted(&self, e: &rustls::Error) -> Failure {
        let text = match e {
            rustls::Error::InvalidCertificate(_) => {
                "if its authority is your own, give its certificate with --ca-file PEM or CAIRN_CA"
            }
            rustls::Error::InvalidMessage(_) => "should its URL begin with http://?",
            _ => "its TLS and ours do not go together",
        };
        Failure::new("denied", format!("{}: {e}: {text}", self.url.text))
    }
}

/// The kind of failure that a status stands for.
pub fn kind_of(status: u16) -> &'static str {
    match status {
        401 | 403 => "denied",
        404 | 410 => "not_found",
        409 => "exists",
        429 | 503 => "busy",
        507 => "no_space",
        400..=499 => "invalid",
        _ => "io",
    }
}

/// What a server says of a failure, in any of the forms that there are.
fn reason(said: &[u8]) -> Option<String> {
    let short = |text: &str| text.trim().chars().take(2000).collect::<String>();
    let Ok(value) = serde_json::from_slice::<Value>(said) else {
        return Some(short(&String::from_utf8_lossy(said))).filter(|text| !text.is_empty());
    };
    let listed =
        value["errors"].as_array().map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "));
    let text = value["message"].as_str().or(value["error"].as_str()).map(str::to_owned).or(listed)?;
    Some(match value["path"].as_str() {
        Some(path) if !text.contains(path) => short(&format!("{path}: {text}")),
        _ => short(&text),
    })
}

/// A sandbox of a server.
pub struct Sandbox {
    pub remote: Remote,
    pub name: String,
}

impl Sandbox {
    /// The sandbox that a command means.
    pub fn found(said: Option<&str>, server: &Server) -> Result<Self, Failure> {
        let name = sandbox(said)?;
        Ok(Self { remote: Remote::found(server)?, name })
    }

    /// A path below it.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/sprites/{}{rest}", encoded(&self.name))
    }

    /// Sends a request and waits for a good answer.
    pub fn ask(&self, method: &str, rest: &str, content: Content<'_>) -> Result<Value, Failure> {
        self.remote.ask(method, &self.path(rest), content).map_err(|e| self.named(e))
    }

    /// The same failure; that there is no such sandbox is said with its name.
    pub fn named(&self, failure: Failure) -> Failure {
        if failure.kind == "not_found" && failure.message == "sprite not found" {
            let text = format!("there is no sandbox {:?} at {}: cairn list", self.name, self.remote.url.text);
            return Failure::new("not_found", text);
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_in_every_form() {
        let of = |text: &str| reason(text.as_bytes());
        assert_eq!(of("{\"error\": \"gone\"}").as_deref(), Some("gone"));
        assert_eq!(of("{\"error\": \"code\", \"message\": \"do this\"}").as_deref(), Some("do this"));
        assert_eq!(of("{\"errors\": [\"a\", \"b\"]}").as_deref(), Some("a; b"));
        assert_eq!(of("{\"error\": \"no\", \"path\": \"/x\"}").as_deref(), Some("/x: no"));
        assert_eq!(
            (of(" plain text\n").as_deref(), of(""), of("{}"), of("[1]")),
            (Some("plain text"), None, None, None)
        );
        assert_eq!((kind_of(404), kind_of(418), kind_of(500), kind_of(302)), ("not_found", "invalid", "io", "io"));
    }
}
