//! The rule that makes migrations event-driven: *Source Server Registered* and *Source Server Replication Start Requested* start
//! `migrate`.
//!
//! On AWS it is a rule of EventBridge; a region without a bus wraps its events in [`RuledEvents`].

use std::sync::Arc;

use async_trait::async_trait;
use rehost_model::ExecutionId;
use rehost_model::event::{Event, EventType};
use serde_json::json;

use crate::ports::{Events, PortResult, Workflows};

/// Publishes events and carries out the rule.
pub struct RuledEvents {
    inner: Arc<dyn Events>,
    workflows: Arc<dyn Workflows>,
}

impl RuledEvents {
    /// Events go to `inner`; what the rule starts, to `workflows`.
    #[must_use]
    pub fn new(inner: Arc<dyn Events>, workflows: Arc<dyn Workflows>) -> Self {
        Self { inner, workflows }
    }
}

#[async_trait]
impl Events for RuledEvents {
    async fn publish(&self, event: &Event) -> PortResult<()> {
        self.inner.publish(event).await?;
        follow(self.workflows.as_ref(), event).await
    }
}

/// Starts what the rule says for this event, if anything. The same event twice starts one execution.
///
/// # Errors
/// Those of the workflows.
pub async fn follow(workflows: &dyn Workflows, event: &Event) -> PortResult<()> {
    if !matches!(event.detail_type, EventType::Registered | EventType::ReplicationStartRequested) {
        return Ok(());
    }
    let server = &event.detail.source_server_id;
    // Named after the event: the same event twice starts one execution.
    let execution = ExecutionId(format!("migrate-{server}-{}", event.detail.sequence));
    let input = json!({
        "execution": execution,
        "sourceServerID": server,
        "replicate": event.detail.data.get("replicate"),
    });
    workflows.start("migrate", &execution, input).await
}
