//! Digests of whole volumes at a checkpoint, for the control plane to keep beside the snapshot.
//!
//! What was digested once stays known until it is written to, so that a manifest costs as much as changed since the last one.
//! It is made beside everything else, from the moment of the checkpoint until the volume is written to again; if that comes
//! first, there is no manifest of that checkpoint, and the next one has less to do.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rehost_model::{Epoch, ServerId, VolumeId, link::VolumeManifest, replication::Consistency, replicator::Assignment};
use rehost_protocol::is_zero;

use super::{refusal::Refusal, registry::Registry, volume::Volume};

/// Most chunks of a volume.
const MOST_CHUNKS: u64 = 65_536;
const SMALLEST_CHUNK: u64 = 32 << 10;

/// First half of the BLAKE3 of a chunk; all zero for a chunk of zeros.
type ChunkDigest = [u8; 16];
const OF_ZEROS: ChunkDigest = [0; 16];

/// What is known of a volume's chunks.
pub(super) struct Chunks {
    chunk_bytes: u64,
    known: Mutex<Known>,
}

struct Known {
    /// Counts the changes.
    generation: Generation,
    digests: Vec<Option<ChunkDigest>>,
}

/// A state of a volume: as long as it is this one, nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Chunks {
    /// Nothing is known of a volume of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        let known = Known { generation: Generation(0), digests: Vec::new() };
        Self { chunk_bytes: chunk_bytes(size), known: Mutex::new(known) }
    }

    /// A range is written to.
    pub(super) fn forget(&self, offset: u64, length: u64) {
        let mut known = self.lock();
        known.generation.0 += 1;
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let first = index(offset / self.chunk_bytes);
        let end = index((offset + length).div_ceil(self.chunk_bytes)).min(known.digests.len());
        if let Some(changed) = known.digests.get_mut(first.min(end)..end) {
            changed.fill(None);
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.lock().generation
    }

    fn is_known(&self, chunk: usize) -> bool {
        self.lock().digests.get(chunk).is_some_and(Option::is_some)
    }

    /// Keeps the digest of a chunk; false if the volume has changed since `generation`.
    fn learn(&self, chunk: usize, digest: ChunkDigest, generation: Generation) -> bool {
        let mut known = self.lock();
        if known.generation != generation {
            return false;
        }
        if known.digests.len() <= chunk {
            known.digests.resize(chunk + 1, None);
        }
        if let Some(slot) = known.digests.get_mut(chunk) {
            *slot = Some(digest);
        }
        true
    }

    /// The digests of `generation`, if that is still what the volume is.
    fn all(&self, count: usize, generation: Generation) -> Option<Vec<ChunkDigest>> {
        let known = self.lock();
        let digests: Option<Vec<_>> = known.digests.iter().take(count).copied().collect();
        digests.filter(|digests| digests.len() == count && known.generation == generation)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A power of two, such that there are not too many chunks.
fn chunk_bytes(size: u64) -> u64 {
    size.div_ceil(MOST_CHUNKS).next_power_of_two().max(SMALLEST_CHUNK)
}

/// A volume at a checkpoint, before its digests are known.
pub(super) struct Subject {
    pub(super) server: ServerId,
    pub(super) assignment: Assignment,
    pub(super) chunks: Arc<Chunks>,
    pub(super) generation: Generation,
    pub(super) epoch: Epoch,
    pub(super) consistency: Consistency,
}

/// Digests of a volume, in a quarter of the room that they take as text.
#[derive(Clone)]
pub(super) struct Manifest {
    server: ServerId,
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    consistency: Consistency,
    size_bytes: u64,
    chunk_bytes: u64,
    digests: Vec<ChunkDigest>,
}

impl Manifest {
    /// As it is sent.
    pub(super) fn to_message(&self) -> VolumeManifest {
        let mut root = blake3::Hasher::new();
        for digest in &self.digests {
            root.update(digest);
        }
        let text = |digest: &ChunkDigest| match *digest == OF_ZEROS {
            true => "-".to_owned(),
            false => hex::encode(digest),
        };
        VolumeManifest {
            server: self.server.clone(),
            volume: self.volume.clone(),
            epoch: self.epoch,
            consistency: self.consistency,
            size_bytes: self.size_bytes,
            chunk_bytes: self.chunk_bytes,
            root: root.finalize().to_hex().to_string(),
            chunks: self.digests.iter().map(text).collect(),
        }
    }
}

/// Makes manifests in a thread of their own, and hands them to the registry.
pub(super) fn start(registry: Arc<Registry>, subjects: Vec<Subject>) {
    let work = move || {
        for subject in &subjects {
            match make(subject, || registry.is_stopping()) {
                Ok(Some(manifest)) => registry.keep_manifest(manifest),
                Ok(None) => {}
                Err(refusal) => tracing::warn!(reason = %refusal.message, "no manifest of this checkpoint"),
            }
        }
    };
    // Without a thread there is no manifest this time.
    if let Err(error) = thread::Builder::new().name("manifest".into()).spawn(work) {
        tracing::warn!(%error, "no manifest of this checkpoint");
    }
}

/// None if the volume was written to before all of it was known.
fn make(subject: &Subject, stop: impl Fn() -> bool) -> Result<Option<Manifest>, Refusal> {
    let volume = Volume::open(&subject.assignment, subject.chunks.clone())?;
    let (size, step) = (volume.size(), subject.chunks.chunk_bytes);
    let mut buffer = Vec::new();
    let mut count = 0;
    for start in (0..size).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let chunk = count;
        count += 1;
        if stop() || subject.chunks.generation() != subject.generation {
            return Ok(None);
        }
        if subject.chunks.is_known(chunk) {
            continue;
        }
        let digest = digest(&volume, start, step.min(size - start), &mut buffer)?;
        if !subject.chunks.learn(chunk, digest, subject.generation) {
            return Ok(None);
        }
    }
    let digests = subject.chunks.all(count, subject.generation);
    Ok(digests.map(|digests| Manifest {
        server: subject.server.clone(),
        volume: subject.assignment.volume.clone(),
        epoch: subject.epoch,
        consistency: subject.consistency,
        size_bytes: size,
        chunk_bytes: step,
        digests,
    }))
}

fn digest(volume: &Volume, start: u64, length: u64, buffer: &mut Vec<u8>) -> Result<ChunkDigest, Refusal> {
    const STEP: u64 = 1 << 20;
    if volume.next_data(start, start + length) == start + length {
        return Ok(OF_ZEROS);
    }
    let mut hasher = blake3::Hasher::new();
    let mut zero = true;
    let mut at = start;
    while at < start + length {
        let step = STEP.min(start + length - at);
        buffer.resize(usize::try_from(step).unwrap_or(0), 0);
        volume.read(at, buffer)?;
        zero = zero && is_zero(buffer);
        hasher.update(buffer);
        at += step;
    }
    let hash = hasher.finalize();
    let half = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    Ok(if zero { OF_ZEROS } else { half })
}
