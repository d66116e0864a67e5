//! Cuts what was read into what must travel and what is zero.

use std::ops::Range;

use rehost_protocol::is_zero;

/// Zeros are looked for in steps of this: what file systems allocate in.
const GRANULE: usize = 4096;
/// A shorter run of zeros is cheaper to send than to talk about.
const SHORTEST_RUN: usize = 4 * GRANULE;

/// A part of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Only zeros.
    Zero(Range<usize>),
    /// Anything.
    Data(Range<usize>),
}

/// The segments of `bytes`, in order and without gaps. No two of one kind follow each other.
pub(super) fn segments(bytes: &[u8]) -> impl Iterator<Item = Segment> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let start = at;
        let zeros = zero_run(bytes, start);
        if zeros >= SHORTEST_RUN || start + zeros == bytes.len() {
            at = start + zeros;
            return Some(Segment::Zero(start..at));
        }
        at = data_end(bytes, start + zeros);
        Some(Segment::Data(start..at))
    })
}

/// How many bytes from `start` on are zero, in whole granules (or to the end).
fn zero_run(bytes: &[u8], start: usize) -> usize {
    let rest = bytes.get(start..).unwrap_or_default();
    let zeros = rest.chunks(GRANULE).take_while(|granule| is_zero(granule));
    zeros.map(<[u8]>::len).sum()
}

/// Where data that begins at `start` ends: at the next run of zeros that is long enough.
fn data_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < bytes.len() {
        let zeros = zero_run(bytes, at);
        if zeros >= SHORTEST_RUN || (zeros > 0 && at + zeros == bytes.len()) {
            return at;
        }
        at = (at + zeros + GRANULE).min(bytes.len());
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zeros_and_data_are_told_apart() {
        let mut bytes = vec![0; 32 * GRANULE];
        assert_eq!(segments(&bytes).collect::<Vec<_>>(), [Segment::Zero(0..bytes.len())]);
        bytes[10 * GRANULE] = 1;
        let expected = [
            Segment::Zero(0..10 * GRANULE),
            Segment::Data(10 * GRANULE..11 * GRANULE),
            Segment::Zero(11 * GRANULE..32 * GRANULE),
        ];
        assert_eq!(segments(&bytes).collect::<Vec<_>>(), expected);
        assert_eq!(segments(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn segments_cover_everything_and_zeros_are_zero(
            granules in prop::collection::vec(any::<bool>(), 0..64),
            tail in 0..GRANULE,
        ) {
            let mut bytes: Vec<u8> = granules.iter().flat_map(|set| {
                let mut granule = vec![0; GRANULE];
                granule[77] = u8::from(*set);
                granule
            }).collect();
            bytes.extend(std::iter::repeat_n(0, tail));
            let mut at = 0;
            let mut last_was_zero = None;
            for segment in segments(&bytes) {
                let (range, zero) = match &segment {
                    Segment::Zero(range) => (range, true),
                    Segment::Data(range) => (range, false),
                };
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > at);
                prop_assert!(!zero || is_zero(&bytes[range.clone()]));
                prop_assert_ne!(last_was_zero, Some(zero));
                (at, last_was_zero) = (range.end, Some(zero));
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
