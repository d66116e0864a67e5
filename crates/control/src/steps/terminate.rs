//! Terminates a launched instance and deletes its volumes.

use rehost_model::job::{JobLogEvent, JobLogEventData, JobStatus, LaunchStatus};
use rehost_model::{InstanceId, Job, JobId, ServerId};

use super::job::{end_if_over, remove_instance, tell};
use super::{Answer, State, StepError, done};
use crate::ports::Ports;
use crate::{PortError, jobs, repo};

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let (job, server) = (job_of(ports, state).await?, state.server(ports).await?);
    let (job_id, id) = (&job.job_id, &server.source_server_id);
    if job.status == JobStatus::Pending {
        tell(ports, id, job_id, JobStatus::Started, None).await?;
    }
    for instance in &server.internal.terminating {
        start(ports, job_id, id, instance).await?;
        remove_instance(ports, id, instance.as_str()).await?;
        repo::update_server(ports, id, |server| {
            server.internal.terminating.retain(|i| i != instance);
            Ok::<_, StepError>(())
        })
        .await?;
    }
    let now = ports.clock.now();
    repo::update_job(ports, job_id, |job| {
        if let Some(participant) = job.participant_mut(id) {
            participant.launch_status = LaunchStatus::Terminated;
        }
        let data = JobLogEventData { source_server_id: Some(id.clone()), ..JobLogEventData::default() };
        jobs::log(job, now, JobLogEvent::CleanupEnd, data);
        end_if_over(job, now);
        Ok::<_, PortError>(())
    })
    .await?;
    done()
}

async fn job_of(ports: &Ports, state: &State) -> Result<Job, StepError> {
    Ok(repo::load(ports, state.job_id()?.as_str()).await?)
}

async fn start(ports: &Ports, job: &JobId, id: &ServerId, instance: &InstanceId) -> Result<(), StepError> {
    let now = ports.clock.now();
    let data = JobLogEventData {
        source_server_id: Some(id.clone()),
        target_instance_id: Some(instance.clone()),
        ..JobLogEventData::default()
    };
    repo::update_job(ports, job, |job| {
        if job.status == JobStatus::Pending {
            job.status = JobStatus::Started;
        }
        if let Some(participant) = job.participant_mut(id)
            && participant.launch_status == LaunchStatus::Pending
        {
            participant.launch_status = LaunchStatus::InProgress;
        }
        jobs::log(job, now, JobLogEvent::JobStart, JobLogEventData::default());
        jobs::log(job, now, JobLogEvent::CleanupStart, data.clone());
        Ok::<_, PortError>(())
    })
    .await?;
    Ok(())
}
