//! Reading and writing volumes.

use crate::absent::all_present;
use crate::error::{Error, ErrorKind, Result};
use crate::format::anchor::RootKind;
use crate::format::batch::BODY_BYTES;
use crate::format::record::Record;
use crate::limits::{ATOMIC_BYTES_MAX, BATCH_BLOCKS_MAX, BLOCK, BLOCK_U64, ZERO_RUNS_MAX};
use crate::log::Payload;
use crate::map::FANOUT;
use crate::pool::Pool;
use crate::types::{CheckpointName, RootId, SlotAddr, VolumeId};
use std::io::IoSlice;

/// Absent places of a map that one question about extents finds at most: then it is asked again.
const MISSES_MAX: usize = 1024;
static ZERO_BLOCK: [u8; BLOCK] = [0; BLOCK];

/// Something that can be read: a volume's head, or one of its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub(crate) root: RootId,
    /// The volume.
    pub volume: VolumeId,
    /// The checkpoint; `None` for the head.
    pub checkpoint: Option<CheckpointName>,
}

/// A run of blocks that are all mapped or all holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// For allocation: the run is a hole. For changes: the run is unchanged.
    pub hole: bool,
}

/// One batch under construction.
#[derive(Default)]
struct Group<'a> {
    records: Vec<Record>,
    slices: Vec<IoSlice<'a>>,
    crcs: Vec<u32>,
}

impl<'a> Group<'a> {
    fn takes(&self, runs: usize, blocks: usize) -> bool {
        const RECORD_BYTES_MAX: usize = 17;
        let bytes = (self.records.len() + runs) * RECORD_BYTES_MAX + (self.crcs.len() + blocks) * 4;
        self.crcs.len() + blocks <= BATCH_BLOCKS_MAX && bytes <= BODY_BYTES
    }

    fn add(&mut self, mut block: u64, mut data: &'a [u8], runs: &[(bool, usize)]) {
        for &(zero, count) in runs {
            let (now, later) = data.split_at(count * BLOCK);
            if zero {
                self.records.push(Record::Trim { block, count: count as u64 });
            } else {
                self.records.push(Record::Write { block, count: count as u64 });
                self.slices.push(IoSlice::new(now));
                self.crcs.extend(now.chunks_exact(BLOCK).map(crc32fast::hash));
            }
            block += count as u64;
            data = later;
        }
    }
}

/// Runs of zero and other blocks: zero blocks become holes, unless that would need too many records.
pub(crate) fn zero_runs(data: &[u8]) -> Vec<(bool, usize)> {
    let mut runs: Vec<(bool, usize)> = Vec::with_capacity(1);
    for block in data.chunks_exact(BLOCK) {
        let zero = block == ZERO_BLOCK;
        match runs.last_mut() {
            Some((kind, count)) if *kind == zero => *count += 1,
            _ => runs.push((zero, 1)),
        }
    }
    if runs.len() > ZERO_RUNS_MAX {
        runs = vec![(false, data.len() / BLOCK)];
    }
    runs
}

impl Pool {
    /// The head of `volume`, or its checkpoint `name`, for reading.
    pub fn view(&self, volume: VolumeId, name: Option<CheckpointName>) -> Result<View> {
        let found = self.volume(volume)?;
        self.not_arriving(volume)?;
        let root = match name {
            None => found.head,
            Some(name) => *found.checkpoints.get(&name).ok_or_else(|| {
                let text = format!("volume {:?} has no checkpoint {name}: see cairn checkpoint list", found.name);
                Error::new(ErrorKind::NotFound, text)
            })?,
        };
        Ok(View { root, volume, checkpoint: name })
    }

    /// Size of what a view shows, bytes.
    pub fn view_size(&self, view: View) -> Result<u64> {
        match self.roots.find(view.root) {
            Some(root) if !matches!(root.kind, RootKind::Ghost { .. }) => Ok(root.size),
            _ => Err(Error::new(ErrorKind::NotFound, "the volume or checkpoint was deleted")),
        }
    }

    pub(crate) fn bounds(&self, view: View, offset: u64, len: u64) -> Result<u64> {
        let size = self.view_size(view)?;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(end),
            _ => {
                Err(Error::invalid(format!("{len} bytes at {offset} reach past the end of the volume ({size} bytes)")))
            }
        }
    }

    pub(crate) fn head_view(&self, volume: VolumeId) -> Result<View> {
        self.view(volume, None)
    }

    /// Fills `buf` from `offset`; every block's checksum is verified.
    pub fn read(&mut self, view: View, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = self.bounds(view, offset, buf.len() as u64)?;
        let mut at = offset;
        while at < end {
            let block = at / BLOCK_U64;
            let skip = (at % BLOCK_U64) as usize;
            let place = (at - offset) as usize;
            if skip != 0 || end - at < BLOCK_U64 {
                let mut whole = [0; BLOCK];
                self.read_blocks(view, block, &mut whole)?;
                let take = (BLOCK - skip).min((end - at) as usize);
                buf[place..place + take].copy_from_slice(&whole[skip..skip + take]);
                at += take as u64;
            } else {
                let whole = ((end - at) / BLOCK_U64 * BLOCK_U64) as usize;
                self.read_blocks(view, block, &mut buf[place..place + whole])?;
                at += whole as u64;
            }
        }
        Ok(())
    }

    /// Appends `len` bytes from `offset` to `out`, as [`Pool::read`]; on an error `out` is as before.
    pub fn read_onto(&mut self, view: View, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let reads = self.remote_reads();
        let whole_blocks = offset % BLOCK_U64 == 0 && len % BLOCK == 0;
        let outcome = if whole_blocks {
            let inside = self.bounds(view, offset, len as u64);
            inside.and_then(|_| self.read_blocks_onto(view, offset / BLOCK_U64, len / BLOCK, out))
        } else {
            out.resize(start + len, 0);
            self.read(view, offset, &mut out[start..])
        };
        if self.remote_reads() != reads {
            self.read_on(view, offset / BLOCK_U64, len.div_ceil(BLOCK) as u64);
        }
        outcome.inspect_err(|_| out.truncate(start))
    }

    fn read_blocks_onto(&mut self, view: View, first: u64, count: usize, out: &mut Vec<u8>) -> Result<()> {
        let mut done = 0;
        while done < count {
            let block = first + done as u64;
            let read = self.read_run_onto(view, block, count - done, out);
            done += read.inspect_err(|e| self.demand_rest(e, view, block, count - done))?;
        }
        Ok(())
    }

    /// Appends a run of blocks that lie together; returns how many there were.
    fn read_run_onto(&mut self, view: View, block: u64, max: usize, out: &mut Vec<u8>) -> Result<usize> {
        let (run, addr) = self.stored_run(view, block, max)?;
        let start = out.len();
        match addr {
            None => out.resize(start + run * BLOCK, 0),
            Some(addr) => {
                self.segments.read_slots_onto(addr, out, run)?;
                self.verify_run(view, block, addr, &mut out[start..])?;
            }
        }
        Ok(run)
    }

    pub(crate) fn read_blocks(&mut self, view: View, first: u64, buf: &mut [u8]) -> Result<()> {
        let count = buf.len() / BLOCK;
        let mut done = 0;
        while done < count {
            let block = first + done as u64;
            let read = self.read_run(view, block, &mut buf[done * BLOCK..]);
            done += read.inspect_err(|e| self.demand_rest(e, view, block, count - done))?;
        }
        Ok(())
    }

    /// Fills the front of `buf` with a run of blocks that lie together; returns how many there were.
    fn read_run(&mut self, view: View, block: u64, buf: &mut [u8]) -> Result<usize> {
        let (run, addr) = self.stored_run(view, block, buf.len() / BLOCK)?;
        let piece = &mut buf[..run * BLOCK];
        match addr {
            None => piece.fill(0),
            Some(addr) => {
                self.segments.read_slots(addr, piece)?;
                self.verify_run(view, block, addr, piece)?;
            }
        }
        Ok(run)
    }

    fn verify_run(&mut self, view: View, first: u64, addr: SlotAddr, data: &mut [u8]) -> Result<()> {
        let blocks = data.chunks_exact_mut(BLOCK).zip(0..);
        blocks.into_iter().try_for_each(|(data, i)| self.verify(view, first + i, SlotAddr(addr.0 + i), data))
    }

    fn stored_run(&mut self, view: View, block: u64, max: usize) -> Result<(usize, Option<SlotAddr>)> {
        let tree = self.roots.get(view.root).map;
        if max == 1 {
            return Ok((1, self.map.lookup(tree, block, &self.segments)?));
        }
        self.run_at(tree, block, max)
    }

    /// The longest run from `block`, up to `max` blocks, that is a hole or lies in consecutive slots.
    pub(crate) fn run_at(
        &mut self,
        tree: crate::map::MapRoot,
        block: u64,
        max: usize,
    ) -> Result<(usize, Option<SlotAddr>)> {
        let mut run = 0;
        let mut first = 0;
        'leaves: while run < max {
            let at = block + run as u64;
            let leaf = self.map.leaf(tree, at, &self.segments)?;
            for bits in leaf.iter().skip((at % FANOUT as u64) as usize).take(max - run) {
                if run == 0 {
                    first = *bits;
                }
                let expected = if first == 0 { 0 } else { first + run as u64 };
                let same_segment = first >> crate::limits::SLOT_BITS == *bits >> crate::limits::SLOT_BITS;
                if *bits != expected || !same_segment {
                    break 'leaves;
                }
                run += 1;
            }
        }
        Ok((run, (first != 0).then_some(SlotAddr(first))))
    }

    /// A block that is damaged here is taken from the object store, if it is there.
    fn verify(&mut self, view: View, block: u64, addr: SlotAddr, data: &mut [u8]) -> Result<()> {
        let crc = self.segments.crc(addr, self.map.cache())?;
        if crc32fast::hash(data) == crc {
            return Ok(());
        }
        if self.segments.read_copy(addr, data)? && crc32fast::hash(data) == crc {
            return Ok(());
        }
        let name = self.volume(view.volume).map_or("(deleted)", |v| v.name.as_str());
        let object = self.segments.object_of(addr).map(|key| format!(" in object {key}")).unwrap_or_default();
        let text = format!("volume {name:?} block {block}: the data at {addr}{object} is damaged (checksum mismatch)");
        Err(Error::corrupt(text))
    }

    /// Writes `data` at `offset`. Each piece of up to 1 MiB is all-or-nothing after a crash; it is
    /// in the kernel when this returns, and durable after a flush.
    pub fn write(&mut self, volume: VolumeId, offset: u64, data: &[u8]) -> Result<()> {
        self.write_many(volume, &[(offset, data)])
    }

    /// Writes several requests, in order, in as few batches as possible.
    pub fn write_many(&mut self, volume: VolumeId, requests: &[(u64, &[u8])]) -> Result<()> {
        let view = self.head_view(volume)?;
        let ranges = |pool: &mut Self| {
            let each = requests.iter().map(|(offset, data)| pool.prepare_write(view, *offset, data.len() as u64));
            all_present(each)
        };
        self.prepared(ranges, |pool| pool.write_prepared(view, requests))
    }

    fn write_prepared(&mut self, view: View, requests: &[(u64, &[u8])]) -> Result<()> {
        let volume = view.volume;
        let mut group = Group::default();
        for &(offset, data) in requests {
            self.bounds(view, offset, data.len() as u64)?;
            let mut at = 0;
            while at < data.len() {
                let piece = &data[at..data.len().min(at + ATOMIC_BYTES_MAX as usize)];
                let position = offset + at as u64;
                at += piece.len();
                if position % BLOCK_U64 != 0 || piece.len() % BLOCK != 0 {
                    self.commit(volume, &mut group)?;
                    self.write_unaligned(view, position, piece, true)?;
                    continue;
                }
                let runs = zero_runs(piece);
                if !group.takes(runs.len(), piece.len() / BLOCK) {
                    self.commit(volume, &mut group)?;
                }
                group.add(position / BLOCK_U64, piece, &runs);
            }
        }
        self.commit(volume, &mut group)
    }

    fn commit(&mut self, volume: VolumeId, group: &mut Group<'_>) -> Result<()> {
        let group = std::mem::take(group);
        if group.records.is_empty() {
            return Ok(());
        }
        self.allow_data()?;
        self.append(volume, group.records, Payload { slices: &group.slices, crcs: group.crcs, in_place: 0 })
    }

    /// Completes partial blocks from what is there, then writes whole blocks in one batch; with
    /// `holes`, zero blocks become holes. The pool has one owner, so nothing can come between
    /// reading and writing.
    fn write_unaligned(&mut self, view: View, offset: u64, data: &[u8], holes: bool) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let first = offset / BLOCK_U64;
        let last = (offset + data.len() as u64 - 1) / BLOCK_U64;
        let mut whole = vec![0; (last - first + 1) as usize * BLOCK];
        let skip = (offset % BLOCK_U64) as usize;
        // Blocks that are replaced as a whole are not read: they may be damaged.
        let ragged = (offset + data.len() as u64) % BLOCK_U64 != 0;
        if skip != 0 || (ragged && last == first) {
            self.read_blocks(view, first, &mut whole[..BLOCK])?;
        }
        if ragged && last != first {
            let at = whole.len() - BLOCK;
            self.read_blocks(view, last, &mut whole[at..])?;
        }
        whole[skip..skip + data.len()].copy_from_slice(data);
        let runs = if holes { zero_runs(&whole) } else { vec![(false, whole.len() / BLOCK)] };
        let mut group = Group::default();
        group.add(first, &whole, &runs);
        self.commit(view.volume, &mut group)
    }

    /// Turns whole blocks within the range into holes; partial blocks at its ends stay as they are.
    pub fn trim(&mut self, volume: VolumeId, offset: u64, len: u64) -> Result<()> {
        let end = self.bounds(self.head_view(volume)?, offset, len)?;
        let size = self.view_size(self.head_view(volume)?)?;
        let first = offset.div_ceil(BLOCK_U64);
        let last = if end == size { end.div_ceil(BLOCK_U64) } else { end / BLOCK_U64 };
        if first >= last {
            return Ok(());
        }
        let trim = vec![Record::Trim { block: first, count: last - first }];
        self.prepared(|pool| pool.prepare_trim(volume, first..last), |pool| pool.log_with_reserve(volume, trim))
    }

    /// Makes the range read as zeros, as holes where whole blocks allow it, or with `allocate` as
    /// stored blocks.
    pub fn write_zeroes(&mut self, volume: VolumeId, offset: u64, len: u64, allocate: bool) -> Result<()> {
        let view = self.head_view(volume)?;
        let end = self.bounds(view, offset, len)?;
        let ends = |pool: &mut Self| {
            let (first, last) = (offset.div_ceil(BLOCK_U64), end / BLOCK_U64);
            if allocate || first > last {
                return pool.prepare_write(view, offset, len);
            }
            let trim = pool.prepare_trim(volume, first..last);
            let head = pool.prepare_write(view, offset, first * BLOCK_U64 - offset);
            all_present([trim, head, pool.prepare_write(view, last * BLOCK_U64, end - last * BLOCK_U64)])
        };
        self.prepared(ends, |pool| pool.zero_prepared(view, offset, len, allocate))
    }

    fn zero_prepared(&mut self, view: View, offset: u64, len: u64, allocate: bool) -> Result<()> {
        let (volume, end) = (view.volume, offset + len);
        if allocate {
            return self.write_stored_zeroes(view, offset, end);
        }
        let (first, last) = (offset.div_ceil(BLOCK_U64), end / BLOCK_U64);
        if first > last {
            return self.write_unaligned(view, offset, &ZERO_BLOCK[..len as usize], true);
        }
        let trim = (first < last).then_some(Record::Trim { block: first, count: last - first });
        if first * BLOCK_U64 == offset && last * BLOCK_U64 == end {
            return trim.map_or(Ok(()), |trim| self.log_with_reserve(volume, vec![trim]));
        }
        // Partial blocks at the ends and the holes between them are one batch: all or nothing.
        let (mut head, mut tail) = (ZERO_BLOCK, ZERO_BLOCK);
        let mut group = Group::default();
        group.records.extend(trim);
        if first * BLOCK_U64 != offset {
            self.read_blocks(view, first - 1, &mut head)?;
            head[(offset % BLOCK_U64) as usize..].fill(0);
            group.add(first - 1, &head, &zero_runs(&head));
        }
        if last * BLOCK_U64 != end {
            self.read_blocks(view, last, &mut tail)?;
            tail[..(end % BLOCK_U64) as usize].fill(0);
            group.add(last, &tail, &zero_runs(&tail));
        }
        self.commit(volume, &mut group)
    }

    fn write_stored_zeroes(&mut self, view: View, offset: u64, end: u64) -> Result<()> {
        static ZEROES: [u8; ATOMIC_BYTES_MAX as usize] = [0; ATOMIC_BYTES_MAX as usize];
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(ATOMIC_BYTES_MAX);
            self.write_unaligned(view, at, &ZEROES[..piece as usize], false)?;
            at += piece;
        }
        Ok(())
    }

    /// Runs of mapped blocks and holes from `offset`, at most `max` of them and `len` bytes in all. The
    /// work is bounded by `max` too, so that even a single run may be cut short: go on behind it.
    /// Whole absent subtrees are stepped over at once.
    pub fn extents(&mut self, view: View, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.bounds(view, offset, len)?;
        let tree = self.roots.get(view.root).map;
        self.runs(offset, len, max, |pool, block| {
            for level in (0..=tree.level).rev() {
                let base = block / crate::map::span(level) * crate::map::span(level);
                if pool.map.ref_at(tree, level, base, &pool.segments)? == Some(crate::map::Ref::HOLE) {
                    return Ok((base + crate::map::span(level) - block, 0));
                }
            }
            let leaf = pool.map.leaf(tree, block, &pool.segments)?;
            let bits = leaf.iter().enumerate().fold(0u64, |m, (i, b)| m | u64::from(*b != 0) << i);
            Ok((0, bits))
        })
    }

    /// Runs of blocks that differ (`hole: false`) or are equal (`hole: true`) between two views of
    /// related volumes, found by comparing subtrees: the cost follows the difference.
    pub fn changes(&mut self, from: View, to: View, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>> {
        self.bounds(to, offset, len)?;
        self.view_size(from)?;
        let (old, new) = (self.roots.get(from.root).map, self.roots.get(to.root).map);
        self.runs(offset, len, max, |pool, block| {
            for level in (1..=new.level.min(old.level)).rev() {
                let base = block / crate::map::span(level) * crate::map::span(level);
                let a = pool.map.ref_at(old, level, base, &pool.segments)?;
                if a == pool.map.ref_at(new, level, base, &pool.segments)? {
                    return Ok((base + crate::map::span(level) - block, 0));
                }
            }
            let a = pool.map.leaf(old, block, &pool.segments)?;
            let b = pool.map.leaf(new, block, &pool.segments)?;
            let bits = a.iter().zip(&b).enumerate().fold(0u64, |m, (i, (a, b))| m | u64::from(a != b) << i);
            Ok((0, bits))
        })
    }

    /// Folds leaf bitmaps into extents. `probe(block)` gives how many blocks from there are known to
    /// be clear, or else the bits of the leaf that holds `block`.
    fn runs(
        &mut self,
        offset: u64,
        len: u64,
        max: usize,
        mut probe: impl FnMut(&mut Self, u64) -> Result<(u64, u64)>,
    ) -> Result<Vec<Extent>> {
        let (mut at, end) = (offset, offset + len);
        let mut out: Vec<Extent> = Vec::new();
        let push = |out: &mut Vec<Extent>, len: u64, hole: bool| match out.last_mut() {
            Some(last) if last.hole == hole => last.len += len,
            _ => out.push(Extent { len, hole }),
        };
        // One long run may take any number of steps: they are bounded as well, and the answer ends early.
        let mut steps = max.saturating_mul(4).max(1024);
        // Some steps behind what is absent tell what else is.
        let (mut absent, mut misses) = (None, 0);
        while at < end && out.len() <= max && steps > 0 && misses < MISSES_MAX {
            steps -= 1;
            let block = at / BLOCK_U64;
            let leaf_end = (block / FANOUT as u64 + 1) * FANOUT as u64;
            let (clear, bits) = match probe(self, block) {
                Err(e) if e.kind() == ErrorKind::Absent => {
                    misses += 1;
                    absent = Some(e);
                    (leaf_end - block, 0)
                }
                seen => seen?,
            };
            if clear > 0 {
                let until = (block + clear).saturating_mul(BLOCK_U64).min(end);
                push(&mut out, until - at, true);
                at = until;
                continue;
            }
            for block in block..leaf_end {
                let until = ((block + 1) * BLOCK_U64).min(end);
                if until <= at {
                    break;
                }
                push(&mut out, until - at, bits >> (block % FANOUT as u64) & 1 == 0);
                at = until;
            }
        }
        out.truncate(max);
        absent.map_or(Ok(out), Err)
    }
}
