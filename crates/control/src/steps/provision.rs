//! Carries out MGN's initiation steps, one by one, each with its status.
//!
//! A step that fails leaves the server STALLED with the reason, and is tried again after a while: the state machine keeps
//! calling until the initiation is over or the server is disconnected.

use rehost_model::ledger::{Billed, Purpose, ResourceKind};
use rehost_model::replication::{
    DataReplicationError, DataReplicationState, InitiationStepName as Name, InitiationStepStatus as Status,
};
use rehost_model::replicator::Assignment;
use rehost_model::{InstanceId, SourceServer, VolumeId};

use super::{Answer, State, StepError, VISIBLE_AFTER_MS, done, groups, in_progress, replicator, stopped};
use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, GroupRole, InstanceState, Ports, VolumeSpec};
use crate::{PortError, PortErrorKind, observe, repo};

/// How long one initiation step may take before it counts as failed; milliseconds.
const STEP_LIMIT_MS: u64 = 10 * 60 * 1000;

/// How long to wait after a failure before the step is tried again; seconds.
const RETRY_SECONDS: u64 = 20;

/// Errors that are waited for like anything else that takes its time, and after how many seconds they are looked at again.
const PASSING: [&str; 2] = ["RetryableConflict", "RetryableThrottled"];
const PASSING_SECONDS: u64 = 3;

/// How long to wait before a paused replication is looked at again; seconds.
pub(super) const PAUSED_SECONDS: u64 = 5;

/// What an initiation step came to.
enum Outcome {
    Succeeded,
    Skipped,
    /// Not yet; what it waits for, for the error when it takes too long.
    Waiting(&'static str),
}

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    loop {
        let server = state.server(ports).await?;
        if server.is_leaving()
            || !server.data_replication_info.data_replication_state.is_active()
            || state.is_superseded(&server)
        {
            return stopped();
        }
        if server.internal.paused {
            return in_progress(patience(ports, &server, PAUSED_SECONDS));
        }
        let initiation = server.data_replication_info.data_replication_initiation.as_ref();
        let Some(step) = initiation.and_then(|i| i.current()) else {
            return done();
        };
        begin_step(ports, &server, step).await?;
        let outcome = match step_outcome(ports, &server, step).await {
            Ok(Outcome::Waiting(what)) if is_overdue(ports, &server) => {
                Err(StepError::new("Timeout", format!("{what} for {} minutes", STEP_LIMIT_MS / 60_000)))
            }
            // Somebody else is at work on it, or asks too much: that is no trouble of this server as long as it passes.
            Err(error) if PASSING.contains(&error.name.as_str()) && !is_overdue(ports, &server) => {
                return in_progress(PASSING_SECONDS);
            }
            other => other,
        };
        match outcome {
            Ok(Outcome::Waiting(_)) => return in_progress(1),
            Ok(Outcome::Succeeded) => finish_step(ports, &server, step, Status::Succeeded).await?,
            Ok(Outcome::Skipped) => finish_step(ports, &server, step, Status::Skipped).await?,
            Err(error) => {
                if needs_another_replication_server(step, &error) {
                    replicator::start_over_with_another(ports, &server).await?;
                }
                fail_step(ports, &server, step, &error).await?;
                return in_progress(patience(ports, &server, RETRY_SECONDS));
            }
        }
    }
}

/// One that went away (with the last server that it served, say) does not come back, and one whose first boot failed does not try again.
fn needs_another_replication_server(step: Name, error: &StepError) -> bool {
    let never_came = step == Name::AuthenticateWithService && error.name == "Timeout";
    never_came || ["NotFound", "ReplicationServerDied"].contains(&error.name.as_str())
}

async fn step_outcome(ports: &Ports, server: &SourceServer, step: Name) -> Result<Outcome, StepError> {
    let outcome = |is_there, waiting_for| {
        if is_there { Outcome::Succeeded } else { Outcome::Waiting(waiting_for) }
    };
    Ok(match step {
        Name::Wait => {
            outcome(server.life_cycle.last_seen_by_service_date_time.is_some(), "the agent has not been heard of")
        }
        Name::CreateSecurityGroup => match groups::ensure(ports, server, GroupRole::Replication, None).await? {
            Some(_) => Outcome::Succeeded,
            None => Outcome::Skipped,
        },
        Name::LaunchReplicationServer => {
            replicator::launch(ports, server).await?;
            Outcome::Succeeded
        }
        Name::BootReplicationServer => boot_replication_server(ports, server).await?,
        Name::AuthenticateWithService => {
            let replicator = replicator::of(ports, server).await?;
            let routing = server.internal.replication.settings.data_plane_routing;
            if replicator.last_seen.is_some() && replicator.addresses_for(routing).is_empty() {
                let message = format!(
                    "the replication server {} has no address for the data plane routing {}; let it have a public IP address \
                     (createPublicIP, or by its subnet), or choose PRIVATE_IP",
                    replicator.id,
                    serde_json::to_string(&routing).unwrap_or_default(),
                );
                return Err(StepError::new("NoAddress", message));
            }
            if replicator.last_seen.is_none() {
                boot_replication_server(ports, server).await?;
            }
            outcome(replicator.last_seen.is_some(), "the replication server has not authenticated")
        }
        // The software comes with the replication server: it has authenticated with it.
        Name::DownloadReplicationSoftware => Outcome::Skipped,
        Name::CreateStagingDisks => create_staging_disks(ports, server).await?,
        Name::AttachStagingDisks => attach_staging_disks(ports, server).await?,
        Name::PairReplicationServerWithAgent => {
            let volumes = volumes_of(server);
            outcome(server.internal.paired_volumes == volumes, "the agent has not fetched its certificate")
        }
        Name::ConnectAgentToReplicationServer => {
            let internal = &server.internal;
            let connected = internal.replicator_connected || internal.received_bytes > 0 || internal.synced_bytes > 0;
            outcome(connected, "the agent has not connected to the replication server")
        }
        Name::StartDataTransfer => {
            let internal = &server.internal;
            outcome(internal.received_bytes > 0 || internal.synced_bytes > 0, "no data has arrived")
        }
    })
}

async fn boot_replication_server(ports: &Ports, server: &SourceServer) -> Result<Outcome, StepError> {
    let replicator = replicator::of(ports, server).await?;
    let Some(instance) = &replicator.instance else {
        return Ok(Outcome::Waiting("the replication server is not launched"));
    };
    match ports.compute.instance(instance).await? {
        Some(i) if i.state == InstanceState::Running => Ok(Outcome::Succeeded),
        Some(i) if i.state == InstanceState::Pending => Ok(Outcome::Waiting("the replication server has not booted")),
        None if waited_ms(ports, server) < VISIBLE_AFTER_MS => {
            Ok(Outcome::Waiting("the replication server is not seen"))
        }
        other => {
            let reason = other.and_then(|i| i.state_reason).unwrap_or_else(|| "it does not exist any more".to_owned());
            Err(StepError::new("ReplicationServerDied", format!("the replication server {instance}: {reason}")))
        }
    }
}

async fn create_staging_disks(ports: &Ports, server: &SourceServer) -> Result<Outcome, StepError> {
    let began = server.data_replication_info.data_replication_initiation.as_ref().map(|i| i.start_date_time.unix_ms());
    let began = began.unwrap_or_default().to_string();
    for (index, disk) in server.internal.staging.iter().enumerate().filter(|(_, disk)| disk.volume.is_none()) {
        let id = &server.source_server_id;
        let number = index.to_string();
        let mut parts = vec![id.as_str(), "staging", &number, &began];
        // What EC2 has made with a token it does not make again.
        parts.extend(disk.lost.as_ref().map(VolumeId::as_str));
        let token = ClientToken::derive(&parts);
        let settings = &server.internal.replication.settings;
        let chosen = server.internal.replication.replicated_disks.get(index).map(|d| d.staging_disk_type);
        let staging_disk_type = settings.staging_disk_type(chosen.unwrap_or_default(), disk.size_bytes);
        let billed = Some(Billed::volume(staging_disk_type, disk.size_bytes));
        let (kind, purpose) = (ResourceKind::Volume, Purpose::Staging);
        let planned = Planned { server: id, kind, purpose, job: None, token: &token, billed };
        let mut tags = settings.staging_area_tags.clone();
        tags.extend(planned.tags());
        let spec = VolumeSpec {
            size_bytes: disk.size_bytes,
            from_snapshot: None,
            staging_disk_type,
            staging_subnet_id: settings.staging_area_subnet_id.clone(),
            encryption: settings.ebs_encryption,
            encryption_key_arn: settings.ebs_encryption_key_arn.clone(),
            tags,
        };
        let volume = ledger::make(ports, &planned, ports.compute.create_volume(&spec, &token)).await?;
        repo::update_server(ports, id, |server| {
            if let Some(disk) = server.internal.staging.get_mut(index) {
                disk.volume = Some(volume.clone());
            }
            Ok::<_, StepError>(())
        })
        .await?;
    }
    for disk in &server.internal.staging {
        if let (Some(volume), Some(size_bytes)) = (&disk.volume, disk.grow_to) {
            ports.compute.modify_volume(volume, size_bytes).await?;
        }
    }
    Ok(Outcome::Succeeded)
}

async fn attach_staging_disks(ports: &Ports, server: &SourceServer) -> Result<Outcome, StepError> {
    let id = &server.source_server_id;
    if !replicator::leave_former(ports, server).await? {
        return Ok(Outcome::Waiting("the former replication server has not let go of the volumes"));
    }
    let replicator = replicator::of(ports, server).await?;
    let instance = replicator.instance.as_ref().ok_or_else(|| {
        StepError::new("ReplicationServerDied", format!("the replication server {} has no machine", replicator.id))
    })?;
    let mut assignments = Vec::new();
    for disk in &server.internal.staging {
        let Some(volume) = &disk.volume else {
            return Ok(Outcome::Waiting("a staging disk does not exist"));
        };
        let location = match ports.compute.attach_volume(volume, instance).await {
            Err(error) if error.is_not_found() && is_alive(ports, instance).await? => {
                return missing_volume(ports, server, volume).await;
            }
            location => location?,
        };
        let (server, volume, initialized) = (id.clone(), volume.clone(), disk.initialized);
        let size_bytes = disk.grow_to.unwrap_or(disk.size_bytes);
        assignments.push(Assignment { server, volume, size_bytes, location, initialized });
    }
    let assigned = repo::update_replicator(ports, &replicator.id, |replicator| {
        replicator.assignments.retain(|a| a.server != *id);
        if !replicator.has_room_for(id, assignments.len()) {
            let message = format!("the replication server {} is full by now; another one is chosen", replicator.id);
            return Err(PortError::new(PortErrorKind::Quota, message));
        }
        replicator.assignments.extend(assignments.iter().cloned());
        replicator.reserved.remove(id);
        Ok(())
    });
    if let Err(error) = assigned.await {
        if error.kind == PortErrorKind::Quota {
            replicator::start_over_with_another(ports, server).await?;
        }
        return Err(error.into());
    }
    repo::update_server(ports, id, |server| {
        for disk in &mut server.internal.staging {
            // A disk may have come, or grown once more, while these were attached: that is for the next time.
            let Some(assigned) = assignments.iter().find(|a| disk.volume.as_ref() == Some(&a.volume)) else { continue };
            disk.attached = true;
            disk.size_bytes = assigned.size_bytes;
            disk.grow_to = disk.grow_to.filter(|size| *size > assigned.size_bytes);
        }
        Ok::<_, StepError>(())
    })
    .await?;
    Ok(Outcome::Succeeded)
}

async fn is_alive(ports: &Ports, instance: &InstanceId) -> Result<bool, StepError> {
    let machine = ports.compute.instance(instance).await?;
    Ok(machine.is_some_and(|machine| matches!(machine.state, InstanceState::Pending | InstanceState::Running)))
}

/// A volume shows itself to everybody only after a moment. One that does not is made anew.
async fn missing_volume(ports: &Ports, server: &SourceServer, volume: &VolumeId) -> Result<Outcome, StepError> {
    if waited_ms(ports, server) < VISIBLE_AFTER_MS {
        return Ok(Outcome::Waiting("a staging disk is not seen"));
    }
    repo::update_server(ports, &server.source_server_id, |server| {
        for disk in server.internal.staging.iter_mut().filter(|disk| disk.volume.as_ref() == Some(volume)) {
            (disk.volume, disk.lost) = (None, Some(volume.clone()));
            (disk.attached, disk.initialized) = (false, false);
        }
        if let Some(initiation) = &mut server.data_replication_info.data_replication_initiation {
            initiation.record(Name::CreateStagingDisks, Status::NotStarted);
        }
        Ok::<_, StepError>(())
    })
    .await?;
    let cause = format!(
        "the staging disk {volume} does not exist (any more); another one is made. If that one goes, too: most often EBS may not use \
         the KMS key of the replication settings"
    );
    Err(StepError::new("StagingDiskLost", cause))
}

fn volumes_of(server: &SourceServer) -> Vec<VolumeId> {
    server.internal.staging.iter().filter_map(|disk| disk.volume.clone()).collect()
}

async fn begin_step(ports: &Ports, server: &SourceServer, step: Name) -> Result<(), StepError> {
    let now = ports.clock.now();
    repo::update_server(ports, &server.source_server_id, |server| {
        let info = &mut server.data_replication_info;
        if let Some(initiation) = &mut info.data_replication_initiation
            && initiation.record(step, Status::InProgress)
        {
            server.internal.step_started = Some(now);
            initiation.next_attempt_date_time = None;
            info.data_replication_state = DataReplicationState::Initiating;
        }
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}

async fn finish_step(ports: &Ports, server: &SourceServer, step: Name, status: Status) -> Result<(), StepError> {
    let now = ports.clock.now();
    repo::update_server(ports, &server.source_server_id, |server| {
        let info = &mut server.data_replication_info;
        info.data_replication_error = None;
        if let Some(initiation) = &mut info.data_replication_initiation {
            initiation.record(step, status);
            if initiation.current().is_none() {
                server.internal.provisioning = None;
                if info.last_snapshot_date_time.is_none() {
                    info.data_replication_state = DataReplicationState::InitialSync;
                } else {
                    observe::refresh(server, now);
                }
            }
        }
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}

async fn fail_step(ports: &Ports, server: &SourceServer, step: Name, error: &StepError) -> Result<(), StepError> {
    let next = ports.clock.now().plus_ms(patience(ports, server, RETRY_SECONDS) * 1000);
    repo::update_server(ports, &server.source_server_id, |server| {
        let info = &mut server.data_replication_info;
        // What the agent reported (why it cannot connect, say) tells more than that the step took too long.
        let reported = info.data_replication_error.take().filter(|_| error.name == "Timeout");
        let raw_error = reported.map_or_else(|| error.cause.clone(), |r| format!("{}; {}", error.cause, r.raw_error));
        info.data_replication_error = Some(DataReplicationError { error: step.failure(), raw_error });
        info.data_replication_state = DataReplicationState::Stalled;
        if let Some(initiation) = &mut info.data_replication_initiation {
            initiation.record(step, Status::Failed);
            initiation.next_attempt_date_time = Some(next);
        }
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}

/// How long to wait until the replication is looked at again; seconds.
pub(super) fn patience(ports: &Ports, server: &SourceServer, usual: u64) -> u64 {
    let initiation = server.data_replication_info.data_replication_initiation.as_ref();
    let now = ports.clock.now();
    ports.polling.patience(initiation.map_or(0, |initiation| now.ms_since(initiation.start_date_time)), usual)
}

fn is_overdue(ports: &Ports, server: &SourceServer) -> bool {
    waited_ms(ports, server) > STEP_LIMIT_MS
}

/// How long the present initiation step has been at work; milliseconds.
fn waited_ms(ports: &Ports, server: &SourceServer) -> u64 {
    server.internal.step_started.map_or(0, |began| ports.clock.now().ms_since(began))
}
