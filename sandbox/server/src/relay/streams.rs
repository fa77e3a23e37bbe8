//! One relay's connections on the host: bytes from the guest's frames to whoever serves them, and back.
//!
//! Invariants
//!   * what a guest sends is kept as far as its window goes, and what waits for it is bounded by [`OUT_MAX`]: one that does
//!     not read its relay's input loses the relay;
//!   * hearing never waits for anything but the guest: a connection that nobody serves holds up no other;
//!   * a connection that is gone, or whose relay is, says so to whoever reads or writes it.

use sandbox_protocol::{Decoder, ProtocolError, Relay, Relayed, Side, RELAY_CONNECTIONS, RELAY_WINDOW};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Bytes that wait for the guest: all windows, and as much again for what is said about them.
const OUT_MAX: usize = 2 * RELAY_CONNECTIONS * RELAY_WINDOW;

/// Connections that are still served, those that the guest has closed included; a new one beyond that is closed at once.
const SERVED_MAX: usize = 2 * RELAY_CONNECTIONS;

/// One connection.
#[derive(Default)]
struct Flow {
    incoming: VecDeque<u8>,
    /// No more comes.
    has_ended: bool,
    /// The guest has closed it.
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Told when the guest has taken something, or is gone.
    news: Arc<Notify>,
}

impl Flow {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
        self.news.notify_waiters();
    }
}

struct State {
    decoder: Decoder,
    relay: Relay,
    flows: HashMap<u32, Flow>,
    out: Vec<u8>,
    is_over: bool,
}

impl State {
    fn hear(&mut self, bytes: &[u8]) -> Result<Vec<News>, ProtocolError> {
        let Self { decoder, relay, flows, out, .. } = self;
        decoder.push(bytes);
        let mut news = Vec::new();
        while let Some((kind, payload)) = decoder.frame()? {
            let Some(said) = relay.take(Relayed::decode(kind, payload)?)? else { continue };
            let id = match said {
                Relayed::Ready => {
                    news.push(News::Ready);
                    continue;
                }
                Relayed::Open(id) if flows.len() >= SERVED_MAX => {
                    relay.close(id, out);
                    continue;
                }
                Relayed::Open(id) => {
                    flows.insert(id, Flow::default());
                    news.push(News::Opened(id));
                    continue;
                }
                Relayed::Data(id, _) | Relayed::Taken(id, _) | Relayed::End(id) | Relayed::Close(id) => id,
            };
            let Some(flow) = flows.get_mut(&id) else { continue };
            match said {
                Relayed::Data(_, bytes) => flow.incoming.extend(bytes),
                Relayed::End(_) => flow.has_ended = true,
                Relayed::Close(_) => flow.is_closed = true,
                _ => {}
            }
            flow.wake();
        }
        if out.len() > OUT_MAX {
            return Err(ProtocolError("the guest does not read what its relay is told"));
        }
        Ok(news)
    }
}

/// A relay's connections.
pub struct Streams {
    state: Mutex<State>,
    /// Told when something waits for the guest.
    said: Notify,
}

/// What became known by what a guest said.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// It listens.
    Ready,
    /// It has a connection of this number.
    Opened(u32),
}

impl Streams {
    pub fn new() -> Arc<Self> {
        let (decoder, relay) = (Decoder::default(), Relay::new(Side::Host));
        let state = State { decoder, relay, flows: HashMap::new(), out: Vec::new(), is_over: false };
        Arc::new(Self { state: Mutex::new(state), said: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what came from the guest.
    ///
    /// # Errors
    /// It is nothing that a relay says, or not at this time: it cannot go on.
    pub fn hear(&self, bytes: &[u8]) -> Result<Vec<News>, ProtocolError> {
        self.say(|state| state.hear(bytes))
    }

    /// What is to be sent to the guest, as soon as there is something.
    pub async fn to_send(&self) -> Vec<u8> {
        loop {
            let said = self.said.notified();
            let out = std::mem::take(&mut self.state().out);
            if !out.is_empty() {
                return out;
            }
            said.await;
        }
    }

    /// Ends all connections: the guest or its relay is gone.
    pub fn end(&self) {
        let mut state = self.state();
        state.is_over = true;
        state.flows.values_mut().for_each(Flow::wake);
    }

    /// Does something with a connection's account, and has the guest hear of it.
    fn say<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let (done, something) = {
            let mut state = self.state();
            let done = what(&mut state);
            (done, !state.out.is_empty())
        };
        if something {
            self.said.notify_one();
        }
        done
    }
}

/// A connection as whoever serves it holds it; it is closed when this is dropped.
pub struct Held {
    streams: Arc<Streams>,
    id: u32,
}

impl Held {
    pub fn new(streams: Arc<Streams>, id: u32) -> Self {
        Self { streams, id }
    }

    /// Its bytes.
    pub fn stream(&self) -> Stream {
        Stream { streams: self.streams.clone(), id: self.id }
    }

    /// Ends this side's direction, and waits until the guest has taken all that was sent, or is gone.
    pub async fn drain(&self) {
        self.streams.say(|State { relay, out, .. }| relay.end(self.id, out));
        loop {
            let Some(news) = self.streams.state().flows.get(&self.id).map(|flow| flow.news.clone()) else { return };
            let news = news.notified();
            tokio::pin!(news);
            // From here on nothing is missed.
            news.as_mut().enable();
            {
                let state = self.streams.state();
                if state.is_over || state.relay.is_drained(self.id) {
                    return;
                }
            }
            news.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.streams.say(|State { relay, flows, out, .. }| {
            relay.close(self.id, out);
            flows.remove(&self.id);
        });
    }
}

/// A connection's bytes in both directions.
pub struct Stream {
    streams: Arc<Streams>,
    id: u32,
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the guest's connection is gone")
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.streams.say(|state| {
            let State { relay, flows, out, is_over, .. } = state;
            let Some(flow) = flows.get_mut(&self.id) else { return Poll::Ready(Err(gone())) };
            let count = to.remaining().min(flow.incoming.len());
            if count > 0 {
                let (front, back) = flow.incoming.as_slices();
                let first = front.len().min(count);
                to.put_slice(front.get(..first).unwrap_or_default());
                to.put_slice(back.get(..count.saturating_sub(first)).unwrap_or_default());
                flow.incoming.drain(..count);
                relay.took(self.id, count, out);
                return Poll::Ready(Ok(()));
            }
            match () {
                () if flow.has_ended || to.remaining() == 0 => Poll::Ready(Ok(())),
                () if flow.is_closed || *is_over => Poll::Ready(Err(gone())),
                () => {
                    flow.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.streams.say(|state| {
            let State { relay, flows, out, is_over, .. } = state;
            let flow = flows.get_mut(&self.id).filter(|flow| !flow.is_closed && !*is_over);
            let Some(flow) = flow else { return Poll::Ready(Err(gone())) };
            match relay.send(self.id, bytes, out) {
                0 if !bytes.is_empty() => {
                    flow.writer = Some(context.waker().clone());
                    Poll::Pending
                }
                count => Poll::Ready(Ok(count)),
            }
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.streams.say(|State { relay, out, .. }| relay.end(self.id, out));
        Poll::Ready(Ok(()))
    }
}
