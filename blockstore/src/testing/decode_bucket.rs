//! Any bytes as what lies in a bucket: sealed objects, wrapped keys, keys of pins and manifests, directories, frames,
//! manifests, and a whole volume that a pool attaches. For the fuzzer and the replay of its corpus.
//!
//! What must hold: no panic, no allocation beyond a small multiple of the input's own size; whatever is accepted is the
//! same after being written and read again; nothing is accepted that was changed after it was sealed.

use super::decode::{frame, manifest, manifest_body, object_directory, renumbered_page};
use super::{sim_tier, SimClock, SimDisk, SimStore};
use crate::format::codec::seal_checksum;
use crate::format::manifest::{manifest_key, Manifest};
use crate::format::MANIFEST_VERSION;
use crate::object::testing::{pin_again, place_again, resealed, rewrapped};
use crate::object::{check_bucket, list_volumes, sweep, ObjectStore};
use crate::{Cleaning, Pool, PoolOptions};
use std::sync::Arc;

/// Bytes that are read of each state of an attached volume.
const READ_MAX: usize = 64 << 10;

/// Reads `input`. Its first byte chooses the structure, and in its top bit whether a checksum is set right first.
pub fn decode_bucket(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let seal = choice & 0x80 != 0;
    match choice & 0x7f {
        0 => sealed(bytes),
        1 => wrapped_key(bytes, seal),
        2 => key(bytes),
        3 => object_directory(bytes, seal),
        4 => frame(bytes),
        5 => manifest(bytes, seal),
        6 => manifest_body(bytes),
        7 => renumbered_page(bytes, seal),
        _ => {
            attach_manifest(bytes);
        }
    }
}

/// The first four bytes say what is changed in the object that is sealed: a byte's place (three) and its new value.
fn sealed(bytes: &[u8]) {
    let Some((&[a, b, c, value], body)) = bytes.split_first_chunk::<4>() else { return };
    let at = u32::from_le_bytes([a, b, c, 0]) as usize;
    let name = "objects/any/1/1";
    assert_eq!(resealed(name, body, &mut |_| {}).as_deref(), Some(body));
    let mut differs = false;
    let changed = resealed(name, body, &mut |sealed| {
        let len = sealed.len();
        if value == 0 {
            // Cut instead: nothing that is shorter is whole.
            sealed.truncate(at % len);
            differs = true;
        } else if let Some(byte) = sealed.get_mut(at % len) {
            *byte ^= value;
            differs = true;
        }
    });
    assert!(!differs || changed.is_none(), "what was changed is accepted");
    // As it is, it was sealed by nobody.
    assert_eq!(resealed(name, &[], &mut |sealed| *sealed = body.to_vec()), None);
}

fn wrapped_key(bytes: &[u8], seal: bool) {
    let mut bytes = bytes.to_vec();
    if seal {
        seal_checksum(&mut bytes, 12);
    }
    rewrapped(&bytes);
}

fn key(bytes: &[u8]) {
    let Ok(key) = std::str::from_utf8(bytes) else { return };
    for again in [pin_again(key), place_again(key)].into_iter().flatten() {
        assert_eq!(again, key, "a key says one thing only");
    }
}

/// A bucket with this manifest in it, without its objects: looked through, and attached by a pool. Whether it was.
pub fn attach_manifest(body: &[u8]) -> bool {
    let Ok(mut found) = Manifest::from_body(body, MANIFEST_VERSION) else { return false };
    // Nothing would be attached without the objects of the tail.
    found.tail.clear();
    let store = SimStore::new(1);
    let client = store.client("somebody");
    let put = found.encode().expect("what was read can be written");
    if client.put(&manifest_key(&found.name, found.number), &put).is_err() {
        return false;
    }
    let _ = list_volumes(&client);
    let _ = check_bucket(&client, true, &mut |_, _| true);
    let _ = sweep(&client, 1 << 60, 0, true);
    let (disk, clock) = (SimDisk::new(), Arc::new(SimClock::default()));
    Pool::create(&disk.handle(), &*clock, [9; 16]).expect("a pool");
    let options = PoolOptions { map_cache: 1 << 20, anchor_bytes: 256 << 10 };
    let tier = sim_tier(&store, "host");
    let (mut pool, _) = Pool::open_with(disk.handle(), clock.clone(), options, Some(tier.clone())).expect("opens");
    let Ok(job) = pool.attach_job(&found.name, true) else { return false };
    let Ok(id) = job.run().and_then(|()| pool.attached(job)) else { return false };
    let _ = pool.anchor(Cleaning::Busy);
    clock.advance_us(1 << 30);
    while super::tier_step(&mut pool).unwrap_or(false) {}
    let names: Vec<_> = pool.checkpoints(id).into_iter().flatten().map(|checkpoint| Some(checkpoint.name)).collect();
    for view in [None].into_iter().chain(names) {
        let Ok(view) = pool.view(id, view) else { continue };
        let len = pool.view_size(view).unwrap_or(0).min(READ_MAX as u64) as usize;
        let _ = pool.read(view, 0, &mut vec![0; len]);
    }
    // Whatever it was, the pool opens again.
    drop(pool);
    let opened = Pool::open_with(disk.after_kill().handle(), clock, options, Some(tier));
    assert!(opened.is_ok(), "a pool that attached it does not open: {:?}", opened.err());
    true
}
