//! The HTTP face of rehost: MGN's operations and the endpoint of agents and replicators.
//!
//! [`router`] is the same in Lambda functions, each of which takes a [`Part`] of it, and in `rehost serve`; [`serve`] listens. MGN's operations stand at MGN's own
//! paths with its shapes and errors and are signed with SigV4, so that MGN's own clients work. What only rehost has stands
//! below `/rehost/v1/`; agents and replicators sign there with their certificates.

pub mod access;
pub mod error;
mod extract;
mod gateway;
pub mod leftovers;
mod mgn;
mod own;
mod page;
mod requests;
pub mod serve;
pub mod settings;
mod sigv4;
pub mod snapshots;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::post;
use rehost_control::authority::Authority;
use rehost_control::ports::Ports;
use rehost_model::link;

pub use access::{AccessKey, AccessKeys, Authentication, GatewayCaller, Permission, StaticKeys};
pub use error::{ApiError, Exception};
pub use sigv4::verify_for as verify_signature;

/// What the handlers work with.
#[derive(Clone)]
pub struct ApiState {
    pub ports: Ports,
    pub authentication: Authentication,
    pub authority: Arc<Authority>,
}

/// What belongs together of the API: who may call it differs, and so does the function that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Enrolment of source servers.
    Enrol,
    /// The calls of agents and replicators, signed with their certificates.
    Agent,
    /// MGN's operations and rehost's own, for administrators.
    Api,
}

impl Part {
    fn routes(self) -> Router<ApiState> {
        match self {
            Self::Enrol => Router::new().route(link::ENROL_PATH, post(own::enrol)),
            Self::Agent => agent_routes(),
            Self::Api => mgn_routes().merge(own_routes()),
        }
    }
}

/// Everything that can be asked of the control plane over HTTP.
pub fn router(state: ApiState) -> Router {
    let parts = [Part::Enrol, Part::Agent, Part::Api];
    finished(parts.into_iter().fold(Router::new(), |all, part| all.merge(part.routes())), state)
}

/// One part alone: the paths of the others are unknown.
pub fn router_of(part: Part, state: ApiState) -> Router {
    finished(part.routes(), state)
}

fn finished(routes: Router<ApiState>, state: ApiState) -> Router {
    routes
        .fallback(unknown_operation)
        .method_not_allowed_fallback(unknown_operation)
        .layer(map_response(with_request_id))
        .with_state(state)
}

fn mgn_routes() -> Router<ApiState> {
    Router::new()
        .route("/DescribeSourceServers", post(mgn::describe_source_servers))
        .route("/StartTest", post(mgn::start_test))
        .route("/StartCutover", post(mgn::start_cutover))
        .route("/ChangeServerLifeCycleState", post(mgn::change_server_life_cycle_state))
        .route("/FinalizeCutover", post(mgn::finalize_cutover))
        .route("/MarkAsArchived", post(mgn::mark_as_archived))
        .route("/TerminateTargetInstances", post(mgn::terminate_target_instances))
        .route("/DisconnectFromService", post(mgn::disconnect_from_service))
        .route("/PauseReplication", post(mgn::pause_replication))
        .route("/ResumeReplication", post(mgn::resume_replication))
        .route("/StopReplication", post(mgn::stop_replication))
        .route("/StartReplication", post(mgn::start_replication))
        .route("/RetryDataReplication", post(mgn::retry_data_replication))
        .route("/GetReplicationConfiguration", post(mgn::replication_configuration))
        .route("/UpdateReplicationConfiguration", post(mgn::update_replication_configuration))
        .route("/CreateReplicationConfigurationTemplate", post(templates::create))
        .route("/DescribeReplicationConfigurationTemplates", post(templates::describe))
        .route("/UpdateReplicationConfigurationTemplate", post(templates::update))
        .route("/DeleteReplicationConfigurationTemplate", post(templates::delete))
        .route("/DescribeJobs", post(mgn::describe_jobs))
        .route("/DescribeJobLogItems", post(mgn::describe_job_log_items))
}

fn own_routes() -> Router<ApiState> {
    Router::new()
        .route(snapshots::LIST_PATH, post(snapshots::list))
        .route(snapshots::TAKE_PATH, post(snapshots::take))
        .route(snapshots::STATUS_PATH, post(snapshots::status))
        .route(snapshots::VERIFY_PATH, post(snapshots::verify))
        .route(settings::SETTINGS_PATH, post(own::server_settings))
        .route(settings::ADD_DISK_PATH, post(own::add_disk))
        .route(leftovers::LEFTOVERS_PATH, post(leftovers::leftovers))
}

fn agent_routes() -> Router<ApiState> {
    Router::new()
        .route(link::AGENT_POLL_PATH, post(own::agent_poll))
        .route(link::AGENT_RENEW_PATH, post(own::agent_renew))
        .route(link::REPLICATOR_ENROL_PATH, post(own::replicator_enrol))
        .route(link::REPLICATOR_RENEW_PATH, post(own::replicator_renew))
        .route(link::REPLICATOR_POLL_PATH, post(own::replicator_poll))
        .route(link::REPLICATOR_MANIFEST_PATH, post(snapshots::manifest))
}

async fn unknown_operation(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(128).collect();
    let message =
        format!("`{method} {path}` is not an operation of this service; see its documentation for those it has");
    ApiError::new(Exception::UnknownOperation, message)
}

/// Clients show this id with an error, as they do for AWS's services.
async fn with_request_id(mut response: Response) -> Response {
    let mut bytes = [0u8; 16];
    if getrandom::fill(&mut bytes).is_ok()
        && let Ok(id) = HeaderValue::from_str(&hex::encode(bytes))
    {
        tracing::debug!(request = ?id, status = %response.status(), "answered");
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    response
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
