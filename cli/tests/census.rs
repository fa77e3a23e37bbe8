//! What lives of an attached volume is counted by the daemon, by itself, and exactly.

mod common;

use common::{flush, noise, until, wire, write, Pool};
use std::io::Write;

const MIB: u64 = 1 << 20;

#[test]
fn an_attached_volume_is_counted_and_gives_back_what_is_dead() {
    let (mut first, mut second) = (Pool::new(), Pool::new());
    let url = format!("file://{}", first.path("store").display());
    std::fs::create_dir(first.path("store")).expect("a folder");
    first.serve(&["--object-store", &url, "--lag", "0.2"]);
    first.json(&["volume", "create", "disk", "--size", "1G"]);
    let mut client = first.nbd("disk");
    for part in 0..6 {
        (4 * part..4 * part + 4).for_each(|i| write(&mut client, i * MIB, &noise(i + 1, MIB as usize)));
        flush(&mut client);
        first.json(&["volume", "sync", "disk"]);
    }
    drop(client);
    first.json(&["volume", "detach", "disk"]);
    second.serve(&["--object-store", &url, "--lag", "0.2"]);
    second.json(&["volume", "attach", "disk"]);
    let live = |pool: &Pool| pool.json(&["stats"])["live_bytes"].as_u64().expect("bytes");
    until(&second, "what lives is counted", || live(&second) == 24 * MIB);
    let mut client = second.nbd("disk");
    client.write_all(&wire::request(wire::TRIM, 0, 5, 0, 20 * MIB as u32)).expect("a trim is sent");
    assert_eq!(wire::simple(&mut client, 5).expect("a reply"), 0);
    until(&second, "what was trimmed is dead", || live(&second) == 4 * MIB);
    second.json(&["volume", "sync", "disk"]);
    drop(client);
    // It is known after a restart, too; and then, before all else, is looked for what the store need not keep.
    assert!(second.end(libc::SIGTERM).success());
    second.serve(&["--object-store", &url, "--lag", "0.2"]);
    assert_eq!(live(&second), 4 * MIB);
    let named = |pool: &Pool| pool.json(&["volume", "info", "disk"])["object_bytes"].as_u64().expect("bytes");
    until(&second, "the store forgets it, too", || named(&second) < 6 * MIB);
    let report = second.json(&["check"]);
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
}
