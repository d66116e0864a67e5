//! Answers to digest requests.

use rehost_protocol::{ByteCount, ByteOffset, DIGEST_CHUNK, DigestKey, DigestRunsBuilder, ZeroOrDigest, digest_chunk};

use super::{refusal::Refusal, volume::Volume};

/// How much is read at a time; a multiple of the chunk.
const STEP: u64 = 1 << 20;
/// Most bytes that are read for one reply, so that replies keep coming.
const MOST_READ: u64 = 64 << 20;

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
        volume: &Volume,
        offset: ByteOffset,
        length: ByteCount,
    ) -> Result<(DigestRunsBuilder, ByteCount), Refusal> {
        let (start, length) = volume.range(offset, length)?;
        let end = start + length;
        let mut runs = DigestRunsBuilder::new();
        let (mut at, mut read) = (start, 0);
        while at < end && read < MOST_READ && has_room_for_step(&runs) {
            let data = volume.next_data(at, end);
            let hole = if data == end { (end - at).div_ceil(DIGEST_CHUNK) } else { (data - at) / DIGEST_CHUNK };
            runs.push_zero(hole);
            at = (at + hole * DIGEST_CHUNK).min(end);
            let step = STEP.min(end - at);
            self.digest_step(volume, at, step, &mut runs)?;
            at += step;
            read += step;
        }
        Ok((runs, ByteCount(at - start)))
    }

    fn digest_step(
        &mut self,
        volume: &Volume,
        at: u64,
        length: u64,
        runs: &mut DigestRunsBuilder,
    ) -> Result<(), Refusal> {
        let length = usize::try_from(length).unwrap_or(0);
        self.buffer.resize(length, 0);
        volume.read(at, &mut self.buffer)?;
        for chunk in self.buffer.chunks(usize::try_from(DIGEST_CHUNK).unwrap_or(usize::MAX)) {
            match digest_chunk(&self.key, chunk) {
                ZeroOrDigest::Zero => runs.push_zero(1),
                ZeroOrDigest::Digest(digest) => runs.push_digest(digest),
            }
        }
        Ok(())
    }
}

/// A step adds at most 16 chunks; the reply's own limit leaves room for far more than that, so half of it will do.
fn has_room_for_step(runs: &DigestRunsBuilder) -> bool {
    runs.encoded_length() < rehost_protocol::MAX_BLOCK_LENGTH / 2
}
