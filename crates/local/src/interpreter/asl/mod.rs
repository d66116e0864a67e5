//! Definitions of state machines: the part of the Amazon States Language (JSONPath) that rehost uses.
//!
//! A definition is read strictly. A field, a type, a path or a resource outside this part, a `Next` that leads nowhere, a
//! state that nothing leads to, a machine that cannot end: each is refused when the definition is loaded, with the state and
//! the field named, and never when an execution has come half way.

mod fields;
mod json;
mod template;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use self::fields::Fields;
use super::path::Path;
pub use template::Template;

/// The longest name of a state, in characters.
const MAX_STATE_NAME: usize = 80;
/// The longest time that a field may name, in seconds (about three years).
pub(super) const MAX_SECONDS: u64 = 99_999_999;
/// The longest delay before a retry, in seconds (less than 366 days).
const MAX_DELAY_SECONDS: u64 = 31_622_399;

/// Why a definition was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct AslError {
    place: String,
    why: String,
}

impl AslError {
    fn new(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self { place: place.into(), why: why.into() }
    }

    fn of_state(name: &str, why: impl Into<String>) -> Self {
        Self::new(state_place(name), why)
    }
}

fn state_place(name: &str) -> String {
    format!("state `{name}`")
}

/// A definition that was found to be sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub start_at: String,
    pub timeout_seconds: Option<u64>,
    pub states: BTreeMap<String, State>,
}

/// A state, by its type.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Task(Task),
    Choice(Choice),
    Wait(Wait),
    Pass(Pass),
    Succeed,
    Fail(Fail),
}

/// Where it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    State(String),
    End,
}

/// Where a result goes in the state's input, which then is the state's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultPath {
    /// `null`: the result is dropped.
    Discard,
    At(Path),
}

/// Runs a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Such as `replication-status`, for the resource `${ReplicationStatusFunctionArn}`.
    pub step: String,
    /// Set when the end of the step is not the end of the task.
    pub callback: Option<Callback>,
    pub timeout_seconds: Option<u64>,
    pub retry: Vec<Retrier>,
    pub catch: Vec<Catcher>,
    pub result_path: ResultPath,
    pub next: Next,
}

/// A task that waits until somebody reports its token (`arn:aws:states:::lambda:invoke.waitForTaskToken`).
#[derive(Debug, Clone, PartialEq)]
pub struct Callback {
    /// What the step is called with; its answer does not count.
    pub payload: Template,
    /// The task fails when it hears nothing for so long.
    pub heartbeat_seconds: Option<u64>,
}

/// When and how often a failed task is run again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retrier {
    pub error_equals: Vec<String>,
    pub interval_seconds: u64,
    pub max_attempts: u64,
    pub backoff_rate: f64,
    pub max_delay_seconds: Option<u64>,
    /// `JitterStrategy` `FULL`: the delay is drawn from 0 to what it would have been.
    pub full_jitter: bool,
}

/// Where a task that failed for good goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Catcher {
    pub error_equals: Vec<String>,
    pub result_path: ResultPath,
    pub next: String,
}

/// Goes on by what the input says.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub rules: Vec<Rule>,
    pub default: Option<String>,
}

/// One rule of a choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub variable: Path,
    pub equals: Comparison,
    pub next: String,
}

/// What a variable is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    Text(String),
    Flag(bool),
}

/// Waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    pub duration: Duration,
    pub next: Next,
}

/// How long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Duration {
    Seconds(u64),
    SecondsPath(Path),
}

/// Passes its input on, or a fixed result.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    pub result: Option<Value>,
    pub result_path: ResultPath,
    pub next: Next,
}

/// Ends the execution as failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fail {
    pub error: Text,
    pub cause: Text,
}

/// A text of a Fail state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    Fixed(String),
    At(Path),
}

impl Machine {
    /// Reads a definition.
    ///
    /// # Errors
    /// What is wrong with it or not supported, and in which state and field.
    pub fn parse(text: &str) -> Result<Self, AslError> {
        let value = json::parse(text).map_err(|e| AslError::new("the definition", format!("is not JSON: {e}")))?;
        let mut fields = Fields::new("the state machine", value)?;
        let start_at = fields.required_text("StartAt")?;
        let timeout_seconds = fields.integer("TimeoutSeconds", 1, MAX_SECONDS)?;
        let Value::Object(states) = fields.required("States")? else {
            return Err(fields.error("States", "must be an object"));
        };
        fields.finish()?;
        let states = states.into_iter().map(named_state).collect::<Result<_, _>>()?;
        let machine = Self { start_at, timeout_seconds, states };
        machine.check_ways()?;
        Ok(machine)
    }

    /// The names of the steps that the machine's tasks run, each once.
    #[must_use]
    pub fn steps(&self) -> BTreeSet<&str> {
        self.states.values().filter_map(State::step).collect()
    }

    fn check_ways(&self) -> Result<(), AslError> {
        if !self.states.contains_key(&self.start_at) {
            let why = format!("field `StartAt`: there is no state `{}`", self.start_at);
            return Err(AslError::new("the state machine", why));
        }
        for (name, state) in &self.states {
            if let Some((field, target)) = state.ways().into_iter().find(|(_, to)| !self.states.contains_key(*to)) {
                return Err(AslError::of_state(name, format!("field `{field}`: there is no state `{target}`")));
            }
        }
        let reached = self.reachable();
        if let Some(name) = self.states.keys().find(|name| !reached.contains(name.as_str())) {
            return Err(AslError::of_state(name, "cannot be reached from `StartAt`"));
        }
        if self.states.values().any(State::is_terminal) { Ok(()) } else { Err(endless()) }
    }

    fn reachable(&self) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut open = vec![self.start_at.as_str()];
        while let Some(name) = open.pop() {
            if reached.insert(name) {
                let ways = self.states.get(name).map(State::ways).unwrap_or_default();
                open.extend(ways.into_iter().map(|(_, to)| to));
            }
        }
        reached
    }
}

fn endless() -> AslError {
    AslError::new("the state machine", "has no terminal state: give one `End`, or add a Succeed or Fail state")
}

impl State {
    /// The field and the target of every way out of the state.
    fn ways(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Task(task) => {
                let caught = task.catch.iter().map(|catcher| ("Catch", catcher.next.as_str()));
                task.next.way().into_iter().chain(caught).collect()
            }
            Self::Choice(choice) => {
                let default = choice.default.iter().map(|to| ("Default", to.as_str()));
                choice.rules.iter().map(|rule| ("Choices", rule.next.as_str())).chain(default).collect()
            }
            Self::Wait(wait) => wait.next.way().into_iter().collect(),
            Self::Pass(pass) => pass.next.way().into_iter().collect(),
            Self::Succeed | Self::Fail(_) => Vec::new(),
        }
    }

    fn step(&self) -> Option<&str> {
        if let Self::Task(task) = self { Some(&task.step) } else { None }
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Task(Task { next, .. }) | Self::Wait(Wait { next, .. }) | Self::Pass(Pass { next, .. }) => {
                *next == Next::End
            }
            Self::Choice(_) => false,
            Self::Succeed | Self::Fail(_) => true,
        }
    }

    /// The name of the state's type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Task(_) => "Task",
            Self::Choice(_) => "Choice",
            Self::Wait(_) => "Wait",
            Self::Pass(_) => "Pass",
            Self::Succeed => "Succeed",
            Self::Fail(_) => "Fail",
        }
    }
}

impl Next {
    fn way(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::State(name) => Some(("Next", name)),
            Self::End => None,
        }
    }
}

fn named_state((name, value): (String, Value)) -> Result<(String, State), AslError> {
    if name.is_empty() || name.chars().count() > MAX_STATE_NAME {
        return Err(AslError::of_state(&name, format!("a name has 1 to {MAX_STATE_NAME} characters")));
    }
    let mut fields = Fields::new(state_place(&name), value)?;
    let state = match fields.required_text("Type")?.as_str() {
        "Task" => State::Task(task(&mut fields)?),
        "Choice" => State::Choice(choice(&mut fields)?),
        "Wait" => State::Wait(wait(&mut fields)?),
        "Pass" => State::Pass(pass(&mut fields)?),
        "Succeed" => State::Succeed,
        "Fail" => State::Fail(fail(&mut fields)?),
        other => return Err(fields.error("Type", format!("`{other}` is not supported"))),
    };
    fields.finish()?;
    Ok((name, state))
}

/// The resource of a task whose step reports later.
const CALLBACK_RESOURCE: &str = "arn:aws:states:::lambda:invoke.waitForTaskToken";

fn task(fields: &mut Fields) -> Result<Task, AslError> {
    let resource = fields.required_text("Resource")?;
    let timeout_seconds = fields.integer("TimeoutSeconds", 1, MAX_SECONDS)?;
    let (step, callback) = if resource == CALLBACK_RESOURCE {
        let (step, callback) = callback(fields, timeout_seconds)?;
        (step, Some(callback))
    } else {
        (step_name(&resource).map_err(|why| fields.error("Resource", why))?, None)
    };
    Ok(Task {
        step,
        callback,
        timeout_seconds,
        retry: retriers(fields)?,
        catch: catchers(fields)?,
        result_path: result_path(fields)?,
        next: next(fields)?,
    })
}

fn callback(fields: &mut Fields, timeout_seconds: Option<u64>) -> Result<(String, Callback), AslError> {
    let mut parameters = fields.object("Parameters")?;
    let function = parameters.required_text("FunctionName")?;
    let step = step_name(&function).map_err(|why| parameters.error("FunctionName", why))?;
    let payload = parameters.required("Payload")?;
    let payload = Template::parse(payload).map_err(|why| parameters.error("Payload", why))?;
    if !payload.names_token() {
        return Err(parameters.error("Payload", "must hold `$$.Task.Token`, or nobody could ever report"));
    }
    parameters.finish()?;
    let heartbeat_seconds = fields.integer("HeartbeatSeconds", 1, MAX_SECONDS)?;
    if heartbeat_seconds.zip(timeout_seconds).is_some_and(|(heartbeat, timeout)| heartbeat >= timeout) {
        return Err(fields.error("HeartbeatSeconds", "must be less than TimeoutSeconds"));
    }
    Ok((step, Callback { payload, heartbeat_seconds }))
}

/// `${ReplicationStatusFunctionArn}` → `replication-status`.
fn step_name(resource: &str) -> Result<String, String> {
    let refused = || format!("`{resource}` is not of the form `${{StepNameFunctionArn}}`");
    let words = resource.strip_prefix("${").and_then(|r| r.strip_suffix("FunctionArn}")).ok_or_else(refused)?;
    if !words.starts_with(|c: char| c.is_ascii_uppercase()) || !words.bytes().all(|c| c.is_ascii_alphanumeric()) {
        return Err(refused());
    }
    let mut step = String::new();
    for c in words.chars() {
        if c.is_ascii_uppercase() && !step.is_empty() {
            step.push('-');
        }
        step.push(c.to_ascii_lowercase());
    }
    Ok(step)
}

fn retriers(fields: &mut Fields) -> Result<Vec<Retrier>, AslError> {
    let objects = fields.objects("Retry")?;
    let count = objects.len();
    objects.into_iter().enumerate().map(|(index, object)| retrier(object, index + 1 == count)).collect()
}

fn retrier(mut fields: Fields, last: bool) -> Result<Retrier, AslError> {
    let error_equals = error_equals(&mut fields, last)?;
    let interval_seconds = fields.integer("IntervalSeconds", 1, MAX_SECONDS)?.unwrap_or(1);
    let max_attempts = fields.integer("MaxAttempts", 0, MAX_SECONDS)?.unwrap_or(3);
    let backoff_rate = fields.rate("BackoffRate")?.unwrap_or(2.0);
    let max_delay_seconds = fields.integer("MaxDelaySeconds", 1, MAX_DELAY_SECONDS)?;
    if max_delay_seconds.is_some_and(|most| most < interval_seconds) {
        return Err(fields.error("MaxDelaySeconds", "must not be less than IntervalSeconds"));
    }
    let full_jitter = match fields.text("JitterStrategy")?.as_deref() {
        None | Some("NONE") => false,
        Some("FULL") => true,
        Some(_) => return Err(fields.error("JitterStrategy", "must be FULL or NONE")),
    };
    fields.finish()?;
    Ok(Retrier { error_equals, interval_seconds, max_attempts, backoff_rate, max_delay_seconds, full_jitter })
}

fn catchers(fields: &mut Fields) -> Result<Vec<Catcher>, AslError> {
    let objects = fields.objects("Catch")?;
    let count = objects.len();
    objects.into_iter().enumerate().map(|(index, object)| catcher(object, index + 1 == count)).collect()
}

fn catcher(mut fields: Fields, last: bool) -> Result<Catcher, AslError> {
    let error_equals = error_equals(&mut fields, last)?;
    let result_path = result_path(&mut fields)?;
    let next = fields.required_text("Next")?;
    fields.finish()?;
    Ok(Catcher { error_equals, result_path, next })
}

fn error_equals(fields: &mut Fields, last: bool) -> Result<Vec<String>, AslError> {
    let field = "ErrorEquals";
    let values = fields.list(field)?.ok_or_else(|| fields.error(field, "is missing"))?;
    let count = values.len();
    let mut names = Vec::new();
    for value in values {
        let Value::String(name) = value else { return Err(fields.error(field, "must hold error names")) };
        check_error_name(&name, count == 1 && last).map_err(|why| fields.error(field, why))?;
        names.push(name);
    }
    Ok(names)
}

fn check_error_name(name: &str, alone_and_last: bool) -> Result<(), String> {
    match name {
        "" => Err("an error name must not be empty".to_owned()),
        "States.ALL" if !alone_and_last => {
            Err("`States.ALL` must stand alone, and in the last element of the list".to_owned())
        }
        "States.ALL"
        | "States.TaskFailed"
        | "States.Timeout"
        | "States.HeartbeatTimeout"
        | "States.ParameterPathFailure"
        | "States.ResultPathMatchFailure" => Ok(()),
        reserved if reserved.starts_with("States.") => Err(format!("`{reserved}` never occurs here")),
        _ => Ok(()),
    }
}

fn result_path(fields: &mut Fields) -> Result<ResultPath, AslError> {
    let field = "ResultPath";
    match fields.value(field) {
        None => Ok(ResultPath::At(Path::parse("$").map_err(|why| fields.error(field, why))?)),
        Some(Value::Null) => Ok(ResultPath::Discard),
        Some(Value::String(text)) => Path::parse(&text).map(ResultPath::At).map_err(|why| fields.error(field, why)),
        Some(_) => Err(fields.error(field, "must be a path or null")),
    }
}

fn next(fields: &mut Fields) -> Result<Next, AslError> {
    match (fields.text("Next")?, fields.flag("End")?) {
        (Some(name), None) => Ok(Next::State(name)),
        (None, Some(true)) => Ok(Next::End),
        (None, Some(false)) => Err(fields.error("End", "must be true where it stands")),
        (None, None) => Err(fields.error("Next", "is missing, and so is `End`")),
        (Some(_), Some(_)) => Err(fields.error("End", "must not stand beside `Next`")),
    }
}

fn choice(fields: &mut Fields) -> Result<Choice, AslError> {
    let rules = fields.objects("Choices")?.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    if rules.is_empty() {
        return Err(fields.error("Choices", "is missing"));
    }
    Ok(Choice { rules, default: fields.text("Default")? })
}

fn rule(mut fields: Fields) -> Result<Rule, AslError> {
    let variable = fields.path("Variable")?.ok_or_else(|| fields.error("Variable", "is missing"))?;
    let equals = match (fields.text("StringEquals")?, fields.flag("BooleanEquals")?) {
        (Some(text), None) => Comparison::Text(text),
        (None, Some(flag)) => Comparison::Flag(flag),
        (None, None) => return Err(fields.error("StringEquals", "is missing, and so is `BooleanEquals`")),
        (Some(_), Some(_)) => return Err(fields.error("BooleanEquals", "must not stand beside `StringEquals`")),
    };
    let next = fields.required_text("Next")?;
    fields.finish()?;
    Ok(Rule { variable, equals, next })
}

fn wait(fields: &mut Fields) -> Result<Wait, AslError> {
    let duration = match (fields.integer("Seconds", 0, MAX_SECONDS)?, fields.path("SecondsPath")?) {
        (Some(seconds), None) => Duration::Seconds(seconds),
        (None, Some(path)) => Duration::SecondsPath(path),
        (None, None) => return Err(fields.error("Seconds", "is missing, and so is `SecondsPath`")),
        (Some(_), Some(_)) => return Err(fields.error("SecondsPath", "must not stand beside `Seconds`")),
    };
    Ok(Wait { duration, next: next(fields)? })
}

fn pass(fields: &mut Fields) -> Result<Pass, AslError> {
    Ok(Pass { result: fields.value("Result"), result_path: result_path(fields)?, next: next(fields)? })
}

fn fail(fields: &mut Fields) -> Result<Fail, AslError> {
    Ok(Fail { error: fail_text(fields, "Error", "ErrorPath")?, cause: fail_text(fields, "Cause", "CausePath")? })
}

fn fail_text(fields: &mut Fields, fixed: &str, path: &str) -> Result<Text, AslError> {
    match (fields.text(fixed)?, fields.path(path)?) {
        (Some(text), None) => Ok(Text::Fixed(text)),
        (None, Some(path)) => Ok(Text::At(path)),
        (None, None) => Ok(Text::Fixed(String::new())),
        (Some(_), Some(_)) => Err(fields.error(path, format!("must not stand beside `{fixed}`"))),
    }
}

#[cfg(test)]
mod tests;
