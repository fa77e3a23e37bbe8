//! Volumes and checkpoints as NBD exports: `vol`, and `vol@v3` read-only.

use crate::nbd::{ExportInfo, Exports, OpenError};
use blockstore::{CheckpointName, Error, ErrorKind, Pool, View};

/// The pool as a handshake sees it.
pub struct PoolExports<'a>(pub &'a mut Pool);

/// Splits `vol@v3`; `Current` stands for the head.
pub fn split_export(name: &str) -> Option<(&str, Option<CheckpointName>)> {
    match name.split_once('@') {
        None => Some((name, None)),
        Some((volume, "Current")) => Some((volume, None)),
        Some((volume, checkpoint)) => Some((volume, Some(CheckpointName::parse(checkpoint)?))),
    }
}

/// What an export name stands for.
pub fn resolve(pool: &Pool, name: &str) -> blockstore::Result<View> {
    let (volume, checkpoint) = split(name)?;
    pool.view(pool.volume_id(volume)?, checkpoint)
}

/// The same as [`split_export`], with a reason when `name` is neither.
pub fn split(name: &str) -> blockstore::Result<(&str, Option<CheckpointName>)> {
    split_export(name).ok_or_else(|| {
        let text = format!("{name:?} is not a volume or volume@checkpoint: use vol, vol@v1, vol@auto-1 or vol@Current");
        Error::new(ErrorKind::Invalid, text)
    })
}

/// The volume that `name` stands for where a checkpoint cannot stand; `vol@Current` is `vol`.
pub fn head_name(name: &str) -> blockstore::Result<&str> {
    match split(name)? {
        (volume, None) => Ok(volume),
        (volume, Some(_)) => Err(Error::new(ErrorKind::Invalid, format!("{name} is a checkpoint: use {volume}"))),
    }
}

impl Exports for PoolExports<'_> {
    fn list(&mut self) -> Vec<String> {
        let ids = self.0.volumes();
        ids.into_iter().filter_map(|id| Some(self.0.volume_info(id).ok()?.name)).collect()
    }

    fn open(&mut self, name: &str) -> Result<ExportInfo, OpenError> {
        let only = match (name, self.0.volumes().as_slice()) {
            ("", [id]) => self.0.volume_info(*id).map(|info| info.name).ok(),
            ("", _) => return Err(OpenError("name an export: the pool does not hold exactly one volume".to_owned())),
            _ => None,
        };
        let name = only.unwrap_or_else(|| name.to_owned());
        let view = resolve(self.0, &name).map_err(|e| OpenError(e.to_string()))?;
        let size = self.0.view_size(view).map_err(|e| OpenError(e.to_string()))?;
        let is_kept = self.0.volume_info(view.volume).is_ok_and(|info| info.read_only);
        let description = match view.checkpoint {
            None => "Cairn volume".to_owned(),
            Some(checkpoint) => format!("Cairn checkpoint {checkpoint}"),
        };
        Ok(ExportInfo { name, size, read_only: view.checkpoint.is_some() || is_kept, description })
    }

    fn has_checkpoint(&mut self, export: &str, checkpoint: &str) -> bool {
        let name = CheckpointName::parse(checkpoint);
        let volume = resolve(self.0, export).map(|view| view.volume);
        matches!((name, volume), (Some(name), Ok(volume)) if self.0.view(volume, Some(name)).is_ok())
    }

    fn checkpoints(&mut self, export: &str, max: usize) -> Vec<String> {
        let all = resolve(self.0, export).and_then(|view| self.0.checkpoints(view.volume)).unwrap_or_default();
        all.iter().skip(all.len().saturating_sub(max)).map(|info| info.name.to_string()).collect()
    }
}
