//! Connections that a guest makes to its host, many over one stream: what `cairn-agent relay` and the host say to each
//! other over that command's standard input and output.
//!
//! Frames are those of the rest of this crate. The guest opens connections and numbers them upwards; either side sends
//! data as far as it has room, ends its own direction, or closes both.
//!
//! Invariants
//!   * a number is used once, so that what is late for a connection that is gone is told from what was never right;
//!   * neither side sends more than [`RELAY_WINDOW`] bytes of a connection before the other has taken them: a connection
//!     that nobody reads holds up itself alone, and costs no more memory than that;
//!   * there are never more than [`RELAY_CONNECTIONS`] connections.

use crate::fields::Fields;
use crate::frame::put;
use crate::{ProtocolError, Side};
use std::collections::BTreeMap;

/// Bytes of a connection that may be on their way in one direction.
pub const RELAY_WINDOW: usize = 32 << 10;
/// Bytes of data in one frame: others get their turn between two.
pub const RELAY_DATA_MAX: usize = 8 << 10;
/// Connections at a time; the guest refuses more, and a host ends a relay that opens more.
pub const RELAY_CONNECTIONS: usize = 16;

/// One thing that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// The guest listens.
    Ready,
    /// The guest has a connection of this number.
    Open(u32),
    /// Bytes of a connection; never none.
    Data(u32, Vec<u8>),
    /// So many of the other side's bytes were taken.
    Taken(u32, u32),
    /// No more bytes come in this direction.
    End(u32),
    /// The connection is gone.
    Close(u32),
}

impl Relayed {
    /// Appends its frame.
    ///
    /// # Errors
    /// It does not fit into one.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let id = |out: &mut Vec<u8>, id: &u32| out.extend(id.to_le_bytes());
        match self {
            Self::Ready => put(out, 1, |_| {}),
            Self::Open(of) => put(out, 2, |out| id(out, of)),
            Self::Data(_, bytes) if bytes.is_empty() || bytes.len() > RELAY_DATA_MAX => {
                Err(ProtocolError("data of a connection that are none, or too long for a frame"))
            }
            Self::Data(of, bytes) => put(out, 3, |out| {
                id(out, of);
                out.extend(bytes);
            }),
            Self::Taken(of, count) => put(out, 4, |out| {
                id(out, of);
                out.extend(count.to_le_bytes());
            }),
            Self::End(of) => put(out, 5, |out| id(out, of)),
            Self::Close(of) => put(out, 6, |out| id(out, of)),
        }
    }

    /// What a frame says.
    ///
    /// # Errors
    /// It is none of these.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(payload);
        let said = match kind {
            1 => Self::Ready,
            2 => Self::Open(fields.u32()?),
            3 => Self::Data(fields.u32()?, fields.rest().to_vec()),
            4 => Self::Taken(fields.u32()?, fields.u32()?),
            5 => Self::End(fields.u32()?),
            6 => Self::Close(fields.u32()?),
            _ => return Err(ProtocolError("a frame of a relay of a kind that there is not")),
        };
        match &said {
            Self::Data(_, bytes) if bytes.is_empty() || bytes.len() > RELAY_DATA_MAX => {
                Err(ProtocolError("data of a connection that are none, or too long for a frame"))
            }
            _ => fields.end().map(|()| said),
        }
    }
}

/// One connection's account.
struct Flow {
    /// Bytes that may still be sent.
    room: usize,
    /// Bytes that the other side may still send.
    owed: usize,
    has_ended: bool,
    other_has_ended: bool,
}

/// One side's account of all connections: it says what may be sent, and refuses what may not have come.
pub struct Relay {
    side: Side,
    flows: BTreeMap<u32, Flow>,
    /// The number of the next connection.
    next: u32,
    /// The guest has said that it listens, which it says once.
    is_ready: bool,
}

impl Relay {
    /// A relay without connections.
    pub fn new(side: Side) -> Self {
        Self { side, flows: BTreeMap::new(), next: 0, is_ready: false }
    }

    fn add(&mut self) -> Option<u32> {
        let id = self.next;
        if self.flows.len() >= RELAY_CONNECTIONS {
            return None;
        }
        self.next = id.checked_add(1)?;
        let flow = Flow { room: RELAY_WINDOW, owed: RELAY_WINDOW, has_ended: false, other_has_ended: false };
        self.flows.insert(id, flow);
        Some(id)
    }

    /// A new connection; `None` if there are as many as there may be.
    pub fn open(&mut self, out: &mut Vec<u8>) -> Option<u32> {
        let id = self.add()?;
        say(&Relayed::Open(id), out);
        Some(id)
    }

    /// Bytes that may be sent now in one frame.
    pub fn room(&self, id: u32) -> usize {
        let flow = self.flows.get(&id).filter(|flow| !flow.has_ended);
        flow.map_or(0, |flow| flow.room.min(RELAY_DATA_MAX))
    }

    /// Whether all that was sent was taken, or nobody is there any more to take it.
    pub fn is_drained(&self, id: u32) -> bool {
        self.flows.get(&id).is_none_or(|flow| flow.room == RELAY_WINDOW)
    }

    /// Sends the first of `bytes`, as many as there is room for; returns how many.
    pub fn send(&mut self, id: u32, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let count = self.room(id).min(bytes.len());
        let (Some(piece), Some(flow)) = (bytes.get(..count), self.flows.get_mut(&id)) else { return 0 };
        if count > 0 {
            flow.room = flow.room.saturating_sub(count);
            say(&Relayed::Data(id, piece.to_vec()), out);
        }
        count
    }

    /// Says that so many bytes were taken.
    pub fn took(&mut self, id: u32, count: usize, out: &mut Vec<u8>) {
        let Some(flow) = self.flows.get_mut(&id).filter(|_| count > 0) else { return };
        flow.owed = flow.owed.saturating_add(count).min(RELAY_WINDOW);
        say(&Relayed::Taken(id, count.min(RELAY_WINDOW) as u32), out);
    }

    /// Ends this side's direction.
    pub fn end(&mut self, id: u32, out: &mut Vec<u8>) {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.has_ended) else { return };
        flow.has_ended = true;
        say(&Relayed::End(id), out);
    }

    /// Closes a connection, if it is there.
    pub fn close(&mut self, id: u32, out: &mut Vec<u8>) {
        if self.flows.remove(&id).is_some() {
            say(&Relayed::Close(id), out);
        }
    }

    /// Takes what the other side said; `None` if it is late: about a connection that this side has closed.
    ///
    /// # Errors
    /// It may not say that: the relay cannot go on.
    pub fn take(&mut self, said: Relayed) -> Result<Option<Relayed>, ProtocolError> {
        let id = match &said {
            Relayed::Ready | Relayed::Open(_) if self.side == Side::Agent => {
                return Err(ProtocolError("a host opens no connections"));
            }
            Relayed::Ready if std::mem::replace(&mut self.is_ready, true) => {
                return Err(ProtocolError("a guest that is ready twice"));
            }
            Relayed::Ready => return Ok(Some(said)),
            Relayed::Open(id) => {
                let expected = self.next;
                return match (*id == expected).then(|| self.add()).flatten() {
                    Some(_) => Ok(Some(said)),
                    None => Err(ProtocolError("a connection too many, or of another number than comes next")),
                };
            }
            Relayed::Data(id, _) | Relayed::Taken(id, _) | Relayed::End(id) | Relayed::Close(id) => *id,
        };
        if id >= self.next {
            return Err(ProtocolError("a connection that there never was"));
        }
        let Some(flow) = self.flows.get_mut(&id) else { return Ok(None) };
        match &said {
            Relayed::Data(_, bytes) => {
                let left = flow.owed.checked_sub(bytes.len()).filter(|_| !flow.other_has_ended);
                flow.owed = left.ok_or(ProtocolError("more data than may be on their way"))?;
            }
            Relayed::Taken(_, count) => {
                let room = flow.room.checked_add(*count as usize).filter(|room| *room <= RELAY_WINDOW);
                flow.room = room.ok_or(ProtocolError("more was taken than was sent"))?;
            }
            Relayed::End(_) if flow.other_has_ended => return Err(ProtocolError("an end behind an end")),
            Relayed::End(_) => flow.other_has_ended = true,
            _ => drop(self.flows.remove(&id)),
        }
        Ok(Some(said))
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

/// What this side says always fits: pieces are cut before.
fn say(what: &Relayed, out: &mut Vec<u8>) {
    let _ = what.encode(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decoder;

    /// Both sides, and what each has said.
    struct Pair {
        guest: Relay,
        host: Relay,
        to_host: Vec<u8>,
        to_guest: Vec<u8>,
    }

    fn heard(bytes: &mut Vec<u8>, by: &mut Relay) -> Result<Vec<Relayed>, ProtocolError> {
        let mut decoder = Decoder::default();
        decoder.push(&std::mem::take(bytes));
        let mut out = Vec::new();
        while let Some((kind, payload)) = decoder.frame()? {
            out.extend(by.take(Relayed::decode(kind, payload)?)?);
        }
        assert!(!decoder.is_within_frame());
        Ok(out)
    }

    impl Pair {
        fn new() -> Self {
            let (guest, host) = (Relay::new(Side::Agent), Relay::new(Side::Host));
            Self { guest, host, to_host: Vec::new(), to_guest: Vec::new() }
        }

        fn opened() -> (Self, u32) {
            let mut pair = Self::new();
            let id = pair.guest.open(&mut pair.to_host).expect("there is room");
            assert_eq!(heard(&mut pair.to_host, &mut pair.host), Ok(vec![Relayed::Open(id)]));
            (pair, id)
        }
    }

    #[test]
    fn data_of_connections_comes_whole_and_in_order_whatever_lies_between() {
        let mut pair = Pair::new();
        let ids = [0, 1, 2].map(|_| pair.guest.open(&mut pair.to_host).expect("there is room"));
        let sent: Vec<Vec<u8>> = (0..3u8).map(|n| (0..100_000u32).map(|i| (i >> 7) as u8 ^ n).collect()).collect();
        let (mut at, mut got) = ([0; 3], [Vec::new(), Vec::new(), Vec::new()]);
        while got.iter().zip(&sent).any(|(got, sent)| got.len() < sent.len()) {
            for (n, id) in ids.iter().enumerate() {
                at[n] += pair.guest.send(*id, &sent[n][at[n]..], &mut pair.to_host);
            }
            for said in heard(&mut pair.to_host, &mut pair.host).expect("as agreed") {
                if let Relayed::Data(id, bytes) = said {
                    pair.host.took(id, bytes.len(), &mut pair.to_guest);
                    got[id as usize].extend(bytes);
                }
            }
            heard(&mut pair.to_guest, &mut pair.guest).expect("as agreed");
        }
        assert_eq!(got.to_vec(), sent);
    }

    #[test]
    fn a_connection_that_nobody_reads_stops_at_its_window_and_others_go_on() {
        let (mut pair, slow) = Pair::opened();
        let fast = pair.guest.open(&mut pair.to_host).expect("there is room");
        let mut sent = 0;
        while let n @ 1.. = pair.guest.send(slow, &[7; 100_000], &mut pair.to_host) {
            sent += n;
        }
        assert_eq!((sent, pair.guest.room(slow)), (RELAY_WINDOW, 0));
        assert!(!pair.guest.is_drained(slow) && pair.guest.is_drained(fast));
        assert_eq!(pair.guest.send(fast, b"on", &mut pair.to_host), 2);
        heard(&mut pair.to_host, &mut pair.host).expect("as agreed");
        pair.host.took(slow, 10, &mut pair.to_guest);
        heard(&mut pair.to_guest, &mut pair.guest).expect("as agreed");
        assert_eq!(pair.guest.room(slow), 10);
    }

    #[test]
    fn each_direction_ends_by_itself_and_what_is_late_is_passed_over() {
        let (mut pair, id) = Pair::opened();
        pair.guest.send(id, b"question", &mut pair.to_host);
        pair.guest.end(id, &mut pair.to_host);
        pair.guest.end(id, &mut pair.to_host);
        assert_eq!(pair.guest.send(id, b"more", &mut pair.to_host), 0, "it has ended");
        let said = heard(&mut pair.to_host, &mut pair.host).expect("as agreed");
        assert_eq!(said, [Relayed::Data(id, b"question".to_vec()), Relayed::End(id)]);
        assert_eq!(pair.host.send(id, b"answer", &mut pair.to_guest), 6);
        // The guest closes while the answer is on its way.
        pair.guest.close(id, &mut pair.to_host);
        assert_eq!(heard(&mut pair.to_guest, &mut pair.guest), Ok(Vec::new()));
        assert_eq!(heard(&mut pair.to_host, &mut pair.host), Ok(vec![Relayed::Close(id)]));
        assert!(pair.host.is_empty() && pair.guest.is_empty() && pair.host.is_drained(id));
        assert_ne!(pair.guest.open(&mut pair.to_host), Some(id), "a number is used once");
    }

    #[test]
    fn there_are_never_more_connections_than_there_may_be() {
        let mut pair = Pair::new();
        for _ in 0..RELAY_CONNECTIONS {
            assert!(pair.guest.open(&mut pair.to_host).is_some());
        }
        assert_eq!(pair.guest.open(&mut pair.to_host), None);
        heard(&mut pair.to_host, &mut pair.host).expect("as many as there may be");
        assert_eq!(pair.host.len(), RELAY_CONNECTIONS);
        assert!(pair.host.take(Relayed::Open(RELAY_CONNECTIONS as u32)).is_err(), "one too many");
        pair.guest.close(3, &mut pair.to_host);
        assert_eq!(pair.guest.open(&mut pair.to_host), Some(RELAY_CONNECTIONS as u32));
        heard(&mut pair.to_host, &mut pair.host).expect("there is room again");
    }

    #[test]
    fn what_may_not_be_said_ends_the_relay() {
        let data = |len| Relayed::Data(0, vec![0; len]);
        let window = vec![data(RELAY_DATA_MAX); RELAY_WINDOW / RELAY_DATA_MAX];
        for hostile in [
            vec![Relayed::Ready, Relayed::Ready],
            vec![Relayed::Open(7)],
            vec![Relayed::Open(0)],
            vec![Relayed::Data(9, b"x".to_vec())],
            vec![Relayed::Close(1)],
            vec![Relayed::Taken(0, 1)],
            vec![Relayed::Taken(0, u32::MAX)],
            vec![Relayed::End(0), Relayed::End(0)],
            vec![Relayed::End(0), data(1)],
            [window, vec![data(1)]].concat(),
        ] {
            let (mut pair, _) = Pair::opened();
            let outcome: Result<Vec<_>, _> = hostile.iter().cloned().map(|said| pair.host.take(said)).collect();
            assert!(outcome.is_err(), "{hostile:?}");
        }
        for hostile in [Relayed::Ready, Relayed::Open(1)] {
            assert!(Pair::opened().0.guest.take(hostile).is_err(), "a host opens nothing");
        }
    }

    #[test]
    fn cut_and_changed_frames_are_errors_or_other_frames_and_nothing_worse() {
        let all = [
            Relayed::Ready,
            Relayed::Open(1),
            Relayed::Data(2, b"bytes".to_vec()),
            Relayed::Taken(3, 4),
            Relayed::End(5),
            Relayed::Close(u32::MAX),
        ];
        for said in all {
            let mut bytes = Vec::new();
            said.encode(&mut bytes).expect("it fits");
            let (kind, payload) = (bytes[4], &bytes[5..]);
            assert_eq!(Relayed::decode(kind, payload), Ok(said.clone()));
            for cut in 0..payload.len() {
                assert!(Relayed::decode(kind, &payload[..cut]) != Ok(said.clone()));
            }
            if !matches!(said, Relayed::Data(..)) {
                assert!(Relayed::decode(kind, &[payload, b"x"].concat()).is_err(), "bytes behind the end");
            }
        }
        assert!(Relayed::decode(3, &[0; 4]).is_err(), "no data");
        assert!(Relayed::decode(3, &[0; 5 + RELAY_DATA_MAX]).is_err(), "too long");
        assert!(Relayed::decode(0, &[]).is_err() && Relayed::decode(7, &[]).is_err());
        assert!(Relayed::Data(0, Vec::new()).encode(&mut Vec::new()).is_err());
    }
}
