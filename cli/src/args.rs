//! The command line.

use crate::api_args::ApiArgs;
use crate::guest_args::{ImageVerb, InspectVerb, TokenVerb, VmVerb};
use crate::logging::{LogFormat, LogLevel};
use crate::sandbox::args::{At, SandboxVerb};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Checkpointing volumes for virtual machines, and sandboxes on them.
#[derive(Parser)]
#[command(
    version,
    after_help = "Start with:\n  cairn serve --pool /var/lib/cairn --nbd unix:/run/cairn.sock\n  cairn --pool /var/lib/cairn volume create disk --size 100G\n\nSandboxes, with CAIRN_URL and CAIRN_TOKEN or after cairn login:\n  cairn serve --pool /var/lib/cairn --api\n  cairn create web\n  cairn console -s web\n\nExit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists or busy, 5 damaged, 6 no space."
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
    #[command(
        after_help = "Examples:\n  cairn serve --pool /var/lib/cairn --nbd unix:/run/cairn.sock\n  cairn serve --nbd tcp:0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem --tls-client-ca ca.pem\n\nExports are VOL (read-write) and VOL@ID (a checkpoint, read-only). SIGTERM ends it cleanly within seconds."
    )]
    Serve(Box<ServeArgs>),
    /// Create, list, resize, import, export and delete volumes
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Create, list, compare and delete checkpoints
    #[command(subcommand)]
    Checkpoint(CheckpointVerb),
    /// Make a volume or sandbox what it was at a checkpoint (what it is now is kept as auto-N)
    #[command(
        allow_missing_positional = true,
        after_help = "Examples:\n  cairn restore disk v3        also: cairn restore disk@v3\n  cairn restore disk auto-1    undoes the restore that made auto-1\n  cairn restore -s web v3      a sandbox; cairn restore v3 the one in use\n\nThe newest 5 automatic checkpoints of a volume are kept; v1, v2, … stay until they are deleted."
    )]
    Restore {
        #[command(flatten)]
        at: At,
        /// The volume; without it the sandbox of -s, or in use
        volume: Option<String>,
        /// The checkpoint: v1, v2, … or auto-1, …; VOL@ID stands for both
        id: String,
        /// Disconnect clients that use the volume
        #[arg(long)]
        force: bool,
    },
    /// Make a volume or sandbox that starts as another one, or as one of its checkpoints
    #[command(
        allow_missing_positional = true,
        after_help = "Examples:\n  cairn fork disk try          from what disk is now\n  cairn fork disk@v1 try       from a checkpoint\n  cairn fork -s web@v1 try     a sandbox; cairn fork try forks the one in use"
    )]
    Fork {
        #[command(flatten)]
        at: At,
        /// VOL or VOL@ID; without it the sandbox of -s (NAME or NAME@ID), or in use
        source: Option<String>,
        /// Name of the new volume or sandbox
        name: String,
    },
    #[command(flatten)]
    Sandbox(SandboxVerb),
    /// Read every block that is held and verify its checksum (beside a running daemon, too)
    #[command(
        after_help = "Examples:\n  cairn scrub           everything in the pool\n  cairn scrub disk      what disk and its checkpoints hold\n  cairn scrub disk@v1   what one checkpoint holds\n\nEvery damaged block is named with the volume and checkpoint that hold it (Current: the volume as it is now). Exit code 5 when damage was found."
    )]
    Scrub {
        /// One volume with its checkpoints, or one checkpoint (VOL@ID); all of the pool without it
        volume: Option<String>,
    },
    /// Recompute the pool's accounts by walking every map (beside a running daemon, too)
    #[command(
        after_help = "Examples:\n  cairn check                                            the pool's accounts\n  cairn check --object-store s3://bucket/prefix          every volume in the store, from the store alone\n  cairn check --object-store s3://bucket/prefix --deep   and every byte of it\n\nExit code 5 when anything is wrong."
    )]
    Check {
        #[command(flatten)]
        object: ObjectArgs,
        /// With --object-store: read every object and verify its digest
        #[arg(long, requires = "object_store")]
        deep: bool,
    },
    /// Delete from an object store what no volume needs (daemons do it daily)
    #[command(
        after_help = "Examples:\n  cairn gc --object-store s3://bucket/prefix --dry-run\n  cairn gc --object-store s3://bucket/prefix --grace 48\n\nWhat is younger than the grace stays: an upload that is under way may need it. If anything cannot be read, nothing is deleted."
    )]
    Gc {
        #[command(flatten)]
        object: ObjectArgs,
        /// Only tell what would be deleted
        #[arg(long)]
        dry_run: bool,
        /// Hours that what nobody needs is kept
        #[arg(long, default_value_t = 24.0, value_name = "HOURS")]
        grace: f64,
    },
    /// Run virtual machines on volumes
    #[command(subcommand)]
    Vm(VmVerb),
    /// Images that machines start from
    #[command(subcommand)]
    Image(ImageVerb),
    /// Tokens for the sandbox API
    #[command(subcommand)]
    Token(TokenVerb),
    /// Serve the sandbox API beside a daemon, which does that by itself with --api
    #[command(hide = true)]
    ApiServer {
        #[command(flatten)]
        api: ApiArgs,
        /// As the daemon's
        #[arg(value_enum)]
        log_level: LogLevel,
        /// As the daemon's
        #[arg(value_enum)]
        log_format: LogFormat,
    },
    /// Look into a state's files, from a process that can do nothing else (for the sandbox API)
    #[command(subcommand, hide = true)]
    Inspect(InspectVerb),
    /// Tell whether this machine can run guests, and how
    #[command(
        after_help = "What is found is kept until this machine is started again. CAIRN_ACCEL=kvm or CAIRN_ACCEL=tcg overrides it."
    )]
    Doctor,
    /// Keys that the object store is encrypted with
    #[command(subcommand)]
    Key(KeyVerb),
    /// Figures of the pool
    Stats {
        /// In the text form of Prometheus (needs the daemon)
        #[arg(long)]
        metrics: bool,
    },
    /// Show checkpoints as read-only folders (FUSE)
    #[command(
        allow_missing_positional = true,
        after_help = "Examples:\n  cairn mount /mnt/cairn         /mnt/cairn/disk/v7/etc/hostname\n  cairn mount disk /mnt/disk     /mnt/disk/v7/etc/hostname\n\nIn a volume's folder: v7 and the four before it, latest (the newest), .all (every checkpoint), .raw/v7.img (the disk),\n.info/v7.json. Partitions are p1, p2, …. ext2, ext3 and ext4 are read by a process without rights of its own; of anything\nelse there is a README that says why. New checkpoints appear by themselves. cairn umount DIR ends it."
    )]
    Mount {
        /// One volume; all of the pool without it
        volume: Option<String>,
        /// The folder to mount at
        folder: PathBuf,
        /// Let other users look, as far as permissions in the guest let others
        #[arg(long)]
        allow_other: bool,
        /// Do not return until it is unmounted
        #[arg(long)]
        foreground: bool,
        /// The process that serves a mount
        #[arg(long, hide = true)]
        worker: bool,
    },
    /// End a mount of checkpoints
    Umount {
        /// Where it is mounted
        folder: PathBuf,
        /// Although somebody is in it: it goes when they leave
        #[arg(long)]
        lazy: bool,
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
    /// A file in TOML that says what these flags say: nbd = ["unix:/run/cairn.sock"]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
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
    #[command(flatten)]
    pub api: ApiArgs,
    /// Show checkpoints as read-only folders at this folder, see cairn mount
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Memory for map pages: 1M to 1T
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    pub map_cache: String,
    /// How much to log, on standard error: error, warn, info (start and end, clients, changes), debug
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        default_value = "info",
        env = "CAIRN_LOG",
        value_name = "LEVEL"
    )]
    pub log_level: LogLevel,
    /// Form of the log: text or json
    #[arg(long, value_enum, hide_possible_values = true, default_value = "text", value_name = "FORM")]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub object: ObjectArgs,
    /// Seconds that the object store may lag behind, for volumes whose durability is local
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub lag: f64,
    /// Bytes of this disk to use, with an object store: what is there and was not used for long is given up here. 256M
    /// to 1P; without it all stays that the disk has room for
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<String>,
    /// Segments of 32 MiB prepared in advance, for fast flushes: 0 to 1024
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(..=1024))]
    pub spares: u16,
}

/// The object store, and what its contents are encrypted with.
#[derive(Args)]
pub struct ObjectArgs {
    /// Keep volumes in an object store, too: file:///FOLDER or s3://BUCKET/PREFIX (with the AWS_* environment)
    #[arg(long, value_name = "URL")]
    pub object_store: Option<String>,
    /// The S3 server, when it is not Amazon's (also: AWS_ENDPOINT_URL)
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Whether the bucket goes into the path (default: with an endpoint of one's own)
    #[arg(long, value_name = "BOOL")]
    pub s3_path_style: Option<bool>,
    /// Encrypt all that is put into the store, with keys wrapped by the one in this file (32 bytes, or as hex or base64)
    #[arg(long, value_name = "FILE", env = "CAIRN_KEY_FILE", conflicts_with = "key_command")]
    pub key_file: Option<PathBuf>,
    /// As --key-file, with keys wrapped by a command: CMD id, CMD wrap, CMD unwrap
    #[arg(long, value_name = "CMD", env = "CAIRN_KEY_COMMAND")]
    pub key_command: Option<String>,
    /// Use a store without working conditional writes: nothing then stops two daemons from writing one volume
    #[arg(long)]
    pub single_writer: bool,
}

/// On volumes.
#[derive(Subcommand)]
pub enum VolumeVerb {
    /// Make an empty volume
    #[command(
        after_help = "Example:\n  cairn volume create disk --size 100G\n\nSizes are multiples of 4096 bytes up to 64P; units are binary (K, M, G, T, P). Space is taken as it is written."
    )]
    Create {
        /// Its name
        name: String,
        /// Its size: 100G, 512M, …
        #[arg(long)]
        size: String,
    },
    /// All volumes of the pool, or with --object-store those in the store
    List {
        #[command(flatten)]
        object: ObjectArgs,
    },
    /// One volume or checkpoint, with its space
    Info {
        /// VOL or VOL@ID
        name: String,
    },
    /// Change a volume's size
    #[command(
        after_help = "Examples:\n  cairn volume resize disk 200G\n  cairn volume resize disk 50G --shrink\n\nWhat lies beyond a smaller size is lost (checkpoints keep what they hold), so that a smaller size needs --shrink: shrink the file system inside first."
    )]
    Resize {
        /// The volume
        name: String,
        /// The new size
        size: String,
        /// Let the volume become smaller: what lies beyond the new size is lost
        #[arg(long)]
        shrink: bool,
        /// Disconnect clients that use the volume
        #[arg(long)]
        force: bool,
    },
    /// Change what a volume's flushes wait for
    #[command(
        after_help = "Examples:\n  cairn volume set disk --durability remote        a flush waits for the object store\n  cairn volume set disk --durability bounded=500   for it to be at most 500 ms behind\n  cairn volume set disk --durability local         for the local disk (default)\n  cairn volume set disk --read-only on             nobody can change it; forks of it can be written"
    )]
    Set {
        /// The volume
        name: String,
        /// local, remote or bounded=MILLISECONDS
        #[arg(long, value_name = "MODE", required_unless_present = "read_only")]
        durability: Option<String>,
        /// on or off: whether its data can be changed by nobody
        #[arg(long, value_name = "on|off", value_parser = switch)]
        read_only: Option<bool>,
        /// Disconnect clients that have it open, when it becomes read-only
        #[arg(long)]
        force: bool,
    },
    /// Wait until everything of a volume is in the object store
    Sync {
        /// The volume
        name: String,
    },
    /// Take a volume over from the object store: its blocks come when they are read
    #[command(
        after_help = "Examples:\n  cairn volume attach disk               a volume that was detached elsewhere\n  cairn volume attach disk --takeover    the host that had it is lost\n  cairn volume attach disk --read-only   look at it, as disk-ro; the host that has it goes on\n  cairn volume attach disk --as mine     write to a fork of it; the host that has it goes on\n\nWith --takeover the other host, if it lives, stops serving the volume; what it has not uploaded is lost.\nWith --read-only and --as it is forked: the new volume begins as what had been uploaded at that moment, with all checkpoints, and does not follow the other one. Delete it and attach again to see what came later."
    )]
    Attach {
        /// Its name in the object store
        name: String,
        /// Although another pool has it
        #[arg(long)]
        takeover: bool,
        /// Only to look at it, where another pool may have it: as NAME-ro, or as what --as says
        #[arg(long, conflicts_with = "takeover")]
        read_only: bool,
        /// As a fork of this name, where another pool may have it
        #[arg(long = "as", value_name = "NEW", conflicts_with = "takeover")]
        new: Option<String>,
    },
    /// Let a volume go: all of it is put into the object store, and another host can attach it
    Detach {
        /// The volume
        name: String,
        /// Disconnect clients that use it
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
        /// One that is in the object store alone, because its deletion here was interrupted: the daemon's log names them
        #[arg(long, conflicts_with = "force")]
        abandoned: bool,
    },
    /// Serve a volume or checkpoint to a VMM over vhost-user; prints the socket
    #[command(
        after_help = "Example:\n  cairn volume vhost-user disk\n  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\\n      -chardev socket,id=disk,path=SOCKET,reconnect=1 -device vhost-user-blk-pci,chardev=disk\n\nThe daemon serves one VMM at a time there, as its owner, and goes on after it was restarted, as long as there is the volume."
    )]
    VhostUser {
        /// VOL or VOL@ID
        name: String,
    },
    /// Make a volume from a raw image file
    #[command(
        after_help = "Example:\n  cairn volume import debian.raw disk\n\nHoles and zeros take no space. Until all of it is there the volume is called NAME.importing. The size of a volume is a multiple of 4096: a shorter end is filled with zeros. Other formats are converted first: qemu-img convert -O raw disk.qcow2 disk.raw"
    )]
    Import {
        /// The file (not -: its size must be known first)
        file: PathBuf,
        /// Name of the new volume
        name: String,
        /// Take the file byte by byte although it looks like qcow2, VMDK, VHDX, VHD or VDI
        #[arg(long)]
        raw: bool,
    },
    /// Write a volume or checkpoint to a raw image file (sparse)
    #[command(
        after_help = "Examples:\n  cairn volume export disk@v1 disk.raw\n  cairn volume export disk disk.raw    the state of one moment, even while clients write\n  cairn volume export disk - | ssh host 'cat > disk.raw'\n\nUntil all of it is there the file is called FILE.part."
    )]
    Export {
        /// VOL or VOL@ID
        source: String,
        /// The file, or - for standard output
        file: PathBuf,
    },
}

/// On keys.
#[derive(Subcommand)]
pub enum KeyVerb {
    /// Have another key open the object store, without encrypting anything anew
    #[command(
        after_help = "In two stages, so that no daemon is locked out:\n  cairn key rotate --object-store URL --key-file OLD --new-key-file NEW              both open it\n  (restart the daemons with NEW)\n  cairn key rotate --object-store URL --key-file OLD --new-key-file NEW --stage retire\n\nBoth may be interrupted and repeated."
    )]
    Rotate(RotateArgs),
}

/// Options of a rotation.
#[derive(Args)]
pub struct RotateArgs {
    #[command(flatten)]
    pub object: ObjectArgs,
    /// The new key
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_command")]
    pub new_key_file: Option<PathBuf>,
    /// The new key's command
    #[arg(long, value_name = "CMD")]
    pub new_key_command: Option<String>,
    /// Add the new key, or remove the old one
    #[arg(long, value_enum, default_value = "add")]
    pub stage: Stage,
}

/// A stage of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Both keys open everything afterwards.
    Add,
    /// Only the new one does.
    Retire,
}

/// On checkpoints.
#[derive(Subcommand)]
pub enum CheckpointVerb {
    /// Name the present state of a volume or sandbox
    #[command(
        after_help = "Examples:\n  cairn checkpoint create disk --comment 'before the upgrade'\n  cairn checkpoint create -s web       a sandbox; without -s and volume the one in use\n\nIt costs one log record, whatever the size; clients go on writing. A sandbox's guest freezes its file systems for that moment."
    )]
    Create {
        #[command(flatten)]
        at: At,
        /// The volume; without it the sandbox of -s, or in use
        volume: Option<String>,
        /// Words to remember it by, at most 1024 bytes
        #[arg(long, default_value = "")]
        comment: String,
        /// Return when it is there: local disk, or object store
        #[arg(long, value_name = "WHERE", default_value = "local", value_parser = ["local", "remote"])]
        wait: String,
        /// Of a sandbox: with what its guest has in its memory
        #[arg(long)]
        memory: bool,
    },
    /// Checkpoints of a volume or sandbox, oldest first
    List {
        #[command(flatten)]
        at: At,
        /// The volume; without it the sandbox of -s, or in use
        volume: Option<String>,
        /// Automatic ones, too
        #[arg(long)]
        all: bool,
    },
    /// One checkpoint
    #[command(
        allow_missing_positional = true,
        after_help = "Examples:\n  cairn checkpoint get disk v1\n  cairn checkpoint get disk@v1\n  cairn checkpoint get -s web v1"
    )]
    Get {
        #[command(flatten)]
        at: At,
        /// The volume; without it the sandbox of -s, or in use
        volume: Option<String>,
        /// The checkpoint; Current is the head; VOL@ID stands for both
        id: String,
    },
    /// Delete a checkpoint
    #[command(
        allow_missing_positional = true,
        after_help = "Examples:\n  cairn checkpoint delete disk v1\n  cairn checkpoint delete disk@v1\n  cairn checkpoint delete -s web v1"
    )]
    Delete {
        #[command(flatten)]
        at: At,
        /// The volume; without it the sandbox of -s, or in use
        volume: Option<String>,
        /// The checkpoint; VOL@ID stands for both
        id: String,
        /// Disconnect clients that use it
        #[arg(long)]
        force: bool,
    },
    /// Blocks that differ between two states of a volume
    #[command(
        after_help = "Examples:\n  cairn checkpoint diff disk v1 v2\n  cairn --json checkpoint diff disk v2 Current\n  cairn checkpoint diff disk v1 v2 --files"
    )]
    Diff {
        /// The volume
        volume: String,
        /// The older state
        from: String,
        /// The newer state; Current is the head
        to: String,
        /// Compare files instead of blocks: added, removed, modified, renamed, attributes
        #[arg(long)]
        files: bool,
    },
    /// Print a file of a checkpoint
    #[command(
        after_help = "Examples:\n  cairn checkpoint cat disk v1 etc/hostname\n  cairn checkpoint cat disk Current p1/var/log/syslog     on a partitioned disk: partition 1\n\next2, ext3 and ext4 are read, without mounting anything. Symbolic links are not followed."
    )]
    Cat {
        /// The volume
        volume: String,
        /// The checkpoint; Current is the head
        id: String,
        /// The file's path in it
        path: String,
    },
    /// Copy a file or folder out of a checkpoint
    #[command(
        after_help = "Examples:\n  cairn checkpoint cp disk v1 home/me/project .\n  cairn checkpoint cp disk v1 / everything\n\nPermissions, times, links, holes and users' extended attributes are kept; owners, set-id bits and devices are not:\na guest's files get no power here. Nothing that exists is written over."
    )]
    Cp {
        /// The volume
        volume: String,
        /// The checkpoint; Current is the head
        id: String,
        /// The file's or folder's path in it
        path: String,
        /// Where to: a new name, or a folder that exists
        dest: PathBuf,
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

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("say on or off".to_owned()),
    }
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

    /// Every command below `command`: the words that call it, its flags, and whether it does something by itself.
    fn walk(command: &clap::Command, words: &str, out: &mut Vec<(String, Vec<String>, bool)>) {
        let flags = command.get_arguments().filter(|a| !a.is_hide_set());
        let flags = flags.filter_map(|a| Some(format!("--{}", a.get_long()?))).collect();
        out.push((words.to_owned(), flags, !command.has_subcommands()));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            walk(sub, &format!("{words} {}", sub.get_name()), out);
        }
    }

    #[test]
    fn the_manual_knows_every_command_and_flag() {
        use clap::CommandFactory;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CLI.md");
        let manual = std::fs::read_to_string(path).expect("docs/CLI.md");
        let mut all = Vec::new();
        walk(&Cli::command(), "cairn", &mut all);
        assert!(all.len() > 20, "the walk finds the commands");
        for (words, flags, is_leaf) in all {
            let line = manual.lines().find(|line| line.starts_with(&format!("| `{words}")));
            assert!(line.is_some() || !is_leaf, "docs/CLI.md has no line for {words}");
            for flag in flags {
                assert!(
                    manual.contains(&format!("`{flag}")) || line.is_some_and(|l| l.contains(&flag)),
                    "{words} {flag}"
                );
            }
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
