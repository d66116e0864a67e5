//! The two sets of marks, wherever their memory is.
//!
//! Marks are bytes, but memory is read and changed in words of eight of them: the lowest byte of a word is the lowest granule.
//!
//! Whoever marks (an eBPF program) only ever sets live bytes. A live word is cleared by comparing and exchanging it with the
//! very value that was made pending before: a mark that comes in between makes the exchange fail and is made pending too. So
//! the process may be killed at any instruction, and every mark is in one set at least.

use std::{
    ops::{Deref, Range},
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use super::{
    ByteRange, Pass,
    geometry::{COARSE_SHIFT, Geometry},
};

/// 1 in every byte.
const ONES: u64 = 0x0101_0101_0101_0101;
const LANES: u64 = 8;
/// Words of fine marks that one coarse mark stands for.
const WORDS_PER_COARSE: u64 = (1 << COARSE_SHIFT) / LANES;

/// Live marks (fine and coarse) and pending ones, in memory `M`.
#[derive(Debug)]
pub(super) struct Marks<M> {
    geometry: Geometry,
    live: M,
    coarse: M,
    pending: M,
    /// How many granules are pending.
    pending_count: u64,
}

impl<M: Deref<Target = [AtomicU64]>> Marks<M> {
    /// Takes memory as it is found: what is marked in it stays marked, and what is pending counts as collected by the first
    /// pass. Each must be as long as the geometry says.
    pub(super) fn new(geometry: Geometry, live: M, coarse: M, pending: M) -> Self {
        let mut pending_count = 0;
        for word in pending.iter() {
            let found = marked(word.load(Relaxed));
            if found != 0 {
                word.store(found * u64::from(Pass::FIRST.number()), Relaxed);
                pending_count += count(found);
            }
        }
        Self { geometry, live, coarse, pending, pending_count }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Moves what is live to pending, under the number of the pass.
    pub(super) fn collect(&mut self, pass: Pass) {
        let fresh = u64::from(pass.number());
        let (geometry, pending) = (self.geometry, &self.pending);
        let mut added = 0;
        for (word, live) in (0..).zip(self.live.iter()) {
            take(live, |seen| added += set(pending, geometry, word, marked(seen), fresh));
        }
        for (word, coarse) in (0..).zip(self.coarse.iter()) {
            take(coarse, |seen| {
                for lane in lanes(marked(seen)) {
                    let first = (word * LANES + lane) * WORDS_PER_COARSE;
                    let words = first..first + WORDS_PER_COARSE;
                    added += words.map(|word| set(pending, geometry, word, ONES, fresh)).sum::<u64>();
                }
            });
        }
        self.pending_count += added;
    }

    /// Makes what a write of these bytes touches pending, under the number of the pass.
    pub(super) fn collect_range(&mut self, range: ByteRange, pass: Pass) {
        let granules = self.touched(range);
        for word in granules.start / LANES..granules.end.div_ceil(LANES) {
            let lanes = lanes_within(word, granules.clone());
            self.pending_count += set(&self.pending, self.geometry, word, lanes, pass.number().into());
        }
    }

    /// Whether nothing is live.
    pub(super) fn is_quiet(&self) -> bool {
        self.live.iter().chain(self.coarse.iter()).all(|word| word.load(Acquire) == 0)
    }

    /// Everything pending, in ascending order, neighbours joined.
    pub(super) fn pending(&self) -> Vec<ByteRange> {
        let mut ranges = Vec::new();
        if self.pending_count == 0 {
            return ranges;
        }
        for (word, pending) in (0..).zip(self.pending.iter()) {
            for lane in lanes(marked(pending.load(Relaxed))) {
                self.append(&mut ranges, word * LANES + lane);
            }
        }
        ranges
    }

    /// What this pass collected in the range, and no later one, is pending no more. Granules that the range does not cover
    /// whole stay.
    pub(super) fn settle(&mut self, range: ByteRange, pass: Pass) {
        let Range { start, end } = self.whole_granules(range);
        for word in start / LANES..end.div_ceil(LANES) {
            let Some(pending) = at(&self.pending, word) else { return };
            let found = pending.load(Relaxed);
            let of_pass = ONES & !marked(found ^ (u64::from(pass.number()) * ONES));
            let settled = of_pass & lanes_within(word, start..end);
            pending.store(found & !(settled * 0xff), Relaxed);
            self.pending_count = self.pending_count.saturating_sub(count(settled));
        }
    }

    /// Bytes that are marked: exact for what is pending, an estimate for what is live.
    pub(super) fn backlog_bytes(&self) -> u64 {
        let marks = |words: &M| {
            let words = words.iter().map(|word| word.load(Relaxed));
            words.filter(|word| *word != 0).map(|word| count(marked(word))).sum::<u64>()
        };
        let granules = self.pending_count + marks(&self.live) + (marks(&self.coarse) << COARSE_SHIFT);
        granules.saturating_mul(self.geometry.granule_bytes()).min(self.geometry.size_bytes())
    }

    fn append(&self, ranges: &mut Vec<ByteRange>, granule: u64) {
        let offset = granule << self.geometry.granule_shift();
        let length = self.geometry.granule_bytes().min(self.geometry.size_bytes().saturating_sub(offset));
        match ranges.last_mut() {
            Some(last) if last.end() == offset => last.length += length,
            _ => ranges.push(ByteRange { offset, length }),
        }
    }

    fn touched(&self, range: ByteRange) -> Range<u64> {
        let end = range.end().min(self.geometry.size_bytes()).div_ceil(self.geometry.granule_bytes());
        range.offset >> self.geometry.granule_shift()..end
    }

    fn whole_granules(&self, range: ByteRange) -> Range<u64> {
        let shift = self.geometry.granule_shift();
        let reaches_end = range.end() >= self.geometry.size_bytes();
        let end = if reaches_end { self.geometry.granules() } else { range.end() >> shift };
        range.offset.div_ceil(self.geometry.granule_bytes())..end
    }
}

impl Marks<Box<[AtomicU64]>> {
    /// Empty marks in memory of this process.
    pub(super) fn in_memory(geometry: Geometry) -> Self {
        let zeroed = |entries: u32| -> Box<[AtomicU64]> {
            let words = u64::from(entries) << (super::geometry::ENTRY_SHIFT - 3);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        };
        let (fine, coarse) = (geometry.fine_entries(), geometry.coarse_entries());
        Self::new(geometry, zeroed(fine), zeroed(coarse), zeroed(fine))
    }

    /// Marks live what a write of these bytes touched.
    pub(super) fn mark(&self, range: ByteRange) {
        let granules = self.touched(range);
        for word in granules.start / LANES..granules.end.div_ceil(LANES) {
            if let Some(live) = at(&self.live, word) {
                live.fetch_or(lanes_within(word, granules.clone()), AcqRel);
            }
        }
    }
}

/// Clears a word after `note` was told what stood in it.
fn take(word: &AtomicU64, mut note: impl FnMut(u64)) {
    let mut seen = word.load(Acquire);
    while seen != 0 {
        note(seen);
        match word.compare_exchange(seen, 0, AcqRel, Acquire) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

/// Writes `number` into these lanes of a pending word, where they are on the disk; says how many were not pending before.
fn set(pending: &[AtomicU64], geometry: Geometry, word: u64, lanes: u64, number: u64) -> u64 {
    let Some(pending) = at(pending, word) else { return 0 };
    let lanes = lanes & lanes_within(word, 0..geometry.granules());
    let before = pending.load(Relaxed);
    pending.store((before & !(lanes * 0xff)) | (lanes * number), Relaxed);
    count(lanes & !marked(before))
}

fn at(words: &[AtomicU64], index: u64) -> Option<&AtomicU64> {
    words.get(usize::try_from(index).ok()?)
}

/// 1 in every byte that is not 0.
fn marked(word: u64) -> u64 {
    const LOW: u64 = ONES * 0x7f;
    (((word & LOW) + LOW) | word) >> 7 & ONES
}

/// How many bytes are 1, where all are 0 or 1.
fn count(lanes: u64) -> u64 {
    lanes.count_ones().into()
}

/// The numbers of the bytes that are 1, where all are 0 or 1.
fn lanes(lanes: u64) -> impl Iterator<Item = u64> {
    (0..LANES).filter(move |lane| lanes >> (lane * 8) & 1 == 1)
}

/// 1 in every byte of a word whose granule is in the range.
fn lanes_within(word: u64, granules: Range<u64>) -> u64 {
    let first = word * LANES;
    let from = granules.start.saturating_sub(first).min(LANES);
    let to = granules.end.saturating_sub(first).min(LANES);
    let below = |lane: u64| u64::try_from((1_u128 << (lane * 8)) - 1).unwrap_or(u64::MAX);
    ONES & below(to) & !below(from)
}

#[cfg(test)]
mod tests;
