//! Fixed newstyle negotiation, one option at a time, on a channel that is trusted enough: a Unix
//! socket, loopback, or the inside of TLS.
//!
//! Invariants
//!   * nothing is opened for a client that has not named an export;
//!   * output waits: beyond `ANSWER_BYTES_MAX` unsent bytes no further option is looked at;
//!   * every client byte sequence ends in an answer, a session or a disconnect, never a panic.
//!
//! Not here: framing (`option`), the stage before TLS (`gate`), requests (`request`).

use super::limits::{ANSWER_BYTES_MAX, CONTEXTS_LISTED_MAX, CONTEXTS_MAX, LIST_MAX, NAME_BYTES_MAX, PAYLOAD_MAX};
use super::option::{
    greet, refuse, reply, ClientFlags, Framed, Framer, ERR_EXT_HEADER_REQD, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN,
    ERR_UNSUP, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META, OPT_SET_META,
    OPT_STARTTLS, OPT_STRUCTURED, REP_ACK, REP_INFO, REP_META, REP_SERVER,
};
use super::wire::{u16_at, u32_at};

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// What a client is told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Canonical name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Refuses changes.
    pub read_only: bool,
    /// For people.
    pub description: String,
}

/// Why an export cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError(pub String);

/// What the handshake asks of the server; called only for clients that name an export.
pub trait Exports {
    /// Names of all exports.
    fn list(&mut self) -> Vec<String>;
    /// An export by name; the empty name is the default export.
    fn open(&mut self, name: &str) -> Result<ExportInfo, OpenError>;
    /// Whether `checkpoint` of the export's volume exists, for the context of changes.
    fn has_checkpoint(&mut self, export: &str, checkpoint: &str) -> bool;
    /// The newest `max` checkpoints of the export's volume, oldest first.
    fn checkpoints(&mut self, export: &str, max: usize) -> Vec<String>;
}

/// A metadata context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaContext {
    /// `base:allocation`.
    Allocation,
    /// `cairn:changed-since/<checkpoint>`: flag 1 marks blocks that changed since then.
    ChangedSince(String),
}

impl MetaContext {
    fn name(&self) -> String {
        match self {
            MetaContext::Allocation => "base:allocation".to_owned(),
            MetaContext::ChangedSince(checkpoint) => format!("cairn:changed-since/{checkpoint}"),
        }
    }
}

/// What was agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export.
    pub export: ExportInfo,
    /// Structured replies.
    pub structured: bool,
    /// Extended headers (which imply structured replies).
    pub extended: bool,
    /// Contexts by their number, from 1.
    pub contexts: Vec<MetaContext>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeStep {
    /// More bytes are needed.
    NeedMore,
    /// Send what is in the buffer, then go on: input may be left.
    Send,
    /// Serve requests.
    Serve(Box<Negotiated>),
    /// Send what is in the buffer and close.
    Close,
}

/// One client's negotiation.
pub struct Handshake {
    framer: Framer,
    /// Inside TLS already.
    secured: bool,
    structured: bool,
    extended: bool,
    contexts: Vec<MetaContext>,
    contexts_for: Option<String>,
}

impl Handshake {
    /// Starts: `out` gets the server's greeting.
    pub fn new(out: &mut Vec<u8>) -> Self {
        greet(out);
        Self::with(Framer::default(), false)
    }

    /// Starts inside TLS, where there is no greeting and nothing has been agreed yet.
    pub(super) fn secured(flags: ClientFlags) -> Self {
        Self::with(Framer::greeted(flags), true)
    }

    fn with(framer: Framer, secured: bool) -> Self {
        Self { framer, secured, structured: false, extended: false, contexts: Vec::new(), contexts_for: None }
    }

    /// Consumes what it can of `input` and answers into `out`; returns the bytes consumed.
    pub fn step(&mut self, input: &[u8], exports: &mut dyn Exports, out: &mut Vec<u8>) -> (usize, HandshakeStep) {
        let mut used = 0;
        loop {
            if out.len() > ANSWER_BYTES_MAX {
                return (used, HandshakeStep::Send);
            }
            match self.framer.next(input, &mut used) {
                Framed::NeedMore => return (used, HandshakeStep::NeedMore),
                Framed::Fatal | Framed::TooBig(OPT_EXPORT_NAME) => return (used, HandshakeStep::Close),
                Framed::TooBig(option) => refuse(out, option, ERR_TOO_BIG, "option payload is too long"),
                Framed::Option(option, data) => {
                    if let Some(step) = self.option(option, data, exports, out) {
                        return (used, step);
                    }
                }
            }
        }
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Option<HandshakeStep> {
        match option {
            OPT_EXPORT_NAME => return Some(self.export_name(data, exports, out)),
            OPT_ABORT => {
                reply(out, option, REP_ACK, &[]);
                return Some(HandshakeStep::Close);
            }
            OPT_LIST if data.is_empty() => {
                for name in exports.list().into_iter().take(LIST_MAX) {
                    let mut body = (name.len() as u32).to_be_bytes().to_vec();
                    body.extend(name.as_bytes());
                    reply(out, option, REP_SERVER, &body);
                }
                reply(out, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED if data.is_empty() && self.extended => {
                let why = "extended headers are in use, and take precedence over structured replies";
                refuse(out, option, ERR_EXT_HEADER_REQD, why);
            }
            OPT_STRUCTURED if data.is_empty() => {
                self.structured = true;
                reply(out, option, REP_ACK, &[]);
            }
            OPT_EXTENDED if data.is_empty() => {
                (self.structured, self.extended) = (true, true);
                reply(out, option, REP_ACK, &[]);
            }
            OPT_STARTTLS if self.secured => refuse(out, option, ERR_INVALID, "TLS is in use already"),
            OPT_LIST | OPT_STRUCTURED | OPT_EXTENDED => {
                refuse(out, option, ERR_INVALID, "this option takes no payload")
            }
            OPT_INFO | OPT_GO => return self.go(option, data, exports, out),
            OPT_LIST_META | OPT_SET_META => self.meta(option, data, exports, out),
            _ => refuse(out, option, ERR_UNSUP, "option is not supported"),
        }
        None
    }

    fn negotiated(&mut self, export: ExportInfo) -> HandshakeStep {
        let same = self.contexts_for.as_deref() == Some(export.name.as_str());
        let contexts = if same { std::mem::take(&mut self.contexts) } else { Vec::new() };
        let (structured, extended) = (self.structured, self.extended);
        HandshakeStep::Serve(Box::new(Negotiated { export, structured, extended, contexts }))
    }

    fn export_name(&mut self, data: &[u8], exports: &mut dyn Exports, out: &mut Vec<u8>) -> HandshakeStep {
        let name = std::str::from_utf8(data).ok().filter(|name| name.len() <= NAME_BYTES_MAX);
        let Some(export) = name.and_then(|name| exports.open(name).ok()) else { return HandshakeStep::Close };
        out.extend(export.size.to_be_bytes());
        out.extend(self.transmission_flags(&export).to_be_bytes());
        if !self.framer.flags().is_some_and(|flags| flags.no_zeroes) {
            out.extend([0; 124]);
        }
        self.negotiated(export)
    }

    fn go(&mut self, option: u32, data: &[u8], exports: &mut dyn Exports, out: &mut Vec<u8>) -> Option<HandshakeStep> {
        let Some((name, rest)) = split_name(data) else {
            refuse(out, option, ERR_INVALID, "malformed request");
            return None;
        };
        let count = u16_at(rest, 0).map_or(0, usize::from);
        if rest.len() != 2 + 2 * count {
            refuse(out, option, ERR_INVALID, "malformed information request");
            return None;
        }
        let wants = |kind: u16| (0..count).any(|i| u16_at(rest, 2 + 2 * i) == Some(kind));
        let export = match exports.open(name) {
            Ok(export) => export,
            Err(OpenError(why)) => {
                refuse(out, option, ERR_UNKNOWN, &why);
                return None;
            }
        };
        let mut body = INFO_EXPORT.to_be_bytes().to_vec();
        body.extend(export.size.to_be_bytes());
        body.extend(self.transmission_flags(&export).to_be_bytes());
        reply(out, option, REP_INFO, &body);
        let mut body = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, 4096, PAYLOAD_MAX] {
            body.extend(size.to_be_bytes());
        }
        reply(out, option, REP_INFO, &body);
        for (kind, text) in [(INFO_NAME, &export.name), (INFO_DESCRIPTION, &export.description)] {
            if wants(kind) {
                let mut body = kind.to_be_bytes().to_vec();
                body.extend(text.as_bytes());
                reply(out, option, REP_INFO, &body);
            }
        }
        reply(out, option, REP_ACK, &[]);
        (option == OPT_GO).then(|| self.negotiated(export))
    }

    fn transmission_flags(&self, export: &ExportInfo) -> u16 {
        const HAS_FLAGS: u16 = 1;
        const READ_ONLY: u16 = 1 << 1;
        const FLUSH: u16 = 1 << 2;
        const FUA: u16 = 1 << 3;
        const TRIM: u16 = 1 << 5;
        const WRITE_ZEROES: u16 = 1 << 6;
        const DF: u16 = 1 << 7;
        const MULTI_CONN: u16 = 1 << 8;
        const CACHE: u16 = 1 << 10;
        const FAST_ZERO: u16 = 1 << 11;
        const STATUS_PAYLOAD: u16 = 1 << 12;
        let changes = if export.read_only { READ_ONLY } else { TRIM | WRITE_ZEROES | FAST_ZERO };
        let pieces = if self.structured { DF } else { 0 };
        let filter = if self.extended { STATUS_PAYLOAD } else { 0 };
        HAS_FLAGS | FLUSH | FUA | MULTI_CONN | CACHE | changes | pieces | filter
    }

    fn meta(&mut self, option: u32, data: &[u8], exports: &mut dyn Exports, out: &mut Vec<u8>) {
        let set = option == OPT_SET_META;
        if set {
            (self.contexts, self.contexts_for) = (Vec::new(), None);
        }
        if set && !self.structured {
            return refuse(out, option, ERR_INVALID, "metadata contexts need structured replies");
        }
        let Some((export, queries)) = split_name(data).and_then(|(name, rest)| Some((name, queries(rest)?))) else {
            return refuse(out, option, ERR_INVALID, "malformed metadata request");
        };
        let info = match exports.open(export) {
            Ok(info) => info,
            Err(OpenError(why)) => return refuse(out, option, ERR_UNKNOWN, &why),
        };
        let queries = if !set && queries.is_empty() { vec!["base:", "cairn:"] } else { queries };
        let max = if set { CONTEXTS_MAX } else { CONTEXTS_LISTED_MAX };
        let mut found: Vec<MetaContext> = Vec::new();
        // What there is to choose from is said once, however often it is asked.
        if !set && queries.iter().any(|query| is_all_changes(query)) {
            found.extend(exports.checkpoints(&info.name, max - 1).into_iter().map(MetaContext::ChangedSince));
        }
        for query in queries {
            let context = match query.split_once("changed-since/") {
                Some(("cairn:", checkpoint)) if exports.has_checkpoint(&info.name, checkpoint) => {
                    Some(MetaContext::ChangedSince(checkpoint.to_owned()))
                }
                _ if query == "base:allocation" || !set && query == "base:" => Some(MetaContext::Allocation),
                _ => None,
            };
            found.extend(context.filter(|c| !found.contains(c) && found.len() < max));
        }
        // Base first: it is there for every export.
        found.sort_by_key(|context| !set && *context != MetaContext::Allocation);
        for (i, context) in found.iter().enumerate() {
            let id = if set { i as u32 + 1 } else { 0 };
            let mut body = id.to_be_bytes().to_vec();
            body.extend(context.name().as_bytes());
            reply(out, option, REP_META, &body);
        }
        reply(out, option, REP_ACK, &[]);
        if set {
            (self.contexts, self.contexts_for) = (found, Some(info.name));
        }
    }
}

/// Whether a query asks which contexts of changes there are.
fn is_all_changes(query: &str) -> bool {
    query == "cairn:" || query == "cairn:changed-since/"
}

/// A string with a 32-bit length, and what follows it.
fn split_name(data: &[u8]) -> Option<(&str, &[u8])> {
    let len = u32_at(data, 0)? as usize;
    if len > NAME_BYTES_MAX {
        return None;
    }
    let name = std::str::from_utf8(data.get(4..4 + len)?).ok()?;
    Some((name, data.get(4 + len..)?))
}

fn queries(data: &[u8]) -> Option<Vec<&str>> {
    let mut rest = data.get(4..)?;
    let mut out = Vec::new();
    for _ in 0..u32_at(data, 0)? {
        let (query, after) = split_name(rest)?;
        out.push(query);
        rest = after;
    }
    rest.is_empty().then_some(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::limits::OPTION_BYTES_MAX;
    use super::super::option::OPTION_MAGIC;
    use super::*;

    /// A server with one export.
    pub struct One;

    impl Exports for One {
        fn list(&mut self) -> Vec<String> {
            vec!["disk".to_owned()]
        }
        fn open(&mut self, name: &str) -> Result<ExportInfo, OpenError> {
            if name.is_empty() || name == "disk" {
                let name = "disk".to_owned();
                return Ok(ExportInfo { name, size: 1 << 30, read_only: false, description: String::new() });
            }
            Err(OpenError("there is no such volume".to_owned()))
        }
        fn has_checkpoint(&mut self, _: &str, checkpoint: &str) -> bool {
            checkpoint == "v1"
        }
        fn checkpoints(&mut self, _: &str, _: usize) -> Vec<String> {
            vec!["v1".to_owned()]
        }
    }

    fn option(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = OPTION_MAGIC.to_vec();
        out.extend(kind.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }

    fn named(name: &str, tail: &[u8]) -> Vec<u8> {
        let mut out = (name.len() as u32).to_be_bytes().to_vec();
        out.extend(name.as_bytes());
        out.extend(tail);
        out
    }

    /// Feeds `input` in pieces of `piece` bytes; returns the last step and all output.
    fn feed(input: &[u8], piece: usize) -> (HandshakeStep, Vec<u8>) {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(&mut out);
        let mut buffer = Vec::new();
        for chunk in input.chunks(piece) {
            buffer.extend(chunk);
            let (used, step) = handshake.step(&buffer, &mut One, &mut out);
            buffer.drain(..used);
            assert!(buffer.len() <= 16 + OPTION_BYTES_MAX as usize, "an unfinished option stays small");
            if step != HandshakeStep::NeedMore {
                return (step, out);
            }
        }
        (HandshakeStep::NeedMore, out)
    }

    fn whole_session() -> Vec<u8> {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(option(OPT_STRUCTURED, &[]));
        let query = named("base:allocation", &[]);
        let since = named("cairn:changed-since/v1", &[]);
        let tail = [&2u32.to_be_bytes()[..], &query, &since].concat();
        input.extend(option(OPT_SET_META, &named("disk", &tail)));
        input.extend(option(OPT_GO, &named("disk", &0u16.to_be_bytes())));
        input
    }

    #[test]
    fn any_split_of_the_input_gives_the_same_session() {
        let input = whole_session();
        let (want, out) = feed(&input, input.len());
        assert!(matches!(&want, HandshakeStep::Serve(n) if n.structured && n.contexts.len() == 2));
        for piece in 1..input.len() {
            assert_eq!(feed(&input, piece), (want.clone(), out.clone()));
        }
    }

    #[test]
    fn cve_2022_26495_a_name_length_is_bounded_before_allocation() {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(option(OPT_INFO, &u32::MAX.to_be_bytes()));
        assert_eq!(feed(&input, 7).0, HandshakeStep::NeedMore);
    }

    #[test]
    fn cve_2017_15119_a_giant_option_disconnects() {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(OPTION_MAGIC);
        input.extend(OPT_LIST.to_be_bytes());
        input.extend(u32::MAX.to_be_bytes());
        assert_eq!(feed(&input, 1).0, HandshakeStep::Close);
    }

    #[test]
    fn cve_2019_14851_meta_contexts_without_structured_replies_are_refused() {
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(option(OPT_SET_META, &named("disk", &0u32.to_be_bytes())));
        input.extend(option(OPT_GO, &named("disk", &0u16.to_be_bytes())));
        assert!(matches!(feed(&input, 5).0, HandshakeStep::Serve(n) if n.contexts.is_empty()));
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut x = 88172645463325252u64;
        for _ in 0..20_000 {
            let mut input = whole_session();
            for _ in 0..4 {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let at = x as usize % input.len();
                input[at] = (x >> 32) as u8;
            }
            feed(&input, 1 + x as usize % 64);
        }
    }
}
