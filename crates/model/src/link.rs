//! What the agent and the replicator tell the control plane, and what it answers: JSON bodies of `/rehost/v1/…`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replication::{Consistency, ReplicatedDisk, TrackerKind};
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
    /// Sending what changed; there is more of it than a checkpoint may leave.
    Backlog,
    /// Following what is written: the disk and its copy differ by little, or by nothing.
    Idle,
    /// Told to pause: what is written is noted, and not sent.
    Paused,
    /// Told to stop, and stopped for good.
    Stopped,
}

/// The agent's regular report; answered by [`AgentDirective`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How changes are found; the worst of all disks. None until the disks were opened.
    #[serde(default)]
    pub tracker: Option<TrackerKind>,
    /// Of the newest checkpoint that was acknowledged.
    #[serde(default)]
    pub consistency: Option<Consistency>,
    /// Bytes that changed and are not in an acknowledged checkpoint, in whole granules.
    #[serde(default)]
    pub backlog_bytes: u64,
    /// How old the newest acknowledged checkpoint is if anything changed since, else 0; none before the first.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// How long writers were blocked by the last freeze.
    #[serde(default)]
    pub last_freeze_ms: Option<u64>,
    /// The disks of the machine now, sent when they differ from what was enrolled or replicated; empty otherwise.
    #[serde(default)]
    pub inventory: Vec<SourceDisk>,
    /// How far the fence of the directive is.
    #[serde(default)]
    pub fence: FenceState,
}

/// Whether the source is kept from changing while it is cut over. The agent runs the user's quiesce scripts to get there, and
/// the unquiesce scripts to get back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum FenceState {
    /// The source is in use.
    #[default]
    Open,
    /// The scripts that were asked for by this fence are running.
    Closing { fence: FenceId },
    /// The scripts ended well: nothing but the system itself writes any more.
    Fenced { fence: FenceId },
    /// A script failed or took too long; those that had run were undone.
    Failed { fence: FenceId, reason: String },
}

/// Name of one fence: the job of the cutover that asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FenceId(pub String);

/// How the agent is to make checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckpointSettings {
    /// A checkpoint at least this often while anything changes; milliseconds.
    pub interval_ms: u64,
    /// A freeze is given up after this time; milliseconds. 0 forbids freezing.
    pub max_freeze_ms: u64,
    /// A script of the hooks is killed after this time; milliseconds.
    pub hook_timeout_ms: u64,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self { interval_ms: 10_000, max_freeze_ms: 2_000, hook_timeout_ms: 30_000 }
    }
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
        #[serde(default)]
        checkpoints: CheckpointSettings,
        /// Keep the source fenced for as long as this is set.
        #[serde(default)]
        fence: Option<FenceId>,
    },
    /// Note what changes and send nothing, until told otherwise.
    Pause,
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
    /// Of the newest checkpoint.
    #[serde(default)]
    pub consistency: Consistency,
    /// Whether the volumes are a checkpoint: not before the first one, nor while more is being written than the journal holds.
    #[serde(default)]
    pub consistent: bool,
    /// Bytes of changes in the journal that wait for their checkpoint.
    #[serde(default)]
    pub journal_bytes: u64,
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

/// Upload of the manifest of a volume that is held still; signed with the replicator's certificate.
pub const REPLICATOR_MANIFEST_PATH: &str = "/rehost/v1/replicator/manifest";

/// Digests of a whole volume at a checkpoint, made by the replicator while it held the volume still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeManifest {
    pub server: ServerId,
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub consistency: Consistency,
    pub size_bytes: u64,
    /// Bytes covered by one digest, except the last one.
    pub chunk_bytes: u64,
    /// BLAKE3 (hex) over all chunk digests in order.
    pub root: String,
    /// The first 16 bytes (hex) of the BLAKE3 of each chunk, in order; `-` for a chunk of zeros.
    pub chunks: Vec<String>,
}

/// A server's data key: 32 bytes, hex on the wire. It travels inside TLS only, and is never written down or shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DataKey(pub [u8; 32]);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl TryFrom<String> for DataKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = "a data key has 64 hexadecimal digits";
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = digits.iter().map(hex_byte).collect();
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(key) if rest.is_empty() => Ok(Self(key)),
            _ => Err(wrong),
        }
    }
}

fn hex_byte(digits: &[u8; 2]) -> Option<u8> {
    let digit = |at: u8| char::from(at).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some(digit(digits[0])? << 4 | digit(digits[1])?)
}

impl From<DataKey> for String {
    fn from(key: DataKey) -> Self {
        use std::fmt::Write as _;
        key.0.iter().fold(Self::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What the replicator is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorDirective {
    /// Everything it serves; what is missing here is to be dropped.
    pub assignments: Vec<Assignment>,
    /// For each server, the newest checkpoint whose hold is to end.
    pub releases: BTreeMap<ServerId, Epoch>,
    /// For each server, the key under which its journal is sealed.
    #[serde(default)]
    pub data_keys: BTreeMap<ServerId, DataKey>,
    pub poll_after_ms: u64,
}
