//! The beginning and the end of a launch for one server.

use rehost_model::event::EventType;
use rehost_model::job::{JobLogEvent, JobLogEventData, JobStatus, LaunchStatus};
use rehost_model::launch::FirstBoot;
use rehost_model::ledger::Purpose;
use rehost_model::{Job, JobId, ServerId, SourceServer};
use serde_json::json;

use super::cutover::{self, Opened};
use super::{Answer, JobContext, State, StepError, done, in_progress, job_over, snapshot};
use crate::ports::Ports;
use crate::{PortError, events, jobs, ledger, repo};

/// Whether the job of an execution is over for the server: `DONE` with `launchStatus`.
pub(super) async fn status(ports: &Ports, state: &State) -> Answer {
    let id = state.server_id()?;
    let job: Job = repo::load(ports, state.job_id()?.as_str()).await?;
    let participant = job.participating_servers.iter().find(|p| p.source_server_id == id);
    match participant.map(|p| p.launch_status) {
        Some(status) if status.is_over() => Ok(json!({"status": "DONE", "launchStatus": status})),
        Some(_) => {
            let waited_ms = ports.clock.now().ms_since(job.creation_date_time);
            in_progress(ports.polling.patience(waited_ms, 1))
        }
        None => Err(StepError::new("InvalidInput", format!("the server {id} takes no part in the job {}", job.job_id))),
    }
}

/// The job starts for this server; one that is over stays so.
pub(super) async fn begin(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load_unfinished(ports, state).await?;
    let now = ports.clock.now();
    let (job_id, id) = (&context.job.job_id, &context.server.source_server_id);
    repo::update_job(ports, job_id, |job| {
        if let Some(participant) = job.participant_mut(id) {
            match participant.launch_status {
                LaunchStatus::Pending => participant.launch_status = LaunchStatus::InProgress,
                status if status.is_over() => return Err(job_over(job_id, id)),
                _ => {}
            }
        }
        job.status = JobStatus::Started;
        jobs::log(job, now, JobLogEvent::JobStart, JobLogEventData::default());
        jobs::log(job, now, JobLogEvent::SnapshotStart, context.event_data());
        Ok::<_, StepError>(())
    })
    .await?;
    tell(ports, id, job_id, JobStatus::Started, None).await?;
    done()
}

/// The copy passed its verification: the launch is committed, what it replaces goes, and the server is free for the next job.
pub(super) async fn complete(ports: &Ports, state: &State) -> Answer {
    let mut context = JobContext::load(ports, state).await?;
    let (job_id, id) = (context.job.job_id.clone(), context.server.source_server_id.clone());
    match context.outcome() {
        Some(LaunchStatus::Launched) => return done(),
        Some(_) => return Err(job_over(&job_id, &id)),
        None => context.server = commit(ports, &context).await?,
    }
    // It failed meanwhile, or just before: what it would have replaced is what the server has gone back to.
    if !is_committed(&context) {
        return Err(job_over(&job_id, &id));
    }
    finish(ports, &context).await?;
    done()
}

/// The one write from which on the launch counts: before it everything is undone, after it nothing.
async fn commit(ports: &Ports, context: &JobContext) -> Result<SourceServer, StepError> {
    let now = ports.clock.now();
    let (job_id, id) = (&context.job.job_id, &context.server.source_server_id);
    repo::update_server(ports, id, |server| {
        if server.internal.active_job.as_ref() != Some(job_id) {
            return Ok(());
        }
        cutover::check_fence(server, job_id)?;
        if let Some(launched) = server.launched_instance.as_mut().filter(|l| l.job_id == *job_id) {
            launched.first_boot = FirstBoot::Succeeded;
        }
        server.internal.active_job = None;
        let result = json!({"jobID": job_id, "launchStatus": LaunchStatus::Launched});
        events::record(server, now, EventType::LaunchResult, result);
        Ok::<_, StepError>(())
    })
    .await
    .map(|(server, ())| server)
}

/// Whether the launch was committed; what failed after that is gone on with, not undone. The copy itself may be given up, or
/// replaced, by then: but a job leaves its server only by its commit, or after its undoing began.
fn is_committed(context: &JobContext) -> bool {
    let (job_id, server) = (&context.job.job_id, &context.server);
    let record = if context.is_cutover() { &server.life_cycle.last_cutover } else { &server.life_cycle.last_test };
    let initiated = record.as_ref().and_then(|record| record.initiated.as_ref()?.job_id.as_ref()) == Some(job_id);
    let launched = server.launched_instance.as_ref().filter(|l| l.job_id == *job_id);
    let succeeded = launched.is_some_and(|l| l.first_boot == FirstBoot::Succeeded);
    let left = server.internal.active_job.as_ref() != Some(job_id) && context.work.undo_began.is_none();
    left && (initiated || succeeded)
}

/// What follows from the commit.
async fn finish(ports: &Ports, context: &JobContext) -> Result<(), StepError> {
    remove_replaced(ports, context).await?;
    let now = ports.clock.now();
    let (job_id, id) = (&context.job.job_id, &context.server.source_server_id);
    let instance = context.work.instance.clone();
    repo::update_job(ports, job_id, |job| {
        if let Some(participant) = job.participant_mut(id).filter(|p| !p.launch_status.is_over()) {
            participant.launch_status = LaunchStatus::Launched;
            participant.launched_ec2_instance_id.clone_from(&instance);
        }
        end_if_over(job, now);
        Ok::<_, PortError>(())
    })
    .await?;
    Ok(())
}

/// A launch did not succeed: the source is in use again, nothing of the launch stays, and the server goes back to the state
/// before the call, with the reason on the job. `COMMITTED` when it failed after its commit: then it is completed.
pub(super) async fn fail(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load(ports, state).await?;
    match context.outcome() {
        Some(LaunchStatus::Failed) => return done(),
        Some(_) => return Ok(json!({"status": "COMMITTED"})),
        None if is_committed(&context) => {
            finish(ports, &context).await?;
            return Ok(json!({"status": "COMMITTED"}));
        }
        None => {}
    }
    let (job_id, id) = (&context.job.job_id, &context.server.source_server_id);
    let now = ports.clock.now();
    let began = context.work.undo_began.unwrap_or(now);
    cutover::lift_fence(ports, id, job_id).await?;
    log_failure(ports, state, &context, now).await?;
    remove_of_job(ports, id, job_id).await?;
    snapshot::discard(ports, state).await?;
    match cutover::opened(ports, &context, began).await? {
        Opened::NotYet => return in_progress(1),
        Opened::Yes => {}
        Opened::Unconfirmed(what) => {
            let data = JobLogEventData { raw_error: Some(what), ..context.event_data() };
            context.record(ports, Some((JobLogEvent::CleanupFail, data)), |_| {}).await?;
        }
    }
    context.record(ports, Some((JobLogEvent::CleanupEnd, context.event_data())), |_| {}).await?;
    go_back(ports, &context, &cause_of(state)).await?;
    done()
}

async fn log_failure(
    ports: &Ports,
    state: &State,
    context: &JobContext,
    now: rehost_model::Timestamp,
) -> Result<(), StepError> {
    let data = JobLogEventData {
        raw_error: Some(cause_of(state)),
        target_instance_id: context.work.instance.clone(),
        ..context.event_data()
    };
    let event = Some((failure_event(context), data));
    context.record(ports, event, |work| _ = work.undo_began.get_or_insert(now)).await?;
    context.record(ports, Some((JobLogEvent::CleanupStart, context.event_data())), |_| {}).await?;
    Ok(())
}

/// The state before the call, for the server and its launched instance; the job is over for it.
async fn go_back(ports: &Ports, context: &JobContext, cause: &str) -> Result<(), StepError> {
    let now = ports.clock.now();
    let (job_id, id) = (&context.job.job_id, &context.server.source_server_id);
    repo::update_server(ports, id, |server| {
        if server.launched_instance.as_ref().is_some_and(|l| l.job_id == *job_id) {
            server.launched_instance.clone_from(&context.work.replaces);
        }
        if server.internal.active_job.as_ref() == Some(job_id) {
            let result = json!({"jobID": job_id, "launchStatus": LaunchStatus::Failed, "error": cause});
            events::record(server, now, EventType::LaunchResult, result);
        }
        Ok::<_, StepError>(())
    })
    .await?;
    jobs::release(ports, job_id, id).await?;
    repo::update_job(ports, job_id, |job| {
        if let Some(participant) = job.participant_mut(id).filter(|p| !p.launch_status.is_over()) {
            participant.launch_status = LaunchStatus::Failed;
        }
        end_if_over(job, now);
        Ok::<_, PortError>(())
    })
    .await?;
    Ok(())
}

/// Which entry of MGN's log tells where the launch failed.
fn failure_event(context: &JobContext) -> JobLogEvent {
    let work = &context.work;
    if work.snapshots.is_empty() {
        JobLogEvent::SnapshotFail
    } else if work.conversion_done {
        JobLogEvent::LaunchFailed
    } else {
        JobLogEvent::ConversionFail
    }
}

/// What the Catch of the state machine put into `error`.
pub(super) fn cause_of(state: &State) -> String {
    let text = |name: &str| -> Option<String> {
        state.members.get("error").and_then(|e| e.get(name)).and_then(|v| v.as_str()).map(str::to_owned)
    };
    match (text("Error"), text("Cause")) {
        // Step Functions gives no cause for it.
        (Some(error), _) if error == "States.HeartbeatTimeout" => format!(
            "{error}: no checkpoint was made, and nothing is heard of the agent or its replication server: see that both run and \
             reach each other (`rehost server show`)"
        ),
        (Some(error), Some(cause)) if !cause.is_empty() => format!("{error}: {cause}"),
        (Some(error), _) => error,
        _ if state.members.get("status").and_then(|s| s.as_str()) == Some("STOPPED") => {
            "the server was disconnected meanwhile".to_owned()
        }
        _ => "the state machine gave no reason".to_owned(),
    }
}

pub(super) fn end_if_over(job: &mut Job, now: rehost_model::Timestamp) {
    if job.complete_if_over(now) {
        jobs::log(job, now, JobLogEvent::JobEnd, JobLogEventData::default());
    }
}

/// The instance and volumes of an earlier launch, which this one took the place of.
async fn remove_replaced(ports: &Ports, context: &JobContext) -> Result<(), StepError> {
    let Some(replaced) = &context.work.replaces else {
        return Ok(());
    };
    remove_instance(ports, &context.server.source_server_id, replaced.ec2_instance_id.as_str()).await
}

/// Removes an instance and the volumes that its job made for it.
pub(super) async fn remove_instance(ports: &Ports, id: &ServerId, instance: &str) -> Result<(), StepError> {
    let entries = ledger::entries(ports, id).await?;
    let job = entries.iter().find(|e| e.resource.as_deref() == Some(instance)).and_then(|e| e.job.clone());
    match job {
        Some(job) => remove_of_job(ports, id, &job).await,
        None => Ok(()),
    }
}

/// Removes everything that a job made for a server.
async fn remove_of_job(ports: &Ports, id: &ServerId, job: &JobId) -> Result<(), StepError> {
    let entries = ledger::entries(ports, id).await?;
    let mine = entries.into_iter().filter(|e| e.job.as_ref() == Some(job) && e.purpose != Purpose::Staging);
    Ok(ledger::remove(ports, mine.collect()).await?)
}

/// Publishes the transition of a job among the events of a server.
pub(super) async fn tell(
    ports: &Ports,
    id: &ServerId,
    job: &JobId,
    status: JobStatus,
    launch_status: Option<LaunchStatus>,
) -> Result<(), StepError> {
    let now = ports.clock.now();
    repo::update_server(ports, id, |server| {
        let data = json!({"jobID": job, "status": status, "launchStatus": launch_status});
        events::record_once(server, now, EventType::JobChange, data);
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}
