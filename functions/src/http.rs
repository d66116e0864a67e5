//! One part of the API behind API Gateway.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use axum::response::IntoResponse as _;
use lambda_runtime::tower::ServiceExt as _;
use lambda_runtime::{Context, Diagnostic, LambdaEvent};
use rehost_api::{ApiError, ApiState, Authentication, Exception, Part, router_of};
use rehost_control::authority::Authority;
use rehost_control::ports::{PortResult, Ports};
use rehost_control::steps::StepError;
use tokio::sync::OnceCell;
use tracing::Instrument as _;

use crate::clock::{millis, since_epoch};
use crate::gateway::{GatewayRequest, GatewayResponse};
use crate::invocation::About;
use crate::region::Region;
use crate::{authority, deadline, log, metrics};

/// A function that serves a part of the API.
pub(crate) struct Http {
    part: Part,
    region: Region,
    router: OnceCell<Router>,
}

impl Http {
    /// Prepares the router now; where that fails, the next request tries again.
    pub(crate) async fn prepare(part: Part, region: Region) -> Self {
        let http = Self { part, region, router: OnceCell::new() };
        if let Err(error) = http.router().await {
            tracing::error!(%error, "the API cannot be served yet");
        }
        http
    }

    /// Answers a request. It always answers with HTTP: an error of the function would be a bare 500 of the gateway.
    pub(crate) async fn answer(&self, event: LambdaEvent<GatewayRequest>) -> Result<GatewayResponse, Diagnostic> {
        let LambdaEvent { payload, context } = event;
        let (about, begun) = (self.about(&context), Instant::now());
        let span = log::span(&about);
        async {
            let response = self.response(payload, context.deadline).await;
            self.note(&about, &response, begun);
            Ok(response)
        }
        .instrument(span)
        .await
    }

    async fn response(&self, request: GatewayRequest, deadline_ms: u64) -> GatewayResponse {
        let work = async { Ok(self.routed(request).await) };
        let late = |error: StepError| ApiError::new(Exception::InternalServer, error.cause).into_response();
        let response = deadline::within(deadline_ms, work).await.unwrap_or_else(late);
        match GatewayResponse::of(response).await {
            Ok(response) => response,
            Err(error) => bare(&error),
        }
    }

    async fn routed(&self, request: GatewayRequest) -> Response<Body> {
        let router = match self.router().await {
            Ok(router) => router.clone(),
            Err(error) => return ApiError::from(error).into_response(),
        };
        match request.into_http() {
            Ok(request) => router.oneshot(request).await.into_response(),
            Err(error) => error.into_response(),
        }
    }

    async fn router(&self) -> PortResult<&Router> {
        self.router.get_or_try_init(|| async { router(self.part, self.region.ports()?.clone()).await }).await
    }

    fn about(&self, context: &Context) -> About {
        let function = match self.part {
            Part::Enrol => "enrol",
            Part::Agent => "agent",
            Part::Api => "api",
        };
        About::of(function, &serde_json::Value::Null, context)
    }

    /// The gateway counts requests and their durations itself; only what failed here is worth a metric of its own.
    fn note(&self, about: &About, response: &GatewayResponse, begun: Instant) {
        if response.status_code < 500 {
            return tracing::debug!(status = response.status_code, "answered");
        }
        let outcome = metrics::Outcome::Failed(response.status_code.to_string());
        let (stack, at_ms) = (self.region.stack(), millis(since_epoch()));
        metrics::write(&metrics::invocation(stack, about, &outcome, begun.elapsed(), at_ms));
        tracing::warn!(status = response.status_code, body = response.body, "failed");
    }
}

/// The router of a part. Administrators are not known by the region's authority: their function need not read its key, and gets
/// an authority from which nobody descends.
async fn router(part: Part, ports: Ports) -> PortResult<Router> {
    let authority = match part {
        Part::Enrol | Part::Agent => authority::load(&ports).await?,
        Part::Api => Authority::generate()?,
    };
    let state = ApiState { ports, authentication: Authentication::Gateway, authority: Arc::new(authority) };
    Ok(router_of(part, state))
}

/// An error for which not even a whole response could be made.
fn bare(error: &ApiError) -> GatewayResponse {
    let body = serde_json::json!({"message": error.message(), "code": error.exception().name()}).to_string();
    let headers =
        [("content-type", "application/json"), (rehost_api::error::ERROR_TYPE_HEADER, error.exception().name())];
    GatewayResponse {
        status_code: error.exception().status().as_u16(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        body,
        is_base64_encoded: false,
    }
}

#[cfg(test)]
mod tests;
