//! A pass: asks the replicator for digests of everything, compares, and sends what differs.
//!
//! Several requests are under way at a time, so that both sides read and digest at once. Chunks that differ are gathered, and
//! then compared once more in finer chunks, as what is marked is: of a chunk of 64 KiB mostly a few blocks did change. For that
//! they are read again: nothing needs to be kept, and newer bytes travel rather than older ones.

use std::collections::VecDeque;

use rehost_protocol::{ByteCount, DIGEST_CHUNK, DigestChunk, DigestId, ZeroOrDigest, digest_chunk};

use super::{
    driver::Driver,
    error::{Halt, SyncError},
    ledger::{Answer, Run},
    outbox::Outgoing,
    source::Piece,
};
use crate::tracker::ByteRange;

/// Requests under way.
const PIPELINE: usize = 6;
/// So many stretches that differ are gathered before they are compared in finer chunks, and sent.
const GATHERED: usize = 512;

/// A piece whose digests were asked for.
struct Asked {
    place: usize,
    piece: Piece,
    id: DigestId,
}

/// Stretches of a disk, given by its place, that differ.
#[derive(Default)]
struct Differing {
    place: usize,
    ranges: Vec<ByteRange>,
}

/// What a pass compares: of each disk (given by its place) what is below a limit.
pub(super) type Extent = Vec<(usize, u64)>;

impl Driver<'_> {
    /// One pass over these disks; true if nothing differed.
    pub(super) fn pass(&mut self, extent: &Extent) -> Result<bool, Halt> {
        let mut under_way = VecDeque::new();
        let mut next = (0, 0);
        let mut clean = true;
        let mut differing = Differing::default();
        loop {
            while under_way.len() < PIPELINE {
                let Some((place, piece)) = self.next_piece(extent, &mut next) else { break };
                let id = self.ask(place, piece.offset, piece.length, DigestChunk::Coarse)?;
                under_way.push_back(Asked { place, piece, id });
            }
            let Some(asked) = under_way.pop_front() else {
                self.send_differing(&mut differing)?;
                return Ok(clean);
            };
            clean &= self.compare(&asked, &mut differing)?;
        }
    }

    /// The next piece of the pass; `next` is the index in the extent and the offset to go on from.
    fn next_piece(&self, extent: &Extent, next: &mut (usize, u64)) -> Option<(usize, Piece)> {
        loop {
            let (index, offset) = *next;
            let (place, end) = *extent.get(index)?;
            let end = end.next_multiple_of(DIGEST_CHUNK);
            match self.disks.get(place)?.source.piece_before(offset, end) {
                Some(piece) => {
                    next.1 += piece.length;
                    return Some((place, piece));
                }
                None => *next = (index + 1, 0),
            }
        }
    }

    pub(super) fn ask(&mut self, place: usize, offset: u64, length: u64, chunk: DigestChunk) -> Result<DigestId, Halt> {
        self.last_id = DigestId(self.last_id.0.wrapping_add(1));
        let id = self.last_id;
        self.ledger.ask(id, chunk);
        self.queue(Outgoing::Digests { place, id, offset, length, chunk })?;
        Ok(id)
    }

    /// Compares a piece with its answers, and gathers what differs; true if nothing does.
    fn compare(&mut self, asked: &Asked, gathered: &mut Differing) -> Result<bool, Halt> {
        let Asked { place, piece, mut id } = *asked;
        let own = self.digest(place, piece)?;
        let end = piece.offset + piece.length;
        let mut at = piece.offset;
        let mut clean = true;
        loop {
            let answer = self.ledger.wait_for_answer(id)?;
            answer.check(at, end, DigestChunk::Coarse)?;
            let first = usize::try_from((at - piece.offset) / DIGEST_CHUNK).unwrap_or(usize::MAX);
            let differing = differences(own.as_deref().map(|own| own.get(first..).unwrap_or_default()), &answer.runs);
            clean &= differing.is_empty();
            let bytes = self.gather(gathered, place, (at, end), &differing)?;
            self.control.board.add_rescanned(place, answer.covered, bytes);
            at += answer.covered;
            if at >= end {
                return Ok(clean);
            }
            // An answer covers what fits; the rest is asked for again.
            id = self.ask(place, at, end - at, DigestChunk::Coarse)?;
        }
    }

    /// The piece's own chunks; none for a hole, all of whose chunks are zero.
    fn digest(&mut self, place: usize, piece: Piece) -> Result<Option<Vec<ZeroOrDigest>>, Halt> {
        if piece.hole {
            return Ok(None);
        }
        let end = piece.offset + piece.length;
        let mut digests = Vec::new();
        let mut at = piece.offset;
        while at < end {
            self.ledger.check()?;
            let Some(disk) = self.disks.get_mut(place) else { break };
            disk.source.read(at, end - at, &mut self.own)?;
            let bytes = self.own.bytes();
            let chunks = bytes.chunks(usize::try_from(DIGEST_CHUNK).unwrap_or(usize::MAX));
            digests.extend(chunks.map(|chunk| digest_chunk(&self.key, chunk)));
            at += bytes.len() as u64;
        }
        Ok(Some(digests))
    }

    /// Adds ranges of chunks, counted from where the stretch begins; returns how many bytes they are.
    fn gather(
        &mut self,
        gathered: &mut Differing,
        place: usize,
        (begin, end): (u64, u64),
        chunks: &[ChunkRange],
    ) -> Result<u64, Halt> {
        if gathered.place != place || gathered.ranges.len() >= GATHERED {
            self.send_differing(gathered)?;
        }
        gathered.place = place;
        let mut bytes = 0;
        for range in chunks {
            let offset = begin + range.first * DIGEST_CHUNK;
            let length = (range.count * DIGEST_CHUNK).min(end - offset);
            gathered.ranges.push(ByteRange { offset, length });
            bytes += length;
        }
        Ok(bytes)
    }

    /// Sends of what was gathered the blocks that differ.
    fn send_differing(&mut self, gathered: &mut Differing) -> Result<(), Halt> {
        let ranges = std::mem::take(&mut gathered.ranges);
        self.send_differing_runs(gathered.place, &ranges)
    }
}

/// Chunks that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkRange {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Answer {
    /// An answer must cover something, end where chunks end, and not go beyond what was asked.
    pub(super) fn check(&self, at: u64, end: u64, chunk: DigestChunk) -> Result<(), SyncError> {
        let reached = at.checked_add(self.covered).filter(|reached| *reached <= end);
        match reached {
            Some(reached) if self.covered > 0 && (reached == end || reached.is_multiple_of(chunk.bytes())) => Ok(()),
            _ => Err(SyncError::Protocol(format!("digests of {} at {at} were not asked for", ByteCount(self.covered)))),
        }
    }
}

/// Where the replicator's chunks differ from one's own (`None`: all zero). The runs were checked to cover what they say,
/// and that not to be more than was asked for.
pub(super) fn differences(own: Option<&[ZeroOrDigest]>, runs: &[Run]) -> Vec<ChunkRange> {
    let mut found = Vec::new();
    let mut at = 0;
    for run in runs {
        let count = match run {
            Run::Zero(count) => {
                zero_differences(own, at, *count, &mut found);
                *count
            }
            Run::Digests(digests) => {
                for (theirs, chunk) in digests.iter().zip(at..) {
                    if own_chunk(own, chunk) != ZeroOrDigest::Digest(*theirs) {
                        add(&mut found, chunk);
                    }
                }
                digests.len() as u64
            }
        };
        at += count;
    }
    found
}

fn zero_differences(own: Option<&[ZeroOrDigest]>, first: u64, count: u64, found: &mut Vec<ChunkRange>) {
    // A hole on both sides is equal, however large.
    if own.is_none() {
        return;
    }
    for chunk in first..first + count {
        if own_chunk(own, chunk) != ZeroOrDigest::Zero {
            add(found, chunk);
        }
    }
}

fn own_chunk(own: Option<&[ZeroOrDigest]>, chunk: u64) -> ZeroOrDigest {
    let Some(own) = own else { return ZeroOrDigest::Zero };
    let found = usize::try_from(chunk).ok().and_then(|at| own.get(at));
    found.copied().unwrap_or(ZeroOrDigest::Zero)
}

fn add(found: &mut Vec<ChunkRange>, chunk: u64) {
    match found.last_mut() {
        Some(last) if last.first + last.count == chunk => last.count += 1,
        _ => found.push(ChunkRange { first: chunk, count: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(kind: u8) -> ZeroOrDigest {
        match kind {
            0 => ZeroOrDigest::Zero,
            other => ZeroOrDigest::Digest([other; 16]),
        }
    }

    fn runs(chunks: &[ZeroOrDigest]) -> Vec<Run> {
        let mut runs = Vec::new();
        for chunk in chunks {
            match (runs.last_mut(), chunk) {
                (Some(Run::Zero(count)), ZeroOrDigest::Zero) => *count += 1,
                (_, ZeroOrDigest::Zero) => runs.push(Run::Zero(1)),
                (Some(Run::Digests(digests)), ZeroOrDigest::Digest(digest)) => digests.push(*digest),
                (_, ZeroOrDigest::Digest(digest)) => runs.push(Run::Digests(vec![*digest])),
            }
        }
        runs
    }

    #[test]
    fn a_hole_of_terabytes_is_compared_at_once() {
        assert_eq!(differences(None, &[Run::Zero(1 << 50)]), []);
    }

    #[test]
    fn answers_that_were_not_asked_for_are_refused() {
        let answer = |covered| Answer { covered, runs: Vec::new() };
        let check = |covered, at, end| answer(covered).check(at, end, DigestChunk::Coarse);
        assert!(check(DIGEST_CHUNK, 0, DIGEST_CHUNK).is_ok());
        assert!(check(100, 0, 100).is_ok());
        assert!(check(100, 0, DIGEST_CHUNK).is_err());
        assert!(check(0, 0, DIGEST_CHUNK).is_err());
        assert!(check(u64::MAX, DIGEST_CHUNK, 2 * DIGEST_CHUNK).is_err());
    }

    proptest! {
        #[test]
        fn exactly_the_differing_chunks_are_found(
            pairs in prop::collection::vec((0_u8..3, 0_u8..3), 0..200),
            hole: bool,
        ) {
            let own: Vec<_> = pairs.iter().map(|(own, _)| chunk(if hole { 0 } else { *own })).collect();
            let theirs: Vec<_> = pairs.iter().map(|(_, theirs)| chunk(*theirs)).collect();
            let found = differences((!hole).then_some(&own), &runs(&theirs));
            let found: Vec<u64> = found.iter().flat_map(|range| range.first..range.first + range.count).collect();
            let expected = own.iter().zip(&theirs).zip(0_u64..).filter(|((a, b), _)| a != b);
            prop_assert_eq!(found, expected.map(|(_, at)| at).collect::<Vec<_>>());
        }
    }
}
