//! ext2, ext3 and ext4, read-only, as mke2fs, the kernel and e2fsprogs make them. The layout is that of the kernel's
//! documentation (Documentation/filesystems/ext4).
//!
//! Invariants
//!   * what an image claims is bounded before anything is read or kept for it (`limits.rs`);
//!   * a checksum that the file system has is verified, and a mismatch is damage;
//!   * a journal that was not replayed is replayed in memory: reads find its blocks in place of the old ones. Fast
//!     commits are not: what only they hold is missing, like what a power loss takes.

mod block;
mod directory;
mod extent;
mod inode;
mod journal;
#[cfg(feature = "testing")]
mod mended;
mod superblock;
mod xattr;

use crate::source::ReadAt;
use crate::tree::{Attributes, Entry, Extent, Inode, Tree, TreeError};
use block::Blocks;
use directory::Names;
use inode::Node;
use std::ops::Range;
use std::sync::Arc;
use superblock::Superblock;

#[cfg(feature = "testing")]
pub use mended::mended;

const ROOT: Inode = 2;

/// A file system.
pub struct Ext4 {
    blocks: Blocks,
    names: Names,
}

impl Ext4 {
    /// The file system in `image`; `None` when it is another one, or none.
    ///
    /// # Errors
    /// `Unsupported` for features that change what would be read, `Damaged` when its superblock does not hold.
    pub fn open(image: Arc<dyn ReadAt>) -> Result<Option<Self>, TreeError> {
        let Some(superblock) = Superblock::read(&*image)? else { return Ok(None) };
        let mut blocks = Blocks::new(image, superblock);
        if blocks.superblock.needs_recovery {
            let journal = journal::replay(&blocks)?;
            blocks.overlay(journal);
            // What the journal holds of the superblock counts, too.
            let again = Superblock::parse(&blocks.superblock_bytes()?)?;
            blocks.superblock =
                again.ok_or_else(|| TreeError::Damaged("the journal overwrites the superblock".to_owned()))?;
        }
        let fs = Self { blocks, names: Names::default() };
        fs.attributes(ROOT)?;
        Ok(Some(fs))
    }

    fn node(&self, number: Inode) -> Result<Node, TreeError> {
        Node::read(&self.blocks, number)
    }
}

impl Tree for Ext4 {
    fn root(&self) -> Inode {
        ROOT
    }

    fn size(&self) -> u64 {
        // What it claims beyond the image's end cannot hold anything.
        (self.blocks.superblock.blocks * self.blocks.size()).min(self.blocks.image_size())
    }

    fn attributes(&self, file: Inode) -> Result<Attributes, TreeError> {
        self.node(file)?.attributes(&self.blocks)
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Inode, TreeError> {
        self.names.lookup(directory, name, || self.node(directory), &self.blocks)
    }

    fn entries(&self, directory: Inode, after: u64, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), TreeError> {
        directory::entries(&self.blocks, &self.node(directory)?, after, each)
    }

    fn parent(&self, directory: Inode) -> Result<Inode, TreeError> {
        directory::parent(&self.blocks, &self.node(directory)?)
    }

    fn read(&self, file: Inode, offset: u64, out: &mut [u8]) -> Result<usize, TreeError> {
        let node = self.node(file)?;
        node.expect_file()?;
        node.read_at(&self.blocks, offset, out)
    }

    fn extent(&self, file: Inode, offset: u64) -> Result<Extent, TreeError> {
        self.node(file)?.extent(&self.blocks, offset)
    }

    fn link_target(&self, link: Inode) -> Result<Vec<u8>, TreeError> {
        self.node(link)?.link_target(&self.blocks)
    }

    fn xattr_names(&self, file: Inode) -> Result<Vec<Vec<u8>>, TreeError> {
        Ok(xattr::all(&self.blocks, &self.node(file)?)?.into_iter().map(|attribute| attribute.name).collect())
    }

    fn xattr(&self, file: Inode, name: &[u8]) -> Result<Vec<u8>, TreeError> {
        let all = xattr::all(&self.blocks, &self.node(file)?)?;
        let found = all.into_iter().find(|attribute| attribute.name == name).ok_or(TreeError::NotFound)?;
        xattr::value(&self.blocks, found)
    }

    fn record(&self, file: Inode) -> Result<Range<u64>, TreeError> {
        inode::place(&self.blocks, file)
    }

    fn overlaid(&self) -> Vec<Range<u64>> {
        self.blocks.overlaid()
    }
}
