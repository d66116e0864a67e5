//! The contract of [`Workflows`].

use std::time::{Duration, Instant};

use async_trait::async_trait;
use rehost_model::{ExecutionId, TaskToken};
use serde_json::{Value, json};

use crate::PortErrorKind;
use crate::ports::{ExecutionStatus, TaskOutcome, Workflows};

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
    /// Hands the token of its only task to [`Tokens`], and waits for it for an hour; its output is what is reported.
    pub awaits: &'a str,
    /// As `awaits`, with `HeartbeatSeconds` of 2.
    pub listens: &'a str,
}

/// Where the tokens of tasks are found that wait.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// The token that the task of this execution last was given; waits until there is one.
    async fn of(&self, execution: &ExecutionId) -> TaskToken;
}

/// The whole contract.
///
/// # Panics
/// When the implementation breaks it.
pub async fn suite(workflows: &dyn Workflows, machines: Machines<'_>, tokens: &dyn Tokens) {
    executions(workflows, machines).await;
    tasks(workflows, machines, tokens).await;
    a_failure_of_a_task(workflows, machines, tokens).await;
    a_token_dies_with_its_execution(workflows, machines.awaits, tokens).await;
}

/// The part of [`suite`] about executions.
///
/// # Panics
/// When the implementation breaks it.
pub async fn executions(workflows: &dyn Workflows, machines: Machines<'_>) {
    an_execution_ends_with_its_output(workflows, machines.echo).await;
    a_failure_tells_error_and_cause(workflows, machines.fails).await;
    starting_twice_is_starting_once(workflows, machines).await;
    stopping_aborts_and_is_idempotent(workflows, machines).await;
    what_does_not_exist_is_told(workflows).await;
}

/// The part about tasks that wait and are reported to have succeeded.
///
/// # Panics
/// When the implementation breaks it.
pub async fn tasks(workflows: &dyn Workflows, machines: Machines<'_>, tokens: &dyn Tokens) {
    a_report_ends_the_task_once(workflows, machines.awaits, tokens).await;
    what_is_no_token_is_refused(workflows).await;
    heartbeats_keep_a_task_waiting(workflows, machines.listens, tokens).await;
}

/// The part about a task that is reported to have failed.
///
/// # Panics
/// When the implementation breaks it.
pub async fn a_failure_of_a_task(workflows: &dyn Workflows, machines: Machines<'_>, tokens: &dyn Tokens) {
    a_reported_failure_is_that_of_the_task(workflows, machines.awaits, tokens).await;
}

/// The names of executions begin with their machine's.
fn named(machine: &str, name: &str) -> ExecutionId {
    ExecutionId(format!("{machine}-{name}"))
}

async fn awaiting(
    workflows: &dyn Workflows,
    machine: &str,
    name: &str,
    tokens: &dyn Tokens,
) -> (ExecutionId, TaskToken) {
    let id = named(machine, name);
    workflows.start(machine, &id, json!({"execution": id})).await.expect("start succeeds");
    let token = tokens.of(&id).await;
    assert_eq!(workflows.status(&id).await, Ok(Some(ExecutionStatus::Running)), "it waits");
    (id, token)
}

async fn refused(workflows: &dyn Workflows, token: &TaskToken) {
    let outcome = TaskOutcome::Success(json!("late"));
    let reported = workflows.report(token, outcome).await.expect_err("nobody waits for this report");
    assert!(matches!(reported.kind, PortErrorKind::NotFound | PortErrorKind::Invalid), "{reported:?}");
    let heard = workflows.heartbeat(token).await.expect_err("nobody listens");
    assert!(matches!(heard.kind, PortErrorKind::NotFound | PortErrorKind::Invalid), "{heard:?}");
}

async fn a_report_ends_the_task_once(workflows: &dyn Workflows, awaits: &str, tokens: &dyn Tokens) {
    let (id, token) = awaiting(workflows, awaits, "reported", tokens).await;
    workflows.heartbeat(&token).await.expect("it listens");
    workflows.report(&token, TaskOutcome::Success(json!({"epoch": 7}))).await.expect("it waits for the report");
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(json!({"epoch": 7})));
    refused(workflows, &token).await;
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(json!({"epoch": 7})), "and nothing changed");
}

async fn a_reported_failure_is_that_of_the_task(workflows: &dyn Workflows, awaits: &str, tokens: &dyn Tokens) {
    let (id, token) = awaiting(workflows, awaits, "reported-failed", tokens).await;
    let (error, cause) = ("NoSpace".to_owned(), "the disk is full".to_owned());
    workflows
        .report(&token, TaskOutcome::Failure { error: error.clone(), cause: cause.clone() })
        .await
        .expect("it waits");
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Failed { error, cause });
}

async fn a_token_dies_with_its_execution(workflows: &dyn Workflows, awaits: &str, tokens: &dyn Tokens) {
    let (id, token) = awaiting(workflows, awaits, "stopped-waiting", tokens).await;
    workflows.stop(&id, "no longer wanted").await.expect("stop succeeds");
    refused(workflows, &token).await;
    assert_eq!(workflows.status(&id).await, Ok(Some(ExecutionStatus::Aborted)));
}

async fn what_is_no_token_is_refused(workflows: &dyn Workflows) {
    for text in ["", "x", "reported.00000000000000000000000000000000", "absent.00000000000000000000000000000000"] {
        refused(workflows, &TaskToken(text.to_owned())).await;
    }
}

async fn heartbeats_keep_a_task_waiting(workflows: &dyn Workflows, listens: &str, tokens: &dyn Tokens) {
    let (heard, token) = awaiting(workflows, listens, "heard", tokens).await;
    let (unheard, _) = awaiting(workflows, listens, "unheard", tokens).await;
    let failed = loop {
        workflows.heartbeat(&token).await.expect("it listens");
        match workflows.status(&unheard).await.expect("status answers") {
            Some(ExecutionStatus::Running) => tokio::time::sleep(Duration::from_millis(100)).await,
            other => break other,
        }
    };
    let Some(ExecutionStatus::Failed { error, .. }) = failed else { panic!("{failed:?}") };
    assert!(matches!(error.as_str(), "States.HeartbeatTimeout" | "States.Timeout"), "{error}");
    assert_eq!(workflows.status(&heard).await, Ok(Some(ExecutionStatus::Running)), "it was heard of all the time");
    workflows.report(&token, TaskOutcome::Success(json!(1))).await.expect("it still waits");
    assert_eq!(end_of(workflows, &heard).await, ExecutionStatus::Succeeded(json!(1)));
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
    for (name, input) in [("1", json!({"a": [1, null, "x"]})), ("2", Value::Null)] {
        let id = named(echo, name);
        workflows.start(echo, &id, input.clone()).await.expect("start succeeds");
        assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(input));
    }
}

async fn a_failure_tells_error_and_cause(workflows: &dyn Workflows, fails: &str) {
    let id = named(fails, "1");
    workflows.start(fails, &id, json!({})).await.expect("start succeeds");
    let failed = ExecutionStatus::Failed { error: "Refused".to_owned(), cause: "as asked".to_owned() };
    assert_eq!(end_of(workflows, &id).await, failed);
}

async fn starting_twice_is_starting_once(workflows: &dyn Workflows, machines: Machines<'_>) {
    let id = named(machines.echo, "twice");
    workflows.start(machines.echo, &id, json!(1)).await.expect("start succeeds");
    workflows.start(machines.echo, &id, json!(2)).await.expect("starting again is a success without effect");
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(json!(1)));
    workflows.start(machines.echo, &id, json!(3)).await.expect("also when it is over");
    assert_eq!(end_of(workflows, &id).await, ExecutionStatus::Succeeded(json!(1)));
}

async fn stopping_aborts_and_is_idempotent(workflows: &dyn Workflows, machines: Machines<'_>) {
    let id = named(machines.waits, "stopped");
    workflows.start(machines.waits, &id, json!({})).await.expect("start succeeds");
    assert_eq!(workflows.status(&id).await, Ok(Some(ExecutionStatus::Running)));
    for _ in 0..2 {
        workflows.stop(&id, "no longer wanted").await.expect("stop succeeds");
        assert_eq!(workflows.status(&id).await, Ok(Some(ExecutionStatus::Aborted)));
    }
    let over = named(machines.echo, "over");
    workflows.start(machines.echo, &over, json!(1)).await.expect("start succeeds");
    let status = end_of(workflows, &over).await;
    workflows.stop(&over, "too late").await.expect("stopping what is over is a success");
    assert_eq!(workflows.status(&over).await, Ok(Some(status)), "and changes nothing");
}

async fn what_does_not_exist_is_told(workflows: &dyn Workflows) {
    let id = named("absent", "1");
    assert_eq!(workflows.status(&id).await, Ok(None));
    let stopped = workflows.stop(&id, "absent").await.expect_err("there is nothing to stop");
    assert_eq!(stopped.kind, PortErrorKind::NotFound);
    let started = workflows.start("absent", &id, json!({})).await.expect_err("there is no such machine");
    assert_eq!(started.kind, PortErrorKind::NotFound);
    assert_eq!(workflows.status(&id).await, Ok(None));
}
