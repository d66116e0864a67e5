//! Jobs and their logs, in MGN's shapes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::launch::LaunchedInstance;
use crate::lifecycle::LifeCycleState;
use crate::{ImageId, InstanceId, JobId, ServerId, SnapshotId, Timestamp, VolumeId};

/// A job and its log: one aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    #[serde(rename = "jobID")]
    pub job_id: JobId,
    pub arn: String,
    #[serde(rename = "type")]
    pub job_type: JobType,
    pub initiated_by: InitiatedBy,
    pub creation_date_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end_date_time: Option<Timestamp>,
    pub status: JobStatus,
    pub participating_servers: Vec<ParticipatingServer>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Not part of MGN's `Job`: answered by `DescribeJobLogItems`.
    #[serde(default)]
    pub log: Vec<JobLogItem>,
    /// Not part of MGN's `Job`: what the steps of each server have made so far, by server.
    #[serde(default)]
    pub work: BTreeMap<ServerId, LaunchWork>,
}

impl Job {
    /// The job as MGN's API shows it.
    #[must_use]
    pub fn to_api(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.remove("log");
            object.remove("work");
        }
        value
    }

    /// The entry of a server that takes part.
    pub fn participant_mut(&mut self, server: &ServerId) -> Option<&mut ParticipatingServer> {
        self.participating_servers.iter_mut().find(|p| p.source_server_id == *server)
    }

    /// Completes the job once no server of it is pending or in progress; `true` when that happened now.
    pub fn complete_if_over(&mut self, now: Timestamp) -> bool {
        let over = self.participating_servers.iter().all(|p| p.launch_status.is_over());
        if !over || self.status == JobStatus::Completed {
            return false;
        }
        self.status = JobStatus::Completed;
        self.end_date_time = Some(now);
        true
    }
}

/// MGN's `JobType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobType {
    Launch,
    Terminate,
}

/// MGN's `InitiatedBy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InitiatedBy {
    StartTest,
    StartCutover,
    Diagnostic,
    Terminate,
}

/// MGN's `JobStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobStatus {
    Pending,
    Started,
    Completed,
}

/// MGN's `ParticipatingServer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParticipatingServer {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    pub launch_status: LaunchStatus,
    #[serde(rename = "launchedEc2InstanceID", skip_serializing_if = "Option::is_none", default)]
    pub launched_ec2_instance_id: Option<InstanceId>,
}

/// MGN's `LaunchStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LaunchStatus {
    Pending,
    InProgress,
    Launched,
    Failed,
    Terminated,
}

impl LaunchStatus {
    /// Whether nothing more will happen to the server within the job.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Launched | Self::Failed | Self::Terminated)
    }
}

/// What a launch has made for one server, so that a step that runs again finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchWork {
    /// The lifecycle state before the call, to which a failure goes back.
    pub state_before: LifeCycleState,
    /// Snapshots the launch is made from, in the order of the server's disks.
    #[serde(default)]
    pub snapshots: Vec<SnapshotId>,
    /// Clones that were converted and become the disks of the copy.
    #[serde(default)]
    pub volumes: Vec<VolumeId>,
    #[serde(default)]
    pub conversion_server: Option<InstanceId>,
    #[serde(default)]
    pub conversion_done: bool,
    /// Since when an image is made of them, where copies are launched from images.
    #[serde(default)]
    pub image_began: Option<Timestamp>,
    /// When it was registered.
    #[serde(default)]
    pub image_registered: Option<Timestamp>,
    /// Snapshots of the converted volumes, of which the image is made.
    #[serde(default)]
    pub image_snapshots: Vec<SnapshotId>,
    #[serde(default)]
    pub image: Option<ImageId>,
    #[serde(default)]
    pub instance: Option<InstanceId>,
    #[serde(default)]
    pub launched_at: Option<Timestamp>,
    /// The instance of an earlier launch, which this one replaces; it is shown again if this one fails.
    #[serde(default)]
    pub replaces: Option<LaunchedInstance>,
    /// Since when a cutover waits for its copy to catch up.
    #[serde(default)]
    pub drain_began: Option<Timestamp>,
    /// Since when the source is to be fenced for it.
    #[serde(default)]
    pub fence_asked: Option<Timestamp>,
    /// Since when it is being undone.
    #[serde(default)]
    pub undo_began: Option<Timestamp>,
}

impl LaunchWork {
    /// Nothing made yet.
    #[must_use]
    pub fn new(state_before: LifeCycleState) -> Self {
        Self {
            state_before,
            snapshots: Vec::new(),
            volumes: Vec::new(),
            conversion_server: None,
            conversion_done: false,
            image_began: None,
            image_registered: None,
            image_snapshots: Vec::new(),
            image: None,
            instance: None,
            launched_at: None,
            replaces: None,
            drain_began: None,
            fence_asked: None,
            undo_began: None,
        }
    }
}

/// MGN's `JobLog`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobLogItem {
    pub log_date_time: Timestamp,
    pub event: JobLogEvent,
    pub event_data: JobLogEventData,
}

/// MGN's `JobLogEvent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobLogEvent {
    JobStart,
    ServerSkipped,
    CleanupStart,
    CleanupEnd,
    CleanupFail,
    SnapshotStart,
    SnapshotEnd,
    SnapshotFail,
    UsingPreviousSnapshot,
    ConversionStart,
    ConversionEnd,
    ConversionFail,
    LaunchStart,
    LaunchFailed,
    JobCancel,
    JobEnd,
}

/// MGN's `JobLogEventData`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobLogEventData {
    #[serde(rename = "sourceServerID", skip_serializing_if = "Option::is_none")]
    pub source_server_id: Option<ServerId>,
    #[serde(rename = "conversionServerID", skip_serializing_if = "Option::is_none")]
    pub conversion_server_id: Option<InstanceId>,
    #[serde(rename = "targetInstanceID", skip_serializing_if = "Option::is_none")]
    pub target_instance_id: Option<InstanceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts_count: Option<u32>,
}
