//! How a VMM reaches a volume.
//!
//! Invariant: the format is stated, and it is raw: a guest that writes the header of another format into its disk
//! finds it there as bytes, and no file of the host in its place (CVE-2026-27211 is what happens otherwise).

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::path::PathBuf;

/// Seconds that a guest's requests wait for a storage daemon that is being restarted, before they fail.
const RECONNECT_S: u32 = 120;

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// An export of an NBD server on a Unix socket.
    Nbd {
        /// The socket; an absolute path.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
}

impl Disk {
    /// QEMU's arguments for the root disk.
    pub fn qemu_arguments(&self) -> Vec<String> {
        let Disk::Nbd { socket, export } = self;
        let file = json!({
            "driver": "nbd",
            "server": {"type": "unix", "path": socket},
            "export": export,
            "reconnect-delay": RECONNECT_S,
        });
        let node: Value = json!({
            "driver": "raw", "node-name": "disk", "discard": "unmap", "detect-zeroes": "off",
            "cache": {"direct": true, "no-flush": false}, "file": file,
        });
        let device = "virtio-blk-pci,drive=disk,serial=cairn,discard=on,write-zeroes=on".to_owned();
        vec!["-blockdev".to_owned(), node.to_string(), "-device".to_owned(), device]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_declared_raw_whatever_its_names_say() {
        let disk = Disk::Nbd { socket: "/run/a,b\"c.sock".into(), export: "x,driver=qcow2".to_owned() };
        let arguments = disk.qemu_arguments();
        let node: Value = serde_json::from_str(&arguments[1]).expect("JSON, so that no name can add an option");
        assert_eq!(node["driver"], "raw");
        assert_eq!(node["file"]["driver"], "nbd");
        assert_eq!(node["file"]["export"], "x,driver=qcow2");
        assert_eq!(node["file"]["server"]["path"], "/run/a,b\"c.sock");
    }
}
