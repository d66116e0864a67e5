//! A cutover is a transaction. Before its snapshot: the copy catches up with the source (drain), and, if the server is so set,
//! the source's quiesce scripts run and it is kept from changing (fence). Whatever fails afterwards takes the fence away.
//!
//! The fence is named by the job. It is asked for with the agent's directive and reported back with its polls; so each of these
//! steps may run twice, late, or after a crash.

use rehost_model::link::{FenceId, FenceState};
use rehost_model::replication::DataReplicationState;
use rehost_model::{JobId, ServerId, SourceServer, Timestamp};

use super::{Answer, JobContext, State, StepError, done, in_progress, stopped};
use crate::ports::Ports;
use crate::repo;

/// How long the copy may take to catch up before the cutover is given up; milliseconds.
const DRAIN_LIMIT_MS: u64 = 60 * 60 * 1000;

/// How long the quiesce scripts may take together, beside what is allowed to each; milliseconds.
const FENCE_LIMIT_MS: u64 = 10 * 60 * 1000;

/// How long a failed cutover waits for the source to say that it is open again; milliseconds.
const UNFENCE_LIMIT_MS: u64 = 10 * 60 * 1000;

/// Drains, then fences; a test needs neither.
pub(super) async fn prepare(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load_unfinished(ports, state).await?;
    if context.server.is_leaving() || !context.server.data_replication_info.data_replication_state.is_active() {
        return stopped();
    }
    if !context.is_cutover() {
        return done();
    }
    if context.work.fence_asked.is_none() && !is_drained(&context.server, ports.clock.now()) {
        return drain(ports, &context).await;
    }
    if context.server.internal.launch.quiesce { fence(ports, &context).await } else { done() }
}

/// A source that goes on writing is never quite caught up with: what is newer than the newest continuous checkpoints may, travels
/// with the checkpoint of the snapshot.
fn is_drained(server: &SourceServer, now: Timestamp) -> bool {
    use DataReplicationState as S;
    let internal = &server.internal;
    let heard = server.life_cycle.last_seen_by_service_date_time;
    let lag_ms = internal.observed.lag_ms.and_then(|_| internal.observed.lag_ms_at(now, heard, None)).unwrap_or(0);
    let follows = matches!(server.data_replication_info.data_replication_state, S::Continuous | S::CreatingSnapshot);
    follows && lag_ms <= internal.checkpoints.interval_ms.saturating_mul(2)
}

async fn drain(ports: &Ports, context: &JobContext) -> Answer {
    let now = ports.clock.now();
    let since = context.work.drain_began.unwrap_or(now);
    if now.ms_since(since) > DRAIN_LIMIT_MS {
        return Err(StepError::new("NotDrained", not_drained(&context.server)));
    }
    context.record(ports, None, |work| _ = work.drain_began.get_or_insert(now)).await?;
    in_progress(ports.polling.patience(now.ms_since(since), 1))
}

fn not_drained(server: &SourceServer) -> String {
    let info = &server.data_replication_info;
    let state = info.data_replication_state.as_str();
    let reason = info.data_replication_error.as_ref().map_or_else(
        || "the source writes faster than it is replicated; cut over at a quieter time, or quiesce it".to_owned(),
        |error| error.raw_error.clone(),
    );
    format!("the copy did not catch up within {} minutes and is {state}: {reason}", DRAIN_LIMIT_MS / 60_000)
}

async fn fence(ports: &Ports, context: &JobContext) -> Answer {
    let (job, id) = (&context.job.job_id, &context.server.source_server_id);
    let now = ports.clock.now();
    let since = context.work.fence_asked.unwrap_or(now);
    // The job knows of it first: who undoes the job must know that there is a fence to be lifted.
    context.record(ports, None, |work| _ = work.fence_asked.get_or_insert(now)).await?;
    let (server, ()) = repo::update_server(ports, id, |server| {
        if server.internal.fence != Some(name(job)) {
            server.internal.fence = Some(name(job));
            server.internal.fence_broken = false;
        }
        Ok::<_, StepError>(())
    })
    .await?;
    match &server.internal.observed.fence {
        FenceState::Fenced { fence } if *fence == name(job) => done(),
        FenceState::Failed { fence, reason } if *fence == name(job) => {
            Err(StepError::new("QuiesceFailed", format!("the source could not be quiesced: {reason}")))
        }
        _ if now.ms_since(since) > fence_limit_ms(&server) => {
            let minutes = fence_limit_ms(&server) / 60_000;
            let message = format!(
                "the source was not quiesced within {minutes} minutes; see `rehost-agent status` there for the script that runs"
            );
            Err(StepError::new("QuiesceTimeout", message))
        }
        _ => in_progress(1),
    }
}

fn fence_limit_ms(server: &SourceServer) -> u64 {
    FENCE_LIMIT_MS.saturating_add(server.internal.checkpoints.hook_timeout_ms.saturating_mul(4))
}

fn name(job: &JobId) -> FenceId {
    FenceId(job.to_string())
}

/// Just before the commit: a source that was in use meanwhile has what the copy lacks.
pub(super) fn check_fence(server: &SourceServer, job: &JobId) -> Result<(), StepError> {
    let internal = &server.internal;
    if internal.fence.as_ref() != Some(&name(job)) {
        return Ok(());
    }
    let is_fenced = matches!(&internal.observed.fence, FenceState::Fenced { fence } if *fence == name(job));
    if is_fenced && !internal.fence_broken {
        return Ok(());
    }
    let reason = match &internal.observed.fence {
        FenceState::Failed { reason, .. } => format!(": {reason}"),
        _ => String::new(),
    };
    let message = format!("the source did not stay quiesced until the copy was verified{reason}; cut over again");
    Err(StepError::new("FenceLost", message))
}

/// Lifts the job's fence, if there is one.
pub(super) async fn lift_fence(ports: &Ports, id: &ServerId, job: &JobId) -> Result<(), StepError> {
    repo::update_server(ports, id, |server| {
        if server.internal.fence == Some(name(job)) {
            server.internal.fence = None;
        }
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}

/// Whether the source is in use again after a failed cutover.
pub(super) enum Opened {
    Yes,
    NotYet,
    /// It has not said so for long; what to do.
    Unconfirmed(String),
}

/// What the source says of the job's fence, which was lifted at `since`.
pub(super) async fn opened(ports: &Ports, context: &JobContext, since: Timestamp) -> Result<Opened, StepError> {
    if context.work.fence_asked.is_none() {
        return Ok(Opened::Yes);
    }
    let server = repo::server(ports, &context.server.source_server_id).await?;
    match &server.internal.observed.fence {
        FenceState::Closing { fence } | FenceState::Fenced { fence } | FenceState::Failed { fence, .. }
            if *fence == name(&context.job.job_id) => {}
        _ => return Ok(Opened::Yes),
    }
    if ports.clock.now().ms_since(since) <= UNFENCE_LIMIT_MS {
        return Ok(Opened::NotYet);
    }
    let minutes = UNFENCE_LIMIT_MS / 60_000;
    Ok(Opened::Unconfirmed(format!(
        "the source has not confirmed within {minutes} minutes that it is in use again; run `rehost-agent unfence` there"
    )))
}
