//! Images: what machines start from. A volume with one checkpoint, and a kernel and initrd beside it.

mod apt;
mod build;
mod cpio;
mod debian;
mod ext4;
mod import;
mod kernel;
mod publish;
mod recipe;
mod tiny;
mod tools;
mod tree;

pub use build::build;
pub use import::{import, Import};
pub use recipe::{built_in as built_in_recipe, Recipe};
pub use tiny::build_tiny;
pub use tools::{Interruptible, Listener, Progress};

use crate::files::{check_name, read_json, write_json};
use crate::{Error, Kind, Result, Store};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const RECORD: &str = "image.json";

/// An image of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Size of a new machine's disk, unless its maker says otherwise; the image's own if `None`.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// Who commands run as, unless somebody says otherwise; root if `None`.
    #[serde(default)]
    pub user: Option<String>,
    /// What it was built from: recipe, agent and this program, but not the packages.
    #[serde(default)]
    pub recipe: Option<String>,
    /// What its disk holds: two builds with the same one made the same bytes.
    #[serde(default)]
    pub content: Option<String>,
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

    /// Removes an image with its volume. Machines that were made from it stay as they are.
    ///
    /// # Errors
    /// There is none of this name, it is being made, or its volume cannot be deleted.
    pub fn remove(&self, store: &dyn Store, name: &str) -> Result<()> {
        let image = self.get(name)?;
        let _lock = publish::hold(self, name)?;
        if store.has(&image.volume)? {
            store.delete(&image.volume)?;
        }
        // The record goes first: what is left without it is no image.
        let (folder, record) = (self.folder(name), self.folder(name).join(RECORD));
        fs::remove_file(&record).map_err(Error::of_file(&record))?;
        fs::remove_dir_all(&folder).map_err(Error::of_file(&folder))
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
