//! Applies the replication settings to a server that enrolled, plans its staging disks, and begins the initiation.

use rehost_model::SourceServer;
use rehost_model::replication::{DataReplicationInitiation, DataReplicationState};
use rehost_model::settings::{ReplicatedDiskSettings, StagingDiskType};

use super::{Answer, State, StepError, done, stopped};
use crate::ports::Ports;
use crate::repo;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let replicate = state.member::<Option<bool>>("replicate")?.unwrap_or(true);
    let now = ports.clock.now();
    let execution = state.execution()?;
    let (server, ()) = repo::update_server(ports, &state.server_id()?, |server| {
        plan_disks(server);
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
    if server.data_replication_info.data_replication_state.is_active() { done() } else { stopped() }
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
