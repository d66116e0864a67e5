//! Data replication: its state, the steps of its initiation, and its errors, in MGN's shapes.

use serde::{Deserialize, Serialize};

use crate::{IsoDuration, Timestamp};

/// MGN's `DataReplicationState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DataReplicationState {
    Stopped,
    Initiating,
    InitialSync,
    Backlog,
    CreatingSnapshot,
    Continuous,
    Paused,
    Rescan,
    Stalled,
    Disconnected,
}

impl DataReplicationState {
    /// MGN's name of the state, such as `INITIAL_SYNC`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Initiating => "INITIATING",
            Self::InitialSync => "INITIAL_SYNC",
            Self::Backlog => "BACKLOG",
            Self::CreatingSnapshot => "CREATING_SNAPSHOT",
            Self::Continuous => "CONTINUOUS",
            Self::Paused => "PAUSED",
            Self::Rescan => "RESCAN",
            Self::Stalled => "STALLED",
            Self::Disconnected => "DISCONNECTED",
        }
    }

    /// Whether data may flow, is about to, or will again: there are (or are going to be) staging resources.
    #[must_use]
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Stopped | Self::Disconnected)
    }
}

impl std::fmt::Display for DataReplicationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the agent learns what changed on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TrackerKind {
    /// An eBPF program on the completion of block requests marks what was written.
    Ebpf,
    /// The same on the bios of a device without request queue (device-mapper, md, multipath, zram).
    EbpfBio,
    /// A private ftrace instance reports the completion of block requests.
    Ftrace,
    /// Nothing does: the disk is compared by digests.
    Rescan,
}

/// What is known of the state of all disks that a checkpoint is. In ascending order of worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Consistency {
    /// Blocks of different moments: a file system on it may be damaged.
    #[default]
    None,
    /// The file systems were frozen while the last blocks were read: clean. A disk without a file system that can be frozen
    /// is as it was at that moment if nothing wrote to it.
    Frozen,
    /// Nothing was written while the last blocks were read: what a power cut at that moment would have left.
    Quiescent,
}

/// MGN's `DataReplicationInitiationStepName`, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InitiationStepName {
    Wait,
    CreateSecurityGroup,
    LaunchReplicationServer,
    BootReplicationServer,
    AuthenticateWithService,
    DownloadReplicationSoftware,
    CreateStagingDisks,
    AttachStagingDisks,
    PairReplicationServerWithAgent,
    ConnectAgentToReplicationServer,
    StartDataTransfer,
}

impl InitiationStepName {
    /// Every step, in the order in which they are carried out.
    pub const ALL: [Self; 11] = [
        Self::Wait,
        Self::CreateSecurityGroup,
        Self::LaunchReplicationServer,
        Self::BootReplicationServer,
        Self::AuthenticateWithService,
        Self::DownloadReplicationSoftware,
        Self::CreateStagingDisks,
        Self::AttachStagingDisks,
        Self::PairReplicationServerWithAgent,
        Self::ConnectAgentToReplicationServer,
        Self::StartDataTransfer,
    ];

    /// The error that MGN gives a server whose initiation failed at this step.
    #[must_use]
    pub fn failure(self) -> DataReplicationErrorString {
        use DataReplicationErrorString as E;
        match self {
            Self::Wait => E::AgentNotSeen,
            Self::CreateSecurityGroup => E::FailedToCreateSecurityGroup,
            Self::LaunchReplicationServer => E::FailedToLaunchReplicationServer,
            Self::BootReplicationServer => E::FailedToBootReplicationServer,
            Self::AuthenticateWithService => E::FailedToAuthenticateWithService,
            Self::DownloadReplicationSoftware => E::FailedToDownloadReplicationSoftware,
            Self::CreateStagingDisks => E::FailedToCreateStagingDisks,
            Self::AttachStagingDisks => E::FailedToAttachStagingDisks,
            Self::PairReplicationServerWithAgent => E::FailedToPairReplicationServerWithAgent,
            Self::ConnectAgentToReplicationServer => E::FailedToConnectAgentToReplicationServer,
            Self::StartDataTransfer => E::FailedToStartDataTransfer,
        }
    }
}

/// MGN's `DataReplicationInitiationStepStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InitiationStepStatus {
    NotStarted,
    InProgress,
    Succeeded,
    Failed,
    Skipped,
}

impl InitiationStepStatus {
    /// Whether nothing is left to do for the step.
    #[must_use]
    pub fn is_done(self) -> bool {
        matches!(self, Self::Succeeded | Self::Skipped)
    }
}

/// One step of the initiation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitiationStep {
    pub name: InitiationStepName,
    pub status: InitiationStepStatus,
}

/// MGN's `DataReplicationInitiation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataReplicationInitiation {
    pub start_date_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_attempt_date_time: Option<Timestamp>,
    pub steps: Vec<InitiationStep>,
}

impl DataReplicationInitiation {
    /// An initiation that begins `now`, no step started.
    #[must_use]
    pub fn begin(now: Timestamp) -> Self {
        let step = |name| InitiationStep { name, status: InitiationStepStatus::NotStarted };
        Self { start_date_time: now, next_attempt_date_time: None, steps: InitiationStepName::ALL.map(step).to_vec() }
    }

    /// The first step that is not done, or `None` when the initiation is over.
    #[must_use]
    pub fn current(&self) -> Option<InitiationStepName> {
        self.steps.iter().find(|s| !s.status.is_done()).map(|s| s.name)
    }

    /// Goes back to the beginning without forgetting when that was: steps whose work is done find it so.
    pub fn reopen(&mut self) {
        self.steps.iter_mut().for_each(|step| step.status = InitiationStepStatus::NotStarted);
        self.next_attempt_date_time = None;
    }

    /// Records the status of a step; `true` when that changed something.
    pub fn record(&mut self, name: InitiationStepName, status: InitiationStepStatus) -> bool {
        match self.steps.iter_mut().find(|s| s.name == name) {
            Some(step) if step.status != status => {
                step.status = status;
                true
            }
            _ => false,
        }
    }
}

/// MGN's `DataReplicationErrorString`, as far as this service raises them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DataReplicationErrorString {
    AgentNotSeen,
    SnapshotsFailure,
    NotConverging,
    UnstableNetwork,
    FailedToCreateSecurityGroup,
    FailedToLaunchReplicationServer,
    FailedToBootReplicationServer,
    FailedToAuthenticateWithService,
    FailedToDownloadReplicationSoftware,
    FailedToCreateStagingDisks,
    FailedToAttachStagingDisks,
    FailedToPairReplicationServerWithAgent,
    FailedToConnectAgentToReplicationServer,
    FailedToStartDataTransfer,
    UnsupportedVmConfiguration,
    LastSnapshotJobFailed,
}

/// MGN's `DataReplicationError`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataReplicationError {
    pub error: DataReplicationErrorString,
    /// What failed, where, and how to mend it.
    pub raw_error: String,
}

/// How far the replication of one disk is; bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicatedDisk {
    pub device_name: String,
    pub total_storage_bytes: u64,
    pub replicated_storage_bytes: u64,
    pub rescanned_storage_bytes: u64,
    pub backlogged_storage_bytes: u64,
}

/// MGN's `DataReplicationInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataReplicationInfo {
    pub data_replication_state: DataReplicationState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_replication_initiation: Option<DataReplicationInitiation>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_replication_error: Option<DataReplicationError>,
    #[serde(default)]
    pub replicated_disks: Vec<ReplicatedDisk>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_duration: Option<IsoDuration>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eta_date_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_snapshot_date_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replicator_id: Option<crate::ReplicatorId>,
}

impl DataReplicationInfo {
    /// No replication yet.
    #[must_use]
    pub fn stopped() -> Self {
        Self {
            data_replication_state: DataReplicationState::Stopped,
            data_replication_initiation: None,
            data_replication_error: None,
            replicated_disks: Vec::new(),
            lag_duration: None,
            eta_date_time: None,
            last_snapshot_date_time: None,
            replicator_id: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiation_goes_through_the_steps_in_order() {
        let mut initiation = DataReplicationInitiation::begin(Timestamp::from_unix_ms(0));
        let mut seen = Vec::new();
        while let Some(step) = initiation.current() {
            seen.push(step);
            assert!(initiation.record(step, InitiationStepStatus::Succeeded));
        }
        assert_eq!(seen, InitiationStepName::ALL);
    }

    #[test]
    fn a_failed_step_stays_the_current_one() {
        let mut initiation = DataReplicationInitiation::begin(Timestamp::from_unix_ms(0));
        initiation.record(InitiationStepName::Wait, InitiationStepStatus::Failed);
        assert_eq!(initiation.current(), Some(InitiationStepName::Wait));
    }

    #[test]
    fn failures_are_named_after_their_step() {
        for step in InitiationStepName::ALL.into_iter().skip(1) {
            let (step_json, error_json) =
                (serde_json::to_value(step).unwrap(), serde_json::to_value(step.failure()).unwrap());
            assert_eq!(error_json.as_str().unwrap(), format!("FAILED_TO_{}", step_json.as_str().unwrap()));
        }
    }
}
