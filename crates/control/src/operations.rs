//! What the API does: MGN's operations, checked against the lifecycle before anything is written.

mod disks;
mod replication;
mod settings;
mod templates;

use std::collections::{BTreeMap, BTreeSet};

use rehost_model::job::{InitiatedBy, JobLogItem, JobStatus};
use rehost_model::lifecycle::{IllegalTransition, LifeCycleCommand, may_archive};
use rehost_model::replication::DataReplicationState;
use rehost_model::server::{LaunchRecord, LaunchRecordEntry};
use rehost_model::{Job, JobId, LifeCycleState, ServerId, SourceServer, Timestamp};

use crate::ports::Ports;
use crate::{PortError, PortErrorKind, jobs, observe, repo};

pub use disks::add_disk;
pub use replication::{
    pause_replication, resume_replication, retry_data_replication, start_replication, stop_replication,
};
pub use settings::{ReplicationChange, ServerSettings, update_replication_configuration, update_server_settings};
pub use templates::{
    create_replication_configuration_template, delete_replication_configuration_template,
    describe_replication_configuration_templates, update_replication_configuration_template,
};

/// The most servers that one job may have (MGN's documented quota).
pub const MAX_SERVERS_PER_JOB: usize = 200;

/// The most jobs that are not over at a time (MGN's documented quota).
pub const MAX_JOBS_AT_ONCE: usize = 20;

/// MGN documents 0 to 10000 Mbit/s for `bandwidthThrottling`.
pub const MAX_BANDWIDTH_MBIT: u64 = 10_000;

/// Why an operation was refused; the API turns each into MGN's exception of that kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    #[error("the {resource_type} {resource_id} does not exist; list what exists and check the id")]
    NotFound { resource_type: &'static str, resource_id: String },
    #[error("{message}")]
    Conflict { message: String, resource_type: &'static str, resource_id: String },
    #[error("{field}: {message}")]
    Validation { message: String, field: &'static str },
    #[error(transparent)]
    Port(#[from] PortError),
}

impl OperationError {
    pub(crate) fn conflict(server: &ServerId, message: impl ToString) -> Self {
        let (resource_type, resource_id) = ("SourceServer", server.to_string());
        Self::Conflict { message: message.to_string(), resource_type, resource_id }
    }

    fn illegal(server: &ServerId, error: IllegalTransition) -> Self {
        Self::conflict(server, error)
    }

    /// Says which resource a `NotFound` of the store was about.
    fn about(self, resource_type: &'static str, resource_id: &str) -> Self {
        match self {
            Self::Port(e) if e.is_not_found() => Self::NotFound { resource_type, resource_id: resource_id.to_owned() },
            other => other,
        }
    }
}

type OperationResult<T> = Result<T, OperationError>;

/// Which servers `DescribeSourceServers` is asked for; empty lists do not filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFilter {
    pub ids: Vec<ServerId>,
    /// `None`: those that are not archived.
    pub is_archived: Option<bool>,
    pub states: Vec<LifeCycleState>,
}

/// MGN's `DescribeSourceServers`, ordered by id.
///
/// # Errors
/// Those of the store. Ids that do not exist are left out, as MGN does.
pub async fn describe_source_servers(ports: &Ports, filter: &ServerFilter) -> OperationResult<Vec<SourceServer>> {
    let mut servers: Vec<SourceServer> = match filter.ids.as_slice() {
        [] => repo::list(ports, "").await?,
        ids => {
            let mut found = Vec::new();
            for id in ids.iter().collect::<BTreeSet<_>>() {
                found.extend(repo::find::<SourceServer>(ports, id.as_str()).await?.map(|(server, _)| server));
            }
            found
        }
    };
    let archived = filter.is_archived.unwrap_or(false);
    let states = &filter.states;
    servers.retain(|s| s.is_archived == archived && (states.is_empty() || states.contains(&s.life_cycle.state)));
    let now = ports.clock.now();
    servers.iter_mut().for_each(|server| observe::refresh_figures(server, now));
    Ok(servers)
}

/// MGN's `StartTest`: one LAUNCH job for all these servers; each is TESTING when this returns.
///
/// # Errors
/// `Validation` for an empty, doubled or overlong list; a port's `Quota` at [`MAX_JOBS_AT_ONCE`]; `NotFound`, or `Conflict` when any of the servers is not ready: then
/// none was changed.
pub async fn start_test(ports: &Ports, servers: &[ServerId], tags: BTreeMap<String, String>) -> OperationResult<Job> {
    start_launch(ports, servers, tags, InitiatedBy::StartTest).await
}

/// MGN's `StartCutover`: one LAUNCH job for all these servers; each is CUTTING_OVER when this returns.
///
/// # Errors
/// As [`start_test`].
pub async fn start_cutover(
    ports: &Ports,
    servers: &[ServerId],
    tags: BTreeMap<String, String>,
) -> OperationResult<Job> {
    start_launch(ports, servers, tags, InitiatedBy::StartCutover).await
}

async fn start_launch(
    ports: &Ports,
    servers: &[ServerId],
    tags: BTreeMap<String, String>,
    initiated_by: InitiatedBy,
) -> OperationResult<Job> {
    check_server_list(servers)?;
    check_job_quota(ports).await?;
    for id in servers {
        let mut server = load_server(ports, id).await?;
        begin_launch(&mut server, initiated_by, &JobId::generate(), ports.clock.now())?;
    }
    let job = jobs::create(ports, servers, tags, initiated_by).await?;
    for id in servers {
        if let Err(error) = jobs::admit(ports, &job.job_id, id, initiated_by).await {
            // Somebody was faster since the check above. Those that were admitted already go back to where they were.
            jobs::cancel(ports, &job.job_id, servers, &error.to_string()).await?;
            return Err(error);
        }
    }
    for id in servers {
        jobs::start_workflow(ports, &job.job_id, id, initiated_by).await?;
    }
    Ok(job)
}

/// What `StartTest` or `StartCutover` changes in a server; the state before it.
pub(crate) fn begin_launch(
    server: &mut SourceServer,
    initiated_by: InitiatedBy,
    job: &JobId,
    now: Timestamp,
) -> OperationResult<LifeCycleState> {
    let id = server.source_server_id.clone();
    if let Some(active) = &server.internal.active_job {
        let message = format!("the job {active} is at work on the server {id}; wait until it is over");
        return Err(OperationError::conflict(&id, message));
    }
    if server.data_replication_info.data_replication_state == DataReplicationState::Paused {
        let message =
            format!("the replication of the server {id} is PAUSED: a fresh snapshot needs it; resume it first");
        return Err(OperationError::conflict(&id, message));
    }
    let before = server.life_cycle.state;
    let initiated = Some(LaunchRecordEntry { api_call_date_time: now, job_id: Some(job.clone()) });
    let record = Some(LaunchRecord { initiated, ..LaunchRecord::default() });
    if initiated_by == InitiatedBy::StartCutover {
        server.apply(LifeCycleCommand::StartCutover).map_err(|e| OperationError::illegal(&id, e))?;
        server.life_cycle.last_cutover = record;
    } else {
        server.apply(LifeCycleCommand::StartTest).map_err(|e| OperationError::illegal(&id, e))?;
        server.life_cycle.last_test = record;
    }
    server.internal.active_job = Some(job.clone());
    Ok(before)
}

/// MGN's `ChangeServerLifeCycleState`. Marking as ready for cutover, or reverting, ends the test or the cutover: its
/// instance is terminated by a job of its own.
///
/// # Errors
/// `NotFound`; `Conflict` when the lifecycle forbids it or a job is at work on the server.
pub async fn change_server_life_cycle_state(
    ports: &Ports,
    id: &ServerId,
    target: LifeCycleState,
) -> OperationResult<SourceServer> {
    if target == LifeCycleState::Cutover {
        return finalize_cutover(ports, id).await;
    }
    let now = ports.clock.now();
    let (server, _) = change_idle_server(ports, id, |server| {
        let before = server.life_cycle.state;
        server.apply(LifeCycleCommand::Mark(target)).map_err(|e| OperationError::illegal(id, e))?;
        let entry = Some(LaunchRecordEntry { api_call_date_time: now, job_id: None });
        let life_cycle = &mut server.life_cycle;
        match before {
            LifeCycleState::CuttingOver => {
                life_cycle.last_cutover.get_or_insert_default().reverted = entry;
                // The source is the one that counts again.
                server.internal.fence = None;
            }
            _ if target == LifeCycleState::ReadyForCutover => {
                life_cycle.last_test.get_or_insert_default().finalized = entry;
            }
            _ => life_cycle.last_test.get_or_insert_default().reverted = entry,
        }
        server.give_up_instance();
        Ok(())
    })
    .await?;
    if !server.internal.terminating.is_empty() {
        jobs::start_terminate(ports, std::slice::from_ref(id), BTreeMap::new()).await?;
    }
    load_server(ports, id).await
}

/// MGN's `FinalizeCutover`: the server is CUTOVER when this returns; replication ends and its resources go in the background.
///
/// # Errors
/// `NotFound`; `Conflict` unless the server is CUTTING_OVER, its copy was launched and no job is at work on it.
pub async fn finalize_cutover(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let now = ports.clock.now();
    let (server, _) = change_idle_server(ports, id, |server| {
        if server.life_cycle.state == LifeCycleState::CuttingOver && server.launched_instance.is_none() {
            let message =
                format!("the server {id} has no cutover instance any more; revert the cutover, then cut over again");
            return Err(OperationError::conflict(id, message));
        }
        server.apply(LifeCycleCommand::FinalizeCutover).map_err(|e| OperationError::illegal(id, e))?;
        let record = server.life_cycle.last_cutover.get_or_insert_default();
        record.finalized = Some(LaunchRecordEntry { api_call_date_time: now, job_id: None });
        server.request_disconnect();
        Ok(())
    })
    .await?;
    jobs::start_finalize(ports, &server).await?;
    Ok(server)
}

/// MGN's `DisconnectFromService`: the server is DISCONNECTED when this returns; every staging resource goes in the background.
///
/// # Errors
/// `NotFound`; `Conflict` when it does not replicate or a job is at work on it.
pub async fn disconnect_from_service(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let (server, _) = change_idle_server(ports, id, |server| {
        server.apply(LifeCycleCommand::Disconnect).map_err(|e| OperationError::illegal(id, e))?;
        server.request_disconnect();
        Ok(())
    })
    .await?;
    jobs::start_finalize(ports, &server).await?;
    Ok(server)
}

/// MGN's `MarkAsArchived`.
///
/// # Errors
/// `NotFound`; `Conflict` unless the server is CUTOVER or DISCONNECTED and all its staging resources are gone.
pub async fn mark_as_archived(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    let (server, _) = change_idle_server(ports, id, |server| {
        let state = server.life_cycle.state;
        if !may_archive(state) {
            let message = format!("the server is {state}; only a CUTOVER or DISCONNECTED server can be archived");
            return Err(OperationError::conflict(id, message));
        }
        if server.data_replication_info.data_replication_state.is_active() {
            let message =
                format!("the staging resources of the server {id} are still being removed; try again in a minute");
            return Err(OperationError::conflict(id, message));
        }
        server.is_archived = true;
        Ok(())
    })
    .await?;
    Ok(server)
}

/// MGN's `TerminateTargetInstances`: one TERMINATE job; the lifecycle does not change.
///
/// # Errors
/// `Validation` for an empty, doubled or overlong list; `NotFound`; `Conflict` while a launch is in progress, when a
/// server has no launched instance, or when it was cut over: then the instance is the user's.
pub async fn terminate_target_instances(
    ports: &Ports,
    servers: &[ServerId],
    tags: BTreeMap<String, String>,
) -> OperationResult<Job> {
    check_server_list(servers)?;
    check_job_quota(ports).await?;
    for id in servers {
        let server = load_server(ports, id).await?;
        check_idle(&server)?;
        if server.launched_instance.is_none() {
            return Err(OperationError::conflict(id, format!("the server {id} has no launched instance")));
        }
        if server.life_cycle.state == LifeCycleState::Cutover {
            let message = format!("the server {id} was cut over: its instance is yours; terminate it where it runs");
            return Err(OperationError::conflict(id, message));
        }
    }
    for id in servers {
        change_idle_server(ports, id, |server| {
            server.give_up_instance();
            Ok(())
        })
        .await?;
    }
    jobs::start_terminate(ports, servers, tags).await
}

/// Which jobs `DescribeJobs` is asked for; an empty list of ids does not filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub ids: Vec<JobId>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// MGN's `DescribeJobs`, newest first.
///
/// # Errors
/// Those of the store.
pub async fn describe_jobs(ports: &Ports, filter: &JobFilter) -> OperationResult<Vec<Job>> {
    let mut jobs: Vec<Job> = repo::list(ports, "").await?;
    jobs.retain(|job| {
        let created = job.creation_date_time;
        let wanted = filter.ids.is_empty() || filter.ids.contains(&job.job_id);
        wanted && filter.from.is_none_or(|from| created >= from) && filter.to.is_none_or(|to| created <= to)
    });
    jobs.sort_by(|a, b| (b.creation_date_time, &b.job_id).cmp(&(a.creation_date_time, &a.job_id)));
    Ok(jobs)
}

/// MGN's `DescribeJobLogItems`, oldest first.
///
/// # Errors
/// `NotFound`, and those of the store.
pub async fn describe_job_log_items(ports: &Ports, id: &JobId) -> OperationResult<Vec<JobLogItem>> {
    let job: Job = repo::load(ports, id.as_str()).await.map_err(|e| not_found(e, "Job", id.as_str()))?;
    Ok(job.log)
}

fn check_server_list(servers: &[ServerId]) -> OperationResult<()> {
    let invalid = |message: String| Err(OperationError::Validation { field: "sourceServerIDs", message });
    if servers.is_empty() || servers.len() > MAX_SERVERS_PER_JOB {
        return invalid(format!("1 to {MAX_SERVERS_PER_JOB} servers, not {}", servers.len()));
    }
    if servers.iter().collect::<BTreeSet<_>>().len() != servers.len() {
        return invalid("a server is named twice".to_owned());
    }
    Ok(())
}

async fn check_job_quota(ports: &Ports) -> OperationResult<()> {
    let jobs: Vec<Job> = repo::list(ports, "").await?;
    if jobs.iter().filter(|job| job.status != JobStatus::Completed).count() < MAX_JOBS_AT_ONCE {
        return Ok(());
    }
    let message =
        format!("{MAX_JOBS_AT_ONCE} jobs are not over yet; wait for one of them, or name more servers in one job");
    Err(PortError::new(PortErrorKind::Quota, message).into())
}

fn check_idle(server: &SourceServer) -> OperationResult<()> {
    let id = &server.source_server_id;
    match &server.internal.active_job {
        Some(job) => {
            let message = format!("the job {job} is at work on the server {id}; wait until it is over");
            Err(OperationError::conflict(id, message))
        }
        None => Ok(()),
    }
}

async fn change_idle_server(
    ports: &Ports,
    id: &ServerId,
    mut change: impl FnMut(&mut SourceServer) -> OperationResult<()> + Send,
) -> OperationResult<(SourceServer, ())> {
    let changed = repo::update_server(ports, id, |server| {
        check_idle(server)?;
        change(server)
    });
    changed.await.map_err(|e| e.about("SourceServer", id.as_str()))
}

pub(crate) async fn load_server(ports: &Ports, id: &ServerId) -> OperationResult<SourceServer> {
    repo::server(ports, id).await.map_err(|e| not_found(e, "SourceServer", id.as_str()))
}

fn not_found(error: PortError, resource_type: &'static str, resource_id: &str) -> OperationError {
    OperationError::Port(error).about(resource_type, resource_id)
}
