//! Snapshots of a server: all its disks at one checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::link::VolumeManifest;
use crate::replication::Consistency;
use crate::{Epoch, ExecutionId, ServerId, SnapshotId, TaskToken, Timestamp, VolumeId};

/// The snapshots of one server's volumes, taken while its replicator held them still at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSet {
    pub server: ServerId,
    /// The execution that asked for it; with the server, the key of the set.
    pub execution: ExecutionId,
    /// The checkpoint that was asked for, and then the one at which the snapshots were taken: it or a later one.
    pub epoch: Epoch,
    /// One for each disk, in the order of the server's disks.
    pub snapshots: Vec<SnapshotId>,
    pub created: Timestamp,
    pub state: SnapshotSetState,
    /// Of the checkpoint at which the snapshots were taken.
    #[serde(default)]
    pub consistency: Consistency,
    /// The volumes that [`Self::snapshots`] are of, in their order.
    #[serde(default)]
    pub volumes: Vec<VolumeId>,
    /// What the replicator said that the volumes hold; a volume is missing until its manifest came.
    #[serde(default)]
    pub manifests: BTreeMap<VolumeId, ManifestSummary>,
    /// The task that waits for the checkpoint, until it was told.
    #[serde(default)]
    pub token: Option<TaskToken>,
    /// When that task last heard that somebody is still at work.
    #[serde(default)]
    pub heard_at: Option<Timestamp>,
}

impl SnapshotSet {
    /// A set of which nothing is there but the wish.
    #[must_use]
    pub fn requested(server: ServerId, execution: ExecutionId, epoch: Epoch, created: Timestamp) -> Self {
        Self {
            server,
            execution,
            epoch,
            snapshots: Vec::new(),
            created,
            state: SnapshotSetState::Requested,
            consistency: Consistency::None,
            volumes: Vec::new(),
            manifests: BTreeMap::new(),
            token: None,
            heard_at: None,
        }
    }

    /// The manifest of a volume, if it is of the checkpoint at which the snapshots were taken.
    #[must_use]
    pub fn manifest_of(&self, volume: &VolumeId) -> Option<&ManifestSummary> {
        self.manifests.get(volume).filter(|manifest| manifest.epoch == self.epoch)
    }
}

/// How far a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SnapshotSetState {
    /// The checkpoint was asked for.
    Requested,
    /// The snapshots were asked of the region; they do not count yet.
    Pending,
    /// The snapshots were taken and the hold is to end; they count once the replicator says that it lasted until it was released,
    /// and they are complete.
    Confirming,
    /// Complete, and the hold lasted until it was: a copy may be launched from it.
    Launchable,
    /// The hold ended too early or a volume failed; it is going to be deleted.
    Failed,
}

/// What is kept of a volume's manifest beside the set; the manifest itself is an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestSummary {
    pub epoch: Epoch,
    pub size_bytes: u64,
    /// Bytes covered by one digest, except the last one.
    pub chunk_bytes: u64,
    /// BLAKE3 (hex) over all chunk digests in order.
    pub root: String,
}

impl From<&VolumeManifest> for ManifestSummary {
    fn from(manifest: &VolumeManifest) -> Self {
        Self {
            epoch: manifest.epoch,
            size_bytes: manifest.size_bytes,
            chunk_bytes: manifest.chunk_bytes,
            root: manifest.root.clone(),
        }
    }
}
