//! Events: every transition of a server, its replication, its initiation and its jobs, versioned and in order.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ServerId, Timestamp};

/// The version of the `detail` shapes below; it changes when a reader of the older one would misunderstand the newer.
pub const EVENT_VERSION: u32 = 1;

/// One event, in the envelope of EventBridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Always `rehost`.
    pub source: String,
    #[serde(rename = "detail-type")]
    pub detail_type: EventType,
    pub time: Timestamp,
    pub detail: EventDetail,
}

/// What every event tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventDetail {
    pub version: u32,
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    /// Counts the events of this server from 1, without gaps.
    pub sequence: u64,
    /// What changed; its members depend on the type.
    #[serde(flatten)]
    pub data: serde_json::Map<String, Value>,
}

/// The kinds of events. The first four carry MGN's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventType {
    #[serde(rename = "Source Server Registered")]
    Registered,
    #[serde(rename = "Source Server Lifecycle State Change")]
    LifecycleStateChange,
    #[serde(rename = "Source Server Launch Result")]
    LaunchResult,
    #[serde(rename = "Source Server Data Replication Stalled Change")]
    DataReplicationStalledChange,
    #[serde(rename = "Source Server Data Replication State Change")]
    DataReplicationStateChange,
    #[serde(rename = "Source Server Initiation Step Change")]
    InitiationStepChange,
    #[serde(rename = "Source Server Job Change")]
    JobChange,
    #[serde(rename = "Source Server Snapshot Created")]
    SnapshotCreated,
    /// `StartReplication`, or a `RetryDataReplication` of what nobody carries out any more: starts `migrate`.
    #[serde(rename = "Source Server Replication Start Requested")]
    ReplicationStartRequested,
    /// A disk came, grew, went, or is replicated from now on.
    #[serde(rename = "Source Server Disk Change")]
    DiskChange,
    /// The replication server is replaced.
    #[serde(rename = "Source Server Replication Server Change")]
    ReplicationServerChange,
    /// The source was fenced for a cutover, or is open again.
    #[serde(rename = "Source Server Fence Change")]
    FenceChange,
}
