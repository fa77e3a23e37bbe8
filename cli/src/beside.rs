//! A process beside the daemon: started again whenever it ends, until the daemon does.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::warn;

/// Before it is started again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    over: bool,
    child: Option<u32>,
}

/// A process that is kept running.
pub struct Beside {
    state: Arc<(Mutex<State>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Beside {
    /// Keeps what `command` makes running; `what` it is, is for the log.
    pub fn keep(what: &'static str, command: impl Fn() -> Command + Send + 'static) -> io::Result<Self> {
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let own = state.clone();
        let thread = std::thread::Builder::new().name(format!("cairn-{what}")).spawn(move || loop {
            let mut command = command();
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
            let (lock, changed) = &*own;
            let held = || lock.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = {
                let mut state = held();
                if state.over {
                    return;
                }
                command.spawn().inspect(|child| state.child = Some(child.id()))
            };
            let ended = ended.and_then(|mut child| child.wait());
            let mut state = held();
            state.child = None;
            if !state.over {
                warn!(what, ?ended, "a process beside the daemon ended and is started again");
                state = changed.wait_timeout(state, AGAIN).map_or_else(|e| e.into_inner().0, |(state, _)| state);
            }
            if state.over {
                return;
            }
        })?;
        Ok(Self { state, thread })
    }

    /// Ends it, and waits for that.
    pub fn end(self) {
        let (lock, changed) = &*self.state;
        {
            let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
            state.over = true;
            if let Some(child) = state.child {
                // SAFETY: a plain system call; the child was not waited for, so the number is its own.
                unsafe { libc::kill(child as libc::pid_t, libc::SIGTERM) };
            }
            changed.notify_all();
        }
        let _ = self.thread.join();
    }
}
