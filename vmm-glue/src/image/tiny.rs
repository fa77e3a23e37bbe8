//! The image `tiny`: busybox, the agent, and the kernel of Debian's cloud image. It boots in a second or two.
//!
//! Nothing is mounted, and no root is needed: `mke2fs -d` fills the file system, the initrd is packed here, the kernel's
//! package is downloaded and unpacked. Without root the files in the image belong to the number of who built it.

use super::kernel::{self, own_busybox, INITRD_INIT, MODULES};
use super::publish::{hold, publish, Finished};
use super::tools::{Listener, Progress, Tool, Work};
use super::{put, Image, Images};
use crate::{Error, Result, Store};
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;

/// Size of the image's disk; what is not used takes no space.
const SIZE: u64 = 256 << 20;
const NAME: &str = "tiny";
const INITTAB: &str = include_str!("guest/tiny-inittab");
const RC: &str = include_str!("guest/tiny-rc");

/// Builds the image `tiny` with this agent, unless it is there; `progress` hears what is being done.
///
/// # Errors
/// A program or package is missing, or the store fails.
pub fn build_tiny(images: &Images, store: &dyn Store, agent: &Path, progress: &mut Listener) -> Result<Image> {
    let _lock = hold(images, NAME)?;
    let package = kernel::newest()?;
    let agent = fs::read(agent).map_err(Error::of_file(agent))?;
    let busybox = own_busybox()?;
    let modules = MODULES.join(" ");
    let texts = [&package, &modules, INITRD_INIT, INITTAB, RC].map(str::as_bytes);
    let key = key(&[&texts.concat(), &agent, &busybox]);
    let volume = format!("image-{NAME}-{key:08x}");
    if let Some(known) = images.get(NAME).ok().filter(|known| known.volume == volume) {
        if store.has(&volume)? {
            progress(Progress::Step("it is there already: nothing that goes into it has changed"));
            return Ok(known);
        }
    }
    let work = Work::new()?;
    progress(Progress::Step(&format!("downloading {package}")));
    let boot = kernel::download(&package, &work.path.join("kernel"), &busybox)?;
    progress(Progress::Step("making the root file system"));
    let root = work.path.join("root");
    fill_root(&root, &busybox, &agent)?;
    let disk = work.path.join("disk.raw");
    make_file_system(&root, &disk)?;
    let new = Image { name: NAME.to_owned(), volume, kernel: boot.release.clone(), ..Image::default() };
    publish(images, store, Finished { image: new, disk: &disk, boot: &boot }, progress)
}

/// FNV-1a: tells whether something has changed, nothing else.
fn key(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    (hash ^ hash >> 32) as u32
}

fn fill_root(root: &Path, busybox: &[u8], agent: &[u8]) -> Result<()> {
    for folder in
        ["bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "mnt", "var"]
    {
        let path = root.join(folder);
        fs::create_dir_all(&path).map_err(Error::of_file(&path))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    put(&root.join("bin/busybox"), 0o755, busybox)?;
    for applet in Tool::new("busybox", "busybox-static").args(["--list-full"]).output()?.lines() {
        let path = root.join(applet);
        let plain = !applet.is_empty() && !applet.split('/').any(|part| part == "..");
        if plain && path.parent().is_some_and(Path::is_dir) && fs::symlink_metadata(&path).is_err() {
            symlink("/bin/busybox", &path).map_err(Error::of_file(&path))?;
        }
    }
    put(&root.join("usr/lib/cairn/agent"), 0o755, agent)?;
    put(&root.join("etc/inittab"), 0o644, INITTAB.as_bytes())?;
    put(&root.join("etc/rc"), 0o755, RC.as_bytes())?;
    put(&root.join("etc/passwd"), 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    put(&root.join("etc/group"), 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    put(&root.join("etc/hostname"), 0o644, b"tiny\n")
}

fn make_file_system(root: &Path, disk: &Path) -> Result<()> {
    fs::File::create(disk).and_then(|file| file.set_len(SIZE)).map_err(Error::of_file(disk))?;
    let (root, disk) = (root.to_string_lossy(), disk.to_string_lossy());
    let arguments: [&str; 14] =
        ["-q", "-F", "-t", "ext4", "-L", "root", "-b", "4096", "-m", "0", "-E", "root_owner=0:0", "-d", &root];
    Tool::new("mke2fs", "e2fsprogs").args(arguments).args([&*disk]).output().map(drop)
}
