//! Numbers of a few bits each, one behind the other, lowest bit first: any of them is found without
//! reading those before it.

#![expect(clippy::arithmetic_side_effects, reason = "bit positions of 64 numbers of at most 64 bits cannot overflow")]

use super::codec::Append;

/// Appends `values`, `width` bits of each, and zero bits up to the next byte. `width` is at most 64.
pub fn pack(values: impl Iterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    let (mut waiting, mut bits) = (0u128, 0);
    for value in values {
        waiting |= u128::from(value) << bits;
        bits += width;
        if bits >= u64::BITS {
            out.put_u64(waiting as u64);
            waiting >>= u64::BITS;
            bits -= u64::BITS;
        }
    }
    out.extend(waiting.to_le_bytes().into_iter().take(bytes(1, bits)));
}

/// Bytes that `count` numbers of `width` bits take.
pub fn bytes(count: usize, width: u32) -> usize {
    (count * width as usize).div_ceil(8)
}

/// Packed numbers, read in place.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    bytes: &'a [u8],
    width: u32,
    mask: u64,
}

impl<'a> Packed<'a> {
    /// Numbers of `width` bits from the start of `bytes`. What lies behind them does no harm and
    /// saves a copy: a number is read with the eight bytes it begins in. A number of more than 57 bits
    /// must begin at a whole byte.
    pub fn new(bytes: &'a [u8], width: u32) -> Self {
        let mask = u64::MAX.checked_shr(u64::BITS.saturating_sub(width)).unwrap_or(0);
        Self { bytes, width, mask }
    }

    /// Bits of each number.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Number `n`; zero bits behind the end.
    pub fn get(&self, n: usize) -> u64 {
        let at = n * self.width as usize;
        let word = match self.bytes.get(at / 8..at / 8 + 8).and_then(|b| b.try_into().ok()) {
            Some(word) => u64::from_le_bytes(word),
            None => self.last_word(at / 8),
        };
        word >> (at % 8) & self.mask
    }

    #[cold]
    fn last_word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.iter_mut().zip(self.bytes.get(at..).unwrap_or_default()).for_each(|(w, b)| *w = *b);
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every width that a node has, every count, with and without bytes behind.
    #[test]
    fn every_width_and_count_reads_as_it_was_written() {
        for width in (0..=40).chain([64]) {
            let largest = u64::MAX.checked_shr(64 - width).unwrap_or(0);
            for count in 0..=64usize {
                let value = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32) & largest;
                let values: Vec<u64> = (0..count).map(|n| if n % 3 == 0 { largest } else { value(n) }).collect();
                let mut out = Vec::new();
                pack(values.iter().copied(), width, &mut out);
                assert_eq!(out.len(), bytes(count, width), "{count} of {width} bits");
                for behind in [0, 1, 7, 8, 100] {
                    let mut all = out.clone();
                    all.resize(out.len() + behind, 0xff);
                    let read = Packed::new(&all, width);
                    let found: Vec<u64> = (0..count).map(|n| read.get(n)).collect();
                    assert_eq!(found, values, "{count} of {width} bits, {behind} bytes behind");
                }
            }
        }
    }

    #[test]
    fn nothing_is_read_behind_the_end() {
        assert_eq!(Packed::new(&[], 40).get(63), 0);
        assert_eq!(Packed::new(&[0xff], 8).get(1), 0);
        assert_eq!(Packed::new(&[0xff], 0).get(63), 0);
    }
}
