//! Which reads bring what is pending: neighbours are read together, also over a gap that costs less than a read of its own,
//! and reads share a buffer until it is full: each hand-over wakes a thread, and sends what is there.

use rehost_direct::BLOCK;

use super::buffer::STEP;
use crate::tracker::ByteRange;

/// A gap up to this is read too: about what a disk reads in the time of one more request.
const GAP: u64 = 128 * 1024;
/// So many reads share a buffer at most, so that a slow disk does not keep the link waiting.
pub(super) const MOST_READS: usize = 32;

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

/// One read, which does not cross a border of a buffer's size on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    /// On the disk.
    pub(super) range: ByteRange,
    /// In the buffer; aligned.
    pub(super) at: usize,
}

/// Reads that share a buffer, and the parts of it that are wanted; both in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) reads: Vec<Read>,
    pub(super) runs: Vec<Run>,
}

/// The reads of these ranges, which are in ascending order and have no common bytes.
pub(super) fn chunks(ranges: &[ByteRange]) -> impl Iterator<Item = Chunk> + '_ {
    let mut pieces = ranges.iter().flat_map(|range| pieces(*range)).peekable();
    std::iter::from_fn(move || {
        let mut chunk = Chunk::default();
        while pieces.next_if(|next| chunk.take(*next)).is_some() {}
        (!chunk.reads.is_empty()).then_some(chunk)
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
    /// From the first byte that is read to the last; nothing else that is pending lies between.
    pub(super) fn range(&self) -> ByteRange {
        let offset = self.reads.first().map_or(0, |read| read.range.offset);
        let end = self.reads.last().map_or(offset, |read| read.range.end());
        ByteRange { offset, length: end - offset }
    }

    /// Adds a piece, if there is room for it.
    fn take(&mut self, piece: ByteRange) -> bool {
        self.extend(piece) || self.begin(piece)
    }

    /// Makes the last read longer.
    fn extend(&mut self, piece: ByteRange) -> bool {
        let Some(read) = self.reads.last_mut() else { return false };
        let same_window = piece.offset / STEP as u64 == read.range.offset / STEP as u64;
        let length = piece.end() - read.range.offset;
        let fits = read.at as u64 + length <= STEP as u64;
        let extends = same_window && fits && piece.offset <= read.range.end() + GAP;
        if extends {
            read.range.length = length;
            let at = read.at + within_window(piece.offset - read.range.offset);
            self.runs.push(Run { offset: piece.offset, at, length: within_window(piece.length) });
        }
        extends
    }

    /// Begins a read.
    fn begin(&mut self, piece: ByteRange) -> bool {
        let (at, length) = (self.end(), within_window(piece.length));
        let fits = at + length <= STEP && self.reads.len() < MOST_READS;
        if fits {
            self.reads.push(Read { range: piece, at });
            self.runs.push(Run { offset: piece.offset, at, length });
        }
        fits
    }

    /// Where in the buffer the next read begins.
    fn end(&self) -> usize {
        let end = self.reads.last().map_or(0, |read| read.at + within_window(read.range.length));
        end.next_multiple_of(BLOCK)
    }
}

/// A window is of a buffer's size: its bytes fit.
fn within_window(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(STEP)
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
        assert_eq!(chunks.len(), 1);
        let last = ranges[2];
        let reads = [Read { range: range(0, 12_288), at: 0 }, Read { range: last, at: 12_288 }];
        assert_eq!(chunks[0].reads, reads);
        assert_eq!(chunks[0].runs[1], Run { offset: 8192, at: 8192, length: 4096 });
        assert_eq!(chunks[0].runs[2], Run { offset: last.offset, at: 12_288, length: 4096 });
        assert_eq!(chunks[0].range(), range(0, last.end()));
    }

    #[test]
    fn a_buffer_is_filled_but_not_for_ever() {
        let far = |n: u64| ByteRange { offset: n << 21, length: 4096 };
        let ranges: Vec<_> = (0..100).map(far).collect();
        let reads: Vec<_> = chunks(&ranges).map(|chunk| chunk.reads.len()).collect();
        assert_eq!(reads, [MOST_READS, MOST_READS, MOST_READS, 100 - 3 * MOST_READS]);
        let large: Vec<_> = (0..4).map(|n| ByteRange { offset: n << 21, length: STEP as u64 / 2 }).collect();
        assert_eq!(chunks(&large).count(), 2);
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
                let mut filled = 0;
                for read in &chunk.reads {
                    let (start, end) = (read.range.offset, read.range.end());
                    prop_assert_eq!(start / STEP as u64, (end - 1) / STEP as u64);
                    prop_assert!(read.at >= filled && (read.at as u64).is_multiple_of(rehost_direct::ALIGNMENT));
                    filled = read.at + within_window(read.range.length);
                    prop_assert!(filled <= STEP);
                }
                for run in chunk.runs {
                    let of_run = |read: &&Read| (read.at..read.at + within_window(read.range.length)).contains(&run.at);
                    let read = chunk.reads.iter().find(of_run).unwrap();
                    prop_assert_eq!(run.offset, read.range.offset + (run.at - read.at) as u64);
                    prop_assert!(run.offset + run.length as u64 <= read.range.end());
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
