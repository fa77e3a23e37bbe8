//! The command line of sandboxes.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Whose certificate the server may have.
#[derive(Args, Default)]
pub struct Server {
    /// Trust certificates of these authorities, and no others, for https URLs
    #[arg(long, value_name = "PEM", env = "CAIRN_CA")]
    pub ca_file: Option<PathBuf>,
}

/// Which sandbox, of which server.
#[derive(Args, Default)]
pub struct At {
    /// The sandbox; without it CAIRN_SANDBOX, or what cairn use said for this folder
    #[arg(short, long, value_name = "NAME")]
    pub sandbox: Option<String>,
    #[command(flatten)]
    pub server: Server,
}

/// On sandboxes. (What volumes have, too, is with them: checkpoint, restore, fork.)
#[derive(Subcommand)]
pub enum SandboxVerb {
    /// Keep a token for a server of sandboxes, and use that server from now on
    #[command(
        after_help = "Examples:\n  cairn login                                     the server of this machine, http://127.0.0.1:7420\n  cairn login https://sandboxes.example.com       asks for the token, and does not show it\n  cairn token create | cairn login\n\nIt is kept in ~/.config/cairn/credentials.json (mode 0600), one for each server. CAIRN_URL and CAIRN_TOKEN go before it."
    )]
    Login {
        /// The server's URL
        url: Option<String>,
        /// Take the token from this file
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
    /// Make a sandbox: a machine that sleeps until something is done in it
    #[command(
        after_help = "Examples:\n  cairn create web\n  cairn create web --image debian-12 --cpus 2 --memory 1G --disk 20G\n  cairn create try --from web@v1"
    )]
    Create(CreateArgs),
    /// Say which sandbox commands in this folder mean, or tell which it is
    #[command(
        after_help = "It is written into .cairn here, and counts for the folders below. CAIRN_SANDBOX and -s go before it."
    )]
    Use {
        /// The sandbox
        name: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// All sandboxes
    List {
        /// Go on and show what changes, until Ctrl-C
        #[arg(short, long)]
        watch: bool,
        /// Only those whose name begins so
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        #[command(flatten)]
        server: Server,
    },
    /// One sandbox
    Info {
        #[command(flatten)]
        at: At,
    },
    /// Run a command in a sandbox: its output, its standard input, its exit status
    #[command(
        visible_alias = "x",
        after_help = "Examples:\n  cairn exec -s web -- uname -a\n  tar c src | cairn exec -- tar x -C /root\n  cairn exec --file app.py:/root/app.py -- python3 app.py\n\nExit status: the command's; 1 if the server goes away meanwhile. Ctrl-C goes to the command; the fourth ends us. Ports that it opens are reached at localhost."
    )]
    Exec(ExecArgs),
    /// A shell in a sandbox, with a terminal; Ctrl-\ leaves it running
    #[command(visible_alias = "c")]
    Console {
        #[command(flatten)]
        at: At,
        /// Do not bring ports that are opened in the sandbox to localhost
        #[arg(long)]
        no_port_forward: bool,
    },
    /// Commands that run in a sandbox
    #[command(subcommand)]
    Sessions(SessionVerb),
    /// Copy files and folders into a sandbox and out of it
    #[command(subcommand)]
    File(FileVerb),
    /// Reach ports of a sandbox at localhost, until Ctrl-C
    #[command(
        after_help = "Examples:\n  cairn proxy 8080           localhost:8080 is port 8080 of the sandbox in use\n  cairn proxy -s web 9000:80 5432\n  cairn proxy --json 0:80    any port here; tells which"
    )]
    Proxy {
        #[command(flatten)]
        at: At,
        /// PORT, or HERE:THERE
        #[arg(required = true, value_name = "PORT[:REMOTE]")]
        ports: Vec<String>,
    },
    /// Remove a sandbox with all that it holds, its checkpoints too
    Destroy {
        /// The sandbox
        name: String,
        /// Do not ask
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Send a request to the sandbox API and print its answer
    #[command(
        after_help = "Examples:\n  cairn api GET /v1/sprites\n  cairn api POST /v1/sprites/web/exec -d '{\"command\": \"uname\"}'\n\nAn answer that is a refusal is printed, too, and the exit code tells its kind."
    )]
    Api(RequestArgs),
}

/// What a sandbox is made from, and how.
#[derive(Args)]
pub struct CreateArgs {
    /// Its name: 1 to 63 letters (a-z), digits and '-'
    pub name: String,
    /// The image it starts from; the server's own choice without it
    #[arg(long, conflicts_with = "from")]
    pub image: Option<String>,
    /// Another sandbox that it starts as, or one of its checkpoints
    #[arg(long, value_name = "NAME[@ID]")]
    pub from: Option<String>,
    /// Processors
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory: 512M, 2G
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Size of its disk, in whole G: 20G
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// A word to find it by; may be repeated
    #[arg(long, value_name = "WORD")]
    pub label: Vec<String>,
    #[command(flatten)]
    pub server: Server,
}

/// A command and what it finds.
#[derive(Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub at: At,
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// A variable for the command; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The folder to begin in
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// Put a file of this machine into the sandbox first; may be repeated
    #[arg(long, value_name = "SRC:DEST")]
    pub file: Vec<String>,
    /// Do not bring ports that are opened in the sandbox to localhost
    #[arg(long)]
    pub no_port_forward: bool,
    /// The command and its arguments: all that follows
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// On commands that run in a sandbox.
#[derive(Subcommand)]
pub enum SessionVerb {
    /// Commands that run
    List {
        #[command(flatten)]
        at: At,
    },
    /// Go on with one: what it wrote last comes first; Ctrl-\ leaves it again
    Attach {
        #[command(flatten)]
        at: At,
        /// Its number, as list shows it
        id: String,
        /// Do not bring ports that are opened in the sandbox to localhost
        #[arg(long)]
        no_port_forward: bool,
    },
    /// End one: by a signal, after 10 seconds for good
    Kill {
        #[command(flatten)]
        at: At,
        /// Its number, as list shows it
        id: String,
        /// The signal: TERM, INT, KILL, …
        #[arg(long, default_value = "TERM", value_name = "NAME")]
        signal: String,
    },
}

/// On files.
#[derive(Subcommand)]
pub enum FileVerb {
    /// Copy files and folders into a sandbox
    #[command(
        after_help = "Examples:\n  cairn file push notes.txt /root/notes.txt\n  cairn file push src tests /root/project    into a folder, which is made if need be\n  date | cairn file push - /root/now\n\nModes, times and symbolic links are kept; owners are not. A single file or folder gets the name DEST, unless that is a folder. What is there is written over."
    )]
    Push {
        #[command(flatten)]
        at: At,
        /// What: files, folders, or - for standard input
        #[arg(required = true)]
        sources: Vec<PathBuf>,
        /// Where to in the sandbox, from its root
        dest: String,
    },
    /// Copy a file or folder out of a sandbox
    #[command(
        after_help = "Examples:\n  cairn file pull /etc/hostname .\n  cairn file pull /root/project backup\n  cairn file pull /var/log/messages - | less\n\nThe copy is called DEST, or lies in DEST if that is a folder. A file of that name is replaced, a folder is not. Modes, times and links are kept; owners, set-id bits and devices are not: a guest's files get no power here, and none comes to lie outside of the copy."
    )]
    Pull {
        #[command(flatten)]
        at: At,
        /// What, from the sandbox's root
        source: String,
        /// Where to: a new name, a folder that exists, or - for standard output
        dest: PathBuf,
    },
}

/// A request as it is.
#[derive(Args)]
pub struct RequestArgs {
    /// GET, POST, PUT, DELETE
    pub method: String,
    /// The path, with its query: /v1/sprites
    pub path: String,
    /// The body: text, @FILE, or @- for standard input
    #[arg(short, long, value_name = "BODY")]
    pub data: Option<String>,
    #[command(flatten)]
    pub server: Server,
}
