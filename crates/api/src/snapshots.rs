//! The endpoints for the snapshots of servers, shared with clients, and the one that takes in manifests.

use axum::Json;
use axum::extract::State;
use rehost_control::manifest;
use rehost_control::snapshots::{self, SnapshotView, TakenSnapshot, Verified, VerifyFrom};
use rehost_model::link::VolumeManifest;
use rehost_model::{ExecutionId, ServerId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ApiState;
use crate::error::ApiError;
use crate::extract::{Admin, CertifiedManifest};

/// Path of [`ListRequest`]; as the other paths here, signed with SigV4 by a key that may do everything.
pub const LIST_PATH: &str = "/rehost/v1/snapshots/list";
/// Path of [`TakeRequest`].
pub const TAKE_PATH: &str = "/rehost/v1/snapshots/take";
/// Path of [`StatusRequest`]; answered by [`TakenSnapshot`].
pub const STATUS_PATH: &str = "/rehost/v1/snapshots/status";
/// Path of [`VerifyRequest`]; answered by [`Verified`].
pub const VERIFY_PATH: &str = "/rehost/v1/snapshots/verify";

/// Asks for the snapshots of one server, or of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ListRequest {
    #[serde(rename = "sourceServerID", skip_serializing_if = "Option::is_none")]
    pub source_server_id: Option<ServerId>,
}

/// Of each server the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    pub items: Vec<SnapshotView>,
}

/// Starts a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TakeRequest {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
}

/// The execution that takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeResponse {
    pub execution: ExecutionId,
}

/// Asks how far a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatusRequest {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    pub execution: ExecutionId,
}

/// Compares a part of a snapshot with its manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifyRequest {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    #[serde(default)]
    pub from: VerifyFrom,
}

type Answer<T> = Result<Json<T>, ApiError>;

pub(crate) async fn list(State(state): State<ApiState>, Admin(request): Admin<ListRequest>) -> Answer<ListResponse> {
    let items = snapshots::list(&state.ports, request.source_server_id.as_ref()).await?;
    Ok(Json(ListResponse { items }))
}

pub(crate) async fn take(State(state): State<ApiState>, Admin(request): Admin<TakeRequest>) -> Answer<TakeResponse> {
    let execution = snapshots::take(&state.ports, &request.source_server_id).await?;
    Ok(Json(TakeResponse { execution }))
}

pub(crate) async fn status(
    State(state): State<ApiState>,
    Admin(request): Admin<StatusRequest>,
) -> Answer<TakenSnapshot> {
    Ok(Json(snapshots::status(&state.ports, &request.source_server_id, &request.execution).await?))
}

pub(crate) async fn verify(State(state): State<ApiState>, Admin(request): Admin<VerifyRequest>) -> Answer<Verified> {
    Ok(Json(snapshots::verify(&state.ports, &request.source_server_id, &request.from).await?))
}

pub(crate) async fn manifest(
    State(state): State<ApiState>,
    CertifiedManifest { identity, manifest }: CertifiedManifest<VolumeManifest>,
) -> Answer<Value> {
    manifest::receive(&state.ports, &identity, &manifest).await?;
    Ok(Json(json!({})))
}
