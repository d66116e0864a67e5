//! The ports: everything the steps need from a region. Each has one contract suite that every implementation passes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use rehost_model::conversion::{ConversionReport, ConversionRequest};
use rehost_model::event::Event;
use rehost_model::launch::{LaunchConfiguration, Probe, ProbeOutcome};
use rehost_model::link::BootFirmware;
use rehost_model::settings::{EbsEncryption, ReplicationSettings};
use rehost_model::{
    ExecutionId, ImageId, InstanceId, ReplicatorId, SecurityGroupId, SnapshotId, TaskToken, Timestamp, VolumeId,
};
use serde_json::Value;

use crate::PortError;

/// The result of a call of a port.
pub type PortResult<T> = Result<T, PortError>;

/// Everything a step may use.
#[derive(Clone)]
pub struct Ports {
    pub store: Arc<dyn Store>,
    pub compute: Arc<dyn Compute>,
    pub objects: Arc<dyn Objects>,
    pub events: Arc<dyn Events>,
    pub workflows: Arc<dyn Workflows>,
    pub keys: Arc<dyn Keys>,
    pub clock: Arc<dyn Clock>,
    /// The region's name and account, as they stand in ARNs.
    pub region: String,
    pub account: String,
    /// The hosts under which agents reach replication servers, to be tried in order; none where each is reached under the address
    /// of its own instance.
    pub replicator_hosts: Vec<String>,
    pub polling: Polling,
}

/// The longest time until something is looked at again for which a step waits; seconds.
const MAX_PATIENCE_SECONDS: u64 = 300;

/// How often somebody asks again in a region: where nobody pays for a call, more often than where somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polling {
    /// How often agents and replicators report while nothing is urgent; milliseconds.
    pub idle_ms: u64,
    /// And while a checkpoint is waited for, from its request to the end of its hold: a hold blocks the agent.
    pub soon_ms: u64,
    /// How long a state machine waits at least until it calls a step again that is in progress; seconds.
    pub step_seconds: u64,
}

impl Polling {
    /// All on one machine.
    pub const LOCAL: Self = Self { idle_ms: 1000, soon_ms: 200, step_seconds: 0 };

    /// Every call is a Lambda invocation, and every further call of a step three transitions of its state machine.
    pub const AWS: Self = Self { idle_ms: 15_000, soon_ms: 2000, step_seconds: 5 };

    /// How long to wait before something is looked at again for which a step has waited for `waited_ms`; seconds, `usual` at least.
    /// Where calls are paid for, a twentieth of it: what takes days is looked at seldom, and an execution stays below the 25,000
    /// events that Step Functions keeps of it (a further call of a step is nine).
    #[must_use]
    pub fn patience(self, waited_ms: u64, usual: u64) -> u64 {
        let twentieth = if self.step_seconds == 0 { 0 } else { waited_ms / 20_000 };
        usual.max(twentieth.min(MAX_PATIENCE_SECONDS)).max(self.step_seconds)
    }
}

/// The kinds of items in the store; an item is one aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    SourceServer,
    Job,
    SnapshotSet,
    ReplicationServer,
    ReplicationTemplate,
    Ledger,
    Lock,
}

impl Kind {
    /// The kind's name in keys; never changes once data exists.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SourceServer => "SERVER",
            Self::Job => "JOB",
            Self::SnapshotSet => "SNAPSHOTSET",
            Self::ReplicationServer => "REPLICATOR",
            Self::ReplicationTemplate => "TEMPLATE",
            Self::Ledger => "LEDGER",
            Self::Lock => "LOCK",
        }
    }
}

/// The key of an item. `id` may have a parent in front, as in `s-…/token`; [`Store::list`] can ask for one parent's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemKey {
    pub kind: Kind,
    pub id: String,
}

impl ItemKey {
    /// The key of the item `id` of `kind`.
    pub fn new(kind: Kind, id: impl fmt::Display) -> Self {
        Self { kind, id: id.to_string() }
    }
}

impl fmt::Display for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.kind.as_str(), self.id)
    }
}

/// The version of an item: 1 when it is created, one more with every write.
pub type Version = u64;

/// An item as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub key: ItemKey,
    pub version: Version,
    pub body: Value,
}

/// State: items with versions, written under conditions.
#[async_trait]
pub trait Store: Send + Sync {
    /// The item, or `None`. Reads are strongly consistent.
    async fn get(&self, key: &ItemKey) -> PortResult<Option<Item>>;

    /// Writes the item if its present version is `expected` (`None`: if it does not exist); gives the new version.
    /// `Conflict` otherwise, and nothing is written.
    async fn put(&self, key: &ItemKey, body: Value, expected: Option<Version>) -> PortResult<Version>;

    /// Deletes the item if its version is `expected`. `Conflict` otherwise; deleting what does not exist is a success.
    async fn delete(&self, key: &ItemKey, expected: Version) -> PortResult<()>;

    /// All items of a kind whose id starts with `prefix` (all of them for an empty one), ordered by id.
    async fn list(&self, kind: Kind, prefix: &str) -> PortResult<Vec<Item>>;
}

/// Makes a call idempotent: the same token twice means the same resource. Derived from (execution, step, resource), at most
/// 64 characters of `A-Z a-z 0-9 -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientToken(String);

impl ClientToken {
    /// The token of these parts, in this order. They are joined by `-` when that is short enough, else hashed.
    #[must_use]
    pub fn derive(parts: &[&str]) -> Self {
        let joined: String =
            parts.join("-").chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect();
        if joined.len() <= 64 { Self(joined) } else { Self(hash_hex(parts)) }
    }

    /// The token's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn hash_hex(parts: &[&str]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    pub size_bytes: u64,
    /// A clone of this snapshot, else empty (all zeros).
    pub from_snapshot: Option<SnapshotId>,
    /// Of a volume that the steps make never `AUTO`.
    pub staging_disk_type: rehost_model::settings::StagingDiskType,
    /// The subnet in whose availability zone it is to be, as the server's replication settings name it; empty: the region's own.
    pub staging_subnet_id: String,
    /// `DEFAULT`: encrypted under the account's default key for EBS; `CUSTOM`: under [`Self::encryption_key_arn`]. A volume from a
    /// snapshot that is encrypted already is encrypted anew under this key.
    pub encryption: EbsEncryption,
    pub encryption_key_arn: Option<String>,
    pub tags: Tags,
}

/// A replication server to be launched.
#[derive(Debug, Clone)]
pub struct ReplicationServerSpec {
    pub id: ReplicatorId,
    pub settings: ReplicationSettings,
    pub security_group: Option<SecurityGroupId>,
    /// With it the replicator authenticates for the first time. A secret.
    pub enrol_token: String,
    pub tags: Tags,
}

/// What a security group is for that servers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupRole {
    /// Of replication servers: agents reach them.
    Replication,
    /// Of conversion servers: nobody reaches them.
    Conversion,
}

impl GroupRole {
    /// Every role.
    pub const ALL: [Self; 2] = [Self::Replication, Self::Conversion];

    /// The role as part of names and tokens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::Conversion => "conversion",
        }
    }
}

/// Where machines of a role get their security group from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupSource {
    /// None is to be named: the region has none, or what machines are launched from names it.
    Unnamed,
    /// This one, which is the user's or came with the region.
    Given(SecurityGroupId),
    /// All machines of the role in the network with this id share one, see [`Compute::ensure_shared_group`].
    Shared(String),
}

/// A conversion server to be launched with these volumes, in the order of the server's disks.
#[derive(Debug, Clone)]
pub struct ConversionSpec {
    pub volumes: Vec<VolumeId>,
    pub request: ConversionRequest,
    /// That of the volumes: see [`VolumeSpec::staging_subnet_id`].
    pub staging_subnet_id: String,
    pub security_group: Option<SecurityGroupId>,
    pub tags: Tags,
}

/// How far a conversion is.
#[derive(Debug, Clone, PartialEq)]
pub enum ConversionProgress {
    /// The conversion server is at work.
    Running,
    /// It left its report.
    Reported(Box<ConversionReport>),
    /// It ended (or never began) without a report; the text says what is known, such as the end of its console.
    Died(String),
}

/// A copy to be launched.
#[derive(Debug, Clone)]
pub struct InstanceSpec {
    /// In the order of the source's disks; the first is the boot disk. Empty when there is an image.
    pub volumes: Vec<VolumeId>,
    /// What it is launched from where [`Compute::launches_from_images`].
    pub image: Option<ImageId>,
    /// The server's launch settings.
    pub launch: LaunchConfiguration,
    /// The address that it is to have: the source's own, where that is asked for.
    pub private_ip: Option<IpAddr>,
    pub firmware: BootFirmware,
    pub cpus: u64,
    pub ram_bytes: u64,
    /// Ports of the guest that must be reachable for the probes.
    pub ports: Vec<u16>,
    pub start: bool,
    pub tags: Tags,
}

/// An image to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpec {
    /// Unique within the account.
    pub name: String,
    /// Of the converted volumes, in the order of the source's disks; the first is the boot disk.
    pub snapshots: Vec<SnapshotId>,
    pub firmware: BootFirmware,
    pub tags: Tags,
}

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    Pending,
    Available,
    /// Why, as far as it is known.
    Failed(String),
}

/// What an instance is doing; EC2's `InstanceStateName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Stopped,
    Terminated,
}

/// An instance as the region sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub state: InstanceState,
    /// Where ports of the guest can be reached from here.
    pub endpoints: BTreeMap<u16, SocketAddr>,
    /// In its own network; `None` where it has none, or none yet.
    pub private_ip: Option<IpAddr>,
    pub public_ip: Option<IpAddr>,
    /// Why it stopped, where that is known.
    pub state_reason: Option<String>,
}

/// A snapshot's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    Pending,
    Completed,
    Failed,
}

/// A resource that carries the tag `rehost:server`, as the region lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedResource {
    pub kind: rehost_model::ledger::ResourceKind,
    pub id: String,
    pub tags: Tags,
}

/// A security group that [`Compute::ensure_shared_group`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedGroup {
    pub id: SecurityGroupId,
    /// The id of the network.
    pub network: String,
    pub role: GroupRole,
    /// Whether an instance has it.
    pub in_use: bool,
}

/// The most that [`Compute::read_snapshot`] reads at once; bytes.
pub const MAX_SNAPSHOT_READ: usize = 4 << 20;

/// Volumes, snapshots and instances. Deleting or terminating what does not exist (any more) is a success.
#[async_trait]
pub trait Compute: Send + Sync {
    /// Where machines of this role get their security group from, for servers with these settings.
    async fn group_source(&self, settings: &ReplicationSettings, role: GroupRole) -> PortResult<GroupSource> {
        let _ = (settings, role);
        Ok(GroupSource::Unnamed)
    }

    /// The security group that all machines of this role in a network share, made if need be.
    async fn ensure_shared_group(&self, network: &str, role: GroupRole) -> PortResult<SecurityGroupId> {
        Err(PortError::invalid(format!("a security group for {} in {network}: this region has none", role.name())))
    }

    /// Every group that [`Self::ensure_shared_group`] made.
    async fn shared_groups(&self) -> PortResult<Vec<SharedGroup>> {
        Ok(Vec::new())
    }

    /// Deletes a security group; `Conflict` while something has it.
    async fn delete_security_group(&self, group: &SecurityGroupId) -> PortResult<()> {
        let _ = group;
        Ok(())
    }

    /// Launches a replication server.
    async fn launch_replication_server(
        &self,
        spec: &ReplicationServerSpec,
        token: &ClientToken,
    ) -> PortResult<InstanceId>;

    /// Makes a volume.
    async fn create_volume(&self, spec: &VolumeSpec, token: &ClientToken) -> PortResult<VolumeId>;

    /// Deletes a volume; `Conflict` while an instance or a replication server uses it.
    async fn delete_volume(&self, volume: &VolumeId) -> PortResult<()>;

    /// Makes a volume larger, also while it is attached and in use; what is new of it is zeros. A success when it is as large or
    /// larger already: a volume never shrinks.
    async fn modify_volume(&self, volume: &VolumeId, size_bytes: u64) -> PortResult<()>;

    /// Attaches a staging volume to a replication server; gives where it is found there (see `Assignment::location`).
    async fn attach_volume(&self, volume: &VolumeId, replication_server: &InstanceId) -> PortResult<String>;

    /// Undoes [`Self::attach_volume`].
    async fn detach_volume(&self, volume: &VolumeId, replication_server: &InstanceId) -> PortResult<()>;

    /// Takes snapshots of all these volumes at one point, in their order; the volumes are all attached to one replication server, or
    /// none of them to anything. The caller sees to it that nobody writes to them until this returns; what is written later is
    /// not in the snapshots, also while they are pending.
    async fn create_snapshots(
        &self,
        volumes: &[VolumeId],
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<Vec<SnapshotId>>;

    /// How far a snapshot is.
    async fn snapshot_state(&self, snapshot: &SnapshotId) -> PortResult<SnapshotState>;

    /// Reads `length` bytes (at most [`MAX_SNAPSHOT_READ`]) of a complete snapshot from `offset` on; fewer where it ends, none
    /// beyond. Both are multiples of 512 KiB, the block of EBS's direct APIs.
    async fn read_snapshot(&self, snapshot: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>>;

    /// Deletes a snapshot; volumes made from it stay whole.
    async fn delete_snapshot(&self, snapshot: &SnapshotId) -> PortResult<()>;

    /// Launches a conversion server.
    async fn start_conversion(&self, spec: &ConversionSpec, token: &ClientToken) -> PortResult<InstanceId>;

    /// How far it is.
    async fn conversion_progress(&self, conversion_server: &InstanceId) -> PortResult<ConversionProgress>;

    /// Whether a copy is launched from an image of its converted volumes, not from these themselves.
    fn launches_from_images(&self) -> bool {
        false
    }

    /// Registers an image.
    async fn register_image(&self, spec: &ImageSpec, token: &ClientToken) -> PortResult<ImageId> {
        let _ = (spec, token);
        Err(no_images())
    }

    /// How far an image is; `NotFound` when there is none of that id (any more).
    async fn image_state(&self, image: &ImageId) -> PortResult<ImageState> {
        Err(PortError::not_found(format!("the image {image} does not exist: this region has none")))
    }

    /// Deregisters an image; its snapshots stay.
    async fn deregister_image(&self, image: &ImageId) -> PortResult<()> {
        let _ = image;
        Ok(())
    }

    /// Launches a copy. Launched from an image, its volumes are made with it, carry its tags, and go with it.
    async fn run_instance(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId>;

    /// The instance; `None` when it does not exist (any more).
    async fn instance(&self, id: &InstanceId) -> PortResult<Option<Instance>>;

    /// The end (at most 64 KiB) of what the instance wrote to its serial console.
    async fn console_output(&self, id: &InstanceId) -> PortResult<String>;

    /// One attempt of a probe, bounded to a few seconds.
    async fn probe(&self, id: &InstanceId, probe: &Probe) -> PortResult<ProbeOutcome>;

    /// Terminates an instance of any kind; its volumes stay, but for those that were made with it.
    async fn terminate_instance(&self, id: &InstanceId) -> PortResult<()>;

    /// Every resource with the tag `rehost:server`, of one server if named.
    async fn tagged_resources(&self, server: Option<&rehost_model::ServerId>) -> PortResult<Vec<TaggedResource>>;
}

fn no_images() -> PortError {
    PortError::invalid("this region launches copies from their volumes and has no images")
}

/// Objects by key: reports, manifests, software.
#[async_trait]
pub trait Objects: Send + Sync {
    /// Writes an object whole.
    async fn put(&self, key: &str, bytes: Vec<u8>) -> PortResult<()>;
    /// Reads an object; `None` when there is none.
    async fn get(&self, key: &str) -> PortResult<Option<Vec<u8>>>;
    /// Deletes an object; a success when there is none.
    async fn delete(&self, key: &str) -> PortResult<()>;
}

/// Events, in order for each server.
#[async_trait]
pub trait Events: Send + Sync {
    /// Publishes an event.
    async fn publish(&self, event: &Event) -> PortResult<()>;
}

/// What became of an execution.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecutionStatus {
    Running,
    Succeeded(Value),
    Failed { error: String, cause: String },
    Aborted,
}

/// How a task went that waited to be told.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskOutcome {
    /// Its result.
    Success(Value),
    /// What Retry and Catch match on, and why.
    Failure { error: String, cause: String },
}

/// State machines.
#[async_trait]
pub trait Workflows: Send + Sync {
    /// Starts an execution of `machine` (`migrate`, `snapshot`, `launch`, `terminate`, `finalize`) named `execution`; a
    /// success without effect when an execution of that name exists. The name begins with the machine's, which has no hyphen,
    /// and a hyphen: so the execution is found by its name alone.
    async fn start(&self, machine: &str, execution: &ExecutionId, input: Value) -> PortResult<()>;
    /// Stops an execution; a success when it is over.
    async fn stop(&self, execution: &ExecutionId, cause: &str) -> PortResult<()>;
    /// What became of it; `None` when there is none of that name.
    async fn status(&self, execution: &ExecutionId) -> PortResult<Option<ExecutionStatus>>;
    /// Ends the task that waits with this token. Whoever is told `NotFound` may forget the token.
    ///
    /// # Errors
    /// `NotFound` when no such task waits (any more): it was told before, its time was up, or its execution is over; nothing
    /// changes then. `Invalid` for what is no token of this region at all.
    async fn report(&self, token: &TaskToken, outcome: TaskOutcome) -> PortResult<()>;
    /// Tells the task that somebody is still at work: its `HeartbeatSeconds` begin anew.
    ///
    /// # Errors
    /// As [`Self::report`].
    async fn heartbeat(&self, token: &TaskToken) -> PortResult<()>;
}

/// Sealing of secrets (envelope encryption) and the region's certificate authority.
#[async_trait]
pub trait Keys: Send + Sync {
    /// Seals `plain` with AES-256-GCM under a data key of the region; `context` must be given again to open it.
    async fn seal(&self, plain: &[u8], context: &str) -> PortResult<Vec<u8>>;
    /// Opens what [`Self::seal`] sealed; `Invalid` when it was changed or the context differs.
    async fn open(&self, sealed: &[u8], context: &str) -> PortResult<Vec<u8>>;
}

/// Time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_of_waiting_fits_the_history_of_an_execution() {
        let (mut waited_s, mut calls) = (0, 0);
        while waited_s < 7 * 24 * 3600 {
            waited_s += Polling::AWS.patience(waited_s * 1000, 1);
            calls += 1;
        }
        assert!(calls * 9 < 20_000, "{calls}");
        assert_eq!(Polling::LOCAL.patience(3_600_000, 2), 2);
        assert_eq!(Polling::AWS.patience(0, 20), 20);
    }

    #[test]
    fn client_tokens_are_stable_short_and_differ() {
        let short = ClientToken::derive(&["launch-1", "convert", "vol/0"]);
        assert_eq!(short.as_str(), "launch-1-convert-vol-0");
        let long = |tail: &str| ClientToken::derive(&["x".repeat(60).as_str(), "convert", tail]);
        assert_eq!(long("a"), long("a"));
        assert_ne!(long("a"), long("b"));
        assert_eq!(long("a").as_str().len(), 64);
    }
}
