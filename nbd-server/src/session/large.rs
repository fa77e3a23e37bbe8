//! Requests of more than a piece, carried out as their bytes come and go.
//!
//! Invariants
//!   * a session holds at most one large request, and of it at most one piece of payload and the
//!     pieces of output that fit below `OUTPUT_MAX`, whatever length the client named;
//!   * every piece but the last ends on a block boundary, so that no block is read to be completed
//!     twice;
//!   * a refused payload is passed over without being kept.
//!
//! Not here: what a request may do (`Session::bounds`).

use super::parked::WANTED_BYTES;
use super::{Session, BROKEN, PIECE, READ_PIECE, SMALL_PIECE};
use crate::metrics::Metrics;
use crate::nbd::{self, Command, Errno, Request};
use blockstore::{Ahead, Error, ErrorKind, Pool};

/// A request that is under way.
pub struct Large {
    request: Request,
    done: u64,
    /// Bytes of the piece under way that is arriving: the same until it is there.
    arriving: Option<usize>,
    /// A payload whose request has failed already.
    failed: Option<(Errno, String)>,
    /// What of the next piece, which is still arriving, is in the log already.
    ahead: Ahead,
}

/// What one more piece led to.
pub enum Piece {
    /// This much input was used; the request goes on.
    More(usize),
    /// This much input was used and the request is over, with this outcome to be replied if any.
    Over(usize, Option<Result<Request, (Request, Errno, String)>>),
    /// This much input is needed first.
    Need(usize),
    /// A reply has begun that cannot be completed: only a disconnect says so.
    Broken,
    /// Something has to come from the object store first.
    Absent,
}

impl Large {
    /// Starts one; `refused` says that its payload is only passed over.
    pub fn new(request: Request, refused: Option<(Errno, &str)>) -> Self {
        Self {
            request,
            done: 0,
            arriving: None,
            failed: refused.map(|(errno, why)| (errno, why.to_owned())),
            ahead: Ahead::default(),
        }
    }

    /// Length of the next piece, of at most `most` bytes.
    fn piece(&self, whole: u64, most: usize) -> usize {
        let at = self.request.offset.wrapping_add(self.done);
        let skew = at % blockstore::limits::BLOCK_U64;
        (whole - self.done).min(most as u64 - skew) as usize
    }

    /// Takes one piece of the payload from `input`.
    pub fn store(&mut self, session: &Session, pool: &mut Pool, metrics: &mut Metrics, input: &[u8]) -> Piece {
        let whole = u64::from(self.request.payload);
        let most = if session.small_pieces { SMALL_PIECE } else { PIECE };
        let want = self.arriving.unwrap_or_else(|| self.piece(whole, most));
        self.arriving = Some(want);
        let used = if self.failed.is_some() { want.min(input.len()) } else { want };
        let (volume, at) = (session.view.volume, self.request.offset.wrapping_add(self.done));
        let Some(data) = input.get(..used).filter(|data| !data.is_empty()) else {
            if self.failed.is_none() {
                pool.write_ahead(volume, at, want as u64, input, &mut self.ahead);
            }
            return Piece::Need(want);
        };
        if self.failed.is_none() {
            match pool.write_arrived(volume, at, data, std::mem::take(&mut self.ahead)) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Absent => return Piece::Absent,
                Err(e) => self.failed = Some((session.errno(metrics, &e), e.to_string())),
            }
            metrics.written_bytes += used as u64;
        }
        self.done += used as u64;
        self.arriving = None;
        if self.done < whole {
            return Piece::More(used);
        }
        let request = self.request;
        Piece::Over(used, Some(self.failed.take().map_or(Ok(request), |(errno, why)| Err((request, errno, why)))))
    }

    /// Appends one piece of the data to `out`.
    pub fn load(&mut self, session: &Session, pool: &mut Pool, metrics: &mut Metrics, out: &mut Vec<u8>) -> Piece {
        let (request, whole) = (self.request, self.request.length);
        let len = self.piece(whole, READ_PIECE);
        let at = request.offset + self.done;
        let last = self.done + len as u64 == whole;
        let (start, chunked) = (out.len(), session.chunked(&request));
        let outcome = if chunked {
            session.read_chunks(pool, &request, at, len as u64, last, out)
        } else {
            if self.done == 0 {
                session.whole_header(&request, out);
            }
            session.read_bytes(pool, at, len, out)
        };
        if outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::Absent) {
            out.truncate(start);
            // The pieces behind it will be needed next.
            let rest = (whole - self.done).min(WANTED_BYTES);
            pool.want(session.view, at, rest);
            return Piece::Absent;
        }
        metrics.read_bytes += len as u64;
        self.done += len as u64;
        match outcome {
            Ok(()) if last => Piece::Over(0, None),
            Ok(()) => Piece::More(0),
            Err(e) if chunked || self.done == len as u64 => {
                out.truncate(start);
                Piece::Over(0, Some(Err((request, session.errno(metrics, &e), e.to_string()))))
            }
            Err(e) => {
                session.errno(metrics, &e);
                Piece::Broken
            }
        }
    }

    /// Stores one piece of zeros.
    pub fn zero(&mut self, session: &Session, pool: &mut Pool, metrics: &mut Metrics) -> Piece {
        let (request, whole) = (self.request, self.request.length);
        let len = self.piece(whole, SMALL_PIECE) as u64;
        match pool.write_zeroes(session.view.volume, request.offset + self.done, len, true) {
            Ok(()) => self.done += len,
            Err(e) if e.kind() == ErrorKind::Absent => return Piece::Absent,
            Err(e) => return Piece::Over(0, Some(Err((request, session.errno(metrics, &e), e.to_string())))),
        }
        if self.done < whole {
            return Piece::More(0);
        }
        Piece::Over(0, Some(Ok(request)))
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Bytes that have not been moved yet.
    pub fn rest(&self) -> u64 {
        self.request.length - self.done
    }

    /// Whether part of an answer has been told that has to be told without a break.
    pub fn is_mid_answer(&self, session: &Session) -> bool {
        self.kind() == Kind::Data && self.done > 0 && !session.chunked(&self.request)
    }

    /// What it moves.
    pub fn kind(&self) -> Kind {
        match self.request.command {
            Command::Read => Kind::Data,
            Command::WriteZeroes if self.request.payload == 0 => Kind::Zeros,
            _ => Kind::Payload,
        }
    }

    /// The data that one piece moves at most.
    pub fn piece_bytes(&self) -> u64 {
        if self.kind() == Kind::Zeros {
            SMALL_PIECE as u64
        } else {
            READ_PIECE as u64
        }
    }
}

/// What a large request moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A payload that comes in.
    Payload,
    /// Data that goes out.
    Data,
    /// Zeros that are stored.
    Zeros,
}

impl Session {
    /// The large request in turn cannot be completed, for the reason `e`; an error when only a disconnect says so.
    pub(super) fn fail_large(
        &mut self,
        mut large: Large,
        metrics: &mut Metrics,
        e: &Error,
        out: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        if large.is_mid_answer(self) {
            self.errno(metrics, e);
            return Err(BROKEN);
        }
        if large.kind() == Kind::Payload {
            large.failed = Some((self.errno(metrics, e), e.to_string()));
            self.large = Some(large);
        } else {
            self.fail_with(out, metrics, &large.request, e);
        }
        Ok(())
    }

    /// Whether `request` is carried out in pieces. A read whose answer cannot be split is so only when
    /// it has to be: an error behind its first piece can be told by a disconnect alone.
    pub(super) fn is_large(&self, request: &Request) -> bool {
        let whole = if self.chunked(request) { READ_PIECE } else { PIECE };
        let stores_zeros = request.command == Command::WriteZeroes && request.flags & nbd::FLAG_NO_HOLE != 0;
        request.payload as usize > PIECE
            || request.command == Command::Read && request.length > whole as u64
            || stores_zeros && request.length > PIECE as u64
    }

    /// Whether a read may be answered in several chunks, with holes.
    pub(super) fn chunked(&self, request: &Request) -> bool {
        self.agreed.structured && request.flags & nbd::FLAG_DF == 0
    }

    /// The header of an answer that comes in one piece.
    pub(super) fn whole_header(&self, request: &Request, out: &mut Vec<u8>) {
        if self.agreed.structured {
            let (cookie, offset, length) = (request.cookie, request.offset, request.length as u32);
            nbd::data_header(out, self.agreed.extended, cookie, offset, offset, length, true);
        } else {
            nbd::simple(out, request.cookie, 0);
        }
    }

    /// Appends `len` bytes from `at`.
    pub(super) fn read_bytes(&self, pool: &mut Pool, at: u64, len: usize, out: &mut Vec<u8>) -> blockstore::Result<()> {
        pool.read_onto(self.view, at, len, out)
    }

    /// Appends `len` bytes from `at` as chunks of data and holes.
    pub(super) fn read_chunks(
        &self,
        pool: &mut Pool,
        request: &Request,
        at: u64,
        len: u64,
        last: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let (cookie, extended, offset) = (request.cookie, self.agreed.extended, request.offset);
        let (mut at, end) = (at, at + len);
        for extent in pool.extents(self.view, at, len, usize::MAX - 1)? {
            let (length, done) = (extent.len as u32, last && at + extent.len == end);
            if extent.hole {
                nbd::hole(out, extended, cookie, offset, at, length, done);
            } else {
                nbd::data_header(out, extended, cookie, offset, at, length, done);
                self.read_bytes(pool, at, length as usize, out)?;
            }
            at += extent.len;
        }
        Ok(())
    }
}
