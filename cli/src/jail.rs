//! What a process gives up before it looks at anything that a guest made.
//!
//! Promise: afterwards it can open no file, no socket and no program, signal nobody and trace nobody; it has the
//! descriptors that it had, memory up to a bound, and if it was root it is nobody.

use std::io;
use std::mem;

/// A user that owns nothing.
const NOBODY: u32 = 65_534;
/// Address space: threads' stacks and images' metadata take a part of it.
const MEMORY_MAX: u64 = 2 << 30;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Offsets in what the kernel shows of a system call: number and architecture.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const X86_64: u32 = 0xc000_003e;

/// System calls that looking takes, and serving a mount; any other is refused with EPERM.
const ALLOWED: [libc::c_long; 44] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Threads are named.
    libc::SYS_prctl,
];

fn done(what: &str, outcome: libc::c_long) -> io::Result<()> {
    if outcome < 0 {
        let e = io::Error::last_os_error();
        return Err(io::Error::new(e.kind(), format!("{what}: {e}")));
    }
    Ok(())
}

/// Goes in. What the kernel does not have, or does not let this user do, is told to `notice`; the filter of system
/// calls must be there.
pub fn enter(notice: &mut dyn FnMut(&str)) -> io::Result<()> {
    // A network with nothing in it; needs root, or a kernel that lets users have namespaces.
    // SAFETY: plain system calls, here and below, on values that live to the end of the call.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        notice("without a network namespace of its own: system calls for sockets are refused all the same");
    }
    unsafe {
        if libc::geteuid() == 0 {
            done("giving up groups", libc::setgroups(0, std::ptr::null()).into())?;
            done("giving up the group", libc::setresgid(NOBODY, NOBODY, NOBODY).into())?;
            done("giving up the user", libc::setresuid(NOBODY, NOBODY, NOBODY).into())?;
        }
        // Another user's process would not end with its keeper.
        done("ending with the keeper", libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        done("no new privileges", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        done("not to be dumped", libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0).into())?;
        for (limit, most) in [(libc::RLIMIT_AS, MEMORY_MAX), (libc::RLIMIT_CORE, 0), (libc::RLIMIT_FSIZE, 0)] {
            let most = libc::rlimit { rlim_cur: most, rlim_max: most };
            done("a limit", libc::setrlimit(limit, &most).into())?;
        }
    }
    if !no_files()? {
        notice("without landlock: system calls for files are refused all the same");
    }
    filter()
}

/// No file can be reached; `false` when the kernel has no landlock.
fn no_files() -> io::Result<bool> {
    /// Everything that the first version of landlock can refuse.
    const ACCESS: u64 = (1 << 13) - 1;
    let handled = ACCESS;
    // SAFETY: the rules are one number, which lives to the end of the call.
    let rules = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &handled, size_of::<u64>(), 0) };
    if rules < 0 {
        return Ok(false);
    }
    // SAFETY: the descriptor was just made, and is closed once.
    let outcome = unsafe {
        let outcome = libc::syscall(libc::SYS_landlock_restrict_self, rules, 0);
        libc::close(rules as i32);
        outcome
    };
    done("landlock", outcome).map(|()| true)
}

/// From now on only [`ALLOWED`], in all threads.
fn filter() -> io::Result<()> {
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let count = ALLOWED.len();
    let mut program = vec![
        step(LOAD, ARCH_AT, 0, 0),
        step(JUMP_IF_EQUAL, X86_64, 1, 0),
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        step(LOAD, NUMBER_AT, 0, 0),
    ];
    // Each allowed number jumps over the rest to the last step.
    let tests = ALLOWED.iter().enumerate().map(|(i, number)| step(JUMP_IF_EQUAL, *number as u32, (count - i) as u8, 0));
    program.extend(tests);
    program.push(step(RETURN, refuse, 0, 0));
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    // SAFETY: the program lives to the end of the call, and is as long as said.
    let outcome = unsafe {
        let mut whole: libc::sock_fprog = mem::zeroed();
        (whole.len, whole.filter) = (program.len() as u16, program.as_mut_ptr());
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC, &whole)
    };
    match outcome {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} could not be filtered"))),
        failed => done("filtering system calls", failed),
    }
}

/// Things that must not be possible inside, tried: what of them was.
pub fn escapes() -> Vec<&'static str> {
    use std::ffi::CString;
    let path = |text: &str| CString::new(text).unwrap_or_default();
    let (passwd, new, program) = (path("/etc/passwd"), path("/tmp/escaped"), path("/bin/true"));
    // SAFETY: all are refused; if one is not, it gets valid pointers.
    let tries: [(&str, bool); 13] = unsafe {
        let none: *const libc::c_char = std::ptr::null();
        [
            ("reading a file", libc::open(passwd.as_ptr(), libc::O_RDONLY) >= 0),
            ("making a file", libc::open(new.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600) >= 0),
            ("looking at a file", libc::access(passwd.as_ptr(), libc::F_OK) == 0),
            ("a socket to the network", libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) >= 0),
            ("a local socket", libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) >= 0),
            ("a program", libc::execv(program.as_ptr(), [program.as_ptr(), none].as_ptr()) >= 0),
            ("a signal", libc::kill(libc::getppid(), 0) == 0),
            ("tracing", libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0),
            ("mounting", libc::mount(none, passwd.as_ptr(), none, libc::MS_BIND, std::ptr::null()) == 0),
            ("becoming root", libc::setuid(0) == 0),
            ("a namespace", libc::unshare(libc::CLONE_NEWUSER) == 0),
            ("changing root", libc::chroot(passwd.as_ptr()) == 0),
            (
                "another's memory",
                libc::process_vm_readv(libc::getppid(), std::ptr::null(), 0, std::ptr::null(), 0, 0) >= 0,
            ),
        ]
    };
    tries.into_iter().filter_map(|(what, possible)| possible.then_some(what)).collect()
}
