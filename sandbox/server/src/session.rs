//! A command in a guest, and who watches it.
//!
//! Invariants
//!   * nothing is read from the guest while a watcher has not taken what was read before, for up to `PATIENCE`: a
//!     slow client holds up its own command, and loses nothing;
//!   * what a watcher gets is what was kept when it came, and then everything: between the two nothing is lost or twice;
//!   * every watcher hears of the end;
//!   * no more standard input is sent than the agent has credited, and no more than `INPUTS` pieces wait for that.

use crate::wire::SessionInfo;
use axum::body::Bytes;
use sandbox_protocol::{Decoder, Reply, Request, Window, OUTPUT_MAX, STDIN_WINDOW};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, Notify, Semaphore};
use vmm_glue::{Begun, Port};

/// Bytes of output that are kept for whoever attaches later.
const KEPT: usize = 256 << 10;
/// Events that a watcher may have before it.
const EVENTS: usize = 32;
/// Pieces of input that may wait.
const INPUTS: usize = 16;
/// How long a watcher may take nothing before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The status of a command whose guest ended under it.
pub const LOST: u8 = 255;

/// What a watcher hears.
#[derive(Clone, Debug)]
pub enum Event {
    Stdout(Bytes),
    Stderr(Bytes),
    /// It ended with this status.
    Exit(u8),
}

/// What is told of a session.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    pub command: String,
    pub dir: String,
    pub tty: bool,
    pub rows: u16,
    pub columns: u16,
    /// How long it goes on when nobody watches; `None` is for ever.
    pub after_disconnect: Option<Duration>,
}

#[derive(Default)]
struct Watched {
    kept: VecDeque<u8>,
    watchers: Vec<mpsc::Sender<Event>>,
    exit: Option<u8>,
    last_us: i64,
}

/// A command that runs.
pub struct Session {
    /// Its number in the guest, once it has one, in decimal digits.
    id: Mutex<String>,
    pub machine: String,
    pub meta: Meta,
    /// Whether it is one that people see.
    pub is_listed: bool,
    pub created_us: i64,
    output_bytes: AtomicU64,
    watched: Mutex<Watched>,
    input: mpsc::Sender<Request>,
    /// Pieces of standard input are sent one behind the other.
    stdin: tokio::sync::Mutex<()>,
    credit: Semaphore,
    end: Notify,
    started: Notify,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Goes on with a command that was begun; with its first watcher, who hears everything.
    pub fn start(
        begun: Begun,
        machine: String,
        is_listed: bool,
        meta: Meta,
    ) -> io::Result<(Arc<Self>, mpsc::Receiver<Event>)> {
        begun.stream.set_nonblocking(true)?;
        let (from, to) = UnixStream::from_std(begun.stream)?.into_split();
        let (input, inputs) = mpsc::channel(INPUTS);
        let (first, events) = mpsc::channel(EVENTS);
        let session = Arc::new(Self {
            id: Mutex::default(),
            machine,
            meta,
            is_listed,
            created_us: crate::time::now_us(),
            output_bytes: AtomicU64::new(0),
            watched: Mutex::new(Watched { watchers: vec![first], ..Watched::default() }),
            input,
            stdin: tokio::sync::Mutex::default(),
            credit: Semaphore::new(STDIN_WINDOW),
            end: Notify::new(),
            started: Notify::new(),
        });
        tokio::spawn(send(to, inputs));
        tokio::spawn(session.clone().run(from, begun.decoder, begun.port));
        Ok((session, events))
    }

    pub fn id(&self) -> String {
        held(&self.id).clone()
    }

    /// Waits until it has a number, or has ended.
    pub async fn begun(&self) {
        loop {
            let started = self.started.notified();
            if !held(&self.id).is_empty() || held(&self.watched).exit.is_some() {
                return;
            }
            started.await;
        }
    }

    /// What was kept, and all that comes from now on.
    pub fn watch(&self) -> (Vec<u8>, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(EVENTS);
        let mut watched = held(&self.watched);
        if let Some(code) = watched.exit {
            // There is room for one event.
            let _ = sender.try_send(Event::Exit(code));
        } else {
            watched.watchers.push(sender);
        }
        (watched.kept.iter().copied().collect(), receiver)
    }

    /// Sends standard input, as far as it is credited.
    pub async fn write(&self, bytes: &[u8]) -> bool {
        let _turn = self.stdin.lock().await;
        for piece in bytes.chunks(OUTPUT_MAX) {
            let Ok(credit) = self.credit.acquire_many(piece.len() as u32).await else { return false };
            credit.forget();
            if self.input.send(Request::Stdin(piece.to_vec())).await.is_err() {
                return false;
            }
        }
        true
    }

    pub async fn end_input(&self) {
        let _turn = self.stdin.lock().await;
        let _ = self.input.send(Request::StdinEnd).await;
    }

    pub async fn signal(&self, signal: u8) {
        let _ = self.input.send(Request::Signal(signal)).await;
    }

    pub async fn resize(&self, rows: u16, columns: u16) {
        let _ = self.input.send(Request::Resize(Window { rows, columns })).await;
    }

    /// Ends it: its connection goes, and with that the command.
    pub fn give_up(&self) {
        self.end.notify_one();
    }

    pub fn has_ended(&self) -> bool {
        held(&self.watched).exit.is_some()
    }

    /// A watcher has gone: a command that nobody watches goes on for as long as it may.
    pub fn left(self: &Arc<Self>) {
        let (session, after) = (self.clone(), self.meta.after_disconnect);
        tokio::spawn(async move {
            let Some(after) = after else { return };
            tokio::time::sleep(after).await;
            let mut watched = held(&session.watched);
            watched.watchers.retain(|watcher| !watcher.is_closed());
            if watched.watchers.is_empty() {
                session.give_up();
            }
        });
    }

    /// What a list says of it.
    pub fn told(&self) -> SessionInfo {
        let now = crate::time::now_us();
        let last = held(&self.watched).last_us.max(self.created_us);
        let seconds = ((now - self.created_us) as f64 / 1e6).max(1.0);
        SessionInfo {
            id: self.id(),
            created: crate::time::rfc3339(self.created_us),
            command: self.meta.command.clone(),
            workdir: self.meta.dir.clone(),
            tty: self.meta.tty,
            bytes_per_second: (self.output_bytes.load(Ordering::Relaxed) as f64 / seconds).round(),
            is_active: now - last < 30_000_000,
            last_activity: crate::time::rfc3339(last),
        }
    }

    async fn run(self: Arc<Self>, from: OwnedReadHalf, decoder: Decoder, port: Port) {
        let code = tokio::select! {
            code = self.read(from, decoder) => code,
            () = self.end.notified() => LOST,
        };
        // The agent ends what it holds when its connection does, and the port is free for the next.
        self.credit.close();
        drop(port);
        let watchers = {
            let mut watched = held(&self.watched);
            watched.exit = Some(code);
            std::mem::take(&mut watched.watchers)
        };
        self.started.notify_waiters();
        for watcher in watchers {
            let _ = tokio::time::timeout(PATIENCE, watcher.send(Event::Exit(code))).await;
        }
    }

    /// Reads until the end; returns the status.
    async fn read(&self, mut from: OwnedReadHalf, mut decoder: Decoder) -> u8 {
        let mut buffer = vec![0; 32 << 10];
        loop {
            loop {
                let reply = match decoder.frame() {
                    Ok(Some((kind, payload))) => Reply::decode(kind, payload),
                    Ok(None) => break,
                    Err(e) => Err(e),
                };
                match reply {
                    Ok(Reply::Started { pid }) => {
                        *held(&self.id) = pid.to_string();
                        self.started.notify_waiters();
                    }
                    Ok(Reply::Stdout(bytes)) => self.tell(Event::Stdout(bytes.into())).await,
                    Ok(Reply::Stderr(bytes)) => self.tell(Event::Stderr(bytes.into())).await,
                    Ok(Reply::Credit(taken)) => {
                        // A guest that credits what it never got is no reason to hold more.
                        let room = STDIN_WINDOW.saturating_sub(self.credit.available_permits());
                        self.credit.add_permits(room.min(taken as usize));
                    }
                    Ok(Reply::Exited { code, signal: 0 }) => return code,
                    Ok(Reply::Exited { signal, .. }) => return 128u8.saturating_add(signal),
                    Ok(Reply::Failed { errno, message }) => {
                        let text: String = message.chars().take(500).filter(|c| !c.is_control()).collect();
                        self.tell(Event::Stderr(format!("{text}\n").into())).await;
                        // As a shell says it.
                        return if errno == libc::ENOENT as u32 { 127 } else { 126 };
                    }
                    Ok(Reply::Done | Reply::Frozen { .. }) => {}
                    Err(e) => {
                        tracing::warn!(machine = self.machine, error = %e, "a guest's agent does not speak as it should");
                        return LOST;
                    }
                }
            }
            match from.read(&mut buffer).await {
                Ok(n) if n > 0 => decoder.push(buffer.get(..n).unwrap_or_default()),
                _ => {
                    self.tell(Event::Stderr("the guest ended while the command ran in it\n".into())).await;
                    return LOST;
                }
            }
        }
    }

    async fn tell(&self, event: Event) {
        let (Event::Stdout(bytes) | Event::Stderr(bytes)) = &event else { return };
        self.output_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let watchers = {
            let mut watched = held(&self.watched);
            watched.last_us = crate::time::now_us();
            // A list of events would keep what is which; a terminal, which is what is attached to, has no second stream.
            if self.is_listed {
                watched.kept.extend(bytes.iter());
                let over = watched.kept.len().saturating_sub(KEPT);
                watched.kept.drain(..over);
            }
            watched.watchers.retain(|watcher| !watcher.is_closed());
            watched.watchers.clone()
        };
        for watcher in watchers {
            if tokio::time::timeout(PATIENCE, watcher.send(event.clone())).await.is_err() {
                held(&self.watched).watchers.retain(|other| !other.same_channel(&watcher));
            }
        }
    }
}

/// Whoever a command runs for. When it goes, also because a client has gone in the middle of a request, the command ends, or
/// is one that nobody watches.
pub struct Hold(pub Arc<Session>);

impl Drop for Hold {
    fn drop(&mut self) {
        match (self.0.has_ended(), self.0.is_listed) {
            (true, _) => {}
            (false, true) => self.0.left(),
            (false, false) => self.0.give_up(),
        }
    }
}

async fn send(mut to: OwnedWriteHalf, mut inputs: mpsc::Receiver<Request>) {
    while let Some(request) = inputs.recv().await {
        let mut bytes = Vec::new();
        if request.encode(&mut bytes).is_ok() && to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// The commands that run, by machine.
#[derive(Default)]
pub struct Sessions {
    all: Mutex<HashMap<String, Vec<Weak<Session>>>>,
}

impl Sessions {
    pub fn add(&self, session: &Arc<Session>) {
        let mut all = held(&self.all);
        let own = all.entry(session.machine.clone()).or_default();
        own.retain(|session| session.upgrade().is_some_and(|session| !session.has_ended()));
        own.push(Arc::downgrade(session));
    }

    fn of(&self, machine: &str) -> Vec<Arc<Session>> {
        let all = held(&self.all);
        let own = all.get(machine).into_iter().flatten().filter_map(Weak::upgrade);
        own.filter(|session| !session.has_ended()).collect()
    }

    /// Those that people see.
    pub fn listed(&self, machine: &str) -> Vec<Arc<Session>> {
        self.of(machine).into_iter().filter(|session| session.is_listed).collect()
    }

    pub fn find(&self, machine: &str, id: &str) -> Option<Arc<Session>> {
        self.listed(machine).into_iter().find(|session| session.id() == id)
    }

    /// Ends all of a machine.
    pub fn end_all(&self, machine: &str) {
        self.of(machine).iter().for_each(|session| session.give_up());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Blocking;

    fn say(agent: &mut Blocking, reply: &Reply) {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes).expect("it fits");
        agent.write_all(&bytes).expect("the server reads");
    }

    /// A session whose agent is the other end of the pair.
    fn begin() -> (Arc<Session>, mpsc::Receiver<Event>, Blocking) {
        let (ours, theirs) = Blocking::pair().expect("a pair");
        let (session, events) =
            Session::start(Begun::over(ours), "machine".to_owned(), true, Meta::default()).expect("a session");
        (session, events, theirs)
    }

    async fn all(mut events: mpsc::Receiver<Event>) -> (Vec<u8>, u8) {
        let mut out = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Stdout(bytes) | Event::Stderr(bytes) => out.extend(&bytes[..]),
                Event::Exit(code) => return (out, code),
            }
        }
        panic!("the end is told");
    }

    #[tokio::test]
    async fn a_slow_watcher_loses_nothing() {
        let (session, events, mut agent) = begin();
        let agent = std::thread::spawn(move || {
            say(&mut agent, &Reply::Started { pid: 20 });
            for i in 0..200u32 {
                say(&mut agent, &Reply::Stdout(vec![i as u8; 8 << 10]));
            }
            say(&mut agent, &Reply::Exited { code: 3, signal: 0 });
            agent
        });
        session.begun().await;
        assert_eq!(session.id(), "20");
        // It holds what has come, the sockets hold some, and the agent waits with the rest.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!session.has_ended());
        let (out, code) = all(events).await;
        assert_eq!((out.len(), code), (200 * (8 << 10), 3));
        assert!(out.chunks(8 << 10).zip(0..).all(|(piece, i)| piece.iter().all(|byte| *byte == i as u8)));
        drop(agent.join());
        // Whoever comes later hears the end, too.
        assert!(matches!(session.watch().1.recv().await, Some(Event::Exit(3))));
    }

    #[tokio::test]
    async fn who_attaches_gets_what_was_kept_and_then_the_rest() {
        let (session, first, mut agent) = begin();
        say(&mut agent, &Reply::Started { pid: 1 });
        say(&mut agent, &Reply::Stdout(b"before ".to_vec()));
        while session.output_bytes.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (kept, second) = session.watch();
        say(&mut agent, &Reply::Stdout(b"after".to_vec()));
        say(&mut agent, &Reply::Exited { code: 0, signal: 15 });
        let (later, code) = all(second).await;
        assert_eq!((kept.as_slice(), later.as_slice(), code), (&b"before "[..], &b"after"[..], 143));
        assert_eq!(all(first).await.0, b"before after");
    }

    #[tokio::test]
    async fn no_more_input_is_sent_than_was_credited() {
        let (session, events, mut agent) = begin();
        say(&mut agent, &Reply::Started { pid: 1 });
        let writer = session.clone();
        let writing = tokio::spawn(async move { writer.write(&vec![7; 3 * STDIN_WINDOW]).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        agent.set_nonblocking(true).expect("a socket");
        let (mut sent, mut buffer) = (0, vec![0; 1 << 20]);
        while let Ok(n) = agent.read(&mut buffer) {
            sent += n;
        }
        let frames = STDIN_WINDOW / OUTPUT_MAX * sandbox_protocol::HEADER;
        assert_eq!(sent, STDIN_WINDOW + frames);
        agent.set_nonblocking(false).expect("a socket");
        // Credit that was never owed is not taken.
        say(&mut agent, &Reply::Credit(u32::MAX));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(session.credit.available_permits() <= STDIN_WINDOW);
        assert!(!writing.is_finished());
        session.give_up();
        assert!(!writing.await.expect("it ends"), "what was not sent is told");
        assert_eq!(all(events).await.1, LOST);
    }

    #[tokio::test]
    async fn a_command_that_nobody_is_there_for_ends() {
        let (ours, theirs) = Blocking::pair().expect("a pair");
        let meta = Meta { after_disconnect: Some(Duration::from_millis(50)), ..Meta::default() };
        let (session, events) = Session::start(Begun::over(ours), String::new(), true, meta).expect("a session");
        let (_, other) = session.watch();
        drop(events);
        drop(Hold(session.clone()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!session.has_ended(), "somebody watches");
        drop(other);
        drop(Hold(session.clone()));
        while !session.has_ended() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(theirs);
        // One that is of a request ends with it.
        let (ours, _theirs) = Blocking::pair().expect("a pair");
        let (session, events) =
            Session::start(Begun::over(ours), String::new(), false, Meta::default()).expect("a session");
        drop((events, Hold(session.clone())));
        while !session.has_ended() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn rubbish_and_silence_end_it() {
        for bytes in [&b"\xff\xff\xff\xff\x02rubbish"[..], &[0, 0, 0, 0, 99], b""] {
            let (_session, events, mut agent) = begin();
            agent.write_all(bytes).expect("the server reads");
            drop(agent);
            assert_eq!(all(events).await.1, LOST, "{bytes:?}");
        }
    }
}
