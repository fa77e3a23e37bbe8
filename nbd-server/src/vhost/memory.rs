//! A guest's memory as the ring code sees it.
//!
//! Invariant: an access is checked as a whole before a byte of it is moved, by [`Memory::holds`] and nothing else.

/// An access outside the memory that was handed over, or to memory that its owner has taken away since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Memory with the guest's addresses. Its owner may change it at any time.
pub trait Memory {
    /// Whether `len` bytes at `at` are there.
    fn holds(&self, at: u64, len: u64) -> bool;

    /// Copies from the guest.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), Fault>;

    /// Copies to the guest.
    fn write(&self, at: u64, data: &[u8]) -> Result<(), Fault>;

    /// Reads two bytes at once; what the guest wrote before them is seen afterwards.
    fn load(&self, at: u64) -> Result<u16, Fault>;

    /// Writes two bytes at once; what was written before them is seen by who sees them.
    fn store(&self, at: u64, value: u16) -> Result<(), Fault>;
}

/// `at + by`, unless it is no address.
pub fn offset(at: u64, by: u64) -> Result<u64, Fault> {
    at.checked_add(by).ok_or(Fault)
}

#[cfg(feature = "testing")]
pub mod testing {
    //! Memory that is an array.

    use super::{Fault, Memory};
    use std::cell::RefCell;

    /// So many bytes from address `base`.
    pub struct Array {
        base: u64,
        bytes: RefCell<Vec<u8>>,
    }

    impl Array {
        /// Memory with these bytes.
        pub fn new(base: u64, bytes: Vec<u8>) -> Self {
            Self { base, bytes: RefCell::new(bytes) }
        }

        fn place(&self, at: u64, len: usize) -> Result<std::ops::Range<usize>, Fault> {
            let start = at.checked_sub(self.base).and_then(|start| usize::try_from(start).ok()).ok_or(Fault)?;
            let end = start.checked_add(len).filter(|end| *end <= self.bytes.borrow().len()).ok_or(Fault)?;
            Ok(start..end)
        }
    }

    impl Memory for Array {
        fn holds(&self, at: u64, len: u64) -> bool {
            usize::try_from(len).is_ok_and(|len| self.place(at, len).is_ok())
        }
        fn read(&self, at: u64, out: &mut [u8]) -> Result<(), Fault> {
            let place = self.place(at, out.len())?;
            out.copy_from_slice(self.bytes.borrow().get(place).ok_or(Fault)?);
            Ok(())
        }
        fn write(&self, at: u64, data: &[u8]) -> Result<(), Fault> {
            let place = self.place(at, data.len())?;
            self.bytes.borrow_mut().get_mut(place).ok_or(Fault)?.copy_from_slice(data);
            Ok(())
        }
        fn load(&self, at: u64) -> Result<u16, Fault> {
            let mut value = [0; 2];
            self.read(at, &mut value).map(|()| u16::from_le_bytes(value))
        }
        fn store(&self, at: u64, value: u16) -> Result<(), Fault> {
            self.write(at, &value.to_le_bytes())
        }
    }
}
