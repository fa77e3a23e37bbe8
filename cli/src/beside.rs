//! A process beside the daemon: started again whenever it ends, until the daemon does.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::warn;

/// Before it is started again; twice as long each time, up to `AGAIN_MAX`, when it ends by itself within that: whatever it
/// lacks will not have come at once. One that was killed lacks nothing.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    over: bool,
    child: Option<u32>,
}

type Shared = (Mutex<State>, Condvar);

fn held(shared: &Shared) -> MutexGuard<'_, State> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that is kept running.
pub struct Beside {
    state: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// Waits until a child has ended, and leaves it to be waited for: until then its number is nobody else's.
fn until_ended(child: &Child) -> io::Result<()> {
    loop {
        // SAFETY: the call fills plain memory that lives through it; the child is ours and was not waited for.
        let outcome = unsafe {
            let mut about = std::mem::zeroed();
            libc::waitid(libc::P_PID, child.id(), &mut about, libc::WEXITED | libc::WNOWAIT)
        };
        match outcome {
            0 => return Ok(()),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// Starts it and waits for its end; `None` if it is not to be started any more.
fn run_once(mut command: Command, shared: &Shared) -> Option<io::Result<ExitStatus>> {
    // SAFETY: between fork and exec only calls that are allowed there. Signals are held back in the daemon.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            // It does not outlive this thread, which lives as long as the daemon.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    let started = {
        let mut state = held(shared);
        if state.over {
            return None;
        }
        command.spawn().inspect(|child| state.child = Some(child.id()))
    };
    Some(started.and_then(|mut child| {
        until_ended(&child)?;
        // Nobody signals a number that may soon be another's.
        held(shared).child = None;
        child.wait()
    }))
}

impl Beside {
    /// Keeps what `command` makes running; `what` it is, is for the log.
    pub fn keep(what: &'static str, command: impl Fn() -> Command + Send + 'static) -> io::Result<Self> {
        let state = Arc::new(Shared::default());
        let own = state.clone();
        let thread = std::thread::Builder::new().name(format!("cairn-{what}")).spawn(move || {
            let (mut pause, mut begin) = (AGAIN, Instant::now());
            while let Some(ended) = run_once(command(), &own) {
                let state = held(&own);
                if state.over {
                    return;
                }
                let again = begin.elapsed() > AGAIN_MAX || ended.as_ref().is_ok_and(|status| status.code().is_none());
                pause = if again { AGAIN } else { pause };
                warn!(
                    what,
                    ?ended,
                    seconds = pause.as_secs(),
                    "a process beside the daemon ended and is started again"
                );
                drop(own.1.wait_timeout_while(state, pause, |state| !state.over));
                (pause, begin) = ((2 * pause).min(AGAIN_MAX), Instant::now());
            }
        })?;
        Ok(Self { state, thread })
    }

    /// Ends it, and waits for that.
    pub fn end(self) {
        self.end_by(|child| {
            if let Some(child) = child {
                // SAFETY: a plain system call; the child was not waited for, so that the number is its own.
                unsafe { libc::kill(child as libc::pid_t, libc::SIGTERM) };
            }
        });
    }

    /// Has `stop` end the process with this number, if it runs, and waits for that. It is not started again.
    pub fn end_by(self, stop: impl FnOnce(Option<u32>)) {
        {
            let mut state = held(&self.state);
            state.over = true;
            stop(state.child);
            self.state.1.notify_all();
        }
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_ends_is_started_again_and_what_runs_is_ended() {
        let count = Arc::new(AtomicUsize::new(0));
        let own = count.clone();
        // The first one fails, the second one stays.
        let beside = Beside::keep("test", move || match own.fetch_add(1, Ordering::Relaxed) {
            0 => shell("exit 3"),
            _ => shell("exec sleep 600"),
        });
        let beside = beside.expect("a thread");
        while held(&beside.state).child.is_none() || count.load(Ordering::Relaxed) < 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let child = held(&beside.state).child.expect("it runs");
        beside.end();
        // SAFETY: a plain system call, which only asks.
        assert_ne!(unsafe { libc::kill(child as libc::pid_t, 0) }, 0, "it was waited for");
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_end_does_not_wait_for_the_next_start() {
        let beside = Beside::keep("test", || Command::new("/no/such/program")).expect("a thread");
        std::thread::sleep(Duration::from_millis(50));
        beside.end_by(|child| assert_eq!(child, None));
    }
}
