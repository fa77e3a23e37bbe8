//! Any bytes through everything that reads bytes: what a fuzzer runs, and the replay of what it found.

use crate::{Decoder, Hello, Relay, Relayed, Reply, Request, Side, HEADER, PAYLOAD_MAX, RELAY_CONNECTIONS};

/// Takes `input` as what came over a port, in pieces of a size that its first byte says.
///
/// # Panics
/// A message that was decoded is not encoded to one that decodes to the same.
pub fn frames(input: &[u8]) {
    let Some((&first, bytes)) = input.split_first() else { return };
    for side in [Side::Host, Side::Agent] {
        if let Ok((_, used)) = Hello::find(bytes, side) {
            assert!(used <= bytes.len(), "no more is forgotten than there is");
        }
    }
    let mut decoder = Decoder::default();
    let mut relays = [Relay::new(Side::Host), Relay::new(Side::Agent)];
    // An agent hears of a connection that it has opened itself.
    let [_, agent] = &mut relays;
    agent.open(&mut Vec::new());
    for piece in bytes.chunks(usize::from(first).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.frame() {
                Ok(Some((kind, payload))) => {
                    if let Ok(request) = Request::decode(kind, payload) {
                        again(
                            kind,
                            payload,
                            |out| request.encode(out).is_ok(),
                            |payload| Request::decode(kind, payload) == Ok(request.clone()),
                        );
                    }
                    if let Ok(said) = Relayed::decode(kind, payload) {
                        again(
                            kind,
                            payload,
                            |out| said.encode(out).is_ok(),
                            |payload| Relayed::decode(kind, payload) == Ok(said.clone()),
                        );
                        for relay in &mut relays {
                            let _ = relay.take(said.clone());
                            assert!(relay.len() <= RELAY_CONNECTIONS, "no more connections than there may be");
                        }
                    }
                    if let Ok(reply) = Reply::decode(kind, payload) {
                        again(
                            kind,
                            payload,
                            |out| reply.encode(out).is_ok(),
                            |payload| Reply::decode(kind, payload) == Ok(reply.clone()),
                        );
                    }
                }
                Ok(None) => break,
                Err(_) => return assert!(decoder.into_rest().len() <= bytes.len()),
            }
        }
    }
}

fn again(kind: u8, payload: &[u8], encode: impl Fn(&mut Vec<u8>) -> bool, same: impl Fn(&[u8]) -> bool) {
    let mut out = Vec::new();
    // A message as text may become longer: bytes that are none are replaced.
    if !encode(&mut out) {
        return assert!(payload.len().saturating_mul(3) > PAYLOAD_MAX, "what came in a frame fits into one");
    }
    assert_eq!(out.get(4), Some(&kind));
    assert!(out.get(HEADER..).is_some_and(same), "decoded, encoded and decoded");
}
