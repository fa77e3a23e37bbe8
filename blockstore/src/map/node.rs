//! Node references and nodes in memory.

use crate::error::{Error, Result};
use crate::types::SlotAddr;

/// Children of an inner node, and blocks of a leaf.
pub const FANOUT: usize = 64;

/// What a parent says about a child, in 64 bits.
///
/// ```text
/// 63  62 61         48 47    40 39                      0
/// [tag ] [           ] [ node ] [ slot address          ]   2: node in a map page
/// [tag ] [                    ] [ first slot address    ]   1: a leaf whose 64 blocks lie in 64
///                                                              consecutive slots
/// [tag ] [                    ] [ 0 ] [ node number 32  ]   3: changed node in memory
/// 0                                                         0: nothing mapped below
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ref(u64);

/// A [`Ref`] taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing mapped below.
    Hole,
    /// A leaf of consecutive slots.
    Run(SlotAddr),
    /// Node `.1` of the map page at `.0`.
    Page(SlotAddr, u8),
    /// A changed node.
    Memory(u32),
}

const TAG_SHIFT: u32 = 62;
const NODE_SHIFT: u32 = SlotAddr::BITS;

impl Ref {
    /// Nothing mapped.
    pub const HOLE: Ref = Ref(0);

    /// A leaf of consecutive slots.
    pub fn run(first: SlotAddr) -> Self {
        Ref(1 << TAG_SHIFT | first.0)
    }

    /// A node in a map page.
    pub fn page(addr: SlotAddr, node: u8) -> Self {
        Ref(2 << TAG_SHIFT | u64::from(node) << NODE_SHIFT | addr.0)
    }

    /// A node in memory.
    pub fn memory(id: u32) -> Self {
        Ref(3 << TAG_SHIFT | u64::from(id))
    }

    /// The map page a stored node is in.
    pub fn page_addr(self) -> Option<SlotAddr> {
        match self.target() {
            Target::Page(addr, _) => Some(addr),
            _ => None,
        }
    }

    /// From bits that never left memory.
    pub fn from_bits(bits: u64) -> Self {
        Ref(bits)
    }

    /// From bits that were on disk, where no reference into memory can be.
    pub fn from_stored(bits: u64) -> Result<Self> {
        match Ref(bits).target() {
            Target::Memory(_) => Err(Error::corrupt(format!("a stored map reference points into memory: {bits:#x}"))),
            _ => Ok(Ref(bits)),
        }
    }

    /// To stored bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Taken apart.
    pub fn target(self) -> Target {
        let addr = SlotAddr(self.0 & ((1 << SlotAddr::BITS) - 1));
        match self.0 >> TAG_SHIFT {
            1 => Target::Run(addr),
            2 => Target::Page(addr, (self.0 >> NODE_SHIFT) as u8),
            3 => Target::Memory(self.0 as u32),
            _ => Target::Hole,
        }
    }
}

/// A changed node: entries are [`Ref`] bits in inner nodes, slot addresses in leaves.
#[derive(Clone)]
pub struct Node {
    /// 0 for leaves.
    pub level: u8,
    /// Parents and roots that refer to it.
    pub references: u32,
    /// Entries.
    pub entries: Box<[u64; FANOUT]>,
}

/// Changed nodes, numbered.
#[derive(Default)]
pub struct Arena {
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
}

impl Arena {
    /// Adds a node with one reference.
    pub fn insert(&mut self, level: u8, entries: Box<[u64; FANOUT]>) -> u32 {
        let node = Node { level, references: 1, entries };
        match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// The node `id`, which exists: references are counted.
    pub fn get(&self, id: u32) -> &Node {
        self.nodes[id as usize].as_ref().expect("a referenced node exists")
    }

    /// The node `id` for changing; only its sole owner may.
    pub fn get_mut(&mut self, id: u32) -> &mut Node {
        self.nodes[id as usize].as_mut().expect("a referenced node exists")
    }

    /// Takes a node out.
    pub fn remove(&mut self, id: u32) -> Node {
        self.free.push(id);
        self.nodes[id as usize].take().expect("a referenced node exists")
    }

    /// Nodes held.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}
