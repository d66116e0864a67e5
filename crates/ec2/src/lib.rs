//! The port [`Compute`] on EC2: instances, volumes, snapshots and images; the content of snapshots through the EBS direct APIs;
//! tasks and reports of conversion servers through the region's objects.
//!
//! Every creation is idempotent twice over. Its client token reaches EC2 where the call takes one; and what was made carries the
//! token as a tag, which is looked for first: EC2 forgets tokens after a while, refuses them when settings changed meanwhile, and
//! several calls take none. Nothing waits here for more than seconds: what is not ready yet is a `Conflict`, which the state
//! machines try again.
//!
//! Beside the SDK's clients this crate keeps nothing that another process would have to know.

#![warn(missing_docs)]

mod attach;
mod blocks;
mod console;
mod conversion;
mod copies;
mod devices;
mod errors;
mod images;
mod instances;
mod network;
mod probe;
mod replicator;
mod resources;
mod sizing;
mod snapshots;
mod tags;
mod template;
mod user_data;
mod volumes;

use std::sync::Arc;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use rehost_aws::RegionConfig;
use rehost_control::ports::{
    ClientToken, Compute, ConversionProgress, ConversionSpec, GroupRole, GroupSource, ImageSpec, ImageState, Instance,
    InstanceSpec, Objects, PortResult, ReplicationServerSpec, SharedGroup, SnapshotState, TaggedResource, Tags,
    VolumeSpec,
};
use rehost_model::launch::{Probe, ProbeOutcome};
use rehost_model::settings::ReplicationSettings;
use rehost_model::{ImageId, InstanceId, SecurityGroupId, ServerId, SnapshotId, VolumeId};

pub use tags::STACK_TAG;

/// EC2 and EBS of one account and region, for one stack.
pub struct Ec2Compute {
    ec2: aws_sdk_ec2::Client,
    /// The same without the SDK's retries, for calls that make something: whoever tries again looks first.
    ec2_once: aws_sdk_ec2::Client,
    ebs: aws_sdk_ebs::Client,
    objects: Arc<dyn Objects>,
    config: RegionConfig,
    subnets: network::KnownSubnets,
    listing: blocks::KnownListing,
}

impl Ec2Compute {
    /// Compute for the region that `config` describes; `sdk` has the time limits and retries of every call.
    #[must_use]
    pub fn new(sdk: &SdkConfig, config: RegionConfig, objects: Arc<dyn Objects>) -> Self {
        let once = aws_sdk_ec2::config::Builder::from(sdk).retry_config(RetryConfig::disabled()).build();
        Self {
            ec2: aws_sdk_ec2::Client::new(sdk),
            ec2_once: aws_sdk_ec2::Client::from_conf(once),
            ebs: aws_sdk_ebs::Client::new(sdk),
            objects,
            config,
            subnets: network::KnownSubnets::default(),
            listing: blocks::KnownListing::default(),
        }
    }
}

#[async_trait]
impl Compute for Ec2Compute {
    async fn group_source(&self, settings: &ReplicationSettings, role: GroupRole) -> PortResult<GroupSource> {
        self.source_of_group(settings, role).await
    }

    async fn ensure_shared_group(&self, network: &str, role: GroupRole) -> PortResult<SecurityGroupId> {
        self.group_for(network, role).await
    }

    async fn shared_groups(&self) -> PortResult<Vec<SharedGroup>> {
        self.groups_elsewhere().await
    }

    async fn delete_security_group(&self, group: &SecurityGroupId) -> PortResult<()> {
        self.remove_group(group).await
    }

    async fn launch_replication_server(
        &self,
        spec: &ReplicationServerSpec,
        token: &ClientToken,
    ) -> PortResult<InstanceId> {
        self.launch_replicator(spec, token).await
    }

    async fn create_volume(&self, spec: &VolumeSpec, token: &ClientToken) -> PortResult<VolumeId> {
        self.make_volume(spec, token).await
    }

    async fn delete_volume(&self, volume: &VolumeId) -> PortResult<()> {
        self.remove_volume(volume).await
    }

    async fn modify_volume(&self, volume: &VolumeId, size_bytes: u64) -> PortResult<()> {
        self.grow_volume(volume, size_bytes).await
    }

    async fn attach_volume(&self, volume: &VolumeId, replication_server: &InstanceId) -> PortResult<String> {
        self.attach(volume, replication_server).await
    }

    async fn detach_volume(&self, volume: &VolumeId, replication_server: &InstanceId) -> PortResult<()> {
        self.detach(volume, replication_server).await
    }

    async fn create_snapshots(
        &self,
        volumes: &[VolumeId],
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<Vec<SnapshotId>> {
        self.take_snapshots(volumes, tags, token).await
    }

    async fn snapshot_state(&self, snapshot: &SnapshotId) -> PortResult<SnapshotState> {
        self.state_of_snapshot(snapshot).await
    }

    async fn read_snapshot(&self, snapshot: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>> {
        self.read_blocks(snapshot, offset, length).await
    }

    async fn delete_snapshot(&self, snapshot: &SnapshotId) -> PortResult<()> {
        self.remove_snapshot(snapshot).await
    }

    async fn start_conversion(&self, spec: &ConversionSpec, token: &ClientToken) -> PortResult<InstanceId> {
        self.launch_converter(spec, token).await
    }

    async fn conversion_progress(&self, conversion_server: &InstanceId) -> PortResult<ConversionProgress> {
        self.converter_progress(conversion_server).await
    }

    fn launches_from_images(&self) -> bool {
        true
    }

    async fn register_image(&self, spec: &ImageSpec, token: &ClientToken) -> PortResult<ImageId> {
        self.register(spec, token).await
    }

    async fn image_state(&self, image: &ImageId) -> PortResult<ImageState> {
        self.state_of_image(image).await
    }

    async fn deregister_image(&self, image: &ImageId) -> PortResult<()> {
        self.deregister(image).await
    }

    async fn run_instance(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId> {
        self.run_copy(spec, token).await
    }

    async fn instance(&self, id: &InstanceId) -> PortResult<Option<Instance>> {
        self.look_at(id).await
    }

    async fn console_output(&self, id: &InstanceId) -> PortResult<String> {
        self.console(id).await
    }

    async fn probe(&self, id: &InstanceId, probe: &Probe) -> PortResult<ProbeOutcome> {
        self.attempt(id, probe).await
    }

    async fn terminate_instance(&self, id: &InstanceId) -> PortResult<()> {
        self.terminate(id).await
    }

    async fn tagged_resources(&self, server: Option<&ServerId>) -> PortResult<Vec<TaggedResource>> {
        self.resources_of(server).await
    }
}
