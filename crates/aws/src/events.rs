//! Events on an EventBridge bus.
//!
//! EventBridge delivers at least once and in no order: readers tell by the sequence of each server, which counts without
//! gaps. What events start is a rule of the deployment, not of this port.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use rehost_control::PortError;
use rehost_control::ports::{Events, PortResult};
use rehost_model::event::Event;
use rehost_model::region::arn;

use crate::RegionConfig;
use crate::error::{deployed, failed, refused};

const ACTION: &str = "events:PutEvents";

/// [`Events`] on EventBridge.
#[derive(Debug, Clone)]
pub struct EventBridgeEvents {
    client: Client,
    bus: String,
    region: String,
    account: String,
}

impl EventBridgeEvents {
    /// The events of this region.
    #[must_use]
    pub fn new(config: &RegionConfig, sdk: &SdkConfig) -> Self {
        Self {
            client: Client::new(sdk),
            bus: config.event_bus.clone(),
            region: config.region.clone(),
            account: config.account.clone(),
        }
    }

    fn entry(&self, event: &Event) -> Result<PutEventsRequestEntry, serde_json::Error> {
        let server = event.detail.source_server_id.as_str();
        let detail_type = serde_json::to_value(event.detail_type)?;
        Ok(PutEventsRequestEntry::builder()
            .event_bus_name(&self.bus)
            .source(&event.source)
            .detail_type(detail_type.as_str().unwrap_or_default())
            .time(DateTime::from_millis(event.time.unix_ms()))
            .resources(arn(&self.region, &self.account, "source-server", server))
            .detail(serde_json::to_string(&event.detail)?)
            .build())
    }
}

#[async_trait]
impl Events for EventBridgeEvents {
    async fn publish(&self, event: &Event) -> PortResult<()> {
        let entry =
            self.entry(event).map_err(|e| PortError::invalid(format!("an event cannot be written as JSON: {e}")))?;
        let subject = format!("event {} of {}", event.detail.sequence, event.detail.source_server_id);
        let answer = self.client.put_events().entries(entry).send().await;
        let answer = answer.map_err(|e| deployed(failed(ACTION, &subject, &e)))?;
        if answer.failed_entry_count() == 0 {
            return Ok(());
        }
        // The call succeeds although an entry failed; its code says why.
        let entry = answer.entries().iter().find(|entry| entry.error_code().is_some());
        let code = entry.and_then(|entry| entry.error_code());
        let message = entry.and_then(|entry| entry.error_message()).unwrap_or("the bus did not take it");
        Err(deployed(refused(ACTION, &subject, code, message, 400)))
    }
}
