//! What nobody reports: an agent that is not heard of any more.

use rehost_model::replication::{DataReplicationError, DataReplicationErrorString, DataReplicationState};
use rehost_model::{SourceServer, Timestamp};

use crate::ports::{PortResult, Ports};
use crate::{PortError, repo};

/// After this time without a report the agent counts as not seen; milliseconds.
pub const AGENT_NOT_SEEN_AFTER_MS: u64 = 5 * 60 * 1000;

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
            if is_silent(server, now) {
                mark_not_seen(server);
            }
            Ok::<_, PortError>(())
        })
        .await?;
    }
    Ok(())
}

fn is_silent(server: &SourceServer, now: Timestamp) -> bool {
    let state = server.data_replication_info.data_replication_state;
    let last_seen = server.life_cycle.last_seen_by_service_date_time;
    let silent = last_seen.is_none_or(|seen| now.ms_since(seen) > AGENT_NOT_SEEN_AFTER_MS);
    silent && state.is_active() && state != DataReplicationState::Stalled && !server.internal.disconnect_requested
}

fn mark_not_seen(server: &mut SourceServer) {
    let host = &server.source_properties.identification_hints.hostname;
    let raw_error = format!(
        "the agent on {host} has not reported for {} minutes; see `rehost-agent status` and `systemctl status rehost-agent` there",
        AGENT_NOT_SEEN_AFTER_MS / 60_000
    );
    let info = &mut server.data_replication_info;
    info.data_replication_state = DataReplicationState::Stalled;
    info.data_replication_error =
        Some(DataReplicationError { error: DataReplicationErrorString::AgentNotSeen, raw_error });
}
