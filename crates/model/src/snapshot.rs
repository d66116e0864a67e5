//! Snapshots of a server: all its disks at one checkpoint.

use serde::{Deserialize, Serialize};

use crate::{Epoch, ExecutionId, ServerId, SnapshotId, Timestamp};

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
}

/// How far a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SnapshotSetState {
    /// The checkpoint was asked for.
    Requested,
    /// The snapshots were asked of the region; they do not count yet.
    Pending,
    /// The snapshots are complete and the hold is to end; they count once the replicator says that it lasted until now.
    Confirming,
    /// Complete, and the hold lasted until it was: a copy may be launched from it.
    Launchable,
    /// The hold ended too early or a volume failed; it is going to be deleted.
    Failed,
}
