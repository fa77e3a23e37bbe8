//! Where the daemon's log goes: lines on standard error, for people or as JSON.
//!
//! Not here: what is logged (`nbd-server`). Commands start nothing of this.

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What needs somebody to act
    Error,
    /// What may need that soon
    Warn,
    /// Start and end, clients, changes to volumes and checkpoints
    Info,
    /// Anchors, strangers, failed commands
    Debug,
}

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text an event
    Text,
    /// One JSON object an event
    Json,
}

/// Logs to standard error from now on; the first call in a process decides.
pub fn start(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
