//! Pause, resume, stop, start and retry of a server's data replication, as MGN has them.

use rehost_model::event::EventType;
use rehost_model::lifecycle::{LifeCycleCommand, ReplicationCommand, check_replication};
use rehost_model::replication::{DataReplicationInitiation, DataReplicationState};
use rehost_model::{ServerId, SourceServer};
use serde_json::json;

use super::{OperationError, OperationResult, change_idle_server, load_server};
use crate::ports::{ExecutionStatus, Ports};
use crate::{events, jobs, observe, repo};

/// MGN's `PauseReplication`: the agent notes what changes and sends nothing; nothing that was made goes.
///
/// # Errors
/// `NotFound`; `Conflict` when it does not replicate, is paused already, or a job is at work on it.
pub async fn pause_replication(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let now = ports.clock.now();
    let (server, ()) = change_idle_server(ports, id, |server| {
        check(server, ReplicationCommand::Pause)?;
        server.internal.paused = true;
        observe::refresh(server, now);
        Ok(())
    })
    .await?;
    Ok(server)
}

/// MGN's `ResumeReplication`; other than with MGN, it costs what changed meanwhile and no more.
///
/// # Errors
/// `NotFound`; `Conflict` unless it is paused.
pub async fn resume_replication(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let now = ports.clock.now();
    let resumed = repo::update_server(ports, id, |server| {
        check(server, ReplicationCommand::Resume)?;
        server.internal.paused = false;
        // The clock of an initiation step stood still.
        server.internal.step_started = server.internal.step_started.map(|_| now);
        observe::refresh(server, now);
        Ok::<_, OperationError>(())
    });
    resumed.await.map(|(server, ())| server).map_err(|e| e.about("SourceServer", id.as_str()))
}

/// MGN's `StopReplication`: the server is STOPPED when this returns, a test is over; every staging resource goes in the
/// background. The agent stays enrolled and waits; [`start_replication`] begins anew, with a full copy.
///
/// # Errors
/// `NotFound`; `Conflict` when it does not replicate, is cut over or about to be, or a job is at work on it.
pub async fn stop_replication(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let (server, ()) = change_idle_server(ports, id, |server| {
        check(server, ReplicationCommand::Stop)?;
        server.apply(LifeCycleCommand::StopReplication).map_err(|e| OperationError::illegal(id, e))?;
        server.request_stop();
        server.internal.paused = false;
        server.give_up_instance();
        let info = &mut server.data_replication_info;
        info.data_replication_state = DataReplicationState::Stopped;
        info.data_replication_error = None;
        info.data_replication_initiation = None;
        Ok(())
    })
    .await?;
    jobs::start_finalize(ports, &server).await?;
    Ok(server)
}

/// MGN's `StartReplication`: after a stop, or for a server that was installed without replication.
///
/// # Errors
/// `NotFound`; `Conflict` unless it is stopped and everything of the stopped replication is gone.
pub async fn start_replication(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let now = ports.clock.now();
    let (server, ()) = change_idle_server(ports, id, |server| {
        check(server, ReplicationCommand::Start)?;
        if server.internal.stop_requested {
            let message = format!("what the server {id} used is still being removed; start again in a minute");
            return Err(OperationError::conflict(id, message));
        }
        server.apply(LifeCycleCommand::StartReplication).map_err(|e| OperationError::illegal(id, e))?;
        let info = &mut server.data_replication_info;
        info.data_replication_state = DataReplicationState::Initiating;
        info.data_replication_initiation = Some(DataReplicationInitiation::begin(now));
        server.internal.step_started = Some(now);
        events::record(server, now, EventType::ReplicationStartRequested, json!({"replicate": true}));
        Ok(())
    })
    .await?;
    Ok(server)
}

/// MGN's `RetryDataReplication`: what is not done of the initiation is tried at once, and by somebody new if nobody is left who would.
///
/// # Errors
/// `NotFound`; `Conflict` unless it is STALLED.
pub async fn retry_data_replication(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let now = ports.clock.now();
    let server = load_server(ports, id).await?;
    let abandoned = is_abandoned(ports, &server).await?;
    let (server, ()) = repo::update_server(ports, id, |server| {
        check(server, ReplicationCommand::Retry)?;
        server.internal.observed.agent_error = None;
        server.internal.observed.replicator_error = None;
        server.data_replication_info.data_replication_error = None;
        if let Some(initiation) = server.data_replication_info.data_replication_initiation.as_mut()
            && initiation.current().is_some()
        {
            initiation.reopen();
            server.internal.step_started = Some(now);
        }
        observe::refresh(server, now);
        if abandoned {
            events::record(server, now, EventType::ReplicationStartRequested, json!({"replicate": true}));
        }
        Ok::<_, OperationError>(())
    })
    .await
    .map_err(|e| e.about("SourceServer", id.as_str()))?;
    jobs::start_provision(ports, &server).await?;
    Ok(server)
}

/// Whether the chain that was to take the server along ended in failure.
async fn is_abandoned(ports: &Ports, server: &SourceServer) -> OperationResult<bool> {
    let Some(chain) = &server.internal.chain else { return Ok(false) };
    let status = ports.workflows.status(chain).await?;
    Ok(matches!(status, None | Some(ExecutionStatus::Failed { .. } | ExecutionStatus::Aborted)))
}

fn check(server: &SourceServer, command: ReplicationCommand) -> OperationResult<()> {
    let state = server.data_replication_info.data_replication_state;
    check_replication(state, command).map_err(|e| OperationError::conflict(&server.source_server_id, e))
}
