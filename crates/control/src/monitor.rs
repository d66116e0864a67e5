//! What nobody reports: an agent that is not heard of any more, and a replication server that died.

use rehost_model::{SourceServer, Timestamp};

use crate::ports::{PortResult, Ports};
use crate::{PortError, observe, repo};

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
