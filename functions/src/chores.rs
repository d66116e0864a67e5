//! What is invoked by events and by the clock, and is no step.

use rehost_control::ports::Ports;
use rehost_control::reaper::{self, Done};
use rehost_control::steps::StepError;
use rehost_control::{PortError, jobs, monitor, operations, rules, schedule};
use rehost_model::event::Event;
use serde_json::{Value, json};

use crate::clock::{millis, since_epoch};
use crate::metrics;

/// Who starts a job, a function of the API, is done with that long before; milliseconds.
const SETTLED_MS: u64 = 120_000;

/// Starts what the rules say for an event; the same event twice, or late, starts it once.
pub(crate) async fn on_event(ports: &Ports, input: Value) -> Result<Value, StepError> {
    let event: Event = serde_json::from_value(input).map_err(|e| invalid(format!("no event of rehost: {e}")))?;
    rules::follow(ports.workflows.as_ref(), &event).await?;
    Ok(json!({"status": "DONE"}))
}

/// Does everything that is due, whatever fails of it, and then tells the first failure.
pub(crate) async fn tick(ports: &Ports, stack: &str) -> Result<Value, StepError> {
    let done = [
        ("what was cut off", jobs::recover_older_than(ports, SETTLED_MS).await),
        ("agents that fell silent", monitor::check_agents(ports).await),
        ("replication servers that died", monitor::check_replicators(ports).await),
        ("snapshots", schedule::tick(ports).await),
    ];
    let mut first = measure(ports, stack).await;
    for (what, error) in done.into_iter().filter_map(|(what, result)| Some((what, result.err()?))).rev() {
        tracing::warn!(what, %error, "not looked after; the next minute tries again");
        first = Err(PortError::new(error.kind, format!("{what}: {}", error.message)).into());
    }
    first.map(|()| json!({"status": "DONE"}))
}

/// Removes what nobody needs any more; what could not be removed stays for the next hour, and shows in a metric.
pub(crate) async fn reap(ports: &Ports, stack: &str) -> Result<Value, StepError> {
    let leftovers = reaper::reap(ports, None, false).await?;
    let (gone, left): (Vec<_>, Vec<_>) = leftovers.left().partition(|one| is_gone(&one.done));
    for one in gone.iter().chain(&left) {
        let (id, server) = (one.id.as_deref(), one.server.as_ref().map(tracing::field::display));
        tracing::warn!(kind = ?one.kind, id, server, why = ?one.why, done = ?one.done, "nobody needs it");
    }
    metrics::write(&metrics::leftovers(stack, left.len(), millis(since_epoch())));
    Ok(json!({"status": "DONE", "removed": gone.len(), "left": left.len()}))
}

fn is_gone(done: &Done) -> bool {
    matches!(done, Done::Removed | Done::StruckOut | Done::WrittenDown)
}

/// Tells how far behind the servers are.
async fn measure(ports: &Ports, stack: &str) -> Result<(), StepError> {
    let servers = operations::describe_source_servers(ports, &operations::ServerFilter::default()).await?;
    metrics::replication(stack, &servers, millis(since_epoch())).iter().for_each(metrics::write);
    Ok(())
}

fn invalid(cause: impl ToString) -> StepError {
    StepError { name: "InvalidInput".to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use rehost_control::ports::ExecutionStatus;
    use rehost_model::ExecutionId;

    use super::*;
    use crate::tests::TestRegion;

    fn event(kind: &str, server: &str) -> Value {
        json!({
            "version": "0",
            "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
            "source": "rehost",
            "account": "000000000000",
            "region": "eu-west-1",
            "time": "2026-11-21T11:15:26Z",
            "resources": [],
            "detail-type": kind,
            "detail": {"version": 1, "sourceServerID": server, "sequence": 4, "replicate": true},
        })
    }

    #[tokio::test]
    async fn an_event_starts_one_execution_however_often_it_comes() {
        let region = TestRegion::new().await;
        let ports = &region.ports;
        let server = region.server().await.source_server_id;
        for _ in 0..2 {
            on_event(ports, event("Source Server Registered", server.as_str())).await.unwrap();
        }
        let execution = ExecutionId(format!("migrate-{server}-4"));
        assert_eq!(ports.workflows.status(&execution).await.unwrap(), Some(ExecutionStatus::Running));
        on_event(ports, event("Source Server Job Change", server.as_str())).await.unwrap();
        for wrong in [event("Something Else", server.as_str()), event("Source Server Registered", "x"), json!({})] {
            assert_eq!(on_event(ports, wrong).await.unwrap_err().name, "InvalidInput");
        }
    }

    #[tokio::test]
    async fn a_minute_without_work_does_nothing() {
        let region = TestRegion::new().await;
        region.server().await;
        for _ in 0..2 {
            assert_eq!(tick(&region.ports, "rehost").await.unwrap(), json!({"status": "DONE"}));
            let reaped = json!({"status": "DONE", "removed": 0, "left": 0});
            assert_eq!(reap(&region.ports, "rehost").await.unwrap(), reaped);
        }
    }
}
