//! What nobody reports: an agent that is not heard of any more, and a replication server that died or is too old.

use rehost_model::replication::DataReplicationState;
use rehost_model::replicator::ReplicationServer;
use rehost_model::{SourceServer, Timestamp};

use crate::ports::{InstanceState, PortResult, Ports};
use crate::steps::replicator;
use crate::{PortError, jobs, observe, repo};

/// A replication server that was silent at so many checks in a row, and for as long as that is at least, is replaced.
const MISSED_CHECKS: u32 = 10;
const REPLICATOR_SILENT_MS: u64 = 5 * 60 * 1000;

const DAY_MS: u64 = 24 * 3_600_000;

/// Marks servers STALLED whose agent has been silent for too long. To be called every half minute or so.
///
/// # Errors
/// Those of the store.
pub async fn check_agents(ports: &Ports) -> PortResult<()> {
    let now = ports.clock.now();
    for server in repo::list::<SourceServer>(ports, "").await? {
        if !is_silent(&server, now) {
            continue;
        }
        repo::update_server(ports, &server.source_server_id, |server| {
            observe::refresh(server, now);
            Ok::<_, PortError>(())
        })
        .await?;
    }
    Ok(())
}

fn is_silent(server: &SourceServer, now: Timestamp) -> bool {
    let state = server.data_replication_info.data_replication_state;
    state.is_active() && !observe::is_heard(server, now) && !server.is_leaving()
}

/// Replaces replication servers that are gone, silent or too old: whom they serve gets another one, with the same volumes. Carries on
/// with replacements, and with disks that came or grew, where a crash cut them off. To be called every half minute or so.
///
/// # Errors
/// Those of the ports.
pub async fn check_replicators(ports: &Ports) -> PortResult<()> {
    for replicator in repo::list::<ReplicationServer>(ports, "").await? {
        if is_dead(ports, &replicator).await? {
            replace(ports, &replicator).await?;
        }
    }
    rotate(ports).await?;
    for server in repo::list::<SourceServer>(ports, "").await? {
        if !server.is_leaving() {
            jobs::start_provision(ports, &server).await?;
        }
    }
    Ok(())
}

/// Replaces a replication server that has become too old, one at a time, and only while whom it serves can do without for the
/// minutes that it takes: their agents wait, and note what changes.
async fn rotate(ports: &Ports) -> PortResult<()> {
    let servers: Vec<SourceServer> = repo::list(ports, "").await?;
    let is_moving = |s: &SourceServer| s.internal.former_replicator.is_some() || s.internal.provisioning.is_some();
    if servers.iter().any(is_moving) {
        return Ok(());
    }
    let now = ports.clock.now();
    for replicator in repo::list::<ReplicationServer>(ports, "").await? {
        let served: Vec<_> =
            servers.iter().filter(|s| s.internal.replicator.as_ref() == Some(&replicator.id)).collect();
        if is_too_old(&replicator, &served, now) && served.iter().all(|server| can_wait(server)) {
            tracing::info!(replicator = %replicator.id, "the replication server is replaced because of its age");
            return replace(ports, &replicator).await;
        }
    }
    Ok(())
}

fn is_too_old(replicator: &ReplicationServer, served: &[&SourceServer], now: Timestamp) -> bool {
    let days = served.iter().map(|s| s.internal.replication.settings.replication_server_rotation_days);
    let Some(days) = days.filter(|days| *days > 0).min() else { return false };
    let age_ms = replicator.launched_at.map_or(0, |launched| now.ms_since(launched));
    !replicator.draining && age_ms > days.saturating_mul(DAY_MS)
}

fn can_wait(server: &SourceServer) -> bool {
    let follows = server.data_replication_info.data_replication_state == DataReplicationState::Continuous;
    follows && server.internal.active_job.is_none() && !server.internal.checkpoint.is_awaited() && !server.is_leaving()
}

async fn is_dead(ports: &Ports, replicator: &ReplicationServer) -> PortResult<bool> {
    // While it is being launched for the first time, the initiation looks after it.
    let (Some(instance), Some(last_seen)) = (&replicator.instance, replicator.last_seen) else { return Ok(false) };
    let machine = ports.compute.instance(instance).await?;
    if machine.is_none_or(|machine| matches!(machine.state, InstanceState::Terminated | InstanceState::Stopped)) {
        return Ok(true);
    }
    if ports.clock.now().ms_since(last_seen) < REPLICATOR_SILENT_MS {
        return Ok(false);
    }
    // Counted, since a service that was away itself has heard of nobody.
    let (counted, ()) = repo::update_replicator(ports, &replicator.id, |replicator| {
        replicator.missed_checks = replicator.missed_checks.saturating_add(1);
        Ok(())
    })
    .await?;
    Ok(counted.missed_checks >= MISSED_CHECKS)
}

/// Its machine goes first: two that write to one volume would ruin it.
async fn replace(ports: &Ports, replicator: &ReplicationServer) -> PortResult<()> {
    repo::update_replicator(ports, &replicator.id, |replicator| {
        replicator.draining = true;
        Ok(())
    })
    .await?;
    if let Some(instance) = &replicator.instance {
        ports.compute.terminate_instance(instance).await?;
    }
    let now = ports.clock.now();
    for server in repo::list::<SourceServer>(ports, "").await? {
        if server.internal.replicator.as_ref() != Some(&replicator.id) || server.is_leaving() {
            continue;
        }
        let (server, ()) = repo::update_server(ports, &server.source_server_id, |server| {
            if server.internal.replicator.as_ref() == Some(&replicator.id) {
                replicator::give_up(server);
                server.initiate_again(now);
                observe::refresh(server, now);
            }
            Ok::<_, PortError>(())
        })
        .await?;
        jobs::start_provision(ports, &server).await?;
    }
    Ok(())
}
