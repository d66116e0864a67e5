//! The Lambda functions of the AWS region: one program each in `src/bin`, all of them this frame around the control plane.
//!
//! [`run_with`] answers what Step Functions, EventBridge and its Scheduler invoke; [`serve_with`] answers API Gateway. Either
//! puts the ports together once per cold start, stops before Lambda would stop it, writes one line of metrics, and logs JSON
//! with the ids by which an execution is followed through all functions. The programs are built with the feature `lambda`,
//! which brings AWS; the frame and its tests do without.

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
#[cfg(feature = "lambda")]
mod programs;
mod region;

use std::future::Future;

use lambda_runtime::{LambdaEvent, Runtime, service_fn};
use rehost_control::ports::PortResult;
use serde_json::Value;

pub use function::Function;
pub use lambda_runtime::Error;
#[cfg(feature = "lambda")]
pub use programs::{run, serve};
pub use region::Connected;
pub use rehost_api::Part;

use crate::gateway::GatewayRequest;
use crate::http::Http;
use crate::region::Region;

/// Answers invocations of `function` in the region that `connect` makes, for ever.
///
/// # Errors
/// When Lambda's runtime API is not there.
pub async fn run_with<F>(function: Function, connect: impl FnOnce() -> F) -> Result<(), Error>
where
    F: Future<Output = PortResult<Connected>>,
{
    log::start();
    let region = Region::prepare(connect).await;
    let answer = |event: LambdaEvent<Value>| invocation::answer(&region, function, event);
    Runtime::new(service_fn(answer)).run().await
}

/// Answers requests for one part of the API in the region that `connect` makes, for ever.
///
/// # Errors
/// As [`run_with`].
pub async fn serve_with<F>(part: Part, connect: impl FnOnce() -> F) -> Result<(), Error>
where
    F: Future<Output = PortResult<Connected>>,
{
    log::start();
    let http = Http::prepare(part, Region::prepare(connect).await).await;
    let answer = |event: LambdaEvent<GatewayRequest>| http.answer(event);
    Runtime::new(service_fn(answer)).run().await
}

#[cfg(test)]
mod tests;
