//! What the agent and the replicator tell the control plane, and what it answers: JSON bodies of `/rehost/v1/…`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replication::ReplicatedDisk;
use crate::replicator::Assignment;
use crate::server::SourceProperties;
use crate::{Epoch, ServerId, VolumeId};

/// Path of [`EnrolRequest`]; signed with SigV4, service `mgn`.
pub const ENROL_PATH: &str = "/rehost/v1/enrol";
/// Path of [`AgentReport`]; signed with the agent's certificate.
pub const AGENT_POLL_PATH: &str = "/rehost/v1/agent/poll";
/// Path of [`RenewRequest`]; signed with the agent's certificate.
pub const AGENT_RENEW_PATH: &str = "/rehost/v1/agent/renew";
/// Path of [`ReplicatorEnrolRequest`]; carries a one-time token.
pub const REPLICATOR_ENROL_PATH: &str = "/rehost/v1/replicator/enrol";
/// Path of [`RenewRequest`] for a replicator; signed with the replicator's certificate.
pub const REPLICATOR_RENEW_PATH: &str = "/rehost/v1/replicator/renew";
/// Path of [`ReplicatorReport`]; signed with the replicator's certificate.
pub const REPLICATOR_POLL_PATH: &str = "/rehost/v1/replicator/poll";

/// The firmware that the source booted with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum BootFirmware {
    #[default]
    Bios,
    Uefi,
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PartitionTable {
    Mbr,
    Gpt,
    None,
}

/// A disk of the source that is to be replicated; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceDisk {
    /// The device or image file, such as `/dev/sda`.
    pub device_name: String,
    pub size_bytes: u64,
    pub is_boot_disk: bool,
    pub partition_table: PartitionTable,
}

/// The agent's first request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolRequest {
    /// PEM; the key stays with the agent.
    pub csr: String,
    /// The identity of an earlier installation that was found on the source: enrolment keeps it.
    #[serde(rename = "sourceServerID", default)]
    pub source_server_id: Option<ServerId>,
    #[serde(rename = "userProvidedID", default)]
    pub user_provided_id: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    pub properties: SourceProperties,
    pub disks: Vec<SourceDisk>,
    pub firmware: BootFirmware,
    /// False when the agent was installed with `--no-replication`.
    pub replicate: bool,
    pub agent_version: String,
}

/// A certificate and what it needs to be checked: PEM texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedCertificate {
    pub certificate: String,
    pub ca_certificate: String,
}

/// The answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolResponse {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    #[serde(flatten)]
    pub issued: IssuedCertificate,
}

/// Asks for a new certificate with the volumes that the server has now; answered by [`IssuedCertificate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// PEM.
    pub csr: String,
}

/// What the agent is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AgentPhase {
    /// Waiting for directions.
    #[default]
    Waiting,
    /// Trying to reach its replicator.
    Connecting,
    /// First copy of everything.
    InitialSync,
    /// Comparing digests and sending what differs.
    Rescan,
    /// At its latest checkpoint; nothing to do.
    Idle,
    /// Told to stop, and stopped for good.
    Stopped,
}

/// The agent's regular report; answered by [`AgentDirective`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    pub agent_version: String,
    pub phase: AgentPhase,
    #[serde(default)]
    pub disks: Vec<ReplicatedDisk>,
    /// Payload bytes handed to the network since the agent started.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Bytes of disk a second that were replicated lately.
    #[serde(default)]
    pub rate_bytes_per_second: u64,
    /// The trouble that keeps the agent from replicating, if any.
    #[serde(default)]
    pub error: Option<ReportedError>,
    /// Set once, when the source's user uninstalls the agent.
    #[serde(default)]
    pub uninstalling: bool,
}

/// Trouble, as it will be shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedError {
    /// A stable name, such as `NotConverging`, `DiskVanished` or `NoSpace`.
    pub code: String,
    /// What failed, where, and how to mend it.
    pub message: String,
}

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentDirective {
    pub command: AgentCommand,
    /// Fetch a new certificate before anything else.
    pub renew: bool,
    pub poll_after_ms: u64,
}

/// The command in a directive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum AgentCommand {
    /// Do not replicate (yet).
    Wait,
    /// Keep these disks replicated.
    Replicate {
        /// `host:port`, to be tried in order.
        replicator_addresses: Vec<String>,
        disks: Vec<DiskTarget>,
        /// Reach this checkpoint.
        checkpoint: Epoch,
        /// Bytes a second; 0 means no limit.
        throttle_bytes_per_second: u64,
    },
    /// Stop for good: the server was disconnected or cut over.
    Disconnect,
}

/// Which volume a disk goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskTarget {
    pub disk_index: u8,
    pub device_name: String,
    pub size_bytes: u64,
    pub volume: VolumeId,
}

/// The replicator's first request; answered by [`IssuedCertificate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorEnrolRequest {
    pub replicator: crate::ReplicatorId,
    pub token: String,
    /// PEM.
    pub csr: String,
}

/// The replicator's regular report; answered by [`ReplicatorDirective`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicatorReport {
    /// The port on which it listens for agents.
    pub port: u16,
    pub version: String,
    pub servers: Vec<ServerReport>,
}

/// What the replicator knows of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerReport {
    pub server: ServerId,
    pub connected: bool,
    /// Bytes of payload received for the server since the replicator started.
    pub received_bytes: u64,
    /// The newest checkpoint that is durable on every volume.
    pub checkpoint: Epoch,
    /// The checkpoint at which the volumes are held still, if they are.
    pub held: Option<Epoch>,
    /// The newest hold that timed out before it was released.
    pub expired: Epoch,
    pub volumes: Vec<VolumeReport>,
    pub error: Option<ReportedError>,
}

/// What the replicator knows of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeReport {
    pub volume: VolumeId,
    /// Up to here the first copy is durable; bytes.
    pub synced_bytes: u64,
}

/// What the replicator is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorDirective {
    /// Everything it serves; what is missing here is to be dropped.
    pub assignments: Vec<Assignment>,
    /// For each server, the newest checkpoint whose hold is to end.
    pub releases: BTreeMap<ServerId, Epoch>,
    pub poll_after_ms: u64,
}
