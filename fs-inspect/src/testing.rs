//! Any bytes as an image through everything that reads images: what a fuzzer runs, and the replay of what it found.
//!
//! An input is an image without its zeros: one byte of [`MODE_CHECKED`] and its like, two of the image's size in units, then
//! units that hold something, each behind its number. So small changes of an input are small changes of an image.

use crate::ext4::mended;
use crate::{diff, open, Contents, FileKind, Inode, ReadAt, Tree};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Bytes of a unit.
pub const UNIT: usize = 128;
/// In an input's first byte: the file system keeps its checksums, and those of its superblock and of its groups are made to
/// match. Without it the feature is taken away, so that what is changed is looked at.
pub const MODE_CHECKED: u8 = 1;
const UNITS_MAX: usize = 1 << 16;
/// Files and depth of folders that are looked at.
const FILES_MAX: u32 = 2000;
const DEPTH_MAX: usize = 8;
/// Bytes that may be read for each byte of an image: no more are compared, whatever its files claim.
const READ_FACTOR: u64 = 100;

/// An image in memory, which counts what is read of it.
pub struct Counted(Vec<u8>, AtomicU64);

impl Counted {
    /// The image of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes, AtomicU64::new(0))
    }
}

impl ReadAt for Counted {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.1.fetch_add(out.len() as u64, Ordering::Relaxed);
        let end = offset.checked_add(out.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        let held =
            usize::try_from(offset).ok().zip(usize::try_from(end).ok()).and_then(|(from, to)| self.0.get(from..to));
        out.copy_from_slice(held.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then_some(offset..self.size()))
    }
}

/// Looks at everything, as deep as eight folders and 2,000 files.
fn look(tree: &dyn Tree, inode: Inode, depth: usize, files: &mut u32) {
    let mut children = Vec::new();
    let _ = tree.entries(inode, 0, &mut |entry| {
        assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0) && entry.name != b"..", "{:?}", entry.name);
        children.push((entry.inode, entry.name));
        children.len() < FILES_MAX as usize
    });
    let _ = tree.parent(inode);
    for (child, name) in children {
        *files += 1;
        if *files > FILES_MAX {
            return;
        }
        let _ = tree.lookup(inode, &name);
        let Ok(what) = tree.attributes(child) else { continue };
        tree.xattr_names(child).unwrap_or_default().iter().for_each(|name| drop(tree.xattr(child, name)));
        match what.kind {
            FileKind::Directory if depth < DEPTH_MAX => look(tree, child, depth + 1, files),
            FileKind::File => {
                let mut piece = [0; 8192];
                for at in [0, 4095, what.size / 2, what.size.saturating_sub(5), u64::MAX - 3] {
                    let _ = tree.read(child, at, &mut piece);
                    let _ = tree.extent(child, at);
                }
            }
            FileKind::Link => drop(tree.link_target(child)),
            _ => {}
        }
    }
}

fn look_at_all(contents: &Contents) {
    match contents {
        Contents::Tree(tree) => {
            look(&**tree, tree.root(), 0, &mut 0);
            let _ = tree.lookup(tree.root(), b"no such name");
            let _ = diff(&**tree, &**tree, std::iter::once(0..u64::MAX).collect());
        }
        Contents::Partitions(all) => all.iter().for_each(|part| look_at_all(&part.contents)),
        Contents::Unreadable { why } => assert!(!why.is_empty(), "it says why"),
    }
}

/// Looks at all that an image holds; `what` names it when something is wrong.
///
/// # Panics
/// A hundred times as much is read as it has bytes, or anything else that must not happen.
pub fn survive(bytes: Vec<u8>, what: &str) {
    let size = bytes.len() as u64;
    let image = Arc::new(Counted::new(bytes));
    if let Ok(contents) = open(image.clone()) {
        look_at_all(&contents);
    }
    let read = image.1.load(Ordering::Relaxed);
    assert!(read < READ_FACTOR * size.max(1 << 20), "{what}: {read} bytes read of an image of {size}");
}

/// The image of an input.
pub fn unpacked(input: &[u8]) -> Option<Vec<u8>> {
    let (mode, rest) = input.split_first()?;
    let (size, units) = rest.split_first_chunk()?;
    let mut image = vec![0; usize::from(u16::from_le_bytes(*size)) * UNIT];
    for unit in units.chunks(2 + UNIT) {
        let Some((number, bytes)) = unit.split_first_chunk() else { break };
        let at = usize::from(u16::from_le_bytes(*number)) * UNIT;
        if let Some(place) = image.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    mended(&mut image, mode & MODE_CHECKED != 0);
    Some(image)
}

/// The input of an image of less than 8 MiB.
pub fn packed(mode: u8, image: &[u8]) -> Vec<u8> {
    let units = (image.len() / UNIT).min(UNITS_MAX - 1) as u16;
    let mut out = vec![mode];
    out.extend(units.to_le_bytes());
    for (number, unit) in (0..units).zip(image.chunks_exact(UNIT)) {
        if unit.iter().any(|byte| *byte != 0) {
            out.extend(number.to_le_bytes());
            out.extend(unit);
        }
    }
    out
}

/// Takes `input` as an image.
///
/// # Panics
/// As [`survive`].
pub fn image(input: &[u8]) {
    if let Some(image) = unpacked(input) {
        survive(image, "an input");
    }
}
