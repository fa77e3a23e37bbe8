//! What another host has, looked at and forked with the real command and a bucket behind HTTP, while its owner goes on.

mod common;

use common::tier::Bucket;
use common::{flush, noise, read, write};
use serde_json::json;
use std::io::{Read, Write};

const BLOCK: usize = 4096;

/// Sends a write and takes the error that must come.
fn refused(pool: &common::Pool, export: &str) -> u64 {
    let mut client = pool.nbd(export);
    let request = common::wire::request(common::wire::WRITE, 0, 1, 0, BLOCK as u32);
    client.write_all(&[request, vec![1; BLOCK]].concat()).expect("the daemon listens");
    let mut header = [0; 16];
    client.read_exact(&mut header).expect("an answer");
    common::wire::be(&header[4..8])
}

#[test]
fn a_volume_is_read_and_forked_while_its_owner_goes_on() {
    let bucket = Bucket::new("readers");
    let owner = bucket.host(&["--lag=1"]);
    owner.json(&["volume", "create", "disk", "--size", "16M"]);
    let data = noise(1, 64 * BLOCK);
    let mut client = owner.nbd("disk");
    write(&mut client, 0, &data);
    flush(&mut client);
    owner.json(&["checkpoint", "create", "disk", "--wait", "remote"]);

    let other = bucket.host(&["--lag=1"]);
    let (code, said) = other.fails(&["volume", "attach", "disk"]);
    assert!(code == 4 && said.contains("--read-only"), "{said}");
    let seen = other.json(&["volume", "attach", "disk", "--read-only"]);
    assert_eq!((&seen["name"], &seen["read_only"]), (&json!("disk-ro"), &json!(true)));
    let mine = other.json(&["volume", "attach", "disk", "--as", "mine"]);
    assert_eq!((&mine["name"], &mine["read_only"]), (&json!("mine"), &json!(false)));

    // The owner has noticed nothing.
    write(&mut client, 0, &noise(2, 64 * BLOCK));
    flush(&mut client);
    owner.json(&["volume", "sync", "disk"]);

    for export in ["disk-ro", "disk-ro@v1", "mine", "mine@v1"] {
        assert!(read(&mut other.nbd(export), 0, data.len()) == data, "{export}");
    }
    assert_eq!(refused(&other, "disk-ro"), 1, "EPERM");
    for what in [&["volume", "resize", "disk-ro", "32M"][..], &["restore", "disk-ro", "v1"]] {
        let (code, said) = other.fails(what);
        assert!(code == 2 && said.contains("read-only"), "{said}");
    }
    let mut fork = other.nbd("mine");
    write(&mut fork, 0, &[7; BLOCK]);
    flush(&mut fork);
    assert!(read(&mut other.nbd("disk-ro"), 0, BLOCK) == data[..BLOCK]);

    // Said again, it is taken; another name is another moment.
    let (code, said) = other.fails(&["volume", "attach", "disk", "--read-only"]);
    assert!(code == 4 && said.contains("disk-ro"), "{said}");
    other.json(&["volume", "attach", "disk", "--read-only", "--as", "later"]);
    assert!(read(&mut other.nbd("later"), 0, data.len()) == noise(2, 64 * BLOCK));
    assert!(read(&mut client, 0, data.len()) == noise(2, 64 * BLOCK));
    let (code, said) = owner.fails(&["volume", "attach", "disk", "--as", "copy"]);
    assert!(code == 2 && said.contains("cairn fork disk copy"), "{said}");
    for name in ["disk-ro", "later"] {
        other.json(&["volume", "delete", name]);
    }
}

/// A volume becomes read-only only when nobody can be writing to it.
#[test]
fn read_only_is_set_when_nobody_writes() {
    let pool = common::Pool::serving();
    let mut client = pool.nbd("disk");
    write(&mut client, 0, &[3; BLOCK]);
    let (code, said) = pool.fails(&["volume", "set", "disk", "--read-only", "on"]);
    assert!(code == 4 && said.contains("--force"), "{said}");
    write(&mut client, 0, &[4; BLOCK]);
    let set = pool.json(&["volume", "set", "disk", "--read-only", "on", "--force"]);
    assert_eq!(set["read_only"], json!(true));
    assert_eq!(refused(&pool, "disk"), 1, "EPERM");
    assert_eq!(read(&mut pool.nbd("disk"), 0, BLOCK), [4; BLOCK]);
    pool.json(&["checkpoint", "create", "disk"]);
    pool.json(&["fork", "disk", "free"]);
    write(&mut pool.nbd("free"), 0, &[5; BLOCK]);
    pool.json(&["volume", "set", "disk", "--read-only", "off"]);
    write(&mut pool.nbd("disk"), 0, &[6; BLOCK]);
    let (code, said) = pool.fails(&["volume", "set", "disk"]);
    assert!(code == 2 && said.contains("--durability"), "{said}");
    let (code, said) = pool.fails(&["volume", "set", "disk", "--read-only", "perhaps"]);
    assert!(code == 2 && said.contains("on or off"), "{said}");
}
