//! The image `tiny`: busybox, the agent, and the kernel of Debian's cloud image. It boots in a second or two.
//!
//! Nothing is mounted, and no root is needed: `mke2fs -d` fills the file system, the initrd is packed here, the kernel's
//! package is downloaded and unpacked. Without root the files in the image belong to the number of who built it.

use super::cpio::Archive;
use super::{put, Image, Images};
use crate::accel::MARK;
use crate::{Error, Kind, Result, Store};
use std::fs;
use std::os::unix::fs::{symlink, DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of the image's disk; what is not used takes no space.
const SIZE: u64 = 256 << 20;
/// The package that names the newest kernel's.
const META: &str = "linux-image-cloud-amd64";
/// The kernel's modules, each behind those it needs; ext4 and devtmpfs are parts of the kernel itself.
const MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio-rng",
    "fuse",
];
const INITRD_INIT: &str = include_str!("initrd-init");
const INITTAB: &str = include_str!("inittab");
const RC: &str = include_str!("rc");

/// Builds the image `tiny` with this agent, unless it is there; `progress` hears what is being done.
///
/// # Errors
/// A program or package is missing, or the store fails.
pub fn build_tiny(images: &Images, store: &dyn Store, agent: &Path, progress: &mut dyn FnMut(&str)) -> Result<Image> {
    const NAME: &str = "tiny";
    let kernel = newest_kernel()?;
    let agent = fs::read(agent).map_err(Error::of_file(agent))?;
    let busybox = fs::read("/bin/busybox").map_err(|e| missing("busybox-static", "/bin/busybox", &e.to_string()))?;
    let modules = MODULES.join(" ");
    let texts = [&kernel, &modules, INITRD_INIT, INITTAB, RC].map(str::as_bytes);
    let key = key(&[&texts.concat(), &agent, &busybox]);
    let volume = format!("image-{NAME}-{key:08x}");
    if let Some(known) = images.get(NAME).ok().filter(|known| known.volume == volume) {
        if store.has(&volume)? {
            progress("it is there already: nothing that goes into it has changed");
            return Ok(known);
        }
    }
    let work = Work::new()?;
    progress(&format!("downloading {kernel}"));
    let unpacked = work.0.join("kernel");
    download(&kernel, &work.0, &unpacked)?;
    progress("making the root file system");
    let root = work.0.join("root");
    fill_root(&root, &busybox, &agent)?;
    let disk = work.0.join("disk.raw");
    make_file_system(&root, &disk)?;
    progress("importing it as a volume");
    if store.has(&volume)? {
        store.delete(&volume)?;
    }
    let size_bytes = store.import(&disk, &volume)?;
    let checkpoint = store.checkpoint(&volume, "the image as it was built")?;
    let folder = images.folder(NAME);
    fs::create_dir_all(&folder).map_err(Error::of_file(&folder))?;
    let release = only_entry(&unpacked.join("lib/modules"))?;
    let initrd = initrd(&busybox, &unpacked.join("lib/modules").join(&release))?;
    super::replace(&images.initrd(NAME), &initrd)?;
    let vmlinuz = unpacked.join("boot").join(format!("vmlinuz-{release}"));
    super::replace(&images.kernel(NAME), &fs::read(&vmlinuz).map_err(Error::of_file(&vmlinuz))?)?;
    let image = Image { name: NAME.to_owned(), volume, checkpoint, size_bytes, kernel: release };
    images.put(&image)?;
    Ok(image)
}

/// A folder that is gone when the value is.
struct Work(PathBuf);

impl Work {
    fn new() -> Result<Self> {
        let mut id = [0; 8];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut id)?;
        let path = std::env::temp_dir().join(format!("cairn-image-{:016x}", u64::from_le_bytes(id)));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::of_file(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn missing(package: &str, what: &str, why: &str) -> Error {
    Error::new(Kind::Missing, format!("{what}: {why}: install {package} (scripts/setup demo does)"))
}

/// FNV-1a: tells whether something has changed, nothing else.
fn key(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    (hash ^ hash >> 32) as u32
}

/// Runs a program to its end; its output.
fn run(program: &str, package: &str, arguments: &[&str], folder: &Path) -> Result<String> {
    let mut command = Command::new(program);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    command.args(arguments).current_dir(folder).env("LC_ALL", "C").env("PATH", path);
    let out =
        command.stdin(std::process::Stdio::null()).output().map_err(|e| missing(package, program, &e.to_string()))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(Error::failed(format!("{program} failed ({}): {}", out.status, last.join("; "))));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The package of the newest kernel, with its version.
fn newest_kernel() -> Result<String> {
    let here = Path::new("/");
    let depends = run("apt-cache", "apt", &["depends", META], here)?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"));
    let package =
        package.ok_or_else(|| Error::new(Kind::Missing, format!("apt knows no {META}: run apt-get update")))?;
    let policy = run("apt-cache", "apt", &["policy", package], here)?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let version =
        version.ok_or_else(|| Error::new(Kind::Missing, format!("apt has no {package}: run apt-get update")))?;
    Ok(format!("{package}={version}"))
}

fn download(package: &str, work: &Path, into: &Path) -> Result<()> {
    // SAFETY: the call takes nothing.
    let user = if unsafe { libc::geteuid() } == 0 { "APT::Sandbox::User=root" } else { "APT::Sandbox::User=" };
    run("apt-get", "apt", &["download", "-qq", "-o", user, package], work)?;
    let entries = fs::read_dir(work).map_err(Error::of_file(work))?;
    let debs = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "deb"));
    for deb in debs {
        run("dpkg-deb", "dpkg", &["-x", &deb.to_string_lossy(), &into.to_string_lossy()], work)?;
    }
    Ok(())
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).map_err(Error::of_file(folder))?.flatten();
    let name = entries.next().and_then(|entry| entry.file_name().into_string().ok());
    name.ok_or_else(|| Error::failed(format!("{} is empty", folder.display())))
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
    for applet in run("busybox", "busybox-static", &["--list-full"], Path::new("/"))?.lines() {
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
    let arguments =
        ["-q", "-F", "-t", "ext4", "-L", "root", "-b", "4096", "-m", "0", "-E", "root_owner=0:0", "-d", &root, &disk];
    run("mke2fs", "e2fsprogs", &arguments, Path::new("/")).map(drop)
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    let mut folders = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.file_name().is_some_and(|have| have == name) {
            return Some(path);
        }
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.iter().find_map(|folder| find(folder, name))
}

fn initrd(busybox: &[u8], modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys", "root"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, busybox);
    let mut order = String::new();
    for name in MODULES {
        // What a kernel has built in it has no file of.
        if let Some(path) = find(modules, &format!("{name}.ko")) {
            archive.file(&format!("modules/{name}.ko"), 0o644, &fs::read(&path).map_err(Error::of_file(&path))?);
            order.push_str(name);
            order.push('\n');
        }
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("init", 0o755, INITRD_INIT.replace("@MARK@", MARK).as_bytes());
    Ok(archive.finish())
}
