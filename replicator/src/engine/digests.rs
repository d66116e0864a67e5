//! Answers to digest requests, which see a volume as it will be after the next checkpoint: its journal lies over it.

use rehost_protocol::{ByteCount, ByteOffset, DigestChunk, DigestKey, DigestRunsBuilder, ZeroOrDigest, digest_chunk};

use super::{
    journal::{Journal, Member},
    refusal::Refusal,
    volume::Volume,
};

/// How much is read at a time; a multiple of every chunk.
const STEP: u64 = 1 << 20;
/// Most bytes that are read for one reply, so that replies keep coming.
const MOST_READ: u64 = 64 << 20;

/// A volume, and the changes that wait for their checkpoint.
pub(super) struct View<'a> {
    pub(super) volume: &'a Volume,
    pub(super) journal: Option<(&'a Journal, &'a Member)>,
}

impl View<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        self.volume.read(offset, buffer)?;
        self.journal.map_or(Ok(()), |(journal, member)| journal.overlay(member, offset, buffer))
    }

    /// Where the first byte at or after `offset` is that may not be zero; `end` if there is none before it.
    fn next_data(&self, offset: u64, end: u64) -> Result<u64, Refusal> {
        let below = self.volume.next_data(offset, end);
        let Some((journal, member)) = self.journal else { return Ok(below) };
        Ok(below.min(journal.next_data(member, offset, below)?))
    }
}

/// Digests a volume's ranges; keeps its buffer between requests.
pub(super) struct Digester {
    key: DigestKey,
    buffer: Vec<u8>,
}

impl Digester {
    pub(super) fn new(key: DigestKey) -> Self {
        Self { key, buffer: Vec::new() }
    }

    /// Digests a prefix of a range that begins at a chunk; says how many bytes it covers. A hole costs nothing,
    /// whatever its size.
    pub(super) fn digest(
        &mut self,
        view: &View<'_>,
        offset: ByteOffset,
        length: ByteCount,
        chunk: DigestChunk,
    ) -> Result<(DigestRunsBuilder, ByteCount), Refusal> {
        let (start, length) = view.volume.range(offset, length)?;
        let (end, chunk) = (start + length, chunk.bytes());
        let mut runs = DigestRunsBuilder::new();
        let (mut at, mut read) = (start, 0);
        while at < end && read < MOST_READ && has_room_for_step(&runs) {
            let data = view.next_data(at, end)?;
            let hole = if data == end { (end - at).div_ceil(chunk) } else { (data - at) / chunk };
            runs.push_zero(hole);
            at = (at + hole * chunk).min(end);
            let step = STEP.min(end - at);
            self.digest_step(view, at, step, chunk, &mut runs)?;
            at += step;
            read += step;
        }
        Ok((runs, ByteCount(at - start)))
    }

    fn digest_step(
        &mut self,
        view: &View<'_>,
        at: u64,
        length: u64,
        chunk: u64,
        runs: &mut DigestRunsBuilder,
    ) -> Result<(), Refusal> {
        let length = usize::try_from(length).unwrap_or(0);
        self.buffer.resize(length, 0);
        view.read(at, &mut self.buffer)?;
        for chunk in self.buffer.chunks(usize::try_from(chunk).unwrap_or(usize::MAX)) {
            match digest_chunk(&self.key, chunk) {
                ZeroOrDigest::Zero => runs.push_zero(1),
                ZeroOrDigest::Digest(digest) => runs.push_digest(digest),
            }
        }
        Ok(())
    }
}

/// A step adds at most 256 chunks of 25 bytes; the reply's own limit leaves room for far more than that, so half of it will do.
fn has_room_for_step(runs: &DigestRunsBuilder) -> bool {
    runs.encoded_length() < rehost_protocol::MAX_BLOCK_LENGTH / 2
}
