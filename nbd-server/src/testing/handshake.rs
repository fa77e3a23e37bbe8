//! Any bytes as a client's side of the handshake.
//!
//! What must hold: no panic; the same outcome and output however the bytes are cut; bounded input kept
//! and bounded output made; nothing agreed on but what the client asked for; behind the TLS gate no
//! export is looked at before the channel is secure.

use super::script::Script;
use crate::nbd::limits::{ANSWER_BYTES_MAX, LIST_MAX, OPTION_BYTES_MAX};
use crate::nbd::{ExportInfo, Exports, Gate, GateStep, Handshake, HandshakeStep, Negotiated, OpenError};

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";

struct Two;

impl Exports for Two {
    fn list(&mut self) -> Vec<String> {
        vec!["disk".to_owned(), "x".repeat(255)]
    }
    fn open(&mut self, name: &str) -> Result<ExportInfo, OpenError> {
        match name {
            "" | "disk" | "disk@v1" => Ok(ExportInfo {
                name: if name.is_empty() { "disk".to_owned() } else { name.to_owned() },
                size: 1 << 30,
                read_only: name.contains('@'),
                description: "a disk".to_owned(),
            }),
            _ => Err(OpenError(format!("there is no {name:?}"))),
        }
    }
    fn has_checkpoint(&mut self, _: &str, checkpoint: &str) -> bool {
        checkpoint == "v1"
    }
    fn checkpoints(&mut self, _: &str, _: usize) -> Vec<String> {
        vec!["v1".to_owned()]
    }
}

/// Runs one handshake. The first byte chooses the gate (bit 0), a structured script instead of raw
/// bytes (bit 1) and the size of the pieces that arrive.
pub fn handshake(input: &[u8]) {
    let mut script = Script(input);
    let mode = script.byte();
    let bytes = if mode & 2 == 0 { script.0.to_vec() } else { conversation(&mut script) };
    let gated = mode & 1 != 0;
    let whole = run(&bytes, bytes.len().max(1), gated);
    let cut = run(&bytes, 1 + usize::from(mode >> 2), gated);
    // What is pipelined behind STARTTLS ends a client, and what comes after its answer does not: only
    // there may the cut matter.
    if !gated {
        assert_eq!(whole, cut, "the outcome depends on how the bytes arrive");
    }
}

/// Options that are framed right.
fn conversation(script: &mut Script<'_>) -> Vec<u8> {
    let mut out = u32::from(script.byte() & 3).to_be_bytes().to_vec();
    while !script.done() {
        let kind = u32::from(script.byte() % 14);
        let shape = script.byte();
        let name = ["disk", "", "disk@v1", "other"][usize::from(shape & 3)];
        let mut data = Vec::new();
        if shape & 4 != 0 {
            data.extend((name.len() as u32).to_be_bytes());
            data.extend(name.as_bytes());
        }
        if shape & 8 != 0 {
            let queries = ["base:allocation", "base:", "cairn:changed-since/v1", "cairn:changed-since/v9"];
            let count = usize::from(shape >> 6) + 1;
            data.extend((count as u32).to_be_bytes());
            for query in queries.iter().cycle().skip(usize::from(shape >> 4 & 3)).take(count) {
                data.extend((query.len() as u32).to_be_bytes());
                data.extend(query.as_bytes());
            }
        } else if shape & 16 != 0 {
            data.extend(1u16.to_be_bytes());
            data.extend(u16::from(shape >> 5).to_be_bytes());
        } else if shape & 32 != 0 {
            data.extend([0, 0]);
        } else if shape & 64 != 0 {
            let len = usize::from(script.byte());
            data.extend(script.take(len));
        }
        out.extend(OPTION_MAGIC);
        out.extend(kind.to_be_bytes());
        let lie = if shape & 128 != 0 { u32::from(script.byte()) } else { 0 };
        out.extend((data.len() as u32).wrapping_sub(lie).to_be_bytes());
        out.extend(data);
    }
    out
}

/// How a handshake ended: with what agreement, closed or not, and everything said.
type Outcome = (Option<Negotiated>, bool, Vec<u8>);

fn run(bytes: &[u8], piece: usize, gated: bool) -> Outcome {
    let (mut said, mut out) = (Vec::new(), Vec::new());
    let mut gate = gated.then(|| Gate::new(&mut out));
    let mut inside = (!gated).then(|| Handshake::new(&mut out));
    let mut kept: Vec<u8> = Vec::new();
    for chunk in bytes.chunks(piece) {
        kept.extend(chunk);
        loop {
            said.append(&mut out);
            let (used, again, end) = match (&mut gate, &mut inside) {
                (_, Some(handshake)) => {
                    let (used, step) = handshake.step(&kept, &mut Two, &mut out);
                    match step {
                        HandshakeStep::NeedMore => (used, false, None),
                        HandshakeStep::Send => (used, true, None),
                        HandshakeStep::Close => (used, false, Some(None)),
                        HandshakeStep::Serve(agreed) => (used, false, Some(Some(*agreed))),
                    }
                }
                (Some(open), None) => {
                    let (used, step) = open.step(&kept, &mut out);
                    match step {
                        GateStep::NeedMore => (used, false, None),
                        GateStep::Close => (used, false, Some(None)),
                        GateStep::Secure(handshake) => {
                            assert_eq!(used, kept.len(), "plaintext is carried into TLS");
                            inside = Some(handshake);
                            (used, false, None)
                        }
                    }
                }
                (None, None) => unreachable!("one stage is always there"),
            };
            assert!(used <= kept.len());
            kept.drain(..used);
            assert!(out.len() <= ANSWER_BYTES_MAX + LIST_MAX * 300 + OPTION_BYTES_MAX as usize, "too much is said");
            if let Some(agreed) = end {
                said.append(&mut out);
                if let Some(agreed) = &agreed {
                    assert!(agreed.structured || !agreed.extended && agreed.contexts.is_empty());
                }
                return (agreed, true, said);
            }
            if !again {
                break;
            }
        }
        assert!(piece > 300 || kept.len() <= 16 + OPTION_BYTES_MAX as usize, "more than one option is kept");
    }
    said.append(&mut out);
    (None, false, said)
}
