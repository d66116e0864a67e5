//! Manifests: what a volume held at a checkpoint, as its replicator says. They come after the hold began, or never; a snapshot
//! can be launched from without one. Each is an object; its root stands in the snapshot set.

use rehost_model::link::VolumeManifest;
use rehost_model::replicator::{Assignment, ReplicationServer};
use rehost_model::snapshot::{ManifestSummary, SnapshotSet, SnapshotSetState};
use rehost_model::{Epoch, ServerId, SourceServer, VolumeId};

use crate::link::{CertificateIdentity, from_serial_on, replicator_of};
use crate::operations::OperationError;
use crate::ports::{PortResult, Ports};
use crate::{PortError, repo};

/// Most chunks of a volume; a manifest then has some 2.5 MB.
pub const MAX_CHUNKS: u64 = 65_536;

/// Bounds of the bytes that one digest covers, a power of two between them.
const CHUNK_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

/// How a chunk of zeros is written.
pub(crate) const ZEROS: &str = "-";

/// The first half of the BLAKE3 of a chunk; all zero for a chunk of zeros.
pub type ChunkDigest = [u8; 16];

/// Takes in a manifest.
///
/// # Errors
/// `Denied` for a certificate that is not the replication server's, or a volume that it does not serve; `Validation` for a
/// manifest that contradicts itself; `Conflict` when no snapshot is of that checkpoint: it can be dropped.
pub async fn receive(
    ports: &Ports,
    identity: &CertificateIdentity,
    manifest: &VolumeManifest,
) -> Result<(), OperationError> {
    let id = replicator_of(identity)?;
    let (replicator, ()) = repo::update_replicator(ports, &id, |replicator| {
        from_serial_on(&mut replicator.certificate_serials, &identity.serial)
    })
    .await?;
    let assignment = assignment_of(&replicator, manifest)?;
    check(manifest, assignment)?;
    let takers = takers(ports, manifest).await?;
    if takers.is_empty() {
        let message = format!("no snapshot of {} is of the checkpoint {}", manifest.server, manifest.epoch);
        return Err(OperationError::conflict(&manifest.server, message));
    }
    let bytes = serde_json::to_vec(manifest).map_err(PortError::invalid)?;
    ports.objects.put(&key(&manifest.server, manifest.epoch, &manifest.volume), bytes).await?;
    for set in &takers {
        enter(ports, set, manifest).await?;
    }
    Ok(())
}

fn assignment_of<'a>(
    replicator: &'a ReplicationServer,
    manifest: &VolumeManifest,
) -> Result<&'a Assignment, OperationError> {
    let mine = replicator.assignments.iter().find(|a| a.server == manifest.server && a.volume == manifest.volume);
    mine.ok_or_else(|| {
        let what = format!("the volume {} of {} is not served by this replicator", manifest.volume, manifest.server);
        OperationError::Port(PortError::new(crate::PortErrorKind::Denied, what))
    })
}

fn check(manifest: &VolumeManifest, assignment: &Assignment) -> Result<(), OperationError> {
    let refused = |field, message: String| Err(OperationError::Validation { field, message });
    let (size, chunk_bytes) = (manifest.size_bytes, manifest.chunk_bytes);
    if size != assignment.size_bytes {
        return refused("sizeBytes", format!("the volume has {} bytes, not {size}", assignment.size_bytes));
    }
    if !chunk_bytes.is_power_of_two() || !CHUNK_BYTES.contains(&chunk_bytes) {
        return refused("chunkBytes", format!("{chunk_bytes} is no power of two from 4 KiB to 1 GiB"));
    }
    let count = size.div_ceil(chunk_bytes);
    if count > MAX_CHUNKS || u64::try_from(manifest.chunks.len()) != Ok(count) {
        return refused(
            "chunks",
            format!("{count} (at most {MAX_CHUNKS}) are expected, not {}", manifest.chunks.len()),
        );
    }
    let Some(digests) = manifest.chunks.iter().map(|text| parse(text)).collect::<Option<Vec<_>>>() else {
        return refused("chunks", "each has 32 hexadecimal digits, or is `-`".to_owned());
    };
    if root_of(&digests) != manifest.root {
        return refused("root", "it is not that of these chunks".to_owned());
    }
    Ok(())
}

/// The digest that stands for `text` in a manifest.
pub(crate) fn parse(text: &str) -> Option<ChunkDigest> {
    if text == ZEROS {
        return Some(ChunkDigest::default());
    }
    let mut digest = ChunkDigest::default();
    hex::decode_to_slice(text, &mut digest).ok()?;
    Some(digest)
}

/// The root (hex) over these digests.
pub(crate) fn root_of(digests: &[ChunkDigest]) -> String {
    let mut root = blake3::Hasher::new();
    for digest in digests {
        root.update(digest);
    }
    root.finalize().to_hex().to_string()
}

/// The digest of a chunk's bytes.
pub(crate) fn digest_of(hash: &blake3::Hash, zeros: bool) -> ChunkDigest {
    let half = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    if zeros { ChunkDigest::default() } else { half }
}

/// The sets that are of the manifest's checkpoint, or will be: the volumes are held at it while a set still waits.
async fn takers(ports: &Ports, manifest: &VolumeManifest) -> PortResult<Vec<SnapshotSet>> {
    let Some((server, _)) = repo::find::<SourceServer>(ports, manifest.server.as_str()).await? else {
        return Ok(Vec::new());
    };
    let reached = server.internal.checkpoint.reached.max(server.internal.checkpoint.held.unwrap_or_default());
    let mut sets: Vec<SnapshotSet> = repo::list(ports, &format!("{}/", manifest.server)).await?;
    sets.retain(|set| match set.state {
        SnapshotSetState::Failed => false,
        // The manifest may be faster than the report of the hold.
        SnapshotSetState::Requested => set.epoch <= manifest.epoch && manifest.epoch >= reached,
        _ => set.epoch == manifest.epoch,
    });
    Ok(sets)
}

/// Enters the manifest into a set; when that went meanwhile, and no other is of that checkpoint, the object goes too.
async fn enter(ports: &Ports, set: &SnapshotSet, manifest: &VolumeManifest) -> PortResult<()> {
    let id = format!("{}/{}", set.server, set.execution);
    let entered = repo::update(ports, &id, |set: &mut SnapshotSet| {
        set.manifests.insert(manifest.volume.clone(), ManifestSummary::from(manifest));
        Ok::<_, PortError>(())
    });
    match entered.await {
        Err(error) if error.is_not_found() => {
            let gone = SnapshotSet {
                manifests: [(manifest.volume.clone(), ManifestSummary::from(manifest))].into(),
                ..set.clone()
            };
            remove(ports, &gone).await
        }
        other => other.map(|_| ()),
    }
}

/// Removes the manifests of a set that is about to go, unless another set is of the same checkpoint.
pub(crate) async fn remove(ports: &Ports, set: &SnapshotSet) -> PortResult<()> {
    if set.manifests.is_empty() {
        return Ok(());
    }
    let sets: Vec<SnapshotSet> = repo::list(ports, &format!("{}/", set.server)).await?;
    let others: Vec<_> = sets.iter().filter(|other| other.execution != set.execution).collect();
    for (volume, manifest) in &set.manifests {
        let shared = |other: &&&SnapshotSet| other.manifests.get(volume).is_some_and(|m| m.epoch == manifest.epoch);
        if others.iter().find(shared).is_none() {
            ports.objects.delete(&key(&set.server, manifest.epoch, volume)).await?;
        }
    }
    Ok(())
}

/// The manifest of a volume at a checkpoint.
pub(crate) async fn load(
    ports: &Ports,
    server: &ServerId,
    epoch: Epoch,
    volume: &VolumeId,
) -> PortResult<Option<VolumeManifest>> {
    let key = key(server, epoch, volume);
    let Some(bytes) = ports.objects.get(&key).await? else { return Ok(None) };
    let damaged = |e| PortError::invalid(format!("the manifest {key} cannot be read: {e}; it is of no use any more"));
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn key(server: &ServerId, epoch: Epoch, volume: &VolumeId) -> String {
    format!("manifests/{server}/{epoch}/{volume}.json")
}
