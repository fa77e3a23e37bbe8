//! An S3 server of its own for a test program: `scripts/moto`, which ends with the program.

use nbd_server::object::{S3Store, StoreOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The server; it lives as long as the other end of its standard input, that is, as this process.
pub struct Moto {
    pub address: SocketAddr,
    credentials: tempfile::NamedTempFile,
    _server: Child,
}

pub fn moto() -> &'static Moto {
    static MOTO: OnceLock<Moto> = OnceLock::new();
    MOTO.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/moto");
        let mut server =
            Command::new(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("scripts/moto");
        let mut url = String::new();
        BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut url).expect("its URL");
        let address = url.trim().strip_prefix("http://").and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("scripts/moto did not start: {url:?}"));
        let credentials = credentials("test", "test");
        Moto { address, credentials, _server: server }
    })
}

/// A credentials file.
pub fn credentials(id: &str, secret: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    file.write_all(text.as_bytes()).expect("written");
    file
}

impl Moto {
    /// Makes a bucket; moto wants no signature.
    pub fn bucket(&self, name: &str) {
        let mut stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
        let head = "HTTP/1.1\r\nHost: s3.amazonaws.com\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("PUT /{name} {head}").as_bytes()).expect("heard");
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status).expect("an answer");
        assert!(status.contains(" 200 "), "a bucket is made: {status}");
    }

    /// Options for this server, or for a proxy of it.
    pub fn options(&self, endpoint: Option<String>) -> StoreOptions {
        StoreOptions {
            endpoint: Some(endpoint.unwrap_or_else(|| format!("http://{}", self.address))),
            region: Some("us-east-1".to_owned()),
            credentials_file: Some(self.credentials_file()),
            ..StoreOptions::default()
        }
    }

    pub fn credentials_file(&self) -> PathBuf {
        self.credentials.path().to_owned()
    }

    /// The store `s3://BUCKET/PREFIX` in a bucket that is made for it.
    pub fn store(&self, bucket: &str, prefix: &str) -> S3Store {
        self.bucket(bucket);
        S3Store::open(bucket, prefix, &self.options(None)).expect("a store")
    }
}
