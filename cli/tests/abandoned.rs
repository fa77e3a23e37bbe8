//! A deletion that a crash interrupts before the object store has heard of it: the daemon tells an operator, keeps
//! everything, and finishes it when it is told to.

mod common;

use common::slow_proxy::HttpFault;
use common::tier::Bucket;
use common::{noise, until, write};

#[test]
fn an_interrupted_deletion_is_told_and_finished_by_a_command() {
    let bucket = Bucket::new("abandoned");
    let mut pool = bucket.host(&["--lag=0.3"]);
    for name in ["disk", "other"] {
        pool.json(&["volume", "create", name, "--size", "16M"]);
        write(&mut pool.nbd(name), 0, &noise(1, 1 << 20));
        pool.json(&["volume", "sync", name]);
    }
    bucket.proxy.fail_all(Some(HttpFault::error(503, "SlowDown")));
    pool.json(&["volume", "delete", "disk"]);
    pool.end(libc::SIGKILL);
    bucket.proxy.fail_all(None);
    bucket.serve(&mut pool, &["--lag=0.3"]);
    until(&pool, "the operator is told", || pool.log().contains("cairn volume delete disk --abandoned"));
    assert_eq!(pool.volumes(), ["other"]);
    let options = bucket.options();
    let listed = || pool.json(&["volume", "list", &options[0], &options[1]]).to_string();
    assert!(listed().contains("\"disk\""), "nothing is deleted that nobody asked for: {}", listed());
    // What is here, or was never there, is not deleted by this.
    let (_, said) = pool.fails(&["volume", "delete", "other", "--abandoned"]);
    assert!(said.contains("\"other\" is not an abandoned volume"), "{said}");
    let (_, said) = pool.fails(&["volume", "delete", "nothing", "--abandoned"]);
    assert!(said.contains("no volume \"nothing\" in the object store"), "{said}");
    assert_eq!(pool.json(&["volume", "delete", "disk", "--abandoned"])["deleted"], "disk");
    assert!(!listed().contains("\"disk\"") && listed().contains("\"other\""), "{}", listed());
    // The name is free again.
    pool.json(&["volume", "create", "disk", "--size", "16M"]);
    pool.json(&["volume", "sync", "disk"]);
}
