//! Disks that a source got after it was enrolled.

use rehost_model::settings::MAX_DISKS_PER_SERVER;
use rehost_model::{ServerId, SourceServer};

use super::{OperationError, OperationResult};
use crate::ports::Ports;
use crate::{jobs, repo};

/// Replicates a disk that the agent has reported and that is not replicated yet. The other disks go on meanwhile.
///
/// # Errors
/// `NotFound`; `Validation` when the agent knows of no such disk, or there are too many; `Conflict` when the server does not
/// replicate.
pub async fn add_disk(ports: &Ports, id: &ServerId, device_name: &str) -> OperationResult<SourceServer> {
    let now = ports.clock.now();
    let added = repo::update_server(ports, id, |server| {
        if !server.data_replication_info.data_replication_state.is_active() || server.is_leaving() {
            let message = format!("the server {id} does not replicate; start its replication first");
            return Err(OperationError::conflict(id, message));
        }
        if server.internal.staging.iter().any(|disk| disk.device_name == device_name) {
            return Ok(());
        }
        if !server.plan_disk(device_name, now) {
            return Err(OperationError::Validation { field: "deviceName", message: refusal(server, device_name) });
        }
        Ok(())
    });
    let (server, ()) = added.await.map_err(|e| e.about("SourceServer", id.as_str()))?;
    jobs::start_provision(ports, &server).await?;
    Ok(server)
}

fn refusal(server: &SourceServer, device_name: &str) -> String {
    let known: Vec<_> = server.new_disks().map(|disk| disk.device_name.as_str()).collect();
    let id = &server.source_server_id;
    if known.contains(&device_name) {
        return format!("the server {id} has {MAX_DISKS_PER_SERVER} disks already, and may not have more");
    }
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!("the agent of {id} has reported no disk {device_name}; disks that could be added: {known}")
}
