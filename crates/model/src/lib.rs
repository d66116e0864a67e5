//! The domain of rehost: source servers and their lifecycle, replication, jobs, snapshots, templates and events.
//!
//! Pure data and pure functions: no I/O, no clock, no other crate of the workspace. Names, enumerations and the serialised
//! shapes are those of AWS MGN's public API (service model `mgn` 2020-02-26) wherever MGN has a word for a thing, so that
//! [`SourceServer`] and [`Job`] travel to MGN's own clients as they are.

pub mod conversion;
pub mod event;
pub mod id;
pub mod job;
pub mod launch;
pub mod ledger;
pub mod lifecycle;
pub mod link;
pub mod observed;
pub mod region;
pub mod replication;
pub mod replicator;
pub mod server;
pub mod settings;
pub mod snapshot;
pub mod timestamp;

pub use id::{
    Epoch, ExecutionId, ImageId, InstanceId, JobId, LaunchTemplateId, ReplicationTemplateId, ReplicatorId,
    SecurityGroupId, ServerId, SnapshotId, TaskToken, VolumeId,
};
pub use job::Job;
pub use lifecycle::LifeCycleState;
pub use server::SourceServer;
pub use timestamp::{IsoDuration, Timestamp};
