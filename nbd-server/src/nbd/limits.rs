//! Bounds of the protocol, each with its consequence.

/// Longest option payload: a longer one is skipped and answered with TOO_BIG.
pub const OPTION_BYTES_MAX: u32 = 8 << 10;
/// Longest option that is skipped at all: beyond it the client is disconnected.
pub const OPTION_SKIP_MAX: u32 = 64 << 10;
/// Options in one handshake: one more disconnects.
pub const OPTIONS_MAX: u32 = 256;
/// Longest export name (the protocol's own bound).
pub const NAME_BYTES_MAX: usize = 4096;
/// Metadata contexts in one session: more are not negotiated.
pub const CONTEXTS_MAX: usize = 16;
/// Metadata contexts named in one answer to LIST_META_CONTEXT: older checkpoints can still be asked for by name.
pub const CONTEXTS_LISTED_MAX: usize = 1024;
/// Largest read or write: a larger write disconnects, a larger read is refused.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// Extents in one block status reply: a longer answer is cut, as the protocol allows.
pub const EXTENTS_MAX: usize = 1024;
/// Longest error text sent to a client.
pub const ERROR_TEXT_MAX: usize = 256;
/// Unsent handshake answers beyond which no further option is read: a client that repeats LIST
/// waits for its own answers.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Exports named in one answer to LIST: the others can still be opened by name.
pub const LIST_MAX: usize = 4096;
