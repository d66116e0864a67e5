//! The contract of [`Workflows`].

use std::time::{Duration, Instant};

use rehost_model::ExecutionId;
use serde_json::{Value, json};

use crate::PortErrorKind;
use crate::ports::{ExecutionStatus, Workflows};

/// How long an execution of the machines below may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machines that the implementation under test must offer.
#[derive(Debug, Clone, Copy)]
pub struct Machines<'a> {
    /// Ends at once with its input as output.
    pub echo: &'a str,
    /// Ends at once in a Fail state with Error `Refused` and Cause `as asked`.
    pub fails: &'a str,
    /// Waits for an hour.
    pub waits: &'a str,
}

/// The whole contract.
///
/// # Panics
/// When the implementation breaks it.
pub async fn suite(workflows: &dyn Workflows, machines: Machines<'_>) {
    an_execution_ends_with_its_output(workflows, machines.echo).await;
    a_failure_tells_error_and_cause(workflows, machines.fails).await;
    starting_twice_is_starting_once(workflows, machines).await;
    stopping_aborts_and_is_idempotent(workflows, machines).await;
    what_does_not_exist_is_told(workflows).await;
}

async fn end_of(workflows: &dyn Workflows, id: &ExecutionId) -> ExecutionStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = workflows.status(id).await.expect("status answers").expect("the execution exists");
        if status != ExecutionStatus::Running {
            return status;
        }
        assert!(Instant::now() < deadline, "{id} is still running after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn an_execution_ends_with_its_output(workflows: &dyn Workflows, echo: &str) {
    for (name, input) in [("echo-1", json!({"a": [1, null, "x"]})), ("echo-2", Value::Null)] {
        let id = ExecutionId(name.to_owned());
        workflows.start(echo, &id, input.clone()).await.expect("start succeeds");
        assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(input));
    }
}

async fn a_failure_tells_error_and_cause(workflows: &dyn Workflows, fails: &str) {
    let id = ExecutionId("fails".to_owned());
    workflows.start(fails, &id, json!({})).await.expect("start succeeds");
    let failed = ExecutionStatus::Failed { error: "Refused".to_owned(), cause: "as asked".to_owned() };
    assert_eq!(end_of(workflows, &id).await, failed);
}

async fn starting_twice_is_starting_once(workflows: &dyn Workflows, machines: Machines<'_>) {
    let id = ExecutionId("twice".to_owned());
    workflows.start(machines.echo, &id, json!(1)).await.expect("start succeeds");
    workflows.start(machines.fails, &id, json!(2)).await.expect("starting again is a success without effect");
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(json!(1)));
    workflows.start(machines.echo, &id, json!(3)).await.expect("also when it is over");
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(json!(1)));
}

async fn stopping_aborts_and_is_idempotent(workflows: &dyn Workflows, machines: Machines<'_>) {
    let id = ExecutionId("stopped".to_owned());
    workflows.start(machines.waits, &id, json!({})).await.expect("start succeeds");
    assert_eq!(workflows.status(&id).await, Ok(Some(ExecutionStatus::Running)));
    for _ in 0..2 {
        workflows.stop(&id, "no longer wanted").await.expect("stop succeeds");
        assert_eq!(workflows.status(&id).await, Ok(Some(ExecutionStatus::Aborted)));
    }
    let over = ExecutionId("over".to_owned());
    workflows.start(machines.echo, &over, json!(1)).await.expect("start succeeds");
    let status = end_of(workflows, &over).await;
    workflows.stop(&over, "too late").await.expect("stopping what is over is a success");
    assert_eq!(workflows.status(&over).await, Ok(Some(status)), "and changes nothing");
}

async fn what_does_not_exist_is_told(workflows: &dyn Workflows) {
    let id = ExecutionId("absent".to_owned());
    assert_eq!(workflows.status(&id).await, Ok(None));
    let stopped = workflows.stop(&id, "absent").await.expect_err("there is nothing to stop");
    assert_eq!(stopped.kind, PortErrorKind::NotFound);
    let started = workflows.start("no-such-machine", &id, json!({})).await.expect_err("there is no such machine");
    assert_eq!(started.kind, PortErrorKind::NotFound);
    assert_eq!(workflows.status(&id).await, Ok(None));
}
