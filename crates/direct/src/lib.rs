//! Memory that direct I/O (`O_DIRECT` of open(2)) accepts.

use std::ops::{Deref, DerefMut};

/// Direct I/O wants memory, offsets and lengths in multiples of the logical block size, which is at most this; bytes.
pub const BLOCK: usize = 4096;
/// The same, of offsets.
pub const ALIGNMENT: u64 = BLOCK as u64;

/// Whether a number of bytes, or an offset, is one that direct I/O accepts.
#[must_use]
pub const fn is_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(ALIGNMENT)
}

/// Bytes at an aligned address.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// Zeros, for which the kernel finds memory when they are used.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        Self::with(vec![0; length + BLOCK], length)
    }

    /// Bytes whose memory is there already: zeros would be promised and not given.
    #[must_use]
    pub fn resident(length: usize) -> Self {
        Self::with(vec![1; length + BLOCK], length)
    }

    /// Makes it `length` bytes long at least; what is added is zero.
    pub fn grow(&mut self, length: usize) {
        if length > self.length {
            let mut grown = Self::zeroed(length);
            grown.get_mut(..self.length).unwrap_or_default().copy_from_slice(self);
            *self = grown;
        }
    }

    fn with(memory: Vec<u8>, length: usize) -> Self {
        // The vector never grows, so its memory stays where it is.
        let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { memory, start, length }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_there_at_an_aligned_address() {
        for length in [0, 1, 4096, 100_000] {
            for (mut memory, value) in [(Aligned::zeroed(length), 0), (Aligned::resident(length), 1)] {
                assert_eq!((memory.len(), memory.as_ptr() as usize % BLOCK), (length, 0));
                assert!(memory.iter().all(|byte| *byte == value));
                memory.fill(7);
                memory.grow(length + 5000);
                assert_eq!((memory.len(), memory.as_ptr() as usize % BLOCK), (length + 5000, 0));
                assert!(memory[..length].iter().all(|byte| *byte == 7));
                assert!(memory[length..].iter().all(|byte| *byte == 0));
                memory.grow(1);
                assert_eq!(memory.len(), length + 5000);
            }
        }
        assert!(is_aligned(0) && is_aligned(8192) && !is_aligned(512));
    }
}
