//! The guest as a whole: its clock, its random numbers, its end, its disk's size.

use crate::sys::check;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

// linux/random.h: _IO('R', 7).
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
// ext4: _IOW('f', 16, __u64).
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// Sets the clock and mixes fresh entropy in: a sleeper has missed both.
pub(crate) fn wake(unix_us: u64, entropy: &[u8]) -> io::Result<()> {
    if !entropy.is_empty() {
        let mut random = fs::OpenOptions::new().write(true).open("/dev/urandom")?;
        random.write_all(entropy)?;
        // SAFETY: a plain system call on an open descriptor. Kernels that lack it mix by themselves, later.
        unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _, 0) };
    }
    let time = libc::timespec {
        tv_sec: (unix_us / 1_000_000) as libc::time_t,
        tv_nsec: (unix_us % 1_000_000 * 1000) as libc::c_long,
    };
    // SAFETY: the call reads plain memory that lives through it.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

/// Writes everything back.
pub(crate) fn sync() {
    // SAFETY: the call takes nothing.
    unsafe { libc::sync() };
}

/// Asks the guest's init to end everything.
pub(crate) fn power_off() -> io::Result<()> {
    let mut command = Command::new("poweroff");
    // That of our init, before one that a package has brought.
    command.env("PATH", "/usr/lib/cairn:/usr/sbin:/sbin:/usr/bin:/bin").stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}

/// Lets the root file system, if it is ext4, have all of a disk that has become larger.
pub(crate) fn grow_root() -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    let root = table.lines().rev().find_map(|line| {
        let mut words = line.split(' ');
        let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
        (point == "/" && kind == "ext4").then(|| device.strip_prefix("/dev/")).flatten()
    });
    let Some(device) = root else { return Ok(()) };
    let sectors = fs::read_to_string(format!("/sys/class/block/{device}/size"))?;
    let root = File::open("/")?;
    // SAFETY: the call fills plain memory that lives through it.
    let found = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        check(libc::fstatvfs(root.as_raw_fd(), &mut found))?;
        found
    };
    let block = found.f_frsize.max(512);
    let blocks: u64 = sectors.trim().parse::<u64>().unwrap_or(0) / (block / 512);
    // What statvfs counts leaves out the file system's own tables, so that a full-size one asks in vain: it says so.
    if blocks > found.f_blocks {
        // SAFETY: the call reads a number that lives through it.
        check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &blocks) })?;
    }
    Ok(())
}
