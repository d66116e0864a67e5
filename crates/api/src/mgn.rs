//! MGN's operations: from its requests to [`operations`], and back to its shapes.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rehost_control::operations;
use rehost_model::{Job, SourceServer};
use serde_json::{Value, json};

use crate::ApiState;
use crate::error::ApiError;
use crate::extract::Admin;
use crate::page::{PageRequest, page};
use crate::requests;

type Answer = Result<Json<Value>, ApiError>;
type Accepted = Result<(StatusCode, Json<Value>), ApiError>;

pub(crate) async fn describe_source_servers(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::DescribeSourceServers>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    let servers = match request.filter()? {
        Some(filter) => operations::describe_source_servers(&state.ports, &filter).await?,
        None => Vec::new(),
    };
    let asked = PageRequest { max_results: request.max_results, next_token: request.next_token.as_deref() };
    page(&servers, asked, |_, s| s.source_server_id.to_string(), SourceServer::to_api).map(Json)
}

pub(crate) async fn start_test(State(state): State<ApiState>, Admin(request): Admin<requests::Servers>) -> Accepted {
    request.account.check(&state.ports.account)?;
    let (servers, tags) = request.checked()?;
    accepted(&operations::start_test(&state.ports, &servers, tags).await?)
}

pub(crate) async fn start_cutover(State(state): State<ApiState>, Admin(request): Admin<requests::Servers>) -> Accepted {
    request.account.check(&state.ports.account)?;
    let (servers, tags) = request.checked()?;
    accepted(&operations::start_cutover(&state.ports, &servers, tags).await?)
}

pub(crate) async fn terminate_target_instances(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Servers>,
) -> Accepted {
    request.account.check(&state.ports.account)?;
    let (servers, tags) = request.checked()?;
    accepted(&operations::terminate_target_instances(&state.ports, &servers, tags).await?)
}

pub(crate) async fn change_server_life_cycle_state(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::ChangeServerLifeCycleState>,
) -> Answer {
    request.server.account.check(&state.ports.account)?;
    let (server, target) = request.checked()?;
    shown(&operations::change_server_life_cycle_state(&state.ports, &server, target).await?)
}

pub(crate) async fn finalize_cutover(State(state): State<ApiState>, Admin(request): Admin<requests::Server>) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::finalize_cutover(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn mark_as_archived(State(state): State<ApiState>, Admin(request): Admin<requests::Server>) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::mark_as_archived(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn disconnect_from_service(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Server>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::disconnect_from_service(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn pause_replication(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Server>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::pause_replication(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn resume_replication(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Server>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::resume_replication(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn stop_replication(State(state): State<ApiState>, Admin(request): Admin<requests::Server>) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::stop_replication(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn start_replication(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Server>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::start_replication(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn retry_data_replication(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Server>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    shown(&operations::retry_data_replication(&state.ports, &request.checked()?).await?)
}

pub(crate) async fn replication_configuration(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::Server>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    let unchanged = operations::ReplicationChange::default();
    let server = operations::update_replication_configuration(&state.ports, &request.checked()?, &unchanged).await?;
    Ok(Json(configuration(&server)))
}

pub(crate) async fn update_replication_configuration(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::UpdateReplicationConfiguration>,
) -> Answer {
    request.server.account.check(&state.ports.account)?;
    let (server, change) = request.checked()?;
    let server = operations::update_replication_configuration(&state.ports, &server, &change).await?;
    Ok(Json(configuration(&server)))
}

/// MGN's `ReplicationConfiguration`.
fn configuration(server: &SourceServer) -> Value {
    let mut value = serde_json::to_value(&server.internal.replication).unwrap_or_default();
    value["sourceServerID"] = json!(server.source_server_id);
    value
}

pub(crate) async fn describe_jobs(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::DescribeJobs>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    let jobs = operations::describe_jobs(&state.ports, &request.filter()?).await?;
    let asked = PageRequest { max_results: request.max_results, next_token: request.next_token.as_deref() };
    page(&jobs, asked, |_, job| job.job_id.to_string(), Job::to_api).map(Json)
}

pub(crate) async fn describe_job_log_items(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::DescribeJobLogItems>,
) -> Answer {
    request.account.check(&state.ports.account)?;
    let items = operations::describe_job_log_items(&state.ports, &request.job()?).await?;
    let asked = PageRequest { max_results: request.max_results, next_token: request.next_token.as_deref() };
    page(&items, asked, |i, _| i.to_string(), |item| serde_json::to_value(item).unwrap_or_default()).map(Json)
}

fn shown(server: &SourceServer) -> Answer {
    Ok(Json(server.to_api()))
}

fn accepted(job: &Job) -> Accepted {
    Ok((StatusCode::ACCEPTED, Json(json!({ "job": job.to_api() }))))
}
