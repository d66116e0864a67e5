//! Reports of tasks that wait. A token names its execution, so that nothing has to be looked up: `<execution>.<32 hex digits>`.

use rehost_control::PortError;
use rehost_control::ports::{PortResult, TaskOutcome};
use rehost_model::TaskToken;

use super::super::errors::TaskError;
use super::super::transition::callback;
use super::{Core, check_name};

/// A token for an attempt at a task of this execution.
pub(super) fn issue(execution: &str) -> PortResult<TaskToken> {
    let mut secret = [0u8; 16];
    getrandom::fill(&mut secret).map_err(|e| PortError::unavailable(format!("no randomness for a token: {e}")))?;
    Ok(TaskToken(format!("{execution}.{}", hex::encode(secret))))
}

fn execution_of(token: &TaskToken) -> PortResult<&str> {
    let parts = token.0.rsplit_once('.').filter(|(_, secret)| secret.len() == 32);
    let (execution, _) = parts.ok_or_else(|| PortError::invalid("InvalidToken: this is not a token of a task"))?;
    check_name(execution)?;
    Ok(execution)
}

fn over(execution: &str) -> PortError {
    PortError::not_found(format!(
        "TaskTimedOut: no task of the execution `{execution}` waits with this token (any more)"
    ))
}

impl Core {
    /// See [`rehost_control::ports::Workflows::report`].
    pub(super) async fn report(&self, token: &TaskToken, outcome: TaskOutcome) -> PortResult<()> {
        let result = match outcome {
            TaskOutcome::Success(output) => Ok(output),
            TaskOutcome::Failure { error, cause } => Err(TaskError { error, cause }),
        };
        let name = execution_of(token)?;
        loop {
            let mut record = self.journal.load(name).await?.ok_or_else(|| over(name))?;
            let machine = self.machine_of(&record)?;
            let (now, jitter) = (self.clock.now(), (self.jitter)());
            let reported = callback::reported(&machine, &mut record, token, result.clone(), now, jitter);
            let happenings = reported.map_err(|_| over(name))?;
            if self.journal.commit(record, happenings, now).await? {
                self.reschedule(name, now);
                return Ok(());
            }
        }
    }

    /// See [`rehost_control::ports::Workflows::heartbeat`].
    pub(super) async fn heartbeat(&self, token: &TaskToken) -> PortResult<()> {
        let name = execution_of(token)?;
        loop {
            let mut record = self.journal.load(name).await?.ok_or_else(|| over(name))?;
            let machine = self.machine_of(&record)?;
            let now = self.clock.now();
            callback::heard(&machine, &mut record, token, now).map_err(|_| over(name))?;
            if self.journal.commit(record, Vec::new(), now).await? {
                return Ok(());
            }
        }
    }
}
