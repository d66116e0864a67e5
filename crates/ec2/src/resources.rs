//! What there is of a server in EC2, whatever the ledger says.

use aws_sdk_ec2::types::{Filter, InstanceStateName, Tag, VolumeState};
use rehost_control::ports::{PortResult, TaggedResource};
use rehost_model::ServerId;
use rehost_model::ledger::{ResourceKind, SERVER_TAG};

use crate::Ec2Compute;
use crate::tags;

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::tagged_resources`].
    pub(crate) async fn resources_of(&self, server: Option<&ServerId>) -> PortResult<Vec<TaggedResource>> {
        let (volumes, snapshots, images, instances) = tokio::try_join!(
            self.volumes_where(of_server(server)),
            self.snapshots_where(of_server(server)),
            self.images_where(of_server(server)),
            self.instances_where(of_server(server)),
        )?;
        let mut resources = Vec::new();
        let gone = |state: Option<&VolumeState>| matches!(state, Some(VolumeState::Deleting | VolumeState::Deleted));
        for volume in volumes.iter().filter(|volume| !gone(volume.state())) {
            resources.extend(resource(ResourceKind::Volume, volume.volume_id(), volume.tags()));
        }
        for snapshot in &snapshots {
            resources.extend(resource(ResourceKind::Snapshot, snapshot.snapshot_id(), snapshot.tags()));
        }
        for image in &images {
            resources.extend(resource(ResourceKind::Image, image.image_id(), image.tags()));
        }
        let ended = |state: Option<&InstanceStateName>| state == Some(&InstanceStateName::Terminated);
        for instance in instances.iter().filter(|instance| !ended(instance.state().and_then(|state| state.name()))) {
            resources.extend(resource(ResourceKind::Instance, instance.instance_id(), instance.tags()));
        }
        Ok(resources)
    }
}

fn of_server(server: Option<&ServerId>) -> Filter {
    server.map_or_else(|| tags::with_tag_key(SERVER_TAG), |server| tags::with_tag(SERVER_TAG, server.as_str()))
}

fn resource(kind: ResourceKind, id: Option<&str>, tags: &[Tag]) -> Option<TaggedResource> {
    Some(TaggedResource { kind, id: id?.to_owned(), tags: tags::read(tags) })
}
