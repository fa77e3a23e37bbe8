//! What an image holds: a file system, partitions, or something else, named.

use crate::ext4::Ext4;
use crate::image::Window;
use crate::le;
use crate::partition::partitions;
use crate::source::ReadAt;
use crate::tree::{Tree, TreeError};
use std::io;
use std::sync::Arc;

/// What an image holds.
pub enum Contents {
    /// A file system.
    Tree(Arc<dyn Tree>),
    /// Partitions, in the order of their numbers.
    Partitions(Vec<Partition>),
    /// Nothing that can be shown.
    Unreadable {
        /// What it is, or what is wrong with it.
        why: String,
    },
}

/// A partition.
pub struct Partition {
    /// `p1`, `p2`, ….
    pub name: String,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
    /// What is in it; never partitions.
    pub contents: Contents,
}

/// Looks at an image. Fails only when it cannot be read.
pub fn open(image: Arc<dyn ReadAt>) -> io::Result<Contents> {
    if let Some(found) = file_system(&image)? {
        return Ok(found);
    }
    let Some(table) = partitions(&*image)? else { return Ok(Contents::Unreadable { why: name(&*image)? }) };
    let mut all = Vec::new();
    for entry in table {
        let size = entry.range.end - entry.range.start;
        let part: Arc<dyn ReadAt> = Arc::new(Window { whole: image.clone(), range: entry.range.clone() });
        let contents = match file_system(&part)? {
            Some(contents) => contents,
            None => Contents::Unreadable { why: name(&*part)? },
        };
        all.push(Partition { name: format!("p{}", entry.number), start: entry.range.start, size, contents });
    }
    Ok(Contents::Partitions(all))
}

fn file_system(image: &Arc<dyn ReadAt>) -> io::Result<Option<Contents>> {
    Ok(match Ext4::open(image.clone()) {
        Ok(None) => None,
        Ok(Some(tree)) => Some(Contents::Tree(Arc::new(tree))),
        Err(TreeError::Io(e)) => return Err(e),
        Err(e) => Some(Contents::Unreadable { why: format!("ext4: {e}") }),
    })
}

/// What something else is, by the marks that it bears.
fn name(image: &dyn ReadAt) -> io::Result<String> {
    let marks: [(u64, &[u8], &str); 9] = [
        (0, b"XFSB", "xfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0, b"LUKS\xba\xbe", "LUKS: the disk is encrypted by its guest"),
        (4086, b"SWAPSPACE2", "swap space"),
        (512, b"LABELONE", "a physical volume of LVM"),
        (0x8001, b"CD001", "an ISO 9660 image"),
        (0, b"hsqs", "squashfs"),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
        (3, b"NTFS    ", "NTFS"),
    ];
    for (at, mark, what) in marks {
        let mut found = vec![0; mark.len()];
        if at + mark.len() as u64 <= image.size() {
            image.read_at(at, &mut found)?;
            if found == mark {
                return Ok(format!("it is {what}, which cannot be shown as files: look at the image itself (.raw)"));
            }
        }
    }
    let mut first = [0; 512];
    if image.size() >= 512 {
        image.read_at(0, &mut first)?;
        if (&first[54..57] == b"FAT" || &first[82..85] == b"FAT") && le::u16(&first, 510) == 0xaa55 {
            return Ok("it is FAT, which cannot be shown as files: look at the image itself (.raw)".to_owned());
        }
    }
    Ok(match image.next_data(0)? {
        None => "it is empty: nothing was ever written".to_owned(),
        Some(_) => "no file system and no partitions are known in it: look at the image itself (.raw)".to_owned(),
    })
}
