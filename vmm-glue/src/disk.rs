//! How a VMM reaches a volume.
//!
//! Invariant: the format is stated, and it is raw: a guest that writes the header of another format into its disk
//! finds it there as bytes, and no file of the host in its place (CVE-2026-27211 is what happens otherwise).

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Seconds that a guest's requests wait for a storage daemon that is being restarted, before they fail.
const RECONNECT_S: u32 = 120;

/// How a VMM can reach a volume. Memory that was saved with one can only be loaded with the same: the guest's memory and
/// its disk are other devices with the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Through a socket; of machines that were made before there was another one.
    #[default]
    Nbd,
    /// Out of the guest's memory.
    VhostUser,
}

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
    /// A vhost-user socket.
    VhostUser {
        /// The socket.
        socket: PathBuf,
    },
}

/// Queues of a guest's disk at most: more processors share them.
const QUEUES_MAX: u32 = 8;
/// What the daemon needs to see of a guest's memory.
const SHARED_MEMORY: &str = "memory";

impl Disk {
    /// What QEMU's machine type has to be told.
    pub fn machine_option(&self) -> String {
        match self {
            Disk::Nbd { .. } => String::new(),
            Disk::VhostUser { .. } => format!(",memory-backend={SHARED_MEMORY}"),
        }
    }

    /// QEMU's arguments for the root disk of a guest with so many processors and so much memory.
    pub fn qemu_arguments(&self, cpus: u32, memory_mib: u32) -> Vec<String> {
        match self {
            Disk::Nbd { socket, export } => nbd_arguments(socket, export),
            Disk::VhostUser { socket } => vhost_arguments(socket, cpus, memory_mib),
        }
    }
}

fn vhost_arguments(socket: &Path, cpus: u32, memory_mib: u32) -> Vec<String> {
    let memory = json!({
        "qom-type": "memory-backend-memfd", "id": SHARED_MEMORY, "size": u64::from(memory_mib) << 20, "share": true,
    });
    // A comma would begin an option; a doubled one means itself. Requests wait for as long as it takes.
    let path = socket.to_string_lossy().replace(',', ",,");
    let queues = cpus.clamp(1, QUEUES_MAX);
    vec![
        "-object".to_owned(),
        memory.to_string(),
        "-chardev".to_owned(),
        format!("socket,id=disk,path={path},reconnect=1"),
        "-device".to_owned(),
        format!("vhost-user-blk-pci,chardev=disk,num-queues={queues}"),
    ]
}

fn nbd_arguments(socket: &Path, export: &str) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_declared_raw_whatever_its_names_say() {
        let disk = Disk::Nbd { socket: "/run/a,b\"c.sock".into(), export: "x,driver=qcow2".to_owned() };
        let arguments = disk.qemu_arguments(1, 256);
        let node: Value = serde_json::from_str(&arguments[1]).expect("JSON, so that no name can add an option");
        assert_eq!(node["driver"], "raw");
        assert_eq!(node["file"]["driver"], "nbd");
        assert_eq!(node["file"]["export"], "x,driver=qcow2");
        assert_eq!(node["file"]["server"]["path"], "/run/a,b\"c.sock");
    }

    #[test]
    fn a_name_adds_no_option_to_a_disk_in_shared_memory() {
        let disk = Disk::VhostUser { socket: "/run/a,server=on.sock".into() };
        let arguments = disk.qemu_arguments(64, 256);
        assert_eq!(arguments[3], "socket,id=disk,path=/run/a,,server=on.sock,reconnect=1");
        assert!(arguments[1].contains("\"share\":true") && arguments[1].contains("268435456"));
        assert!(arguments[5].ends_with("num-queues=8"), "{arguments:?}");
        assert_eq!(disk.machine_option(), ",memory-backend=memory");
    }
}
