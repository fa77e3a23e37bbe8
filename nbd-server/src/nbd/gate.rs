//! The plaintext stage of a connection that must be encrypted (FORCEDTLS).
//!
//! Invariants
//!   * the gate has no field for anything that options agree on, so nothing said in plain text can
//!     be in force later: only the client's handshake flags, which are not repeated, pass through;
//!   * no export is looked at, and none is named, before the channel is secure;
//!   * bytes sent behind STARTTLS before its answer end the connection: they could have been put
//!     there by somebody in the middle.
//!
//! Not here: TLS itself (`tls`), the negotiation proper (`handshake`).

use super::handshake::Handshake;
use super::option::{
    greet, refuse, reply, Framed, Framer, ERR_INVALID, ERR_TLS_REQD, ERR_TOO_BIG, OPT_ABORT, OPT_EXPORT_NAME,
    OPT_STARTTLS, REP_ACK,
};

/// What to do next.
pub enum GateStep {
    /// More bytes are needed.
    NeedMore,
    /// Send what is in the buffer, start TLS, and negotiate anew inside it.
    Secure(Handshake),
    /// Send what is in the buffer and close.
    Close,
}

/// One client that has not started TLS yet.
pub struct Gate(Framer);

impl Gate {
    /// Starts: `out` gets the server's greeting.
    pub fn new(out: &mut Vec<u8>) -> Self {
        greet(out);
        Self(Framer::default())
    }

    /// Consumes what it can of `input` and answers into `out`; returns the bytes consumed.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, GateStep) {
        let mut used = 0;
        loop {
            match self.0.next(input, &mut used) {
                Framed::NeedMore => return (used, GateStep::NeedMore),
                Framed::Fatal | Framed::Option(OPT_EXPORT_NAME, _) | Framed::TooBig(OPT_EXPORT_NAME) => {
                    return (used, GateStep::Close);
                }
                Framed::Option(OPT_ABORT, _) => {
                    reply(out, OPT_ABORT, REP_ACK, &[]);
                    return (used, GateStep::Close);
                }
                Framed::Option(OPT_STARTTLS, []) => {
                    let Some(flags) = self.0.flags().filter(|_| used == input.len()) else {
                        return (used, GateStep::Close);
                    };
                    reply(out, OPT_STARTTLS, REP_ACK, &[]);
                    return (used, GateStep::Secure(Handshake::secured(flags)));
                }
                Framed::Option(OPT_STARTTLS, _) => {
                    refuse(out, OPT_STARTTLS, ERR_INVALID, "this option takes no payload");
                }
                Framed::Option(option, _) => {
                    refuse(out, option, ERR_TLS_REQD, "this server needs TLS: send STARTTLS first");
                }
                Framed::TooBig(option) => refuse(out, option, ERR_TOO_BIG, "option payload is too long"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::option::{OPTION_MAGIC, OPT_GO, OPT_LIST, OPT_SET_META, OPT_STRUCTURED};
    use super::*;

    fn option(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = OPTION_MAGIC.to_vec();
        out.extend(kind.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }

    fn run(input: &[u8]) -> (GateStep, Vec<u8>) {
        let mut out = Vec::new();
        let mut gate = Gate::new(&mut out);
        out.clear();
        let (_, step) = gate.step(input, &mut out);
        (step, out)
    }

    fn flags() -> Vec<u8> {
        3u32.to_be_bytes().to_vec()
    }

    #[test]
    fn every_option_but_abort_and_starttls_is_told_that_tls_is_required() {
        for kind in [OPT_LIST, OPT_GO, OPT_STRUCTURED, OPT_SET_META, 6, 9, 11, 77] {
            let (step, out) = run(&[flags(), option(kind, b"\0\0\0\0\0\0")].concat());
            assert!(matches!(step, GateStep::NeedMore));
            assert_eq!(out.get(12..16), Some(&ERR_TLS_REQD.to_be_bytes()[..]));
        }
    }

    #[test]
    fn the_old_way_in_is_closed_without_an_answer() {
        let (step, out) = run(&[flags(), option(OPT_EXPORT_NAME, b"disk")].concat());
        assert!(matches!(step, GateStep::Close));
        assert!(out.is_empty(), "a size would be a yes");
    }

    #[test]
    fn starttls_is_acknowledged_and_alone() {
        let (step, out) = run(&[flags(), option(OPT_STARTTLS, &[])].concat());
        assert!(matches!(step, GateStep::Secure(_)));
        assert_eq!(out.get(12..16), Some(&REP_ACK.to_be_bytes()[..]));
    }

    #[test]
    fn cve_2021_3716_plaintext_behind_starttls_disconnects() {
        let injected = [flags(), option(OPT_STARTTLS, &[]), option(OPT_STRUCTURED, &[])].concat();
        let (step, out) = run(&injected);
        assert!(matches!(step, GateStep::Close));
        assert!(out.is_empty(), "no acknowledgement");
        let half = [flags(), option(OPT_STARTTLS, &[]), vec![0]].concat();
        assert!(matches!(run(&half).0, GateStep::Close));
    }

    #[test]
    fn cve_2021_3716_options_from_before_tls_are_not_in_force_inside_it() {
        use super::super::handshake::tests::One;
        use super::super::HandshakeStep;
        let mut out = Vec::new();
        let mut gate = Gate::new(&mut out);
        gate.step(&[flags(), option(OPT_STRUCTURED, &[])].concat(), &mut out);
        let (_, step) = gate.step(&option(OPT_STARTTLS, &[]), &mut out);
        let GateStep::Secure(mut inside) = step else { panic!("STARTTLS is accepted") };
        let go = option(OPT_GO, b"\0\0\0\x04disk\0\0");
        let (_, step) = inside.step(&go, &mut One, &mut out);
        assert!(matches!(step, HandshakeStep::Serve(agreed) if !agreed.structured && agreed.contexts.is_empty()));
    }
}
