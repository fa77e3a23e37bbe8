//! A file or folder as it is told: what `fs list` and `fs read` say of it.

use serde_json::{json, Value};
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// A file's type, in the words of the API.
fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () => "file",
    }
}

/// What is told of the file at `path`; times in nanoseconds since 1970.
pub(crate) fn entry(path: &Path, metadata: &Metadata) -> Value {
    let name = path.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy());
    json!({
        "name": name,
        "path": path.to_string_lossy(),
        "type": kind(metadata),
        "size": metadata.len(),
        "mode": format!("{:04o}", metadata.permissions().mode() & 0o7777),
        "modTimeNs": i128::from(metadata.mtime()) as i64 * 1_000_000_000 + metadata.mtime_nsec(),
        "isDir": metadata.is_dir(),
        "uid": metadata.uid(),
        "gid": metadata.gid(),
    })
}
