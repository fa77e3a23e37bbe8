//! The command line of machines and images.

use clap::Subcommand;
use std::path::PathBuf;

/// On tokens of the sandbox API.
#[derive(Subcommand)]
pub enum TokenVerb {
    /// Make a token and print it: it is shown this once
    #[command(
        after_help = "Examples:\n  export CAIRN_TOKEN=$(cairn token create)\n  cairn token create --scope sandbox:web --expires 30d"
    )]
    Create {
        /// What it is good for: org (everything of the organization) or sandbox:NAME
        #[arg(long, default_value = "org")]
        scope: String,
        /// After so long it is good for nothing: 1h, 30d
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// The organization, which has sandboxes of its own
        #[arg(long, default_value = "local", value_name = "NAME")]
        org: String,
    },
    /// Tokens that are good for something, without their secrets
    List,
    /// End a token at once
    Revoke {
        /// Its id, as list shows it: the third part of its text
        id: String,
    },
}

/// On files of a state, as the sandbox API asks: answers and refusals in the form of the agent's `fs` verbs.
#[derive(Subcommand)]
pub enum InspectVerb {
    /// What a file is, or what is in a folder
    List {
        /// With all that is below it
        #[arg(long)]
        recursive: bool,
        /// The volume
        volume: String,
        /// The checkpoint; Current is the head
        id: String,
        /// The path
        path: String,
    },
    /// A line that tells what a file is, and its bytes
    Read {
        /// The volume
        volume: String,
        /// The checkpoint; Current is the head
        id: String,
        /// The path
        path: String,
        /// The first byte
        from: u64,
        /// Bytes at most
        len: u64,
    },
    /// Files that differ between two states
    Diff {
        /// The volume
        volume: String,
        /// The older state
        from: String,
        /// The newer state
        to: String,
    },
}

/// On machines.
#[derive(Subcommand)]
pub enum VmVerb {
    /// Make a machine from an image and start it, or start one that was stopped or suspended
    #[command(
        after_help = "Examples:\n  cairn vm run web --image tiny\n  cairn vm run web --image tiny --cpus 2 --memory 1G --disk 20G\n  cairn vm run web            a machine that was stopped or suspended\n\nIts disk is the volume of the same name, a fork of the image's. It runs until it is stopped, whether or not this command or the daemon lives."
    )]
    Run {
        /// The machine
        name: String,
        /// The image that a new machine starts from
        #[arg(long)]
        image: Option<String>,
        /// Processors of a new machine
        #[arg(long, default_value_t = 1, value_name = "N")]
        cpus: u32,
        /// Memory of a new machine
        #[arg(long, default_value = "256M", value_name = "SIZE")]
        memory: String,
        /// Size of a new machine's disk (default: what the image says; 100G, sparse, for debian-12)
        #[arg(long, value_name = "SIZE")]
        disk: Option<String>,
        /// How a new machine reaches its disk: vhost-user, or nbd
        #[arg(long, default_value = "vhost-user", value_parser = ["vhost-user", "nbd"], value_name = "WAY")]
        transport: String,
    },
    /// Run a command in a machine: its output, its standard input, its exit status
    #[command(
        after_help = "Examples:\n  cairn vm exec web -- uname -a\n  tar c src | cairn vm exec web -- tar x -C /root\n  cairn vm exec -t web -- sh\n  cairn vm exec --user root web -- apt-get update\n\nExit status: the command's; 128 and a signal's number; 126 or 127 if it could not be started; 1 if the machine ended."
    )]
    Exec {
        /// With a terminal
        #[arg(short, long)]
        tty: bool,
        /// A variable for the command; may be repeated
        #[arg(short, long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// The folder to begin in
        #[arg(long, value_name = "DIR", default_value = "")]
        cwd: String,
        /// Who it runs as, in that user's home: a user of the guest (default: who the image says, or root)
        #[arg(short, long)]
        user: Option<String>,
        /// The machine
        name: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// A shell in a machine, with a terminal
    Console {
        /// Who it runs as: a user of the guest (default: who the image says, or root)
        #[arg(short, long)]
        user: Option<String>,
        /// The machine
        name: String,
    },
    /// Name the present state of a machine's disk, or of disk and memory
    #[command(
        after_help = "Example:\n  cairn vm checkpoint web --comment 'before the upgrade'\n\nA guest that runs freezes its file systems for the moment of the cut. One that does not answer within seconds gets a checkpoint as after a power loss, marked so. With --memory the guest is paused while its memory is written, and a restore brings its processes back."
    )]
    Checkpoint {
        /// The machine
        name: String,
        /// Words to remember it by
        #[arg(long, default_value = "")]
        comment: String,
        /// With what the guest has in its memory
        #[arg(long)]
        memory: bool,
    },
    /// Make a machine's disk what it was and start it again (what it is now is kept as auto-N)
    #[command(
        after_help = "Examples:\n  cairn vm restore web v1\n  cairn vm restore web auto-1    undoes the restore that made auto-1"
    )]
    Restore {
        /// The machine
        name: String,
        /// The checkpoint: v1, v2, … or auto-1, …
        id: String,
    },
    /// Make a machine like another one, from what its disk is now or was, and start it
    #[command(after_help = "Examples:\n  cairn vm fork web try\n  cairn vm fork web@v1 try")]
    Fork {
        /// The machine, or NAME@ID
        source: String,
        /// The new machine
        name: String,
    },
    /// Save what a machine has in its memory, and end it
    Suspend {
        /// The machine
        name: String,
    },
    /// Go on where a machine was suspended
    #[command(
        after_help = "If the disk has changed since, the memory does not belong to it any more: it is discarded and the machine boots."
    )]
    Resume {
        /// The machine
        name: String,
    },
    /// End a machine: it turns itself off
    Stop {
        /// The machine
        name: String,
        /// Do not ask the guest: what it has not written is lost
        #[arg(long)]
        force: bool,
    },
    /// Remove machines with their volumes and checkpoints
    Rm {
        /// The machines
        #[arg(required = true)]
        names: Vec<String>,
        /// Although one runs
        #[arg(long)]
        force: bool,
    },
    /// All machines
    List,
    /// What a machine's console has shown, at most the last 2 MiB
    Logs {
        /// The machine
        name: String,
    },
    /// Hold a machine's VMM (what run starts in the background)
    #[command(hide = true)]
    Keep {
        /// The machine
        name: String,
    },
}

/// On images.
#[derive(Subcommand)]
pub enum ImageVerb {
    /// Build an image: a small one, a developer's Debian, or what a recipe of your own says
    #[command(
        after_help = "Examples:\n  cairn image build tiny          busybox and Debian's kernel: boots in seconds\n  cairn image build debian-12     Python, Node.js, git, compilers, an editor, and sudo for the user sprite\n  cairn image recipe debian-12 >my.toml\n  cairn image build --recipe my.toml\n\nA recipe names packages, files, commands, a user and the size of disks; docs/IMAGES.md explains it. Packages come from where this machine's apt has them, or from deb.debian.org. tiny needs apt, dpkg, mke2fs and busybox-static, a recipe mmdebstrap and e2fsprogs. No root is needed where users may have namespaces; nothing is mounted or installed here. A build takes some gigabytes below TMPDIR (or /tmp)."
    )]
    Build {
        /// tiny or debian-12; with --recipe another name for the image than the recipe's
        #[arg(required_unless_present = "recipe")]
        name: Option<String>,
        /// Build what this file says
        #[arg(long, value_name = "FILE")]
        recipe: Option<PathBuf>,
        /// Although the image is there from the same recipe: with the packages that Debian has now
        #[arg(long)]
        again: bool,
        /// The agent to put in (default: cairn-agent beside this command, or in ../lib/cairn)
        #[arg(long, value_name = "FILE", env = "CAIRN_AGENT")]
        agent: Option<PathBuf>,
    },
    /// Print a recipe, to be changed and built
    #[command(after_help = "Example:\n  cairn image recipe debian-12 >my.toml")]
    Recipe {
        /// Which one
        #[arg(value_parser = ["debian-12"])]
        name: String,
    },
    /// Make an image from a disk, or from an archive of a root file system
    #[command(
        after_help = "Examples:\n  cairn image import mine root.tar\n  cairn image import mine disk.raw --kernel vmlinuz --initrd initrd\n  cairn image import mine disk.qcow2 --kernel vmlinuz --initrd initrd\n\nAn archive (tar, also packed with gzip, xz or zstd) gets Cairn's kernel, init and agent; docker export makes one. A disk is one root file system without partitions, with cairn-agent in it, started by its init; the initrd mounts /dev/vda. A qcow2 file with a backing file is refused."
    )]
    Import {
        /// Name of the new image
        name: String,
        /// The disk or archive
        file: PathBuf,
        /// The kernel of a disk
        #[arg(long, value_name = "FILE", requires = "initrd")]
        kernel: Option<PathBuf>,
        /// Its first file system
        #[arg(long, value_name = "FILE", requires = "kernel")]
        initrd: Option<PathBuf>,
        /// The agent to put into what an archive has (default: as for build)
        #[arg(long, value_name = "FILE", env = "CAIRN_AGENT")]
        agent: Option<PathBuf>,
    },
    /// Images of the pool
    List,
    /// Remove images with their volumes; machines that were made from them stay as they are
    Rm {
        /// The images
        #[arg(required = true)]
        names: Vec<String>,
    },
}
