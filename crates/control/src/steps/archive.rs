//! Archives a server once everything that was made for its replication is gone.

use super::{Answer, State, done, in_progress};
use crate::operations;
use crate::ports::Ports;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let server = state.server(ports).await?;
    if server.data_replication_info.data_replication_state.is_active() {
        let began = server.internal.step_started;
        return in_progress(ports.polling.patience(began.map_or(0, |began| ports.clock.now().ms_since(began)), 2));
    }
    operations::mark_as_archived(ports, &server.source_server_id).await?;
    done()
}
