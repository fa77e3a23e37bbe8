//! Checkpoints, and what differs between them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A new checkpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct CheckpointCreate {
    /// Words to remember it by.
    pub comment: Option<String>,
    /// With what the guest has in its memory: restoring it brings processes back.
    pub memory: Option<bool>,
    /// `local`, or `remote`: the answer comes when it is in the object store.
    pub wait: Option<String>,
}

/// A checkpoint.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Checkpoint {
    /// `v1`, `v2`, …; `auto-1`, …: what a restore replaced; `Current`: the present.
    pub id: String,
    /// When it was made (RFC 3339).
    pub create_time: String,
    /// Its comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether a restore made it: going back to it undoes the restore.
    pub is_auto: bool,
    /// `local`: on the host's disk; `remote`: in the object store, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// Bytes that would be free without it; null where that is not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_exclusive: Option<u64>,
    /// The sandbox that it was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// Size of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether restoring it brings processes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_memory: Option<bool>,
    /// In a list: the checkpoints that the disk was at before, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<String>,
}

/// A line of an answer that is told while the work goes on; the last is `complete` or `error`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Line {
    /// `info`, `complete` or `error`.
    pub r#type: String,
    /// What is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When (RFC 3339).
    pub time: String,
}

/// A state of a file that differs.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FileState {
    /// `file`, `folder`, `link`, `device`, `pipe` or `socket`.
    pub kind: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its permissions, in octal digits.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file that differs.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct FileDifference {
    /// Its path without a leading `/`; that before, if it is gone.
    pub path: String,
    /// `added`, `removed`, `modified`, `renamed` or `attributes`.
    pub change: String,
    /// As it was.
    pub before: Option<FileState>,
    /// As it is.
    pub after: Option<FileState>,
    /// Where it was, of one that was renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether one that was renamed has other contents, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<bool>,
}

/// What differs between two checkpoints.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Differences {
    /// Bytes of the disk.
    pub changed_bytes: u64,
    /// Whether those are all: beyond a million pieces they are not.
    pub complete: bool,
    /// Files, by path.
    pub files: Vec<FileDifference>,
}
