//! Checkpoints as read-only folders: a FUSE file system.
//!
//! `VOL/v7/…` is what the disk held, for the last five; `latest` the newest of them, `.all/` has every one, `.raw/v7.img` the
//! disk's bytes, `.info/v7.json` what is known of it. Of a partitioned disk `p1/`, `p2/`, …; of what cannot be shown a `README`
//! that says why.
//!
//! Invariants
//!   * what a checkpoint holds never changes, so the kernel keeps it for long; which checkpoints there are is asked anew at
//!     least twice a second;
//!   * a checkpoint that is gone answers ESTALE, whatever is open; a pool that does not answer, EIO;
//!   * numbers of files stay the same as long as it is mounted.

mod attributes;
mod nodes;
mod states;

use crate::contents::Contents;
use crate::limits::RUNS_MAX;
use crate::source::ReadAt;
use crate::tree::{FileKind, Tree, TreeError};
use attributes::{errno, file_attributes, plain, KEPT, LOOKED};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyXattr, Request,
};
use nodes::{Node, Nodes};
use states::{State, States};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Checkpoints that have a folder of their own without being asked for.
pub const SHOWN: usize = 5;

/// Bytes of one answer: the kernel asks for no more.
const READ_MAX: usize = 16 << 20;

/// A checkpoint, as the pool tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// `v7`, `auto-1`.
    pub id: String,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// All that is known of it, as JSON.
    pub info: String,
}

/// Where checkpoints come from.
pub trait Pool: Send + Sync + 'static {
    /// Names of the volumes.
    fn volumes(&self) -> io::Result<Vec<String>>;
    /// A volume's checkpoints, oldest first, automatic ones too. `NotFound` when there is no such volume.
    fn checkpoints(&self, volume: &str) -> io::Result<Vec<Checkpoint>>;
    /// The disk at a checkpoint.
    fn image(&self, volume: &str, id: &str) -> io::Result<Arc<dyn ReadAt>>;
}

/// Takes an entry: what it is, what to ask for behind it, its kind if it is told, its name. `false` when no more fits.
type Add<'a> = dyn FnMut(&Node, u64, Option<FileKind>, &OsStr) -> bool + 'a;

/// The file system.
pub struct Mount {
    states: Arc<States>,
    nodes: Nodes,
    /// The kernel wants to be told that a file can be opened.
    is_open_needed: AtomicBool,
}

impl Mount {
    /// All volumes of a pool, or one of them.
    pub fn new(pool: Box<dyn Pool>, volume: Option<String>) -> Self {
        let root = volume.map_or(Node::Root, Node::Volume);
        let (states, nodes) = (Arc::new(States::new(pool)), Nodes::new(root));
        Self { states, nodes, is_open_needed: AtomicBool::new(true) }
    }

    /// Notices twice a second what is gone, and lets go of what is not used. Runs until the file system is no more.
    pub fn watch(&self) -> impl FnOnce() + Send + 'static {
        let states = Arc::downgrade(&self.states);
        move || {
            while let Some(states) = states.upgrade() {
                states.look_around();
                drop(states);
                std::thread::sleep(LOOKED);
            }
        }
    }

    fn node(&self, number: INodeNo) -> Result<Node, Errno> {
        self.nodes.node(number.0).ok_or(Errno::ESTALE)
    }

    fn state(&self, number: u32) -> Result<Arc<State>, Errno> {
        let state = self.states.get(number).ok_or(Errno::ESTALE)?;
        self.states.check(&state)?;
        Ok(state)
    }

    /// The tree that a file is in.
    fn tree(&self, state: u32, part: u8) -> Result<Arc<dyn Tree>, Errno> {
        match &*self.state(state)?.contents()? {
            Contents::Tree(tree) if part == 0 => Ok(tree.clone()),
            Contents::Partitions(all) => match all.get(usize::from(part).wrapping_sub(1)).map(|part| &part.contents) {
                Some(Contents::Tree(tree)) => Ok(tree.clone()),
                _ => Err(Errno::ESTALE),
            },
            _ => Err(Errno::ESTALE),
        }
    }

    /// What a checkpoint's folder is: its tree's root, or a folder of partitions, or of a README.
    fn top(&self, state: u32) -> Result<Node, Errno> {
        Ok(match &*self.state(state)?.contents()? {
            Contents::Tree(tree) => Node::File { state, part: 0, inode: inode32(tree.root())? },
            _ => Node::Top { state },
        })
    }

    fn part(&self, state: u32, part: u8) -> Result<Node, Errno> {
        let contents = self.state(state)?.contents()?;
        let Contents::Partitions(all) = &*contents else { return Err(Errno::ENOENT) };
        let found = all.get(usize::from(part).wrapping_sub(1)).ok_or(Errno::ENOENT)?;
        Ok(match &found.contents {
            Contents::Tree(tree) => Node::File { state, part, inode: inode32(tree.root())? },
            _ => Node::Part { state, part },
        })
    }

    fn readme(&self, state: u32, part: u8) -> Result<String, Errno> {
        let held = self.state(state)?;
        let contents = held.contents()?;
        let why = |contents: &Contents| match contents {
            Contents::Unreadable { why } => Ok(why.clone()),
            _ => Err(Errno::ENOENT),
        };
        let why = match (&*contents, part) {
            (contents, 0) => why(contents)?,
            (Contents::Partitions(all), part) => why(&all.get(usize::from(part) - 1).ok_or(Errno::ENOENT)?.contents)?,
            _ => return Err(Errno::ENOENT),
        };
        Ok(format!("The files of {}@{} cannot be shown here: {why}.\n", held.volume, held.id))
    }

    /// Names in a folder of ours, with what they are.
    fn names(&self, node: &Node) -> Result<Vec<(OsString, Node)>, Errno> {
        let named = |name: &str, node: Node| (OsString::from(name), node);
        match node {
            Node::Root => {
                let all = self.states.volumes()?;
                Ok(all.into_iter().map(|volume| (OsString::from(&volume), Node::Volume(volume))).collect())
            }
            Node::Volume(volume) => {
                let mut all = Vec::new();
                let shown = self.states.shown(volume)?;
                for state in &shown {
                    all.push((OsString::from(&state.id), Node::Shown { state: state.number }));
                }
                if !shown.is_empty() {
                    all.push(named("latest", Node::Latest(volume.clone())));
                }
                all.push(named(".all", Node::All(volume.clone())));
                all.push(named(".raw", Node::Raw(volume.clone())));
                all.push(named(".info", Node::Info(volume.clone())));
                Ok(all)
            }
            Node::All(volume) | Node::Raw(volume) | Node::Info(volume) => {
                let all = self.states.all(volume)?.into_iter();
                let one = |state: Arc<State>| {
                    let number = state.number;
                    match node {
                        Node::Raw(_) => (OsString::from(format!("{}.img", state.id)), Node::Image { state: number }),
                        Node::Info(_) => (OsString::from(format!("{}.json", state.id)), Node::About { state: number }),
                        _ => (OsString::from(&state.id), Node::Shown { state: number }),
                    }
                };
                Ok(all.map(one).collect())
            }
            Node::Top { state } => match &*self.state(*state)?.contents()? {
                Contents::Partitions(all) => {
                    let one = |(part, number)| Ok((OsString::from(&all_name(part)), self.part(*state, number)?));
                    all.iter().zip(1u8..).map(one).collect()
                }
                _ => Ok(vec![named("README", Node::Readme { state: *state, part: 0 })]),
            },
            Node::Part { state, part } => Ok(vec![named("README", Node::Readme { state: *state, part: *part })]),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// A checkpoint's folder stands for what is in it, which is looked at when it is entered.
    fn entered(&self, node: Node) -> Result<Node, Errno> {
        match node {
            Node::Shown { state } => self.top(state),
            node => Ok(node),
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Node, Errno> {
        match self.node(parent)? {
            Node::File { state, part, inode } => {
                let tree = self.tree(state, part)?;
                let found = tree.lookup(inode.into(), name.as_bytes()).map_err(|e| errno(&e))?;
                Ok(Node::File { state, part, inode: inode32(found)? })
            }
            node => {
                let all = self.names(&node)?;
                let (_, found) = all.into_iter().find(|(known, _)| known == name).ok_or(Errno::ENOENT)?;
                self.entered(found)
            }
        }
    }

    /// What `stat` tells, and for how long it holds.
    fn attributes(&self, node: &Node) -> Result<(FileAttr, Duration), Errno> {
        let number = self.nodes.number(node);
        let folder = |time| (plain(number, FileType::Directory, 0, time), LOOKED);
        let made = |state: u32| Ok::<u64, Errno>(self.state(state)?.created);
        Ok(match node {
            Node::File { state, part, inode } => {
                let found = self.tree(*state, *part)?.attributes((*inode).into()).map_err(|e| errno(&e))?;
                (file_attributes(number, &found), KEPT)
            }
            Node::Shown { state } | Node::Top { state } | Node::Part { state, .. } => folder(made(*state)?),
            Node::Root | Node::Volume(_) | Node::All(_) | Node::Raw(_) | Node::Info(_) => folder(0),
            Node::Latest(volume) => {
                let len = self.states.shown(volume)?.last().map_or(0, |state| state.id.len());
                (plain(number, FileType::Symlink, len as u64, 0), Duration::ZERO)
            }
            Node::Image { state } => {
                let held = self.state(*state)?;
                let mut told = plain(number, FileType::RegularFile, held.image()?.size(), held.created);
                told.blocks = held.data_bytes()?.div_ceil(512);
                (told, KEPT)
            }
            Node::About { state } => {
                let held = self.state(*state)?;
                (plain(number, FileType::RegularFile, held.info.len() as u64, held.created), KEPT)
            }
            Node::Readme { state, part } => {
                let len = self.readme(*state, *part)?.len() as u64;
                (plain(number, FileType::RegularFile, len, made(*state)?), KEPT)
            }
        })
    }

    /// Fills `out` with a file's bytes from `offset` on; returns how many there were before its end.
    fn bytes(&self, node: &Node, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        let of_text = |text: &[u8], out: &mut [u8]| {
            let from = text.get(usize::try_from(offset).unwrap_or(usize::MAX).min(text.len())..).unwrap_or_default();
            out.iter_mut().zip(from).map(|(out, byte)| *out = *byte).count()
        };
        match node {
            Node::File { state, part, inode } => {
                let read = self.tree(*state, *part)?.read((*inode).into(), offset, out);
                read.map_err(|e| errno(&e))
            }
            Node::Image { state } => {
                let image = self.state(*state)?.image()?;
                let len = (out.len() as u64).min(image.size().saturating_sub(offset)) as usize;
                image.read_at(offset, out.get_mut(..len).unwrap_or_default()).map_err(|_| Errno::EIO)?;
                Ok(len)
            }
            Node::About { state } => Ok(of_text(self.state(*state)?.info.as_bytes(), out)),
            Node::Readme { state, part } => Ok(of_text(self.readme(*state, *part)?.as_bytes(), out)),
            _ => Err(Errno::EISDIR),
        }
    }

    /// Entries behind `offset`: number, what to ask for next, kind, name. Ends when `add` says that no more fits.
    fn list(&self, number: INodeNo, offset: u64, add: &mut Add<'_>) -> Result<(), Errno> {
        match self.node(number)? {
            Node::File { state, part, inode } => {
                let tree = self.tree(state, part)?;
                let listed = tree.entries(inode.into(), offset, &mut |entry| {
                    let Ok(inode) = inode32(entry.inode) else { return true };
                    add(&Node::File { state, part, inode }, entry.next, entry.kind, OsStr::from_bytes(&entry.name))
                });
                listed.map_err(|e| errno(&e))
            }
            node => {
                for ((name, node), next) in self.names(&node)?.into_iter().zip(1..).skip(offset as usize) {
                    if !add(&node, next, None, &name) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    fn target(&self, node: &Node) -> Result<Vec<u8>, Errno> {
        match node {
            Node::File { state, part, inode } => {
                self.tree(*state, *part)?.link_target((*inode).into()).map_err(|e| errno(&e))
            }
            Node::Latest(volume) => {
                let shown = self.states.shown(volume)?;
                Ok(OsString::from(&shown.last().ok_or(Errno::ENOENT)?.id).into_vec())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// The next byte from `offset` on that is data, or that is none.
    fn seek(&self, node: &Node, offset: u64, hole: bool) -> Result<u64, Errno> {
        let (attributes, _) = self.attributes(node)?;
        let size = attributes.size;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let next = |at: u64| match node {
            Node::File { state, part, inode } => {
                self.tree(*state, *part)?.next_data((*inode).into(), at).map_err(|e| errno(&e))
            }
            Node::Image { state } => self.state(*state)?.image()?.next_data(at).map_err(|_| Errno::EIO),
            _ => Ok((at < size).then_some(at..size)),
        };
        let mut at = offset;
        for _ in 0..RUNS_MAX {
            match next(at)? {
                None if hole => return Ok(at),
                None => return Err(Errno::ENXIO),
                Some(data) if !hole => return Ok(data.start),
                Some(data) if data.start > at => return Ok(at),
                Some(data) => at = data.end.max(at + 1),
            }
            if at >= size {
                break;
            }
        }
        Ok(size)
    }

    fn xattrs<T>(&self, number: INodeNo, ask: impl FnOnce(&dyn Tree, u64) -> Result<T, TreeError>) -> Result<T, Errno> {
        match self.node(number)? {
            Node::File { state, part, inode } => ask(&*self.tree(state, part)?, inode.into()).map_err(|e| match e {
                TreeError::NotFound => Errno::ENODATA,
                other => errno(&other),
            }),
            _ => Err(Errno::ENODATA),
        }
    }
}

fn all_name(part: &crate::contents::Partition) -> String {
    part.name.clone()
}

/// Files' numbers of all file systems that are read have 32 bits.
fn inode32(inode: u64) -> Result<u32, Errno> {
    u32::try_from(inode).map_err(|_| Errno::EIO)
}

fn sized(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, Errno>) {
    match value {
        Err(e) => reply.error(e),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

impl Filesystem for Mount {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A folder is told with its files' attributes when they are going to be asked for; many list at a time. A
        // kernel that cannot do one of these does without. Links are not kept by it: `latest` changes.
        let wanted =
            [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO, InitFlags::FUSE_PARALLEL_DIROPS];
        for one in wanted {
            let _ = config.add_capabilities(one);
        }
        let no_open = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok();
        self.is_open_needed.store(!no_open, Ordering::Relaxed);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name).and_then(|node| self.attributes(&node)) {
            Ok((attributes, ttl)) => reply.entry(&ttl, &attributes, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(number).and_then(|node| self.attributes(&node)) {
            Ok((attributes, ttl)) => reply.attr(&ttl, &attributes),
            Err(e) => reply.error(e),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.node(number).and_then(|node| self.target(&node)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    /// Nothing is to be done, now or later: a kernel that knows this answer does not ask again, and keeps what it read.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.is_open_needed.load(Ordering::Relaxed) {
            false => reply.error(Errno::ENOSYS),
            true => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    /// Folders of checkpoints never change: the kernel keeps what was listed. Ours do.
    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let kept = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        let flags = self.node(number).and_then(|node| match node {
            Node::File { state, .. } => self.state(state).map(|_| kept),
            _ => Ok(FopenFlags::empty()),
        });
        match flags {
            Ok(flags) => reply.opened(FileHandle(0), flags),
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            /// What one thread answers with: memory that was touched once is faster than new one.
            static ANSWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        ANSWER.with_borrow_mut(|answer| {
            let len = (size as usize).min(READ_MAX);
            if answer.len() < len {
                answer.resize(len, 0);
            }
            let out = answer.get_mut(..len).unwrap_or_default();
            let got = self.node(number).and_then(|node| self.bytes(&node, offset, out));
            match got {
                Ok(got) => reply.data(out.get(..got).unwrap_or_default()),
                Err(e) => reply.error(e),
            }
        });
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(number, offset, &mut |node, next, kind, name| {
            let kind = kind.map_or_else(|| node.kind(), attributes::file_type);
            !reply.add(INodeNo(self.nodes.number(node)), next, kind, name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.list(number, offset, &mut |node, next, _, name| {
            // A checkpoint's folder is named without looking into its disk. A damaged file is there, too.
            let (attributes, ttl) = match self.attributes(node) {
                Ok(found) => found,
                Err(_) => (plain(self.nodes.number(node), FileType::RegularFile, 0, 0), Duration::ZERO),
            };
            let ttl = if matches!(node, Node::Shown { .. }) { Duration::ZERO } else { ttl };
            !reply.add(attributes.ino, next, name, &ttl, &attributes, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        sized(reply, size, self.xattrs(number, |tree, file| tree.xattr(file, name.as_bytes())));
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let joined = |names: Vec<Vec<u8>>| names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
        let names = match self.xattrs(number, |tree, file| tree.xattr_names(file)) {
            Err(e) if e.code() == Errno::ENODATA.code() => Ok(Vec::new()),
            names => names,
        };
        sized(reply, size, names.map(joined));
    }

    fn lseek(&self, _: &Request, number: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        /// As Linux numbers them.
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = u64::try_from(offset).map_err(|_| Errno::ENXIO);
        let found = found.and_then(|offset| self.seek(&self.node(number)?, offset, hole));
        match found {
            Ok(at) => reply.offset(at.min(i64::MAX as u64) as i64),
            Err(e) => reply.error(e),
        }
    }
}
