//! Fetching ahead of whoever reads on.
//!
//! Invariants
//!   * only reads that came upon the object store count, and only they are followed;
//!   * a reader is one while its reads stay near where it was, in any order: clients send several at a time;
//!   * what is fetched ahead of a reader grows with what it has read, up to `READ_AHEAD_BLOCKS_MAX` and its share of
//!     `READ_AHEAD_BLOCKS_ALL`, so that it is still there when it is read; and ends where more than
//!     `WANTS_AHEAD_MAX` pieces are wanted or under way;
//!   * the way ahead is that of the map, over the ends of segments and objects; the directories farther ahead are
//!     fetched before their blocks.

use crate::format::object::FRAME_SLOTS;
use crate::limits::{READ_AHEAD_BLOCKS_ALL, READ_AHEAD_BLOCKS_MAX, WANTS_AHEAD_MAX};
use crate::pool::Pool;
use crate::types::RootId;
use crate::volume::View;
use std::collections::VecDeque;

/// Readers followed at a time: another one takes the place of the one that read last.
const READERS_MAX: usize = 32;
/// Blocks fetched ahead at first (1 MiB), and at a time.
const STEP: u64 = 256;
/// A reader may leave out so much, in requests of its own length.
const SKIPS: u64 = 2;
/// A reader reads now while it does so at least once in so many reads of all.
const NOW: u64 = 256;
/// How far a reader's requests may come out of their order, blocks (32 MiB).
const NEAR: u64 = 8192;

/// Somebody who reads one block after another.
struct Reader {
    root: RootId,
    /// Behind the last block read.
    next: u64,
    /// How far ahead of it to be.
    window: u64,
    /// Behind the last block asked for.
    ahead: u64,
    /// When it last read on, in reads of all.
    turn: u64,
}

/// The readers of a pool, the last one to read at the end.
#[derive(Default)]
pub struct Readers {
    all: VecDeque<Reader>,
    turns: u64,
}

impl Readers {
    /// The reader that reads `count` blocks at `first`: followed from its second read on.
    fn find(&mut self, root: RootId, first: u64, count: u64) -> Option<&mut Reader> {
        let end = first + count;
        let near = |reader: &Reader| reader.root == root && first + NEAR >= reader.next && first <= reader.next + NEAR;
        self.turns += 1;
        let Some(at) = self.all.iter().position(near) else {
            if self.all.len() >= READERS_MAX {
                self.all.pop_front();
            }
            self.all.push_back(Reader { root, next: end, window: 0, ahead: end, turn: 0 });
            return None;
        };
        let mut reader = self.all.remove(at)?;
        // What lies behind may be asked for again, once it has come; who skips reads here and there.
        let on = end > reader.next && first <= reader.next + SKIPS * count;
        if on {
            let gained = end - reader.next;
            let others = self.all.iter().filter(|other| other.turn > 0 && other.turn + NOW > self.turns).count();
            let share = READ_AHEAD_BLOCKS_MAX.min(READ_AHEAD_BLOCKS_ALL / (others as u64 + 1));
            reader.window = (reader.window + gained * 2).clamp(STEP, share.max(STEP));
            reader.turn = self.turns;
            reader.next = end;
            reader.ahead = reader.ahead.max(end);
        } else if first > reader.next {
            reader.window /= 2;
        }
        self.all.push_back(reader);
        self.all.back_mut().filter(|_| on)
    }
}

impl Pool {
    /// Blocks read from the object store so far.
    pub(crate) fn remote_reads(&self) -> u64 {
        self.segments.remote.as_ref().map_or(0, |remote| remote.reads())
    }

    /// `count` blocks at `first`, some of them in the object store, have been asked for: what comes next is fetched
    /// if that was somebody who reads on.
    #[cold]
    pub(crate) fn read_on(&mut self, view: View, first: u64, count: u64) {
        let Some(remote) = self.segments.remote.as_ref().filter(|remote| !remote.is_patient()) else { return };
        let room = WANTS_AHEAD_MAX.saturating_sub(remote.wants().len());
        let Some(root) = self.roots.find(view.root) else { return };
        let blocks = root.size.div_ceil(crate::limits::BLOCK_U64);
        let Some(reader) = self.readers.find(view.root, first, count) else { return };
        let until = (reader.next + reader.window).min(blocks);
        let (from, far) = (reader.ahead, (reader.next + 2 * reader.window).min(blocks));
        // Little by little would be many small requests.
        if room == 0 || until < from + STEP.min(reader.window / 2) {
            return;
        }
        let demands = self.demands();
        let reached = self.hint(view.root, from, until.min(from + (room * FRAME_SLOTS) as u64));
        if let Some(reader) = self.readers.all.back_mut() {
            reader.ahead = reached;
        }
        if far > until {
            self.hint_way(view.root, far - 1);
        }
        self.forget_demands(demands);
    }

    /// The blocks from `at` to `end` may be asked for soon; returns how far the map is known.
    fn hint(&mut self, root: RootId, mut at: u64, end: u64) -> u64 {
        while at < end {
            let tree = self.roots.get(root).map;
            // A page of the map that is absent has been asked for now.
            let Ok((run, addr)) = self.run_at(tree, at, (end - at) as usize) else { break };
            let found = addr.map_or(Ok(run), |addr| self.segments.hint(addr, run));
            // What is damaged is for the reader to find.
            let found = found.unwrap_or(run);
            at += found as u64;
            if found < run {
                break;
            }
        }
        at
    }

    /// What is needed to find `block` may be asked for soon.
    fn hint_way(&mut self, root: RootId, block: u64) {
        let tree = self.roots.get(root).map;
        if let Ok(Some(addr)) = self.map.lookup(tree, block, &self.segments) {
            self.segments.hint_directory(addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: RootId = RootId(1);

    /// Reads `count` blocks at `first`; how far ahead the reader is then followed, in blocks.
    fn read(readers: &mut Readers, first: u64, count: u64) -> Option<u64> {
        readers.find(ROOT, first, count).map(|reader| reader.window)
    }

    #[test]
    fn a_window_grows_with_what_is_read_in_any_order() {
        let mut readers = Readers::default();
        assert_eq!(read(&mut readers, 0, 64), None);
        assert_eq!(read(&mut readers, 64, 64), Some(256));
        // Four under way, which come in another order, and again once what they lacked is there.
        for round in 0..40 {
            for i in [1, 0, 3, 2, 0, 3] {
                read(&mut readers, 128 + (round * 4 + i) * 64, 64);
            }
        }
        assert_eq!(readers.all.len(), 1);
        assert_eq!(readers.all[0].window, READ_AHEAD_BLOCKS_MAX);
        assert_eq!(readers.all[0].next, 128 + 160 * 64);
    }

    #[test]
    fn who_reads_here_and_there_is_not_followed() {
        let mut readers = Readers::default();
        let mut at = 1;
        for _ in 0..1000 {
            at = at * 48_271 % 0x7fff_ffff;
            let window = read(&mut readers, at, 1).unwrap_or(0);
            assert!(window <= STEP);
            assert!(readers.all.len() <= READERS_MAX);
        }
    }

    #[test]
    fn who_reads_a_little_of_every_piece_is_not_followed() {
        let mut readers = Readers::default();
        for step in 0..1000 {
            assert_eq!(read(&mut readers, step * 64, 1), None);
        }
    }

    #[test]
    fn several_readers_share() {
        let mut readers = Readers::default();
        for step in 0..200 {
            for reader in 0..8 {
                read(&mut readers, reader * 1_000_000 + step * 64, 64);
            }
        }
        assert_eq!(readers.all.len(), 8);
        let ahead: u64 = readers.all.iter().map(|reader| reader.window).sum();
        assert!(ahead <= READ_AHEAD_BLOCKS_ALL, "{ahead}");
        // The last one left has all it can use.
        for step in 200..800 {
            read(&mut readers, step * 64, 64);
        }
        assert_eq!(readers.all.back().unwrap().window, READ_AHEAD_BLOCKS_MAX);
    }
}
