//! What clients have open is not taken away under them unless that is asked for by `--force`, and
//! then cleanly: what was acknowledged stays, and the same client can come back at once.

mod common;

use common::{flush, read, write, Pool};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

fn is_disconnected(client: &mut UnixStream) -> bool {
    let _ = client.write_all(&common::wire::request(common::wire::READ, 0, 1, 0, 512));
    !matches!(client.read(&mut [0; 16]), Ok(n) if n > 0)
}

#[test]
fn a_restore_asks_for_force_and_then_disconnects_cleanly() {
    let pool = Pool::serving();
    let mut client = pool.nbd("disk");
    write(&mut client, 0, &[1; 4096]);
    pool.json(&["checkpoint", "create", "disk"]);
    write(&mut client, 0, &[2; 4096]);
    let (code, said) = pool.fails(&["restore", "disk", "v1"]);
    assert!(code == 4 && said.contains("--force") && said.contains("disk (1)"), "{said}");
    assert_eq!(read(&mut client, 0, 4096), [2; 4096], "nothing has happened");
    let done = pool.json(&["restore", "disk", "v1", "--force"]);
    assert_eq!((&done["restored"], &done["undo"]), (&"v1".into(), &"auto-1".into()));
    assert!(is_disconnected(&mut client));
    let mut again = pool.nbd("disk");
    assert_eq!(read(&mut again, 0, 4096), [1; 4096]);
    assert_eq!(read(&mut pool.nbd("disk@auto-1"), 0, 4096), [2; 4096], "the restore can be undone");
    flush(&mut again);
}

#[test]
fn a_client_that_is_disconnected_is_told_what_was_not_done() {
    let pool = Pool::serving();
    pool.json(&["checkpoint", "create", "disk"]);
    // Many requests, so that some are still waiting when the command comes.
    let mut told = 0;
    for _ in 0..20 {
        let mut client = pool.nbd("disk");
        let mut control = pool.control();
        let mut sent = Vec::new();
        for i in 0..64u64 {
            sent.extend(common::wire::request(common::wire::WRITE, 1, i, i << 16, 4096));
            sent.extend([7; 4096]);
        }
        client.write_all(&sent).expect("the daemon listens");
        control.send(r#"{"op":"restore","volume":"disk","id":"v1","force":true}"#);
        let (mut answered, mut header) = (0, [0; 16]);
        while client.read_exact(&mut header).is_ok() {
            let error = common::wire::be(&header[4..8]);
            assert!(error == 0 || error == 108, "error {error}");
            told += u64::from(error == 108);
            answered += 1;
        }
        assert_eq!(control.line()["restored"], "v1");
        assert_eq!(answered, 64, "every request is answered before the end");
    }
    assert!(told > 0, "none was cut off");
}

#[test]
fn force_disconnects_nobody_when_the_command_cannot_be_carried_out() {
    let pool = Pool::serving();
    pool.json(&["checkpoint", "create", "disk"]);
    let mut client = pool.nbd("disk");
    for (args, code) in [
        (&["restore", "disk", "v9", "--force"][..], 3),
        (&["restore", "disk", "nonsense", "--force"], 2),
        (&["volume", "resize", "disk", "5", "--force"], 2),
        (&["checkpoint", "delete", "disk", "v2", "--force"], 3),
        (&["volume", "delete", "dusk", "--force"], 3),
    ] {
        assert_eq!(pool.fails(args).0, code, "{args:?}");
    }
    read(&mut client, 0, 512);
}

#[test]
fn deleting_a_volume_minds_clients_of_its_checkpoints() {
    let pool = Pool::serving();
    pool.json(&["checkpoint", "create", "disk"]);
    let mut client = pool.nbd("disk@v1");
    let (code, said) = pool.fails(&["volume", "delete", "disk"]);
    assert!(code == 4 && said.contains("disk@v1 (1)"), "{said}");
    assert_eq!(pool.fails(&["checkpoint", "delete", "disk", "v1"]).0, 4);
    pool.json(&["restore", "disk", "v1"]);
    pool.json(&["volume", "resize", "disk", "32M", "--shrink"]);
    read(&mut client, 0, 512);
    pool.json(&["volume", "delete", "disk", "--force"]);
    assert!(is_disconnected(&mut client));
    assert!(pool.volumes().is_empty());
}
