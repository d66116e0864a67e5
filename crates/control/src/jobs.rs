//! Jobs: created first, then the servers are admitted one by one, then the state machines start. Whatever is cut off in
//! between is found again by [`recover`].

use std::collections::BTreeMap;

use rehost_model::event::EventType;
use rehost_model::job::{
    InitiatedBy, JobLogEvent, JobLogEventData, JobLogItem, JobStatus, JobType, LaunchStatus, LaunchWork,
    ParticipatingServer,
};
use rehost_model::lifecycle::LifeCycleCommand;
use rehost_model::replication::DataReplicationState;
use rehost_model::{ExecutionId, Job, JobId, LifeCycleState, ServerId, SourceServer, region};
use serde_json::{Value, json};

use crate::operations::{self, OperationError};
use crate::ports::{ExecutionStatus, PortResult, Ports};
use crate::{PortError, events, repo};

type OperationResult<T> = Result<T, OperationError>;

/// Writes a new job with these servers, PENDING.
pub(crate) async fn create(
    ports: &Ports,
    servers: &[ServerId],
    tags: BTreeMap<String, String>,
    initiated_by: InitiatedBy,
) -> OperationResult<Job> {
    let job_id = JobId::generate();
    let participant = |id: &ServerId| ParticipatingServer {
        source_server_id: id.clone(),
        launch_status: LaunchStatus::Pending,
        launched_ec2_instance_id: None,
    };
    let job = Job {
        arn: region::arn(&ports.region, &ports.account, "job", job_id.as_str()),
        job_id,
        job_type: if initiated_by == InitiatedBy::Terminate { JobType::Terminate } else { JobType::Launch },
        initiated_by,
        creation_date_time: ports.clock.now(),
        end_date_time: None,
        status: JobStatus::Pending,
        participating_servers: servers.iter().map(participant).collect(),
        tags,
        log: Vec::new(),
        work: BTreeMap::new(),
    };
    repo::create(ports, &job).await?;
    Ok(job)
}

/// Gives a server to a launch job: the lifecycle moves, and the job remembers where it was.
pub(crate) async fn admit(ports: &Ports, job: &JobId, id: &ServerId, initiated_by: InitiatedBy) -> OperationResult<()> {
    let now = ports.clock.now();
    // The job learns the state before the server leaves it: a failure must know where to go back to.
    let server = operations::load_server(ports, id).await?;
    let mut work = LaunchWork::new(server.life_cycle.state);
    work.replaces = server.launched_instance;
    repo::update_job(ports, job, |job| {
        job.work.insert(id.clone(), work.clone());
        Ok::<_, OperationError>(())
    })
    .await?;
    let admitted = repo::update_server(ports, id, |server| {
        let before = operations::begin_launch(server, initiated_by, job, now)?;
        if before != work.state_before {
            return Err(OperationError::conflict(id, format!("the server {id} changed meanwhile; try again")));
        }
        events::record(server, now, EventType::JobChange, json!({"jobID": job, "status": JobStatus::Pending}));
        Ok(())
    });
    admitted.await.map(|_| ())
}

/// Starts the state machine of one server of a job; again, under another name, if it ended before the job did.
pub(crate) async fn start_workflow(
    ports: &Ports,
    job: &JobId,
    id: &ServerId,
    initiated_by: InitiatedBy,
) -> PortResult<()> {
    let machine = if initiated_by == InitiatedBy::Terminate { "terminate" } else { "launch" };
    let input = json!({"jobID": job, "sourceServerID": id, "initiatedBy": initiated_by});
    start(ports, machine, &format!("{machine}-{job}-{id}"), input).await
}

/// Starts an execution named `name`, or `name-2` and so on when those before it have ended without success. Its name becomes
/// `execution` in the input.
async fn start(ports: &Ports, machine: &str, name: &str, mut input: Value) -> PortResult<()> {
    for attempt in 1.. {
        let execution = ExecutionId(if attempt == 1 { name.to_owned() } else { format!("{name}-{attempt}") });
        match ports.workflows.status(&execution).await? {
            Some(ExecutionStatus::Running | ExecutionStatus::Succeeded(_)) => return Ok(()),
            Some(ExecutionStatus::Failed { .. } | ExecutionStatus::Aborted) => {}
            None => {
                input["execution"] = json!(execution);
                return ports.workflows.start(machine, &execution, input).await;
            }
        }
    }
    Ok(())
}

/// Takes servers out of a job that will not run for them; those that were admitted go back to where they were.
pub(crate) async fn cancel(ports: &Ports, job: &JobId, servers: &[ServerId], why: &str) -> PortResult<()> {
    for id in servers {
        release(ports, job, id).await?;
    }
    let now = ports.clock.now();
    repo::update_job(ports, job, |job| {
        for participant in job.participating_servers.iter_mut().filter(|p| servers.contains(&p.source_server_id)) {
            participant.launch_status = LaunchStatus::Failed;
        }
        let data = JobLogEventData { raw_error: Some(why.to_owned()), ..JobLogEventData::default() };
        job.log.push(JobLogItem { log_date_time: now, event: JobLogEvent::JobCancel, event_data: data });
        job.complete_if_over(now);
        Ok::<_, PortError>(())
    })
    .await
    .map(|_| ())
}

/// The server leaves a job without success: its lifecycle goes back to where it was before the call.
pub(crate) async fn release(ports: &Ports, job_id: &JobId, id: &ServerId) -> PortResult<SourceServer> {
    let job: Job = repo::load(ports, job_id.as_str()).await?;
    let before = job.work.get(id).map(|w| w.state_before);
    let released = repo::update_server(ports, id, |server| {
        if server.internal.active_job.as_ref() == Some(job_id) {
            server.internal.active_job = None;
            go_back(server, before);
        }
        Ok::<_, PortError>(())
    });
    released.await.map(|(server, ())| server)
}

fn go_back(server: &mut SourceServer, before: Option<LifeCycleState>) {
    let Some(before) = before else { return };
    // Illegal when the server went elsewhere meanwhile (disconnected, say): then that stands.
    let _ = server.apply(LifeCycleCommand::LaunchFailed { before });
}

/// Appends to a job's log, once: a step that runs again does not repeat its entry.
pub(crate) fn log(job: &mut Job, now: rehost_model::Timestamp, event: JobLogEvent, data: JobLogEventData) {
    let known = job.log.iter().any(|item| item.event == event && item.event_data == data);
    if !known {
        job.log.push(JobLogItem { log_date_time: now, event, event_data: data });
    }
}

/// Starts a TERMINATE job for the instances that these servers have given up; one that is launched later is not touched.
pub(crate) async fn start_terminate(
    ports: &Ports,
    servers: &[ServerId],
    tags: BTreeMap<String, String>,
) -> OperationResult<Job> {
    let job = create(ports, servers, tags, InitiatedBy::Terminate).await?;
    for id in servers {
        start_workflow(ports, &job.job_id, id, InitiatedBy::Terminate).await?;
    }
    Ok(job)
}

/// Starts the state machine `provision`, if an initiation after the first one is to be carried out.
pub(crate) async fn start_provision(ports: &Ports, server: &SourceServer) -> PortResult<()> {
    match &server.internal.provisioning {
        Some(name) => start(ports, "provision", &name.0, json!({"sourceServerID": server.source_server_id})).await,
        None => Ok(()),
    }
}

/// Starts the state machine `finalize`, which ends replication and removes what it used.
pub(crate) async fn start_finalize(ports: &Ports, server: &SourceServer) -> PortResult<()> {
    let name = format!("finalize-{}-{}", server.source_server_id, server.internal.disconnects);
    start(ports, "finalize", &name, json!({"sourceServerID": server.source_server_id})).await
}

/// Finds what a crash cut off between an API call's writes and the start of its state machines, and goes on with it.
/// Idempotent: executions that exist are not started again.
///
/// # Errors
/// Those of the ports; what was recovered until then stays.
pub async fn recover(ports: &Ports) -> PortResult<()> {
    recover_older_than(ports, 0).await
}

/// As [`recover`], where other processes are at work meanwhile: a job that is younger is left to whoever is just beginning it.
///
/// # Errors
/// As [`recover`].
pub async fn recover_older_than(ports: &Ports, age_ms: u64) -> PortResult<()> {
    let (jobs, now) = (repo::list::<Job>(ports, "").await?, ports.clock.now());
    let unfinished: Vec<_> = jobs.iter().filter(|job| job.status != JobStatus::Completed).collect();
    for job in unfinished.iter().filter(|job| now.ms_since(job.creation_date_time) >= age_ms) {
        recover_job(ports, job).await?;
    }
    let terminating: Vec<_> = unfinished
        .iter()
        .filter(|job| job.job_type == JobType::Terminate)
        .flat_map(|job| job.participating_servers.iter().map(|p| p.source_server_id.clone()))
        .collect();
    for server in repo::list::<SourceServer>(ports, "").await? {
        recover_server(ports, &server, terminating.contains(&server.source_server_id)).await?;
    }
    Ok(())
}

async fn recover_server(ports: &Ports, server: &SourceServer, has_terminate_job: bool) -> PortResult<()> {
    events::publish_outbox(ports, server).await?;
    let state = server.data_replication_info.data_replication_state;
    let disconnects = server.internal.disconnect_requested && state != DataReplicationState::Disconnected;
    if disconnects || server.internal.stop_requested {
        start_finalize(ports, server).await?;
    }
    start_provision(ports, server).await?;
    let id = &server.source_server_id;
    if !server.internal.terminating.is_empty() && !has_terminate_job {
        let started = start_terminate(ports, std::slice::from_ref(id), BTreeMap::new()).await;
        started.map_err(|e| PortError::invalid(format!("what the server {id} gave up cannot be terminated: {e}")))?;
    }
    Ok(())
}

async fn recover_job(ports: &Ports, job: &Job) -> PortResult<()> {
    for participant in job.participating_servers.iter().filter(|p| !p.launch_status.is_over()) {
        let id = &participant.source_server_id;
        let Some((server, _)) = repo::find::<SourceServer>(ports, id.as_str()).await? else { continue };
        let began = participant.launch_status != LaunchStatus::Pending;
        let mine = server.internal.active_job.as_ref() == Some(&job.job_id);
        if began || mine || job.job_type == JobType::Terminate {
            start_workflow(ports, &job.job_id, id, job.initiated_by).await?;
        } else {
            let why = "the service stopped before the job began; start it again";
            cancel(ports, &job.job_id, std::slice::from_ref(id), why).await?;
        }
    }
    Ok(())
}
