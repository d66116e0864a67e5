//! Terminates a launched instance and deletes its volumes.

use rehost_model::job::{JobLogEvent, JobLogEventData, JobStatus, LaunchStatus};

use super::job::{end_if_over, remove_instance, tell};
use super::{Answer, JobContext, State, StepError, done};
use crate::ports::Ports;
use crate::{PortError, jobs, repo};

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load(ports, state).await?;
    let (job_id, id) = (&context.job.job_id, &context.server.source_server_id);
    if context.job.status == JobStatus::Pending {
        tell(ports, id, job_id, JobStatus::Started, None).await?;
    }
    start(ports, &context).await?;
    if let Some(instance) = &context.work.instance {
        remove_instance(ports, id, instance.as_str()).await?;
        repo::update_server(ports, id, |server| {
            if server.launched_instance.as_ref().is_some_and(|l| l.ec2_instance_id == *instance) {
                server.launched_instance = None;
            }
            Ok::<_, StepError>(())
        })
        .await?;
    }
    let now = ports.clock.now();
    repo::update_job(ports, job_id, |job| {
        if let Some(participant) = job.participant_mut(id) {
            participant.launch_status = LaunchStatus::Terminated;
        }
        jobs::log(job, now, JobLogEvent::CleanupEnd, context.event_data());
        end_if_over(job, now);
        Ok::<_, PortError>(())
    })
    .await?;
    done()
}

async fn start(ports: &Ports, context: &JobContext) -> Result<(), StepError> {
    let now = ports.clock.now();
    let data = JobLogEventData { target_instance_id: context.work.instance.clone(), ..context.event_data() };
    repo::update_job(ports, &context.job.job_id, |job| {
        if job.status == JobStatus::Pending {
            job.status = JobStatus::Started;
        }
        if let Some(participant) = job.participant_mut(&context.server.source_server_id)
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
