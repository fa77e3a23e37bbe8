//! Which sandbox a command means: what it says, else `CAIRN_SANDBOX`, else what `cairn use` wrote for this folder.
//!
//! A file `.cairn` names a sandbox and nothing else: a folder that was got from somebody cannot choose a server.

use crate::client::Failure;
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The file that `cairn use` writes.
pub const FILE: &str = ".cairn";
/// Bytes of it that are read.
const FILE_MAX: u64 = 4096;

/// The nearest file from `folder` upwards, and the sandbox that it names.
pub fn of_folder(folder: &Path) -> Option<(PathBuf, String)> {
    folder.ancestors().find_map(|folder| {
        let path = folder.join(FILE);
        if !fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let mut text = String::new();
        File::open(&path).ok()?.take(FILE_MAX).read_to_string(&mut text).ok()?;
        let found: Value = serde_json::from_str(&text).ok()?;
        let name = found["sandbox"].as_str().filter(|name| is_name(name))?.to_owned();
        Some((path, name))
    })
}

/// Whether a sandbox can be called so.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-') && !name.ends_with('-')
}

/// Writes down that commands in `folder` mean the sandbox `name`.
pub fn choose(folder: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = folder.join(FILE);
    fs::write(&path, format!("{}\n", json!({"sandbox": name}))).map_err(Failure::of_file(&path))?;
    Ok(path)
}

/// The sandbox that is meant without being named, and who says so.
pub fn in_use() -> Option<(String, String)> {
    if let Some(name) = std::env::var("CAIRN_SANDBOX").ok().filter(|name| !name.is_empty()) {
        return Some((name, "CAIRN_SANDBOX".to_owned()));
    }
    let (path, name) = of_folder(&std::env::current_dir().ok()?)?;
    Some((name, path.display().to_string()))
}

/// The sandbox that a command means.
pub fn sandbox(said: Option<&str>) -> Result<String, Failure> {
    let which =
        || Failure::new("invalid", "which sandbox? give -s NAME, set CAIRN_SANDBOX, or say cairn use NAME here");
    let name = said.map(str::to_owned).or_else(|| in_use().map(|(name, _)| name)).ok_or_else(which)?;
    match is_name(&name) {
        true => Ok(name),
        false => Err(Failure::new("invalid", format!("{name:?} is no sandbox's name: use a-z, 0-9 and '-'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_upwards_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("a/b/c");
        fs::create_dir_all(&deep).expect("folders");
        assert!(choose(folder.path(), "outer").is_ok());
        assert_eq!(of_folder(&deep).map(|(_, name)| name).as_deref(), Some("outer"));
        assert!(choose(&folder.path().join("a/b"), "inner").is_ok());
        assert_eq!(of_folder(&deep).map(|(_, name)| name).as_deref(), Some("inner"));
        // What is no such file, or names no sandbox, is passed by.
        fs::create_dir(deep.join(FILE)).expect("a folder");
        fs::write(folder.path().join("a").join(FILE), "{\"sandbox\": \"../x\"}").expect("a file");
        assert_eq!(of_folder(&folder.path().join("a")).map(|(_, name)| name).as_deref(), Some("outer"));
        assert_eq!(of_folder(&deep).map(|(_, name)| name).as_deref(), Some("inner"));
    }

    #[test]
    fn names() {
        assert!(is_name("web") && is_name("a-1") && !is_name("") && !is_name("A") && !is_name("-a") && !is_name("a/b"));
        assert!(sandbox(Some("a b")).is_err() && sandbox(Some("web")).is_ok());
    }
}
