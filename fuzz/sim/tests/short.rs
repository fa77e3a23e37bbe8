//! A short form of the simulator for every commit, and what makes its long form worth anything: the
//! same seed gives the same run, and a planted defect is found.

use cairn_sim::{run, Plan, Report};

fn plan(seed: u64, operations: u64) -> Plan {
    Plan { seed, operations: Some(operations), canary: false, verbose: false }
}

#[test]
fn two_hundred_histories_without_a_violation() {
    let mut sum = Report::default();
    (1..=200).for_each(|seed| sum.add(run(plan(seed, 150))));
    println!("{}", sum.text());
    assert!(sum.violations.is_empty(), "{}", sum.text());
    assert!(sum.power_losses > 200 && sum.kills > 50 && sum.crashes_in_recovery > 50, "{}", sum.text());
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 77, 1234] {
        let (one, two) = (run(plan(seed, 400)), run(plan(seed, 400)));
        assert_eq!((one.trace, one.operations), (two.trace, two.operations), "seed {seed}");
        assert_ne!(one.trace, run(plan(seed + 1, 400)).trace, "seed {seed}: the trace says nothing");
    }
}

#[test]
fn canary_a_disk_that_lies_about_syncs_is_found_out() {
    // Long enough for each to lose power with something unsynced: short ones may be killed only.
    let found = (1..=5).filter(|seed| !run(Plan { canary: true, ..plan(*seed, 1000) }).violations.is_empty());
    assert_eq!(found.count(), 5);
}
