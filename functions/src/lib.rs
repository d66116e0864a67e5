//! The Lambda functions of the AWS region: one program each in `src/bin`, all of them this frame around the control plane.
//!
//! [`run`] answers what Step Functions, EventBridge and its Scheduler invoke; [`serve`] answers API Gateway. Either puts the
//! ports together once per cold start, stops before Lambda would stop it, writes one line of metrics, and logs JSON with the
//! ids by which an execution is followed through all functions.

mod authority;
mod chores;
mod clock;
mod deadline;
mod function;
mod gateway;
mod http;
mod invocation;
mod log;
mod metrics;
mod region;

pub use function::Function;
pub use lambda_runtime::Error;
pub use rehost_api::Part;

use lambda_runtime::{LambdaEvent, Runtime, service_fn};
use serde_json::Value;

use crate::gateway::GatewayRequest;
use crate::http::Http;
use crate::region::Region;

/// Answers invocations of `function`, for ever.
///
/// # Errors
/// When Lambda's runtime API is not there.
pub async fn run(function: Function) -> Result<(), Error> {
    log::start();
    let region = Region::prepare().await;
    let answer = |event: LambdaEvent<Value>| invocation::answer(&region, function, event);
    Runtime::new(service_fn(answer)).run().await
}

/// Answers requests for one part of the API, for ever.
///
/// # Errors
/// As [`run`].
pub async fn serve(part: Part) -> Result<(), Error> {
    log::start();
    let http = Http::prepare(part, Region::prepare().await).await;
    let answer = |event: LambdaEvent<GatewayRequest>| http.answer(event);
    Runtime::new(service_fn(answer)).run().await
}

#[cfg(test)]
mod tests;
