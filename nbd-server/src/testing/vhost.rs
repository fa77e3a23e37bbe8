//! Any bytes as what a VMM says, as a ring in a guest's memory, and as both on a pool in memory.
//!
//! What must hold: no panic; every head that is taken is answered once; buffers lie in the guest's memory, and what is
//! asked of the disk inside it; the disk reads as its model says; no descriptor stays open.

use super::script::Script;
use crate::metrics::Metrics;
use crate::vhost::testing::{
    header, memory_file, parse_message, parse_request, send_message, walk, Array, Bounds, Memory, Places, Ring, Wanted,
};
use crate::vhost::{Guest, Mapping, Next};
use blockstore::testing::{SimClock, SimDisk};
use blockstore::{Pool, PoolOptions, View};
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vm_memory::Bytes;

const SIZE: u64 = 1 << 20;
const BASE: u64 = 0x1000;
const RAM: usize = 32 << 10;
const USER: u64 = 0x7f00_0000_0000;
/// Turns in which a guest must have nothing left to do.
const TURNS_MAX: usize = 200;
/// Guests that share a pool: a pool costs more.
const GUESTS_PER_POOL: u32 = 64;

/// Runs one. The first byte chooses what the others are.
pub fn vhost_user(input: &[u8]) {
    let mut script = Script(input);
    match script.byte() % 3 {
        0 => message(&mut script),
        1 => ring(&mut script),
        _ => guest(&mut script),
    }
}

fn message(script: &mut Script<'_>) {
    let fds = usize::from(script.byte());
    let mut bytes = [0; 12];
    bytes.iter_mut().for_each(|byte| *byte = script.byte());
    if let Ok(header) = header(&bytes) {
        assert!(header.size <= 4096);
        if parse_message(header.request, script.0, fds).is_ok() {
            assert!(fds <= 8);
        }
    }
}

fn ring(script: &mut Script<'_>) {
    let shape = script.byte();
    let size = 1 << (shape & 7);
    let (event_idx, indirect) = (shape & 8 != 0, shape & 16 != 0);
    let mut places = Places { table: BASE, available: BASE + 0x1000, used: BASE + 0x2000 };
    if shape & 32 != 0 {
        let at = |script: &mut Script<'_>| BASE.wrapping_add(script.number(3));
        places = Places { table: at(script), available: at(script), used: at(script) };
    }
    let next = script.number(2) as u16;
    let mut ram = script.0.to_vec();
    ram.resize(RAM, 0);
    let memory = Array::new(BASE, ram);
    let Some(mut ring) = Ring::new(&memory, size, places, event_idx, next) else { return };
    let bounds = Bounds { size: SIZE, read_only: shape & 64 != 0 };
    for _ in 0..size {
        let before = ring.used();
        let head = match ring.take(&memory) {
            Ok(Some(head)) => head,
            Ok(None) | Err(_) => break,
        };
        assert!(head < size);
        match walk(&memory, places.table, size, head, indirect) {
            Err(malformed) => assert!(malformed.status.is_none_or(|at| memory.holds(at, 1))),
            Ok(chain) => {
                let buffers = chain.readable.len() + chain.writable.len();
                assert!(buffers <= usize::from(size) + 1024);
                let all = chain.readable.iter().chain(&chain.writable);
                assert!(all.clone().all(|buffer| buffer.len > 0 && memory.holds(buffer.at, u64::from(buffer.len))));
                match parse_request(&memory, chain, bounds) {
                    Err(refused) => assert!(refused.at.is_none_or(|at| memory.holds(at, 1))),
                    Ok(request) => {
                        assert!(memory.holds(request.status, 1));
                        if let Wanted::Read(at) | Wanted::Write(at) = request.wanted {
                            assert!(at.checked_add(request.length).is_some_and(|end| end <= SIZE));
                        }
                    }
                }
            }
        }
        if ring.fill(&memory, 0, head, 1).and_then(|()| ring.publish(&memory, 1)).is_err() {
            break;
        }
        assert_eq!(ring.used(), before.wrapping_add(1));
        let _ = ring.must_tell(&memory);
        let _ = ring.rest(&memory);
    }
}

struct Stage {
    pool: Pool,
    head: View,
    checkpoint: View,
    guests: u32,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

fn stage() -> blockstore::Result<Stage> {
    let (disk, clock) = (SimDisk::new().handle(), SimClock::default());
    Pool::create(&disk, &clock, [7; 16])?;
    let (mut pool, _) = Pool::open(disk, Arc::new(clock), PoolOptions { map_cache: 1 << 18, anchor_bytes: 1 << 20 })?;
    let (volume, job) = pool.create_volume("disk", SIZE)?;
    pool.finish(job)?;
    let (made, job) = pool.create_checkpoint(volume, "")?;
    pool.finish(job)?;
    let (head, checkpoint) = (pool.view(volume, None)?, pool.view(volume, Some(made.name))?);
    Ok(Stage { pool, head, checkpoint, guests: 0 })
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn guest(script: &mut Script<'_>) {
    let used = STAGE.take().filter(|stage| stage.guests < GUESTS_PER_POOL);
    let mut stage = used.map_or_else(self::stage, Ok).expect("a volume in memory");
    stage.guests += 1;
    let before = open_files();
    converse(&mut stage, script);
    // Other tests of the process open files too.
    if std::env::var_os("CAIRN_COUNT_FILES").is_some() {
        assert_eq!(open_files(), before, "descriptors stay open");
    }
    STAGE.set(Some(stage));
}

fn words(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn halves(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn counter() -> OwnedFd {
    crate::poll::event_fd().expect("a descriptor")
}

/// A guest that is set up rightly, if `shape` says so, and then does what the script wants.
fn converse(stage: &mut Stage, script: &mut Script<'_>) {
    let shape = script.byte();
    let view = if shape & 1 != 0 { stage.checkpoint } else { stage.head };
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let mut guest = Guest::new(&theirs, "disk".to_owned(), view, SIZE, false).expect("a guest");
    drop(theirs);
    let file = memory_file(RAM as u64).expect("memory");
    let ram = Mapping::new(&file, 0, RAM as u64).expect("memory");
    let mut metrics = Metrics::default();
    let mut turn = |guest: &mut Guest, pool: &mut Pool| {
        for _ in 0..TURNS_MAX {
            let mut waits = Vec::new();
            let next = guest.process(pool, &mut metrics, &mut waits);
            pool.flush(view.volume).expect("it is synced");
            waits.into_iter().for_each(|wait| guest.synced(wait, None));
            match next {
                Err(_) => return false,
                Ok(Next::Yield) => {}
                Ok(_) if guest.rest() => {}
                Ok(_) => {
                    assert!(guest.is_idle(), "something is begun and not answered");
                    return guest.show().is_ok();
                }
            }
        }
        // It may ask for more than 2^16 requests, one ring after the other.
        true
    };
    let say = |request: u32, payload: &[u8], fds: &[&OwnedFd]| {
        let mut bytes = halves(&[request, 1, payload.len() as u32]);
        bytes.extend(payload);
        // One descriptor with each part, so that several come with one message.
        let (front, rest) = bytes.split_at(1);
        let (middle, end) = rest.split_at(1);
        for (part, fd) in [(front, fds.first()), (middle, fds.get(1)), (end, fds.get(2))] {
            let _ = send_message(&ours, part, fd.map(|fd| fd.as_fd()));
        }
    };
    if shape & 2 != 0 {
        let features = if shape & 4 != 0 { 0x1_7000_7264 } else { 0x1_4000_0000 };
        say(2, &words(&[features & !if shape & 1 != 0 { 0x6000 } else { 0x20 }]), &[]);
        let mut memory = halves(&[1, 0]);
        memory.extend(words(&[BASE, RAM as u64, USER, 0]));
        say(5, &memory, &[&file]);
        say(8, &halves(&[0, 8]), &[]);
        let mut places = halves(&[0, 0]);
        places.extend(words(&[USER, USER + 0x200, USER + 0x100, 0]));
        say(9, &places, &[]);
        say(12, &words(&[0]), &[&counter()]);
        say(18, &halves(&[0, 1]), &[]);
        let begin = guest.listen().is_ok();
        assert!(begin || shape & 1 != 0, "an honest VMM is refused");
    }
    for _ in 0..24 {
        if script.done() {
            break;
        }
        match script.byte() % 4 {
            0 | 1 => {
                let at = script.number(2) as usize % RAM;
                let len = usize::from(script.byte()).min(RAM - at);
                let _ = ram.slice().write_slice(script.take(len), at);
            }
            2 => {
                let request = u32::from(script.byte() % 41);
                let fds: Vec<OwnedFd> = (0..script.byte() % 4)
                    .map(|_| match script.byte() % 3 {
                        0 => counter(),
                        1 => file.try_clone().expect("a descriptor"),
                        _ => ours.try_clone().expect("a descriptor").into(),
                    })
                    .collect();
                let len = usize::from(script.byte());
                say(request, script.take(len), &fds.iter().collect::<Vec<_>>());
                if guest.listen().is_err() {
                    return;
                }
            }
            _ => {
                if !turn(&mut guest, &mut stage.pool) {
                    return;
                }
            }
        }
    }
    turn(&mut guest, &mut stage.pool);
    guest.end(Vec::new());
}
