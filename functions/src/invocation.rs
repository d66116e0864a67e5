//! One invocation: who asks, for what, and what came of it.

use std::future::Future;
use std::time::Instant;

use lambda_runtime::{Context, Diagnostic, LambdaEvent};
use rehost_control::steps::StepError;
use serde_json::Value;
use tracing::Instrument as _;

use crate::clock::{millis, since_epoch};
use crate::function::Function;
use crate::region::Region;
use crate::{deadline, log, metrics};

/// Where the input of an invocation keeps its ids: a step's state, or the event that was matched.
const PLACES: [&str; 2] = ["", "/detail"];

/// The ids by which an invocation is found in logs. None is a secret: a task's token and a body are never logged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) function: &'static str,
    pub(crate) request_id: String,
    pub(crate) trace_id: Option<String>,
    pub(crate) execution: Option<String>,
    pub(crate) server: Option<String>,
    pub(crate) job: Option<String>,
}

impl About {
    pub(crate) fn of(function: &'static str, input: &Value, context: &Context) -> Self {
        let id =
            |name: &str| PLACES.iter().find_map(|place| input.pointer(place)?.get(name)?.as_str().map(str::to_owned));
        Self {
            function,
            request_id: context.request_id.clone(),
            trace_id: context.xray_trace_id.clone(),
            execution: id("execution"),
            server: id("sourceServerID"),
            job: id("jobID"),
        }
    }
}

/// Carries out what was invoked. An error's name becomes the invocation's `errorType`, its cause the `errorMessage`.
pub(crate) async fn answer(
    region: &Region,
    function: Function,
    event: LambdaEvent<Value>,
) -> Result<Value, Diagnostic> {
    let LambdaEvent { payload, context } = event;
    let about = About::of(function.name(), &payload, &context);
    let work = async { function.carry_out(region.ports()?, region.stack(), payload).await };
    let span = log::span(&about);
    observed(&about, region.stack(), deadline::within(context.deadline, work)).instrument(span).await
}

/// Writes metrics and a line of the log about how it went.
async fn observed(
    about: &About,
    stack: &str,
    work: impl Future<Output = Result<Value, StepError>>,
) -> Result<Value, Diagnostic> {
    let begun = Instant::now();
    let result = work.await;
    let (took, at_ms) = (begun.elapsed(), millis(since_epoch()));
    let outcome = metrics::Outcome::of(&result);
    metrics::write(&metrics::invocation(stack, about, &outcome, took, at_ms));
    match &result {
        Ok(_) => tracing::debug!(outcome = outcome.text(), ms = millis(took), "done"),
        Err(error) => tracing::warn!(error = error.name, cause = error.cause, ms = millis(took), "failed"),
    }
    result.map_err(diagnostic)
}

fn diagnostic(error: StepError) -> Diagnostic {
    Diagnostic { error_type: error.name, error_message: error.cause }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn about(input: &Value) -> About {
        let mut context = Context::default();
        context.request_id = "r-1".to_owned();
        context.xray_trace_id = Some("Root=1-2".to_owned());
        About::of("snapshot", input, &context)
    }

    #[test]
    fn ids_are_found_in_states_and_in_events() {
        let state = json!({"execution": "migrate-s-1-1", "sourceServerID": "s-1", "jobID": 7, "token": "secret"});
        let found = about(&state);
        assert_eq!((found.request_id.as_str(), found.trace_id.as_deref()), ("r-1", Some("Root=1-2")));
        assert_eq!(
            (found.execution.as_deref(), found.server.as_deref(), found.job),
            (Some("migrate-s-1-1"), Some("s-1"), None)
        );
        assert!(!format!("{:?}", about(&state)).contains("secret"));
        let event = json!({"source": "rehost", "detail": {"sourceServerID": "s-2"}});
        assert_eq!(about(&event).server.as_deref(), Some("s-2"));
        for other in [json!(null), json!([1]), json!("text")] {
            assert_eq!(about(&other).server, None);
        }
    }

    #[tokio::test]
    async fn a_steps_error_is_what_the_state_machine_sees() {
        let error = StepError { name: "QuotaExceeded".to_owned(), cause: "ask for more volumes".to_owned() };
        let told = observed(&about(&json!({})), "rehost", async { Err(error) }).await.unwrap_err();
        assert_eq!(
            serde_json::to_value(told).unwrap(),
            json!({"errorType": "QuotaExceeded", "errorMessage": "ask for more volumes"})
        );
        let answer = observed(&about(&json!({})), "rehost", async { Ok(json!({"status": "DONE"})) }).await;
        assert_eq!(answer.unwrap(), json!({"status": "DONE"}));
    }
}
