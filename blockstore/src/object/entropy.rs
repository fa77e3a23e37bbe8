//! Where unpredictable bytes come from.

/// A source of bytes that nobody can guess and that never repeat: keys and salts are made of them.
pub trait Entropy: Send + Sync {
    /// Fills `buf` completely. An implementation that cannot must not return.
    fn fill(&self, buf: &mut [u8]);
}
