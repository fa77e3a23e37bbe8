//! How much slower an honest client is answered while another one misbehaves:
//! `cargo bench -p nbd-server --bench hostile_p99`; a word behind `--` picks the attacks whose names contain
//! it. Attackers, daemon and honest client share the machine's cores, so the figures contain the
//! attackers' own computing.
//!
//! Machines drift: before every attack the client is measured alone, all takes turns for some rounds, and each
//! figure is the median of the rounds, the ratio that of the rounds' own ratios.

#[path = "../tests/common/mod.rs"]
mod common;

use common::attack::{during, Attack, ATTACKS};
use common::honest::Honest;
use common::Daemon;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const ROUNDS: usize = 7;
const REQUESTS: usize = 4_000;

/// p50, p99 and max.
type Times = [Duration; 3];

fn percentiles(honest: &mut Honest<UnixStream>) -> Times {
    honest.times.clear();
    (0..REQUESTS).for_each(|_| honest.turn());
    honest.times.sort_unstable();
    [50, 99, 100].map(|p| honest.times[(REQUESTS * p / 100).min(REQUESTS - 1)])
}

fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("comparable"));
    values[values.len() / 2]
}

/// One line: medians, and the worst of all maxima. Each pair is a time alone and the one behind it.
fn show(name: &str, pairs: &[(Times, Times)]) {
    let of = |i: usize| median(pairs.iter().map(|(_, found)| found[i])).as_micros();
    let max = pairs.iter().map(|(_, found)| found[2].as_micros()).max().unwrap_or_default();
    let ratio = median(pairs.iter().map(|(alone, found)| found[1].as_secs_f64() / alone[1].as_secs_f64()));
    println!("| {name} | {} | {} | {max} | {ratio:.2} |", of(0), of(1));
}

fn main() {
    let daemon = Daemon::start();
    let mut honest = Honest::new(daemon.connect());
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut attacks: Vec<(&str, Attack)> = ATTACKS.into_iter().filter(|(name, _)| name.contains(&only)).collect();
    // Tells what of a ratio is the machine's.
    attacks.push(("none, again", |_, _| ()));
    percentiles(&mut honest);
    let mut found: Vec<Vec<(Times, Times)>> = vec![Vec::new(); attacks.len()];
    for _ in 0..ROUNDS {
        for ((_, attack), found) in attacks.iter().zip(&mut found) {
            let alone = percentiles(&mut honest);
            found.push((alone, during(*attack, 1, &daemon.socket(), || percentiles(&mut honest))));
        }
    }
    println!("| attack | p50 us | p99 us | max us | p99 / alone |\n|---|---|---|---|---|");
    let alone: Vec<(Times, Times)> = found.iter().flatten().map(|(alone, _)| (*alone, *alone)).collect();
    show("none", &alone);
    attacks.iter().zip(&found).for_each(|((name, _), pairs)| show(name, pairs));
}
