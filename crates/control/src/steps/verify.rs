//! Proves that the copy works: every probe must pass before the launch counts.

use rehost_model::InstanceId;

use super::{Answer, JobContext, State, StepError, done, in_progress};
use crate::ports::{InstanceState, Ports};

/// How much of the console goes into an error; characters.
const CONSOLE_TAIL_CHARS: usize = 600;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load_unfinished(ports, state).await?;
    let Some(instance) = &context.work.instance else {
        return Err(StepError::new("InvalidInput", "nothing was launched yet that could be verified"));
    };
    if context.server.internal.launch.launch_disposition == rehost_model::launch::LaunchDisposition::Stopped {
        return done();
    }
    let missing = match missing_proof(ports, &context, instance).await? {
        None => return done(),
        Some(missing) => missing,
    };
    let limit_ms = context.server.internal.launch.verify_timeout_seconds.saturating_mul(1000);
    let waited_ms = context.work.launched_at.map_or(0, |since| ports.clock.now().ms_since(since));
    if waited_ms <= limit_ms {
        return in_progress(ports.polling.patience(waited_ms, 1));
    }
    let cause = format!("after {} s the copy {instance} still fails: {missing}", waited_ms / 1000);
    Err(StepError::new("VerifyFailed", with_console(ports, instance, cause).await))
}

/// The first probe that does not pass, and what it saw; `None` when all pass.
async fn missing_proof(
    ports: &Ports,
    context: &JobContext,
    instance: &InstanceId,
) -> Result<Option<String>, StepError> {
    let described = ports.compute.instance(instance).await?;
    match described {
        Some(i) if matches!(i.state, InstanceState::Pending | InstanceState::Running) => {}
        other => {
            let reason = other.and_then(|i| i.state_reason).unwrap_or_else(|| "it does not run any more".to_owned());
            let cause = with_console(ports, instance, format!("the copy {instance} died: {reason}")).await;
            return Err(StepError::new("VerifyFailed", cause));
        }
    }
    for probe in &context.server.internal.launch.probes {
        let outcome = ports.compute.probe(instance, probe).await?;
        if !outcome.passed {
            return Ok(Some(format!("probe {probe}: {}", outcome.detail)));
        }
    }
    Ok(None)
}

async fn with_console(ports: &Ports, instance: &InstanceId, cause: String) -> String {
    // The console explains the failure; that it cannot be read must not hide it.
    let console = ports.compute.console_output(instance).await.unwrap_or_default();
    let console: Vec<char> = console.trim_end().chars().collect();
    let tail: String = console[console.len().saturating_sub(CONSOLE_TAIL_CHARS)..].iter().collect();
    if tail.is_empty() { cause } else { format!("{cause}; its console ends with: {tail}") }
}
