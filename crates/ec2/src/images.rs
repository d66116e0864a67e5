//! Images of converted volumes. Registering has no client token: the tag with the token is looked for first, then the name,
//! which is unique within an account.

use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, Filter, Image, ImageState as Ec2ImageState,
    ResourceType, VolumeType,
};
use rehost_control::PortError;
use rehost_control::ports::{ClientToken, ImageSpec, ImageState, PortResult};
use rehost_model::link::BootFirmware;
use rehost_model::{ImageId, SnapshotId};

use crate::Ec2Compute;
use crate::devices::{ROOT_DEVICE, data_devices};
use crate::errors::{code, failed};
use crate::tags;

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::register_image`].
    pub(crate) async fn register(&self, spec: &ImageSpec, token: &ClientToken) -> PortResult<ImageId> {
        let registered = self.images_where(tags::made_with(token)).await?;
        if let Some(image) = registered.first() {
            return image_id(image.image_id());
        }
        let all_tags = tags::complete(&spec.tags, &self.config.stack, token);
        let boot_mode = match spec.firmware {
            BootFirmware::Bios => BootModeValues::LegacyBios,
            BootFirmware::Uefi => BootModeValues::Uefi,
        };
        let registration = self
            .ec2_once
            .register_image()
            .name(&spec.name)
            .description(format!("A converted server (rehost {})", self.config.stack))
            .architecture(ArchitectureValues::X8664)
            .virtualization_type("hvm")
            .boot_mode(boot_mode)
            .ena_support(true)
            .root_device_name(ROOT_DEVICE)
            .set_block_device_mappings(Some(block_devices(&spec.snapshots)?))
            .tag_specifications(tags::specification(ResourceType::Image, &all_tags))
            .send()
            .await;
        match registration {
            Ok(registered) => image_id(registered.image_id()),
            // Registered just now by a call whose answer was lost; its tags do not show yet.
            Err(e) if code(&e) == Some("InvalidAMIName.Duplicate") => self.image_named(&spec.name, token).await,
            Err(e) => Err(failed("ec2:RegisterImage", &spec.name, &e)),
        }
    }

    /// The image of this name, if it was registered with this token.
    async fn image_named(&self, name: &str, token: &ClientToken) -> PortResult<ImageId> {
        let images = self.images_where(tags::filter("name", name)).await?;
        let mine = |image: &&Image| {
            tags::read(image.tags()).get(rehost_control::ledger::TOKEN_TAG).map(String::as_str) == Some(token.as_str())
        };
        match images.iter().find(mine) {
            Some(image) => image_id(image.image_id()),
            None => Err(PortError::conflict(format!(
                "the image name {name} is taken; unless it is this stack's own that does not show yet, deregister the other image"
            ))),
        }
    }

    /// All images of the stack that this filter lets pass, without those that others made with our tags.
    pub(crate) async fn images_where(&self, wanted: Filter) -> PortResult<Vec<Image>> {
        let pages = self
            .ec2
            .describe_images()
            .owners("self")
            .filters(wanted)
            .filters(tags::with_tag(tags::STACK_TAG, &self.config.stack))
            .into_paginator()
            .items()
            .send();
        let images = pages.collect::<Result<Vec<_>, _>>().await;
        let mut images = images.map_err(|e| failed("ec2:DescribeImages", "the stack's images", &e))?;
        images.retain(|image| !tags::are_of_another_maker(image.tags()));
        Ok(images)
    }

    /// See [`rehost_control::ports::Compute::image_state`].
    pub(crate) async fn state_of_image(&self, id: &ImageId) -> PortResult<ImageState> {
        let image = self.image(id).await?;
        let reason = || {
            let told = image.state_reason().and_then(|reason| reason.message()).map(str::to_owned);
            told.unwrap_or_else(|| "EC2 does not say why".to_owned())
        };
        Ok(match image.state() {
            Some(Ec2ImageState::Available) => ImageState::Available,
            None | Some(Ec2ImageState::Pending | Ec2ImageState::Transient) => ImageState::Pending,
            Some(Ec2ImageState::Deregistered) => return Err(no_image(id)),
            Some(state) => ImageState::Failed(format!("it is {state}: {}", reason())),
        })
    }

    /// How many volumes a copy from this image has.
    pub(crate) async fn volumes_of_image(&self, id: &ImageId) -> PortResult<usize> {
        Ok(self.image(id).await?.block_device_mappings().len())
    }

    async fn image(&self, id: &ImageId) -> PortResult<Image> {
        let described = self.ec2.describe_images().image_ids(id.as_str()).send().await;
        let described = described.map_err(|e| failed("ec2:DescribeImages", id, &e))?;
        described.images.unwrap_or_default().into_iter().next().ok_or_else(|| no_image(id))
    }

    /// See [`rehost_control::ports::Compute::deregister_image`].
    pub(crate) async fn deregister(&self, id: &ImageId) -> PortResult<()> {
        match self.ec2.deregister_image().image_id(id.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(e) if matches!(code(&e), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable")) => Ok(()),
            Err(e) => Err(failed("ec2:DeregisterImage", id, &e)),
        }
    }
}

fn no_image(id: &ImageId) -> PortError {
    PortError::not_found(format!("the image {id} does not exist (any more)"))
}

fn image_id(text: Option<&str>) -> PortResult<ImageId> {
    let unknown = |e| PortError::unavailable(format!("EC2 answered without an image's id: {e}"));
    text.unwrap_or_default().parse().map_err(unknown)
}

/// The disks of the image in their order. They go with the instance: what was launched for a test leaves nothing behind.
fn block_devices(snapshots: &[SnapshotId]) -> PortResult<Vec<BlockDeviceMapping>> {
    let devices: Vec<String> = std::iter::once(ROOT_DEVICE.to_owned()).chain(data_devices()).collect();
    if snapshots.is_empty() || snapshots.len() > devices.len() {
        let message = format!("an image has 1 to {} disks, not {}", devices.len(), snapshots.len());
        return Err(PortError::invalid(message));
    }
    let disk = |(snapshot, device): (&SnapshotId, String)| {
        let ebs = EbsBlockDevice::builder()
            .snapshot_id(snapshot.as_str())
            .volume_type(VolumeType::Gp3)
            .delete_on_termination(true);
        BlockDeviceMapping::builder().device_name(device).ebs(ebs.build()).build()
    };
    Ok(snapshots.iter().zip(devices).map(disk).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_keep_their_order_and_the_first_is_the_root() {
        let snapshots: Vec<SnapshotId> = (0..60).map(|_| SnapshotId::generate()).collect();
        let mappings = block_devices(&snapshots).unwrap();
        let of = |mapping: &BlockDeviceMapping| mapping.ebs().and_then(|ebs| ebs.snapshot_id().map(str::to_owned));
        assert!(mappings.iter().zip(&snapshots).all(|(mapping, id)| of(mapping).as_deref() == Some(id.as_str())));
        assert_eq!(mappings[0].device_name(), Some(ROOT_DEVICE));
        assert_eq!(mappings[1].device_name(), Some("/dev/sdf"));
        assert!(mappings.iter().all(|m| m.ebs().is_some_and(|ebs| ebs.delete_on_termination() == Some(true))));
    }

    #[test]
    fn an_image_has_disks_but_not_too_many() {
        assert!(block_devices(&[]).is_err());
        let many: Vec<SnapshotId> = (0..200).map(|_| SnapshotId::generate()).collect();
        assert!(block_devices(&many).is_err());
    }
}
