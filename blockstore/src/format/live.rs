//! Bitmaps of live slots, in as few bytes as their shape allows: a full pool has tens of thousands.

#![expect(clippy::arithmetic_side_effects, reason = "slot numbers are below 2^13, and no more of them than slots")]

use super::codec::{Append, Reader};
use super::segment::{Bitmap, BITMAP_WORDS};
use crate::error::{Error, Result};
use crate::limits::SEGMENT_SLOTS;
use std::sync::Arc;

/// Runs beyond this would take as many bytes as the bits themselves.
const RUNS_MAX: usize = size_of::<Bitmap>() / 2 - 1;

/// The form in which a bitmap is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A bit per slot.
    Bits,
    /// Nothing lives: no bytes at all.
    Empty,
    /// Lengths of runs, dead and alive in turns; what they do not reach is dead.
    Runs,
    /// As the bitmap stored before it: no bytes at all.
    Same,
}

impl Form {
    /// Its bits among a segment's flags.
    pub fn flags(self) -> u8 {
        match self {
            Self::Bits => 0,
            Self::Empty => 4,
            Self::Runs => 8,
            Self::Same => 16,
        }
    }

    /// The form that a segment's flags name.
    pub fn of(flags: u8) -> Result<Self> {
        match flags & 28 {
            0 => Ok(Self::Bits),
            4 => Ok(Self::Empty),
            8 => Ok(Self::Runs),
            16 => Ok(Self::Same),
            _ => Err(Error::corrupt(format!("anchor: segment flags {flags:#x} name no bitmap"))),
        }
    }
}

/// Where runs begin, the first live slot first.
fn edges(bitmap: &Bitmap) -> Vec<u16> {
    let (mut edges, mut before) = (Vec::new(), 0);
    for (word, at) in bitmap.iter().zip((0u16..).step_by(64)) {
        let mut changed = word ^ (word << 1 | before);
        while changed != 0 {
            edges.push(at + changed.trailing_zeros() as u16);
            changed &= changed - 1;
        }
        before = word >> 63;
    }
    edges
}

/// The shortest form of `bitmap` behind `before`, and its bytes.
pub fn pack(bitmap: &Arc<Bitmap>, before: Option<&Arc<Bitmap>>) -> (Form, Vec<u8>) {
    if bitmap.iter().all(|word| *word == 0) {
        return (Form::Empty, Vec::new());
    }
    if before.is_some_and(|before| Arc::ptr_eq(before, bitmap) || before == bitmap) {
        return (Form::Same, Vec::new());
    }
    let (mut edges, mut out) = (edges(bitmap), Vec::new());
    if edges.len() > RUNS_MAX {
        bitmap.iter().for_each(|word| out.put_u64(*word));
        return (Form::Bits, out);
    }
    out.put_u16(edges.len() as u16);
    let mut from = 0;
    for edge in edges.drain(..) {
        out.put_u16(edge - from);
        from = edge;
    }
    // The last run ends with the segment when no edge ends it.
    (Form::Runs, out)
}

/// Reads a bitmap in its `form` behind `before`. Equal bitmaps in a row are one in memory, too.
pub fn unpack(r: &mut Reader<'_>, form: Form, before: Option<&Arc<Bitmap>>) -> Result<Arc<Bitmap>> {
    let mut bitmap = [0; BITMAP_WORDS];
    match form {
        Form::Empty => {}
        Form::Same => {
            return before
                .cloned()
                .ok_or_else(|| Error::corrupt("anchor: the first bitmap cannot be as the one before"))
        }
        Form::Bits => {
            for word in &mut bitmap {
                *word = r.u64()?;
            }
        }
        Form::Runs => {
            let (mut live, mut slot) = (false, 0);
            for place in 0..r.u16()? {
                let len = u32::from(r.u16()?);
                if slot + len >= SEGMENT_SLOTS || len == 0 && place > 0 {
                    return Err(Error::corrupt(format!("anchor: a run of {len} slots at slot {slot} is impossible")));
                }
                if live {
                    fill(&mut bitmap, slot, slot + len);
                }
                (slot, live) = (slot + len, !live);
            }
            if live {
                fill(&mut bitmap, slot, SEGMENT_SLOTS);
            }
        }
    }
    Ok(Arc::new(bitmap))
}

/// Sets the bits of the slots `from..to`.
fn fill(bitmap: &mut Bitmap, from: u32, to: u32) {
    for (word, at) in bitmap.iter_mut().zip((0..SEGMENT_SLOTS).step_by(64)) {
        let (low, high) = (from.clamp(at, at + 64) - at, to.clamp(at, at + 64) - at);
        let below = |n: u32| if n == 64 { u64::MAX } else { (1 << n) - 1 };
        *word |= below(high) & !below(low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(bitmap: Bitmap) -> (Form, usize) {
        let bitmap = Arc::new(bitmap);
        let (form, bytes) = pack(&bitmap, None);
        assert_eq!(Form::of(form.flags()).unwrap(), form);
        let mut r = Reader::new(&bytes, "bitmap");
        assert_eq!(unpack(&mut r, form, None).unwrap(), bitmap);
        assert_eq!(r.left(), 0);
        (form, bytes.len())
    }

    #[test]
    fn each_shape_has_its_form() {
        assert_eq!(round_trip([0; BITMAP_WORDS]), (Form::Empty, 0));
        assert_eq!(round_trip([u64::MAX; BITMAP_WORDS]), (Form::Runs, 4));
        assert_eq!(round_trip([0x5555_5555_5555_5555; BITMAP_WORDS]), (Form::Bits, 1024));
        let mut one = [0; BITMAP_WORDS];
        one[BITMAP_WORDS - 1] = 1 << 63;
        assert_eq!(round_trip(one), (Form::Runs, 4));
        let (one, other) = (Arc::new(one), Arc::new(one));
        assert_eq!(pack(&one, Some(&other)), (Form::Same, Vec::new()));
        assert!(Arc::ptr_eq(&unpack(&mut Reader::new(&[], "bitmap"), Form::Same, Some(&one)).unwrap(), &one));
    }

    #[test]
    fn impossible_runs_are_errors() {
        for runs in [&[1u16, 8192][..], &[2, 8000, 200], &[2, 5, 0], &[3, 1, 2]] {
            let bytes: Vec<u8> = runs.iter().flat_map(|n| n.to_le_bytes()).collect();
            assert!(unpack(&mut Reader::new(&bytes, "bitmap"), Form::Runs, None).is_err(), "{runs:?}");
        }
        assert!(unpack(&mut Reader::new(&[], "bitmap"), Form::Same, None).is_err());
        assert!(Form::of(12).is_err() && Form::of(20).is_err() && Form::of(28).is_err());
    }

    proptest! {
        #[test]
        fn any_bitmap_survives(
            words in proptest::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], BITMAP_WORDS),
        ) {
            let mut bitmap = [0; BITMAP_WORDS];
            bitmap.copy_from_slice(&words);
            let (_, len) = round_trip(bitmap);
            prop_assert!(len <= size_of::<Bitmap>());
        }
    }
}
