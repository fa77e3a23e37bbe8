//! Import, export, check and scrub, with a daemon on the pool and without: the same result, nothing
//! half done under its final name, and no disturbance of clients.

mod common;

use common::{damage, noise, read, text, write, Pool};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const IMAGE_BYTES: u64 = (48 << 20) + 17;

/// Data at both ends, zeros in a stored stretch, the rest a hole; no multiple of 4096 long.
fn image(path: &Path) {
    let file = File::create_new(path).expect("an image");
    file.write_all_at(&noise(1, 3 << 20), 12_345).expect("data");
    file.write_all_at(&[0; 1 << 20], 20 << 20).expect("zeros");
    file.write_all_at(&noise(2, 100_017), IMAGE_BYTES - 100_017).expect("a tail");
}

fn round_trip(pool: &Pool, name: &str) {
    let (source, copy) = (pool.path("image"), pool.path(name));
    let made = pool.json(&["volume", "import", text(&source), name]);
    assert_eq!(made["file_bytes"], IMAGE_BYTES);
    assert_eq!(made["size_bytes"], IMAGE_BYTES.next_multiple_of(4096));
    let used = pool.json(&["volume", "info", name])["mapped_bytes"].as_u64().expect("bytes");
    assert!(used < 4 << 20, "zeros and holes take no space: {used}");
    pool.json(&["checkpoint", "create", name]);
    pool.json(&["volume", "export", &format!("{name}@v1"), text(&copy)]);
    let (mut want, got) = (fs::read(&source).expect("the image"), fs::read(&copy).expect("the copy"));
    want.resize(IMAGE_BYTES.next_multiple_of(4096) as usize, 0);
    assert!(want == got, "the copy differs");
    assert!(fs::metadata(&copy).expect("the copy").blocks() * 512 < 8 << 20, "the copy is sparse");
    assert_eq!(pool.json(&["check"])["problems"], serde_json::json!([]));
    let scrubbed = pool.json(&["scrub", name]);
    assert_eq!(scrubbed["damaged"], serde_json::json!([]));
    assert_eq!(scrubbed["blocks"].as_u64().expect("a number") * 4096, used);
}

#[test]
fn an_image_comes_back_as_it_was_with_a_daemon_and_without() {
    let mut pool = Pool::new();
    image(&pool.path("image"));
    round_trip(&pool, "alone");
    pool.serve(&[]);
    let mut client = pool.nbd("alone");
    round_trip(&pool, "served");
    assert_eq!(read(&mut client, 12_345 + 4096, 512), noise(1, 3 << 20)[4096..4608], "clients stay connected");
    assert_eq!(pool.volumes(), ["alone", "served"], "nothing temporary is left");
}

#[test]
fn an_import_whose_caller_ends_leaves_nothing() {
    let pool = Pool::serving();
    let mut control = pool.control();
    let begun = control.ask(r#"{"op":"import","volume":"new","size_bytes":1048576}"#);
    assert_eq!(begun["export"], "new.importing");
    assert!(pool.volumes().contains(&"new.importing".to_owned()), "it can be seen while it runs");
    let (code, said) = pool.fails(&["volume", "import", CARGO_TOML, "new"]);
    assert!(code == 4 && said.contains("new.importing"), "a second import is told of the first: {said}");
    drop(control);
    while pool.volumes() != ["disk"] {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    pool.json(&["volume", "import", CARGO_TOML, "new"]);
}

const CARGO_TOML: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

#[test]
fn an_import_cut_off_by_a_kill_is_no_volume_of_that_name() {
    let mut pool = Pool::serving();
    let mut control = pool.control();
    control.ask(r#"{"op":"import","volume":"new","size_bytes":1048576}"#);
    pool.end(libc::SIGKILL);
    pool.serve(&[]);
    assert_eq!(pool.volumes(), ["disk", "new.importing"], "the name tells what it is");
    pool.json(&["volume", "delete", "new.importing"]);
}

#[test]
fn an_export_of_a_head_is_the_state_of_one_moment() {
    let pool = Pool::serving();
    let mut client = pool.nbd("disk");
    write(&mut client, 0, &[1; 8192]);
    let mut control = pool.control();
    let begun = control.ask(r#"{"op":"export","volume":"disk"}"#);
    let mut export = pool.nbd(begun["export"].as_str().expect("a name"));
    write(&mut client, 4096, &[2; 4096]);
    assert_eq!(read(&mut export, 0, 8192), [1; 8192]);
    assert_eq!(read(&mut client, 4096, 4096), [2; 4096]);
}

#[test]
fn a_scrub_beside_clients_finds_a_damaged_block_and_only_that() {
    let mut pool = Pool::serving();
    let data = noise(3, 1 << 20);
    write(&mut pool.nbd("disk"), 1 << 20, &data);
    pool.end(libc::SIGTERM);
    assert_eq!(pool.json(&["scrub"])["blocks"], 256);
    damage(&pool.pool(), &data[8192..8256]);
    pool.serve(&[]);
    let mut client = pool.nbd("disk");
    for args in [&["--json", "scrub"][..], &["scrub", "disk", "--json"]] {
        let out = pool.run(args);
        assert_eq!(out.status.code(), Some(5));
        let answer: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!((answer["damaged"].as_array().map(Vec::len), &answer["blocks"]), (Some(1), &256.into()));
    }
    assert_eq!(read(&mut client, 1 << 20, 8192), data[..8192], "what is whole is served");
    let (code, said) = pool.fails(&["volume", "export", "disk", text(&pool.path("copy"))]);
    assert!(code == 1 && said.contains("damaged"), "{said}");
    assert!(!pool.path("copy").exists() && !pool.path("copy.part").exists(), "no half copy is left");
}

#[test]
fn sources_that_cannot_be_imported_are_refused_before_a_volume_is_made() {
    let pool = Pool::serving();
    File::create(pool.path("empty")).expect("a file");
    for (file, code) in [("empty", 2), ("missing", 3), ("pool", 2)] {
        let (got, said) = pool.fails(&["volume", "import", text(&pool.path(file)), "new"]);
        assert!(got == code && said.contains(file), "{file}: {got} {said}");
    }
    assert_eq!(pool.volumes(), ["disk"]);
}

#[test]
fn a_file_in_another_format_is_refused_with_what_to_do_unless_its_bytes_are_meant() {
    let pool = Pool::serving();
    for (at, magic, name) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        (0, b"KDMV", "VMDK"),
        (0, b"vhdxfile", "VHDX"),
        (64, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
    ] {
        let file = File::create(pool.path("image")).expect("a file");
        file.set_len(8192).expect("a length");
        file.write_all_at(magic, at).expect("a magic");
        let image = pool.path("image");
        let args = ["volume", "import", text(&image), "new"];
        let (code, said) = pool.fails(&args);
        assert!(code == 2 && said.contains(name) && said.contains("qemu-img convert -O raw"), "{code} {said}");
        pool.json(&[&args[..], &["--raw"]].concat());
        pool.json(&["volume", "delete", "new"]);
    }
    let (code, said) = pool.fails(&["volume", "import", "-", "new"]);
    assert!(code == 2 && said.contains("nbdcopy"), "{code} {said}");
}

#[test]
fn an_image_that_ends_within_a_block_is_said_to_be_padded() {
    let pool = Pool::serving();
    fs::write(pool.path("odd"), noise(1, 5000)).expect("a file");
    fs::write(pool.path("even"), noise(1, 8192)).expect("a file");
    let said = |name: &str| {
        let out = pool.run(&["volume", "import", text(&pool.path(name)), name]);
        assert!(out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(said("odd").contains("3192 zero bytes"));
    assert_eq!(said("even"), "");
}

#[test]
fn an_export_to_standard_output_is_the_image_and_nothing_else() {
    let mut pool = Pool::new();
    image(&pool.path("image"));
    pool.json(&["volume", "import", text(&pool.path("image")), "disk"]);
    let mut want = fs::read(pool.path("image")).expect("the image");
    want.resize(IMAGE_BYTES.next_multiple_of(4096) as usize, 0);
    for daemon in [false, true] {
        if daemon {
            pool.serve(&[]);
        }
        let out = pool.run(&["volume", "export", "disk", "-"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stdout == want, "daemon: {daemon}: {} bytes", out.stdout.len());
    }
    assert!(!Path::new("-").exists() && !Path::new("-.part").exists());
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let mut pool = Pool::new();
    pool.json(&["volume", "create", "disk", "--size", "1G"]);
    pool.serve(&[]);
    let mut client = pool.nbd("disk");
    (0..160).for_each(|i| write(&mut client, i << 20, &noise(i + 1, 1 << 20)));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut interrupted = false;
        for _ in 0..50 {
            let copy = pool.path("copy");
            let args = ["volume", "export", "disk", text(&copy)];
            let mut export = pool.command(&args).stdout(std::process::Stdio::null()).spawn().expect("cairn runs");
            while !pool.path("copy.part").exists() && export.try_wait().expect("a child").is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            // SAFETY: a plain system call; the child has not been waited for.
            unsafe { libc::kill(export.id() as i32, signal) };
            let status = export.wait().expect("a child");
            let _ = fs::remove_file(pool.path("copy"));
            assert!(!pool.path("copy.part").exists(), "{status}");
            interrupted |= status.code() == Some(128 + signal);
            if interrupted {
                break;
            }
        }
        assert!(interrupted, "signal {signal} never came in time");
    }
    while pool.volumes() != ["disk"] {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
