//! What only rehost has: enrolment, the polls of agents and replicators, and the settings of a server.

use axum::Json;
use axum::extract::State;
use rehost_control::{link, operations};
use rehost_model::link::{
    AgentDirective, AgentReport, EnrolRequest, EnrolResponse, IssuedCertificate, RenewRequest, ReplicatorDirective,
    ReplicatorEnrolRequest, ReplicatorReport,
};

use crate::ApiState;
use crate::error::ApiError;
use crate::extract::{Admin, Certified, Enroller, Unsigned};
use crate::settings::{AddDiskRequest, SettingsRequest, SettingsResponse};

type Answer<T> = Result<Json<T>, ApiError>;

pub(crate) async fn enrol(
    State(state): State<ApiState>,
    Enroller(request): Enroller<EnrolRequest>,
) -> Answer<EnrolResponse> {
    Ok(Json(link::enrol(&state.ports, &request).await?))
}

pub(crate) async fn agent_poll(
    State(state): State<ApiState>,
    Certified { identity, body }: Certified<AgentReport>,
) -> Answer<AgentDirective> {
    Ok(Json(link::agent_poll(&state.ports, &identity, &body).await?))
}

pub(crate) async fn agent_renew(
    State(state): State<ApiState>,
    Certified { identity, body }: Certified<RenewRequest>,
) -> Answer<IssuedCertificate> {
    Ok(Json(link::agent_renew(&state.ports, &identity, &body).await?))
}

/// Signed by nothing: the one-time token in the body is the proof.
pub(crate) async fn replicator_enrol(
    State(state): State<ApiState>,
    Unsigned(request): Unsigned<ReplicatorEnrolRequest>,
) -> Answer<IssuedCertificate> {
    Ok(Json(link::replicator_enrol(&state.ports, &request).await?))
}

pub(crate) async fn replicator_renew(
    State(state): State<ApiState>,
    Certified { identity, body }: Certified<RenewRequest>,
) -> Answer<IssuedCertificate> {
    Ok(Json(link::replicator_renew(&state.ports, &identity, &body).await?))
}

pub(crate) async fn replicator_poll(
    State(state): State<ApiState>,
    Certified { identity, body }: Certified<ReplicatorReport>,
) -> Answer<ReplicatorDirective> {
    Ok(Json(link::replicator_poll(&state.ports, &identity, &body).await?))
}

pub(crate) async fn server_settings(
    State(state): State<ApiState>,
    Admin(request): Admin<SettingsRequest>,
) -> Answer<SettingsResponse> {
    let SettingsRequest { source_server_id, settings } = request;
    let server = operations::update_server_settings(&state.ports, &source_server_id, &settings).await?;
    Ok(Json(SettingsResponse::of(&server)))
}

pub(crate) async fn add_disk(
    State(state): State<ApiState>,
    Admin(request): Admin<AddDiskRequest>,
) -> Answer<serde_json::Value> {
    let server = operations::add_disk(&state.ports, &request.source_server_id, &request.device_name).await?;
    Ok(Json(server.to_api()))
}
