//! A tree as an ext4 file system in a file: made by `mke2fs`, filled by `debugfs`, looked over by `e2fsck`.
//!
//! Nothing is mounted, and no root is needed: owners, devices and permissions are numbers that `debugfs` writes down.
//!
//! Invariants
//!   * the same tree makes the same bytes: identifiers come from the caller, times from the tree and its epoch, and features
//!     from here instead of this machine's `mke2fs.conf`;
//!   * every name reaches `debugfs` as one quoted word of one line ([`quote`]; a tree holds no names with line ends);
//!   * a file system that `e2fsck` finds fault with is never used.

use super::tools::{check, Listener, Tool};
use super::tree::{quote, quoted, Node, Tree, What};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BLOCK: u64 = 4096;
/// Bytes of disk for each inode.
const RATIO: u64 = 16384;
/// The journal keeps its size when the file system grows: 64 MiB serve a disk of 100 GB as well.
const JOURNAL_MIB: u64 = 64;
/// Sizes of images are multiples of this.
const GRAIN: u64 = 64 << 20;
/// What a file system needs beside files: tables, the journal, and some room until it has grown.
const ROOM: u64 = 256 << 20;
const PACKAGE: &str = "e2fsprogs";
/// Features, so that another release's configuration changes nothing.
const CONFIG: &str = "\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
reserved_ratio = 1.0
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
small = {
}
big = {
}
huge = {
}
";

/// What tells one file system from another.
pub(super) struct Identity {
    /// Its identifier, and what names are spread by in large folders.
    pub(super) uuid: String,
    /// The time at which it was made.
    pub(super) epoch: u64,
}

impl Identity {
    /// The one that follows from a digest.
    pub(super) fn of(digest: &blake3::Hash, epoch: u64) -> Self {
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
        let mut number = u128::from_be_bytes(bytes);
        // RFC 9562: version 8, made as its maker likes.
        number = number & !(0xf << 76) | 8 << 76;
        number = number & !(0b11 << 62) | 0b10 << 62;
        let hex = format!("{number:032x}");
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| hex.get(part).unwrap_or_default().to_owned());
        Self { uuid: parts.join("-"), epoch }
    }

    fn tool(&self, name: &str) -> Tool {
        let time = self.epoch.to_string();
        // The first name is that of e2fsprogs up to 1.47.0.
        Tool::new(name, PACKAGE).env("E2FSPROGS_FAKE_TIME", &time).env("SOURCE_DATE_EPOCH", &time)
    }
}

/// Size of the smallest file system that holds the tree with some room.
pub(super) fn size_of(tree: &Tree) -> u64 {
    let (bytes, nodes) = tree.size(BLOCK);
    let by_bytes = bytes + bytes / 20 + (JOURNAL_MIB << 20) + ROOM;
    let by_nodes = (nodes + 4096) * RATIO;
    by_bytes.max(by_nodes).next_multiple_of(GRAIN)
}

/// Makes the file `disk`, of `size` bytes, an ext4 file system that holds the tree. `work` is a folder of ours.
pub(super) fn make(
    tree: &Tree,
    size: u64,
    identity: &Identity,
    work: &Path,
    disk: &Path,
    progress: &mut Listener,
) -> Result<()> {
    fs::File::create_new(disk).and_then(|file| file.set_len(size)).map_err(Error::of_file(disk))?;
    let (config, script) = (work.join("mke2fs.conf"), work.join("fill"));
    fs::write(&config, CONFIG).map_err(Error::of_file(&config))?;
    let extended = format!("root_owner=0:0,hash_seed={},lazy_itable_init=0,lazy_journal_init=0", identity.uuid);
    let journal = format!("size={JOURNAL_MIB}");
    let options = ["-q", "-F", "-t", "ext4", "-L", "root", "-U", &identity.uuid, "-J", &journal, "-E", &extended];
    identity.tool("mke2fs").args(options).args([disk]).env("MKE2FS_CONFIG", &config).output()?;
    fs::write(&script, filling(tree, work)?).map_err(Error::of_file(&script))?;
    check()?;
    let tool = identity.tool("debugfs").args(["-w".as_ref(), "-f".as_ref(), script.as_os_str(), disk.as_os_str()]);
    // It tells of a command that failed, and goes on: what it says beside its name is a failure.
    let mut count = 0_usize;
    let mut faults = Vec::new();
    let mut listen = |said: super::Progress| {
        if let super::Progress::Detail(line) = said {
            if !line.starts_with("debugfs ") && faults.len() < 10 {
                faults.push(line.to_owned());
            }
        }
        progress(said);
    };
    tool.feed(&mut listen, |mut out| {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match out.read(&mut buffer)? {
                0 => return Ok(()),
                n => count += n,
            }
        }
    })?;
    if !faults.is_empty() || count == 0 {
        return Err(Error::failed(format!("debugfs could not fill the file system:\n  {}", faults.join("\n  "))));
    }
    identity.tool("e2fsck").args(["-fn"]).args([disk]).output().map(drop).map_err(|e| e.about("the new file system"))
}

/// What has `debugfs` fill the file system.
fn filling(tree: &Tree, work: &Path) -> Result<Vec<u8>> {
    let nodes = tree.nodes()?;
    let mut out = Lines(Vec::new());
    let mut folder: Option<&[u8]> = None;
    let mut names: BTreeMap<&[u8], u32> = BTreeMap::new();
    let others: BTreeSet<&Vec<u8>> =
        nodes.iter().filter(|(_, node)| matches!(node.what, What::Same(_))).map(|(path, _)| path).collect();
    // Other names come last, when what they name is there.
    let order = nodes.iter().filter(|(path, _)| !others.contains(path));
    for (path, node) in order.chain(nodes.iter().filter(|(path, _)| others.contains(path))) {
        let full = [b"/", path.as_slice()].concat();
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
            None => (&b""[..], path.as_slice()),
        };
        if !path.is_empty() && folder != Some(above) {
            out.line(&[b"cd", &quote(&[b"/", above].concat())]);
            folder = Some(above);
        }
        let name = quote(name);
        match &node.what {
            // Those two are there.
            What::Folder if path.is_empty() || path == b"lost+found" => {}
            What::Folder => out.line(&[b"mkdir", &name]),
            What::File(spooled, _) => out.line(&[b"write", &quoted(spooled), &name]),
            What::Symlink(target) => out.line(&[b"symlink", &name, &quote(target)]),
            What::Device(kind, major, minor) => {
                out.line(&[b"mknod", &name, kind.to_string().as_bytes(), &number(*major), &number(*minor)]);
            }
            What::Fifo => out.line(&[b"mknod", &name, b"p"]),
            What::Same(target) => {
                *names.entry(target).or_insert(1) += 1;
                out.line(&[b"ln", &quote(&[b"/", target.as_slice()].concat()), &name]);
                continue;
            }
        }
        attributes(&mut out, &quote(&full), node, work)?;
    }
    for (path, count) in names {
        out.line(&[b"sif", &quote(&[b"/", path].concat()), b"links_count", &number(count)]);
    }
    Ok(out.0)
}

fn attributes(out: &mut Lines, path: &[u8], node: &Node, work: &Path) -> Result<()> {
    let kind = match node.what {
        What::Folder => libc::S_IFDIR,
        What::File(..) | What::Same(_) => libc::S_IFREG,
        What::Symlink(_) => libc::S_IFLNK,
        What::Device('b', ..) => libc::S_IFBLK,
        What::Device(..) => libc::S_IFCHR,
        What::Fifo => libc::S_IFIFO,
    };
    out.line(&[b"sif", path, b"mode", format!("0{:o}", kind | node.mode).as_bytes()]);
    out.line(&[b"sif", path, b"mtime", format!("@{}", node.mtime).as_bytes()]);
    for (field, id) in [("uid", node.uid), ("gid", node.gid)] {
        if id != 0 {
            out.line(&[b"sif", path, field.as_bytes(), id.min(u64::from(u32::MAX) - 1).to_string().as_bytes()]);
        }
    }
    for (name, value) in &node.xattrs {
        // By its content: it is read when the script runs.
        let file = work.join(format!("xattr-{}", blake3::hash(value).to_hex()));
        fs::write(&file, value).map_err(Error::of_file(&file))?;
        out.line(&[b"ea_set", b"-f", &quote(file.as_os_str().as_bytes()), path, name.as_bytes()]);
    }
    Ok(())
}

fn number(number: u32) -> Vec<u8> {
    number.to_string().into_bytes()
}

struct Lines(Vec<u8>);

impl Lines {
    fn line(&mut self, words: &[&[u8]]) {
        self.0.extend(words.join(&b' '));
        self.0.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn debugfs(disk: &Path, what: &str) -> String {
        let mut command = Command::new("/sbin/debugfs");
        let out = command.args(["-R", what]).arg(disk).output().expect("debugfs runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn tree(folder: &Path) -> Tree {
        let mut tree = Tree::new(folder.join("spool"), 1_000_000_000).expect("a tree");
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind, mode, ids: (u64, u64), target: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(ids.0);
            header.set_gid(ids.1);
            header.set_mtime(999_999_999);
            header.set_size(data.len() as u64);
            if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
                header.set_device_major(7).and_then(|()| header.set_device_minor(3)).expect("a device");
            }
            match target {
                "" => builder.append_data(&mut header, path, data).expect("an entry"),
                target => builder.append_link(&mut header, path, target).expect("an entry"),
            }
        };
        use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
        add("home/me", Directory, 0o700, (1000, 1001), "", b"");
        add("home/me/a \"b\" <2>", Regular, 0o4755, (1000, 1001), "", b"contents");
        add("home/me/again", Link, 0o644, (0, 0), "home/me/a \"b\" <2>", b"");
        add("big", Regular, 0o600, (0, 0), "", &[7; 100_000]);
        add("short", Symlink, 0o777, (0, 0), "home/me", b"");
        add("long", Symlink, 0o777, (70000, 0), &"x/".repeat(40), b"");
        add("pipe", Fifo, 0o622, (0, 0), "", b"");
        add("c", Char, 0o666, (0, 0), "", b"");
        add("b", Block, 0o660, (0, 6), "", b"");
        tree.read(&builder.into_inner().expect("an archive")[..]).expect("read");
        tree
    }

    #[test]
    fn a_tree_becomes_the_same_file_system_twice_with_owners_devices_and_links() {
        let identity = Identity::of(&blake3::hash(b"seed"), 1_000_000_000);
        let mut hashes = Vec::new();
        for _ in 0..2 {
            let folder = tempfile::tempdir().expect("a folder");
            let (tree, disk) = (tree(folder.path()), folder.path().join("disk"));
            make(&tree, 192 << 20, &identity, folder.path(), &disk, &mut |_| {}).expect("a file system");
            hashes.push(blake3::hash(&fs::read(&disk).expect("an image")));
            let file = debugfs(&disk, "stat \"/home/me/a \"\"b\"\" <2>\"");
            assert!(file.contains("Mode:  04755") && file.contains("User:  1000   Group:  1001"), "{file}");
            assert!(file.contains("Links: 2") && file.contains("mtime: 0x3b9ac9ff"), "{file}");
            assert_eq!(debugfs(&disk, "cat /home/me/again"), "contents");
            assert!(debugfs(&disk, "stat /c").contains("character") && debugfs(&disk, "stat /c").contains("07:03"));
            assert!(debugfs(&disk, "stat /b").contains("block") && debugfs(&disk, "stat /pipe").contains("FIFO"));
            assert!(
                debugfs(&disk, "stat /long").contains("User: 70000")
                    && debugfs(&disk, "stat /long").contains("Size: 80")
            );
            assert!(debugfs(&disk, "stat /short").contains("Fast link dest: \"home/me\""));
            assert!(debugfs(&disk, "stat /home").contains("Mode:  0755"));
        }
        assert_eq!(hashes[0], hashes[1]);
    }

    #[test]
    fn a_tree_that_does_not_fit_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tree = Tree::new(folder.path().join("spool"), 0).expect("a tree");
        tree.put("big", 0o644, &vec![1; 150 << 20]).expect("put");
        let identity = Identity::of(&blake3::hash(b"seed"), 0);
        let disk = folder.path().join("disk");
        let refused = make(&tree, 192 << 20, &identity, folder.path(), &disk, &mut |_| {}).expect_err("too small");
        assert!(refused.message.contains("could not fill"), "{refused}");
        assert!(size_of(&tree) > 400 << 20, "{}", size_of(&tree));
    }

    #[test]
    fn an_identity_is_an_identifier() {
        let uuid = Identity::of(&blake3::hash(b"x"), 0).uuid;
        assert!(
            uuid.len() == 36 && uuid.as_bytes()[14] == b'8' && "89ab".contains(char::from(uuid.as_bytes()[19])),
            "{uuid}"
        );
    }
}
