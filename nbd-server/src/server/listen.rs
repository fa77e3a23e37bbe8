//! Addresses to listen on: what they mean, whether they can be right, and listening there.
//!
//! Invariants
//!   * the sockets in the file system can be used by their owner alone, and TCP beyond loopback only with TLS;
//!   * what cannot be right is found by [`Listen::check_all`], before anything is opened or made; what
//!     depends on others, as a port that is taken, by listening itself.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket: the system's own bound.
const SOCKET_PATH_MAX: usize = 107;

/// Where NBD clients are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address; beyond loopback only with TLS.
    Tcp(String),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listen {
    /// Reads `unix:PATH` or `tcp:HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?} is not an address: use unix:PATH or tcp:HOST:PORT");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Listen::Unix(path.into())),
            Some(("tcp", address)) => {
                let (host, port) = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or_else(usage)?;
                if port.parse::<u16>().is_err() {
                    return Err(format!("{text}: {port:?} is not a port: use a number from 0 to 65535"));
                }
                if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
                    return Err(format!("{text}: write an IPv6 address in brackets, as in tcp:[::1]:10809"));
                }
                Ok(Listen::Tcp(address.to_owned()))
            }
            _ => Err(usage()),
        }
    }

    /// Whether all of `listen` can be right, with or without TLS.
    ///
    /// # Errors
    /// What is wrong with the first that cannot, for a person.
    pub fn check_all(listen: &[Self], tls: bool) -> Result<(), String> {
        for (i, one) in listen.iter().enumerate() {
            if listen.iter().take(i).any(|other| other == one) {
                return Err(format!("{one} is given twice"));
            }
            match one {
                Listen::Unix(path) => check_socket_path(path),
                Listen::Tcp(address) => resolve(address, tls).map(drop),
            }
            .map_err(|why| format!("{one}: {why}"))?;
        }
        Ok(())
    }

    pub(super) fn bind(&self, tls: bool) -> io::Result<Listener> {
        match self {
            Listen::Unix(path) => listen_unix(path).map(Listener::Unix),
            Listen::Tcp(address) => listen_tcp(address, tls).map(Listener::Tcp),
        }
        .map_err(|e| explain(self, &e))
    }
}

/// What to do about a failure to listen.
pub(super) fn explain(on: &impl fmt::Display, e: &io::Error) -> io::Error {
    let advice = match e.kind() {
        ErrorKind::AddrInUse => ": something listens there already: stop it, or choose another address",
        ErrorKind::AddrNotAvailable => ": this machine does not have that address",
        ErrorKind::PermissionDenied => ": ports below 1024 and foreign folders need root",
        _ => "",
    };
    io::Error::new(e.kind(), format!("listening on {on}: {e}{advice}"))
}

pub(super) fn check_socket_path(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_MAX {
        return Err(format!(
            "the path has {bytes} bytes, and a socket's can have {SOCKET_PATH_MAX}: choose a shorter one"
        ));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        return Err(format!("there is no folder {}: make it first", folder.display()));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err("there is something at this path that is no socket: remove it, or choose another path".to_owned())
        }
        _ => Ok(()),
    }
}

/// The addresses behind a name; all of them on loopback unless TLS is in use.
fn resolve(address: &str, tls: bool) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(|e| e.to_string())?.collect();
    if !tls && found.iter().any(|a| !a.ip().is_loopback()) {
        return Err(format!(
            "{address} is not a loopback address: give --tls-cert and --tls-key, and --tls-client-ca to let in only \
             clients you know; without TLS, NBD is served on loopback and Unix sockets only"
        ));
    }
    Ok(found)
}

pub(super) fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    check_socket_path(path).map_err(|why| io::Error::new(ErrorKind::InvalidInput, why))?;
    // A socket left by a killed daemon: nobody listens there any more.
    if UnixStream::connect(path).is_err() && fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn listen_tcp(address: &str, tls: bool) -> io::Result<TcpListener> {
    let found = resolve(address, tls).map_err(|why| io::Error::new(ErrorKind::InvalidInput, why))?;
    let listener = TcpListener::bind(found.as_slice())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_are_told_apart_from_those_that_can() {
        for good in ["unix:/run/x", "unix:x", "tcp:localhost:10809", "tcp:127.0.0.1:0", "tcp:[::1]:65535"] {
            assert_eq!(Listen::parse(good).map(|l| l.to_string()).as_deref(), Ok(good));
        }
        for (bad, words) in [
            ("unix:", "unix:PATH"),
            ("/run/x", "unix:PATH"),
            ("tcp:10809", "HOST"),
            ("tcp::10809", "HOST"),
            ("tcp:localhost:99999", "port"),
            ("tcp:localhost:", "port"),
            ("tcp:::1:10809", "brackets"),
        ] {
            let said = Listen::parse(bad).expect_err(bad);
            assert!(said.contains(words), "{bad}: {said}");
        }
    }
}
