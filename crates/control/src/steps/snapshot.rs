//! A snapshot of a server at a checkpoint: ask for the checkpoint and wait by task token until the replicator holds the volumes
//! still at it (`request-checkpoint`); then take the snapshots, end the hold, and count them only if the hold lasted (`snapshot`).

mod checkpoint;

use rehost_model::ledger::{Purpose, ResourceKind};
use rehost_model::replication::{DataReplicationError, DataReplicationErrorString};
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{Epoch, ServerId, SnapshotId, SourceServer};
use serde_json::json;

pub(super) use checkpoint::request;
pub(crate) use checkpoint::{on_report, tick};

use super::{Answer, State, StepError, VISIBLE_AFTER_MS, in_progress, stopped};
use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, ExecutionStatus, PortResult, Ports, SnapshotState, TaskOutcome};
use crate::retention::{self, Kept};
use crate::{PortError, PortErrorKind, manifest, repo};

/// How long a snapshot may take, the wait for its checkpoint included; milliseconds.
const LIMIT_MS: u64 = 6 * 3600 * 1000;

/// How long to wait until snapshots are asked for again that the region refused to make at present; seconds. EC2 makes one of a
/// volume in fifteen seconds at most.
const THROTTLED_SECONDS: u64 = 15;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let server = state.server(ports).await?;
    if is_stopped(&server) {
        return stopped();
    }
    let set = find_or_request(ports, state, &server).await?;
    if ports.clock.now().ms_since(set.created) > LIMIT_MS && set.state != SnapshotSetState::Launchable {
        return Err(timed_out(&server));
    }
    match set.state {
        SnapshotSetState::Requested => {
            // Usually the task before this one waited for it.
            checkpoint::advance(ports, &server, set, false).await?;
            in_progress(1)
        }
        SnapshotSetState::Pending => take_snapshots(ports, &server, set).await,
        SnapshotSetState::Confirming => confirm(ports, &server, set).await,
        SnapshotSetState::Failed => {
            request_again(ports, &server, &set).await?;
            Ok(json!({"status": "AGAIN", "waitSeconds": 1}))
        }
        SnapshotSetState::Launchable => {
            retain(ports, &server).await?;
            Ok(
                json!({"status": "DONE", "snapshots": set.snapshots, "epoch": set.epoch, "consistency": set.consistency}),
            )
        }
    }
}

fn is_stopped(server: &SourceServer) -> bool {
    server.is_leaving() || !server.data_replication_info.data_replication_state.is_active()
}

fn timed_out(server: &SourceServer) -> StepError {
    let reason = server.data_replication_info.data_replication_error.as_ref().map(|e| e.raw_error.clone());
    let reason = reason.unwrap_or_else(|| "the agent did not reach the checkpoint".to_owned());
    StepError::new("SnapshotTimeout", format!("no snapshot within {} hours: {reason}", LIMIT_MS / 3_600_000))
}

async fn find_or_request(ports: &Ports, state: &State, server: &SourceServer) -> Result<SnapshotSet, StepError> {
    let execution = state.execution()?;
    let id = format!("{}/{execution}", server.source_server_id);
    if let Some((set, _)) = repo::find::<SnapshotSet>(ports, &id).await? {
        return Ok(set);
    }
    let epoch = request_checkpoint(ports, server).await?;
    let set = SnapshotSet::requested(server.source_server_id.clone(), execution, epoch, ports.clock.now());
    repo::create(ports, &set).await?;
    Ok(set)
}

async fn request_checkpoint(ports: &Ports, server: &SourceServer) -> Result<Epoch, StepError> {
    let requested = repo::update_server(ports, &server.source_server_id, |server| {
        let checkpoint = &mut server.internal.checkpoint;
        checkpoint.requested = checkpoint.requested.max(checkpoint.reached).next();
        Ok::<_, StepError>(checkpoint.requested)
    });
    requested.await.map(|(_, epoch)| epoch)
}

/// Whether another execution still waits for the hold at `held`. One that was asked for and then forgotten (its execution
/// was cut off in between) would only be in the way until it times out.
async fn is_wanted(ports: &Ports, mine: &SnapshotSet, held: Epoch) -> Result<bool, StepError> {
    let sets = sets_of(ports, &mine.server).await?;
    let waits = |set: &SnapshotSet| matches!(set.state, SnapshotSetState::Requested | SnapshotSetState::Pending);
    Ok(sets.iter().any(|set| waits(set) && set.epoch <= held && set.execution != mine.execution))
}

async fn take_snapshots(ports: &Ports, server: &SourceServer, set: SnapshotSet) -> Answer {
    let snapshots = match take(ports, server, &set).await {
        // Another snapshot of a volume is still being made, or was just made: that passes, and the hold ends by itself meanwhile.
        Err(error) if error.kind == PortErrorKind::Throttled => return in_progress(THROTTLED_SECONDS),
        other => other?,
    };
    // Asked after they were taken, and before the hold is released: so whoever is cut off here finds the same once more.
    let checkpoint = repo::server(ports, &server.source_server_id).await?.internal.checkpoint;
    let ended_early = checkpoint.released >= set.epoch || checkpoint.expired >= set.epoch;
    let volumes: Vec<_> = server.internal.staging.iter().filter_map(|disk| disk.volume.clone()).collect();
    move_set(ports, &set, |set| {
        set.snapshots.clone_from(&snapshots);
        set.volumes.clone_from(&volumes);
        set.state = if ended_early { SnapshotSetState::Failed } else { SnapshotSetState::Confirming };
    })
    .await?;
    // What is written from now on is not in them.
    release_hold(ports, server, set.epoch).await?;
    in_progress(1)
}

async fn take(ports: &Ports, server: &SourceServer, set: &SnapshotSet) -> PortResult<Vec<SnapshotId>> {
    let volumes: Vec<_> = server.internal.staging.iter().filter_map(|disk| disk.volume.clone()).collect();
    let token = snapshot_token(set);
    let planned = Planned {
        server: &server.source_server_id,
        kind: ResourceKind::Snapshot,
        purpose: Purpose::Staging,
        job: None,
        token: &token,
        // Only what changed is paid for, which EC2 alone knows.
        billed: None,
    };
    let tags = planned.tags();
    let mut taken = Vec::new();
    let create = async {
        taken = ports.compute.create_snapshots(&volumes, &tags, &token).await?;
        Ok(taken.iter().map(SnapshotId::as_str).collect::<Vec<_>>().join(","))
    };
    ledger::make(ports, &planned, create).await?;
    Ok(taken)
}

fn snapshot_token(set: &SnapshotSet) -> ClientToken {
    ClientToken::derive(&[set.execution.0.as_str(), "snapshot", &set.epoch.to_string()])
}

/// Ends the hold at `epoch`, if it has not ended yet.
async fn release_hold(ports: &Ports, server: &SourceServer, epoch: Epoch) -> Result<(), StepError> {
    let released = repo::update_server(ports, &server.source_server_id, |server| {
        let checkpoint = &mut server.internal.checkpoint;
        checkpoint.released = checkpoint.released.max(epoch);
        Ok::<_, StepError>(())
    });
    released.await.map(|_| ())
}

/// The replicator has the last word: it says that the hold ended because it was released, not because it timed out.
async fn confirm(ports: &Ports, server: &SourceServer, set: SnapshotSet) -> Answer {
    let checkpoint = &server.internal.checkpoint;
    if checkpoint.expired >= set.epoch {
        move_set(ports, &set, |set| set.state = SnapshotSetState::Failed).await?;
        return in_progress(0);
    }
    if checkpoint.held.is_some_and(|held| held <= set.epoch) {
        if checkpoint.released < set.epoch {
            release_hold(ports, server, set.epoch).await?;
        }
        return in_progress(1);
    }
    let now = ports.clock.now();
    if !are_complete(ports, &set).await? {
        return in_progress(ports.polling.patience(now.ms_since(set.created), 1));
    }
    // First the server, once: whoever is cut off in between comes here again.
    repo::update_server(ports, &server.source_server_id, |server| {
        let last = &mut server.data_replication_info.last_snapshot_date_time;
        if last.is_none_or(|last| last < set.created) {
            *last = Some(now);
        }
        if server.internal.snapshot_error.take().is_some() {
            server.data_replication_info.data_replication_error = None;
        }
        Ok::<_, StepError>(())
    })
    .await?;
    move_set(ports, &set, |set| set.state = SnapshotSetState::Launchable).await?;
    in_progress(0)
}

async fn are_complete(ports: &Ports, set: &SnapshotSet) -> Result<bool, StepError> {
    for snapshot in &set.snapshots {
        let state = match ports.compute.snapshot_state(snapshot).await {
            Err(error) if error.is_not_found() && is_new(ports, set).await? => SnapshotState::Pending,
            state => state?,
        };
        match state {
            SnapshotState::Completed => {}
            SnapshotState::Pending => return Ok(false),
            SnapshotState::Failed => {
                move_set(ports, set, |set| set.state = SnapshotSetState::Failed).await?;
                return Err(StepError::new("SnapshotFailed", format!("the snapshot {snapshot} failed; try again")));
            }
        }
    }
    Ok(true)
}

/// Whether the snapshots of a set were taken just now, so that what is not seen may be on its way.
async fn is_new(ports: &Ports, set: &SnapshotSet) -> Result<bool, StepError> {
    let (token, now) = (snapshot_token(set), ports.clock.now());
    let entries = ledger::entries(ports, &set.server).await?;
    let taken = entries.iter().find(|entry| entry.token == token.as_str()).map(|entry| entry.created);
    Ok(taken.is_some_and(|taken| now.ms_since(taken) < VISIBLE_AFTER_MS))
}

/// The hold ended too early: what was taken goes, and another checkpoint is asked for.
async fn request_again(ports: &Ports, server: &SourceServer, set: &SnapshotSet) -> Result<SnapshotSet, StepError> {
    if set.state == SnapshotSetState::Failed {
        delete_snapshots(ports, set).await?;
    }
    let epoch = request_checkpoint(ports, server).await?;
    move_set(ports, set, |set| {
        set.snapshots.clear();
        set.volumes.clear();
        set.epoch = epoch;
        set.state = SnapshotSetState::Requested;
    })
    .await
}

/// How long to wait after a failure before another snapshot is tried; seconds.
const RETRY_SECONDS: u64 = 60;

/// The snapshot of an execution failed: what there is of it goes, the reason is shown on the server, and the next attempt
/// begins anew.
pub(super) async fn failed(ports: &Ports, state: &State) -> Answer {
    let server = state.server(ports).await?;
    if server.is_leaving() {
        return stopped();
    }
    discard(ports, state).await?;
    let raw_error = super::job::cause_of(state);
    let error = DataReplicationError { error: DataReplicationErrorString::LastSnapshotJobFailed, raw_error };
    repo::update_server(ports, &server.source_server_id, |server| {
        server.internal.snapshot_error = Some(error.clone());
        server.data_replication_info.data_replication_error = Some(error.clone());
        Ok::<_, StepError>(())
    })
    .await?;
    in_progress(super::provision::patience(ports, &server, RETRY_SECONDS))
}

/// Removes what an execution's snapshot came to, unless it can be launched from: then it is as good as any other.
pub(super) async fn discard(ports: &Ports, state: &State) -> Result<(), StepError> {
    let id = format!("{}/{}", state.server_id()?, state.execution()?);
    match repo::find::<SnapshotSet>(ports, &id).await? {
        Some((set, _)) if set.state != SnapshotSetState::Launchable => remove_set(ports, &set).await,
        _ => Ok(()),
    }
}

/// Removes a set with all that belongs to it. A hold that only it waited for ends, or does not begin.
async fn remove_set(ports: &Ports, set: &SnapshotSet) -> Result<(), StepError> {
    let may_hold = !matches!(set.state, SnapshotSetState::Launchable | SnapshotSetState::Failed);
    if may_hold && !is_wanted(ports, set, set.epoch).await? {
        match repo::find::<SourceServer>(ports, set.server.as_str()).await? {
            // Asked for before the server was installed anew: its number means something else now.
            Some((server, _)) if server.internal.checkpoint.requested < set.epoch => {}
            Some((server, _)) => release_hold(ports, &server, set.epoch).await?,
            None => {}
        }
    }
    delete_snapshots(ports, set).await?;
    manifest::remove(ports, set).await?;
    Ok(repo::remove::<SnapshotSet>(ports, &format!("{}/{}", set.server, set.execution)).await?)
}

/// The server's replication ends: its sets go, and whoever waits is told. The snapshots themselves went with the ledger.
pub(super) async fn forget(ports: &Ports, server: &ServerId) -> Result<(), StepError> {
    for set in sets_of(ports, server).await? {
        if let Some(token) = &set.token {
            checkpoint::report(ports, token, TaskOutcome::Success(json!({"status": "STOPPED"}))).await?;
        }
        manifest::remove(ports, &set).await?;
        repo::remove::<SnapshotSet>(ports, &format!("{}/{}", set.server, set.execution)).await?;
    }
    Ok(())
}

async fn change_set(
    ports: &Ports,
    set: &SnapshotSet,
    change: impl Fn(&mut SnapshotSet) + Send + Sync,
) -> Result<SnapshotSet, StepError> {
    let id = format!("{}/{}", set.server, set.execution);
    let (set, ()) = repo::update(ports, &id, |set: &mut SnapshotSet| {
        change(set);
        Ok::<_, PortError>(())
    })
    .await?;
    Ok(set)
}

/// As [`change_set`], for the next state of a set. Several may carry a set on at once: whoever finds it elsewhere than where it
/// was seen lets it be there.
async fn move_set(
    ports: &Ports,
    seen: &SnapshotSet,
    change: impl Fn(&mut SnapshotSet) + Send + Sync,
) -> Result<SnapshotSet, StepError> {
    let moved = change_set(ports, seen, |set| {
        if is_where(set, seen) {
            change(set);
        }
    });
    moved.await
}

/// Whether a set is where it was seen before.
fn is_where(set: &SnapshotSet, seen: &SnapshotSet) -> bool {
    (set.state, set.epoch) == (seen.state, seen.epoch)
}

async fn sets_of(ports: &Ports, server: &ServerId) -> Result<Vec<SnapshotSet>, PortError> {
    repo::list(ports, &format!("{server}/")).await
}

/// Deletes what the policy does not keep. Copies were made from clones, so nothing that runs depends on it; what an execution
/// that is under way took is its own.
async fn retain(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    let mut sets = sets_of(ports, &server.source_server_id).await?;
    sets.retain(|set| set.state == SnapshotSetState::Launchable);
    let kept: Vec<_> = sets.iter().map(|set| Kept { epoch: set.epoch, created: set.created }).collect();
    let policy = server.internal.replication.settings.retention;
    for index in retention::expendable(&kept, ports.clock.now(), policy) {
        let Some(set) = sets.get(index) else { continue };
        if ports.workflows.status(&set.execution).await? != Some(ExecutionStatus::Running) {
            remove_set(ports, set).await?;
        }
    }
    Ok(())
}

async fn delete_snapshots(ports: &Ports, set: &SnapshotSet) -> Result<(), StepError> {
    let token = snapshot_token(set);
    let entries = ledger::entries(ports, &set.server).await?;
    let mine = entries.into_iter().filter(|entry| entry.token == token.as_str()).collect();
    Ok(ledger::remove(ports, mine).await?)
}
