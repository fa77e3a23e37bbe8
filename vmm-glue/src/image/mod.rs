//! Images: what machines start from. A volume with one checkpoint, and a kernel and initrd beside it.

mod cpio;
mod tiny;

pub use tiny::build_tiny;

use crate::files::{check_name, read_json, write_json};
use crate::{Error, Kind, Result, Store};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const RECORD: &str = "image.json";

/// An image of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// The volume that holds it.
    pub volume: String,
    /// The checkpoint of that volume from which machines are forked.
    pub checkpoint: String,
    /// Size of its disk.
    pub size_bytes: u64,
    /// What its kernel is.
    pub kernel: String,
}

/// The images of one pool.
pub struct Images {
    folder: PathBuf,
}

impl Images {
    pub(crate) fn of(pool: &Path) -> Self {
        Self { folder: pool.join("images") }
    }

    /// An image's folder.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn kernel(&self, name: &str) -> PathBuf {
        self.folder(name).join("vmlinuz")
    }

    pub(crate) fn initrd(&self, name: &str) -> PathBuf {
        self.folder(name).join("initrd")
    }

    /// An image that there is.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn get(&self, name: &str) -> Result<Image> {
        check_name(name)?;
        let path = self.folder(name).join(RECORD);
        if !path.exists() {
            let text = format!("there is no image {name:?}: cairn image build {name}, or cairn image list");
            return Err(Error::new(Kind::NotFound, text));
        }
        read_json(&path)
    }

    /// All images, by name.
    ///
    /// # Errors
    /// The folder cannot be read, or a record is damaged.
    pub fn list(&self) -> Result<Vec<Image>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::of_file(&self.folder))?,
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().filter(|name| self.folder(name).join(RECORD).exists()).map(|name| self.get(name)).collect()
    }

    pub(crate) fn put(&self, image: &Image) -> Result<()> {
        write_json(&self.folder(&image.name).join(RECORD), image)
    }
}

fn put(path: &Path, mode: u32, data: &[u8]) -> Result<()> {
    let explain = Error::of_file(path);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(&explain)?;
    fs::write(path, data).map_err(&explain)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(explain)
}

/// Another file in its place; who has the old one open, or linked, keeps that.
fn replace(path: &Path, data: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    put(&new, 0o600, data)?;
    fs::rename(&new, path).map_err(Error::of_file(path))
}

/// Makes an image from a raw disk whose root file system is on the whole of it, with a kernel and an initrd that
/// mounts `/dev/vda`. The agent has to be in it, and to be started by its init.
///
/// # Errors
/// There is an image of this name, a file cannot be read, or the disk is of another format.
pub fn import(
    images: &Images,
    store: &dyn Store,
    name: &str,
    disk: &Path,
    kernel: &Path,
    initrd: &Path,
) -> Result<Image> {
    check_name(name)?;
    if images.get(name).is_ok() {
        return Err(Error::new(Kind::Exists, format!("there is an image {name:?} already: choose another name")));
    }
    let read = |path: &Path| fs::read(path).map_err(Error::of_file(path));
    let (kernel_bytes, initrd_bytes) = (read(kernel)?, read(initrd)?);
    let volume = format!("image-{name}");
    let size_bytes = store.import(disk, &volume)?;
    let checkpoint = store.checkpoint(&volume, "the image as it was imported")?;
    replace(&images.kernel(name), &kernel_bytes)?;
    replace(&images.initrd(name), &initrd_bytes)?;
    let kernel = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = Image { name: name.to_owned(), volume, checkpoint, size_bytes, kernel };
    images.put(&image)?;
    Ok(image)
}
