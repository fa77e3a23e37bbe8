//! Buckets that are missing, closed, silent, somebody else's, damaged, or newer: the real daemon says what is wrong and
//! names the object, never panics, and goes on serving what it has. Nothing it says has a credential in it.

mod common;

use common::history::ask;
use common::slow_proxy::HttpFault;
use common::tier::{host, standing, wait_for_state, Bucket, SECRET};
use common::{noise, read, text, wire, write, Pool};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time until volumes that need nothing of the store are served.
const OPEN_TIME: Duration = Duration::from_secs(20);

fn args(bucket: &Bucket) -> Vec<String> {
    [&["serve".to_owned()][..], &bucket.options()].concat()
}

/// Nothing panicked, and nobody was told the secret.
fn is_decent(said: &str) {
    assert!(!said.contains("panicked") && !said.contains(SECRET), "{said}");
}

#[test]
fn a_store_that_cannot_be_used_at_the_start() {
    let bucket = Bucket::new("start");
    let mut pool = bucket.host(&["--lag=0.3"]);
    pool.json(&["volume", "create", "disk", "--size", "16M"]);
    write(&mut pool.nbd("disk"), 0, &noise(1, 1 << 16));
    pool.json(&["volume", "sync", "disk"]);
    pool.end(libc::SIGTERM);
    let table = [
        (HttpFault::error(404, "NoSuchBucket"), "no such bucket"),
        (HttpFault::error(403, "InvalidAccessKeyId"), "AWS_ACCESS_KEY_ID"),
        (HttpFault::error(403, "SignatureDoesNotMatch"), "credentials are wrong"),
        (HttpFault::error(403, "AccessDenied"), "den"),
        (HttpFault::error(403, "RequestTimeTooSkewed"), "clock"),
        (HttpFault::error(503, "SlowDown"), "SlowDown"),
        (HttpFault::Answer(200, "<html>welcome to this hotel</html>".to_owned()), "another version"),
        (HttpFault::DropReply, "check network"),
        (HttpFault::Hang, "check network"),
    ];
    for (fault, words) in table {
        bucket.proxy.fail_all(Some(fault.clone()));
        let (code, said) = host().fails(&args(&bucket));
        assert!(
            (code == 1 || code == 2) && said.contains(words) && said.contains("s3://start"),
            "{fault:?}: {code} {said}"
        );
        is_decent(&said);
        let begin = Instant::now();
        bucket.serve(&mut pool, &["--lag=0.3", "--log-level=debug"]);
        assert!(begin.elapsed() < OPEN_TIME, "{fault:?}: served after {:?}", begin.elapsed());
        assert_eq!(read(&mut pool.nbd("disk"), 0, 1 << 16), noise(1, 1 << 16), "{fault:?}: it is all here");
        write(&mut pool.nbd("disk"), 1 << 20, &noise(2, 4096));
        let there = standing(&pool, "disk");
        assert!(there["state"] == "unknown" && there["lag_bytes"].as_u64() >= Some(4096), "{there}");
        assert!(pool.log().contains(words), "{fault:?}: {}", pool.log());
        bucket.proxy.fail_all(None);
        wait_for_state(&pool, "disk", "owned");
        assert!(pool.end(libc::SIGTERM).success());
        is_decent(&pool.log());
    }
}

#[test]
fn no_bucket_and_no_server() {
    let missing = Bucket::missing("nowhere");
    let (code, said) = host().fails(&args(&missing));
    assert!(code == 1 && said.contains("no such bucket") && said.contains("s3://nowhere"), "{code} {said}");
    let closed = ["serve", "--object-store=s3://nowhere/x", "--s3-endpoint=http://127.0.0.1:1"];
    let (code, said) = host().fails(&closed);
    assert!(code == 1 && said.contains("127.0.0.1:1") && said.contains("check network"), "{code} {said}");
    is_decent(&said);
    for url in ["s3:/x", "s3://", "http://x", "file://relative", "file:///no/such/folder", "s3://UPPER_case/x"] {
        let (code, said) = host().fails(&["serve", "--object-store", url]);
        assert!(code == 2 || code == 1, "{url}: {code} {said}");
        is_decent(&said);
    }
}

/// A folder as a store with the volumes `disk` and `other`, whose host is lost.
fn store_of_a_lost_host(more: &[&str]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("--object-store=file://{}", folder.path().display());
    let mut pool = host();
    pool.serve(&[&[url.as_str(), "--lag=0.3"], more].concat());
    for (seed, name) in (1..).zip(["disk", "other"]) {
        pool.json(&["volume", "create", name, "--size", "64M"]);
        write(&mut pool.nbd(name), 0, &noise(seed, 1 << 20));
        pool.json(&["volume", "sync", name]);
        write(&mut pool.nbd(name), 1 << 20, &noise(seed + 10, 1 << 20));
        pool.json(&["checkpoint", "create", name, "--wait", "remote"]);
    }
    pool.end(libc::SIGKILL);
    (folder, url)
}

fn files(below: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(below).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    found.sort();
    found
}

/// The newest manifest of `disk`.
fn manifest(store: &Path) -> PathBuf {
    files(&store.join("volumes/disk")).remove(0)
}

/// The data objects of `disk`, the first volume of the only pool.
fn objects(store: &Path) -> Vec<PathBuf> {
    files(&files(&store.join("objects")).remove(0).join("1"))
}

fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("an object");
    how(&mut bytes);
    fs::write(path, bytes).expect("an object");
}

/// A manifest of a version that nobody knows yet, whole in every other way.
fn from_the_future(manifest: &mut [u8]) {
    manifest[8] = 99;
    let bytes = manifest.iter().enumerate().map(|(i, byte)| if (12..16).contains(&i) { 0 } else { *byte });
    let crc = bytes.fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    manifest[12..16].copy_from_slice(&(!crc).to_le_bytes());
}

type Harm = (&'static str, fn(&Path), &'static str);

const HARMS: [Harm; 15] = [
    ("manifest cut", |s| change(&manifest(s), |b| b.truncate(b.len() - 9)), "volumes/disk/"),
    ("manifest empty", |s| change(&manifest(s), Vec::clear), "volumes/disk/"),
    ("manifest's magic flipped", |s| change(&manifest(s), |b| b[0] ^= 1), "volumes/disk/"),
    ("manifest's checksum flipped", |s| change(&manifest(s), |b| b[12] ^= 1), "volumes/disk/"),
    ("manifest's length flipped", |s| change(&manifest(s), |b| b[22] ^= 0x80), "volumes/disk/"),
    ("manifest's body flipped", |s| change(&manifest(s), |b| b[60] ^= 1), "volumes/disk/"),
    (
        "manifest of another",
        |s| drop(fs::copy(files(&s.join("volumes/other")).remove(0), manifest(s))),
        "volumes/disk/",
    ),
    ("manifest from the future", |s| change(&manifest(s), |b| from_the_future(b)), "99"),
    ("manifest is a photo", |s| fs::write(manifest(s), noise(7, 5000)).expect("a file"), "volumes/disk/"),
    ("directories flipped", |s| objects(s).iter().for_each(|o| change(o, |b| b[40] ^= 1)), "objects/"),
    ("directories' lengths flipped", |s| objects(s).iter().for_each(|o| change(o, |b| b[16] ^= 1)), "objects/"),
    (
        "frames flipped",
        |s| objects(s).iter().for_each(|o| change(o, |b| *b.last_mut().expect("a byte") ^= 1)),
        "objects/",
    ),
    ("objects cut", |s| objects(s).iter().for_each(|o| change(o, |b| b.truncate(b.len() - 5))), "objects/"),
    ("objects empty", |s| objects(s).iter().for_each(|o| change(o, Vec::clear)), "objects/"),
    ("objects lost", |s| objects(s).iter().for_each(|o| fs::remove_file(o).expect("an object")), "objects/"),
];

/// Whether all of `disk` reads as it was written; wrong bytes are never returned.
fn reads_well(pool: &Pool) -> bool {
    let mut client = pool.nbd("disk");
    [(0u64, 1), (1 << 20, 11)].into_iter().all(|(offset, seed)| {
        let all = (0..16u64).map(|part| {
            let bytes = wire::request(wire::READ, 0, 9, offset + (part << 16), 1 << 16);
            let done = ask(&mut client, &bytes, 9).expect("an answer");
            let wanted = &noise(seed, 1 << 20)[(part as usize) << 16..][..1 << 16];
            assert!(
                !done || wire::take(&mut client, 1 << 16).expect("data") == wanted,
                "wrong bytes are never returned"
            );
            done
        });
        all.filter(|done| !done).count() == 0
    })
}

#[test]
fn damaged_objects_are_named_and_others_go_on() {
    let (pristine, _) = store_of_a_lost_host(&[]);
    // Side by side: attaching may have to wait until the lost host's time is over.
    for some in HARMS.chunks(5) {
        std::thread::scope(|scope| {
            some.iter().for_each(|harm| drop(scope.spawn(|| suffer(pristine.path(), *harm))));
        });
    }
}

/// A new host with a damaged copy of the store.
fn suffer(pristine: &Path, (what, harm, words): Harm) {
    let folder = tempfile::tempdir().expect("a folder");
    let from = format!("{}/.", text(pristine));
    let copied = std::process::Command::new("cp").args(["-a", &from, text(folder.path())]).status();
    assert!(copied.expect("cp").success());
    harm(folder.path());
    let mut pool = host();
    pool.serve(&[&format!("--object-store=file://{}", folder.path().display()), "--lag=0.3"]);
    pool.json(&["volume", "attach", "other", "--takeover"]);
    let out = pool.run(&["volume", "attach", "disk", "--takeover"]);
    let mut said = String::from_utf8_lossy(&out.stderr).into_owned();
    let well = out.status.success() && reads_well(&pool);
    said += &pool.log();
    assert!(!well, "{what}: all of it was read");
    assert!(said.contains(words), "{what}: nobody names the object: {said}");
    is_decent(&said);
    assert_eq!(read(&mut pool.nbd("other"), 0, 1 << 20), noise(2, 1 << 20), "{what}: the other volume goes on");
    write(&mut pool.nbd("other"), 0, &noise(3, 4096));
    pool.json(&["volume", "sync", "other"]);
    assert!(pool.end(libc::SIGTERM).success(), "{what}");
}

#[test]
fn a_store_of_somebody_else_or_of_the_future() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("--object-store=file://{}", folder.path().display());
    fs::write(folder.path().join("letters"), "dear").expect("a file");
    let (code, said) = host().fails(&["serve", &url]);
    assert!(code == 1 && said.contains("letters") && said.contains("something else"), "{code} {said}");
    let (folder, url) = store_of_a_lost_host(&[]);
    fs::write(folder.path().join("cairn"), "cairn object store, version 99\n").expect("a file");
    let (code, said) = host().fails(&["serve", &url]);
    assert!(code == 1 && said.contains("another version"), "{code} {said}");
}

#[test]
fn wrong_and_missing_keys() {
    let keys = tempfile::tempdir().expect("a folder");
    let path = |name: &str, bytes: &[u8]| {
        fs::write(keys.path().join(name), bytes).expect("a key");
        fs::set_permissions(keys.path().join(name), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("a mode");
        format!("--key-file={}", keys.path().join(name).display())
    };
    let (right, wrong, short) =
        (path("right", &noise(1, 32)), path("wrong", &noise(2, 32)), path("short", &noise(3, 5)));
    let (folder, url) = store_of_a_lost_host(&[&right]);
    let plain = noise(1, 1 << 20);
    let leaked = |file: &PathBuf| fs::read(file).expect("an object").windows(64).any(|w| w == &plain[..64]);
    assert!(!objects(folder.path()).iter().any(leaked), "objects are encrypted");
    let (code, said) = host().fails(&["serve", &url, &short]);
    assert!(code == 2 && said.contains("short"), "{code} {said}");
    for (key, words) in [(Some(&wrong), "key"), (None, "give --key-file")] {
        let mut pool = host();
        pool.serve(
            &[&[url.as_str(), "--lag=0.3"][..], &key.map(String::as_str).into_iter().collect::<Vec<_>>()].concat(),
        );
        let (code, said) = pool.fails(&["volume", "attach", "disk", "--takeover"]);
        assert!(code != 0 && said.contains(words), "{key:?}: {code} {said}");
        assert!(pool.volumes().is_empty(), "nothing came of it");
        is_decent(&pool.log());
    }
    let mut pool = host();
    pool.serve(&[&url, &right]);
    pool.json(&["volume", "attach", "disk", "--takeover"]);
    assert!(reads_well(&pool), "the right key still opens it");
}

/// A store that fails while a volume of it is read: an error for its client, and for nobody else.
#[test]
fn an_attached_volume_whose_store_fails() {
    let bucket = Bucket::new("fails");
    let mut first = bucket.host(&["--lag=0.3"]);
    first.json(&["volume", "create", "disk", "--size", "64M"]);
    write(&mut first.nbd("disk"), 0, &noise(1, 1 << 20));
    first.json(&["volume", "detach", "disk"]);
    first.end(libc::SIGTERM);
    let mut pool = bucket.host(&["--lag=0.3"]);
    pool.json(&["volume", "attach", "disk"]);
    pool.json(&["volume", "create", "local", "--size", "16M"]);
    bucket.proxy.fail_all(Some(HttpFault::error(403, "InvalidAccessKeyId")));
    let mut client: UnixStream = pool.nbd("disk");
    assert!(
        !ask(&mut client, &wire::request(wire::READ, 0, 9, 1 << 19, 4096), 9).expect("an answer"),
        "it is not here"
    );
    write(&mut pool.nbd("local"), 0, &noise(2, 4096));
    assert!(pool.log().contains("AWS_ACCESS_KEY_ID"), "{}", pool.log());
    bucket.proxy.fail_all(None);
    assert_eq!(
        read(&mut pool.nbd("disk"), 0, 1 << 16),
        noise(1, 1 << 20)[..1 << 16],
        "it is read when the store works"
    );
    assert!(pool.end(libc::SIGTERM).success());
    is_decent(&pool.log());
}
