//! The kernel that images boot, and the initrd that takes it to the root file system on `/dev/vda`.
//!
//! Invariant: the initrd holds what reaches the disk and the agent's ports and nothing else; whatever an image has on its
//! disk, the kernel comes as far as mounting it.

use super::cpio::Archive;
use super::tools::{missing, Tool};
use crate::accel::MARK;
use crate::{Error, Kind, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The package that names the newest kernel's.
const META: &str = "linux-image-cloud-amd64";
/// The kernel's modules, each behind those it needs; ext4 and devtmpfs are parts of the kernel itself.
pub(super) const MODULES: [&str; 9] = [
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
pub(super) const INITRD_INIT: &str = include_str!("guest/initrd-init");

/// A kernel, and the first file system of a guest.
pub(super) struct Boot {
    /// The kernel's release.
    pub(super) release: String,
    pub(super) vmlinuz: Vec<u8>,
    pub(super) initrd: Vec<u8>,
    pub(super) busybox: Vec<u8>,
}

/// This machine's busybox, which needs no library.
pub(super) fn own_busybox() -> Result<Vec<u8>> {
    fs::read("/bin/busybox").map_err(|e| missing("busybox-static", "/bin/busybox", &e.to_string()))
}

/// Asks apt for the package of the newest kernel, with its version.
pub(super) fn newest() -> Result<String> {
    let apt = |args: [&str; 2]| Tool::new("apt-cache", "apt").args(args).output();
    let unknown = |what: &str| Error::new(Kind::Missing, format!("apt has no {what}: run apt-get update"));
    let depends = apt(["depends", META])?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"));
    let package = package.ok_or_else(|| unknown(META))?;
    let policy = apt(["policy", package])?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let version = version.ok_or_else(|| unknown(package))?;
    Ok(format!("{package}={version}"))
}

/// Downloads a kernel's package into the folder `work`, which is new, and makes of it what a guest boots.
pub(super) fn download(package: &str, work: &Path, busybox: &[u8]) -> Result<Boot> {
    fs::create_dir(work).map_err(Error::of_file(work))?;
    // SAFETY: the call takes nothing.
    let user = if unsafe { libc::geteuid() } == 0 { "APT::Sandbox::User=root" } else { "APT::Sandbox::User=" };
    Tool::new("apt-get", "apt").args(["download", "-qq", "-o", user, package]).folder(work).output()?;
    let into = work.join("unpacked");
    let entries = fs::read_dir(work).map_err(Error::of_file(work))?;
    let debs = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "deb"));
    for deb in debs {
        Tool::new("dpkg-deb", "dpkg").args(["-x".as_ref(), deb.as_os_str(), into.as_os_str()]).output()?;
    }
    let release = only_entry(&into.join("lib/modules"))?;
    let vmlinuz = into.join("boot").join(format!("vmlinuz-{release}"));
    let modules = into.join("lib/modules").join(&release);
    let module = |name: &str| match find(&modules, &format!("{name}.ko")) {
        Some(path) => fs::read(&path).map(Some).map_err(Error::of_file(&path)),
        None => Ok(None),
    };
    let initrd = initrd(busybox, module)?;
    let vmlinuz = fs::read(&vmlinuz).map_err(Error::of_file(&vmlinuz))?;
    Ok(Boot { release, vmlinuz, initrd, busybox: busybox.to_vec() })
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).map_err(Error::of_file(folder))?.flatten();
    let name = entries.next().and_then(|entry| entry.file_name().into_string().ok());
    name.ok_or_else(|| Error::failed(format!("{} is empty", folder.display())))
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

/// Packs an initrd. `module` gives a module's bytes: what a kernel has built in it has no file of.
pub(super) fn initrd(busybox: &[u8], module: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys", "root"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, busybox);
    let mut order = String::new();
    for name in MODULES {
        if let Some(bytes) = module(name)? {
            archive.file(&format!("modules/{name}.ko"), 0o644, &bytes);
            order.push_str(name);
            order.push('\n');
        }
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("init", 0o755, INITRD_INIT.replace("@MARK@", MARK).as_bytes());
    Ok(archive.finish())
}
