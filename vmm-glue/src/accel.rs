//! Whether guests run on KVM or are translated: tried, not assumed.
//!
//! `/dev/kvm` may open and a stock kernel still hang on it: with the module `kvm_pvm` the BIOS runs and the kernel
//! never prints a line. So a kernel is booted to user space once for each boot of this machine, with a deadline.

use crate::files::{read_json, write_json};
use crate::qemu::{command, Incoming, Settings};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a kernel may take to user space under KVM; a second is usual.
const PROBE: Duration = Duration::from_secs(8);
/// What the first program of our guests prints.
pub(crate) const MARK: &str = "cairn: user space";

/// How a guest's processors are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By this machine's own.
    Kvm,
    /// By translation: anywhere, and slower by an order of magnitude.
    Tcg,
}

impl Accel {
    /// `kvm` or `tcg`.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// What was found, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What guests are started with.
    pub accel: Accel,
    /// Why, for a person.
    pub why: String,
    /// The boot of this machine for which it holds.
    boot: String,
}

impl Probe {
    /// What to use. `known` keeps what was found; `guest` is a kernel and initrd of ours to try with, without which
    /// KVM is not used.
    ///
    /// # Errors
    /// `CAIRN_ACCEL` is neither `kvm` nor `tcg`.
    pub fn find(known: &Path, guest: Option<(&Path, &Path)>) -> Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let found = |accel, why: &str| Self { accel, why: why.to_owned(), boot: boot.clone() };
        match std::env::var("CAIRN_ACCEL").as_deref() {
            Ok("kvm") => return Ok(found(Accel::Kvm, "CAIRN_ACCEL says so")),
            Ok("tcg") => return Ok(found(Accel::Tcg, "CAIRN_ACCEL says so")),
            Ok("") | Err(_) => {}
            Ok(other) => return Err(Error::new(Kind::Invalid, format!("CAIRN_ACCEL={other:?}: use kvm or tcg"))),
        }
        let tcg = |why: &str| Ok(found(Accel::Tcg, why));
        if let Err(e) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            return tcg(&format!("/dev/kvm cannot be used: {e}"));
        }
        if Path::new("/sys/module/kvm_pvm").exists() {
            return tcg("/dev/kvm is there, but of the module kvm_pvm, on which stock kernels hang");
        }
        if let Some(before) = read_json::<Self>(known).ok().filter(|before| before.boot == boot) {
            return Ok(before);
        }
        let Some((kernel, initrd)) = guest else {
            return tcg("/dev/kvm is there and was not tried: that needs an image (cairn image build tiny)");
        };
        let tried = match reaches_user_space(kernel, initrd)? {
            true => found(Accel::Kvm, "a guest reached its user space on /dev/kvm"),
            false => found(Accel::Tcg, "/dev/kvm is there, but a guest did not reach its user space on it in 8 s"),
        };
        write_json(known, &tried)?;
        Ok(tried)
    }
}

fn reaches_user_space(kernel: &Path, initrd: &Path) -> Result<bool> {
    let (kernel, initrd) = (fs::canonicalize(kernel)?, fs::canonicalize(initrd)?);
    let settings = Settings {
        name: "probe",
        cpus: 1,
        memory_mib: 256,
        accel: Accel::Kvm,
        kernel: &kernel,
        initrd: &initrd,
        disk: None,
        incoming: Incoming::Boot,
    };
    let argv = command(&settings);
    let folder = std::env::temp_dir().join(format!("cairn-probe-{}", std::process::id()));
    fs::create_dir(&folder).map_err(Error::of_file(&folder))?;
    let outcome = boots(&argv, &folder);
    let _ = fs::remove_dir_all(&folder);
    outcome
}

/// Whether the command prints the mark before the deadline; it is ended in any case.
fn boots(argv: &[String], folder: &Path) -> Result<bool> {
    let (program, arguments) = argv.split_first().ok_or_else(|| Error::failed("an empty command"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(Error::of_file(Path::new(program)))?;
    let mut seen = Vec::new();
    let begin = Instant::now();
    if let Some(out) = child.stdout.as_mut() {
        let mut buffer = [0; 4096];
        while begin.elapsed() < PROBE && seen.len() < 1 << 20 {
            let mut fds = [libc::pollfd { fd: out.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            // SAFETY: the array lives through the call, which writes within it.
            if unsafe { libc::poll(fds.as_mut_ptr(), 1, 100) } > 0 {
                match out.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => seen.extend(buffer.get(..n).unwrap_or_default()),
                }
            }
            if String::from_utf8_lossy(&seen).contains(MARK) {
                break;
            }
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(String::from_utf8_lossy(&seen).contains(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn only_a_guest_that_says_so_has_booted() {
        let here = Path::new(".");
        assert!(boots(&shell(&format!("echo noise; echo '{MARK}'; exec sleep 60")), here).expect("ran"));
        assert!(!boots(&shell("echo BIOS"), here).expect("ran"), "it ended without a word");
        assert!(boots(&["/nowhere/qemu".to_owned()], here).is_err());
    }
}
