//! Bytes of a simulated file or of a model's volume: sparse, and cheap to copy, because copies share
//! their pages.

use std::collections::BTreeMap;
use std::sync::Arc;

const PAGE: usize = 4096;
static ZEROES: [u8; PAGE] = [0; PAGE];

/// A byte vector whose untouched pages cost nothing.
#[derive(Clone, Default)]
pub struct Sparse {
    pages: BTreeMap<usize, Arc<[u8; PAGE]>>,
    len: usize,
}

impl Sparse {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts the end off, or adds zeros.
    pub fn resize(&mut self, len: usize) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE));
            if len % PAGE != 0 {
                if let Some(last) = self.pages.get_mut(&(len / PAGE)) {
                    Arc::make_mut(last)[len % PAGE..].fill(0);
                }
            }
        }
        self.len = len;
    }

    /// Fills `buf` from `from`; `false` when the end is nearer.
    pub fn read(&self, buf: &mut [u8], from: usize) -> bool {
        if from.checked_add(buf.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        let mut done = 0;
        while done < buf.len() {
            let (page, skip) = ((from + done) / PAGE, (from + done) % PAGE);
            let take = (PAGE - skip).min(buf.len() - done);
            let bytes = self.pages.get(&page).map_or(&ZEROES, |page| &**page);
            buf[done..done + take].copy_from_slice(&bytes[skip..skip + take]);
            done += take;
        }
        true
    }

    /// Writes at `from`, growing as needed.
    pub fn write(&mut self, from: usize, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (page, skip) = ((from + done) / PAGE, (from + done) % PAGE);
            let take = (PAGE - skip).min(bytes.len() - done);
            let piece = &bytes[done..done + take];
            done += take;
            if piece == &ZEROES[..take] && (take == PAGE || !self.pages.contains_key(&page)) {
                self.pages.remove(&page);
                continue;
            }
            let page = self.pages.entry(page).or_insert_with(|| Arc::new(ZEROES));
            Arc::make_mut(page)[skip..skip + take].copy_from_slice(piece);
        }
        self.len = self.len.max(from + bytes.len());
    }

    /// Makes `len` bytes from `from` zero, growing as needed.
    pub fn zero(&mut self, from: usize, len: usize) {
        let mut at = from;
        while at < from + len {
            let end = (at / PAGE * PAGE + PAGE).min(from + len);
            if self.pages.contains_key(&(at / PAGE)) {
                self.write(at, &ZEROES[..end - at]);
            }
            at = end;
            if let Some((next, _)) = self.pages.range(at / PAGE..).next() {
                at = at.max(next * PAGE).min(from + len);
            } else {
                break;
            }
        }
        self.len = self.len.max(from + len);
    }

    /// Offsets of the pages that may hold something besides zeros.
    pub fn pages(&self) -> impl Iterator<Item = usize> + '_ {
        self.pages.keys().map(|page| page * PAGE)
    }

    /// Everything, as one vector.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len];
        self.read(&mut all, 0);
        all
    }

    /// The bytes of `all`.
    pub fn from_slice(all: &[u8]) -> Self {
        let mut sparse = Self::default();
        for (page, bytes) in all.chunks(PAGE).enumerate().filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)) {
            sparse.write(page * PAGE, bytes);
        }
        sparse.len = all.len();
        sparse
    }
}

impl PartialEq for Sparse {
    fn eq(&self, other: &Self) -> bool {
        let covers = |a: &Self, b: &Self| {
            let page = |(number, page): (&usize, &Arc<[u8; PAGE]>)| match b.pages.get(number) {
                Some(other) => Arc::ptr_eq(page, other) || page == other,
                None => **page == ZEROES,
            };
            a.pages.iter().all(page)
        };
        self.len == other.len && covers(self, other) && covers(other, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_vector() {
        let (mut sparse, mut plain) = (Sparse::default(), Vec::new());
        let mut random = 1u32;
        for turn in 0..400u32 {
            random = random.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let (at, len) = ((random >> 8) as usize % 30_000, (random >> 4) as usize % 9_000);
            if turn % 5 == 0 {
                sparse.zero(at, len);
                plain.resize(plain.len().max(at + len), 0);
                plain[at..at + len].fill(0);
            } else if turn % 7 == 0 {
                sparse.resize(at);
                plain.resize(at, 0);
            } else {
                let bytes = vec![turn as u8 % 3; len];
                sparse.write(at, &bytes);
                plain.resize(plain.len().max(at + len), 0);
                plain[at..at + len].copy_from_slice(&bytes);
            }
            assert!(sparse.to_vec() == plain, "turn {turn}");
            let copy = Sparse::from_slice(&plain);
            assert!(copy.to_vec() == plain && copy == sparse, "turn {turn}");
        }
        assert!(!sparse.read(&mut [0], plain.len()), "there is nothing behind the end");
    }
}
