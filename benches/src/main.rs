//! `cairn-bench make DIR --mapped GIB [--scattered]` makes a pool with a volume `big` of which so
//! much is mapped, in sequence or in blocks all over it; `cairn-bench cost DIR` measures on it what the
//! store promises not to grow; `cairn-bench io DIR [--seconds N]` compares ways to reach the disk and the
//! sockets, N seconds each per round. All print one JSON object. `make bench` runs them.

mod cost;
mod io;
mod make;
mod thin_disk;

use std::path::Path;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["make", folder, "--mapped", gib, rest @ ..] => match (gib.parse(), rest) {
            (Ok(gib), []) => make::make(Path::new(folder), gib, false),
            (Ok(gib), ["--scattered"]) => make::make(Path::new(folder), gib, true),
            _ => return usage(),
        },
        ["cost", folder] => cost::measure(Path::new(folder)),
        ["io", folder, rest @ ..] => match rest {
            [] => io::measure(Path::new(folder), Duration::from_millis(200)),
            ["--seconds", seconds] => match seconds.parse().map(Duration::try_from_secs_f64) {
                Ok(Ok(slot)) => io::measure(Path::new(folder), slot),
                _ => return usage(),
            },
            _ => return usage(),
        },
        _ => return usage(),
    };
    match done {
        Ok(figures) => println!("{figures}"),
        Err(e) => {
            eprintln!("cairn-bench: {e}");
            std::process::exit(1);
        }
    }
}

fn usage() {
    eprintln!("usage: cairn-bench make DIR --mapped GIB [--scattered] | cost DIR | io DIR [--seconds N]");
    std::process::exit(2);
}
