//! What lies near what was read: small reads that follow one another take one request for many of them.
//!
//! Invariants
//!   * it only ever holds bytes of an image that does not change, so what is held is as good as what is read;
//!   * at most [`WINDOWS_KEPT`] windows are held, the ones used last;
//!   * a read that is near to none before it costs what it asks for and no more.

use crate::limits::{WINDOW, WINDOWS_KEPT};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places of small reads that are remembered: so many streams may take turns.
const TRAILS: usize = 16;

#[derive(Default)]
struct Held {
    /// Windows by their number, the one used last in front.
    windows: VecDeque<(u64, Arc<Vec<u8>>)>,
    /// Windows out of which something was read lately.
    trails: VecDeque<u64>,
}

/// Windows of one image.
#[derive(Default)]
pub struct Ahead(Mutex<Held>);

impl Ahead {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `out` from `offset` on of an image of `size` bytes; `read` reads of the image itself.
    pub fn read(
        &self,
        size: u64,
        offset: u64,
        out: &mut [u8],
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        // Large ones would only be copied once more: the kernel's own reading ahead asks for 128 KiB at least.
        if out.len() as u64 > WINDOW / 4 {
            return read(offset, out);
        }
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let number = at / WINDOW;
            let len = (WINDOW - at % WINDOW).min(rest.len() as u64) as usize;
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut(len);
            match self.window(number, size, &read)? {
                Some(window) => {
                    let from = (at % WINDOW) as usize;
                    let held = window.get(from..from + len).ok_or(io::ErrorKind::UnexpectedEof)?;
                    piece.copy_from_slice(held);
                }
                None => read(at, piece)?,
            }
            (at, rest) = (at + len as u64, behind);
        }
        Ok(())
    }

    /// A window that is held, or is worth being held.
    fn window(
        &self,
        number: u64,
        size: u64,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Option<Arc<Vec<u8>>>> {
        {
            let mut held = self.held();
            if !held.wants(number) {
                return Ok(held.windows.front().filter(|(of, _)| *of == number).map(|(_, window)| window.clone()));
            }
        }
        let Range { start, end } = number * WINDOW..size.min((number + 1) * WINDOW);
        let mut window = vec![0; end.saturating_sub(start) as usize];
        read(start, &mut window)?;
        let window = Arc::new(window);
        let mut held = self.held();
        // Another thread may have read it meanwhile.
        held.windows.retain(|(of, _)| *of != number);
        held.windows.push_front((number, window.clone()));
        held.windows.truncate(WINDOWS_KEPT);
        Ok(Some(window))
    }

    /// Lets go of all.
    pub fn clear(&self) {
        *self.held() = Held::default();
    }
}

impl Held {
    /// Notes a read; whether its window is to be read as a whole.
    fn wants(&mut self, number: u64) -> bool {
        if let Some(at) = self.windows.iter().position(|(of, _)| *of == number) {
            if let Some(used) = self.windows.remove(at) {
                self.windows.push_front(used);
            }
            return false;
        }
        let before = number.wrapping_sub(1);
        let follows = self.windows.iter().any(|(of, _)| *of == before)
            || self.trails.iter().any(|trail| *trail == number || *trail == before);
        if !follows {
            self.trails.push_front(number);
            self.trails.truncate(TRAILS);
        }
        follows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const SIZE: u64 = 10 * WINDOW + 100;

    /// Reads pieces of 100 bytes at these places; what was asked of the image.
    fn asked(places: &[u64]) -> Vec<(u64, usize)> {
        let (ahead, asked) = (Ahead::default(), RefCell::new(Vec::new()));
        for at in places {
            let mut out = [0; 100];
            let read = |offset: u64, out: &mut [u8]| {
                asked.borrow_mut().push((offset, out.len()));
                (offset..).zip(out).for_each(|(at, byte)| *byte = (at % 251) as u8);
                Ok(())
            };
            ahead.read(SIZE, *at, &mut out, read).expect("nothing fails");
            assert!((*at..).zip(out).all(|(at, byte)| byte == (at % 251) as u8), "other bytes at {at}");
        }
        asked.into_inner()
    }

    #[test]
    fn what_follows_is_read_once() {
        let window = WINDOW as usize;
        assert_eq!(asked(&[0, 4096, 8192, 100]), [(0, 100), (0, window)]);
        assert_eq!(asked(&[0, WINDOW, WINDOW + 7]), [(0, 100), (WINDOW, window)]);
        // Across an end, and at the image's.
        assert_eq!(asked(&[0, 50, WINDOW - 50]), [(0, 100), (0, window), (WINDOW, window)]);
        assert_eq!(asked(&[10 * WINDOW, 10 * WINDOW]), [(10 * WINDOW, 100), (10 * WINDOW, 100)]);
        // Here and there.
        assert_eq!(asked(&[0, 3 * WINDOW, 6 * WINDOW]), [(0, 100), (3 * WINDOW, 100), (6 * WINDOW, 100)]);
    }
}
