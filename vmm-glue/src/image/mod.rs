//! Images: what machines start from. A volume with one checkpoint, and a kernel and initrd beside it.

mod cpio;
mod tiny;

pub use tiny::build_tiny;

use crate::files::{check_name, read_json, write_json};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs;
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
