//! Tasks that wait until somebody reports their token.
//!
//! ```text
//!  entered ──▶ issued: a token, the clocks run ──[run the step]──▶ submitted ──▶ waiting ◀─┐ heartbeat
//!                │                                   │                             ├──────┘
//!                │                                   └─ the step failed ──▶ failed ├─ success ──▶ next
//!                └───────────── reported already ─────────────────────────▶        ├─ failure ──▶ failed
//!                                                                                  └─ time up ──▶ failed
//! ```
//! Each attempt has a token of its own: after a retry, or once the state was left, the old one means nothing. The clocks of
//! `TimeoutSeconds` and `HeartbeatSeconds` run from the issue of the token, whatever happens to the process.

use rehost_model::{TaskToken, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::asl::{Callback, MAX_SECONDS, Machine, State, Task};
use super::super::errors::{HEARTBEAT_TIMEOUT, PARAMETER_PATH, RUNTIME, TIMEOUT, TaskError};
use super::{Action, Change, Happening, Record, Status, deadline};

/// An attempt at a task whose token was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Awaited {
    pub(in super::super) token: TaskToken,
    issued_at: Timestamp,
    /// When the token was issued, or the last heartbeat came.
    heard_at: Timestamp,
    /// Whether the step ended, so that nothing is left but to wait.
    submitted: bool,
}

/// The task that a token was given for does not wait (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct NotAwaited;

/// What is to be done next with an execution that is in a task with a callback.
pub(super) fn action(
    task: &Task,
    callback: &Callback,
    record: &Record,
    now: Timestamp,
    end: Option<Timestamp>,
) -> Action {
    let Some(awaited) = &record.awaited else { return Action::Issue };
    let (limit, error) = limit(task, callback, awaited);
    if now >= limit {
        return Action::Expire(error);
    }
    let wake_at = end.map_or(limit, |end| end.min(limit));
    if awaited.submitted {
        return Action::Sleep(wake_at);
    }
    match callback.payload.fill(&record.input, &awaited.token.0) {
        Ok(input) => Action::Run { step: task.step.clone(), input, deadline: Some(wake_at) },
        Err(cause) => Action::Expire(TaskError::new(PARAMETER_PATH, cause)),
    }
}

/// When the attempt's time is up, and what it then fails with.
fn limit(task: &Task, callback: &Callback, awaited: &Awaited) -> (Timestamp, TaskError) {
    let seconds = task.timeout_seconds.unwrap_or(MAX_SECONDS);
    let timeout = awaited.issued_at.plus_ms(seconds.saturating_mul(1000));
    let heartbeat = callback.heartbeat_seconds.map(|s| (s, awaited.heard_at.plus_ms(s.saturating_mul(1000))));
    match heartbeat {
        Some((seconds, heartbeat)) if heartbeat < timeout => {
            let cause = format!("the task `{}` waits for its token and heard nothing for {seconds} s", task.step);
            (heartbeat, TaskError::new(HEARTBEAT_TIMEOUT, cause))
        }
        _ => {
            let cause = format!("the task `{}` waited for its token for more than {seconds} s", task.step);
            (timeout, TaskError::new(TIMEOUT, cause))
        }
    }
}

/// A task begins: its token is issued. `jitter` is drawn from 0 to 1.
pub(in super::super) fn issue(
    machine: &Machine,
    record: &mut Record,
    token: TaskToken,
    now: Timestamp,
    jitter: f64,
) -> Vec<Happening> {
    let mut change = Change::new(machine, record, now);
    if change.out_of_time() {
        return change.done();
    }
    match machine.states.get(&change.record.state) {
        Some(State::Task(task @ Task { callback: Some(callback), .. })) => {
            match callback.payload.fill(&change.record.input, &token.0) {
                Ok(_) => change.begin_waiting(task, token),
                Err(cause) => change.end_task(task, Err(TaskError::new(PARAMETER_PATH, cause)), jitter),
            }
        }
        _ => change.fail(TaskError::new(RUNTIME, "a token was issued in a state that needs none")),
    }
    change.done()
}

/// The step of a task ended well; from now on it is waited for the report.
pub(in super::super) fn submitted(machine: &Machine, record: &mut Record, now: Timestamp) -> Vec<Happening> {
    let mut change = Change::new(machine, record, now);
    if change.out_of_time() {
        return change.done();
    }
    if let Some(awaited) = change.record.awaited.as_mut() {
        awaited.submitted = true;
        change.happened("TaskSubmitted", json!({}));
    }
    change.done()
}

/// What the holder of a token says ends the task.
pub(in super::super) fn reported(
    machine: &Machine,
    record: &mut Record,
    token: &TaskToken,
    result: Result<Value, TaskError>,
    now: Timestamp,
    jitter: f64,
) -> Result<Vec<Happening>, NotAwaited> {
    check(machine, record, token, now)?;
    Ok(super::task_ended(machine, record, result, now, jitter))
}

/// The holder of a token says that it is at work. As with Step Functions this leaves no trace in the history.
pub(in super::super) fn heard(
    machine: &Machine,
    record: &mut Record,
    token: &TaskToken,
    now: Timestamp,
) -> Result<(), NotAwaited> {
    check(machine, record, token, now)?;
    if let Some(awaited) = record.awaited.as_mut() {
        awaited.heard_at = awaited.heard_at.max(now);
    }
    Ok(())
}

/// Whether the task waits with this token, and its time is not up (though nobody may have noticed yet).
fn check(machine: &Machine, record: &Record, token: &TaskToken, now: Timestamp) -> Result<(), NotAwaited> {
    let in_time = deadline(machine, record).is_none_or(|end| now < end);
    match (machine.states.get(&record.state), &record.awaited) {
        (Some(State::Task(task @ Task { callback: Some(callback), .. })), Some(awaited))
            if record.status == Status::Running
                && awaited.token == *token
                && in_time
                && now < limit(task, callback, awaited).0 =>
        {
            Ok(())
        }
        _ => Err(NotAwaited),
    }
}

impl Change<'_> {
    fn begin_waiting(&mut self, task: &Task, token: TaskToken) {
        let now = self.now;
        self.record.awaited = Some(Awaited { token, issued_at: now, heard_at: now, submitted: false });
        self.record.wake_at = None;
        // The token itself stays out of the history: who reads that must not be able to report.
        self.happened("TaskScheduled", json!({"step": task.step}));
    }
}
