//! What functions are invoked for beside the steps: by events, by the clock, and to clean up.

use rehost_control::ports::Ports;
use rehost_control::steps::{self, StepError};
use rehost_control::{jobs, monitor, operations, reaper, rules, schedule};
use rehost_model::event::{EVENT_VERSION, Event, EventDetail, EventType};
use rehost_model::{ServerId, Timestamp};
use serde_json::{Value, json};

/// Who starts a job is done with that long before; milliseconds.
const SETTLED_MS: u64 = 120_000;

/// What the clock does, in this order.
pub(crate) const OF_THE_CLOCK: [&str; 2] = ["tick", "reap"];

/// One invocation of a step or a chore.
pub(crate) async fn run(ports: &Ports, name: &str, state: Value) -> Result<Value, StepError> {
    match name {
        "on-event" => rules::follow(ports.workflows.as_ref(), &serde_json::from_value::<Event>(state).unwrap()).await?,
        "tick" => tick(ports).await?,
        "reap" => reap(ports).await?,
        step => return steps::run(ports, step, state).await,
    }
    Ok(json!({"status": "DONE"}))
}

/// Does everything that is due, whatever fails of it, and then tells the first failure.
pub(crate) async fn tick(ports: &Ports) -> Result<(), StepError> {
    let done = [
        jobs::recover_older_than(ports, SETTLED_MS).await,
        monitor::check_agents(ports).await,
        monitor::check_replicators(ports).await,
        schedule::tick(ports).await,
    ];
    operations::describe_source_servers(ports, &operations::ServerFilter::default()).await?;
    Ok(done.into_iter().find(Result::is_err).unwrap_or(Ok(()))?)
}

/// Finds nothing but what nobody except the reaper removes.
async fn reap(ports: &Ports) -> Result<(), StepError> {
    let leftovers = reaper::reap(ports, None, false).await?;
    let is_reapers =
        |resource: &reaper::Resource| resource.kind.is_shared() && resource.why == Some(reaper::Why::Unused);
    let left: Vec<_> = leftovers.left().filter(|resource| !is_reapers(resource)).collect();
    assert!(left.is_empty(), "nobody needs {left:#?}");
    Ok(())
}

/// What nobody needs, and why.
pub(crate) async fn left(ports: &Ports, dry_run: bool) -> Result<Vec<String>, StepError> {
    let leftovers = reaper::reap(ports, None, dry_run).await?;
    Ok(leftovers.left().map(|resource| format!("{resource:?}")).collect())
}

/// The event that a new server was registered.
pub(crate) fn registered(server: &ServerId) -> Event {
    let data = json!({"replicate": true}).as_object().unwrap().clone();
    let detail = EventDetail { version: EVENT_VERSION, source_server_id: server.clone(), sequence: 1, data };
    Event { source: "rehost".to_owned(), detail_type: EventType::Registered, time: Timestamp::from_unix_ms(0), detail }
}
