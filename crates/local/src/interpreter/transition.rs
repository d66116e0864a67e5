//! What the language means: a record of an execution, and what it becomes. Pure: no clock, no database, no randomness.
//!
//! ```text
//!                  ┌──────── retry: wake_at = now + delay ───────┐
//!                  ▼                                             │
//!  start ──▶ in a state ──[Task: run its step]──▶ ended ──▶ failed ──▶ caught ──▶ in the catcher's state
//!                  │  ▲                             │           └────▶ not caught ──▶ FAILED
//!                  │  └──────────── next ◀──────────┤
//!                  ├──[Wait: wake_at]──▶ next       └──▶ End ──▶ SUCCEEDED
//!                  └──[Choice, Pass, Succeed, Fail: at once]
//! ```

pub(super) mod callback;

use rehost_model::Timestamp;
use serde_json::{Value, json};

use super::asl::{Choice, Comparison, Duration, Fail, Machine, Next, Pass, ResultPath, Rule, State, Task, Text};
use super::errors::{self, NO_CHOICE_MATCHED, RESULT_PATH, RUNTIME, TIMEOUT, TaskError};

/// What became of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Running,
    Succeeded,
    Failed,
    TimedOut,
    Aborted,
}

/// All that is known of an execution: it is in `state`, with `input`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) machine: String,
    /// The definition's text, as it was when the execution started.
    pub(super) definition: String,
    /// Events in the history so far; grows with every transition.
    pub(super) sequence: u64,
    pub(super) status: Status,
    pub(super) state: String,
    pub(super) input: Value,
    pub(super) started_at: Timestamp,
    pub(super) entered_at: Timestamp,
    /// How often each retrier of the state has retried.
    pub(super) attempts: Vec<u64>,
    /// Nothing happens before this time.
    pub(super) wake_at: Option<Timestamp>,
    pub(super) output: Option<Value>,
    pub(super) error: Option<TaskError>,
    /// Writes so far; one more with every write, so that two writers notice each other.
    pub(super) revision: u64,
    /// The token that the task waits with.
    pub(super) awaited: Option<callback::Awaited>,
}

/// An event for the history.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Happening {
    pub(super) event: String,
    pub(super) state: Option<String>,
    pub(super) detail: Value,
}

/// What is to be done next with an execution.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Run the step; then [`task_ended`], or [`callback::submitted`] when it ended well and the record has a token.
    Run { step: String, input: Value, deadline: Option<Timestamp> },
    /// [`callback::issue`].
    Issue,
    /// [`task_ended`] with this error.
    Expire(TaskError),
    /// Nothing before this time.
    Sleep(Timestamp),
    /// [`turn`].
    Turn,
    /// Nothing any more.
    Over,
}

/// A new execution in the machine's first state.
pub(super) fn begin(
    name: &str,
    kind: &str,
    definition: &str,
    machine: &Machine,
    input: Value,
    now: Timestamp,
) -> (Record, Vec<Happening>) {
    let mut record = Record {
        name: name.to_owned(),
        machine: kind.to_owned(),
        definition: definition.to_owned(),
        sequence: 0,
        status: Status::Running,
        state: machine.start_at.clone(),
        input: Value::Null,
        started_at: now,
        entered_at: now,
        attempts: Vec::new(),
        wake_at: None,
        output: None,
        error: None,
        revision: 0,
        awaited: None,
    };
    let started = Happening { event: "ExecutionStarted".to_owned(), state: None, detail: json!({"input": input}) };
    let mut change = Change::new(machine, &mut record, now);
    change.happenings.push(started);
    change.enter(&machine.start_at, input);
    let happenings = change.done();
    (record, happenings)
}

/// What is to be done next.
pub(super) fn action(machine: &Machine, record: &Record, now: Timestamp) -> Action {
    if record.status != Status::Running {
        return Action::Over;
    }
    let end = deadline(machine, record);
    if end.is_some_and(|end| now >= end) {
        return Action::Turn;
    }
    if let Some(wake_at) = record.wake_at.filter(|at| *at > now) {
        return Action::Sleep(end.map_or(wake_at, |end| end.min(wake_at)));
    }
    match machine.states.get(&record.state) {
        Some(State::Task(task)) => match &task.callback {
            Some(callback) => callback::action(task, callback, record, now, end),
            None => {
                let own = task.timeout_seconds.map(|s| now.plus_ms(s.saturating_mul(1000)));
                let (step, input) = (task.step.clone(), record.input.clone());
                Action::Run { step, input, deadline: own.into_iter().chain(end).min() }
            }
        },
        _ => Action::Turn,
    }
}

/// Carries an execution on that waits for nothing: through a state that takes no time, past a wait that is over, or to its
/// end when its time is up.
pub(super) fn turn(machine: &Machine, record: &mut Record, now: Timestamp) -> Vec<Happening> {
    let mut change = Change::new(machine, record, now);
    if change.out_of_time() {
        return change.done();
    }
    match machine.states.get(&change.record.state) {
        Some(State::Choice(choice)) => change.choose(choice),
        Some(State::Wait(wait)) => {
            let input = change.record.input.clone();
            change.leave(&wait.next, input);
        }
        Some(State::Pass(pass)) => change.pass(pass),
        Some(State::Succeed) => {
            let input = change.record.input.clone();
            change.leave(&Next::End, input);
        }
        Some(State::Fail(fail)) => change.fail_as_told(fail),
        Some(State::Task(_)) | None => {
            change.fail(TaskError::new(RUNTIME, "the execution is in no state that it can leave"))
        }
    }
    change.done()
}

/// Carries an execution on whose task ended. `jitter` is drawn from 0 to 1.
pub(super) fn task_ended(
    machine: &Machine,
    record: &mut Record,
    result: Result<Value, TaskError>,
    now: Timestamp,
    jitter: f64,
) -> Vec<Happening> {
    let mut change = Change::new(machine, record, now);
    if change.out_of_time() {
        return change.done();
    }
    match machine.states.get(&change.record.state) {
        Some(State::Task(task)) => change.end_task(task, result, jitter),
        _ => change.fail(TaskError::new(RUNTIME, "a task ended in a state that is none")),
    }
    change.done()
}

/// Ends an execution from outside.
pub(super) fn abort(machine: &Machine, record: &mut Record, cause: &str, now: Timestamp) -> Vec<Happening> {
    let mut change = Change::new(machine, record, now);
    change.end(Status::Aborted, "ExecutionAborted", Some(TaskError::new("Aborted", cause)));
    change.done()
}

fn deadline(machine: &Machine, record: &Record) -> Option<Timestamp> {
    machine.timeout_seconds.map(|s| record.started_at.plus_ms(s.saturating_mul(1000)))
}

/// One transition under way.
struct Change<'a> {
    machine: &'a Machine,
    record: &'a mut Record,
    now: Timestamp,
    happenings: Vec<Happening>,
}

impl<'a> Change<'a> {
    fn new(machine: &'a Machine, record: &'a mut Record, now: Timestamp) -> Self {
        Self { machine, record, now, happenings: Vec::new() }
    }

    fn done(self) -> Vec<Happening> {
        let happened = u64::try_from(self.happenings.len()).unwrap_or(u64::MAX);
        self.record.sequence = self.record.sequence.saturating_add(happened);
        self.happenings
    }

    fn happened(&mut self, event: impl Into<String>, detail: Value) {
        self.happenings.push(Happening { event: event.into(), state: Some(self.record.state.clone()), detail });
    }

    fn enter(&mut self, name: &str, input: Value) {
        name.clone_into(&mut self.record.state);
        self.record.input = input;
        self.record.entered_at = self.now;
        self.record.attempts.clear();
        self.record.wake_at = None;
        self.record.awaited = None;
        let Some(state) = self.machine.states.get(name) else {
            return self.fail(TaskError::new(RUNTIME, format!("there is no state `{name}`")));
        };
        self.happened(format!("{}StateEntered", state.type_name()), json!({"input": self.record.input}));
        if let State::Wait(wait) = state {
            match seconds(&wait.duration, &self.record.input) {
                Ok(seconds) => self.record.wake_at = Some(self.now.plus_ms(seconds.saturating_mul(1000))),
                Err(cause) => self.fail(TaskError::new(RUNTIME, cause)),
            }
        }
    }

    fn leave(&mut self, next: &Next, output: Value) {
        let kind = self.machine.states.get(&self.record.state).map_or("", State::type_name);
        self.happened(format!("{kind}StateExited"), json!({}));
        match next {
            Next::State(name) => self.enter(name, output),
            Next::End => {
                self.record.output = Some(output);
                self.end(Status::Succeeded, "ExecutionSucceeded", None);
            }
        }
    }

    fn fail(&mut self, error: TaskError) {
        self.end(Status::Failed, "ExecutionFailed", Some(error));
    }

    fn end(&mut self, status: Status, event: &str, error: Option<TaskError>) {
        self.record.status = status;
        self.record.wake_at = None;
        self.record.awaited = None;
        let detail = match &error {
            Some(error) => error_output(error),
            None => json!({"output": self.record.output}),
        };
        self.record.error = error;
        self.happened(event, detail);
    }

    /// Whether the machine's own time was up, and the execution ended by it.
    fn out_of_time(&mut self) -> bool {
        let over = deadline(self.machine, self.record).is_some_and(|end| self.now >= end);
        if over {
            let limit = self.machine.timeout_seconds.unwrap_or(0);
            let cause =
                format!("the execution took longer than its {limit} s, and was in state `{}`", self.record.state);
            self.end(Status::TimedOut, "ExecutionTimedOut", Some(TaskError::new(TIMEOUT, cause)));
        }
        over
    }

    fn choose(&mut self, choice: &Choice) {
        match chosen(choice, &self.record.input) {
            Ok(next) => self.leave(&Next::State(next.to_owned()), self.record.input.clone()),
            Err(error) => self.fail(error),
        }
    }

    fn pass(&mut self, pass: &Pass) {
        let input = self.record.input.clone();
        let result = pass.result.clone().unwrap_or_else(|| input.clone());
        match place(&pass.result_path, input, result) {
            Ok(output) => self.leave(&pass.next, output),
            Err(cause) => self.fail(TaskError::new(RESULT_PATH, cause)),
        }
    }

    fn fail_as_told(&mut self, fail: &Fail) {
        let input = &self.record.input;
        match (text(&fail.error, input), text(&fail.cause, input)) {
            (Ok(error), Ok(cause)) => self.fail(TaskError { error, cause }),
            (Err(why), _) | (_, Err(why)) => self.fail(TaskError::new(RUNTIME, why)),
        }
    }

    fn end_task(&mut self, task: &Task, result: Result<Value, TaskError>, jitter: f64) {
        let placed = result.and_then(|result| {
            place(&task.result_path, self.record.input.clone(), result)
                .map_err(|cause| TaskError::new(RESULT_PATH, cause))
        });
        match placed {
            Ok(output) => {
                self.happened("TaskSucceeded", json!({"step": task.step}));
                self.leave(&task.next, output);
            }
            Err(error) => self.task_failed(task, error, jitter),
        }
    }

    fn task_failed(&mut self, task: &Task, error: TaskError, jitter: f64) {
        let event = if errors::is_timeout(&error.error) { "TaskTimedOut" } else { "TaskFailed" };
        self.happened(event, error_output(&error));
        if self.retry(task, &error, jitter) {
            return;
        }
        let Some(catcher) = errors::catcher(&task.catch, &error.error) else { return self.fail(error) };
        match place(&catcher.result_path, self.record.input.clone(), error_output(&error)) {
            Ok(output) => self.leave(&Next::State(catcher.next.clone()), output),
            Err(cause) => self.fail(TaskError::new(RESULT_PATH, cause)),
        }
    }

    fn retry(&mut self, task: &Task, error: &TaskError, jitter: f64) -> bool {
        let Some((index, retrier)) = errors::retrier(&task.retry, &error.error) else { return false };
        self.record.attempts.resize(task.retry.len(), 0);
        let Some(used) = self.record.attempts.get_mut(index).filter(|used| **used < retrier.max_attempts) else {
            return false;
        };
        let delay = errors::delay_ms(retrier, *used, jitter);
        *used += 1;
        self.record.wake_at = Some(self.now.plus_ms(delay));
        // The next attempt has a token of its own.
        self.record.awaited = None;
        true
    }
}

fn error_output(error: &TaskError) -> Value {
    json!({"Error": error.error, "Cause": error.cause})
}

fn place(path: &ResultPath, input: Value, result: Value) -> Result<Value, String> {
    match path {
        ResultPath::Discard => Ok(input),
        ResultPath::At(path) => path.insert(input, result),
    }
}

fn seconds(duration: &Duration, input: &Value) -> Result<u64, String> {
    match duration {
        Duration::Seconds(seconds) => Ok(*seconds),
        Duration::SecondsPath(path) => match path.find(input).and_then(Value::as_u64) {
            Some(seconds) => Ok(seconds),
            None => Err(format!("field `SecondsPath`: `{path}` is not a whole number of seconds in the input")),
        },
    }
}

fn chosen<'c>(choice: &'c Choice, input: &Value) -> Result<&'c str, TaskError> {
    for rule in &choice.rules {
        if holds(rule, input)? {
            return Ok(&rule.next);
        }
    }
    let none = || TaskError::new(NO_CHOICE_MATCHED, "no rule of the choice matches the input, and it has no Default");
    choice.default.as_deref().ok_or_else(none)
}

fn holds(rule: &Rule, input: &Value) -> Result<bool, TaskError> {
    let missing = || format!("field `Variable`: the input has no `{}`", rule.variable);
    let value = rule.variable.find(input).ok_or_else(|| TaskError::new(RUNTIME, missing()))?;
    Ok(match &rule.equals {
        Comparison::Text(text) => value.as_str() == Some(text),
        Comparison::Flag(flag) => value.as_bool() == Some(*flag),
    })
}

fn text(text: &Text, input: &Value) -> Result<String, String> {
    match text {
        Text::Fixed(text) => Ok(text.clone()),
        Text::At(path) => match path.find(input).and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(format!("the Fail state's `{path}` is not a text in the input")),
        },
    }
}

#[cfg(test)]
mod tests;
