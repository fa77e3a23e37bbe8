//! Any bytes as a client's requests, on a pool in memory.
//!
//! What must hold: no panic; every request answered exactly once, by its cookie, in the form agreed on;
//! every byte read equal to a model; refused requests change nothing; bounded output.

use super::script::Script;
use crate::metrics::Metrics;
use crate::nbd::{ExportInfo, MetaContext, Negotiated};
use crate::session::{Next, Session};
use blockstore::testing::{SimClock, SimDisk};
use blockstore::{Pool, PoolOptions, View};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

const SIZE: u64 = 2 << 20;
/// Sessions that share a pool, each on a volume made anew: a pool costs more than a session.
const SESSIONS_PER_POOL: u32 = 64;

/// Runs one session. The first byte chooses the agreement (bits 0 to 2), a structured script instead
/// of raw bytes (bit 3), a read-only checkpoint (bit 4) and the size of the pieces that arrive.
pub fn transmission(input: &[u8]) {
    let mut script = Script(input);
    let mode = script.byte();
    let mut server = Harness::new(mode);
    converse(&mut server, mode, &mut script);
    // Only a session without a failure leaves a stage behind.
    STAGE.set(Some(server.stage));
}

fn converse(server: &mut Harness, mode: u8, script: &mut Script<'_>) {
    if mode & 8 == 0 {
        let bytes = script.0.to_vec();
        let piece = 1 + usize::from(mode >> 5) * 37;
        for chunk in bytes.chunks(piece) {
            if !server.feed(chunk) {
                return;
            }
        }
        return;
    }
    for cookie in 1..64 {
        if script.done() {
            break;
        }
        let request = Wanted::read(script, cookie);
        let bytes = request.encode(server.extended());
        server.expect(&request);
        if !server.feed(&bytes) {
            return;
        }
    }
    server.finish();
}

/// A request as the script wants it.
#[derive(Clone, Debug)]
struct Wanted {
    kind: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    fill: u8,
}

impl Wanted {
    fn read(script: &mut Script<'_>, cookie: u64) -> Self {
        let (kind, shape) = (u16::from(script.byte() % 9), script.byte());
        // The end of a session would end the script.
        let kind = if kind == 2 { 1 } else { kind };
        let flags = if shape & 1 != 0 { u16::from(script.byte()) } else { 0 };
        let (mut offset, mut length) = (script.number(3) % SIZE, script.number(2));
        if shape & 2 != 0 {
            (offset, length) = (offset & !4095, (length & 0xff) << 12);
        }
        if shape & 4 != 0 {
            length = length << 8 & 0x1f_ffff;
        }
        if shape & 8 != 0 {
            offset = (offset << 40) | offset;
        }
        if kind != 1 && shape & 16 != 0 {
            length = script.number(4);
        }
        Self { kind, flags, cookie, offset, length, fill: shape ^ cookie as u8 }
    }

    fn carries(&self, extended: bool) -> bool {
        self.kind == 1 || extended && self.flags & 32 != 0
    }

    fn encode(&self, extended: bool) -> Vec<u8> {
        let mut out = if extended { 0x21e4_1c71u32 } else { 0x2560_9513 }.to_be_bytes().to_vec();
        // An extended write without this flag ends the session, and with it the script.
        let flags = if extended && self.kind == 1 { self.flags | 32 } else { self.flags };
        out.extend(flags.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        if extended {
            out.extend(self.length.to_be_bytes());
        } else {
            out.extend((self.length as u32).to_be_bytes());
        }
        if self.carries(extended) && self.length <= 32 << 20 {
            out.resize(out.len() + self.length as usize, self.fill);
        }
        out
    }
}

struct Harness {
    stage: Stage,
    session: Session,
    agreed: Negotiated,
    metrics: Metrics,
    model: Vec<u8>,
    input: Vec<u8>,
    /// Replies not looked at yet.
    replies: Vec<u8>,
    asked: BTreeMap<u64, Wanted>,
    closed: bool,
}

/// What every session begins with: a pattern in the middle of the head and of checkpoint v1.
struct Stage {
    pool: Pool,
    head: View,
    checkpoint: View,
    sessions: u32,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

const PATTERN: std::ops::Range<u64> = 1 << 20..(1 << 20) + (300 << 10);

impl Stage {
    /// The stage of the last session, cleaned, or a new one.
    fn take() -> Self {
        let used = STAGE.take().filter(|stage| stage.sessions < SESSIONS_PER_POOL);
        used.map_or_else(Self::build, Self::clean).expect("a volume in memory")
    }

    fn build() -> blockstore::Result<Self> {
        let (disk, clock) = (SimDisk::new().handle(), SimClock::default());
        Pool::create(&disk, &clock, [7; 16])?;
        let options = PoolOptions { map_cache: 1 << 18, anchor_bytes: 1 << 20 };
        let (mut pool, _) = Pool::open(disk, Arc::new(clock), options)?;
        let (volume, job) = pool.create_volume("disk", SIZE)?;
        pool.finish(job)?;
        pool.write(volume, PATTERN.start, &[0xc5; (PATTERN.end - PATTERN.start) as usize])?;
        let (made, job) = pool.create_checkpoint(volume, "")?;
        pool.finish(job)?;
        let (head, checkpoint) = (pool.view(volume, None)?, pool.view(volume, Some(made.name))?);
        Ok(Self { pool, head, checkpoint, sessions: 1 })
    }

    fn clean(mut self) -> blockstore::Result<Self> {
        self.sessions += 1;
        self.pool.trim(self.head.volume, 0, SIZE)?;
        self.pool.write(self.head.volume, PATTERN.start, &[0xc5; (PATTERN.end - PATTERN.start) as usize])?;
        Ok(self)
    }
}

impl Harness {
    fn new(mode: u8) -> Self {
        let stage = Stage::take();
        let view = if mode & 16 != 0 { stage.checkpoint } else { stage.head };
        let mut model = vec![0; SIZE as usize];
        model[PATTERN.start as usize..PATTERN.end as usize].fill(0xc5);
        let structured = mode & 3 != 0;
        let contexts = [MetaContext::Allocation, MetaContext::ChangedSince("v1".to_owned())];
        let agreed = Negotiated {
            export: ExportInfo {
                name: "disk".to_owned(),
                size: SIZE,
                read_only: mode & 16 != 0,
                description: String::new(),
            },
            structured,
            extended: mode & 3 == 3,
            contexts: if structured && mode & 4 != 0 { contexts.to_vec() } else { Vec::new() },
        };
        let session = Session::new(agreed.clone(), view);
        let (metrics, asked) = (Metrics::default(), BTreeMap::new());
        Self { stage, session, agreed, metrics, model, input: Vec::new(), replies: Vec::new(), asked, closed: false }
    }

    fn extended(&self) -> bool {
        self.agreed.extended
    }

    fn expect(&mut self, request: &Wanted) {
        self.asked.insert(request.cookie, request.clone());
    }

    /// Lets bytes arrive; `false` once the server has closed.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        self.input.extend(bytes);
        loop {
            let (mut out, mut waits) = (Vec::new(), Vec::new());
            let (used, next) =
                self.session.process(&mut self.stage.pool, &mut self.metrics, &self.input, &mut out, &mut waits);
            assert!(used <= self.input.len());
            assert!(out.len() <= 3 << 20, "one turn says {} bytes", out.len());
            self.input.drain(..used);
            if let (Some(wait), Err(e)) = (waits.first(), self.stage.pool.flush(self.session.view.volume)) {
                panic!("{wait:?}: {e}");
            }
            waits.into_iter().for_each(|wait| self.session.synced(&mut out, wait, None));
            self.replies.append(&mut out);
            self.check();
            match next {
                Next::Send | Next::Yield | Next::Hold => {}
                Next::Wait => panic!("nothing here can be absent"),
                Next::Read(whole) => {
                    assert!(whole <= (1 << 20) + 32, "the server wants {whole} bytes at once");
                    return true;
                }
                Next::Close(_) => {
                    self.closed = true;
                    return false;
                }
            }
        }
    }

    fn finish(&mut self) {
        if self.input.is_empty() {
            assert!(self.asked.is_empty(), "never answered: {:?}", self.asked);
            assert!(self.replies.is_empty(), "half a reply is left");
        }
    }

    /// Looks at all whole replies.
    fn check(&mut self) {
        while let Some(used) = self.reply() {
            self.replies.drain(..used);
        }
    }

    /// Checks the reply at the front; its length, or `None` when it is not whole.
    fn reply(&mut self) -> Option<usize> {
        let bytes = std::mem::take(&mut self.replies);
        let used = self.look(&bytes);
        self.replies = bytes;
        used
    }

    fn look(&mut self, bytes: &[u8]) -> Option<usize> {
        let number =
            |at: usize, len: usize| Some(bytes.get(at..at + len)?.iter().fold(0u64, |sum, b| sum << 8 | u64::from(*b)));
        let magic = number(0, 4)? as u32;
        if magic == 0x6744_6698 {
            let (error, cookie) = (number(4, 4)?, number(8, 8)?);
            let wanted = self.asked.get(&cookie).cloned();
            let read = wanted.as_ref().is_some_and(|w| w.kind == 0);
            assert!(!self.extended(), "a simple reply where headers are extended");
            assert!(!(read && self.agreed.structured), "a simple reply to a structured read");
            let Some(wanted) = wanted else { return self.unknown(bytes) };
            let len = if read && error == 0 { wanted.length as usize } else { 0 };
            let data = bytes.get(16..16 + len)?;
            if len > 0 {
                self.data(wanted.offset, data);
            }
            self.over(cookie, error as u32);
            return Some(16 + len);
        }
        let header = if self.extended() { 32 } else { 20 };
        assert_eq!(magic, if self.extended() { 0x6e8a_278c } else { 0x668e_33ef }, "a foreign reply");
        assert!(self.agreed.structured);
        let (flags, kind, cookie) = (number(4, 2)?, number(6, 2)?, number(8, 8)?);
        let length = if self.extended() { number(24, 8)? } else { number(16, 4)? } as usize;
        let body = bytes.get(header..header + length)?;
        let Some(wanted) = self.asked.get(&cookie).cloned() else { return self.unknown(bytes) };
        let at = number(header, 8).unwrap_or(0);
        match kind {
            0 => {}
            1 => self.data(at, body.get(8..).unwrap_or_default()),
            2 => {
                let hole = number(header + 8, 4)? as usize;
                self.data(at, &vec![0; hole]);
            }
            5 | 6 => {
                assert_eq!(kind == 6, self.extended());
                assert!(!self.agreed.contexts.is_empty() && wanted.kind == 7);
                assert!(body.len() > 8, "an answer without an extent");
            }
            32769 => {}
            other => panic!("a chunk of type {other}"),
        }
        if flags & 1 != 0 {
            let error = if kind == 32769 { number(header, 4)? } else { 0 };
            self.over(cookie, error as u32);
        }
        Some(header + length)
    }

    /// Raw bytes asked for something of their own: only the form of its reply is known.
    fn unknown(&self, bytes: &[u8]) -> Option<usize> {
        assert!(self.asked.is_empty(), "an answer to nobody");
        (!bytes.is_empty()).then_some(bytes.len())
    }

    fn data(&self, at: u64, data: &[u8]) {
        let known = self.model.get(at as usize..at as usize + data.len());
        assert!(known == Some(data), "wrong data at {at}, {} bytes", data.len());
    }

    /// A request is answered: what must have come of it?
    fn over(&mut self, cookie: u64, error: u32) {
        let Some(wanted) = self.asked.remove(&cookie) else { panic!("{cookie} is answered twice") };
        let end = wanted.offset.checked_add(wanted.length).filter(|end| *end <= SIZE);
        let changes = matches!(wanted.kind, 1 | 4 | 6);
        if error == 0 && wanted.kind != 3 && !(wanted.kind == 7 && wanted.flags & 32 != 0) {
            let end = end.expect("success beyond the end");
            assert!(!(changes && self.agreed.export.read_only), "a change of a checkpoint");
            let range = wanted.offset as usize..end as usize;
            match wanted.kind {
                1 => self.model[range].fill(wanted.fill),
                // Whole blocks become zeros, parts of blocks stay.
                4 => self.trimmed(range),
                6 => self.model[range].fill(0),
                _ => {}
            }
        }
        assert!([0, 1, 5, 22, 28, 95].contains(&error), "error {error} for {wanted:?}");
        assert_ne!(error, 5, "{wanted:?} failed on a faultless disk");
        if error == 0 {
            assert!(wanted.kind < 8, "an unknown command succeeded");
        }
    }

    fn trimmed(&mut self, range: std::ops::Range<usize>) {
        let (first, last) = (range.start.next_multiple_of(4096), range.end / 4096 * 4096);
        if first < last {
            self.model[first..last].fill(0);
        }
    }
}
