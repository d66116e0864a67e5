//! Digests of a range: runs of zero chunks and runs of keyed BLAKE3 digests, so that a hole of terabytes is one run.
//!
//! A run is a tag and a count of chunks; a run of digests is followed by 16 bytes for each. A reply covers a prefix of
//! what was asked: the runs that fit one frame.

use crate::{
    ByteCount, DigestChunk, MAX_BLOCK_LENGTH, ProtocolError,
    codec::{Reader, check_limit},
};

/// First 16 bytes of the keyed BLAKE3 of a chunk.
pub type Digest = [u8; DIGEST_LENGTH];

const DIGEST_LENGTH: usize = 16;
const TAG_ZERO: u8 = 0;
const TAG_DIGESTS: u8 = 1;
const RUN_HEADER: usize = 9;

/// A run of chunks in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestRun<'a> {
    /// This many chunks are zero.
    Zero(u64),
    /// One digest for each chunk.
    Digests(&'a [Digest]),
}

/// What is known of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroOrDigest {
    /// All its bytes are zero.
    Zero,
    /// The digest of its bytes.
    Digest(Digest),
}

/// The checked runs of a reply, borrowed from its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestRuns<'a> {
    bytes: &'a [u8],
}

impl<'a> DigestRuns<'a> {
    /// Checks that `bytes` are whole runs that cover exactly `covered` bytes of a disk.
    pub(crate) fn parse(bytes: &'a [u8], covered: ByteCount, chunk: DigestChunk) -> Result<Self, ProtocolError> {
        let mut rest = Reader::new(bytes);
        let mut chunks = 0_u64;
        while let Some((run, next)) = next_run(rest)? {
            let length = match run {
                DigestRun::Zero(count) => count,
                DigestRun::Digests(digests) => digests.len() as u64,
            };
            chunks = chunks
                .checked_add(length)
                .filter(|_| length > 0)
                .ok_or(ProtocolError::Invalid { what: "a run of digests" })?;
            rest = next;
        }
        if chunks == 0 || chunks != covered.0.div_ceil(chunk.bytes()) {
            return Err(ProtocolError::Invalid { what: "the bytes covered by digests" });
        }
        Ok(Self { bytes })
    }

    /// The runs, in order.
    pub fn iter(&self) -> impl Iterator<Item = DigestRun<'a>> + use<'a> {
        let mut rest = Some(Reader::new(self.bytes));
        std::iter::from_fn(move || {
            // Checked by `parse`: an error cannot come, and would end the runs.
            let (run, next) = next_run(rest.take()?).ok()??;
            rest = Some(next);
            Some(run)
        })
    }

    pub(crate) fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

fn next_run(mut reader: Reader<'_>) -> Result<Option<(DigestRun<'_>, Reader<'_>)>, ProtocolError> {
    if reader.is_empty() {
        return Ok(None);
    }
    let tag = reader.u8("a run's type")?;
    let count = reader.u64("a run's length")?;
    let run = match tag {
        TAG_ZERO => DigestRun::Zero(count),
        TAG_DIGESTS => {
            let most = MAX_BLOCK_LENGTH / DIGEST_LENGTH;
            check_limit("a run of digests", count, most as u64)?;
            let bytes = usize::try_from(count).unwrap_or(most) * DIGEST_LENGTH;
            let (digests, _) = reader.bytes(bytes, "a run's digests")?.as_chunks();
            DigestRun::Digests(digests)
        }
        _ => {
            return Err(ProtocolError::Invalid { what: "a run's type" });
        }
    };
    Ok(Some((run, reader)))
}

/// Collects the chunks of a reply, as many as fit one frame.
#[derive(Debug, Default)]
pub struct DigestRunsBuilder {
    bytes: Vec<u8>,
    /// Start and count of the run that is still growing.
    open: Option<(usize, u64)>,
    chunks: u64,
}

impl DigestRunsBuilder {
    /// An empty reply.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chunks collected so far.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Bytes that the reply takes so far; it may take [`MAX_BLOCK_LENGTH`].
    #[must_use]
    pub fn encoded_length(&self) -> usize {
        self.bytes.len()
    }

    /// Whether another chunk of any kind still fits.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.len() + RUN_HEADER + DIGEST_LENGTH <= MAX_BLOCK_LENGTH
    }

    /// Adds `count` zero chunks; nothing if `count` is 0.
    pub fn push_zero(&mut self, count: u64) {
        if count > 0 {
            self.grow(TAG_ZERO, count);
        }
    }

    /// Adds the digest of one chunk.
    pub fn push_digest(&mut self, digest: Digest) {
        self.grow(TAG_DIGESTS, 1);
        self.bytes.extend_from_slice(&digest);
    }

    /// The runs, checked against the bytes they cover.
    ///
    /// # Errors
    /// If the chunks collected are not those of `covered` bytes.
    pub fn runs(&self, covered: ByteCount, chunk: DigestChunk) -> Result<DigestRuns<'_>, ProtocolError> {
        DigestRuns::parse(&self.bytes, covered, chunk)
    }

    fn grow(&mut self, tag: u8, count: u64) {
        self.chunks = self.chunks.saturating_add(count);
        let grown = self.open.filter(|(start, _)| self.bytes.get(*start) == Some(&tag));
        let (start, total) = match grown {
            Some((start, before)) => (start, before.saturating_add(count)),
            None => {
                let start = self.bytes.len();
                self.bytes.push(tag);
                self.bytes.extend_from_slice(&[0; 8]);
                (start, count)
            }
        };
        if let Some(slot) = self.bytes.get_mut(start + 1..start + RUN_HEADER) {
            slot.copy_from_slice(&total.to_be_bytes());
        }
        self.open = Some((start, total));
    }
}
