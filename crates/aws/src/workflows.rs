//! State machines of Step Functions.
//!
//! The state machine `machine` is named `{stack}-{machine}`, and the names of its executions begin with `{machine}-`: so the
//! ARN of an execution follows from its name alone.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sfn::Client;
use aws_sdk_sfn::operation::describe_execution::DescribeExecutionOutput;
use aws_sdk_sfn::types::ExecutionStatus as SfnStatus;
use rehost_control::PortError;
use rehost_control::ports::{ExecutionStatus, PortResult, TaskOutcome, Workflows};
use rehost_model::{ExecutionId, TaskToken};
use serde_json::Value;

use crate::RegionConfig;
use crate::error::{code, failed};

/// The longest name of an execution; characters.
const MAX_NAME: usize = 80;
/// The longest error and cause that Step Functions takes; characters ("SendTaskFailure" in its API reference).
const MAX_ERROR: usize = 256;
const MAX_CAUSE: usize = 32_768;

/// [`Workflows`] on Step Functions.
#[derive(Debug, Clone)]
pub struct StepFunctions {
    client: Client,
    /// `arn:aws:states:REGION:ACCOUNT`
    arn: String,
    stack: String,
}

impl StepFunctions {
    /// The state machines of this region.
    #[must_use]
    pub fn new(config: &RegionConfig, sdk: &SdkConfig) -> Self {
        let arn = format!("arn:{}:states:{}:{}", config.partition(), config.region, config.account);
        Self { client: Client::new(sdk), arn, stack: config.stack.clone() }
    }

    fn machine_arn(&self, machine: &str) -> String {
        format!("{}:stateMachine:{}-{machine}", self.arn, self.stack)
    }

    fn execution_arn(&self, execution: &ExecutionId) -> PortResult<String> {
        let machine = machine_of(execution)?;
        Ok(format!("{}:execution:{}-{machine}:{execution}", self.arn, self.stack))
    }
}

#[async_trait]
impl Workflows for StepFunctions {
    async fn start(&self, machine: &str, execution: &ExecutionId, input: Value) -> PortResult<()> {
        if machine_of(execution)? != machine {
            let why =
                format!("the execution `{execution}` of the state machine `{machine}` must be named `{machine}-…`");
            return Err(PortError::invalid(why));
        }
        let call = self
            .client
            .start_execution()
            .state_machine_arn(self.machine_arn(machine))
            .name(&execution.0)
            .input(input.to_string());
        match call.send().await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == Some("ExecutionAlreadyExists") => Ok(()),
            Err(e) => Err(failed("states:StartExecution", execution, &e)),
        }
    }

    async fn stop(&self, execution: &ExecutionId, cause: &str) -> PortResult<()> {
        let call = self.client.stop_execution().execution_arn(self.execution_arn(execution)?);
        let answer = call.cause(cut(cause, MAX_CAUSE)).send().await;
        answer.map(|_| ()).map_err(|e| failed("states:StopExecution", execution, &e))
    }

    async fn status(&self, execution: &ExecutionId) -> PortResult<Option<ExecutionStatus>> {
        let call = self.client.describe_execution().execution_arn(self.execution_arn(execution)?);
        match call.send().await {
            Ok(answer) => status_of(execution, answer).map(Some),
            Err(e) if code(&e) == Some("ExecutionDoesNotExist") => Ok(None),
            Err(e) => Err(failed("states:DescribeExecution", execution, &e)),
        }
    }

    async fn report(&self, token: &TaskToken, outcome: TaskOutcome) -> PortResult<()> {
        const SUBJECT: &str = "a task that waits";
        match outcome {
            TaskOutcome::Success(output) => {
                let call = self.client.send_task_success().task_token(&token.0).output(output.to_string());
                let answer = call.send().await;
                answer.map(|_| ()).map_err(|e| failed("states:SendTaskSuccess", SUBJECT, &e))
            }
            TaskOutcome::Failure { error, cause } => {
                let call = self.client.send_task_failure().task_token(&token.0);
                let answer = call.error(cut(&error, MAX_ERROR)).cause(cut(&cause, MAX_CAUSE)).send().await;
                answer.map(|_| ()).map_err(|e| failed("states:SendTaskFailure", SUBJECT, &e))
            }
        }
    }

    async fn heartbeat(&self, token: &TaskToken) -> PortResult<()> {
        let answer = self.client.send_task_heartbeat().task_token(&token.0).send().await;
        answer.map(|_| ()).map_err(|e| failed("states:SendTaskHeartbeat", "a task that waits", &e))
    }
}

/// The state machine of an execution: what its name begins with.
fn machine_of(execution: &ExecutionId) -> PortResult<&str> {
    let name = execution.0.as_str();
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let sound = name.len() <= MAX_NAME && name.bytes().all(allowed);
    let machine = name.split_once('-').map(|(machine, _)| machine).filter(|machine| sound && !machine.is_empty());
    machine.ok_or_else(|| {
        let shown: String = name.chars().take(MAX_NAME).collect();
        PortError::invalid(format!(
            "{shown:?} is no name of an execution: a machine's name, a hyphen, and more of `A-Z a-z 0-9 - _`; at most \
             {MAX_NAME} characters"
        ))
    })
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

fn status_of(execution: &ExecutionId, answer: DescribeExecutionOutput) -> PortResult<ExecutionStatus> {
    Ok(match answer.status {
        SfnStatus::Running | SfnStatus::PendingRedrive => ExecutionStatus::Running,
        SfnStatus::Aborted => ExecutionStatus::Aborted,
        SfnStatus::Succeeded => ExecutionStatus::Succeeded(output_of(execution, answer.output.as_deref())?),
        status => ExecutionStatus::Failed {
            error: answer.error.unwrap_or_else(|| default_error(&status).to_owned()),
            cause: answer.cause.unwrap_or_default(),
        },
    })
}

fn output_of(execution: &ExecutionId, output: Option<&str>) -> PortResult<Value> {
    let output = output.unwrap_or("null");
    serde_json::from_str(output)
        .map_err(|e| PortError::invalid(format!("the output of the execution `{execution}` is not JSON: {e}")))
}

fn default_error(status: &SfnStatus) -> &'static str {
    match status {
        SfnStatus::TimedOut => "States.Timeout",
        _ => "States.TaskFailed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ExecutionId {
        ExecutionId(name.to_owned())
    }

    #[test]
    fn the_machine_follows_from_the_name() {
        for (name, machine) in [
            ("migrate-s-0123456789abcdef0-1", "migrate"),
            ("launch-mgnjob-0123456789abcdef0-s-0123456789abcdef0-2", "launch"),
        ] {
            assert_eq!(machine_of(&named(name)).as_deref(), Ok(machine));
        }
        let long = format!("migrate-{}", "x".repeat(80));
        for name in ["", "migrate", "-x", "migrate-a/b", "migrate-a:b", long.as_str()] {
            assert!(machine_of(&named(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 2), "äö");
        assert_eq!(cut("ab", 3), "ab");
    }
}
