//! What `cairn login` keeps: a token for each server, and which server was last logged in to.
//!
//! Invariants
//!   * the file is its owner's alone (mode 0600), also while it is written, and is refused when others can read it;
//!   * it is replaced as a whole: a command that is killed leaves the old or the new one;
//!   * a token is never printed, and goes to no other server than the one it was kept for.

use crate::client::Failure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the file at most.
const FILE_MAX: u64 = 1 << 20;

/// What is in the file.
#[derive(Default, Deserialize, Serialize)]
pub struct Credentials {
    /// The server that commands go to when nothing else is said.
    pub current: Option<String>,
    /// By URL.
    #[serde(default)]
    servers: BTreeMap<String, Server>,
}

/// What is kept for a server.
#[derive(Deserialize, Serialize)]
struct Server {
    token: String,
    /// The authorities whose certificate it has, if they are not the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

/// Where the file is: below `XDG_CONFIG_HOME`, or `~/.config`.
pub fn place() -> Option<PathBuf> {
    let folder = |key: &str| std::env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(config.join("cairn").join("credentials.json"))
}

impl Credentials {
    /// What is kept at `path`; nothing if there is no file.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let file = match fs::File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(Failure::of_file(path))?,
        };
        let mode = file.metadata().map_err(Failure::of_file(path))?.mode();
        if mode & 0o077 != 0 {
            let text = format!("{}: others can read the tokens in it: chmod 600 it, or log in anew", path.display());
            return Err(Failure::new("denied", text));
        }
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text).map_err(Failure::of_file(path))?;
        serde_json::from_str(&text)
            .map_err(|_| Failure::new("io", format!("{}: it does not read: remove it and log in anew", path.display())))
    }

    /// The token for a server.
    pub fn token(&self, url: &str) -> Option<&str> {
        self.servers.get(url).map(|server| server.token.as_str())
    }

    /// The file of authorities that it was logged in with.
    pub fn ca_file(&self, url: &str) -> Option<&Path> {
        self.servers.get(url)?.ca_file.as_deref()
    }

    /// Keeps a token, and makes its server the current one.
    pub fn keep(&mut self, url: &str, token: &str, ca_file: Option<PathBuf>) {
        self.current = Some(url.to_owned());
        self.servers.insert(url.to_owned(), Server { token: token.to_owned(), ca_file });
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let fail = Failure::of_file(path);
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Failure::of_file(folder))?;
        }
        let new = path.with_extension(format!("json.{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        let done = write();
        if done.is_err() {
            let _ = fs::remove_file(&new);
        }
        done.map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn tokens_are_kept_by_server_in_a_file_of_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config/cairn/credentials.json");
        let mut kept = Credentials::load(&path).unwrap_or_default();
        kept.keep("https://a", "token-a", Some(PathBuf::from("/ca.pem")));
        kept.keep("http://b", "token-b", None);
        assert!(kept.save(&path).is_ok());
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("a folder").count(), 1);
        let again = Credentials::load(&path).unwrap_or_default();
        assert_eq!((again.current.as_deref(), again.token("https://a")), (Some("http://b"), Some("token-a")));
        assert_eq!(again.token("http://a"), None);
        assert_eq!((again.ca_file("https://a"), again.ca_file("http://b")), (Some(Path::new("/ca.pem")), None));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        assert!(Credentials::load(&path).is_err_and(|e| e.message.contains("chmod 600")));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        fs::write(&path, "{\"servers\": {\"u\": \"secret\"").expect("a file");
        assert!(Credentials::load(&path).is_err_and(|e| !e.message.contains("secret")));
    }
}
