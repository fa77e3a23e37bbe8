//! A finished disk as an image of a pool.
//!
//! Invariants
//!   * an image has one maker at a time;
//!   * its record is written last: what is interrupted before leaves the image as it was, or none;
//!   * the volume of what it was is deleted after that. Machines keep theirs: a fork does not need what it was forked from.

use super::kernel::Boot;
use super::tools::{check, Listener, Progress};
use super::{replace, Image, Images};
use crate::files::{check_name, Lock};
use crate::{Error, Kind, Result, Store};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// What a new image is made of.
pub(super) struct Finished<'a> {
    /// Its record; checkpoint and size follow from the disk.
    pub(super) image: Image,
    pub(super) disk: &'a Path,
    pub(super) boot: &'a Boot,
}

/// Keeps others from making the image `name`.
pub(super) fn hold(images: &Images, name: &str) -> Result<Lock> {
    check_name(name)?;
    let folder = images.folder(name);
    fs::create_dir_all(&folder).map_err(Error::of_file(&folder))?;
    let lock = Lock::take(&folder.join("lock"), Duration::ZERO)?;
    lock.ok_or_else(|| Error::new(Kind::Busy, format!("another command makes the image {name}: wait for its end")))
}

/// Makes a disk the image's volume.
pub(super) fn publish(images: &Images, store: &dyn Store, new: Finished, progress: &mut Listener) -> Result<Image> {
    check()?;
    let (name, volume) = (new.image.name.clone(), new.image.volume.clone());
    let before = images.get(&name).ok();
    if before.as_ref().is_some_and(|before| before.volume == volume)
        && store.has(&volume)?
        && new.image.content.is_some()
    {
        progress(Progress::Step("it is byte for byte what it was: its volume stays"));
        let before = before.unwrap_or_default();
        let image = Image { checkpoint: before.checkpoint, size_bytes: before.size_bytes, ..new.image };
        return finish(images, image, new.boot);
    }
    progress(Progress::Step("importing it as a volume"));
    if store.has(&volume)? {
        store.delete(&volume)?;
    }
    let size_bytes = store.import(new.disk, &volume)?;
    let made = check().and_then(|()| {
        let checkpoint = store.checkpoint(&volume, "the image as it was made")?;
        finish(images, Image { checkpoint, size_bytes, ..new.image }, new.boot)
    });
    let image = made.inspect_err(|_| drop(store.delete(&volume)))?;
    if let Some(before) = before.filter(|before| before.volume != volume) {
        // It may be in use in a way that keeps it: then it stays, and can be deleted by hand.
        let _ = store.delete(&before.volume);
    }
    Ok(image)
}

fn finish(images: &Images, image: Image, boot: &Boot) -> Result<Image> {
    replace(&images.initrd(&image.name), &boot.initrd)?;
    replace(&images.kernel(&image.name), &boot.vmlinuz)?;
    images.put(&image)?;
    Ok(image)
}

/// What a disk holds, holes counted as zeros that are not there: the same bytes have the same one.
pub(super) fn content(disk: &Path) -> Result<blake3::Hash> {
    let explain = Error::of_file(disk);
    let mut file = File::open(disk).map_err(&explain)?;
    let len = file.metadata().map_err(&explain)?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&len.to_le_bytes());
    let (mut at, mut block) = (0_u64, vec![0; 64 << 10]);
    while at < len {
        check()?;
        // SAFETY: a plain system call on an open descriptor; offsets are below i64::MAX.
        let data = unsafe { libc::lseek(file.as_raw_fd(), at as i64, libc::SEEK_DATA) };
        // Files of ours know their holes; of one that does not, every byte is read.
        let Ok(data) = u64::try_from(data) else { break };
        at = data - data % block.len() as u64;
        file.seek(SeekFrom::Start(at)).map_err(&explain)?;
        let n = file.by_ref().take(block.len() as u64).read(&mut block).map_err(&explain)?;
        let bytes = block.get(..n).unwrap_or_default();
        if n == 0 {
            break;
        }
        if bytes.iter().any(|byte| *byte != 0) {
            hasher.update(&at.to_le_bytes()).update(bytes);
        }
        at += n as u64;
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_same_bytes_have_the_same_name_wherever_the_holes_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let file = File::create(&one).expect("a file");
        file.set_len(1 << 20).expect("sparse");
        file.write_all_at(b"x", 700_000).expect("written");
        let mut bytes = vec![0; 1 << 20];
        bytes[700_000] = b'x';
        fs::write(&other, &bytes).expect("written");
        assert_eq!(content(&one).expect("read"), content(&other).expect("read"));
        bytes[3] = 1;
        fs::write(&other, &bytes).expect("written");
        assert_ne!(content(&one).expect("read"), content(&other).expect("read"));
        file.set_len(2 << 20).expect("longer");
        assert_ne!(
            content(&one).expect("read"),
            content(&folder.path().join("one")).map(|_| blake3::hash(b"")).expect("x")
        );
    }
}
