//! How far the first copy is, and the transition that it leads to.

use rehost_model::LifeCycleState;
use rehost_model::lifecycle::LifeCycleCommand;

use super::provision::patience;
use super::{Answer, State, StepError, done, in_progress, stopped};
use crate::ports::Ports;
use crate::repo;

/// `DONE` once the first copy of every disk is durable.
pub(super) async fn status(ports: &Ports, state: &State) -> Answer {
    let server = state.server(ports).await?;
    let is_active = server.data_replication_info.data_replication_state.is_active();
    if server.is_leaving() || !is_active || state.is_superseded(&server) {
        return stopped();
    }
    let total_bytes: u64 = server.internal.staging.iter().map(|disk| disk.size_bytes).sum();
    if server.internal.synced_bytes >= total_bytes { done() } else { in_progress(patience(ports, &server, 2)) }
}

/// NOT_READY → READY_FOR_TEST: the first launchable snapshot exists.
pub(super) async fn ready_for_test(ports: &Ports, state: &State) -> Answer {
    repo::update_server(ports, &state.server_id()?, |server| {
        // Run again, or after another installation of the same agent: it is ready, or beyond that, already.
        if server.life_cycle.state == LifeCycleState::NotReady {
            server.apply(LifeCycleCommand::ReadyForTest)?;
        }
        Ok::<_, StepError>(())
    })
    .await?;
    done()
}
