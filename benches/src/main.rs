//! `cairn-bench make DIR --mapped GIB [--scattered]` makes a pool with a volume `big` of which so
//! much is mapped, in sequence or in blocks all over it; `cairn-bench cost DIR` measures on it what the
//! store promises not to grow. Both print one JSON object. `make bench` runs them.

mod cost;
mod make;
mod thin_disk;

use std::path::Path;

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
    eprintln!("usage: cairn-bench make DIR --mapped GIB [--scattered] | cairn-bench cost DIR");
    std::process::exit(2);
}
