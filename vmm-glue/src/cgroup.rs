//! A control group for each VMM, where this machine and its user allow it.
//!
//! Both hierarchies of Linux are known: the unified one (v2), and one per controller (v1). Where neither can be
//! written the VMM runs without limits of its own, and the console says so.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Threads of a VMM: its processors, and its workers for disks.
const PIDS_MAX: u64 = 256;
/// What a VMM may use beside its guest's memory, bytes: translated code, buffers, its own.
const OVERHEAD: u64 = 512 << 20;
/// Microseconds over which a processor's share is counted.
const PERIOD_US: u64 = 100_000;

/// What a VMM may use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) name: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
}

/// Groups that were made; they are empty once the VMM has ended.
pub(crate) struct Group(Vec<PathBuf>);

impl Group {
    pub(crate) fn remove(self) {
        // One that is in use yet stays until the machine is started again.
        self.0.iter().for_each(|path| drop(fs::remove_dir(path)));
    }
}

impl Limits {
    /// Puts the process into groups with these limits; `folder` tells machines of one name in two pools apart.
    pub(crate) fn apply(&self, folder: &Path, pid: u32) -> std::result::Result<Group, String> {
        self.apply_at(Path::new("/sys/fs/cgroup"), folder, pid)
    }

    fn apply_at(&self, root: &Path, folder: &Path, pid: u32) -> std::result::Result<Group, String> {
        let hash = folder.as_os_str().as_encoded_bytes().iter();
        let hash =
            hash.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        let name = format!("cairn-{}-{:08x}", self.name, hash as u32);
        // One processor more than the guest has: the VMM's own threads serve its disks.
        let quota = (u64::from(self.cpus) + 1) * PERIOD_US;
        let memory = (u64::from(self.memory_mib) << 20) + OVERHEAD;
        let settings: Vec<(PathBuf, &str, String)> = if root.join("cgroup.controllers").exists() {
            let group = root.join(&name);
            vec![
                (group.clone(), "cpu.max", format!("{quota} {PERIOD_US}")),
                (group.clone(), "memory.max", memory.to_string()),
                (group, "pids.max", PIDS_MAX.to_string()),
            ]
        } else {
            vec![
                (root.join("cpu").join(&name), "cpu.cfs_quota_us", quota.to_string()),
                (root.join("memory").join(&name), "memory.limit_in_bytes", memory.to_string()),
                (root.join("pids").join(&name), "pids.max", PIDS_MAX.to_string()),
            ]
        };
        let mut made: Vec<PathBuf> = Vec::new();
        for (group, file, value) in settings {
            let outcome = fs::create_dir_all(&group)
                .and_then(|()| fs::write(group.join(file), &value))
                .and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
            if !made.contains(&group) {
                made.push(group.clone());
            }
            if let Err(e) = outcome {
                let why = format!("{}: {e}", group.join(file).display());
                Group(made).remove();
                return Err(why);
            }
        }
        Ok(Group(made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { name: "web".to_owned(), cpus: 2, memory_mib: 512 }
    }

    #[test]
    fn limits_are_written_in_the_words_of_either_hierarchy() {
        for (marker, file, value) in [(true, "cpu.max", "300000 100000"), (false, "cpu.cfs_quota_us", "300000")] {
            let root = tempfile::tempdir().expect("a folder");
            if marker {
                fs::write(root.path().join("cgroup.controllers"), "").expect("a file");
            }
            let group = limits().apply_at(root.path(), Path::new("/pool/vms/web"), 42).expect("applied");
            let found = group.0.iter().find_map(|path| fs::read_to_string(path.join(file)).ok());
            assert_eq!(found.as_deref(), Some(value));
            assert!(group
                .0
                .iter()
                .all(|path| fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pid| pid == "42")));
        }
    }

    #[test]
    fn where_groups_cannot_be_made_it_is_said_why() {
        let root = tempfile::NamedTempFile::new().expect("a file");
        let why = limits().apply_at(root.path(), Path::new("/pool"), 42).err().expect("refused");
        assert!(why.contains("cpu"), "{why}");
    }
}
