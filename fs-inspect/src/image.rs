//! Images in files and behind NBD.

use crate::ahead::Ahead;
use crate::limits::{MAP_REPLIES_MAX, PIECE, SESSIONS_KEPT};
use crate::source::ReadAt;
use nbd_client::Nbd;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A raw image in a file. All of it counts as data.
pub struct FileImage {
    file: File,
    size: u64,
}

impl FileImage {
    /// The image in `file`, as large as it is now.
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl ReadAt for FileImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset < self.size).then_some(offset..self.size))
    }
}

/// An export that does not change. Several may read at a time, each in a session of its own; one that breaks is opened
/// anew once for each request.
pub struct NbdImage<C> {
    open: C,
    size: u64,
    /// Sessions that nobody uses right now, the one used last behind.
    idle: Mutex<Vec<(Nbd, Instant)>>,
    ahead: Ahead,
    /// What the daemon told last of data and holes.
    runs: Mutex<Option<Arc<Runs>>>,
}

/// Data in a part of an image.
struct Runs {
    range: Range<u64>,
    data: Vec<Range<u64>>,
}

/// How long a session stays that is not used: a checkpoint that is open can only be deleted by force.
const SESSION_KEPT: Duration = Duration::from_secs(1);

impl<C: Fn() -> io::Result<Nbd> + Send + Sync> NbdImage<C> {
    /// The export of `session`; `open` opens it again.
    pub fn new(session: Nbd, open: C) -> Self {
        let (size, idle) = (session.size, Mutex::new(vec![(session, Instant::now())]));
        Self { size, open, idle, ahead: Ahead::default(), runs: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Nbd, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of data and holes at `at`: whoever looks for one after the other asks once for many.
    fn runs(&self, at: u64) -> io::Result<Arc<Runs>> {
        let held = self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(held) = held.filter(|held| held.range.contains(&at)) {
            return Ok(held);
        }
        let (mut end, mut data) = (at, Vec::<Range<u64>>::new());
        for (len, hole) in self.ask(|session| session.extents(at))? {
            let begin = end;
            end = end.saturating_add(len).min(self.size);
            match data.last_mut().filter(|last| last.end == begin) {
                _ if hole => {}
                Some(last) => last.end = end,
                None if begin < end => data.push(begin..end),
                None => {}
            }
        }
        let told = Arc::new(Runs { range: at..end, data });
        *self.runs.lock().unwrap_or_else(PoisonError::into_inner) = Some(told.clone());
        Ok(told)
    }

    fn put_back(&self, session: Nbd) {
        let mut idle = self.idle();
        if idle.len() < SESSIONS_KEPT {
            idle.push((session, Instant::now()));
        }
    }

    fn ask<T>(&self, mut request: impl FnMut(&mut Nbd) -> Result<T, nbd_client::Error>) -> io::Result<T> {
        for last in [false, true] {
            let held = self.idle().pop();
            let mut session = match held {
                Some((session, _)) => session,
                None => (self.open)()?,
            };
            if session.size != self.size {
                return Err(io::Error::other("the export has another size than when it was opened"));
            }
            match request(&mut session) {
                Ok(answer) => {
                    self.put_back(session);
                    return Ok(answer);
                }
                // The server has answered: the session is as good as before, when nothing else is on its way.
                Err(e @ nbd_client::Error::Server { .. }) => {
                    if session.in_flight == 0 {
                        self.put_back(session);
                    }
                    return Err(e.into());
                }
                Err(e) if last => return Err(e.into()),
                // The others broke with it.
                Err(_) => self.idle().clear(),
            }
        }
        Err(io::Error::other("the export cannot be reached"))
    }
}

impl<C: Fn() -> io::Result<Nbd> + Send + Sync> ReadAt for NbdImage<C> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for (piece, at) in out.chunks_mut(PIECE).zip((offset..).step_by(PIECE)) {
            self.ahead.read(self.size, at, piece, |at, piece| {
                // Asked twice, all of it is filled each time.
                self.ask(|session| session.read_exact_at(at, piece))
            })?;
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut at = offset;
        while at < self.size {
            let told = self.runs(at)?;
            if let Some(data) = told.data.iter().find(|data| data.end > at) {
                return Ok(Some(data.start.max(at)..data.end));
            }
            at = told.range.end;
        }
        Ok(None)
    }

    fn data_bytes(&self) -> io::Result<u64> {
        let (mut at, mut sum) = (0, 0);
        for _ in 0..MAP_REPLIES_MAX {
            if at >= self.size {
                return Ok(sum);
            }
            let told = self.runs(at)?;
            sum += told.data.iter().map(|data| data.end - data.start).sum::<u64>();
            at = told.range.end;
        }
        Ok(sum + (self.size - at))
    }

    fn rest(&self) {
        let mut idle = self.idle();
        let unused = idle.iter().take_while(|(_, used)| used.elapsed() > SESSION_KEPT).count();
        let unused: Vec<_> = idle.drain(..unused).collect();
        let last = idle.is_empty() && !unused.is_empty();
        drop(idle);
        for (session, _) in unused {
            // It is only read from: what a goodbye does not say, the end of the connection does.
            let _ = session.disconnect();
        }
        if last {
            self.ahead.clear();
            *self.runs.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// A part of another image, as an image.
pub struct Window<'a> {
    /// The whole.
    pub whole: Arc<dyn ReadAt + 'a>,
    /// The bytes of it.
    pub range: Range<u64>,
}

impl ReadAt for Window<'_> {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= self.size());
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.whole.read_at(self.range.start + offset, out)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        if offset >= self.size() {
            return Ok(None);
        }
        let found = self.whole.next_data(self.range.start + offset)?;
        let found = found.filter(|data| data.start < self.range.end);
        Ok(found.map(|data| data.start - self.range.start..data.end.min(self.range.end) - self.range.start))
    }
}
