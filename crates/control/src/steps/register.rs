//! Applies the replication settings to a server that enrolled, plans its staging disks, and begins the initiation.

use rehost_model::replication::{DataReplicationInitiation, DataReplicationState};
use rehost_model::settings::{ReplicatedDiskSettings, StagingDiskType};
use rehost_model::{ExecutionId, SourceServer};

use super::{Answer, State, StepError, done, stopped};
use crate::ports::Ports;
use crate::repo;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let replicate = state.member::<Option<bool>>("replicate")?.unwrap_or(true);
    let now = ports.clock.now();
    let execution = state.execution()?;
    let (server, ()) = repo::update_server(ports, &state.server_id()?, |server| {
        plan_disks(server);
        let begins = server.internal.chain.as_ref().is_none_or(|chain| is_later(&execution, chain));
        if !begins {
            return Ok(());
        }
        // Whoever comes last takes the server along; an earlier execution that still waits for something gives up.
        server.internal.chain = Some(execution.clone());
        let leaving = server.is_leaving();
        let info = &mut server.data_replication_info;
        // An installation that is repeated while data flows goes on; only a stopped replication begins.
        if replicate && !leaving && info.data_replication_state == DataReplicationState::Stopped {
            info.data_replication_state = DataReplicationState::Initiating;
            info.data_replication_initiation = Some(DataReplicationInitiation::begin(now));
            server.internal.step_started = Some(now);
        }
        Ok::<_, StepError>(())
    })
    .await?;
    let goes_on = server.data_replication_info.data_replication_state.is_active() && !state.is_superseded(&server);
    if goes_on { done() } else { stopped() }
}

/// Executions are named after the event that started them, with its number at the end: a step that comes late for an earlier one
/// must not take the server from a later one, and one that comes again must not begin a replication that was stopped meanwhile.
fn is_later(execution: &ExecutionId, chain: &ExecutionId) -> bool {
    let number = |execution: &ExecutionId| execution.0.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
    match (number(execution), number(chain)) {
        (Some(mine), Some(present)) => mine > present,
        _ => execution != chain,
    }
}

fn plan_disks(server: &mut SourceServer) {
    let known = std::mem::take(&mut server.internal.replication.replicated_disks);
    let plan = |device_name: &str, is_boot_disk| ReplicatedDiskSettings {
        device_name: device_name.to_owned(),
        is_boot_disk,
        staging_disk_type: known
            .iter()
            .find(|disk| disk.device_name == device_name)
            .map_or(StagingDiskType::Auto, |disk| disk.staging_disk_type),
    };
    let disks = server.internal.staging.iter();
    server.internal.replication.replicated_disks = disks.map(|d| plan(&d.device_name, d.is_boot_disk)).collect();
}
