//! The command line.

use crate::logging::{LogFormat, LogLevel};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Checkpointing volumes for virtual machines, served over NBD.
#[derive(Parser)]
#[command(
    version,
    after_help = "Start with:\n  cairn serve --pool /var/lib/cairn --nbd unix:/run/cairn.sock\n  cairn --pool /var/lib/cairn volume create disk --size 100G\n\nExit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists or busy, 5 damaged, 6 no space."
)]
pub struct Cli {
    /// The pool's folder
    #[arg(long, global = true, env = "CAIRN_POOL", value_name = "DIR")]
    pub pool: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Subcommand)]
pub enum Verb {
    /// Run the storage daemon on a pool
    Serve(ServeArgs),
    /// Create, list, resize, import, export and delete volumes
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Create, list, compare and delete checkpoints
    #[command(subcommand)]
    Checkpoint(CheckpointVerb),
    /// Make a volume what it was at a checkpoint (what it is now is kept as auto-N)
    Restore {
        /// The volume
        volume: String,
        /// The checkpoint: v1, v2, … or auto-1, …
        id: String,
        /// Disconnect clients that use the volume
        #[arg(long)]
        force: bool,
    },
    /// Make a new volume that starts as another one, or as one of its checkpoints
    Fork {
        /// VOL or VOL@ID
        source: String,
        /// Name of the new volume
        name: String,
    },
    /// Read every stored block of the pool and verify its checksum
    Scrub {
        /// A volume of the pool
        volume: Option<String>,
    },
    /// Recompute the pool's accounts by walking every root (no daemon may run)
    Check,
    /// Figures of the pool
    Stats {
        /// In the text form of Prometheus (needs the daemon)
        #[arg(long)]
        metrics: bool,
    },
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
}

/// Options of the daemon.
#[derive(Args)]
pub struct ServeArgs {
    /// Serve NBD here: unix:PATH or tcp:HOST:PORT (beyond loopback only with TLS); may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Vec<String>,
    /// Certificate chain of this daemon; with it every TCP client must use TLS
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities whose clients are let in; without it every client that can connect is
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Memory for map pages
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    pub map_cache: String,
    /// How much to log, on standard error
    #[arg(long, value_enum, default_value = "info", env = "CAIRN_LOG", value_name = "LEVEL")]
    pub log_level: LogLevel,
    /// Form of the log
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    pub log_format: LogFormat,
    /// Segments of 32 MiB prepared in advance, for fast flushes
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub spares: usize,
}

/// On volumes.
#[derive(Subcommand)]
pub enum VolumeVerb {
    /// Make an empty volume
    Create {
        /// Its name
        name: String,
        /// Its size: 100G, 512M, …
        #[arg(long)]
        size: String,
    },
    /// All volumes
    List,
    /// One volume, with its space
    Info {
        /// The volume
        name: String,
    },
    /// Change a volume's size
    Resize {
        /// The volume
        name: String,
        /// The new size
        size: String,
        /// Disconnect clients that use the volume
        #[arg(long)]
        force: bool,
    },
    /// Delete a volume and its checkpoints
    Delete {
        /// The volume
        name: String,
        /// Disconnect clients that use the volume
        #[arg(long)]
        force: bool,
    },
    /// Make a volume from a raw image file
    Import {
        /// The file
        file: PathBuf,
        /// Name of the new volume
        name: String,
    },
    /// Write a volume or checkpoint to a raw image file (sparse)
    Export {
        /// VOL or VOL@ID
        source: String,
        /// The file
        file: PathBuf,
    },
}

/// On checkpoints.
#[derive(Subcommand)]
pub enum CheckpointVerb {
    /// Name the volume's present state
    Create {
        /// The volume
        volume: String,
        /// Words to remember it by
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Checkpoints of a volume, oldest first
    List {
        /// The volume
        volume: String,
        /// Automatic ones, too
        #[arg(long)]
        all: bool,
    },
    /// One checkpoint
    Get {
        /// The volume
        volume: String,
        /// The checkpoint
        id: String,
    },
    /// Delete a checkpoint
    Delete {
        /// The volume
        volume: String,
        /// The checkpoint
        id: String,
        /// Disconnect clients that use it
        #[arg(long)]
        force: bool,
    },
    /// Blocks that differ between two states of a volume
    Diff {
        /// The volume
        volume: String,
        /// The older state
        from: String,
        /// The newer state; Current is the head
        to: String,
    },
}

/// `100G`, `512M`, `4096` as bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("100G"), Some(100 << 30));
        assert_eq!(parse_size("2TiB"), Some(2 << 40));
        assert_eq!(parse_size("99999999999999999999G"), None);
        assert_eq!(parse_size("1.5G"), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
