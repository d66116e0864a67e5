//! The gates of `migrate`: each opens by the server's policy, or waits for a person, whose API call goes on from there.

use std::collections::BTreeMap;

use rehost_model::LifeCycleState;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, State, in_progress};
use crate::PortErrorKind;
use crate::operations::{self, OperationError};
use crate::ports::Ports;

/// How long a gate waits for its turn until it looks again; seconds.
const TURN_SECONDS: u64 = 30;

/// The gates, in the order of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Gate {
    Test,
    ReadyForCutover,
    Cutover,
    Finalize,
    Archive,
}

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let gate: Gate = state.member("gate")?;
    let server = state.server(ports).await?;
    let policy = &server.internal.policy;
    let (open, from) = match gate {
        Gate::Test => (policy.auto_test, LifeCycleState::ReadyForTest),
        Gate::ReadyForCutover => (policy.auto_ready_for_cutover, LifeCycleState::Testing),
        Gate::Cutover => (policy.auto_cutover, LifeCycleState::ReadyForCutover),
        Gate::Finalize => (policy.auto_finalize, LifeCycleState::CuttingOver),
        Gate::Archive => (policy.auto_archive, LifeCycleState::Cutover),
    };
    if let Some(job) = already_passed(gate, &server) {
        return Ok(json!({"status": "OPEN", "jobID": job}));
    }
    if !open || server.life_cycle.state != from || server.internal.disconnect_requested && gate != Gate::Archive {
        return Ok(json!({"status": "CLOSED"}));
    }
    pass(ports, gate, &server).await
}

/// The job that this gate started when it ran before and was cut off.
fn already_passed(gate: Gate, server: &rehost_model::SourceServer) -> Option<rehost_model::JobId> {
    let active = server.internal.active_job.clone();
    match (gate, server.life_cycle.state) {
        (Gate::Test, LifeCycleState::Testing) | (Gate::Cutover, LifeCycleState::CuttingOver) => active,
        _ => None,
    }
}

async fn pass(ports: &Ports, gate: Gate, server: &rehost_model::SourceServer) -> Answer {
    let id = &server.source_server_id;
    let servers = std::slice::from_ref(id);
    let job = |job: rehost_model::Job| Some(job.job_id);
    let passed = match gate {
        Gate::Test => operations::start_test(ports, servers, BTreeMap::new()).await.map(job),
        Gate::Cutover => operations::start_cutover(ports, servers, BTreeMap::new()).await.map(job),
        Gate::ReadyForCutover => {
            let target = LifeCycleState::ReadyForCutover;
            operations::change_server_life_cycle_state(ports, id, target).await.map(|_| None)
        }
        Gate::Finalize => operations::finalize_cutover(ports, id).await.map(|_| None),
        // A step of its own does that, when it can be done.
        Gate::Archive => Ok(None),
    };
    match passed {
        // So many jobs are at work that this one has to wait for its turn.
        Err(OperationError::Port(error)) if error.kind == PortErrorKind::Quota => in_progress(TURN_SECONDS),
        passed => Ok(json!({"status": "OPEN", "jobID": passed?})),
    }
}
