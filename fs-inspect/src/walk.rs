//! Finding a file by its path.
//!
//! Invariant: a path is walked name by name inside one tree; links are not followed and `..` is nobody's name.

use crate::contents::Contents;
use crate::tree::{FileKind, Inode, Tree, TreeError};
use std::sync::Arc;

/// A file in a tree.
pub struct Place {
    /// The tree.
    pub tree: Arc<dyn Tree>,
    /// The file.
    pub inode: Inode,
}

/// The file that `path` leads to. On a partitioned disk the first name is the partition's, `p1`, `p2`, ….
pub fn find(contents: &Contents, path: &[u8]) -> Result<Place, TreeError> {
    let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let tree = match contents {
        Contents::Tree(tree) => tree,
        Contents::Unreadable { why } => return Err(TreeError::Unsupported(format!("the disk: {why}"))),
        Contents::Partitions(all) => {
            let known = || all.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ");
            let wanted = names.next().unwrap_or_default();
            let part = all.iter().find(|part| part.name.as_bytes() == wanted);
            let part = part.ok_or_else(|| {
                TreeError::Unsupported(format!(
                    "a path that does not begin with one of the disk's partitions: {}",
                    known()
                ))
            })?;
            match &part.contents {
                Contents::Tree(tree) => tree,
                Contents::Unreadable { why } => {
                    return Err(TreeError::Unsupported(format!("partition {}: {why}", part.name)))
                }
                Contents::Partitions(_) => return Err(TreeError::NotFound),
            }
        }
    };
    let mut inode = tree.root();
    for name in names {
        if tree.attributes(inode)?.kind != FileKind::Directory {
            return Err(TreeError::NotFound);
        }
        inode = tree.lookup(inode, name)?;
    }
    Ok(Place { tree: tree.clone(), inode })
}
