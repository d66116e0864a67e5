//! What users ask of snapshots: the list, one more, and whether one still holds what its manifest says.

use rehost_model::replication::Consistency;
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{Epoch, ExecutionId, ServerId, SnapshotId, SourceServer, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::manifest::{self, ChunkDigest};
use crate::operations::{OperationError, load_server};
use crate::ports::{ExecutionStatus, MAX_SNAPSHOT_READ, Ports};
use crate::{PortError, repo};

type OperationResult<T> = Result<T, OperationError>;

/// How much of a snapshot one call of [`verify`] compares; bytes.
const VERIFIED_AT_ONCE: u64 = 1 << 30;

/// A snapshot of a server, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotView {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    /// The execution that took it.
    pub execution: ExecutionId,
    /// The checkpoint that it is of (or will be).
    pub epoch: Epoch,
    pub created: Timestamp,
    pub state: SnapshotSetState,
    pub consistency: Consistency,
    /// In the order of the server's disks; empty until the snapshots were taken.
    pub disks: Vec<DiskSnapshot>,
    /// Whether every disk has its manifest.
    pub verifiable: bool,
}

/// The snapshot of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSnapshot {
    #[serde(rename = "snapshotID")]
    pub snapshot: SnapshotId,
    #[serde(rename = "volumeID", skip_serializing_if = "Option::is_none", default)]
    pub volume: Option<VolumeId>,
    /// BLAKE3 (hex) over the digests of the manifest; none without a manifest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub root: Option<String>,
}

impl From<&SnapshotSet> for SnapshotView {
    fn from(set: &SnapshotSet) -> Self {
        let disk = |(index, snapshot): (usize, &SnapshotId)| {
            let volume = set.volumes.get(index).cloned();
            let root = volume.as_ref().and_then(|v| set.manifest_of(v)).map(|m| m.root.clone());
            DiskSnapshot { snapshot: snapshot.clone(), volume, root }
        };
        let disks: Vec<_> = set.snapshots.iter().enumerate().map(disk).collect();
        Self {
            source_server_id: set.server.clone(),
            execution: set.execution.clone(),
            epoch: set.epoch,
            created: set.created,
            state: set.state,
            consistency: set.consistency,
            verifiable: !disks.is_empty() && disks.iter().all(|disk| disk.root.is_some()),
            disks,
        }
    }
}

/// The snapshots of one server, or of all; of each server the newest first.
///
/// # Errors
/// `NotFound`, and those of the store.
pub async fn list(ports: &Ports, server: Option<&ServerId>) -> OperationResult<Vec<SnapshotView>> {
    if let Some(server) = server {
        load_server(ports, server).await?;
    }
    let prefix = server.map(|server| format!("{server}/")).unwrap_or_default();
    let mut sets: Vec<SnapshotSet> = repo::list(ports, &prefix).await?;
    sets.sort_by(|a, b| (&a.server, b.created, b.epoch).cmp(&(&b.server, a.created, a.epoch)));
    Ok(sets.iter().map(SnapshotView::from).collect())
}

/// Starts a snapshot; its execution.
///
/// # Errors
/// `NotFound`; `Conflict` when the server does not replicate.
pub async fn take(ports: &Ports, id: &ServerId) -> OperationResult<ExecutionId> {
    let server = load_server(ports, id).await?;
    check_replicates(&server)?;
    let mut nonce = [0u8; 6];
    getrandom::fill(&mut nonce).map_err(PortError::unavailable)?;
    let execution = ExecutionId(format!("snapshot-{id}-{}", hex::encode(nonce)));
    let input = json!({"execution": execution, "sourceServerID": id});
    ports.workflows.start("snapshot", &execution, input).await?;
    Ok(execution)
}

fn check_replicates(server: &SourceServer) -> OperationResult<()> {
    let (id, state) = (&server.source_server_id, server.data_replication_info.data_replication_state);
    let total_bytes: u64 = server.internal.staging.iter().map(|disk| disk.size_bytes).sum();
    let first_copy = total_bytes > 0 && server.internal.synced_bytes >= total_bytes;
    if server.is_leaving() || server.internal.paused || !state.is_active() || !first_copy {
        let message =
            format!("a snapshot of {id} cannot be taken now: its first copy must be complete and replication active");
        return Err(OperationError::conflict(id, message));
    }
    Ok(())
}

/// What became of a snapshot that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenSnapshot {
    /// `RUNNING`, `SUCCEEDED` or `FAILED`.
    pub status: TakenStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// None once it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub snapshot: Option<SnapshotView>,
}

/// How far a snapshot is that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TakenStatus {
    Running,
    Succeeded,
    Failed,
}

/// How far the snapshot is that this execution takes.
///
/// # Errors
/// `NotFound`, and those of the ports.
pub async fn status(ports: &Ports, server: &ServerId, execution: &ExecutionId) -> OperationResult<TakenSnapshot> {
    let found = repo::find::<SnapshotSet>(ports, &format!("{server}/{execution}")).await?;
    let snapshot = found.as_ref().map(|(set, _)| SnapshotView::from(set));
    let over = |status, reason| TakenSnapshot { status, reason, snapshot: snapshot.clone() };
    Ok(match ports.workflows.status(execution).await? {
        Some(ExecutionStatus::Running) => over(TakenStatus::Running, None),
        Some(ExecutionStatus::Succeeded(_)) if snapshot.is_some() => over(TakenStatus::Succeeded, None),
        Some(ExecutionStatus::Succeeded(_)) => {
            over(TakenStatus::Failed, Some("the server stopped replicating meanwhile".to_owned()))
        }
        Some(ExecutionStatus::Failed { error, cause }) => over(TakenStatus::Failed, Some(format!("{error}: {cause}"))),
        Some(ExecutionStatus::Aborted) => over(TakenStatus::Failed, Some("it was stopped".to_owned())),
        None => {
            return Err(OperationError::NotFound { resource_type: "Snapshot", resource_id: execution.to_string() });
        }
    })
}

/// Which part of a snapshot [`verify`] compares: it is called again with what it answers as `next`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VerifyFrom {
    /// The checkpoint of the snapshot; none: the newest that can be launched from.
    pub epoch: Option<Epoch>,
    /// Index of the disk.
    pub disk: usize,
    /// Index of the chunk.
    pub chunk: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    pub epoch: Epoch,
    /// Bytes of all disks of the snapshot.
    pub total_bytes: u64,
    /// Bytes from the beginning up to where it was compared; all were equal.
    pub equal_bytes: u64,
    /// Where to go on; none when all of it was compared or a difference was found.
    pub next: Option<VerifyFrom>,
    pub difference: Option<Difference>,
}

/// The first chunk in which a snapshot does not hold what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Index of the disk.
    pub disk: usize,
    #[serde(rename = "snapshotID")]
    pub snapshot: SnapshotId,
    pub chunk: u64,
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

/// Compares a part of a snapshot with its manifests.
///
/// # Errors
/// `NotFound` when there is no such snapshot, `Conflict` when it has no manifest of a disk, and those of the ports.
pub async fn verify(ports: &Ports, server: &ServerId, from: &VerifyFrom) -> OperationResult<Verified> {
    let set = launchable(ports, server, from.epoch).await?;
    let sizes = sizes(&set)?;
    let before: u64 = sizes.iter().take(from.disk).sum();
    let (epoch, total_bytes) = (set.epoch, sizes.iter().sum());
    let mut verified = Verified { epoch, total_bytes, equal_bytes: before, next: None, difference: None };
    let (Some(snapshot), Some(volume)) = (set.snapshots.get(from.disk), set.volumes.get(from.disk)) else {
        return Ok(verified);
    };
    let promise = Promise::load(ports, &set, volume).await?;
    let last = promise.chunks().min(from.chunk.saturating_add((VERIFIED_AT_ONCE / promise.chunk_bytes).max(1)));
    let mut reader = Reader { ports, snapshot, start: 0, bytes: Vec::new() };
    for chunk in from.chunk..last {
        let (offset_bytes, length_bytes, expected) = promise.of(chunk);
        if reader.digest(offset_bytes, length_bytes).await? != expected {
            let snapshot = snapshot.clone();
            verified.difference = Some(Difference { disk: from.disk, snapshot, chunk, offset_bytes, length_bytes });
            return Ok(verified);
        }
        verified.equal_bytes = before + offset_bytes + length_bytes;
    }
    let (disk, chunk) = if last < promise.chunks() { (from.disk, last) } else { (from.disk + 1, 0) };
    verified.next = (disk < set.snapshots.len()).then_some(VerifyFrom { epoch: Some(epoch), disk, chunk });
    Ok(verified)
}

/// What a manifest says of a disk, once it is known to be the manifest that was taken in.
struct Promise {
    size_bytes: u64,
    chunk_bytes: u64,
    digests: Vec<ChunkDigest>,
}

impl Promise {
    async fn load(ports: &Ports, set: &SnapshotSet, volume: &VolumeId) -> OperationResult<Self> {
        let manifest = manifest::load(ports, &set.server, set.epoch, volume).await?;
        let (manifest, entered) = manifest.zip(set.manifest_of(volume)).ok_or_else(|| no_manifest(set, volume))?;
        let digests: Option<Vec<ChunkDigest>> = manifest.chunks.iter().map(|text| manifest::parse(text)).collect();
        let whole = |digests: &Vec<_>| {
            let same = manifest.size_bytes == entered.size_bytes && manifest.chunk_bytes == entered.chunk_bytes;
            same && manifest::root_of(digests) == entered.root
        };
        let changed =
            || PortError::invalid(format!("the manifest of {volume} was changed: it proves nothing any more"));
        let digests = digests.filter(whole).ok_or_else(changed)?;
        Ok(Self { size_bytes: entered.size_bytes, chunk_bytes: entered.chunk_bytes.max(1), digests })
    }

    fn chunks(&self) -> u64 {
        self.size_bytes.div_ceil(self.chunk_bytes)
    }

    /// Offset, length and digest of a chunk; no digest where the manifest has none.
    fn of(&self, chunk: u64) -> (u64, u64, Option<ChunkDigest>) {
        let offset = chunk * self.chunk_bytes;
        let digest = usize::try_from(chunk).ok().and_then(|index| self.digests.get(index).copied());
        (offset, self.chunk_bytes.min(self.size_bytes.saturating_sub(offset)), digest)
    }
}

/// Reads a snapshot by windows of [`MAX_SNAPSHOT_READ`] bytes, each once as long as it is read forwards.
struct Reader<'a> {
    ports: &'a Ports,
    snapshot: &'a SnapshotId,
    start: u64,
    bytes: Vec<u8>,
}

impl Reader<'_> {
    /// The digest of a part of the snapshot; none when it ends before.
    async fn digest(&mut self, offset: u64, length: u64) -> OperationResult<Option<ChunkDigest>> {
        let mut hasher = blake3::Hasher::new();
        let (mut at, end, mut zeros) = (offset, offset + length, true);
        while at < end {
            let bytes = self.from(at).await?;
            let bytes =
                bytes.get(..usize::try_from(end - at).unwrap_or(usize::MAX).min(bytes.len())).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(None);
            }
            zeros &= bytes.iter().fold(0, |all, byte| all | byte) == 0;
            hasher.update(bytes);
            at += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        }
        Ok(Some(manifest::digest_of(&hasher.finalize(), zeros)))
    }

    /// What there is from `at` to the end of its window.
    async fn from(&mut self, at: u64) -> OperationResult<&[u8]> {
        let window = u64::try_from(MAX_SNAPSHOT_READ).unwrap_or(u64::MAX);
        let start = at - at % window;
        if self.bytes.is_empty() || start != self.start {
            self.bytes = self.ports.compute.read_snapshot(self.snapshot, start, MAX_SNAPSHOT_READ).await?;
            self.start = start;
        }
        Ok(self.bytes.get(usize::try_from(at - start).unwrap_or(usize::MAX)..).unwrap_or_default())
    }
}

async fn launchable(ports: &Ports, server: &ServerId, epoch: Option<Epoch>) -> OperationResult<SnapshotSet> {
    load_server(ports, server).await?;
    let mut sets: Vec<SnapshotSet> = repo::list(ports, &format!("{server}/")).await?;
    sets.retain(|set| set.state == SnapshotSetState::Launchable && epoch.is_none_or(|epoch| set.epoch == epoch));
    let newest = sets.into_iter().max_by_key(|set| (set.created, set.epoch));
    newest.ok_or_else(|| {
        let which = epoch.map_or_else(String::new, |epoch| format!(" at the checkpoint {epoch}"));
        OperationError::NotFound { resource_type: "Snapshot", resource_id: format!("of {server}{which}") }
    })
}

/// The sizes of the disks in bytes.
fn sizes(set: &SnapshotSet) -> OperationResult<Vec<u64>> {
    let size = |volume| set.manifest_of(volume).map(|m| m.size_bytes).ok_or_else(|| no_manifest(set, volume));
    set.volumes.iter().map(size).collect()
}

fn no_manifest(set: &SnapshotSet, volume: &VolumeId) -> OperationError {
    let message = format!(
        "the snapshot of {} at the checkpoint {} has no manifest of {volume}: it can be launched from, but not verified",
        set.server, set.epoch
    );
    OperationError::conflict(&set.server, message)
}
