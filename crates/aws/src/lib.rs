//! The ports on AWS: state in DynamoDB, objects in S3, secrets under KMS, events on EventBridge, state machines of Step
//! Functions. Compute is a crate of its own, because of the size of EC2's SDK.
//!
//! A function reads its [`RegionConfig`], sets the SDK up with [`sdk::load`], and assembles its [`ports`].

pub mod config;
mod error;
mod events;
mod keys;
mod objects;
pub mod sdk;
mod store;
mod workflows;

use std::sync::Arc;

use aws_config::SdkConfig;
use rehost_control::Ports;
use rehost_control::ports::{Compute, Polling};

pub use config::RegionConfig;
pub use events::EventBridgeEvents;
pub use keys::KmsKeys;
pub use objects::S3Objects;
pub use store::DynamoStore;
pub use workflows::StepFunctions;

/// The ports of a region with this compute.
#[must_use]
pub fn ports(config: &RegionConfig, sdk: &SdkConfig, compute: Arc<dyn Compute>) -> Ports {
    Ports {
        store: Arc::new(DynamoStore::new(config, sdk)),
        compute,
        objects: Arc::new(S3Objects::new(config, sdk)),
        events: Arc::new(EventBridgeEvents::new(config, sdk)),
        workflows: Arc::new(StepFunctions::new(config, sdk)),
        keys: Arc::new(KmsKeys::new(config, sdk)),
        clock: Arc::new(rehost_control::SystemClock),
        region: config.region.clone(),
        account: config.account.clone(),
        // Each replication server is reached under its own instance's address.
        replicator_hosts: Vec::new(),
        polling: Polling { idle_ms: config.poll_seconds * 1000, ..Polling::AWS },
    }
}
