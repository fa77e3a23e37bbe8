//! Extended attributes: in the inode, in a block, and large values in inodes of their own.

use super::block::Blocks;
use super::inode::Node;
use super::superblock::checksum;
use crate::le;
use crate::limits::XATTR_BYTES_MAX;
use crate::tree::TreeError;

const MAGIC: u32 = 0xea02_0000;
const ENTRY: usize = 16;
const BLOCK_HEADER: usize = 32;
/// Names of this kind hold what does not fit an inline file's inode.
const SYSTEM: u8 = 7;
const PREFIXES: [(u8, &[u8]); 7] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (SYSTEM, b"system."),
    (8, b"system.richacl"),
];

/// One attribute.
pub struct Attribute {
    pub name: Vec<u8>,
    value: Value,
    is_acl: bool,
}

enum Value {
    Here(Vec<u8>),
    /// The number of the inode that holds it, and its length.
    Inode(u32, usize),
}

fn damaged(node: &Node, what: &str) -> TreeError {
    TreeError::Damaged(format!("inode {}: extended attributes: {what}", node.number))
}

/// Reads the entries of `list`, whose values lie in `values`; names with their index.
fn parse(node: &Node, list: &[u8], values: &[u8]) -> Result<Vec<(u8, Vec<u8>, Value)>, TreeError> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at + ENTRY <= list.len() && le::u32(list, at) != 0 {
        let (len, index) = (usize::from(list[at]), list[at + 1]);
        let (from, inode, size) =
            (usize::from(le::u16(list, at + 2)), le::u32(list, at + 4), le::u32(list, at + 8) as usize);
        let name = list.get(at + ENTRY..at + ENTRY + len).ok_or_else(|| damaged(node, "a name is cut off"))?;
        if size > XATTR_BYTES_MAX {
            return Err(damaged(node, "a value is longer than any"));
        }
        let value = if inode != 0 {
            Value::Inode(inode, size)
        } else {
            let value = values.get(from..from + size).filter(|_| size > 0 || from <= values.len());
            Value::Here(value.ok_or_else(|| damaged(node, "a value is cut off"))?.to_vec())
        };
        found.push((index, name.to_vec(), value));
        at += ENTRY + len.next_multiple_of(4);
    }
    Ok(found)
}

fn in_inode(node: &Node) -> Result<Vec<(u8, Vec<u8>, Value)>, TreeError> {
    let at = 128 + node.extra();
    let Some(region) = node.bytes.get(at..).filter(|region| region.len() > 4 && le::u32(region, 0) == MAGIC) else {
        return Ok(Vec::new());
    };
    parse(node, &region[4..], &region[4..])
}

fn in_block(blocks: &Blocks, node: &Node) -> Result<Vec<(u8, Vec<u8>, Value)>, TreeError> {
    let number = node.xattr_block();
    if number == 0 {
        return Ok(Vec::new());
    }
    let block = blocks.get(number)?;
    if le::u32(&block, 0) != MAGIC {
        return Err(damaged(node, "their block is none"));
    }
    if let Some(seed) = blocks.superblock.seed {
        let sum = checksum(checksum(seed, &number.to_le_bytes()), &block[..0x10]);
        if checksum(checksum(sum, &[0; 4]), &block[0x14..]) != le::u32(&block, 0x10) {
            return Err(damaged(node, "the checksum of their block does not match"));
        }
    }
    parse(node, &block[BLOCK_HEADER..], &block)
}

/// All attributes that a file has.
pub fn all(blocks: &Blocks, node: &Node) -> Result<Vec<Attribute>, TreeError> {
    let mut found = in_inode(node)?;
    found.extend(in_block(blocks, node)?);
    let named = found.into_iter().filter_map(|(index, name, value)| {
        // The rest of an inline file is its contents.
        if index == SYSTEM && name == b"data" {
            return None;
        }
        let (_, prefix) = PREFIXES.iter().find(|(of, _)| *of == index)?;
        Some(Attribute { name: [prefix, &name[..]].concat(), value, is_acl: index == 2 || index == 3 })
    });
    Ok(named.collect())
}

/// The value of an attribute, as Linux tells it.
pub fn value(blocks: &Blocks, attribute: Attribute) -> Result<Vec<u8>, TreeError> {
    let bytes = match attribute.value {
        Value::Here(bytes) => bytes,
        Value::Inode(number, size) => {
            let holder = Node::read(blocks, number.into())?;
            let mut bytes = vec![0; size];
            if holder.read_at(blocks, 0, &mut bytes)? < size {
                return Err(damaged(&holder, "a value is cut off"));
            }
            bytes
        }
    };
    if attribute.is_acl {
        return acl(&bytes).ok_or_else(|| TreeError::Damaged("an access control list cannot be read".to_owned()));
    }
    Ok(bytes)
}

/// What of an inline file does not fit its inode.
pub fn inline_rest(_blocks: &Blocks, node: &Node) -> Result<Vec<u8>, TreeError> {
    let found = in_inode(node)?.into_iter().find(|(index, name, _)| *index == SYSTEM && name == b"data");
    match found {
        Some((_, _, Value::Here(bytes))) => Ok(bytes),
        Some(_) => Err(damaged(node, "an inline file lies elsewhere")),
        None => Ok(Vec::new()),
    }
}

/// An access control list as the file system has it (version 1, numbers only where needed) as Linux hands it out
/// (version 2, a number in each entry).
fn acl(bytes: &[u8]) -> Option<Vec<u8>> {
    if le::u32(bytes, 0) != 1 || bytes.len() < 4 {
        return None;
    }
    let (mut out, mut at) = (2u32.to_le_bytes().to_vec(), 4);
    while at < bytes.len() {
        out.extend(bytes.get(at..at + 4)?);
        let named = matches!(le::u16(bytes, at), 2 | 8);
        let id = if named { bytes.get(at + 4..at + 8)? } else { &[0xff; 4] };
        out.extend(id);
        at += if named { 8 } else { 4 };
    }
    Some(out)
}
