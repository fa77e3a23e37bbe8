//! Sealing segments early: a simulated pool is small, and would hardly ever fill one.

use crate::error::Result;
use crate::pool::Pool;
use crate::types::VolumeId;

impl Pool {
    /// Closes the segment that the log of `volume` (or the pool's own, 0) is in, as if it were full.
    pub fn seal_log(&mut self, volume: VolumeId) -> Result<()> {
        self.writable()?;
        let lsn = self.next_lsn;
        let Some(stream) = self.streams.get_mut(&volume) else { return Ok(()) };
        // A segment without a batch is no part of the log yet.
        if stream.open.as_ref().is_some_and(|open| open.next_slot == crate::limits::FIRST_SLOT) {
            return Ok(());
        }
        if let Err(e) = stream.seal(&mut self.segments, self.map.cache(), lsn) {
            if e.kind() == crate::ErrorKind::Io {
                self.poison(e.to_string());
            }
            return Err(e);
        }
        Ok(())
    }

    /// Closes the segment that map pages are written to.
    pub fn seal_map(&mut self) {
        if let Some((id, file, _)) = self.map_open.take() {
            self.anchors.extra_files.push(file);
            if let Some(segment) = self.segments.table.get_mut(id) {
                segment.sealed = true;
            }
        }
    }

    /// Names of the files that the pool knows of: everything else in its folder is left over.
    pub fn known_segments(&self) -> Vec<String> {
        let spares = self.segments.spares.iter().map(|(id, _)| *id);
        self.segments.table.iter().map(|(id, _)| id).chain(spares).map(crate::space::segment_name).collect()
    }
}
