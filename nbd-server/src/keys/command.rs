//! A key-encryption key that a command has the use of: a key management service, a hardware token.
//!
//! The command is run by the shell with one word added:
//!   * `id` prints the key's name;
//!   * `wrap` reads a data key in base64, one line, and prints it encrypted, in base64;
//!   * `unwrap` reads what `wrap` printed and prints the data key in base64.
//!
//! Status 0 is success. What it says on standard error goes to ours.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use blockstore::object::sealed::{KeyId, KeyWrap, Secret};
use blockstore::object::{StoreError, StoreErrorKind, StoreResult};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// What a command may take: a service that is asked over a network answers in a second, or not.
const COMMAND_TIME: Duration = Duration::from_secs(30);
/// What a command may print. A wrapped key of 4096 bytes is 5464 characters of base64.
const OUTPUT_BYTES_MAX: u64 = 8192;

/// Time between two looks at whether a command that said all has ended.
const WAIT_STEP: Duration = Duration::from_millis(2);

/// A key behind a command.
pub struct CommandKey {
    command: String,
    id: KeyId,
    time: Duration,
}

impl CommandKey {
    /// The key that `command` has the use of. Runs it once, for the key's name.
    ///
    /// # Errors
    /// If it does not say a name.
    pub fn new(command: &str) -> StoreResult<Self> {
        Self::within(command, COMMAND_TIME)
    }

    fn within(command: &str, time: Duration) -> StoreResult<Self> {
        let printed = run(command, "id", b"", time)?;
        let name = std::str::from_utf8(printed.trim_ascii()).unwrap_or_default();
        let id = KeyId::new(name)
            .map_err(|e| StoreError::new(e.kind, format!("the name that the key command printed: {}", e.message)))?;
        Ok(Self { command: command.to_owned(), id, time })
    }

    fn convert(&self, verb: &str, input: &[u8]) -> StoreResult<Zeroizing<Vec<u8>>> {
        let input = Zeroizing::new(STANDARD.encode(input) + "\n");
        let printed = run(&self.command, verb, input.as_bytes(), self.time)?;
        match STANDARD.decode(printed.trim_ascii()) {
            Ok(bytes) if !bytes.is_empty() => Ok(Zeroizing::new(bytes)),
            _ => Err(failed(StoreErrorKind::Invalid, &self.command, verb, "does not print base64")),
        }
    }
}

impl KeyWrap for CommandKey {
    fn id(&self) -> KeyId {
        self.id.clone()
    }

    fn wrap(&self, key: &Secret) -> StoreResult<Vec<u8>> {
        let wrapped = self.convert("wrap", key.expose())?;
        // A command that does nothing would store the key in clear.
        if wrapped.windows(key.expose().len()).any(|bytes| bytes == key.expose()) {
            return Err(failed(StoreErrorKind::Invalid, &self.command, "wrap", "prints the key itself"));
        }
        Ok(wrapped.to_vec())
    }

    fn unwrap(&self, wrapped: &[u8]) -> StoreResult<Secret> {
        let key = self.convert("unwrap", wrapped)?;
        let mut key = <[u8; 32]>::try_from(key.as_slice()).map_err(|_| {
            failed(StoreErrorKind::Invalid, &self.command, "unwrap", "does not print a key of 32 bytes")
        })?;
        Ok(Secret::new(&mut key))
    }
}

/// Names the command by its first word: others may be secrets.
fn failed(kind: StoreErrorKind, command: &str, verb: &str, why: &str) -> StoreError {
    let program = command.split_whitespace().next().unwrap_or_default();
    StoreError::new(kind, format!("the key command {program}, asked to {verb}, {why}"))
}

/// What `command verb` prints when it is given `input`.
fn run(command: &str, verb: &str, input: &[u8], time: Duration) -> StoreResult<Zeroizing<Vec<u8>>> {
    let unavailable = |why: String| failed(StoreErrorKind::Unavailable, command, verb, &why);
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!("{command} {verb}")).stdin(Stdio::piped()).stdout(Stdio::piped());
    // A group of its own, so that what the shell started ends with it.
    let mut child = shell.process_group(0).spawn().map_err(|e| unavailable(format!("does not start: {e}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let input = Zeroizing::new(input.to_vec());
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        // A command that does not read is judged by what it prints.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
        // The whole of it at once: growing would leave copies of a key behind.
        let mut printed = Zeroizing::new(Vec::with_capacity(OUTPUT_BYTES_MAX as usize + 1));
        let read = stdout.map(|stdout| stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut printed));
        let _ = done.send(read.unwrap_or(Ok(0)).map(|_| printed));
    });
    let begin = Instant::now();
    let answer = outcome.recv_timeout(time);
    let too_much = matches!(&answer, Ok(Ok(printed)) if printed.len() as u64 > OUTPUT_BYTES_MAX);
    let may_go_on = if answer.is_err() || too_much { Duration::ZERO } else { time.saturating_sub(begin.elapsed()) };
    let status = wait(&mut child, may_go_on).map_err(|e| unavailable(format!("cannot be waited for: {e}")))?;
    if too_much {
        return Err(failed(
            StoreErrorKind::Invalid,
            command,
            verb,
            &format!("prints more than {OUTPUT_BYTES_MAX} bytes"),
        ));
    }
    let (Ok(printed), Some(status)) = (answer, status) else {
        return Err(unavailable(format!("did not end within {} s", time.as_secs_f32())));
    };
    let printed = printed.map_err(|e: io::Error| unavailable(format!("cannot be read from: {e}")))?;
    if status.success() {
        Ok(printed)
    } else {
        Err(unavailable(format!("failed ({status}); what it said is on standard error")))
    }
}

/// How `child` ended by itself; after `time` it is ended.
fn wait(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    while begin.elapsed() < time {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(WAIT_STEP);
    }
    // Before it is waited for, also if it has ended: until then its group is its own.
    end(child);
    child.wait().map(|_| None)
}

/// Ends a command and what it started.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: a plain system call; the group is ours until its leader, our child, is waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key command that turns every byte around: good enough to see that both ways are taken.
    const GOOD: &str = "f() { case $1 in id) echo token-1;; *) base64 -d | tr '\\000-\\377' '\\200-\\377\\000-\\177' | base64 -w0;; esac; }; f";

    fn key() -> Secret {
        Secret::new(&mut std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn a_command_wraps_and_unwraps() {
        let command = CommandKey::new(GOOD).expect("a key");
        assert_eq!(command.id().as_str(), "token-1");
        let wrapped = command.wrap(&key()).expect("wrapped");
        assert_eq!((wrapped.len(), wrapped[0]), (32, 0x80));
        assert!(command.unwrap(&wrapped).expect("unwrapped") == key());
    }

    #[test]
    fn a_command_that_does_something_else_is_named_without_its_answer() {
        let said = |does: &str| {
            let command = format!("f() {{ case $1 in id) echo k;; *) {does};; esac; }}; f");
            let command = CommandKey::within(&command, Duration::from_millis(500)).expect("a name");
            let errors = [command.wrap(&key()).expect_err("no wrapped key"), command.unwrap(b"x").expect_err("no key")];
            errors.map(|e| {
                assert!(e.message.contains("the key command"), "{e}");
                assert!(!e.message.contains("c2VjcmV0"), "{e}");
                e.kind
            })
        };
        use StoreErrorKind::{Invalid, Unavailable};
        assert_eq!(said("exit 3"), [Unavailable; 2]);
        assert_eq!(said("kill -9 $$"), [Unavailable; 2]);
        assert_eq!(said("printf 'c2VjcmV0!'"), [Invalid; 2]);
        assert_eq!(said("true"), [Invalid; 2]);
        assert_eq!(said("cat"), [Invalid; 2]);
        assert_eq!(said("head -c 100000 /dev/zero"), [Invalid; 2]);
        let begin = Instant::now();
        assert_eq!(said("sleep 60"), [Unavailable; 2]);
        assert_eq!(said("echo c2VjcmV0; exec >&-; sleep 60"), [Unavailable; 2]);
        assert_eq!(said("sleep 60 & true"), [Unavailable; 2]);
        assert!(begin.elapsed() < Duration::from_secs(20), "what hangs is ended");
    }

    #[test]
    fn a_command_without_a_name_is_refused() {
        for command in ["false", "echo two words:", "printf ''; true", "/does/not/exist"] {
            assert!(CommandKey::new(command).is_err(), "{command}");
        }
    }
}
