//! Ends the replication of a server and removes everything it used; what was cut over becomes the user's.

use rehost_model::ledger::{LedgerEntry, Purpose};
use rehost_model::observed::Observed;
use rehost_model::replication::DataReplicationState;
use rehost_model::server::CheckpointProgress;
use rehost_model::{JobId, SourceServer, Timestamp};

use super::{Answer, State, StepError, done, in_progress, replicator, snapshot};
use crate::ports::{Ports, Tags};
use crate::{ledger, repo};

/// How long the agent may take to confirm that it stopped, before its volumes go anyway; milliseconds.
const AGENT_LIMIT_MS: u64 = 20_000;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let server = state.server(ports).await?;
    let began = begin(ports, &server).await?;
    let waited_ms = ports.clock.now().ms_since(began);
    if !server.internal.agent_stopped && waited_ms < AGENT_LIMIT_MS && is_heard_of(&server, ports.clock.now()) {
        return in_progress(1);
    }
    replicator::leave_all(ports, &server).await?;
    remove_resources(ports, &server).await?;
    snapshot::forget(ports, &server.source_server_id).await?;
    if anything_is_left(ports, &server).await? {
        // A step of another execution was just making something when this one began.
        return in_progress(ports.polling.patience(waited_ms, 1));
    }
    repo::update_server(ports, &server.source_server_id, |server| {
        let internal = &mut server.internal;
        for disk in &mut internal.staging {
            disk.size_bytes = disk.grow_to.take().unwrap_or(disk.size_bytes);
            (disk.volume, disk.attached, disk.initialized) = (None, false, false);
        }
        internal.replicator = None;
        internal.former_replicator = None;
        internal.provisioning = None;
        (internal.paused, internal.fence) = (false, None);
        internal.observed = Observed { fence: internal.observed.fence.clone(), ..Observed::default() };
        internal.paired_volumes.clear();
        internal.checkpoint = CheckpointProgress::default();
        internal.replicator_connected = false;
        internal.step_started = None;
        internal.snapshot_error = None;
        internal.terminating.clear();
        (internal.received_bytes, internal.synced_bytes) = (0, 0);
        let info = &mut server.data_replication_info;
        info.data_replication_state = if internal.disconnect_requested {
            DataReplicationState::Disconnected
        } else {
            DataReplicationState::Stopped
        };
        internal.stop_requested = false;
        info.data_replication_error = None;
        if info.data_replication_state == DataReplicationState::Stopped {
            // It may start anew, and nothing of the past is to be taken for it.
            info.data_replication_initiation = None;
            info.last_snapshot_date_time = None;
            info.replicated_disks.clear();
        }
        (info.lag_duration, info.eta_date_time) = (None, None);
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
        if !server.internal.stop_requested {
            server.request_disconnect();
        }
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

/// Everything goes but the instance that the server was cut over to and its volumes: these are only struck out of the ledger.
async fn remove_resources(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    let entries = ledger::entries(ports, &server.source_server_id).await?;
    let users_job = users_job(server);
    let is_users = |e: &LedgerEntry| e.purpose == Purpose::Cutover && e.job.is_some() && e.job.as_ref() == users_job;
    let is_shared = |e: &LedgerEntry| replicator::named_by(e).is_some();
    let (users, ours): (Vec<LedgerEntry>, Vec<_>) = entries.into_iter().filter(|e| !is_shared(e)).partition(is_users);
    ledger::remove(ports, ours).await?;
    for entry in &users {
        ledger::strike_out(ports, entry).await?;
    }
    Ok(())
}

/// The job whose copy belongs to the user: that of the launched instance, if it is a cutover's.
fn users_job(server: &SourceServer) -> Option<&JobId> {
    let launched = server.launched_instance.as_ref()?;
    let cut_over = server.life_cycle.last_cutover.as_ref().and_then(|c| c.initiated.as_ref()?.job_id.as_ref());
    Some(&launched.job_id).filter(|job| cut_over == Some(job))
}

/// Whether the ledger still has entries, or the region something with the server's tag that is not the user's.
async fn anything_is_left(ports: &Ports, server: &SourceServer) -> Result<bool, StepError> {
    let id = &server.source_server_id;
    let tagged = ports.compute.tagged_resources(Some(id)).await?;
    let is_users = |tags: &Tags| tags.get(ledger::PURPOSE_TAG).is_some_and(|purpose| purpose == "cutover");
    Ok(!ledger::entries(ports, id).await?.is_empty() || tagged.iter().any(|resource| !is_users(&resource.tags)))
}
