//! How much slower an honest client is answered while another one misbehaves:
//! `cargo bench -p nbd-server --bench hostile_p99`; a word behind `--` picks the attacks whose names contain
//! it. Attackers, daemon and honest client share the machine's cores, so the figures contain the
//! attackers' own computing.

#[path = "../tests/common/mod.rs"]
mod common;

use common::attack::{during, ATTACKS};
use common::honest::Honest;
use common::Daemon;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const REQUESTS: usize = 20_000;

fn percentiles(honest: &mut Honest<UnixStream>) -> [Duration; 3] {
    honest.times.clear();
    (0..REQUESTS).for_each(|_| honest.turn());
    honest.times.sort_unstable();
    [50, 99, 100].map(|p| honest.times[(REQUESTS * p / 100).min(REQUESTS - 1)])
}

fn main() {
    let daemon = Daemon::start();
    let mut honest = Honest::new(daemon.connect());
    percentiles(&mut honest);
    println!("| attack | p50 us | p99 us | max us | p99 / alone |\n|---|---|---|---|---|");
    let show = |name: &str, found: [Duration; 3], alone: Duration| {
        let [p50, p99, max] = found.map(|d| d.as_micros());
        println!("| {name} | {p50} | {p99} | {max} | {:.2} |", found[1].as_secs_f64() / alone.as_secs_f64());
    };
    let mut alone = percentiles(&mut honest);
    show("none", alone, alone[1]);
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    for (name, attack) in ATTACKS.into_iter().filter(|(name, _)| name.contains(&only)) {
        show(name, during(attack, 1, &daemon.socket(), || percentiles(&mut honest)), alone[1]);
    }
    alone = percentiles(&mut honest);
    show("none, again", alone, alone[1]);
}
