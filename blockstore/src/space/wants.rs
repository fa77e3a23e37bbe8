//! What has to come from the object store: wanted, under way, and by whom it is awaited.
//!
//! Invariants
//!   * a piece is wanted or under way at most once, however many ask for it: they share its number;
//!   * what somebody waits for goes before what may be asked for soon.

use crate::error::Error;
use crate::format::object::{Frame, ObjectId};
use crate::format::segment::SegmentKind;
use std::collections::BTreeMap;

/// Frames of one request: 1 MiB.
pub const FRAMES_PER_FETCH: usize = 16;

/// A piece of an object: its directory (`None`), or the frame at an offset.
pub type Piece = (ObjectId, Option<u64>);

/// What a frame is fetched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAt {
    /// Where it is.
    pub frame: Frame,
    /// Whose slots it holds.
    pub kind: SegmentKind,
}

#[derive(Clone, Copy)]
struct Want {
    number: u64,
    frame: Option<FrameAt>,
}

/// Pieces to fetch with one request: a directory, or frames that follow one another.
pub struct Batch {
    /// The object.
    pub object: ObjectId,
    /// None for the directory.
    pub frames: Vec<FrameAt>,
    /// Their numbers.
    pub numbers: Vec<u64>,
}

/// All that is wanted.
#[derive(Default)]
pub struct Wants {
    last: u64,
    demanded: BTreeMap<Piece, Want>,
    hinted: BTreeMap<Piece, Want>,
    running: BTreeMap<Piece, u64>,
    /// What has been demanded since somebody last looked.
    missing: Vec<u64>,
}

impl Wants {
    /// Somebody cannot go on without `piece`.
    pub fn demand(&mut self, piece: Piece, frame: Option<FrameAt>) {
        let number = match (self.running.get(&piece), self.demanded.get(&piece)) {
            (Some(number), _) => *number,
            (_, Some(want)) => want.number,
            _ => {
                let hinted = self.hinted.remove(&piece);
                let number = hinted.map_or_else(|| self.next(), |want| want.number);
                self.demanded.insert(piece, Want { number, frame });
                number
            }
        };
        self.missing.push(number);
    }

    /// Somebody may ask for `piece` soon.
    pub fn hint(&mut self, piece: Piece, frame: Option<FrameAt>) {
        if !self.running.contains_key(&piece)
            && !self.demanded.contains_key(&piece)
            && !self.hinted.contains_key(&piece)
        {
            let number = self.next();
            self.hinted.insert(piece, Want { number, frame });
        }
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// What has been demanded since the last call.
    pub fn take_missing(&mut self) -> Missing {
        let mut numbers = std::mem::take(&mut self.missing);
        numbers.sort_unstable();
        numbers.dedup();
        Missing(numbers)
    }

    /// How much has been demanded since somebody last looked.
    pub fn demands(&self) -> usize {
        self.missing.len()
    }

    /// Nobody waits for what has been demanded since there were so many demands.
    pub fn forget_demands(&mut self, since: usize) {
        self.missing.truncate(since);
    }

    /// Pieces wanted or under way.
    pub fn len(&self) -> usize {
        self.demanded.len() + self.hinted.len() + self.running.len()
    }

    /// The next pieces to fetch together.
    pub fn take(&mut self) -> Option<Batch> {
        let from = if self.demanded.is_empty() { &mut self.hinted } else { &mut self.demanded };
        let (piece, want) = from.pop_first()?;
        let mut batch = Batch { object: piece.0, frames: Vec::new(), numbers: vec![want.number] };
        self.running.insert(piece, want.number);
        batch.frames.extend(want.frame);
        while let (Some(last), true) = (batch.frames.last(), batch.frames.len() < FRAMES_PER_FETCH) {
            let next = (batch.object, Some(last.frame.offset + u64::from(last.frame.len)));
            let Some(want) = self.demanded.remove(&next).or_else(|| self.hinted.remove(&next)) else { break };
            self.running.insert(next, want.number);
            batch.numbers.push(want.number);
            batch.frames.extend(want.frame);
        }
        Some(batch)
    }

    /// A request is over.
    pub fn done(&mut self, batch: &Batch) {
        self.running.retain(|(object, _), number| *object != batch.object || !batch.numbers.contains(number));
    }
}

/// What one request that was answered with `Absent` waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing(Vec<u64>);

impl Missing {
    /// Takes note of a fetch that is over; `true` if it was waited for.
    pub fn note(&mut self, arrival: &Arrival) -> bool {
        let before = self.0.len();
        self.0.retain(|number| !arrival.numbers.contains(number));
        self.0.len() < before
    }

    /// Whether it is worth asking again.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

/// A fetch that is over.
#[derive(Debug)]
pub struct Arrival {
    pub(crate) numbers: Vec<u64>,
    /// Why nothing came.
    pub failure: Option<Error>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VolumeId;

    const OBJECT: ObjectId = ObjectId { pool: [1; 16], volume: VolumeId(1), number: 1 };

    fn at(offset: u64) -> (Piece, Option<FrameAt>) {
        let frame = Frame { offset, len: 100, raw: true, slots: 1 };
        ((OBJECT, Some(offset)), Some(FrameAt { frame, kind: SegmentKind::Log }))
    }

    fn offsets(batch: &Batch) -> Vec<u64> {
        batch.frames.iter().map(|at| at.frame.offset).collect()
    }

    #[test]
    fn a_piece_is_fetched_once_and_neighbours_together() {
        let mut wants = Wants::default();
        for offset in [400, 200, 300, 1000, 200] {
            let (piece, frame) = at(offset);
            wants.demand(piece, frame);
        }
        let (piece, frame) = at(500);
        wants.hint(piece, frame);
        let mut first = wants.take_missing();
        let batch = wants.take().unwrap();
        assert_eq!(offsets(&batch), [200, 300, 400, 500]);
        // Another asks for what is under way.
        let (piece, frame) = at(300);
        wants.demand(piece, frame);
        let mut second = wants.take_missing();
        let other = wants.take().unwrap();
        assert_eq!(offsets(&other), [1000]);
        assert!(wants.take().is_none());
        wants.done(&batch);
        let arrival = Arrival { numbers: batch.numbers, failure: None };
        assert!(second.note(&arrival) && second.is_over());
        assert!(first.note(&arrival) && !first.is_over());
        wants.done(&other);
        assert!(first.note(&Arrival { numbers: other.numbers, failure: None }) && first.is_over());
        assert_eq!(wants.len(), 0);
    }

    #[test]
    fn what_is_awaited_goes_first() {
        let mut wants = Wants::default();
        let (early, late) = (at(100), at(5000));
        wants.hint(early.0, early.1);
        wants.hint(late.0, late.1);
        wants.demand(late.0, late.1);
        wants.demand((OBJECT, None), None);
        assert!(wants.take().unwrap().frames.is_empty(), "the directory");
        assert_eq!(offsets(&wants.take().unwrap()), [5000]);
        assert_eq!(offsets(&wants.take().unwrap()), [100]);
    }
}
