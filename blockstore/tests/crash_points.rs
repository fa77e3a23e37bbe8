//! Every pair of operations, stopped at every call to the disk and failed at every call: see
//! `testing::sequences` for the oracle. Longer sequences are the simulator's (`cairn-sim --exhaustive`).

use blockstore::testing::sequences::{canary, crash_everywhere, fail_everywhere, sequences, OPS};

#[test]
fn pairs_of_operations_survive_power_loss_and_death_at_every_call() {
    let (mut pairs, mut points, mut images) = (0, 0, 0);
    for ops in sequences(2) {
        let (more, judged) = crash_everywhere(&ops);
        (pairs, points, images) = (pairs + 1, points + more, images + judged);
    }
    assert_eq!(pairs, OPS.len() * OPS.len());
    println!("{pairs} pairs, {points} crash points, {images} images, 0 violations");
}

#[test]
fn pairs_of_operations_survive_a_failure_of_every_call() {
    let points: u64 = sequences(2).map(|ops| fail_everywhere(&ops)).sum();
    println!("{points} injected failures, 0 violations");
}

#[test]
#[should_panic(expected = "no allowed state")]
fn canary_a_promised_change_that_is_lost_is_noticed() {
    canary();
}
