//! Takes in what agents and replicators report; the state, the errors and the figures that MGN shows follow from it.

use rehost_model::link::{AgentPhase, AgentReport, FenceId, FenceState, ReportedError, ServerReport};
use rehost_model::observed::{
    AGENT_NOT_SEEN_AFTER_MS, InitiationProgress, Observed, ReplicationFacts, data_replication_state,
};
use rehost_model::replication::{
    DataReplicationError, DataReplicationErrorString, DataReplicationInfo, DataReplicationInitiation,
    DataReplicationState, InitiationStepStatus,
};
use rehost_model::{IsoDuration, SourceServer, Timestamp};

/// The agent's report.
pub(crate) fn hear_agent(server: &mut SourceServer, report: &AgentReport, now: Timestamp) {
    server.life_cycle.last_seen_by_service_date_time = Some(now);
    let internal = &mut server.internal;
    internal.agent_version = Some(report.agent_version.clone());
    internal.agent_stopped = has_stopped(internal.stop_requested, report.phase);
    internal.fence_broken |= is_broken(internal.fence.as_ref(), &internal.observed.fence, &report.fence);
    internal.observed.hear_agent(report);
    if report.sent_bytes > 0 {
        server.life_cycle.first_byte_date_time.get_or_insert(now);
    }
    let info = &mut server.data_replication_info;
    if info.data_replication_state.is_active() && !report.disks.is_empty() {
        info.replicated_disks.clone_from(&report.disks);
    }
    follow_disks(server, now);
    refresh(server, now);
}

/// Told to stop for good it says so; told to stop replicating, it waits.
fn has_stopped(stop_requested: bool, phase: AgentPhase) -> bool {
    phase == AgentPhase::Stopped || stop_requested && matches!(phase, AgentPhase::Waiting | AgentPhase::Paused)
}

/// Whether a source that was fenced as it is wanted is not any more.
fn is_broken(wanted: Option<&FenceId>, before: &FenceState, now: &FenceState) -> bool {
    let fenced = |state: &FenceState| matches!(state, FenceState::Fenced { fence } if Some(fence) == wanted);
    fenced(before) && !fenced(now)
}

/// A disk that grew is followed without being asked: without its new part the copy would be none. A disk that came is
/// followed where the settings say so.
fn follow_disks(server: &mut SourceServer, now: Timestamp) {
    if !server.data_replication_info.data_replication_state.is_active() || server.is_leaving() {
        return;
    }
    let internal = &mut server.internal;
    let mut grew = false;
    for disk in &mut internal.staging {
        let seen = internal.observed.inventory.iter().find(|seen| seen.device_name == disk.device_name);
        let size = seen.map(|seen| seen.size_bytes).filter(|size| *size > disk.size_bytes);
        if size > disk.grow_to {
            disk.grow_to = size;
            grew = true;
        }
    }
    if grew {
        server.initiate_again(now);
    }
    if server.internal.auto_add_disks {
        let names: Vec<_> = server.new_disks().map(|disk| disk.device_name.clone()).collect();
        names.iter().for_each(|name| {
            server.plan_disk(name, now);
        });
    }
}

/// What the replicator reports of the server.
pub(crate) fn hear_replicator(server: &mut SourceServer, report: &ServerReport, now: Timestamp) {
    let internal = &mut server.internal;
    internal.replicator_connected = report.connected;
    internal.received_bytes = report.received_bytes.max(internal.received_bytes);
    internal.synced_bytes = report.volumes.iter().map(|v| v.synced_bytes).sum();
    for disk in &mut internal.staging {
        let synced = report.volumes.iter().find(|v| disk.volume.as_ref() == Some(&v.volume)).map(|v| v.synced_bytes);
        disk.initialized |= synced.is_some_and(|bytes| bytes > 0 && bytes >= disk.size_bytes);
    }
    let checkpoint = &mut internal.checkpoint;
    if report.checkpoint > checkpoint.reached {
        checkpoint.reached = report.checkpoint;
        checkpoint.reached_at = Some(now);
    }
    checkpoint.held = report.held;
    checkpoint.consistency = report.consistency;
    checkpoint.expired = checkpoint.expired.max(report.expired);
    internal.observed.hear_replicator(report);
    refresh(server, now);
}

/// State, error, lag and time to go, by what is known at `now`.
pub(crate) fn refresh(server: &mut SourceServer, now: Timestamp) {
    let heard = is_heard(server, now);
    let initiation = initiation_progress(&server.data_replication_info);
    refresh_error(server, heard, initiation);
    let internal = &server.internal;
    let observed = &internal.observed;
    let total_bytes: u64 = internal.staging.iter().map(|disk| disk.size_bytes).sum();
    let checkpoint = &internal.checkpoint;
    let facts = ReplicationFacts {
        previous: server.data_replication_info.data_replication_state,
        paused: internal.paused,
        initiation,
        heard,
        trouble: observed.agent_error.is_some() || observed.replicator_error.is_some(),
        phase: observed.phase,
        copied: internal.synced_bytes >= total_bytes,
        held_still: checkpoint.held.is_some_and(|held| held > checkpoint.released),
    };
    server.data_replication_info.data_replication_state = data_replication_state(&facts);
    refresh_figures(server, now);
}

/// Lag and time to go, as they are at `now`; nothing else changes. For readers: while nothing is reported, nothing is written.
pub(crate) fn refresh_figures(server: &mut SourceServer, now: Timestamp) {
    let (internal, info) = (&mut server.internal, &mut server.data_replication_info);
    if !info.data_replication_state.is_active() {
        (info.lag_duration, info.eta_date_time) = (None, None);
        return;
    }
    let heard = server.life_cycle.last_seen_by_service_date_time;
    let lag_ms = internal.observed.lag_ms_at(now, heard, internal.checkpoint.reached_at);
    info.lag_duration = lag_ms.map(|ms| IsoDuration::from_seconds(ms / 1000));
    let remaining = remaining_bytes(info, &internal.observed);
    let flows = !internal.paused && remaining > 0;
    let seconds = remaining.checked_div(internal.observed.rate_bytes_per_second).filter(|_| flows);
    info.eta_date_time = seconds.map(|seconds| now.plus_ms(seconds.saturating_mul(1000)));
}

/// What is yet to be copied, or compared, or sent again.
fn remaining_bytes(info: &DataReplicationInfo, observed: &Observed) -> u64 {
    let disks = info.replicated_disks.iter();
    match info.data_replication_state {
        DataReplicationState::Rescan => {
            disks.map(|d| d.total_storage_bytes.saturating_sub(d.rescanned_storage_bytes)).sum()
        }
        DataReplicationState::Backlog | DataReplicationState::Continuous => observed.backlog_bytes,
        _ => disks.map(|d| d.total_storage_bytes.saturating_sub(d.replicated_storage_bytes)).sum(),
    }
}

pub(crate) fn is_heard(server: &SourceServer, now: Timestamp) -> bool {
    let last = server.life_cycle.last_seen_by_service_date_time;
    last.is_some_and(|seen| now.ms_since(seen) <= AGENT_NOT_SEEN_AFTER_MS)
}

fn initiation_progress(info: &DataReplicationInfo) -> InitiationProgress {
    let initiation = info.data_replication_initiation.as_ref().filter(|i| i.current().is_some());
    let failed = |i: &DataReplicationInitiation| i.steps.iter().any(|s| s.status == InitiationStepStatus::Failed);
    match initiation {
        None => InitiationProgress::Over,
        Some(initiation) if failed(initiation) => InitiationProgress::Failed,
        Some(_) => InitiationProgress::UnderWay,
    }
}

/// Until the initiation is over its error is its own: an agent without trouble must not hide it.
fn refresh_error(server: &mut SourceServer, heard: bool, initiation: InitiationProgress) {
    if !server.data_replication_info.data_replication_state.is_active() {
        return;
    }
    let observed = &server.internal.observed;
    let reported = observed.agent_error.as_ref().or(observed.replicator_error.as_ref()).map(replication_error);
    let error = match initiation {
        _ if !heard => Some(not_seen(server)),
        InitiationProgress::Failed => return,
        InitiationProgress::UnderWay if reported.is_none() => return,
        InitiationProgress::UnderWay => reported,
        InitiationProgress::Over => reported.or_else(|| server.internal.snapshot_error.clone()),
    };
    server.data_replication_info.data_replication_error = error;
}

fn not_seen(server: &SourceServer) -> DataReplicationError {
    let host = &server.source_properties.identification_hints.hostname;
    let raw_error = format!(
        "the agent on {host} has not reported for {} minutes; see `rehost-agent status` and `systemctl status rehost-agent` there",
        AGENT_NOT_SEEN_AFTER_MS / 60_000
    );
    DataReplicationError { error: DataReplicationErrorString::AgentNotSeen, raw_error }
}

fn replication_error(error: &ReportedError) -> DataReplicationError {
    let kind = match error.code.as_str() {
        "NotConverging" => DataReplicationErrorString::NotConverging,
        "ReplicatorUnreachable" => DataReplicationErrorString::FailedToConnectAgentToReplicationServer,
        "DiskVanished" | "DiskResized" | "DiskUnreadable" | "SizeMismatch" => {
            DataReplicationErrorString::UnsupportedVmConfiguration
        }
        "NotAuthorised" | "CertificateRefused" | "UnknownVolume" => {
            DataReplicationErrorString::FailedToPairReplicationServerWithAgent
        }
        "NoSpace" | "VolumeFailed" => DataReplicationErrorString::FailedToStartDataTransfer,
        _ => DataReplicationErrorString::UnstableNetwork,
    };
    DataReplicationError { error: kind, raw_error: format!("{}: {}", error.code, error.message) }
}
