//! MGN's operations on replication configuration templates.

use axum::Json;
use axum::extract::State;
use rehost_control::Ports;
use rehost_control::operations;
use rehost_model::region;
use rehost_model::settings::ReplicationTemplate;
use serde_json::{Value, json};

use crate::ApiState;
use crate::error::ApiError;
use crate::extract::Admin;
use crate::page::{PageRequest, page};
use crate::requests;

type Answer = Result<Json<Value>, ApiError>;

pub(crate) async fn describe(
    State(state): State<ApiState>,
    Admin(request): Admin<requests::DescribeTemplates>,
) -> Answer {
    let found = operations::describe_replication_configuration_templates(&state.ports, &request.ids()?).await?;
    let asked = PageRequest { max_results: request.max_results, next_token: request.next_token.as_deref() };
    page(&found, asked, |_, template| template.id.to_string(), |template| shown(&state.ports, template)).map(Json)
}

pub(crate) async fn create(State(state): State<ApiState>, Admin(request): Admin<requests::Template>) -> Answer {
    let made = operations::create_replication_configuration_template(&state.ports, &request.change()?).await?;
    Ok(Json(shown(&state.ports, &made)))
}

pub(crate) async fn update(State(state): State<ApiState>, Admin(request): Admin<requests::Template>) -> Answer {
    let (id, change) = (request.id()?, request.change()?);
    let changed = operations::update_replication_configuration_template(&state.ports, &id, &change).await?;
    Ok(Json(shown(&state.ports, &changed)))
}

pub(crate) async fn delete(State(state): State<ApiState>, Admin(request): Admin<requests::Template>) -> Answer {
    operations::delete_replication_configuration_template(&state.ports, &request.id()?).await?;
    Ok(Json(json!({})))
}

/// MGN's `ReplicationConfigurationTemplate`.
fn shown(ports: &Ports, template: &ReplicationTemplate) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    let kind = "replication-configuration-template";
    value["arn"] = json!(region::arn(&ports.region, &ports.account, kind, template.id.as_str()));
    value
}
