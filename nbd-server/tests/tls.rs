//! TLS with a real client: who is let in, who is not, and that nothing goes around it.

mod common;

use common::{wire, Daemon};
use nbd_server::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self(Issuer::new(params, key), pem)
    }

    /// Writes `NAME-cert.pem` and `NAME-key.pem`.
    fn issue(&self, folder: &Path, name: &str) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        fs::write(folder.join(format!("{name}-cert.pem")), certificate.pem()).expect("a file");
        fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem()).expect("a file");
    }
}

/// A folder as libnbd wants it: the server's authority, and perhaps a client's certificate.
fn client_folder(parent: &Path, name: &str, trusts: &Authority, from: Option<&Authority>) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("ca-cert.pem"), &trusts.1).expect("a file");
    if let Some(authority) = from {
        authority.issue(&folder, "client");
    }
    folder
}

struct Site {
    daemon: Daemon,
    folder: tempfile::TempDir,
    ours: Authority,
}

fn files(folder: &Path) -> TlsFiles {
    let path = |name: &str| folder.join(name);
    TlsFiles { cert: path("server-cert.pem"), key: path("server-key.pem"), client_ca: Some(path("ca.pem")) }
}

fn assert_refused(out: &Output) {
    assert!(!out.status.success() && out.stdout.is_empty());
    let why = String::from_utf8_lossy(&out.stderr);
    assert!(why.contains("gnutls"), "it is the TLS handshake that fails: {why}");
}

fn site() -> Site {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new();
    ours.issue(folder.path(), "server");
    fs::write(folder.path().join("ca.pem"), &ours.1).expect("a file");
    let tls = Tls::load(&files(folder.path())).expect("the files fit");
    let daemon = Daemon::with(&["127.0.0.1:0"], Some(tls)).expect("the daemon starts");
    Site { daemon, folder, ours }
}

impl Site {
    fn port(&self) -> u16 {
        self.daemon.tcp[0].port()
    }

    fn nbdsh(&self, certificates: &Path, script: &str) -> Output {
        let uri = format!("nbds://localhost:{}/disk?tls-certificates={}", self.port(), certificates.display());
        let mut command = Command::new("timeout");
        // The system's own Python is the one that libnbd's module belongs to.
        let connect = format!("h.set_uri_allow_local_file(True)\nh.connect_uri('{uri}')");
        command.env("PATH", "/usr/bin:/bin").args(["30", "nbdsh", "-c", &connect, "-c", script]);
        command.output().expect("nbdsh runs")
    }

    /// A TCP client that has not started TLS.
    fn plain(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.daemon.tcp[0]).expect("the daemon accepts");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        wire::greet(&mut stream).expect("a greeting");
        stream
    }
}

#[test]
fn a_client_with_a_certificate_of_ours_reads_what_it_wrote() {
    let site = site();
    let folder = client_folder(site.folder.path(), "good", &site.ours, Some(&site.ours));
    let script = "import os
d = os.urandom(3 << 20)
h.pwrite(d, 12345)
h.flush()
assert h.pread(len(d), 12345) == d
big = b'x' * (32 << 20)
h.pwrite(big, 32 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(len(big), 32 << 20) == big
assert h.get_tls_negotiated()
assert h.get_structured_replies_negotiated()
print('all is well')";
    let out = site.nbdsh(&folder, script);
    assert!(String::from_utf8_lossy(&out.stdout).contains("all is well"), "{}", String::from_utf8_lossy(&out.stderr));
    let uri = format!("nbds://localhost:{}/?tls-certificates={}", site.port(), folder.display());
    let list = Command::new("timeout").args(["30", "nbdinfo", "--list", &uri]).output().expect("nbdinfo runs");
    assert!(String::from_utf8_lossy(&list.stdout).contains("export=\"disk\""));
}

#[test]
fn a_client_of_a_foreign_authority_is_refused() {
    let site = site();
    let folder = client_folder(site.folder.path(), "foreign", &site.ours, Some(&Authority::new()));
    let out = site.nbdsh(&folder, "print(h.get_size())");
    assert_refused(&out);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let site = site();
    let folder = client_folder(site.folder.path(), "nobody", &site.ours, None);
    let out = site.nbdsh(&folder, "print(h.get_size())");
    assert_refused(&out);
}

#[test]
fn cve_2024_7383_a_client_that_trusts_another_authority_turns_away() {
    let site = site();
    let folder = client_folder(site.folder.path(), "wary", &Authority::new(), Some(&site.ours));
    let out = site.nbdsh(&folder, "print(h.get_size())");
    assert_refused(&out);
}

#[test]
fn cve_2019_14842_there_is_no_way_around_tls() {
    let site = site();
    let uri = format!("nbd://localhost:{}/disk", site.port());
    let out = Command::new("timeout").args(["30", "nbdinfo", "--size", &uri]).output().expect("nbdinfo runs");
    assert!(!out.status.success() && out.stdout.is_empty());
    for (kind, data) in [(3, Vec::new()), (6, wire::named("disk", &[0, 0])), (7, wire::named("disk", &[0, 0]))] {
        let replies = wire::ask(&mut site.plain(), kind, &data).expect("an answer");
        assert_eq!(replies[0].0, 1 << 31 | 5, "TLS_REQD");
    }
    let mut old = site.plain();
    old.write_all(&wire::option(1, b"disk")).expect("EXPORT_NAME is sent");
    assert_eq!(old.read(&mut [0; 64]).unwrap_or(0), 0, "the old way in is closed without an answer");
    let plain = Command::new("timeout")
        .args(["30", "nbdinfo", "--size", &format!("nbd+unix:///disk?socket={}", site.daemon.socket().display())])
        .output()
        .expect("nbdinfo runs");
    assert_eq!(String::from_utf8_lossy(&plain.stdout).trim(), common::DISK_BYTES.to_string(), "Unix stays plain");
}

#[test]
fn cve_2021_3716_a_request_injected_behind_starttls_is_never_carried_out() {
    let site = site();
    let mut stream = site.plain();
    let injected = [wire::option(5, &[]), wire::option(8, &[]), wire::option(7, &wire::named("disk", &[0, 0]))];
    stream.write_all(&injected.concat()).expect("sent at once");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "no acknowledgement, and nothing in plain text");
}

#[test]
fn rubbish_in_place_of_a_tls_handshake_ends_that_client_only() {
    let site = site();
    for _ in 0..20 {
        let mut stream = site.plain();
        let replies = wire::ask(&mut stream, 5, &[]).expect("an answer");
        assert_eq!(replies[0].0, 1);
        stream.write_all(&[0x55; 4096]).expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "an alert at most");
    }
    let folder = client_folder(site.folder.path(), "good", &site.ours, Some(&site.ours));
    let out = site.nbdsh(&folder, "print(h.get_size())");
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), common::DISK_BYTES.to_string());
}

#[test]
fn a_listener_beyond_loopback_needs_tls() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let error = Daemon::with(&[address], None).err().expect("refused");
        assert!(error.to_string().contains("--tls-cert"), "the error says what to do: {error}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new();
    ours.issue(folder.path(), "server");
    fs::write(folder.path().join("ca.pem"), &ours.1).expect("a file");
    let tls = Tls::load(&files(folder.path())).expect("the files fit");
    assert!(Daemon::with(&["0.0.0.0:0"], Some(tls)).is_ok());
}

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new();
    ours.issue(folder.path(), "server");
    ours.issue(folder.path(), "other");
    fs::write(folder.path().join("ca.pem"), "not a certificate").expect("a file");
    let error = |files: &TlsFiles| Tls::load(files).err().expect("refused").to_string();
    let good = TlsFiles { client_ca: None, ..files(folder.path()) };
    assert!(Tls::load(&good).is_ok());
    assert!(error(&files(folder.path())).contains("ca.pem"));
    assert!(error(&TlsFiles { key: folder.path().join("absent.pem"), ..good.clone() }).contains("absent.pem"));
    assert!(error(&TlsFiles { key: folder.path().join("other-key.pem"), ..good }).contains("server-cert.pem"));
}
