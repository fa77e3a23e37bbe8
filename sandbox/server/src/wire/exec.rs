//! Commands.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A command that is answered as a whole.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct ExecRequest {
    /// For `sh -c`.
    pub command: Option<String>,
    /// The folder to begin in.
    pub dir: Option<String>,
}

/// What a command did.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ExecResult {
    /// What it wrote; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// And on standard error.
    pub stderr: String,
    /// Its status; 128 and a signal's number; 255 if its guest ended under it.
    pub exit_code: u8,
}

/// A command that runs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SessionInfo {
    /// Its number in the guest.
    pub id: String,
    /// When it began (RFC 3339).
    pub created: String,
    /// Its words.
    pub command: String,
    /// Where it began.
    pub workdir: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// What it wrote, over its time.
    pub bytes_per_second: f64,
    /// Whether it wrote within 30 seconds.
    pub is_active: bool,
    /// When it wrote last (RFC 3339).
    pub last_activity: String,
}

/// Commands that run.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SessionList {
    /// How many.
    pub count: usize,
    /// They, the oldest first.
    pub sessions: Vec<SessionInfo>,
}

/// A number of seconds, or a text like `10s`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Seconds {
    /// Seconds.
    Number(u64),
    /// With a unit.
    Text(String),
}

/// How to end a command.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct KillRequest {
    /// `SIGTERM` without.
    pub signal: Option<String>,
    /// When it is killed if it has not ended; 10 s without, 0 is never.
    pub timeout: Option<Seconds>,
}
