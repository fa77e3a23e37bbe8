//! Ways to reach the disk and the sockets, side by side: the system calls that the store makes, io_uring,
//! tokio-uring (`docs/decisions/0013-io-uring.md` draws the conclusions).
//!
//! Promises: all ways of one piece of work run in turns, round after round, each preceded by a sync and in a
//! thread of its own; the first way is the store's own, to which the ratios are.

mod bench;
mod plain;
mod ring;
mod socket;
mod tokio;

use bench::{Bench, Others, Run};
use serde_json::{json, Value};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Many short rounds instead of a few long ones: whatever else disturbs the disk then meets all ways, and the
/// median leaves it out. An odd number, for the median.
const ROUNDS: usize = 15;

type Way = (&'static str, fn(&Bench) -> io::Result<Run>);

const URING: &str = "io_uring";
const POLLED: &str = "io_uring, SQPOLL";
const TOKIO: &str = "tokio-uring";

const WORK: &[(&str, &[Way])] = &[
    (
        "log append, 8 KiB, q1",
        &[
            ("pwritev", plain::append),
            (URING, ring::append_one),
            (POLLED, ring::append_one_polled),
            (TOKIO, tokio::append_one),
        ],
    ),
    (
        "log append, 8 KiB, q32",
        &[
            ("one pwritev, one header", plain::append_batch),
            ("one pwritev, 32 headers", plain::append_together),
            ("32 pwritev", plain::append),
            (URING, ring::append_many),
            (POLLED, ring::append_many_polled),
            (TOKIO, tokio::append_many),
        ],
    ),
    (
        "8 KiB append + fdatasync",
        &[
            ("pwritev, fdatasync", plain::flush),
            ("pwritev, sync_file_range, fdatasync", plain::flush_started),
            ("pwritev, fdatasync by another thread", plain::flush_worker),
            ("io_uring, linked", ring::flush),
            (TOKIO, tokio::flush),
        ],
    ),
    (
        "4 KiB cached random read, q1",
        &[("pread", plain::read), (URING, ring::read_one), (POLLED, ring::read_one_polled), (TOKIO, tokio::read_one)],
    ),
    (
        "4 KiB cached random read, q32",
        &[
            ("32 pread", plain::read),
            (URING, ring::read_many),
            (POLLED, ring::read_many_polled),
            (TOKIO, tokio::read_many),
        ],
    ),
    ("1 MiB write, cached", &[("pwritev", plain::long), (URING, ring::long), (TOKIO, tokio::long)]),
    (
        "1 MiB write, to the disk",
        &[
            ("pwritev, sync_file_range", plain::long_started),
            ("O_DIRECT pwritev", plain::long_direct),
            ("O_DIRECT io_uring, 4 in flight", ring::long_direct),
        ],
    ),
    (
        "4 KiB echo, 1 in flight",
        &[
            ("epoll, asking for 50 us", socket::epoll_one_spinning),
            ("io_uring, asking for 50 us", socket::ring_one_spinning),
            ("epoll", socket::epoll_one),
            (URING, socket::ring_one),
            (TOKIO, socket::tokio_one),
        ],
    ),
    (
        "4 KiB echo, 32 in flight",
        &[
            ("epoll, asking for 50 us", socket::epoll_many_spinning),
            ("io_uring, asking for 50 us", socket::ring_many_spinning),
            ("epoll", socket::epoll_many),
            (URING, socket::ring_many),
            (TOKIO, socket::tokio_many),
        ],
    ),
];

/// Measures everything in a new folder within `folder`, which it removes; `slot` per way and round.
pub fn measure(folder: &Path, slot: Duration) -> blockstore::Result<Value> {
    let scratch = folder.join("cairn-bench-io");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::create_dir(&scratch))
        .and_then(|()| {
            let found = Bench::new(&scratch, slot).and_then(|bench| rounds(&bench));
            std::fs::remove_dir_all(&scratch)?;
            found
        })
        .map_err(|e| blockstore::Error::io("measuring", e))
}

fn rounds(bench: &Bench) -> io::Result<Value> {
    let (others, mut work) = (Others::start(), Vec::new());
    for (name, ways) in WORK {
        let mut found: Vec<Vec<Run>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for ((_, way), runs) in ways.iter().zip(&mut found) {
                runs.extend(once(bench, *way)?);
            }
        }
        let rows: Vec<Value> = ways.iter().zip(&found).map(|((way, _), runs)| row(way, runs, &found[0])).collect();
        work.push(json!({"work": name, "ways": rows}));
    }
    Ok(json!({
        "kernel": kernel(),
        "file_system": bench.file_system()?,
        "rounds": ROUNDS,
        "slot_s": bench.slot.as_secs_f64(),
        "others_cores": others.cores(),
        "work": work,
    }))
}

/// One measurement; `None` if the kernel has no such thing or does not let us have it.
fn once(bench: &Bench, way: fn(&Bench) -> io::Result<Run>) -> io::Result<Option<Run>> {
    bench.file.sync_data()?;
    let run = std::thread::scope(|scope| scope.spawn(|| way(bench)).join());
    match run.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EINVAL)) => Ok(None),
        run => run.map(Some),
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut ordered: Vec<f64> = values.collect();
    ordered.sort_by(f64::total_cmp);
    ordered.get(ordered.len() / 2).copied()
}

/// Medians of the rounds, and how far apart they were; the ratio is the median of the rounds' own.
fn row(way: &str, runs: &[Run], first: &[Run]) -> Value {
    let us = || runs.iter().map(|run| run.us);
    json!({
        "way": way,
        "us": median(us()),
        "low_us": us().reduce(f64::min),
        "high_us": us().reduce(f64::max),
        "cpu_us": median(runs.iter().map(|run| run.cpu_us)),
        "to_first": median(runs.iter().zip(first).map(|(run, first)| run.us / first.us)),
        "kernel_workers": runs.iter().map(|run| run.workers).max(),
    })
}

/// The kernel's version, without what its builder added.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().split('-').next().unwrap_or_default().to_owned()
}
