//! Numbers of what is mounted.
//!
//! Invariant: a number means one thing as long as the file system lives. Files of checkpoints have numbers that follow
//! from where they are; our own folders get theirs when they are first named.

use fuser::FileType;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What a number stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// All volumes.
    Root,
    /// A volume's checkpoints.
    Volume(String),
    /// All of them.
    All(String),
    /// Their disks.
    Raw(String),
    /// What is known of them.
    Info(String),
    /// The newest.
    Latest(String),
    /// A checkpoint in a list: what it holds has not been looked at.
    Shown { state: u32 },
    /// A checkpoint whose disk has partitions, or cannot be shown.
    Top { state: u32 },
    /// A partition that cannot be shown.
    Part { state: u32, part: u8 },
    /// Why not.
    Readme { state: u32, part: u8 },
    /// A disk's bytes.
    Image { state: u32 },
    /// What is known of a checkpoint.
    About { state: u32 },
    /// A file of a checkpoint; part 0 is a disk without partitions.
    File { state: u32, part: u8, inode: u32 },
}

impl Node {
    /// What it is, without looking.
    pub fn kind(&self) -> FileType {
        match self {
            Self::Latest(_) => FileType::Symlink,
            Self::Readme { .. } | Self::Image { .. } | Self::About { .. } | Self::File { .. } => FileType::RegularFile,
            _ => FileType::Directory,
        }
    }
}

/// Set in the numbers of checkpoints' files: 22 bits of state, 8 of partition, 32 of inode follow.
const FILE: u64 = 1 << 62;
const STATE_BITS: u32 = 22;

/// Numbers given so far.
pub struct Nodes(Mutex<(Vec<Node>, HashMap<Node, u64>)>);

impl Nodes {
    /// The root has number 1.
    pub fn new(root: Node) -> Self {
        Self(Mutex::new((vec![root.clone()], HashMap::from([(root, 1)]))))
    }

    /// The number of a node.
    pub fn number(&self, node: &Node) -> u64 {
        if let Node::File { state, part, inode } = node {
            return FILE | u64::from(*state) << 40 | u64::from(*part) << 32 | u64::from(*inode);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.1.get(node) {
            return *number;
        }
        known.0.push(node.clone());
        let number = known.0.len() as u64;
        known.1.insert(node.clone(), number);
        number
    }

    /// What has this number.
    pub fn node(&self, number: u64) -> Option<Node> {
        if number & FILE != 0 {
            let state = (number & !FILE) >> 40;
            return Some(Node::File { state: state as u32, part: (number >> 32) as u8, inode: number as u32 });
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.0.get(usize::try_from(number.checked_sub(1)?).ok()?).cloned()
    }
}

/// States that can be numbered.
pub const STATES_MAX: usize = 1 << STATE_BITS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        let nodes = Nodes::new(Node::Root);
        let largest = (1 << STATE_BITS) - 1;
        let all = [
            Node::Root,
            Node::Volume("disk".to_owned()),
            Node::Shown { state: 0 },
            Node::File { state: largest, part: 128, inode: u32::MAX },
            Node::File { state: 0, part: 0, inode: 2 },
        ];
        for node in all.iter().chain(&all) {
            assert_eq!(nodes.node(nodes.number(node)).as_ref(), Some(node));
        }
        assert_eq!(nodes.number(&Node::Root), 1);
        assert_eq!((nodes.node(0), nodes.node(99)), (None, None));
    }
}
