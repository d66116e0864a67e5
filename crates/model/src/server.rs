//! The source server: MGN's public shape, and beside it what only this service needs to know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::launch::{LaunchConfiguration, LaunchedInstance};
use crate::lifecycle::{IllegalTransition, LifeCycleCommand, LifeCycleState, transition};
use crate::link::{BootFirmware, CheckpointSettings, FenceId, SourceDisk};
use crate::observed::{Extras, Observed};
use crate::replication::{Consistency, DataReplicationError, DataReplicationInfo, DataReplicationInitiation};
use crate::settings::{
    MAX_DISKS_PER_SERVER, MigrationPolicy, ReplicatedDiskSettings, ReplicationConfiguration, StagingDiskType,
};
use crate::{Epoch, ExecutionId, InstanceId, JobId, ReplicatorId, ServerId, Timestamp, VolumeId};

/// A source server: one aggregate, written under one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceServer {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    pub arn: String,
    pub is_archived: bool,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    pub replication_type: ReplicationType,
    #[serde(rename = "userProvidedID", skip_serializing_if = "Option::is_none", default)]
    pub user_provided_id: Option<String>,
    pub life_cycle: LifeCycle,
    pub data_replication_info: DataReplicationInfo,
    pub source_properties: SourceProperties,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub launched_instance: Option<LaunchedInstance>,
    /// Not part of MGN's shape; left out of what the API answers.
    pub internal: ServerInternals,
}

impl SourceServer {
    /// Carries out a lifecycle command; the only way to change [`LifeCycle::state`].
    ///
    /// # Errors
    /// [`IllegalTransition`], and nothing is changed.
    pub fn apply(&mut self, command: LifeCycleCommand) -> Result<LifeCycleState, IllegalTransition> {
        self.life_cycle.state = transition(self.life_cycle.state, command)?;
        Ok(self.life_cycle.state)
    }

    /// Asks the agent to stop for good; the clock of the waiting for it starts with the next step.
    pub fn request_disconnect(&mut self) {
        if !self.internal.disconnect_requested {
            self.internal.disconnect_requested = true;
            self.internal.disconnects += 1;
            self.internal.step_started = None;
        }
    }

    /// Has the initiation's steps carried out again, for what changed since; what is done stays. If nobody is at it, a state
    /// machine of its own is to be: [`ServerInternals::provisioning`].
    pub fn initiate_again(&mut self, now: Timestamp) {
        let info = &mut self.data_replication_info;
        match info.data_replication_initiation.as_mut().filter(|initiation| initiation.current().is_some()) {
            Some(initiation) => initiation.reopen(),
            None => {
                info.data_replication_initiation = Some(DataReplicationInitiation::begin(now));
                let name = format!("provision-{}-{}", self.source_server_id, now.unix_ms());
                self.internal.provisioning = Some(ExecutionId(name));
            }
        }
        self.internal.step_started = Some(now);
    }

    /// Plans the staging disk of a disk that the agent has reported; `false` when it has not, or there is no room.
    pub fn plan_disk(&mut self, device_name: &str, now: Timestamp) -> bool {
        let found = self.new_disks().find(|disk| disk.device_name == device_name).cloned();
        let Some(disk) = found.filter(|_| self.internal.staging.len() < MAX_DISKS_PER_SERVER) else { return false };
        self.internal.staging.push(StagingDisk {
            device_name: disk.device_name.clone(),
            size_bytes: disk.size_bytes,
            ..StagingDisk::default()
        });
        self.internal.replication.replicated_disks.push(ReplicatedDiskSettings {
            device_name: disk.device_name,
            is_boot_disk: false,
            staging_disk_type: StagingDiskType::Auto,
        });
        self.initiate_again(now);
        true
    }

    /// Gives the launched instance up: from now on it is on its way out. Its id, if there is one.
    pub fn give_up_instance(&mut self) -> Option<InstanceId> {
        let id = self.launched_instance.take()?.ec2_instance_id;
        self.internal.terminating.push(id.clone());
        Some(id)
    }

    /// The server as MGN's API shows it.
    #[must_use]
    pub fn to_api(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.remove("internal");
            object.insert("rehost".to_owned(), serde_json::to_value(self.extras()).unwrap_or_default());
        }
        value
    }

    /// What MGN's shape has no member for.
    #[must_use]
    pub fn extras(&self) -> Extras {
        let (observed, checkpoint) = (&self.internal.observed, &self.internal.checkpoint);
        Extras {
            tracker: observed.tracker,
            consistency: observed.consistency,
            consistent: observed.consistent,
            checkpoint: checkpoint.reached.0,
            checkpoint_date_time: checkpoint.reached_at,
            lag_ms: observed.lag_ms,
            backlog_bytes: observed.backlog_bytes,
            journal_bytes: observed.journal_bytes,
            last_freeze_ms: observed.last_freeze_ms,
            fence: observed.fence.clone(),
            new_disks: self.new_disks().cloned().collect(),
        }
    }

    /// The disks of the source that are not replicated, as the agent last reported.
    pub fn new_disks(&self) -> impl Iterator<Item = &SourceDisk> {
        let staging = &self.internal.staging;
        let known = |disk: &&SourceDisk| staging.iter().any(|s| s.device_name == disk.device_name);
        self.internal.observed.inventory.iter().filter(move |disk| !known(disk))
    }

    /// Whether replication ends: nothing new is to be made for the server.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.internal.disconnect_requested || self.internal.stop_requested
    }

    /// Asks for the end of replication without the agent's removal; the clock of the waiting for it starts with the next step.
    pub fn request_stop(&mut self) {
        if !self.is_leaving() {
            self.internal.stop_requested = true;
            self.internal.disconnects += 1;
            self.internal.step_started = None;
        }
    }
}

/// MGN's `ReplicationType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplicationType {
    AgentBased,
    SnapshotShipping,
}

/// What the service keeps about a server beside MGN's shape.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerInternals {
    /// The last sequence number given to an event of this server.
    pub event_sequence: u64,
    /// Events that were decided on with the write of this version and are yet to be published.
    pub outbox: Vec<Event>,
    pub replication: ReplicationConfiguration,
    pub launch: LaunchConfiguration,
    pub policy: MigrationPolicy,
    pub firmware: BootFirmware,
    /// Staging disks, in the order of the source's disks.
    pub staging: Vec<StagingDisk>,
    pub replicator: Option<ReplicatorId>,
    /// The replication server that is being replaced, until its volumes are detached from it.
    #[serde(default)]
    pub former_replicator: Option<ReplicatorId>,
    pub checkpoint: CheckpointProgress,
    /// Whether the agent has a session with the replicator, as that last reported.
    pub replicator_connected: bool,
    /// Payload that the replicator received for the server; bytes.
    pub received_bytes: u64,
    /// How much of the first copy is durable, all volumes together; bytes.
    pub synced_bytes: u64,
    /// The volumes that the agent's present certificate names.
    pub paired_volumes: Vec<VolumeId>,
    /// Serial numbers (hex) of the certificates that the agent may use, oldest first. A new one is added when it is issued,
    /// the older ones go when the new one is used: an answer that was lost on its way locks nobody out.
    pub certificate_serials: Vec<String>,
    /// SHA-256 (hex) of the agent's public key: only its holder may enrol again as this server.
    pub public_key_sha256: String,
    /// The job that is at work on the server: one at a time.
    pub active_job: Option<JobId>,
    /// Set when the agent is to stop for good; it confirms with its next poll.
    pub disconnect_requested: bool,
    /// How often the server was disconnected: each time has a `finalize` of its own.
    pub disconnects: u64,
    /// Instances that are to go, until they are gone.
    pub terminating: Vec<InstanceId>,
    /// Why the last snapshot failed, until one succeeds.
    pub snapshot_error: Option<DataReplicationError>,
    pub agent_stopped: bool,
    pub agent_version: Option<String>,
    /// When the present initiation step began, to bound it in time.
    pub step_started: Option<Timestamp>,
    /// The key under which the server's journal is sealed at its replicator, itself sealed by the region (hex); none until it
    /// is first needed.
    #[serde(default)]
    pub data_key_sealed: Option<String>,
    /// The newest reports.
    #[serde(default)]
    pub observed: Observed,
    /// `PauseReplication`: the agent notes what changes and sends nothing.
    #[serde(default)]
    pub paused: bool,
    /// `StopReplication`: set until everything that was made for the replication is gone.
    #[serde(default)]
    pub stop_requested: bool,
    #[serde(default)]
    pub checkpoints: CheckpointSettings,
    /// Set while the source is to be kept from changing: the job of the cutover.
    #[serde(default)]
    pub fence: Option<FenceId>,
    /// The source was fenced under [`Self::fence`] and then was not: it may have what the copy lacks.
    #[serde(default)]
    pub fence_broken: bool,
    /// The execution of `migrate` that takes the server along.
    #[serde(default)]
    pub chain: Option<ExecutionId>,
    /// The execution of `provision` that carries out an initiation after the first one: a disk came or grew, or the replication
    /// server is replaced.
    #[serde(default)]
    pub provisioning: Option<ExecutionId>,
    /// Whether disks that the source gets are replicated without being asked for.
    #[serde(default)]
    pub auto_add_disks: bool,
    /// What was paid for resources that are gone: quantity times seconds, by the item of the price table.
    #[serde(default)]
    pub usage: BTreeMap<String, u64>,
}

/// A disk of the source and the staging volume behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagingDisk {
    pub device_name: String,
    /// What is replicated of it; the agent is told so.
    pub size_bytes: u64,
    pub is_boot_disk: bool,
    pub volume: Option<VolumeId>,
    /// Whether the volume is attached to the replication server.
    pub attached: bool,
    /// The first copy was complete once.
    #[serde(default)]
    pub initialized: bool,
    /// The disk has grown to so many bytes; its volume is to follow.
    #[serde(default)]
    pub grow_to: Option<u64>,
    /// The volume that it had and that is gone, or never came to be.
    #[serde(default)]
    pub lost: Option<VolumeId>,
}

/// Where a server stands between asked-for and durable checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckpointProgress {
    /// The newest checkpoint that somebody wants.
    pub requested: Epoch,
    /// The newest checkpoint that is durable on every volume of the server.
    pub reached: Epoch,
    /// When [`Self::reached`] was reported.
    pub reached_at: Option<Timestamp>,
    /// The checkpoint at which the replicator holds the volumes still, if it does.
    pub held: Option<Epoch>,
    /// The newest checkpoint whose hold is to end.
    pub released: Epoch,
    /// The newest hold that the replicator ended by itself, before it was released: a snapshot of it does not count.
    pub expired: Epoch,
    /// What is known of the newest checkpoint, as the replicator last reported; of [`Self::held`] while there is one.
    pub consistency: Consistency,
}

impl CheckpointProgress {
    /// Whether a checkpoint is waited for: one that was asked for and is not there, or one whose hold has not ended.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.requested > self.reached || self.held.is_some()
    }
}

/// MGN's `LifeCycle`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LifeCycle {
    pub state: LifeCycleState,
    pub added_to_service_date_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_byte_date_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_seen_by_service_date_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_test: Option<LaunchRecord>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_cutover: Option<LaunchRecord>,
}

/// MGN's `LifeCycleLastTest` and `LifeCycleLastCutover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LaunchRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initiated: Option<LaunchRecordEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverted: Option<LaunchRecordEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finalized: Option<LaunchRecordEntry>,
}

/// When something was asked of a launch, and the job of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchRecordEntry {
    pub api_call_date_time: Timestamp,
    #[serde(rename = "jobID", skip_serializing_if = "Option::is_none", default)]
    pub job_id: Option<JobId>,
}

/// MGN's `SourceProperties`: what the agent found on the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceProperties {
    pub identification_hints: IdentificationHints,
    pub network_interfaces: Vec<NetworkInterface>,
    pub disks: Vec<Disk>,
    pub cpus: Vec<Cpu>,
    pub ram_bytes: u64,
    pub os: OperatingSystem,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_instance_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated_date_time: Option<Timestamp>,
}

/// MGN's `IdentificationHints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentificationHints {
    pub hostname: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_ware_uuid: Option<String>,
    #[serde(rename = "awsInstanceID", skip_serializing_if = "Option::is_none")]
    pub aws_instance_id: Option<String>,
}

/// MGN's `NetworkInterface`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkInterface {
    pub mac_address: String,
    pub ips: Vec<String>,
    pub is_primary: bool,
}

/// MGN's `Disk`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Disk {
    pub device_name: String,
    pub bytes: u64,
}

/// MGN's `CPU`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    pub cores: u64,
    pub model_name: String,
}

/// MGN's `OS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OperatingSystem {
    pub full_string: String,
}
