//! The real object stores keep the contract, and say what is wrong when they cannot.

#[path = "common/moto.rs"]
mod moto;

use blockstore::object::{Created, ObjectStore, Range, StoreErrorKind};
use blockstore::testing::{one_of_many_creates, store_conformance};
use moto::moto;
use nbd_server::object::{open_store, probe, FileStore, Metered, S3Store, StoreOptions};
use nbd_server::testing::{HttpFault, SlowProxy};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn keys(store: &dyn ObjectStore) -> Vec<String> {
    store.list("", None, 1000).expect("a list").into_iter().map(|entry| entry.key).collect()
}

#[test]
fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open_store(&format!("file://{}", folder.path().display()), &StoreOptions::default()).expect("a store");
    store_conformance(&*store);
    probe(&*store).expect("conditional writes work");
    let left: Vec<_> = std::fs::read_dir(folder.path().join(".tmp")).expect("a folder").collect();
    assert!(left.is_empty(), "no unfinished file stays behind: {left:?}");
}

#[test]
fn a_bucket_keeps_the_contract() {
    for (bucket, prefix) in [("whole", ""), ("part", "team/a")] {
        let store = Metered::new(moto().store(bucket, prefix));
        store_conformance(&store);
        let before = store.counts();
        probe(&store).expect("conditional writes work");
        let after = store.counts();
        assert_eq!((after.puts - before.puts, after.deletes - before.deletes), (2, 1));
        assert_eq!(after.failures, before.failures);
    }
}

#[test]
fn a_prefix_hides_what_is_beside_it() {
    let all = moto().store("beside", "");
    for key in ["a", "team", "team-b/x", "team/a/1", "team/b", "zoo"] {
        all.put(key, b"").expect("a put");
    }
    let team = S3Store::open("beside", "team", &moto().options(None)).expect("a store");
    assert_eq!(keys(&team), ["a/1", "b"]);
    assert_eq!(team.get("zoo", Range::All).expect_err("not there").kind, StoreErrorKind::NotFound);
}

/// More objects than one request lists.
#[test]
fn long_lists_come_whole() {
    let store = moto().store("long", "p");
    let names: Vec<String> = (0..1203).map(|i| format!("k/{i:04}")).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(301) {
            let store = &store;
            scope.spawn(move || part.iter().for_each(|key| store.put(key, b"x").expect("a put")));
        }
    });
    let listed = |after, max| -> Vec<String> {
        store.list("k/", after, max).expect("a list").into_iter().map(|entry| entry.key).collect()
    };
    assert_eq!(listed(None, usize::MAX), names);
    assert_eq!(listed(Some("k/0099"), 1050), names[100..1150]);
}

#[test]
fn of_many_clients_one_creates() {
    let folder = tempfile::tempdir().expect("a folder");
    let (files, bucket) = (FileStore::open(folder.path()).expect("a store"), moto().store("race", ""));
    for round in 0..20 {
        one_of_many_creates(&files, &format!("m/{round}/x"), 8);
        one_of_many_creates(&bucket, &format!("m/{round}/x"), 8);
    }
}

/// Set in the processes that `of_many_processes_one_creates` starts: the folder of the store.
const RACE: &str = "CAIRN_TEST_RACE";
const ROUNDS: usize = 200;

/// Not a test: one of the processes of the next one.
#[test]
fn one_of_many_processes() {
    let Some(folder) = std::env::var_os(RACE) else { return };
    let store = FileStore::open(folder.as_ref()).expect("a store");
    let won = (0..ROUNDS).filter(|round| {
        let made = store.put_if_absent(&format!("m{}/{round}", round % 7), &std::process::id().to_le_bytes());
        made.expect("a working store") == Created::Yes
    });
    println!("won {}", won.count());
}

#[test]
fn of_many_processes_one_creates() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = |_| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "one_of_many_processes", "--nocapture"]).env(RACE, folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a process")
    };
    let processes: Vec<_> = (0..4).map(start).collect();
    let mut won = Vec::new();
    for process in processes {
        let said = process.wait_with_output().expect("its end").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let count = said.lines().find_map(|line| line.split("won ").nth(1)?.parse::<usize>().ok());
        won.push(count.unwrap_or_else(|| panic!("no count: {said}")));
    }
    assert_eq!(won.iter().sum::<usize>(), ROUNDS, "each object was made once: {won:?}");
    assert_eq!(keys(&FileStore::open(folder.path()).expect("a store")).len(), ROUNDS);
}

#[test]
fn a_folder_that_is_gone_is_no_empty_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("mounted");
    let missing = FileStore::open(&root).map(drop).expect_err("no folder");
    assert!(missing.kind == StoreErrorKind::Invalid && missing.message.contains("mkdir -p"), "{missing}");
    std::fs::create_dir(&root).expect("a folder");
    let store = FileStore::open(&root).expect("a store");
    store.put("a", b"").expect("a put");
    std::fs::rename(&root, folder.path().join("gone")).expect("unmounted");
    let outcomes = [
        store.put("b/c", b"").err(),
        store.put_if_absent("b", b"").err(),
        store.get("a", Range::All).err(),
        store.list("", None, 1).err(),
        store.delete("a").err(),
    ];
    for outcome in outcomes {
        let error = outcome.expect("an error");
        assert!(error.kind == StoreErrorKind::Invalid && error.message.contains("mounted"), "{error}");
    }
    assert!(!root.exists(), "nothing is made in its place");
}

#[test]
fn a_folder_lists_only_objects() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = FileStore::open(folder.path()).expect("a store");
    store.put("a/b", b"").expect("a put");
    for foreign in ["a/b~", "lost+found", ".hidden", "a/.x", ".tmp/unfinished"] {
        std::fs::write(folder.path().join(foreign), b"x").expect("a file");
    }
    std::os::unix::fs::symlink("/etc", folder.path().join("etc")).expect("a link");
    assert_eq!(keys(&store), ["a/b"]);
    let clash = store.put("a", b"").expect_err("a folder of keys");
    assert!(clash.kind == StoreErrorKind::Invalid && clash.message.contains("one name"), "{clash}");
    assert_eq!(store.put_if_absent("a", b"").expect_err("the same").kind, StoreErrorKind::Invalid);
    assert_eq!(store.put("a/b/c", b"").expect_err("below an object").kind, StoreErrorKind::Invalid);
    assert_eq!(keys(&store), ["a/b"]);
}

#[test]
fn unfinished_files_of_long_ago_are_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join(".tmp")).expect("a folder");
    let (old, new) = (folder.path().join(".tmp/old"), folder.path().join(".tmp/new"));
    for path in [&old, &new] {
        std::fs::write(path, b"x").expect("a file");
    }
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    let file = std::fs::OpenOptions::new().write(true).open(&old).expect("the file");
    file.set_modified(yesterday).expect("a time");
    FileStore::open(folder.path()).expect("a store");
    assert!(!old.exists() && new.exists());
}

/// A store behind a proxy, in a bucket of its own.
fn behind_proxy(bucket: &str, change: impl FnOnce(&mut StoreOptions)) -> (SlowProxy, S3Store) {
    moto().bucket(bucket);
    let proxy = SlowProxy::start(moto().address, Duration::ZERO).expect("a proxy");
    let mut options = moto().options(Some(proxy.url()));
    change(&mut options);
    let store = S3Store::open(bucket, "", &options).expect("a store");
    (proxy, store)
}

#[test]
fn what_fails_once_is_tried_again() {
    let (proxy, store) = behind_proxy("again", |_| {});
    let body = vec![7; 100_000];
    for fault in [HttpFault::error(503, "SlowDown"), HttpFault::error(500, "InternalError"), HttpFault::DropReply] {
        proxy.fail_nth(1, fault.clone());
        store.put("a", &body).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        for again in [fault.clone(), HttpFault::CutBody] {
            proxy.fail_nth(1, again);
            assert!(store.get("a", Range::All).expect("the object") == body);
        }
        proxy.fail_nth(1, fault.clone());
        assert_eq!(keys(&store), ["a"]);
        proxy.fail_nth(1, fault);
        store.delete("a").expect("a delete");
    }
    proxy.fail_nth(1, HttpFault::error(409, "ConditionalRequestConflict"));
    proxy.fail_nth(2, HttpFault::error(409, "ConditionalRequestConflict"));
    assert_eq!(store.put_if_absent("b", b"").expect("a put"), Created::Yes);
    proxy.fail_nth(1, HttpFault::DropReply);
    assert_eq!(store.put_if_absent("c", b"mine").expect("a put"), Created::Exists, "our own, after a lost reply");
    assert_eq!(store.get("c", Range::All).expect("the object"), b"mine");
}

#[test]
fn what_goes_on_failing_is_told() {
    let (proxy, store) = behind_proxy("told", |options| options.attempts = 2);
    store.put("a", &[1; 1000]).expect("a put");
    let table = [
        (HttpFault::error(503, "SlowDown"), StoreErrorKind::Unavailable, "SlowDown"),
        (HttpFault::error(409, "ConditionalRequestConflict"), StoreErrorKind::Unavailable, "409"),
        (HttpFault::error(403, "RequestTimeTooSkewed"), StoreErrorKind::Denied, "clock"),
        (HttpFault::error(403, "InvalidAccessKeyId"), StoreErrorKind::Denied, "AWS_ACCESS_KEY_ID"),
        (HttpFault::error(404, "NoSuchBucket"), StoreErrorKind::Invalid, "bucket"),
        (HttpFault::Answer(200, "<html>a captive portal</html>".to_owned()), StoreErrorKind::Unavailable, "list"),
        (HttpFault::DropReply, StoreErrorKind::Unavailable, "check network"),
    ];
    for (fault, kind, hint) in table {
        proxy.fail_all(Some(fault.clone()));
        let error = store.list("", None, 1).expect_err("a failure");
        assert!(error.kind == kind && error.message.contains(hint), "{fault:?}: {:?} {error}", error.kind);
        if !matches!(fault, HttpFault::Answer(200, _)) {
            for error in
                [store.put_if_absent("b", b"").err(), store.get("a", Range::All).err(), store.delete("c").err()]
            {
                let error = error.unwrap_or_else(|| panic!("{fault:?}: a failure"));
                assert_eq!(error.kind, kind, "{fault:?}: {error}");
            }
        }
        proxy.fail_all(None);
    }
    proxy.fail_all(Some(HttpFault::CutBody));
    for range in [Range::All, Range::Part { offset: 0, len: 10 }] {
        let error = store.get("a", range).expect_err("half a body");
        assert!(error.kind == StoreErrorKind::Unavailable && error.message.contains("broke off"), "{error}");
    }
}

#[test]
fn a_store_that_hangs_is_given_up() {
    let (proxy, store) = behind_proxy("hang", |options| {
        (options.attempt_timeout, options.attempts) = (Duration::from_millis(300), 2);
    });
    proxy.fail_all(Some(HttpFault::Hang));
    let begin = Instant::now();
    let errors = [
        store.put("a", b"").err(),
        store.put_if_absent("a", b"").err(),
        store.get("a", Range::All).err(),
        store.list("", None, 1).err(),
        store.delete("a").err(),
    ];
    for error in errors {
        assert_eq!(error.expect("no answer").kind, StoreErrorKind::Unavailable);
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "five calls of two attempts: {:?}", begin.elapsed());
    proxy.fail_all(None);
    store.put("a", b"").expect("it answers again");
}

#[test]
fn calls_of_several_threads_run_side_by_side() {
    let (proxy, store) = behind_proxy("side", |_| {});
    store.put("a", b"x").expect("a put");
    proxy.set_latency(Duration::from_millis(200));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| store.get("a", Range::All).expect("the object"));
        }
    });
    let took = begin.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_millis(1600)).contains(&took), "{took:?}");
}

/// A server with a certificate that answers `requests` gets with `abc`; its address, and the certificate as PEM.
fn over_tls(requests: usize) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let config = Arc::new(config.expect("the key fits"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests) {
            let channel = ServerConnection::new(config.clone()).expect("TLS");
            let mut stream = BufReader::new(StreamOwned::new(channel, stream.expect("a client")));
            let mut line = String::from("-");
            while !line.trim_end().is_empty() {
                line.clear();
                // The client may not like the certificate.
                if stream.read_line(&mut line).is_err() {
                    break;
                }
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
            let _ = stream.get_mut().write_all(answer).and_then(|()| stream.get_mut().flush());
            stream.get_mut().conn.send_close_notify();
            let _ = stream.get_mut().flush();
        }
    });
    (address, made.cert.pem())
}

/// Set in the process that `certificates_are_verified` starts: the endpoint.
const TLS: &str = "CAIRN_TEST_TLS";

/// Not a test: the process of the next one.
#[test]
fn one_client_over_tls() {
    let Ok(url) = std::env::var(TLS) else { return };
    let store = S3Store::open("disks", "", &moto().options(Some(url))).expect("a store");
    assert_eq!(store.get("a", Range::All).expect("the object"), b"abc");
}

#[test]
fn certificates_are_verified() {
    let (address, certificate) = over_tls(8);
    let url = format!("https://localhost:{}", address.port());
    let store = S3Store::open("disks", "", &moto().options(Some(url.clone()))).expect("a store");
    let error = store.get("a", Range::All).expect_err("nobody vouches for this server");
    assert!(error.kind == StoreErrorKind::Unavailable && error.message.contains("certificate"), "{error}");

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), certificate).expect("written");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "one_client_over_tls"]).env(TLS, url).env("SSL_CERT_FILE", file.path());
    let out = command.stdin(Stdio::null()).output().expect("a process");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

/// Set in the process that `the_environment_is_heard` starts: the store's URL.
const CONFIGURED: &str = "CAIRN_TEST_CONFIGURED";

/// Not a test: the process of the next one.
#[test]
fn one_client_by_the_environment() {
    let Ok(url) = std::env::var(CONFIGURED) else { return };
    let store = open_store(&url, &StoreOptions::default()).expect("a store");
    store.put("a", b"abc").expect("a put");
    assert_eq!(keys(&store), ["a"]);
}

#[test]
fn the_environment_is_heard() {
    moto().bucket("env");
    let endpoint = format!("http://{}", moto().address);
    let folder = tempfile::tempdir().expect("a folder");
    let (config, keys) = (folder.path().join("config"), moto().credentials_file());
    std::fs::write(&config, format!("[profile p]\nregion = eu-west-1\nendpoint_url = {endpoint}\n")).expect("written");
    std::fs::write(folder.path().join("keys"), "[p]\naws_access_key_id = a\naws_secret_access_key = b\n")
        .expect("written");
    let (config, own_keys) = (config.display().to_string(), folder.path().join("keys").display().to_string());
    let keys = keys.display().to_string();
    let ways: [&[(&str, &str)]; 4] = [
        &[("AWS_ENDPOINT_URL", &endpoint), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")],
        &[
            ("AWS_ENDPOINT_URL_S3", &endpoint),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ],
        &[("AWS_ENDPOINT_URL", &endpoint), ("AWS_SHARED_CREDENTIALS_FILE", &keys)],
        &[("AWS_PROFILE", "p"), ("AWS_CONFIG_FILE", &config), ("AWS_SHARED_CREDENTIALS_FILE", &own_keys)],
    ];
    for (number, way) in ways.into_iter().enumerate() {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "one_client_by_the_environment"]).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.envs(way.iter().copied()).env(CONFIGURED, format!("s3://env/{number}"));
        let out = command.env("AWS_EC2_METADATA_DISABLED", "true").output().expect("a process");
        assert!(out.status.success(), "{way:?}: {}", String::from_utf8_lossy(&out.stdout));
    }
    let all = S3Store::open("env", "", &moto().options(None)).expect("a store");
    assert_eq!(self::keys(&all), ["0/a", "1/a", "2/a", "3/a"]);
}

#[test]
fn what_is_configured_wrongly_is_named() {
    let none = moto::credentials("", "");
    std::fs::write(none.path(), b"[other]\n").expect("written");
    let options = StoreOptions { credentials_file: Some(none.path().to_owned()), ..moto().options(None) };
    let error = S3Store::open("whatever", "", &options).expect("a store").put("a", b"").expect_err("no credentials");
    assert!(error.kind == StoreErrorKind::Denied && error.message.contains("AWS_ACCESS_KEY_ID"), "{error}");

    let store = S3Store::open("nobodys", "", &moto().options(None)).expect("a store");
    for error in [store.put("a", b"").err(), store.get("a", Range::All).err(), store.list("", None, 1).err()] {
        let error = error.expect("no bucket");
        assert!(error.kind == StoreErrorKind::Invalid && error.message.contains("no such bucket"), "{error}");
    }

    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let options = moto().options(Some(format!("http://{nobody}")));
    let error = S3Store::open("disks", "", &options).expect("a store").delete("a").expect_err("nobody listens");
    assert!(error.kind == StoreErrorKind::Unavailable && error.message.contains("refused"), "{error}");

    let options = moto().options(Some("http://name:secret@host".to_owned()));
    let error = S3Store::open("disks", "", &options).map(drop).expect_err("a secret in the URL");
    assert!(error.kind == StoreErrorKind::Invalid && !error.message.contains("secret@"), "{error}");
}
