//! Blocks that were received one after the other, in one buffer.

use rehost_protocol::{ByteOffset, DiskIndex, MAX_BLOCK_LENGTH};

use super::refusal::Refusal;

/// A buffer that holds this much is full; bytes.
const FULL: usize = 256 << 10;

/// Blocks in the order in which they came. Never more than [`MAX_BLOCK_LENGTH`] bytes, if it is asked before they are added.
#[derive(Default)]
pub(super) struct Blocks {
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

struct Part {
    disk: DiskIndex,
    offset: ByteOffset,
    /// In the buffer; it begins where the one before ends.
    end: usize,
}

impl Blocks {
    /// Whether a block of `length` bytes fits; one always does.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.parts.is_empty() || self.bytes.len().saturating_add(length) <= MAX_BLOCK_LENGTH
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    /// Adds a block, whose bytes `unpack` appends.
    pub(super) fn add(
        &mut self,
        disk: DiskIndex,
        offset: ByteOffset,
        unpack: impl FnOnce(&mut Vec<u8>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        unpack(&mut self.bytes)?;
        self.parts.push(Part { disk, offset, end: self.bytes.len() });
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (DiskIndex, ByteOffset, &[u8])> {
        let mut start = 0;
        self.parts.iter().map(move |part| {
            let bytes = self.bytes.get(start..part.end).unwrap_or_default();
            start = part.end;
            (part.disk, part.offset, bytes)
        })
    }

    /// Keeps the memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_out_as_they_went_in_and_never_grow_beyond_the_longest_one() {
        let mut blocks = Blocks::default();
        assert!(blocks.has_room(MAX_BLOCK_LENGTH));
        let mut added = Vec::new();
        for length in (0..).map(|at| 1000 + at) {
            if !blocks.has_room(length) {
                break;
            }
            let block = vec![length.to_le_bytes()[0]; length];
            let place = (DiskIndex(block[0] % 3), ByteOffset(length as u64 * 4096));
            let unpack = |bytes: &mut Vec<u8>| {
                bytes.extend_from_slice(&block);
                Ok(())
            };
            blocks.add(place.0, place.1, unpack).unwrap();
            added.push((place.0, place.1, block));
        }
        assert!(blocks.is_full() && blocks.bytes.len() <= MAX_BLOCK_LENGTH && added.len() > 100);
        assert!(blocks.iter().eq(added.iter().map(|(disk, offset, bytes)| (*disk, *offset, bytes.as_slice()))));
        blocks.clear();
        assert!(blocks.iter().next().is_none() && blocks.has_room(MAX_BLOCK_LENGTH));
    }
}
