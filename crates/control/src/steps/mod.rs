//! The steps that the state machines chain.
//!
//! A step takes the whole state of its execution and gives it back with what it learnt, and with `status`: `DONE`, or
//! `IN_PROGRESS` with `waitSeconds` when it has to be called again. It never waits. Run twice, late, or cut off after any call,
//! it ends in the same items and the same resources.

mod archive;
mod convert;
mod cutover;
mod finalize;
mod gate;
pub(crate) mod groups;
mod job;
mod launch;
mod provision;
mod register;
mod replication;
pub(crate) mod replicator;
pub(crate) mod snapshot;
mod terminate;
mod verify;

use rehost_model::job::{JobLogEvent, JobLogEventData, LaunchStatus};
use rehost_model::lifecycle::IllegalTransition;
use rehost_model::{ExecutionId, Job, JobId, ServerId, SourceServer};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::operations::OperationError;
use crate::ports::{PortResult, Ports};
use crate::{PortError, PortErrorKind, jobs, repo};

/// Every step, by the name under which state machines call it.
pub const NAMES: [&str; 20] = [
    "register",
    "provision",
    "replication-status",
    "request-checkpoint",
    "snapshot",
    "snapshot-failed",
    "ready-for-test",
    "gate",
    "job-status",
    "begin-job",
    "prepare-cutover",
    "convert",
    "launch-test",
    "launch-cutover",
    "verify",
    "complete-job",
    "fail-job",
    "terminate",
    "finalize",
    "archive",
];

/// Runs a step.
///
/// # Errors
/// [`StepError`]; its name is what Retry and Catch of the state machines match.
pub async fn run(ports: &Ports, step: &str, input: Value) -> Result<Value, StepError> {
    let state = State::new(input)?;
    let answer = match step {
        "register" => register::run(ports, &state).await,
        "provision" => provision::run(ports, &state).await,
        "replication-status" => replication::status(ports, &state).await,
        "ready-for-test" => replication::ready_for_test(ports, &state).await,
        "request-checkpoint" => snapshot::request(ports, &state).await,
        "snapshot" => snapshot::run(ports, &state).await,
        "snapshot-failed" => snapshot::failed(ports, &state).await,
        "gate" => gate::run(ports, &state).await,
        "job-status" => job::status(ports, &state).await,
        "begin-job" => job::begin(ports, &state).await,
        "prepare-cutover" => cutover::prepare(ports, &state).await,
        "convert" => convert::run(ports, &state).await,
        "launch-test" | "launch-cutover" => launch::run(ports, &state).await,
        "verify" => verify::run(ports, &state).await,
        "complete-job" => job::complete(ports, &state).await,
        "fail-job" => job::fail(ports, &state).await,
        "terminate" => terminate::run(ports, &state).await,
        "finalize" => finalize::run(ports, &state).await,
        "archive" => archive::run(ports, &state).await,
        other => {
            Err(StepError::new("InvalidStep", format!("there is no step `{other}`; there are {}", NAMES.join(", "))))
        }
    };
    answer.map(|answer| state.with(at_least(answer, ports.polling.step_seconds)))
}

/// Lets the state machine wait for so many seconds at least, where it is to wait at all.
fn at_least(mut answer: Value, seconds: u64) -> Value {
    if let Some(wait) = answer.get_mut("waitSeconds")
        && wait.as_u64().is_some_and(|wait| wait > 0 && wait < seconds)
    {
        *wait = seconds.into();
    }
    answer
}

/// Goes on with snapshots that a crash or a lost call cut off. To be called every few seconds.
///
/// # Errors
/// Those of the ports.
pub async fn go_on_with_snapshots(ports: &Ports) -> PortResult<()> {
    snapshot::tick(ports).await
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {cause}")]
pub struct StepError {
    /// What state machines match: `Retryable…` may go away by itself, everything else will not.
    pub name: String,
    /// What failed, where, and how to mend it.
    pub cause: String,
}

impl StepError {
    pub(crate) fn new(name: &str, cause: impl ToString) -> Self {
        Self { name: name.to_owned(), cause: cause.to_string() }
    }
}

impl From<PortError> for StepError {
    fn from(error: PortError) -> Self {
        let name = match error.kind {
            PortErrorKind::NotFound => "NotFound",
            PortErrorKind::Conflict => "RetryableConflict",
            PortErrorKind::Throttled => "RetryableThrottled",
            PortErrorKind::Unavailable => "RetryableUnavailable",
            PortErrorKind::Denied => "Denied",
            PortErrorKind::Quota => "QuotaExceeded",
            PortErrorKind::Full => "NoSpace",
            PortErrorKind::Invalid => "Invalid",
        };
        Self::new(name, error.message)
    }
}

impl From<OperationError> for StepError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Port(error) => error.into(),
            OperationError::NotFound { .. } => Self::new("NotFound", error),
            OperationError::Conflict { .. } => Self::new("Conflict", error),
            OperationError::Validation { .. } => Self::new("Invalid", error),
        }
    }
}

impl From<IllegalTransition> for StepError {
    fn from(error: IllegalTransition) -> Self {
        Self::new("IllegalTransition", error)
    }
}

/// EC2 shows what was just made only after a while: so long, what is not there may be on its way; milliseconds.
const VISIBLE_AFTER_MS: u64 = 60_000;

/// What a step answers: members to add to the state of the execution.
type Answer = Result<Value, StepError>;

fn done() -> Answer {
    Ok(json!({"status": "DONE"}))
}

/// To be called again after so many seconds, or as long as the region lets wait at least.
fn in_progress(wait_seconds: u64) -> Answer {
    Ok(json!({"status": "IN_PROGRESS", "waitSeconds": wait_seconds}))
}

/// The server was disconnected meanwhile: the chain ends here.
fn stopped() -> Answer {
    Ok(json!({"status": "STOPPED"}))
}

/// The state that an execution carries from step to step.
struct State {
    members: Map<String, Value>,
}

impl State {
    fn new(input: Value) -> Result<Self, StepError> {
        match input {
            Value::Object(members) => Ok(Self { members }),
            other => Err(StepError::new("InvalidInput", format!("a step takes a JSON object, not {other}"))),
        }
    }

    fn with(mut self, answer: Value) -> Value {
        if let Value::Object(learnt) = answer {
            self.members.extend(learnt);
        }
        Value::Object(self.members)
    }

    fn member<T: DeserializeOwned>(&self, name: &str) -> Result<T, StepError> {
        let value = self.members.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(value)
            .map_err(|e| StepError::new("InvalidInput", format!("`{name}` in the input of the step: {e}")))
    }

    fn server_id(&self) -> Result<ServerId, StepError> {
        self.member("sourceServerID")
    }

    fn job_id(&self) -> Result<JobId, StepError> {
        self.member("jobID")
    }

    fn execution(&self) -> Result<ExecutionId, StepError> {
        self.member("execution")
    }

    /// Whether a later execution of `migrate` takes the server along.
    fn is_superseded(&self, server: &SourceServer) -> bool {
        let is_chain = |name: &str| name.starts_with("migrate-");
        let chain = server.internal.chain.as_ref().map(|chain| chain.0.as_str());
        self.execution().is_ok_and(|mine| is_chain(&mine.0) && chain.is_some_and(|chain| chain != mine.0))
    }

    async fn server(&self, ports: &Ports) -> Result<SourceServer, StepError> {
        Ok(repo::server(ports, &self.server_id()?).await?)
    }
}

fn job_over(job: &JobId, server: &ServerId) -> StepError {
    StepError::new(
        "JobOver",
        format!("the job {job} is over for the server {server}: whatever comes now comes too late"),
    )
}

/// A job, one of its servers, and what was made for it so far.
struct JobContext {
    job: Job,
    server: SourceServer,
    work: rehost_model::job::LaunchWork,
}

impl JobContext {
    async fn load(ports: &Ports, state: &State) -> Result<Self, StepError> {
        let server = state.server(ports).await?;
        let job: Job = repo::load(ports, state.job_id()?.as_str()).await?;
        let work = job.work.get(&server.source_server_id).cloned().ok_or_else(|| {
            let message = format!("the server {} takes no part in the job {}", server.source_server_id, job.job_id);
            StepError::new("InvalidInput", message)
        })?;
        Ok(Self { job, server, work })
    }

    /// For what is done on the way of a launch. Whoever comes when the job is over for the server comes too late: what it made,
    /// nobody would undo any more.
    async fn load_unfinished(ports: &Ports, state: &State) -> Result<Self, StepError> {
        let context = Self::load(ports, state).await?;
        match context.outcome() {
            Some(_) => Err(job_over(&context.job.job_id, &context.server.source_server_id)),
            None => Ok(context),
        }
    }

    /// What the job came to for this server, once it is over for it.
    fn outcome(&self) -> Option<LaunchStatus> {
        let mine = self.job.participating_servers.iter().find(|p| p.source_server_id == self.server.source_server_id);
        mine.map(|mine| mine.launch_status).filter(|status| status.is_over())
    }

    fn is_cutover(&self) -> bool {
        self.job.initiated_by == rehost_model::job::InitiatedBy::StartCutover
    }

    fn purpose(&self) -> rehost_model::ledger::Purpose {
        use rehost_model::ledger::Purpose;
        if self.is_cutover() { Purpose::Cutover } else { Purpose::Test }
    }

    /// Writes down what was made, and a line of the log.
    async fn record(
        &self,
        ports: &Ports,
        event: Option<(JobLogEvent, JobLogEventData)>,
        change: impl Fn(&mut rehost_model::job::LaunchWork) + Send + Sync,
    ) -> PortResult<()> {
        let now = ports.clock.now();
        let id = &self.server.source_server_id;
        repo::update_job(ports, &self.job.job_id, |job| {
            if let Some(work) = job.work.get_mut(id) {
                change(work);
            }
            if let Some((event, data)) = event.clone() {
                jobs::log(job, now, event, data);
            }
            Ok::<_, PortError>(())
        })
        .await
        .map(|_| ())
    }

    /// Event data that names this server.
    fn event_data(&self) -> JobLogEventData {
        JobLogEventData { source_server_id: Some(self.server.source_server_id.clone()), ..JobLogEventData::default() }
    }
}

#[cfg(test)]
mod tests;
