//! What differs between two states of one file system, file by file.
//!
//! Cost: the names and inodes of all files are read, those of directories that have not changed once; contents only where
//! the image has changed. So it follows the number of files and the change, not the disk's size. Inodes are read although
//! theirs may not have changed, because a guest may have written a file over in place and its inode not yet.
//!
//! Invariants
//!   * the outcome is in the order of paths and depends on nothing but the two states;
//!   * a file that is another one of the same number is removed and added, not changed;
//!   * directories are walked `TREE_DEPTH_MAX` deep, and none is walked twice below itself;
//!   * no more is compared than the file system can hold: blocks that many files claim are damage.

use crate::limits::{PIECE, TREE_DEPTH_MAX};
use crate::tree::{Attributes, FileKind, Inode, Tree, TreeError};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// Runs of blocks that are looked at however small the file system is.
const RUNS_FREE: u64 = 1 << 16;

/// What happened to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its contents are others: bytes, target, or device.
    Modified,
    /// Its permissions, owner, group or extended attributes are others.
    Attributes,
    /// It was elsewhere.
    Renamed {
        /// Its path before.
        from: Vec<u8>,
        /// Its contents are others, too.
        modified: bool,
    },
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path; before, if it is gone. Without a leading `/`.
    pub path: Vec<u8>,
    /// What happened.
    pub change: Change,
    /// As it was.
    pub before: Option<Attributes>,
    /// As it is.
    pub after: Option<Attributes>,
}

/// What has changed of an image.
struct Changed(Vec<Range<u64>>);

impl Changed {
    fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut().filter(|last| last.end >= range.start) {
                Some(last) => last.end = last.end.max(range.end),
                None => joined.push(range),
            }
        }
        Self(joined)
    }

    fn touches(&self, range: Range<u64>) -> bool {
        let at = self.0.partition_point(|changed| changed.end <= range.start);
        self.0.get(at).is_some_and(|changed| changed.start < range.end)
    }
}

struct Differ<'a> {
    before: &'a dyn Tree,
    after: &'a dyn Tree,
    changed: Changed,
    removed: BTreeMap<Vec<u8>, Inode>,
    added: BTreeMap<Vec<u8>, Inode>,
    found: Vec<Difference>,
    /// Inodes looked at already: one with many names is compared once.
    compared: HashMap<(Inode, Inode), Option<Change>>,
    /// Bytes that may still be compared, and runs of blocks that may still be looked at.
    bytes_left: Cell<u64>,
    runs_left: Cell<u64>,
}

type Names = BTreeMap<Vec<u8>, (Inode, Option<FileKind>)>;

/// Compares two states; `changed` are the bytes of the image in which they differ, at least.
pub fn diff(before: &dyn Tree, after: &dyn Tree, mut changed: Vec<Range<u64>>) -> Result<Vec<Difference>, TreeError> {
    changed.extend(before.overlaid());
    changed.extend(after.overlaid());
    let changed = Changed::new(changed);
    let (removed, added, found, compared) = (BTreeMap::new(), BTreeMap::new(), Vec::new(), HashMap::new());
    let size = before.size().max(after.size());
    let (bytes_left, runs_left) = (Cell::new(size.saturating_mul(4)), Cell::new(size / 256 + RUNS_FREE));
    let mut differ = Differ { before, after, changed, removed, added, found, compared, bytes_left, runs_left };
    differ.both(&[], before.root(), after.root(), &mut Vec::new())?;
    differ.match_renames()?;
    differ.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(differ.found)
}

fn names(tree: &dyn Tree, directory: Inode) -> Result<Names, TreeError> {
    let mut all = Names::new();
    tree.entries(directory, 0, &mut |entry| {
        all.insert(entry.name, (entry.inode, entry.kind));
        true
    })?;
    Ok(all)
}

fn is_directory(tree: &dyn Tree, inode: Inode, told: Option<FileKind>) -> Result<bool, TreeError> {
    Ok(match told {
        Some(kind) => kind,
        None => tree.attributes(inode)?.kind,
    } == FileKind::Directory)
}

/// Whether two inodes of one number are one file.
fn is_same(before: &Attributes, after: &Attributes) -> bool {
    before.kind == after.kind && before.generation == after.generation && before.created == after.created
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}

impl Differ<'_> {
    fn record_changed(&self, tree: &dyn Tree, inode: Inode) -> Result<bool, TreeError> {
        Ok(self.changed.touches(tree.record(inode)?))
    }

    fn spend(left: &Cell<u64>, amount: u64) -> Result<(), TreeError> {
        let rest = left.get().checked_sub(amount);
        left.set(rest.ok_or_else(|| TreeError::Damaged("files claim more than the disk has".to_owned()))?);
        Ok(())
    }

    /// Whether a file's bytes may be others, because its blocks have changed or are others.
    fn blocks_changed(&self, before: Inode, after: Inode) -> Result<bool, TreeError> {
        let mut at = 0;
        loop {
            Self::spend(&self.runs_left, 1)?;
            let (a, b) = (self.before.extent(before, at)?, self.after.extent(after, at)?);
            let len = a.len.min(b.len);
            if a.at != b.at || a.is_hole != b.is_hole {
                return Ok(true);
            }
            if len == 0 {
                return Ok(a.len != b.len);
            }
            if a.at.is_some_and(|place| self.changed.touches(place..place.saturating_add(len))) {
                return Ok(true);
            }
            at += len;
        }
    }

    /// Two directories at one place in both trees.
    fn both(&mut self, path: &[u8], before: Inode, after: Inode, above: &mut Vec<Inode>) -> Result<(), TreeError> {
        if above.len() >= TREE_DEPTH_MAX || above.contains(&after) {
            return Err(TreeError::Damaged(format!("directory {after} leads into itself, or too deep")));
        }
        let untouched = before == after
            && !self.record_changed(self.before, before)?
            && !self.record_changed(self.after, after)?
            && !self.blocks_changed(before, after)?;
        let now = names(self.after, after)?;
        let then = if untouched { now.clone() } else { names(self.before, before)? };
        above.push(after);
        for name in then.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
            let here = joined(path, name);
            match (then.get(name).copied(), now.get(name).copied()) {
                (Some((a, _)), None) => self.gone(&here, a, self.before.attributes(a)?, true, 0)?,
                (None, Some((b, _))) => self.gone(&here, b, self.after.attributes(b)?, false, 0)?,
                (Some((a, told_a)), Some((b, told_b))) => {
                    self.pair(here, (a, told_a), (b, told_b), above)?;
                }
                (None, None) => {}
            }
        }
        above.pop();
        Ok(())
    }

    /// A name that is in both.
    fn pair(
        &mut self,
        path: Vec<u8>,
        (a, told_a): (Inode, Option<FileKind>),
        (b, told_b): (Inode, Option<FileKind>),
        above: &mut Vec<Inode>,
    ) -> Result<(), TreeError> {
        let directories = (is_directory(self.before, a, told_a)?, is_directory(self.after, b, told_b)?);
        if directories == (true, true) {
            if let Some(change) = self.compare(a, b)?.filter(|change| *change == Change::Attributes) {
                self.tell(path.clone(), change, Some(a), Some(b))?;
            }
            return self.both(&path, a, b, above);
        }
        if directories.0 || directories.1 {
            self.gone(&path, a, self.before.attributes(a)?, true, 0)?;
            return self.gone(&path, b, self.after.attributes(b)?, false, 0);
        }
        if let Some(change) = self.compare(a, b)? {
            self.tell(path, change, Some(a), Some(b))?;
        }
        Ok(())
    }

    /// What happened to a file that was `a` and is `b`, at one path.
    fn compare(&mut self, a: Inode, b: Inode) -> Result<Option<Change>, TreeError> {
        if let Some(known) = self.compared.get(&(a, b)) {
            return Ok(known.clone());
        }
        let outcome = self.compare_anew(a, b)?;
        self.compared.insert((a, b), outcome.clone());
        Ok(outcome)
    }

    fn compare_anew(&self, a: Inode, b: Inode) -> Result<Option<Change>, TreeError> {
        let record = a != b || self.record_changed(self.before, a)? || self.record_changed(self.after, b)?;
        if !record && !self.blocks_changed(a, b)? {
            return Ok(None);
        }
        let (before, after) = (self.before.attributes(a)?, self.after.attributes(b)?);
        if before.kind != after.kind || before.device != after.device || self.contents_differ(a, &before, b, &after)? {
            return Ok(Some(Change::Modified));
        }
        let rights = |of: &Attributes| (of.mode, of.uid, of.gid);
        let differs = rights(&before) != rights(&after) || record && self.xattrs_differ(a, b)?;
        Ok(differs.then_some(Change::Attributes))
    }

    fn xattrs_differ(&self, a: Inode, b: Inode) -> Result<bool, TreeError> {
        let (mut before, mut after) = (self.before.xattr_names(a)?, self.after.xattr_names(b)?);
        before.sort();
        after.sort();
        if before != after {
            return Ok(true);
        }
        for name in &before {
            if self.before.xattr(a, name)? != self.after.xattr(b, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn contents_differ(&self, a: Inode, before: &Attributes, b: Inode, after: &Attributes) -> Result<bool, TreeError> {
        match (before.kind, after.kind) {
            (FileKind::Link, FileKind::Link) => Ok(self.before.link_target(a)? != self.after.link_target(b)?),
            (FileKind::File, FileKind::File) if before.size != after.size => Ok(true),
            (FileKind::File, FileKind::File) => self.bytes_differ(a, b),
            (before, after) => Ok(before != after),
        }
    }

    /// Compares bytes where the blocks are others, or have changed.
    fn bytes_differ(&self, a: Inode, b: Inode) -> Result<bool, TreeError> {
        let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        loop {
            Self::spend(&self.runs_left, 1)?;
            let (x, y) = (self.before.extent(a, at)?, self.after.extent(b, at)?);
            let len = x.len.min(y.len);
            if len == 0 {
                return Ok(x.len != y.len);
            }
            let same_place = match (x.at, y.at) {
                (Some(x), Some(y)) => x == y && !self.changed.touches(x..x.saturating_add(len)),
                (None, None) => x.is_hole && y.is_hole,
                _ => false,
            };
            let (mut from, end) = (at, at + len);
            while !same_place && from < end {
                let piece = (end - from).min(PIECE as u64) as usize;
                Self::spend(&self.bytes_left, piece as u64)?;
                self.before.read(a, from, &mut left[..piece])?;
                self.after.read(b, from, &mut right[..piece])?;
                if left[..piece] != right[..piece] {
                    return Ok(true);
                }
                from += piece as u64;
            }
            at = end;
        }
    }

    /// A file that is in one tree alone, with all below it.
    fn gone(
        &mut self,
        path: &[u8],
        inode: Inode,
        what: Attributes,
        is_before: bool,
        depth: usize,
    ) -> Result<(), TreeError> {
        if depth >= TREE_DEPTH_MAX {
            return Err(TreeError::Damaged("directories lead into themselves, or too deep".to_owned()));
        }
        let into = if is_before { &mut self.removed } else { &mut self.added };
        into.insert(path.to_vec(), inode);
        if what.kind == FileKind::Directory {
            let tree = if is_before { self.before } else { self.after };
            for (name, (inode, _)) in names(tree, inode)? {
                let what = tree.attributes(inode)?;
                self.gone(&joined(path, &name), inode, what, is_before, depth + 1)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, path: Vec<u8>, change: Change, a: Option<Inode>, b: Option<Inode>) -> Result<(), TreeError> {
        let before = a.map(|a| self.before.attributes(a)).transpose()?;
        let after = b.map(|b| self.after.attributes(b)).transpose()?;
        self.found.push(Difference { path, change, before, after });
        Ok(())
    }

    /// Of what is gone and what is new, some is the same file elsewhere.
    fn match_renames(&mut self) -> Result<(), TreeError> {
        let (removed, added) = (std::mem::take(&mut self.removed), std::mem::take(&mut self.added));
        let mut elsewhere: HashMap<Inode, Vec<u8>> = HashMap::new();
        for (path, inode) in &removed {
            elsewhere.entry(*inode).or_insert_with(|| path.clone());
        }
        let mut moved: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (path, inode) in added {
            let from = elsewhere.get(&inode).filter(|from| !moved.contains(*from)).cloned();
            match from {
                Some(from) if self.is_moved(inode)? => {
                    let modified = self.compare(inode, inode)? == Some(Change::Modified);
                    moved.insert(from.clone());
                    self.tell(path, Change::Renamed { from, modified }, Some(inode), Some(inode))?;
                }
                _ => self.tell(path, Change::Added, None, Some(inode))?,
            }
        }
        for (path, inode) in removed.into_iter().filter(|(path, _)| !moved.contains(path)) {
            self.tell(path, Change::Removed, Some(inode), None)?;
        }
        Ok(())
    }

    /// Whether the file of this number is one in both states. Without a generation, which some tools do not give, a
    /// number that was given again looks like the file it was given to before, unless that has the same contents.
    fn is_moved(&mut self, inode: Inode) -> Result<bool, TreeError> {
        let (before, after) = (self.before.attributes(inode)?, self.after.attributes(inode)?);
        if !is_same(&before, &after) {
            return Ok(false);
        }
        let certain = before.generation != 0 || before.kind == FileKind::Directory;
        Ok(certain || before.modified == after.modified && self.compare(inode, inode)? != Some(Change::Modified))
    }
}
