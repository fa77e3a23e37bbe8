//! Memory of somebody else, mapped here.
//!
//! Its owner holds the same file and can make it shorter: touching what is gone raises SIGBUS, which would end the daemon
//! of everybody. So only memory files are taken (a file of another kind could also let us wait for ever), a file must be
//! as long as is claimed, and one that is not sealed against shrinking gets a place in a table: the handler of SIGBUS
//! finds the mapping there, puts empty memory in its place and marks it lost.
//!
//! Invariants
//!   * a [`Mapping`] is readable and writable memory of this process from its making to its end, whatever its owner does;
//!   * the handler does nothing but look into the table and map, and leaves every other fault to who had it before.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Once;
use vm_memory::VolatileSlice;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// Mappings that can be guarded at a time: one more of an unsealed file is refused.
const SLOTS: usize = 512;

struct Slot {
    base: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static GUARDED: [Slot; SLOTS] =
    [const { Slot { base: AtomicUsize::new(0), len: AtomicUsize::new(0), lost: AtomicBool::new(false) } }; SLOTS];
static INSTALLED: Once = Once::new();
static mut BEFORE: MaybeUninit<libc::sigaction> = MaybeUninit::zeroed();

/// Shared memory.
pub struct Mapping {
    base: *mut u8,
    /// Bytes mapped, a multiple of the file's page size.
    len: usize,
    /// Where in it the part begins that was asked for, and how long that is.
    skip: usize,
    asked: usize,
    slot: Option<&'static Slot>,
}

// SAFETY: the memory belongs to the process, and nothing in the type belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: it is only reached by volatile and atomic accesses, as befits memory that another process writes to.
unsafe impl Sync for Mapping {}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn check(code: i32) -> io::Result<i32> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(code)
}

/// Size of a page of a memory file.
fn page_of(fd: i32) -> io::Result<u64> {
    let mut about = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `about` has room for what the call writes.
    check(unsafe { libc::fstatfs(fd, about.as_mut_ptr()) })?;
    // SAFETY: all zeros is a value of it, and the call has succeeded.
    let about = unsafe { about.assume_init() };
    match about.f_type as u64 {
        TMPFS_MAGIC => Ok(4096),
        HUGETLBFS_MAGIC => u64::try_from(about.f_bsize).map_err(|_| invalid("a page size that cannot be")),
        _ => Err(invalid("this is no memory file")),
    }
}

/// Length of a file.
fn length_of(fd: i32) -> io::Result<u64> {
    let mut about = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `about` has room for what the call writes.
    check(unsafe { libc::fstat(fd, about.as_mut_ptr()) })?;
    // SAFETY: all zeros is a value of it, and the call has succeeded.
    u64::try_from(unsafe { about.assume_init() }.st_size).map_err(|_| invalid("a length that cannot be"))
}

impl Mapping {
    /// `len` bytes of the memory file `file` from `offset` on. The file need not stay open.
    pub fn new(file: &impl AsFd, offset: u64, len: u64) -> io::Result<Self> {
        let fd = file.as_fd().as_raw_fd();
        let page = page_of(fd)?.max(4096);
        let end = offset.checked_add(len).ok_or_else(|| invalid("a part that wraps around"))?;
        if len == 0 || end > length_of(fd)? {
            return Err(invalid("the file is shorter than the part of it that is named"));
        }
        let start = offset / page * page;
        let too_long = || invalid("a part that is too long");
        let whole = end.checked_next_multiple_of(page).and_then(|end| end.checked_sub(start)).ok_or_else(too_long)?;
        let mapped = usize::try_from(whole).ok().filter(|len| *len <= isize::MAX as usize).ok_or_else(too_long)?;
        let place = libc::off_t::try_from(start).map_err(|_| too_long())?;
        // SAFETY: a plain system call.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        let sealed = seals >= 0 && seals & libc::F_SEAL_SHRINK != 0;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), mapped, access, flags, fd, place) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let (skip, asked) = ((offset - start) as usize, len as usize);
        let mut made = Self { base: base.cast(), len: mapped, skip, asked, slot: None };
        if !sealed {
            made.slot = Some(guard(made.base as usize, made.len)?);
        }
        Ok(made)
    }

    /// The part that was asked for.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `skip + asked <= len` bytes from `base` are mapped while `self` lives, and are only ever reached
        // through such slices, which do not take the memory to stay as it is.
        unsafe { VolatileSlice::new(self.base.add(self.skip), self.asked) }
    }

    /// Whether its owner has taken it away.
    pub fn is_lost(&self) -> bool {
        self.slot.is_some_and(|slot| slot.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no slice of it outlives it.
        unsafe { libc::munmap(self.base.cast(), self.len) };
        if let Some(slot) = self.slot {
            slot.len.store(0, Ordering::Release);
            slot.base.store(0, Ordering::Release);
        }
    }
}

fn guard(base: usize, len: usize) -> io::Result<&'static Slot> {
    INSTALLED.call_once(install);
    for slot in &GUARDED {
        // The length is 0 until the place is ours as a whole: the handler finds nothing in between.
        if slot.base.compare_exchange(0, base, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            slot.lost.store(false, Ordering::Relaxed);
            slot.len.store(len, Ordering::Release);
            return Ok(slot);
        }
    }
    Err(io::Error::other("too many unsealed memory files are mapped"))
}

fn install() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is a value of a sigaction, its fields are set before use, and `BEFORE` is written once, by
    // `INSTALLED`, before the handler that reads it is in place.
    unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, ptr::null(), (&raw mut BEFORE).cast());
        libc::sigaction(libc::SIGBUS, action, ptr::null_mut());
    }
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `info` to a handler with SA_SIGINFO.
    let at = unsafe { (*info).si_addr() } as usize;
    for slot in &GUARDED {
        let (base, len) = (slot.base.load(Ordering::Acquire), slot.len.load(Ordering::Acquire));
        if base == 0 || at.wrapping_sub(base) >= len {
            continue;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the place is a mapping of ours, as long as it is in the table; mapping is one system call.
        let put = unsafe { libc::mmap(base as *mut _, len, access, flags, -1, 0) };
        if put != libc::MAP_FAILED {
            slot.lost.store(true, Ordering::Relaxed);
            return;
        }
    }
    // Not ours: whoever had it before gets it, when the access is tried again.
    // SAFETY: `BEFORE` was written before this handler was installed.
    unsafe { libc::sigaction(signal, (&raw const BEFORE).cast(), ptr::null_mut()) };
}

/// A new memory file of `len` bytes that can be made neither shorter nor longer.
pub fn memory_file(len: u64) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = check(unsafe { libc::memfd_create(c"cairn-inflight".as_ptr(), flags) })?;
    // SAFETY: `fd` was just made and nobody else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = libc::off_t::try_from(len).map_err(|_| invalid("a length that cannot be"))?;
    // SAFETY: plain system calls on a file of ours.
    unsafe {
        check(libc::ftruncate(fd, length))?;
        check(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL))?;
    }
    Ok(file)
}
