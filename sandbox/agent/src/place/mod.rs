//! `/.sprite`: what a guest finds there of its host, and the socket to it.
//!
//! Invariants
//!   * a file is written only if it is another, and then as a whole;
//!   * what cannot be put there is told, and keeps nothing else from its place;
//!   * a new socket takes an old one's place in one step.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where it is.
pub(crate) const ROOT: &str = "/.sprite";
/// Where the socket is when nothing can be made in [`ROOT`]: a disk may be full, or only be read.
pub(crate) const SPARE: &str = "/run/sprite";
/// The socket.
pub(crate) const SOCKET: &str = "api.sock";
/// The command, and a folder where every shell looks for it.
pub(crate) const COMMAND: &str = "sprite-env";
const IN_PATH: &str = "/usr/local/bin";

/// Texts, by where they are.
const TEXTS: [(&str, &str); 3] = [
    ("docs/agent-context.md", include_str!("agent-context.md")),
    ("llm.txt", include_str!("llm.txt")),
    ("version.txt", concat!("cairn ", env!("CARGO_PKG_VERSION"), "\n")),
];

pub(crate) struct Place {
    root: PathBuf,
    /// The real one, which has a spare and a name in the guest's PATH.
    is_real: bool,
}

fn explain(what: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", what.display()))
}

/// A folder that everybody may look into.
fn folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|have| have == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let written = fs::write(&new, text)
        .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// A link to `target`; what somebody else has put there stays.
fn link(path: &Path, target: &Path) -> io::Result<()> {
    match fs::read_link(path) {
        Ok(have) if have == target => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return Ok(()),
    }
    symlink(target, path)
}

impl Place {
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), is_real: root == Path::new(ROOT) }
    }

    /// Puts everything there but the socket; `complain` hears of what cannot be.
    pub(crate) fn fill(&self, complain: &mut dyn FnMut(io::Error)) {
        let mut attempt = |path: &Path, outcome: io::Result<()>| {
            let _ = outcome.map_err(|e| complain(explain(path)(e)));
        };
        for below in ["", "bin", "docs"] {
            let path = self.root.join(below);
            attempt(&path, folder(&path));
        }
        for (below, text) in TEXTS {
            let path = self.root.join(below);
            attempt(&path, put(&path, text));
        }
        let command = self.root.join("bin").join(COMMAND);
        attempt(&command, std::env::current_exe().and_then(|own| link(&command, &own)));
        if self.is_real {
            let path = Path::new(IN_PATH).join(COMMAND);
            attempt(&path, fs::create_dir_all(IN_PATH).and_then(|()| link(&path, &command)));
        }
    }

    /// Listens, for every user of the guest.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        let at = |root: &Path| {
            let (path, new) = (root.join(SOCKET), root.join(".api.sock.new"));
            let _ = fs::remove_file(&new);
            let listener = UnixListener::bind(&new)?;
            fs::set_permissions(&new, Permissions::from_mode(0o666))?;
            fs::rename(&new, &path)?;
            Ok(listener)
        };
        let spare = Path::new(SPARE);
        match at(&self.root) {
            Err(_) if self.is_real => folder(spare).and_then(|()| at(spare)).map_err(explain(spare)),
            // A spare that is left from before would be found by nobody.
            other => other.map_err(explain(&self.root)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn filled(place: &Place) -> Vec<String> {
        let mut complaints = Vec::new();
        place.fill(&mut |e| complaints.push(e.to_string()));
        complaints
    }

    #[test]
    fn everything_is_put_there_once_and_what_was_changed_is_put_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("sprite");
        let place = Place::at(&root);
        assert_eq!(filled(&place), [""; 0]);
        let text = root.join("docs/agent-context.md");
        let before = fs::metadata(&text).expect("a file").ino();
        assert_eq!(filled(&place), [""; 0]);
        assert_eq!(fs::metadata(&text).expect("a file").ino(), before, "it is not written again");
        fs::write(&text, "something else").expect("written");
        fs::remove_file(root.join("bin/sprite-env")).expect("removed");
        assert_eq!(filled(&place), [""; 0]);
        assert!(fs::read_to_string(&text).expect("text").contains("sprite-env checkpoints"));
        assert_eq!(fs::read_link(root.join("bin/sprite-env")).ok(), std::env::current_exe().ok());
        assert!(fs::read_to_string(root.join("llm.txt")).expect("text").contains("/.sprite/docs/agent-context.md"));
    }

    #[test]
    fn what_cannot_be_put_there_is_told_and_the_rest_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("docs"), "no folder").expect("a file");
        let place = Place::at(folder.path());
        assert_eq!(filled(&place).len(), 2, "the folder, and the text in it");
        assert!(folder.path().join("llm.txt").exists() && folder.path().join("bin/sprite-env").exists());
        assert!(place.listen().is_ok());
    }

    #[test]
    fn the_next_to_listen_takes_the_place_and_everybody_may_connect() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::at(folder.path());
        let first = place.listen().expect("a socket");
        let second = place.listen().expect("another");
        second.set_nonblocking(true).expect("a socket");
        first.set_nonblocking(true).expect("a socket");
        let path = folder.path().join(SOCKET);
        assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o666);
        let _client = std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
        assert!(second.accept().is_ok() && first.accept().is_err());
    }
}
