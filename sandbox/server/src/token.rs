//! Tokens: who may use the API, and for what.
//!
//! A token's text is `ORG/ORG-ID/TOKEN-ID/SECRET`. The registry has a hash of the secret, never the secret; 256
//! random bits need no slow hash. What is compared is compared in constant time.

use std::fs::File;
use std::io::{self, Read};

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All sandboxes of the organization.
    Organization,
    /// This sandbox.
    Sandbox(String),
}

impl Scope {
    /// `org`, or `sandbox:NAME`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("sandbox:") {
            Some(name) if !name.is_empty() => Some(Self::Sandbox(name.to_owned())),
            Some(_) => None,
            None => (text == "org").then_some(Self::Organization),
        }
    }

    /// As [`Scope::parse`] takes it.
    pub fn text(&self) -> String {
        match self {
            Self::Organization => "org".to_owned(),
            Self::Sandbox(name) => format!("sandbox:{name}"),
        }
    }
}

/// A token in the hands of whoever uses it.
#[derive(Clone)]
pub struct Token {
    /// The organization's name.
    pub org: String,
    /// What finds it in the registry.
    pub id: String,
    secret: String,
}

/// A token as it is listed.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// What finds it.
    pub id: String,
    /// The organization.
    pub org: String,
    /// What it is good for.
    pub scope: String,
    /// Microseconds since 1970.
    pub created_us: i64,
    /// The same, if it ends.
    pub expires_us: Option<i64>,
}

/// Random bytes as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> io::Result<String> {
    let mut out = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut out)?;
    Ok(out.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn new(org: &str) -> io::Result<Self> {
        Ok(Self { org: org.to_owned(), id: random_hex(8)?, secret: random_hex(32)? })
    }

    /// The text that is handed out, once.
    pub fn text(&self) -> String {
        format!("{}/{}/{}/{}", self.org, org_id(&self.org), self.id, self.secret)
    }

    /// From the text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (org, _, id, secret) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let plain = |text: &str| !text.is_empty() && text.len() <= 128;
        ([org, id, secret].into_iter().all(plain) && parts.next().is_none()).then(|| Self {
            org: org.to_owned(),
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// What the registry keeps.
    pub(crate) fn hash(&self) -> String {
        blake3::derive_key("cairn sandbox token 1", self.secret.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether the registry's hash is this token's.
    pub(crate) fn is(&self, hash: &str) -> bool {
        let (own, other) = (self.hash(), hash.as_bytes());
        // Hashes have one length; their digits are compared to the end.
        own.len() == other.len() && own.bytes().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

/// A number for an organization's name.
pub(crate) fn org_id(org: &str) -> String {
    blake3::hash(org.as_bytes()).to_hex().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_text_and_by_nothing_else() {
        let token = Token::new("local").expect("random bytes");
        let again = Token::parse(&token.text()).expect("its text");
        assert!(again.is(&token.hash()) && again.id == token.id && again.org == "local");
        let other = Token::new("local").expect("random bytes");
        assert!(!other.is(&token.hash()) && !other.is("") && !other.is("00"));
        for bad in ["", "a", "a/b/c", "a/b//d", "a/b/c/", "a/b/c/d/e"] {
            assert!(Token::parse(bad).is_none(), "{bad}");
        }
        assert!(!format!("{:?}", token.hash()).contains(&token.secret));
    }

    #[test]
    fn scopes() {
        for text in ["org", "sandbox:web"] {
            assert_eq!(Scope::parse(text).expect("a scope").text(), text);
        }
        assert!(Scope::parse("sandbox:").is_none() && Scope::parse("all").is_none());
    }
}
