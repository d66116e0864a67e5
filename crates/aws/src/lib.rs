//! The ports on AWS: state in DynamoDB, objects in S3, secrets under KMS, events on EventBridge, state machines of Step
//! Functions. Compute is a crate of its own, because of the size of EC2's SDK.

pub mod config;

pub use config::RegionConfig;
