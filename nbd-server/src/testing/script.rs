//! Reading decisions off a fuzzer's bytes.

/// The bytes that are left; at the end every decision is 0.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    pub fn done(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |sum, _| sum << 8 | u64::from(self.byte()))
    }

    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
