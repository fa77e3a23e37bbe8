//! Files. What a guest's agent says of them goes through these types: nothing else of it reaches a client.

use crate::time::rfc3339;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

fn from_ns<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(rfc3339(i64::deserialize(from)? / 1000))
}

/// A file or folder.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// `file`, `directory` or `symlink`.
    pub r#type: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// Permissions, in octal digits.
    #[serde(default)]
    pub mode: String,
    /// When its contents changed (RFC 3339).
    #[serde(rename(serialize = "modTime", deserialize = "modTimeNs"), deserialize_with = "from_ns", default)]
    #[schema(rename = "modTime")]
    pub mod_time: String,
    /// Whether it is a folder.
    #[serde(rename = "isDir")]
    pub is_dir: bool,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

/// What is in a folder; of a file, itself.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FileList {
    /// What was asked for.
    pub path: String,
    /// By path, a folder before what is in it.
    pub entries: Vec<FileEntry>,
    /// How many.
    pub count: usize,
    /// Whether those are all: beyond 100,000 they are not.
    #[serde(default)]
    pub complete: bool,
}

/// A file that was written.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FileWritten {
    /// It.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Permissions, in octal digits.
    pub mode: String,
}

/// What was deleted.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FilesDeleted {
    /// What was asked for.
    pub deleted: Vec<String>,
    /// How many.
    pub count: usize,
}

/// From where to where.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FromTo {
    /// From here.
    pub source: String,
    /// To here.
    pub dest: String,
}

/// What was copied.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FilesCopied {
    /// Each file and folder; at most 100,000 are told.
    pub copied: Vec<FromTo>,
    /// How many are told.
    pub count: usize,
    /// Bytes of all.
    #[serde(rename = "totalBytes")]
    pub total_bytes: u64,
}

/// What was changed.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FilesChanged {
    /// Each file and folder; at most 100,000 are told.
    pub affected: Vec<FileChanged>,
    /// How many are told.
    pub count: usize,
}

/// A file that was changed.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FileChanged {
    /// It.
    pub path: String,
    /// Its permissions, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Its owner, if that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group, if that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// Moves or copies a file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FromToRequest {
    /// From here.
    pub source: Option<String>,
    /// To here.
    pub dest: Option<String>,
    /// What paths without a leading `/` begin at.
    pub working_dir: Option<String>,
    /// With all that is in a folder (copying).
    pub recursive: Option<bool>,
}

/// Changes who may do what.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModeRequest {
    /// The file or folder.
    pub path: Option<String>,
    /// What a path without a leading `/` begins at.
    pub working_dir: Option<String>,
    /// Permissions, in octal digits.
    pub mode: Option<String>,
    /// With all that is in a folder.
    pub recursive: Option<bool>,
}

/// Changes whose a file is.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRequest {
    /// The file or folder.
    pub path: Option<String>,
    /// What a path without a leading `/` begins at.
    pub working_dir: Option<String>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// With all that is in a folder.
    pub recursive: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_files_are_written_as_the_api_does() {
        let entry = serde_json::json!({"name": "a", "path": "/a", "type": "file", "size": 1, "mode": "0644",
            "modTimeNs": 1_700_000_000_000_001_000_i64, "isDir": false, "uid": 0, "gid": 0});
        let entry: FileEntry = serde_json::from_value(entry).expect("an entry");
        let told = serde_json::to_value(entry).expect("JSON");
        assert_eq!(told["modTime"], "2023-11-14T22:13:20.000001Z");
        assert!(told.get("modTimeNs").is_none());
    }
}
