//! Ends the replication of a server and removes everything it used; what was cut over becomes the user's.

use rehost_model::ledger::{LedgerEntry, Purpose};
use rehost_model::replication::DataReplicationState;
use rehost_model::replicator::ReplicationServer;
use rehost_model::server::CheckpointProgress;
use rehost_model::snapshot::SnapshotSet;
use rehost_model::{ReplicatorId, SourceServer, Timestamp};

use super::{Answer, State, StepError, done, in_progress};
use crate::ports::Ports;
use crate::{PortError, ledger, repo};

/// How long the agent may take to confirm that it stopped, before its volumes go anyway; milliseconds.
const AGENT_LIMIT_MS: u64 = 20_000;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let server = state.server(ports).await?;
    let began = begin(ports, &server).await?;
    let waited_ms = ports.clock.now().ms_since(began);
    if !server.internal.agent_stopped && waited_ms < AGENT_LIMIT_MS && is_heard_of(&server, ports.clock.now()) {
        return in_progress(1);
    }
    leave_replicator(ports, &server).await?;
    remove_resources(ports, &server).await?;
    forget_snapshots(ports, &server).await?;
    repo::update_server(ports, &server.source_server_id, |server| {
        let internal = &mut server.internal;
        internal.staging.iter_mut().for_each(|disk| {
            disk.volume = None;
            disk.attached = false;
        });
        internal.replicator = None;
        internal.paired_volumes.clear();
        internal.checkpoint = CheckpointProgress::default();
        internal.replicator_connected = false;
        internal.step_started = None;
        (internal.received_bytes, internal.synced_bytes) = (0, 0);
        let info = &mut server.data_replication_info;
        info.data_replication_state = DataReplicationState::Disconnected;
        info.data_replication_error = None;
        info.replicator_id = None;
        Ok::<_, StepError>(())
    })
    .await?;
    done()
}

/// Marks the beginning; the time of it.
async fn begin(ports: &Ports, server: &SourceServer) -> Result<Timestamp, StepError> {
    let now = ports.clock.now();
    let (_, began) = repo::update_server(ports, &server.source_server_id, |server| {
        server.request_disconnect();
        Ok::<_, StepError>(*server.internal.step_started.get_or_insert(now))
    })
    .await?;
    Ok(began)
}

/// An agent that has not reported lately will not confirm anything.
fn is_heard_of(server: &SourceServer, now: Timestamp) -> bool {
    let last = server.life_cycle.last_seen_by_service_date_time;
    last.is_some_and(|seen| now.ms_since(seen) < AGENT_LIMIT_MS)
}

async fn leave_replicator(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    let Some(id) = &server.internal.replicator else {
        return Ok(());
    };
    let Some((replicator, _)) = repo::find::<ReplicationServer>(ports, id.as_str()).await? else {
        return Ok(());
    };
    for assignment in replicator.assignments.iter().filter(|a| a.server == server.source_server_id) {
        if let Some(instance) = &replicator.instance {
            ports.compute.detach_volume(&assignment.volume, instance).await?;
        }
    }
    let (replicator, ()) = repo::update_replicator(ports, id, |replicator| {
        replicator.assignments.retain(|a| a.server != server.source_server_id);
        // From here on nobody joins it, so that it can go without taking a newcomer's volumes with it.
        replicator.draining |= replicator.assignments.is_empty();
        Ok(())
    })
    .await?;
    if replicator.assignments.is_empty() {
        remove_replicator(ports, id, &replicator).await?;
    }
    Ok(())
}

async fn remove_replicator(ports: &Ports, id: &ReplicatorId, replicator: &ReplicationServer) -> Result<(), PortError> {
    if let Some(instance) = &replicator.instance {
        ports.compute.terminate_instance(instance).await?;
    }
    repo::remove::<ReplicationServer>(ports, id.as_str()).await
}

/// Staging, conversion and test resources go; a cutover instance and its volumes are only struck out of the ledger.
async fn remove_resources(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    let entries = ledger::entries(ports, &server.source_server_id).await?;
    let (users, ours): (Vec<LedgerEntry>, Vec<_>) = entries.into_iter().partition(|e| e.purpose == Purpose::Cutover);
    ledger::remove(ports, ours).await?;
    for entry in &users {
        ledger::strike_out(ports, entry).await?;
    }
    Ok(())
}

async fn forget_snapshots(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    for set in repo::list::<SnapshotSet>(ports, &format!("{}/", server.source_server_id)).await? {
        repo::remove::<SnapshotSet>(ports, &format!("{}/{}", set.server, set.execution)).await?;
    }
    Ok(())
}
