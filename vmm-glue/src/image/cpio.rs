//! Archives of the form that a kernel takes as its first file system ("newc").
//!
//! Invariant: the same entries make the same bytes: no times, no owners but root, numbers in order.

const MODE_FILE: u32 = 0o100_000;
const MODE_FOLDER: u32 = 0o040_000;

/// An archive that grows.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08X}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn folder(&mut self, name: &str) {
        self.entry(name, MODE_FOLDER | 0o755, &[]);
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, MODE_FILE | mode, data);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn busybox_unpacks_what_was_packed() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/tool", 0o755, b"#!/bin/sh\n");
        archive.file("empty", 0o600, b"");
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("busybox");
        command.args(["cpio", "-id"]).current_dir(folder.path()).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("busybox runs");
        child.stdin.take().expect("a pipe").write_all(&archive.finish()).expect("written");
        assert!(child.wait().expect("a child").success());
        assert_eq!(std::fs::read(folder.path().join("bin/tool")).expect("a file"), b"#!/bin/sh\n");
        assert!(folder.path().join("empty").exists());
    }
}
