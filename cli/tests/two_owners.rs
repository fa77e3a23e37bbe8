//! P8 across hosts, with real processes: a host is paused or goes on while another takes its volume over. What the old
//! one does later is in no state that anybody can attach, it stops serving the volume by itself, and says so.
//!
//! From the answer to the taking over on the old host acknowledges nothing, unless it is cut off from the bucket: then it serves
//! on, and acknowledges everything but flushes of a `remote` volume. What it had acknowledged before and not put into the
//! bucket is lost with it, unless a flush of a `remote` volume covered it.

mod common;

use common::history::{read_stamps, History, BLOCK, BLOCKS};
use common::slow_proxy::HttpFault;
use common::tier::{take_over, wait_for_state, Bucket};
use common::{noise, wire, Pool};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LAG: &str = "--lag=1";
/// Between two writes, so that a volume is not overwritten too often to tell.
const PAUSE: Duration = Duration::from_millis(1);

/// A client of one side: its history, and when what was answered.
struct Side {
    history: History,
    writes: Vec<Instant>,
    flushes: Vec<Instant>,
}

impl Side {
    fn new(history: History) -> Self {
        Self { history, writes: Vec::new(), flushes: Vec::new() }
    }

    /// Writes and flushes until something is refused or `over`; whether something was refused.
    fn write_on(&mut self, mut disk: UnixStream, seed: u64, over: &AtomicBool) -> bool {
        let mut seed = seed << 32;
        while !over.load(Ordering::SeqCst) {
            seed += 1;
            let number = wire::be(&noise(seed, 8));
            if !self.history.change(&mut disk, number).unwrap_or(false) {
                return true;
            }
            self.writes.push(Instant::now());
            if number.is_multiple_of(50) {
                if !self.history.flush(&mut disk).unwrap_or(false) {
                    return true;
                }
                self.flushes.push(Instant::now());
            }
            thread::sleep(PAUSE);
        }
        false
    }
}

fn after(moments: &[Instant], moment: Instant) -> usize {
    moments.iter().filter(|at| **at > moment).count()
}

/// The old host, with the volume `disk` of this durability in the bucket.
fn owner(bucket: &Bucket, durability: &str) -> Pool {
    let pool = bucket.host(&[LAG]);
    pool.json(&["volume", "create", "disk", "--size", &(BLOCKS as usize * BLOCK).to_string()]);
    pool.json(&["volume", "create", "beside", "--size", "1M"]);
    pool.json(&["volume", "set", "disk", "--durability", durability]);
    pool.json(&["volume", "sync", "disk"]);
    pool
}

/// What becomes of the old host while its volume is taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Old {
    Paused,
    Alive,
    CutOff,
}

/// A taking over while the old host writes; the acknowledged writes and flushes of both sides after it.
fn contest(bucket: &Bucket, durability: &str, fate: Old) -> [(usize, usize); 2] {
    let way = bucket.again();
    let (old, new) = (owner(&way, durability), bucket.host(&[LAG]));
    let (mut first, mut second) = (Side::new(History::new()), None);
    let (old_disk, never, over) = (old.nbd("disk"), AtomicBool::new(false), AtomicBool::new(false));
    let mut taken = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| first.write_on(old_disk, 1, &never));
        thread::sleep(Duration::from_millis(700));
        match fate {
            Old::Paused => old.signal(libc::SIGSTOP),
            Old::Alive => {}
            Old::CutOff => way.proxy.fail_all(Some(HttpFault::DropReply)),
        }
        take_over(&new, "disk");
        taken = Instant::now();
        let base = read_stamps(&mut new.nbd("disk")).expect("what the first client wrote");
        let side = second.insert(Side::new(History::of(base)));
        let new_disk = new.nbd("disk");
        let side = scope.spawn(|| side.write_on(new_disk, 2, &over));
        thread::sleep(Duration::from_millis(300));
        match fate {
            Old::Paused => old.signal(libc::SIGCONT),
            Old::Alive => {}
            Old::CutOff => way.proxy.fail_all(None),
        }
        assert!(first.join().expect("a client"), "the old host's client is told");
        wait_for_state(&old, "disk", "fenced");
        thread::sleep(Duration::from_millis(1500));
        over.store(true, Ordering::SeqCst);
        assert!(!side.join().expect("a client"), "nothing is refused by the new owner");
    });
    let second = second.as_mut().expect("a second client");
    let counts = [
        (after(&first.writes, taken), after(&first.flushes, taken)),
        (after(&second.writes, taken), after(&second.flushes, taken)),
    ];
    the_old_host_has_stopped(&old);
    new.json(&["volume", "sync", "disk"]);
    second.history.must_survive(second.history.acknowledged);
    let third = bucket.host(&[LAG]);
    take_over(&third, "disk");
    let found =
        second.history.audit(&mut third.nbd("disk")).expect("the new owner's volume, and nothing of the old one's");
    assert_eq!(found.lost, 0);
    counts
}

/// Whether a new client gets as far as to write.
fn is_served(host: &Pool) -> bool {
    let mut disk = UnixStream::connect(host.path("nbd.sock")).expect("the daemon accepts");
    disk.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
    let opened = wire::greet(&mut disk).and_then(|()| wire::ask(&mut disk, 7, &wire::named("disk", &[0, 0])));
    opened.is_ok_and(|replies| replies.last().is_some_and(|reply| reply.0 == 1))
        && History::new().change(&mut disk, 1).unwrap_or(false)
}

fn the_old_host_has_stopped(old: &Pool) {
    let (code, said) = old.fails(&["volume", "sync", "disk"]);
    assert!(code == 1 && said.contains("disk"), "{code} {said}");
    let (_, said) = old.fails(&["checkpoint", "create", "disk"]);
    assert!(said.contains("pool"), "{said}");
    assert!(!is_served(old), "a new client is refused, too");
    let log = old.log();
    let told = |line: &&str| line.contains("ERROR") && line.contains("volume=\"disk\"");
    assert_eq!(log.lines().filter(told).count(), 1, "told once: {log}");
    assert!(!log.contains("panicked"), "{log}");
    common::write(&mut old.nbd("beside"), 0, &[1; 4096]);
    old.json(&["volume", "sync", "beside"]);
}

#[test]
fn the_loser_stops_and_leaves_no_trace() {
    let table = [
        ("paused", "local", Old::Paused),
        ("alive", "local", Old::Alive),
        ("cut-off", "local", Old::CutOff),
        ("paused-remote", "remote", Old::Paused),
        ("alive-remote", "remote", Old::Alive),
        ("cut-off-remote", "remote", Old::CutOff),
    ];
    for some in table.chunks(3) {
        thread::scope(|scope| some.iter().for_each(|case| drop(scope.spawn(|| settle(*case)))));
    }
}

/// One contest: who was answered.
fn settle((bucket, durability, fate): (&'static str, &str, Old)) {
    let [(old_writes, old_flushes), (new_writes, new_flushes)] = contest(&Bucket::new(bucket), durability, fate);
    println!(
        "{bucket}: acknowledged after the taking over: {old_writes} writes and {old_flushes} flushes by the old host, \
         {new_writes} and {new_flushes} by the new one"
    );
    assert!(new_writes > 0 && new_flushes > 0, "the new owner works");
    assert!(old_writes == 0 || fate == Old::CutOff, "{bucket}: never both");
    assert!(old_flushes == 0 || fate == Old::CutOff && durability == "local", "{bucket}: never both");
}
