//! Snapshots of a server: all its disks at one checkpoint.

use serde::{Deserialize, Serialize};

use crate::{Epoch, ServerId, SnapshotId, Timestamp};

/// The snapshots of one server's volumes, taken while its replicator held them still at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSet {
    pub server: ServerId,
    pub epoch: Epoch,
    /// One for each disk, in the order of the server's disks.
    pub snapshots: Vec<SnapshotId>,
    pub created: Timestamp,
    pub state: SnapshotSetState,
}

/// How far a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SnapshotSetState {
    /// Asked of the region; it does not count yet.
    Pending,
    /// Complete, and the hold lasted until it was: a copy may be launched from it.
    Launchable,
    /// The hold ended too early or a volume failed; it is going to be deleted.
    Failed,
}
