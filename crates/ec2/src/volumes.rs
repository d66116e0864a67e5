//! Volumes: made, enlarged and deleted.

use std::time::Duration;

use aws_sdk_ec2::types::{ResourceType, Volume, VolumeModification, VolumeModificationState, VolumeState, VolumeType};
use rehost_control::ports::{ClientToken, PortResult, VolumeSpec};
use rehost_control::{PortError, PortErrorKind};
use rehost_model::VolumeId;
use rehost_model::settings::{EbsEncryption, StagingDiskType};
use tokio::time::sleep;

use crate::Ec2Compute;
use crate::errors::{code, failed};
use crate::tags;

/// EBS counts in these; bytes.
const GIB: u64 = 1 << 30;

/// HDD volumes are at least so large ("Amazon EBS volume types"); GiB.
const SMALLEST_HDD_GIB: i32 = 125;

/// How often, and after what pause, a volume is looked at until its new size shows.
const GROWTH_LOOKS: u32 = 5;
const GROWTH_PAUSE: Duration = Duration::from_secs(2);

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::create_volume`].
    pub(crate) async fn make_volume(&self, spec: &VolumeSpec, token: &ClientToken) -> PortResult<VolumeId> {
        if let Some(volume) = self.volume_made_with(token).await? {
            return usable(&volume);
        }
        let kind = volume_type(spec.staging_disk_type);
        let size = size_gib(spec.size_bytes)?;
        check_size(&kind, size)?;
        let subnet = self.subnet(self.staging_subnet_id(&spec.staging_subnet_id)).await?;
        let all_tags = tags::complete(&spec.tags, &self.config.stack, token);
        let created = self
            .ec2_once
            .create_volume()
            .availability_zone(&subnet.zone)
            .size(size)
            .set_iops(provisioned_iops(&kind, size))
            .volume_type(kind)
            .encrypted(true)
            .set_kms_key_id(key(spec)?)
            .set_snapshot_id(spec.from_snapshot.as_ref().map(ToString::to_string))
            .tag_specifications(tags::specification(ResourceType::Volume, &all_tags))
            .client_token(token.as_str())
            .send()
            .await
            .map_err(|e| failed("ec2:CreateVolume", format_args!("a volume of {size} GiB in {}", subnet.zone), &e))?;
        volume_id(created.volume_id())
    }

    /// What an earlier call with this token made. EC2 forgets a client token after a day and refuses it when the settings have
    /// changed meanwhile; the tag stays.
    async fn volume_made_with(&self, token: &ClientToken) -> PortResult<Option<Volume>> {
        let volumes = self.volumes_where(tags::made_with(token)).await?;
        let gone = |v: &Volume| matches!(v.state(), Some(VolumeState::Deleting | VolumeState::Deleted));
        // The volumes of an instance carry the instance's token; those are not asked for here.
        Ok(volumes.into_iter().find(|volume| !gone(volume)))
    }

    /// All volumes of the stack that this filter lets pass.
    pub(crate) async fn volumes_where(&self, wanted: aws_sdk_ec2::types::Filter) -> PortResult<Vec<Volume>> {
        let pages = self
            .ec2
            .describe_volumes()
            .filters(wanted)
            .filters(tags::with_tag(tags::STACK_TAG, &self.config.stack))
            .into_paginator()
            .items()
            .send();
        let volumes = pages.collect::<Result<Vec<_>, _>>().await;
        volumes.map_err(|e| failed("ec2:DescribeVolumes", "the stack's volumes", &e))
    }

    /// A volume; `None` when it does not exist (any more).
    pub(crate) async fn volume(&self, id: &VolumeId) -> PortResult<Option<Volume>> {
        match self.ec2.describe_volumes().volume_ids(id.as_str()).send().await {
            Ok(described) => Ok(described.volumes.unwrap_or_default().into_iter().next()),
            Err(e) if code(&e) == Some("InvalidVolume.NotFound") => Ok(None),
            Err(e) => Err(failed("ec2:DescribeVolumes", id, &e)),
        }
    }

    /// A volume that must exist.
    pub(crate) async fn existing_volume(&self, id: &VolumeId) -> PortResult<Volume> {
        let gone = || PortError::not_found(format!("the volume {id} does not exist (any more)"));
        self.volume(id).await?.ok_or_else(gone)
    }

    /// See [`rehost_control::ports::Compute::delete_volume`].
    pub(crate) async fn remove_volume(&self, id: &VolumeId) -> PortResult<()> {
        match self.ec2.delete_volume().volume_id(id.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == Some("InvalidVolume.NotFound") => Ok(()),
            Err(e) => Err(failed("ec2:DeleteVolume", id, &e)),
        }
    }

    /// See [`rehost_control::ports::Compute::modify_volume`].
    pub(crate) async fn grow_volume(&self, id: &VolumeId, size_bytes: u64) -> PortResult<()> {
        let wanted = size_gib(size_bytes)?;
        if size_of(&self.existing_volume(id).await?) >= wanted {
            return Ok(());
        }
        if !self.grows_already(id, wanted).await? {
            let call = self.ec2.modify_volume().volume_id(id.as_str()).size(wanted);
            call.send().await.map_err(|e| failed("ec2:ModifyVolume", format_args!("{id} to {wanted} GiB"), &e))?;
        }
        self.await_growth(id, wanted).await
    }

    async fn grows_already(&self, id: &VolumeId, wanted: i32) -> PortResult<bool> {
        let modifications = self.ec2.describe_volumes_modifications().volume_ids(id.as_str()).send().await;
        let modifications = match modifications {
            Ok(described) => described.volumes_modifications.unwrap_or_default(),
            Err(e) if code(&e) == Some("InvalidVolumeModification.NotFound") => Vec::new(),
            Err(e) => return Err(failed("ec2:DescribeVolumesModifications", id, &e)),
        };
        let grows = |m: &VolumeModification| {
            m.modification_state() == Some(&VolumeModificationState::Modifying)
                && m.target_size().unwrap_or(0) >= wanted
        };
        Ok(modifications.iter().any(grows))
    }

    /// A volume has its new size within seconds (and its new performance within hours).
    async fn await_growth(&self, id: &VolumeId, wanted: i32) -> PortResult<()> {
        for look in 0..GROWTH_LOOKS {
            if look > 0 {
                sleep(GROWTH_PAUSE).await;
            }
            if size_of(&self.existing_volume(id).await?) >= wanted {
                return Ok(());
            }
        }
        Err(PortError::conflict(format!("the volume {id} is still growing to {wanted} GiB; it is looked at again")))
    }
}

/// The id of a volume that was made earlier; an error when EBS could not make it after all.
fn usable(volume: &Volume) -> PortResult<VolumeId> {
    let id = volume_id(volume.volume_id())?;
    check_sound(&id, volume)?;
    Ok(id)
}

/// EBS finds out that it may not use a key only after it has answered.
pub(crate) fn check_sound(id: &VolumeId, volume: &Volume) -> PortResult<()> {
    if volume.state() != Some(&VolumeState::Error) {
        return Ok(());
    }
    let key = volume.kms_key_id().unwrap_or("the account's default key");
    Err(PortError::new(
        PortErrorKind::Denied,
        format!(
            "EBS could not make the volume {id}: most often it may not use its KMS key ({key}); let the key's policy allow it \
             or choose another key in the replication settings"
        ),
    ))
}

fn volume_id(text: Option<&str>) -> PortResult<VolumeId> {
    text.unwrap_or_default()
        .parse()
        .map_err(|e| PortError::unavailable(format!("EC2 answered without a volume's id: {e}")))
}

fn size_of(volume: &Volume) -> i32 {
    volume.size().unwrap_or(0)
}

/// The size for a disk of so many bytes, in GiB; the next larger one where it does not come out even.
fn size_gib(bytes: u64) -> PortResult<i32> {
    let gib = bytes.div_ceil(GIB).max(1);
    i32::try_from(gib)
        .map_err(|_| PortError::invalid(format!("no volume has {gib} GiB: leave the disk out of the migration")))
}

/// The key for a volume; none for the account's default key.
fn key(spec: &VolumeSpec) -> PortResult<Option<String>> {
    match (spec.encryption, &spec.encryption_key_arn) {
        (EbsEncryption::Default, _) => Ok(None),
        (EbsEncryption::Custom, Some(key)) => Ok(Some(key.clone())),
        (EbsEncryption::Custom, None) => Err(PortError::invalid(
            "the replication settings ask for EBS encryption with a key of their own and name none: set ebsEncryptionKeyArn",
        )),
    }
}

fn volume_type(kind: StagingDiskType) -> VolumeType {
    match kind {
        StagingDiskType::Auto | StagingDiskType::Gp3 => VolumeType::Gp3,
        StagingDiskType::Gp2 => VolumeType::Gp2,
        StagingDiskType::Io1 => VolumeType::Io1,
        StagingDiskType::Io2 => VolumeType::Io2,
        StagingDiskType::Sc1 => VolumeType::Sc1,
        StagingDiskType::St1 => VolumeType::St1,
        StagingDiskType::Standard => VolumeType::Standard,
    }
}

fn check_size(kind: &VolumeType, gib: i32) -> PortResult<()> {
    if matches!(kind, VolumeType::St1 | VolumeType::Sc1) && gib < SMALLEST_HDD_GIB {
        let message = format!(
            "a {kind} volume has at least {SMALLEST_HDD_GIB} GiB and the disk has {gib}: choose GP3 for it in the replication settings"
        );
        return Err(PortError::invalid(message));
    }
    Ok(())
}

/// io1 and io2 have no default: 3 operations per second and GiB, as gp2 has, within what every size allows.
fn provisioned_iops(kind: &VolumeType, gib: i32) -> Option<i32> {
    matches!(kind, VolumeType::Io1 | VolumeType::Io2).then(|| gib.saturating_mul(3).clamp(100, 16_000))
}

#[cfg(test)]
mod tests {
    use rehost_control::ports::Tags;

    use super::*;

    fn spec() -> VolumeSpec {
        VolumeSpec {
            size_bytes: GIB,
            from_snapshot: None,
            staging_disk_type: StagingDiskType::Gp3,
            staging_subnet_id: String::new(),
            encryption: EbsEncryption::Default,
            encryption_key_arn: None,
            tags: Tags::new(),
        }
    }

    #[test]
    fn sizes_are_rounded_up_to_whole_gib() {
        let sizes = [(0, 1), (1, 1), (GIB, 1), (GIB + 1, 2), (500 * GIB, 500)];
        for (bytes, gib) in sizes {
            assert_eq!(size_gib(bytes).unwrap(), gib, "{bytes}");
        }
        assert_eq!(size_gib(u64::MAX).unwrap_err().kind, PortErrorKind::Invalid);
    }

    #[test]
    fn a_custom_key_must_be_named() {
        assert_eq!(key(&spec()).unwrap(), None);
        let arn = "arn:aws:kms:eu-west-1:123456789012:key/k".to_owned();
        let custom = VolumeSpec { encryption: EbsEncryption::Custom, ..spec() };
        let named = VolumeSpec { encryption_key_arn: Some(arn.clone()), ..custom.clone() };
        assert_eq!(key(&named).unwrap(), Some(arn));
        assert!(key(&custom).unwrap_err().message.contains("ebsEncryptionKeyArn"));
    }

    #[test]
    fn small_disks_on_hdd_are_refused_with_a_remedy() {
        assert!(check_size(&VolumeType::St1, SMALLEST_HDD_GIB).is_ok());
        assert!(check_size(&VolumeType::Gp3, 1).is_ok());
        assert!(check_size(&VolumeType::Sc1, 1).unwrap_err().message.contains("choose GP3"));
    }

    #[test]
    fn provisioned_iops_stay_within_what_sizes_allow() {
        let of = |gib| provisioned_iops(&VolumeType::Io2, gib);
        assert_eq!((of(1), of(100), of(16_000)), (Some(100), Some(300), Some(16_000)));
        assert_eq!(provisioned_iops(&VolumeType::Gp3, 100), None);
    }

    #[test]
    fn a_volume_that_could_not_be_made_names_its_key() {
        let volume =
            Volume::builder().volume_id("vol-0123456789abcdef0").state(VolumeState::Error).kms_key_id("arn:k").build();
        let error = usable(&volume).unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Denied);
        assert!(error.message.contains("arn:k"), "{error}");
    }
}
