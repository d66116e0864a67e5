//! Which reads bring what is pending: neighbours are read together, also over a gap that costs less than a read of its own.

use super::buffer::STEP;
use crate::tracker::ByteRange;

/// A gap up to this is read too: about what a disk reads in the time of one more request.
const GAP: u64 = 128 * 1024;

/// A part of a buffer, and where on the disk it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// On the disk, in bytes.
    pub(super) offset: u64,
    /// In the buffer.
    pub(super) at: usize,
    /// Bytes; not 0.
    pub(super) length: usize,
}

/// One read, which does not cross a border of a buffer's size on the disk, and the parts of it that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) range: ByteRange,
    pub(super) runs: Vec<Run>,
}

/// The reads of these ranges, which are in ascending order and have no common bytes.
pub(super) fn chunks(ranges: &[ByteRange]) -> impl Iterator<Item = Chunk> + '_ {
    let mut pieces = ranges.iter().flat_map(|range| pieces(*range)).peekable();
    std::iter::from_fn(move || {
        let mut chunk = Chunk::of(pieces.next()?);
        while let Some(next) = pieces.next_if(|next| chunk.takes(*next)) {
            chunk.add(next);
        }
        Some(chunk)
    })
}

/// A range, cut at the borders.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut at = range.offset;
    std::iter::from_fn(move || {
        let end = range.end().min((at / STEP as u64 + 1).saturating_mul(STEP as u64));
        let piece = ByteRange { offset: at, length: end.checked_sub(at).filter(|length| *length > 0)? };
        at = end;
        Some(piece)
    })
}

impl Chunk {
    fn of(piece: ByteRange) -> Self {
        let mut chunk = Self { range: ByteRange { offset: piece.offset, length: 0 }, runs: Vec::new() };
        chunk.add(piece);
        chunk
    }

    fn takes(&self, piece: ByteRange) -> bool {
        let same_window = piece.offset / STEP as u64 == self.range.offset / STEP as u64;
        same_window && piece.offset <= self.range.end() + GAP
    }

    fn add(&mut self, piece: ByteRange) {
        self.range.length = piece.end() - self.range.offset;
        // A window is of a buffer's size: both fit.
        let at = usize::try_from(piece.offset - self.range.offset).unwrap_or(STEP);
        let length = usize::try_from(piece.length).unwrap_or(STEP);
        self.runs.push(Run { offset: piece.offset, at, length });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_gaps_are_read_and_large_ones_are_not() {
        let range = |offset, length| ByteRange { offset, length };
        let ranges = [range(0, 4096), range(8192, 4096), range(8192 + 4096 + GAP + 4096, 4096)];
        let chunks: Vec<_> = chunks(&ranges).collect();
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].range, range(0, 12_288));
        assert_eq!(chunks[0].runs[1], Run { offset: 8192, at: 8192, length: 4096 });
    }

    proptest! {
        #[test]
        fn exactly_the_ranges_are_wanted(lengths in prop::collection::vec((1_u64..600, 1_u64..600), 0..60)) {
            let (mut ranges, mut at) = (Vec::new(), 0);
            for (gap, length) in lengths {
                ranges.push(ByteRange { offset: (at + gap) * 4096, length: length * 4096 });
                at += gap + length;
            }
            let mut wanted: Vec<ByteRange> = Vec::new();
            for chunk in chunks(&ranges) {
                prop_assert!(chunk.range.length <= STEP as u64);
                prop_assert_eq!(chunk.range.offset / STEP as u64, (chunk.range.end() - 1) / STEP as u64);
                for run in chunk.runs {
                    prop_assert_eq!(run.offset, chunk.range.offset + run.at as u64);
                    prop_assert!(run.at + run.length <= STEP && run.offset + run.length as u64 <= chunk.range.end());
                    match wanted.last_mut() {
                        Some(last) if last.end() == run.offset => last.length += run.length as u64,
                        _ => wanted.push(ByteRange { offset: run.offset, length: run.length as u64 }),
                    }
                }
            }
            prop_assert_eq!(wanted, ranges);
        }
    }
}
