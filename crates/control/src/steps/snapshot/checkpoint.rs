//! Waiting for a checkpoint by task token.
//!
//! ```text
//!  request-checkpoint ──▶ Requested, with the token ──[the replicator holds the volumes]──▶ Pending ──▶ the token is told
//!                              ▲            │
//!                              └────────────┘ the hold was over before anybody noticed: another checkpoint
//! ```
//! Whoever learns of a hold first carries a set on: the replicator's report, or [`tick`], which repeats whatever was cut off in
//! between. Each part may run twice.

use rehost_model::replication::Consistency;
use rehost_model::server::CheckpointProgress;
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{Epoch, SourceServer, TaskToken};
use serde_json::json;

use super::super::{Answer, State, StepError, done, stopped};
use super::{change_set, find_or_request, is_wanted, is_where, release_hold, remove_set, request_again};
use crate::ports::{ExecutionStatus, Ports, TaskOutcome};
use crate::{PortError, PortErrorKind, repo};

/// How often a task that waits is told that agent and replicator are at work; milliseconds.
const HEARTBEAT_EVERY_MS: u64 = 20_000;

/// An agent that was silent for so long does not count as being at work; milliseconds.
const AGENT_SILENT_MS: u64 = 60_000;

/// The step `request-checkpoint`: asks for a checkpoint, and leaves the token where who learns of the hold finds it.
pub(in super::super) async fn request(ports: &Ports, state: &State) -> Answer {
    let token: TaskToken = state.member("token")?;
    let server = state.server(ports).await?;
    if let Some(outcome) = hindrance(&server) {
        report(ports, &token, outcome).await?;
        return stopped();
    }
    let set = find_or_request(ports, state, &server).await?;
    let set = match set.state {
        SnapshotSetState::Failed => request_again(ports, &server, &set).await?,
        _ => set,
    };
    let now = ports.clock.now();
    let set = change_set(ports, &set, |set| {
        set.token = Some(token.clone());
        set.heard_at = Some(now);
    })
    .await?;
    // It may be held since the server was read.
    let server = repo::server(ports, &server.source_server_id).await?;
    advance(ports, &server, set, false).await?;
    done()
}

/// What keeps a server from reaching a checkpoint, as the waiting task is told it.
fn hindrance(server: &SourceServer) -> Option<TaskOutcome> {
    if super::is_stopped(server) && !server.internal.paused {
        return Some(TaskOutcome::Success(json!({"status": "STOPPED"})));
    }
    server.internal.paused.then(|| TaskOutcome::Failure {
        error: "ReplicationPaused".to_owned(),
        cause: "the replication of the server is paused; resume it, then try again".to_owned(),
    })
}

/// After a report of the server's replicator: tells the tasks that wait what they wait for, or that it is being worked on.
pub(crate) async fn on_report(ports: &Ports, server: &SourceServer) -> Result<(), PortError> {
    if !server.internal.checkpoint.is_awaited() {
        return Ok(());
    }
    for set in repo::list::<SnapshotSet>(ports, &format!("{}/", server.source_server_id)).await? {
        if set.token.is_some() {
            advance(ports, server, set, true).await.map_err(as_port_error)?;
        }
    }
    Ok(())
}

/// Goes on with whatever was cut off: sets whose task was not told, and those whose execution is over. To be called every few
/// seconds. One that fails keeps no other from going on.
///
/// # Errors
/// The first of the ports' errors.
pub(crate) async fn tick(ports: &Ports) -> Result<(), PortError> {
    let mut first = Ok(());
    for set in repo::list::<SnapshotSet>(ports, "").await? {
        let ended = go_on(ports, set).await;
        first = first.and(ended.map_err(as_port_error));
    }
    first
}

async fn go_on(ports: &Ports, set: SnapshotSet) -> Result<(), StepError> {
    if set.state == SnapshotSetState::Launchable && set.token.is_none() {
        return Ok(());
    }
    let Some((server, _)) = repo::find::<SourceServer>(ports, set.server.as_str()).await? else {
        return Ok(());
    };
    let status = ports.workflows.status(&set.execution).await?;
    if status.is_some_and(|status| status != ExecutionStatus::Running) && set.state != SnapshotSetState::Launchable {
        // Since the set was read its execution may have come to a good end.
        return match read_again(ports, &set).await? {
            Some(set) if set.state != SnapshotSetState::Launchable => remove_set(ports, &set).await,
            _ => Ok(()),
        };
    }
    if set.token.is_some() { advance(ports, &server, set, false).await } else { Ok(()) }
}

/// Where the hold is that a set waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// The volumes are held at this checkpoint: the one that was asked for, or a later one.
    Here(Epoch),
    Coming,
    /// It was there and is over, or it never came about: it has to be asked for anew.
    Gone,
}

/// Where the hold is that somebody waits for who asked for the checkpoint `wanted`.
pub(super) fn hold(progress: &CheckpointProgress, wanted: Epoch) -> Hold {
    let over = progress.released.max(progress.expired);
    match progress.held.filter(|held| *held > over) {
        Some(held) if held >= wanted => Hold::Here(held),
        Some(_) => Hold::Coming,
        None if progress.requested > over.max(progress.reached) => Hold::Coming,
        None => Hold::Gone,
    }
}

/// Carries a set on as far as it goes. `heard`: agent and replicator were just heard of.
pub(super) async fn advance(
    ports: &Ports,
    server: &SourceServer,
    set: SnapshotSet,
    heard: bool,
) -> Result<(), StepError> {
    if let (Some(outcome), Some(token)) = (hindrance(server), &set.token) {
        report(ports, token, outcome).await?;
        return forget_token(ports, &set).await;
    }
    if set.state != SnapshotSetState::Requested {
        return tell(ports, &set).await;
    }
    match hold(&server.internal.checkpoint, set.epoch) {
        Hold::Here(held) => {
            let consistency = server.internal.checkpoint.consistency;
            let set = begin_snapshots(ports, &set, held, consistency).await?;
            tell(ports, &set).await
        }
        // It is gone, too, when whoever saw it is through with it since the set was read.
        Hold::Gone => match read_again(ports, &set).await? {
            Some(now) if is_where(&now, &set) => request_again(ports, server, &set).await.map(|_| ()),
            _ => Ok(()),
        },
        Hold::Coming => {
            make_way(ports, server, &set).await?;
            if heard { heartbeat(ports, server, &set).await } else { Ok(()) }
        }
    }
}

async fn read_again(ports: &Ports, set: &SnapshotSet) -> Result<Option<SnapshotSet>, PortError> {
    let found = repo::find::<SnapshotSet>(ports, &format!("{}/{}", set.server, set.execution)).await?;
    Ok(found.map(|(set, _)| set))
}

async fn begin_snapshots(
    ports: &Ports,
    set: &SnapshotSet,
    held: Epoch,
    consistency: Consistency,
) -> Result<SnapshotSet, StepError> {
    change_set(ports, set, |set| {
        if set.state == SnapshotSetState::Requested {
            set.epoch = held;
            set.consistency = consistency;
            set.state = SnapshotSetState::Pending;
        }
    })
    .await
}

/// A hold that nobody waits for (its execution was cut off) would be in the way until it times out.
async fn make_way(ports: &Ports, server: &SourceServer, set: &SnapshotSet) -> Result<(), StepError> {
    match server.internal.checkpoint.held {
        Some(held) if held < set.epoch && !is_wanted(ports, set, held).await? => {
            release_hold(ports, server, held).await
        }
        _ => Ok(()),
    }
}

/// Tells the task that waits that the volumes are held. Told twice it does not matter.
async fn tell(ports: &Ports, set: &SnapshotSet) -> Result<(), StepError> {
    let Some(token) = &set.token else { return Ok(()) };
    let answer = json!({"status": "DONE", "epoch": set.epoch, "consistency": set.consistency});
    report(ports, token, TaskOutcome::Success(answer)).await?;
    forget_token(ports, set).await
}

/// Whoever does not wait any more need not be told: its own clocks did that.
pub(super) async fn report(ports: &Ports, token: &TaskToken, outcome: TaskOutcome) -> Result<(), StepError> {
    match ports.workflows.report(token, outcome).await {
        Err(error) if !is_of_no_use(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn heartbeat(ports: &Ports, server: &SourceServer, set: &SnapshotSet) -> Result<(), StepError> {
    let (Some(token), now) = (&set.token, ports.clock.now()) else { return Ok(()) };
    let seen = server.life_cycle.last_seen_by_service_date_time;
    let at_work = server.internal.replicator_connected && seen.is_some_and(|seen| now.ms_since(seen) < AGENT_SILENT_MS);
    let recent = set.heard_at.is_some_and(|heard| now.ms_since(heard) < HEARTBEAT_EVERY_MS);
    if !at_work || recent {
        return Ok(());
    }
    match ports.workflows.heartbeat(token).await {
        Ok(()) => change_set(ports, set, |set| set.heard_at = Some(now)).await.map(|_| ()),
        Err(error) if is_of_no_use(&error) => forget_token(ports, set).await,
        Err(error) => Err(error.into()),
    }
}

async fn forget_token(ports: &Ports, set: &SnapshotSet) -> Result<(), StepError> {
    let told = set.token.clone();
    let forgotten = change_set(ports, set, |set| {
        // Another attempt may have left its own meanwhile.
        if set.token == told {
            set.token = None;
        }
    });
    match forgotten.await {
        // Who was told has removed it already.
        Err(error) if error.name == "NotFound" => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Nobody waits with that token, and nobody ever will.
fn is_of_no_use(error: &PortError) -> bool {
    matches!(error.kind, PortErrorKind::NotFound | PortErrorKind::Invalid)
}

fn as_port_error(error: StepError) -> PortError {
    let kind = match error.name.as_str() {
        "RetryableConflict" => PortErrorKind::Conflict,
        "RetryableThrottled" => PortErrorKind::Throttled,
        "NotFound" => PortErrorKind::NotFound,
        "Denied" => PortErrorKind::Denied,
        "QuotaExceeded" => PortErrorKind::Quota,
        "NoSpace" => PortErrorKind::Full,
        "Invalid" => PortErrorKind::Invalid,
        _ => PortErrorKind::Unavailable,
    };
    PortError::new(kind, error.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(requested: u64, reached: u64, held: Option<u64>, released: u64, expired: u64) -> CheckpointProgress {
        CheckpointProgress {
            requested: Epoch(requested),
            reached: Epoch(reached),
            held: held.map(Epoch),
            released: Epoch(released),
            expired: Epoch(expired),
            ..CheckpointProgress::default()
        }
    }

    #[test]
    fn a_hold_is_here_coming_or_gone() {
        let (here, coming, gone) = (|epoch| Hold::Here(Epoch(epoch)), Hold::Coming, Hold::Gone);
        for (progress, wanted, expected) in [
            (progress(5, 4, None, 4, 0), 5, coming),
            (progress(5, 5, Some(5), 4, 0), 5, here(5)),
            (progress(6, 6, Some(6), 4, 0), 5, here(6)),
            (progress(6, 5, Some(5), 4, 0), 6, coming),
            (progress(5, 5, Some(5), 5, 0), 5, gone),
            (progress(6, 5, Some(5), 5, 0), 6, coming),
            (progress(5, 5, None, 4, 0), 5, gone),
            (progress(5, 5, None, 5, 0), 5, gone),
            (progress(5, 5, None, 4, 5), 5, gone),
            (progress(6, 5, None, 4, 5), 5, coming),
            (progress(0, 0, None, 0, 0), 5, gone),
        ] {
            assert_eq!(hold(&progress, Epoch(wanted)), expected, "{progress:?} {wanted}");
        }
    }
}
