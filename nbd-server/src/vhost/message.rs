//! What a VMM says, as pure code: bytes and a count of file descriptors in, a [`Message`] out.
//!
//! Invariants
//!   * a message is judged as a whole: its length and the number of its descriptors are those of its kind, or it is none;
//!   * every number in it is only that: whether it can be meant is for `device` to see.

use super::limits::{FDS_MAX, PAYLOAD_MAX, REGIONS_MAX};
use super::wire::{u16_at, u32_at, u64_at};

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 12;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// In the number of a queue that comes with a descriptor: there is none.
const NO_FD: u64 = 1 << 8;
/// What the number of such a queue has room for.
const QUEUE_MASK: u64 = 0xff;
const REGION_BYTES: usize = 32;
/// With the padding of C, and without.
const INFLIGHT_BYTES: [usize; 2] = [24, 20];
const CONFIG_HEADER_BYTES: usize = 12;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is said.
    pub request: u32,
    /// The sender waits for an answer.
    pub need_reply: bool,
    /// Bytes of payload.
    pub size: u32,
}

/// A piece of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The guest's address.
    pub guest: u64,
    /// Bytes.
    pub len: u64,
    /// The VMM's address.
    pub user: u64,
    /// Where in its file it begins.
    pub offset: u64,
}

/// Memory that outlives a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// Bytes.
    pub len: u64,
    /// Where in its file it begins.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
    /// The length in which it was said.
    pub said: usize,
}

/// Which descriptor of a queue is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest rings.
    Kick,
    /// The guest is rung.
    Call,
    /// The VMM is told that a queue is broken.
    Err,
}

/// What a VMM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    /// Nothing is kept of these.
    Owner,
    /// With one descriptor each.
    SetMemory(Vec<Region>),
    /// With one descriptor.
    SetLog {
        len: u64,
        offset: u64,
    },
    /// A descriptor that nothing is written to.
    SetLogFd,
    SetSize {
        queue: u32,
        entries: u32,
    },
    SetPlaces {
        queue: u32,
        logged: bool,
        table: u64,
        used: u64,
        available: u64,
    },
    SetBase {
        queue: u32,
        next: u32,
    },
    GetBase(u32),
    /// With a descriptor, or without when there is none.
    SetEvent {
        queue: u8,
        event: Event,
        given: bool,
    },
    GetQueues,
    Enable {
        queue: u32,
        on: bool,
    },
    /// With one descriptor.
    SetBackChannel,
    GetConfig {
        offset: u32,
        len: u32,
        flags: u32,
    },
    SetConfig,
    GetInflight(Inflight),
    /// With one descriptor.
    SetInflight(Inflight),
    /// Something that was not offered.
    Unknown(u32),
}

/// Why a connection ends.
pub type Refusal = &'static str;

/// Reads a header.
///
/// # Errors
/// It is none.
pub fn header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Refusal> {
    let (Some(request), Some(flags), Some(size)) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8)) else {
        return Err("a header that is cut off");
    };
    if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
        return Err("a message of another version of the protocol, or an answer to nothing");
    }
    if size > PAYLOAD_MAX {
        return Err("a message of more than 4096 bytes");
    }
    Ok(Header { request, need_reply: flags & NEED_REPLY != 0, size })
}

/// Reads a message that came with so many descriptors.
///
/// # Errors
/// It is none of its kind.
pub fn parse(request: u32, payload: &[u8], fds: usize) -> Result<Message, Refusal> {
    let (message, wants) = read(request, payload).ok_or("a message of a length that its kind does not have")?;
    // Of what is not known nothing is: neither length nor descriptors.
    if fds != wants && !matches!(message, Message::Unknown(_)) || fds > FDS_MAX {
        return Err("a message with more or fewer descriptors than its kind has");
    }
    Ok(message)
}

/// The message, and how many descriptors come with it.
fn read(request: u32, payload: &[u8]) -> Option<(Message, usize)> {
    let empty = || payload.is_empty().then_some(());
    let number = || (payload.len() == 8).then(|| u64_at(payload, 0)).flatten();
    let pair = || (payload.len() == 8).then(|| Some((u32_at(payload, 0)?, u32_at(payload, 4)?))).flatten();
    let event = |event| {
        let number = number()?;
        let (queue, given) = ((number & QUEUE_MASK) as u8, number & NO_FD == 0);
        (number & !(QUEUE_MASK | NO_FD) == 0).then_some((Message::SetEvent { queue, event, given }, usize::from(given)))
    };
    Some(match request {
        1 => (empty().map(|()| Message::GetFeatures)?, 0),
        2 => (Message::SetFeatures(number()?), 0),
        3 | 4 => (empty().map(|()| Message::Owner)?, 0),
        5 => {
            let regions = regions(payload)?;
            let count = regions.len();
            (Message::SetMemory(regions), count)
        }
        6 if payload.len() == 16 => (Message::SetLog { len: u64_at(payload, 0)?, offset: u64_at(payload, 8)? }, 1),
        6 => return None,
        7 => (Message::SetLogFd, 1),
        8 => pair().map(|(queue, entries)| (Message::SetSize { queue, entries }, 0))?,
        9 => (places(payload)?, 0),
        10 => pair().map(|(queue, next)| (Message::SetBase { queue, next }, 0))?,
        11 => (Message::GetBase(pair()?.0), 0),
        12 => event(Event::Kick)?,
        13 => event(Event::Call)?,
        14 => event(Event::Err)?,
        15 => (empty().map(|()| Message::GetProtocolFeatures)?, 0),
        16 => (Message::SetProtocolFeatures(number()?), 0),
        17 => (empty().map(|()| Message::GetQueues)?, 0),
        18 => pair().filter(|(_, on)| *on <= 1).map(|(queue, on)| (Message::Enable { queue, on: on == 1 }, 0))?,
        21 => (empty().map(|()| Message::SetBackChannel)?, 1),
        24 | 25 => {
            let (offset, len, flags) = (u32_at(payload, 0)?, u32_at(payload, 4)?, u32_at(payload, 8)?);
            if payload.len().checked_sub(CONFIG_HEADER_BYTES)? != len as usize {
                return None;
            }
            (if request == 24 { Message::GetConfig { offset, len, flags } } else { Message::SetConfig }, 0)
        }
        31 => (Message::GetInflight(inflight(payload)?), 0),
        32 => (Message::SetInflight(inflight(payload)?), 1),
        other => (Message::Unknown(other), 0),
    })
}

fn regions(payload: &[u8]) -> Option<Vec<Region>> {
    let count = u32_at(payload, 0)? as usize;
    if count == 0 || count > REGIONS_MAX || payload.len() != 8 + count * REGION_BYTES {
        return None;
    }
    let region = |at: usize| {
        let word = |n: usize| u64_at(payload, at + 8 * n);
        Some(Region { guest: word(0)?, len: word(1)?, user: word(2)?, offset: word(3)? })
    };
    (0..count).map(|n| region(8 + n * REGION_BYTES)).collect()
}

fn places(payload: &[u8]) -> Option<Message> {
    if payload.len() != 40 {
        return None;
    }
    let (queue, flags) = (u32_at(payload, 0)?, u32_at(payload, 4)?);
    let (table, used, available) = (u64_at(payload, 8)?, u64_at(payload, 16)?, u64_at(payload, 24)?);
    Some(Message::SetPlaces { queue, logged: flags & 1 != 0, table, used, available })
}

fn inflight(payload: &[u8]) -> Option<Inflight> {
    let said = payload.len();
    if !INFLIGHT_BYTES.contains(&said) {
        return None;
    }
    let (len, offset) = (u64_at(payload, 0)?, u64_at(payload, 8)?);
    Some(Inflight { len, offset, queues: u16_at(payload, 16)?, entries: u16_at(payload, 18)?, said })
}

/// An answer to `request`, or with `request` of the back channel a message to the VMM.
pub fn encode(request: u32, answer: bool, payload: &[u8]) -> Vec<u8> {
    let flags = if answer { VERSION | REPLY } else { VERSION };
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    for word in [request, flags, payload.len() as u32] {
        out.extend(word.to_le_bytes());
    }
    out.extend(payload);
    out
}

/// The payload of an answer to [`Message::GetInflight`].
pub fn inflight_answer(answer: &Inflight) -> Vec<u8> {
    let mut out = Vec::with_capacity(answer.said);
    out.extend(answer.len.to_le_bytes());
    out.extend(answer.offset.to_le_bytes());
    out.extend(answer.queues.to_le_bytes());
    out.extend(answer.entries.to_le_bytes());
    out.resize(answer.said, 0);
    out
}

/// The payload of an answer to [`Message::GetConfig`].
pub fn config_answer(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CONFIG_HEADER_BYTES + bytes.len());
    for word in [offset, bytes.len() as u32, flags] {
        out.extend(word.to_le_bytes());
    }
    out.extend(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn headers_of_others_are_refused() {
        let read = |words: &[u32]| header(bytes(words).as_slice().try_into().expect("twelve bytes"));
        assert_eq!(read(&[5, 9, 4096]), Ok(Header { request: 5, need_reply: true, size: 4096 }));
        for bad in [[1, 0, 0], [1, 2, 0], [1, 3, 0], [1, 5, 0], [1, 1, 4097], [1, 1, u32::MAX]] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }

    /// Kind, payload, and how many descriptors it has.
    fn honest() -> Vec<(u32, Vec<u8>, usize)> {
        let memory = |n: u32| [bytes(&[n, 0]), vec![1; n as usize * REGION_BYTES]].concat();
        let config = [bytes(&[0, 8, 0]), vec![0; 8]].concat();
        let none = [1, 3, 4, 15, 17].map(|kind| (kind, Vec::new(), 0));
        let numbers = [(2, 0), (16, 0), (12, 1), (13, 1), (14, 1)].map(|(kind, fds)| (kind, vec![0; 8], fds));
        let pairs = [8, 10, 11, 18].map(|kind| (kind, bytes(&[1, 1]), 0));
        let mut all = vec![
            (5, memory(1), 1),
            (5, memory(8), 8),
            (6, vec![0; 16], 1),
            (9, vec![0; 40], 0),
            (13, bytes(&[1 << 8, 0]), 0),
            (21, Vec::new(), 1),
            (24, config.clone(), 0),
            (25, config, 0),
            (31, vec![0; 24], 0),
            (32, vec![0; 20], 1),
        ];
        all.extend(none);
        all.extend(numbers);
        all.extend(pairs);
        all
    }

    #[test]
    fn every_kind_has_its_length_and_its_descriptors() {
        for (kind, payload, fds) in honest() {
            assert!(parse(kind, &payload, fds).is_ok(), "{kind}");
            for wrong in (0..12).filter(|count| *count != fds) {
                assert!(parse(kind, &payload, wrong).is_err(), "{kind} with {wrong} descriptors");
            }
            for len in (0..=payload.len() + 40).filter(|len| *len != payload.len()) {
                let mut other = payload.clone();
                other.resize(len, 0);
                let may = [20, 24].contains(&len) && [31, 32].contains(&kind);
                assert_eq!(parse(kind, &other, fds).is_ok(), may, "{kind} of {len} bytes");
            }
        }
        for count in [0, 9, u32::MAX] {
            assert!(parse(5, &[bytes(&[count, 0]), vec![0; 9 * 32]].concat(), count as usize).is_err());
        }
        assert!(parse(18, &bytes(&[0, 2]), 0).is_err(), "neither on nor off");
        assert!(parse(12, &bytes(&[1 << 9, 0]), 1).is_err(), "bits that mean nothing");
        assert_eq!(parse(40, &[1, 2], 3), Ok(Message::Unknown(40)));
        assert!(parse(40, &[], 9).is_err());
    }
}
