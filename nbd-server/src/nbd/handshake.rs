//! Fixed newstyle negotiation, one option at a time.

use super::limits::{CONTEXTS_MAX, NAME_BYTES_MAX, OPTIONS_MAX, OPTION_BYTES_MAX, OPTION_SKIP_MAX, PAYLOAD_MAX};
use super::wire::{u16_at, u32_at};

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_LIST_META: u32 = 9;
const OPT_SET_META: u32 = 10;
const OPT_EXTENDED: u32 = 11;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META: u32 = 4;
const ERR_UNSUP: u32 = 1 << 31 | 1;
const ERR_INVALID: u32 = 1 << 31 | 3;
const ERR_UNKNOWN: u32 = 1 << 31 | 6;
const ERR_TOO_BIG: u32 = 1 << 31 | 9;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

const CLIENT_FIXED: u32 = 1;
const CLIENT_NO_ZEROES: u32 = 2;

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
    /// Serve requests.
    Serve(Box<Negotiated>),
    /// Send what is in the buffer and close.
    Close,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Flags,
    Options,
}

/// One client's negotiation.
pub struct Handshake {
    phase: Phase,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    contexts: Vec<MetaContext>,
    contexts_for: Option<String>,
    options: u32,
    skip: usize,
}

impl Handshake {
    /// Starts: `out` gets the server's greeting.
    pub fn new(out: &mut Vec<u8>) -> Self {
        out.extend(INIT_MAGIC);
        out.extend(OPTION_MAGIC);
        out.extend(3u16.to_be_bytes());
        Self {
            phase: Phase::Flags,
            no_zeroes: false,
            structured: false,
            extended: false,
            contexts: Vec::new(),
            contexts_for: None,
            options: 0,
            skip: 0,
        }
    }

    /// Consumes what it can of `input` and answers into `out`; returns the bytes consumed.
    pub fn step(&mut self, input: &[u8], exports: &mut dyn Exports, out: &mut Vec<u8>) -> (usize, HandshakeStep) {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            if self.skip > 0 {
                let n = self.skip.min(rest.len());
                self.skip -= n;
                used += n;
                if self.skip > 0 {
                    return (used, HandshakeStep::NeedMore);
                }
                continue;
            }
            if self.phase == Phase::Flags {
                let Some(flags) = u32_at(rest, 0) else { return (used, HandshakeStep::NeedMore) };
                used += 4;
                if flags & !(CLIENT_FIXED | CLIENT_NO_ZEROES) != 0 {
                    return (used, HandshakeStep::Close);
                }
                self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
                self.phase = Phase::Options;
                continue;
            }
            let (Some(option), Some(len)) = (u32_at(rest, 8), u32_at(rest, 12)) else {
                return (used, HandshakeStep::NeedMore);
            };
            if rest.get(..8) != Some(OPTION_MAGIC) || self.options >= OPTIONS_MAX || len > OPTION_SKIP_MAX {
                return (used, HandshakeStep::Close);
            }
            if len > OPTION_BYTES_MAX {
                if option == OPT_EXPORT_NAME {
                    return (used, HandshakeStep::Close);
                }
                used += 16;
                self.options += 1;
                self.skip = len as usize;
                refuse(out, option, ERR_TOO_BIG, "option payload is too long");
                continue;
            }
            let Some(data) = rest.get(16..16 + len as usize) else { return (used, HandshakeStep::NeedMore) };
            used += 16 + data.len();
            self.options += 1;
            if let Some(step) = self.option(option, data, exports, out) {
                return (used, step);
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
                for name in exports.list() {
                    let mut body = (name.len() as u32).to_be_bytes().to_vec();
                    body.extend(name.as_bytes());
                    reply(out, option, REP_SERVER, &body);
                }
                reply(out, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED if data.is_empty() => {
                self.structured = true;
                reply(out, option, REP_ACK, &[]);
            }
            OPT_EXTENDED if data.is_empty() => {
                (self.structured, self.extended) = (true, true);
                reply(out, option, REP_ACK, &[]);
            }
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
        out.extend(transmission_flags(&export).to_be_bytes());
        if !self.no_zeroes {
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
        body.extend(transmission_flags(&export).to_be_bytes());
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
        let mut found: Vec<MetaContext> = Vec::new();
        let listing = !set && queries.is_empty();
        for query in queries {
            let context = match query.split_once("changed-since/") {
                Some(("cairn:", checkpoint)) if exports.has_checkpoint(&info.name, checkpoint) => {
                    Some(MetaContext::ChangedSince(checkpoint.to_owned()))
                }
                _ if query == "base:allocation" || !set && query == "base:" => Some(MetaContext::Allocation),
                _ => None,
            };
            found.extend(context.filter(|c| !found.contains(c) && found.len() < CONTEXTS_MAX));
        }
        if listing {
            found.push(MetaContext::Allocation);
        }
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

fn transmission_flags(export: &ExportInfo) -> u16 {
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
    let read_only = if export.read_only { READ_ONLY } else { 0 };
    HAS_FLAGS | FLUSH | FUA | TRIM | WRITE_ZEROES | DF | MULTI_CONN | CACHE | FAST_ZERO | read_only
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

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, body: &[u8]) {
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
}

fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, why: &str) {
    reply(out, option, kind, why.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

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
