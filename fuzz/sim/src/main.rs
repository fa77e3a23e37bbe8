//! `cairn-sim`: long histories of a pool that keeps crashing. See the library for what is checked.
//!
//! The status is 0 if nothing was found, 1 after a violation, 2 if the arguments make no sense. With
//! `--canary` it is 0 if the planted defect was found and 1 if it was not.

use blockstore::testing::sequences::{crash_everywhere, fail_everywhere, sequences};
use cairn_sim::{run, Plan, Report};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str =
    "usage: cairn-sim [--seed S] [--minutes N | --count HISTORIES] [--ops N] [--json] [--canary] [--verbose] | --exhaustive N

  --seed S      first seed (1); the next histories have the seeds after it
  --minutes N   begin histories for so long (1)
  --count N     run so many histories instead
  --ops N       operations per history (by seed, 1000 to 10000)
  --json        one JSON object instead of lines
  --exhaustive N  instead: all sequences of N operations, stopped and failed at every disk call
  --canary      plant a defect (syncs that do nothing), which must be found
  --verbose     print every operation";

struct Arguments {
    plan: Plan,
    minutes: f64,
    count: Option<u64>,
    json: bool,
    exhaustive: Option<u32>,
}

fn arguments() -> Option<Arguments> {
    let plan = Plan { seed: 1, operations: None, canary: false, verbose: false };
    let mut found = Arguments { plan, minutes: 1.0, count: None, json: false, exhaustive: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => found.plan.seed = words.next()?.parse().ok()?,
            "--minutes" => found.minutes = words.next()?.parse().ok()?,
            "--count" => found.count = Some(words.next()?.parse().ok()?),
            "--ops" => found.plan.operations = Some(words.next()?.parse().ok()?),
            "--exhaustive" => found.exhaustive = Some(words.next()?.parse().ok()?),
            "--json" => found.json = true,
            "--canary" => found.plan.canary = true,
            "--verbose" => found.plan.verbose = true,
            _ => return None,
        }
    }
    Some(found)
}

/// A violation is a panic, and the status that of a panic.
fn every_sequence(len: u32) -> ExitCode {
    let begin = Instant::now();
    let (mut workloads, mut points, mut images, mut failures) = (0, 0, 0, 0);
    for ops in sequences(len) {
        let (more, judged) = crash_everywhere(&ops);
        (workloads, points, images) = (workloads + 1, points + more, images + judged);
        failures += fail_everywhere(&ops);
    }
    println!(
        "{workloads} sequences of {len}, {points} crash points, {images} images, {failures} injected failures, \
         0 violations, {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let Some(Arguments { mut plan, minutes, count, json, exhaustive }) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Some(len) = exhaustive {
        return every_sequence(len);
    }
    let begin = Instant::now();
    let (first, mut sum) = (plan.seed, Report::default());
    loop {
        sum.add(run(plan));
        plan.seed += 1;
        let done = match count {
            Some(count) => plan.seed - first >= count,
            None => begin.elapsed() >= Duration::from_secs_f64(minutes * 60.0),
        };
        if done || !sum.violations.is_empty() {
            break;
        }
    }
    sum.elapsed = begin.elapsed();
    if json {
        println!("{}", sum.json());
    } else {
        println!("seeds                  {first} to {}\n{}", plan.seed - 1, sum.text());
        for found in &sum.violations {
            println!("see it again: cairn-sim --seed {} --count 1 --verbose", found.seed);
        }
    }
    let good = sum.violations.is_empty() != plan.canary;
    ExitCode::from(u8::from(!good))
}
