//! Images from recipes and archives: a tree of files, our init and agent in it, an ext4 file system of it.
//!
//! What our init needs lies in `/usr/lib/cairn` and is its own: whatever a guest does to its programs, the agent starts.
//!
//! Invariant: the image's bytes follow from the recipe, the agent, this program and what the mirror has, and from nothing else
//! of this machine.

use super::debian::install;
use super::ext4::{self, Identity};
use super::kernel::{self, own_busybox, Boot, INITRD_INIT, MODULES};
use super::publish::{content, hold, publish, Finished};
use super::recipe::Recipe;
use super::tools::{Listener, Progress, Work};
use super::tree::Tree;
use super::{Image, Images};
use crate::{Error, Result, Store};
use std::fs;
use std::io::Read;
use std::path::Path;

const INITTAB: &str = include_str!("guest/init-tab");
const RC: &str = include_str!("guest/init-rc");
const HOOK: &str = include_str!("guest/build-hook");
/// Size of the disk of a machine whose image says nothing else.
const DISK: u64 = 100 << 30;
/// The time of what an archive leaves open, and the latest there is in it: 2100-01-01. An archive has its own times.
const ARCHIVE_EPOCH: u64 = 4_102_444_800;

/// Builds an image as a recipe says, with this agent. One that was built from the same recipe stays, unless `again`.
///
/// # Errors
/// A program is missing, a package cannot be had, a command of the recipe fails, or the store does.
pub fn build(
    images: &Images,
    store: &dyn Store,
    recipe: &Recipe,
    agent: &Path,
    again: bool,
    progress: &mut Listener,
) -> Result<Image> {
    let _lock = hold(images, recipe.name())?;
    let agent = fs::read(agent).map_err(Error::of_file(agent))?;
    let inputs = inputs(recipe, &agent)?;
    let seed = inputs.to_hex().to_string();
    if let Some(known) = images.get(recipe.name()).ok().filter(|known| known.recipe.as_ref() == Some(&seed) && !again) {
        if store.has(&known.volume)? {
            progress(Progress::Step("it is there already, from the same recipe: --again asks for newer packages"));
            return Ok(known);
        }
    }
    let work = Work::new()?;
    let (mut tree, boot) = install(recipe, &work.path, progress)?;
    let user = recipe.user().map(|user| user.name.0.clone());
    furnish(&mut tree, &boot, &agent)?;
    let new = Image {
        name: recipe.name().to_owned(),
        recipe: Some(seed),
        user,
        disk_bytes: Some(recipe.disk()),
        ..Image::default()
    };
    finish(images, store, new, &tree, &boot, Identity::of(&inputs, recipe.epoch()), &work, progress)
}

/// Makes an image of an archive that holds a root file system, with this agent and the kernel that this machine's apt has.
///
/// # Errors
/// There is an image of this name, the archive cannot be read, or a program is missing.
pub(super) fn of_archive(
    images: &Images,
    store: &dyn Store,
    name: &str,
    archive: impl Read,
    agent: &Path,
    progress: &mut Listener,
) -> Result<Image> {
    let agent = fs::read(agent).map_err(Error::of_file(agent))?;
    let (busybox, package) = (own_busybox()?, kernel::newest()?);
    let work = Work::new()?;
    progress(Progress::Step("reading the archive"));
    let mut tree = Tree::new(work.path.join("spool"), ARCHIVE_EPOCH)?;
    tree.read(archive)?;
    progress(Progress::Step(&format!("downloading {package}")));
    let boot = kernel::download(&package, &work.path.join("kernel"), &busybox)?;
    furnish(&mut tree, &boot, &agent)?;
    let identity = Identity::of(&blake3::hash(name.as_bytes()), super::recipe::EPOCH);
    let new = Image { name: name.to_owned(), disk_bytes: Some(DISK), ..Image::default() };
    finish(images, store, new, &tree, &boot, identity, &work, progress)
}

/// All that an image is made from but the packages themselves.
fn inputs(recipe: &Recipe, agent: &[u8]) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(recipe.digest()?.as_bytes());
    for part in [INITTAB, RC, HOOK, INITRD_INIT, &MODULES.join(" ")] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    Ok(hasher.update(agent).finalize())
}

/// Puts in what starts the agent.
fn furnish(tree: &mut Tree, boot: &Boot, agent: &[u8]) -> Result<()> {
    for (folder, mode) in
        [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777), ("root", 0o700)]
    {
        tree.folder(folder, mode)?;
    }
    tree.put("usr/lib/cairn/busybox", 0o755, &boot.busybox)?;
    tree.put("usr/lib/cairn/agent", 0o755, agent)?;
    tree.put("usr/lib/cairn/rc", 0o755, RC.as_bytes())?;
    tree.put("etc/inittab", 0o644, INITTAB.as_bytes())?;
    for applet in ["init", "poweroff", "reboot", "halt"] {
        tree.link_if_free(&format!("usr/lib/cairn/{applet}"), "busybox")?;
    }
    // Where people, and the agent, look for them.
    for applet in ["poweroff", "reboot", "halt"] {
        tree.link_if_free(&format!("usr/sbin/{applet}"), &format!("../lib/cairn/{applet}"))?;
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)] // The end of two ways that have all of it.
fn finish(
    images: &Images,
    store: &dyn Store,
    new: Image,
    tree: &Tree,
    boot: &Boot,
    identity: Identity,
    work: &Work,
    progress: &mut Listener,
) -> Result<Image> {
    progress(Progress::Step("making the file system"));
    let disk = work.path.join("disk.raw");
    ext4::make(tree, ext4::size_of(tree), &identity, &work.path, &disk, &mut |_| {})?;
    let content = content(&disk)?.to_hex().to_string();
    let key = content.get(..8).unwrap_or_default();
    let volume = format!("image-{}-{key}", new.name);
    let image = Image { volume, kernel: boot.release.clone(), content: Some(content), ..new };
    publish(images, store, Finished { image, disk: &disk, boot }, progress)
}
