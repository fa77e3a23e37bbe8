//! Segments that another pool made, under the numbers that they have here.
//!
//! Invariants
//!   * a segment is made by one pool: what two origins made does not overlap;
//!   * whatever a map page refers to that lives has a number in `numbers` of the pool that made the page: what that
//!     pool had taken over itself, too.

use super::codec::{Append, Reader};
use super::renumbering::Renumbering;
use crate::error::{Error, Result};
use crate::types::SegmentId;
use std::collections::BTreeMap;

/// What one other pool made, before one taking over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its numbers of segments, and those here.
    pub numbers: Renumbering,
    /// The segments that it made: ranges of numbers here, first and last.
    pub made: Vec<(SegmentId, SegmentId)>,
}

impl Origin {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.numbers.encode(out);
        out.put_u32(self.made.len() as u32);
        for (first, last) in &self.made {
            out.put_u32(first.0);
            out.put_u32(last.0);
        }
    }

    /// Reads one.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let mut origin = Self { numbers: Renumbering::decode(r)?, made: Vec::new() };
        for _ in 0..r.u32()? {
            origin.made.push((SegmentId(r.u32()?), SegmentId(r.u32()?)));
        }
        Ok(origin)
    }
}

/// Everything that was taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    all: Vec<Origin>,
    /// What was made, by first number: the last, and by which of them.
    made: BTreeMap<SegmentId, (SegmentId, usize)>,
}

impl Origins {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Origin> {
        self.all.iter()
    }

    /// Which of them made a segment, and its number there.
    pub fn of(&self, id: SegmentId) -> Option<(&Origin, SegmentId)> {
        let (_, (last, at)) = self.made.range(..=id).next_back()?;
        let origin = self.all.get(*at).filter(|_| id <= *last)?;
        Some((origin, origin.numbers.there(id)?))
    }

    /// Takes note of another one. What is known already stays as it is.
    ///
    /// # Errors
    /// `Corrupt` when it is said to have made what cannot be, or what another made.
    pub fn learn(&mut self, origin: Origin) -> Result<()> {
        if self.all.contains(&origin) {
            return Ok(());
        }
        for (first, last) in &origin.made {
            let numbered = origin.numbers.there(*first).is_some() && origin.numbers.there(*last).is_some();
            let overlaps = self.made.range(..=*last).next_back().is_some_and(|(_, (before, _))| before >= first);
            if first > last || !numbered || overlaps {
                return Err(Error::corrupt("it takes over segments that cannot be"));
            }
            self.made.insert(*first, (*last, self.all.len()));
        }
        self.all.push(origin);
        Ok(())
    }

    /// Appends their bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.all.len() as u32);
        self.all.iter().for_each(|origin| origin.encode(out));
    }

    /// Reads them from a manifest of this version.
    pub fn decode(r: &mut Reader<'_>, version: u16) -> Result<Self> {
        let mut all = Self::default();
        if version < 2 {
            return all.decode_distances(r).map(|()| all);
        }
        for _ in 0..r.u32()? {
            all.learn(Origin::decode(r)?)?;
        }
        Ok(all)
    }

    /// What manifests of version 1 say: ranges of numbers here, and how much less the numbers there are, of all
    /// segments that their pages refer to.
    fn decode_distances(&mut self, r: &mut Reader<'_>) -> Result<()> {
        let mut made: BTreeMap<u32, Vec<(SegmentId, SegmentId)>> = BTreeMap::new();
        for _ in 0..r.u32()? {
            let (first, last, distance) = (SegmentId(r.u32()?), SegmentId(r.u32()?), r.u32()?);
            made.entry(distance).or_default().push((first, last));
        }
        for (distance, made) in made {
            let numbers = Renumbering::by_distance(distance)?;
            self.learn(Origin { numbers, made })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: (u32, u32)) -> (SegmentId, SegmentId) {
        (SegmentId(range.0), SegmentId(range.1))
    }

    fn origin(there: u32, here: u32, count: u32, made: &[(u32, u32)]) -> Origin {
        let numbers = Renumbering::of((0..count).map(|i| (SegmentId(there + i), SegmentId(here + i))));
        Origin { numbers, made: made.iter().map(|range| ids(*range)).collect() }
    }

    fn found(all: &Origins, id: u32) -> Option<u32> {
        all.of(SegmentId(id)).map(|(_, there)| there.0)
    }

    #[test]
    fn a_segment_is_found_with_who_made_it() {
        let mut all = Origins::default();
        // The second had taken over what the first made.
        all.learn(origin(1, 50, 5, &[(50, 52), (54, 54)])).unwrap();
        all.learn(origin(30, 50, 9, &[(55, 58)])).unwrap();
        let numbers: Vec<_> = [49, 50, 52, 53, 54, 55, 58, 59].into_iter().map(|id| found(&all, id)).collect();
        assert_eq!(numbers, [None, Some(1), Some(3), None, Some(5), Some(35), Some(38), None]);
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        assert_eq!(Origins::decode(&mut Reader::new(&bytes, "origins"), 2).unwrap(), all);
        all.learn(origin(30, 50, 9, &[(55, 58)])).unwrap();
        assert_eq!(all.iter().count(), 2);
        for made in [(52, 52), (40, 50), (53, 54), (57, 59), (49, 60), (61, 60), (90, 91)] {
            assert!(all.learn(origin(60, 40, 40, &[made])).is_err() || made.0 > 89, "{made:?}");
        }
        assert!(all.learn(origin(60, 40, 40, &[(90, 91)])).is_err(), "what has no number");
    }

    #[test]
    fn distances_of_version_1_are_read() {
        let read = |ranges: &[[u32; 3]]| {
            let mut bytes = Vec::new();
            bytes.put_u32(ranges.len() as u32);
            ranges.iter().flatten().for_each(|number| bytes.put_u32(*number));
            Origins::decode(&mut Reader::new(&bytes, "ranges"), 1)
        };
        let all = read(&[[2, 3, 1], [8, 8, 1], [20, 29, 15]]).unwrap();
        let numbers: Vec<_> = [1, 2, 3, 8, 9, 19, 20, 29, 30].into_iter().map(|id| found(&all, id)).collect();
        assert_eq!(numbers, [None, Some(1), Some(2), Some(7), None, None, Some(5), Some(14), None]);
        for broken in [&[[3, 2, 1]][..], &[[2, 3, 4]], &[[2, 5, 1], [5, 6, 1]], &[[2, 1 << 27, 1]], &[[2, u32::MAX, 1]]]
        {
            assert!(read(broken).is_err(), "{broken:?}");
        }
    }
}
