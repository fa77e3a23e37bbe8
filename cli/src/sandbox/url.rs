//! The URL of a server, and words as parts of one.

use crate::client::Failure;
use ureq::http::Uri;

/// Where `cairn serve --api` listens unless it is told otherwise.
pub const DEFAULT: &str = "http://127.0.0.1:7420";

/// A server: the scheme, the host, the port, and what stands before every path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// In one form, without a slash at the end: what tokens are kept by.
    pub text: String,
    /// Whether it is `https`.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port, also when the URL says none.
    pub port: u16,
}

impl Url {
    /// What somebody wrote; a missing scheme is `http` for this machine and else `https`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let bad = |why: &str| Failure::new("invalid", format!("{text:?} is no URL of a server: {why}"));
        let trimmed = text.trim();
        let with_scheme = match trimmed.contains("://") {
            true => trimmed.to_owned(),
            false => {
                let near = ["localhost", "127.", "[::1]"].iter().any(|host| trimmed.starts_with(host));
                format!("{}://{trimmed}", if near { "http" } else { "https" })
            }
        };
        let uri: Uri = with_scheme.parse().map_err(|_| bad("use http://HOST:PORT or https://HOST"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("use http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("a token does not go into a URL: use cairn login"));
        }
        if uri.query().is_some() {
            return Err(bad("it has a query"));
        }
        let host = authority.host().to_ascii_lowercase();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let shown = authority.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        let scheme = if tls { "https" } else { "http" };
        let text = format!("{scheme}://{host}{shown}{}", uri.path().trim_end_matches('/'));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        Ok(Self { text, tls, host, port })
    }

    /// Whether it is this machine.
    pub fn is_near(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// The same place for WebSockets.
    pub fn for_sockets(&self) -> String {
        format!("ws{}", self.text.strip_prefix("http").unwrap_or(&self.text))
    }
}

/// A word as it can stand anywhere in a URL.
pub fn encoded(word: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    word.bytes().map(one).collect()
}

/// A query of names and values.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let all: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    format!("?{}", all.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(String, bool, String, u16)> {
        Url::parse(text).ok().map(|url| (url.text, url.tls, url.host, url.port))
    }

    #[test]
    fn urls_have_one_form() {
        let told = |text: &str, tls, host: &str, port| Some((text.to_owned(), tls, host.to_owned(), port));
        assert_eq!(of(DEFAULT), told(DEFAULT, false, "127.0.0.1", 7420));
        assert_eq!(of(" HTTPS://Api.Example.com/ "), told("https://api.example.com", true, "api.example.com", 443));
        assert_eq!(of("https://host/base/"), told("https://host/base", true, "host", 443));
        assert_eq!(of("http://[::1]:80"), told("http://[::1]:80", false, "::1", 80));
        assert_eq!(of("localhost:7420"), told("http://localhost:7420", false, "localhost", 7420));
        assert_eq!(of("example.com"), told("https://example.com", true, "example.com", 443));
        for bad in ["", "http://", "ftp://x", "http://a:b@c", "http://x?y", "http://a b", "https://:80"] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(Url::parse("https://x").map(|url| url.for_sockets()).ok().as_deref(), Some("wss://x"));
    }

    #[test]
    fn words_are_encoded() {
        assert_eq!(encoded("a b/ü?&=+%"), "a%20b%2F%C3%BC%3F%26%3D%2B%25");
        assert_eq!(query(&[("cmd", "a b"), ("cmd", "c")]), "?cmd=a%20b&cmd=c");
    }
}
