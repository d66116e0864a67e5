//! Attachments of volumes to replication and conversion servers.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_ec2::types::{Instance, Volume, VolumeAttachment, VolumeAttachmentState as Attachment, VolumeState};
use rehost_control::PortError;
use rehost_control::ports::PortResult;
use rehost_model::{InstanceId, VolumeId};
use tokio::time::sleep;

use crate::Ec2Compute;
use crate::devices::free_device;
use crate::errors::{code, failed};
use crate::volumes::check_sound;

/// How often an attachment is looked at until it is complete, with a pause that grows: three seconds in all.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// How a volume stands to an instance.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Attached,
    /// On its way there.
    Attaching,
    /// It can be attached.
    Free,
    /// Not now; why.
    Busy(String),
}

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::attach_volume`].
    pub(crate) async fn attach(&self, id: &VolumeId, instance: &InstanceId) -> PortResult<String> {
        for look in 0..LOOKS {
            if look > 0 {
                sleep(PAUSE * look).await;
            }
            if self.advance_attachment(id, instance).await? {
                return Ok(location(id));
            }
        }
        Err(PortError::conflict(format!(
            "the volume {id} is still being attached to {instance}; it is looked at again"
        )))
    }

    /// Asks for the attachment if that has not been done; whether it is complete. `Conflict` while it cannot be asked for.
    pub(crate) async fn advance_attachment(&self, id: &VolumeId, instance: &InstanceId) -> PortResult<bool> {
        let volume = self.existing_volume(id).await?;
        check_sound(id, &volume)?;
        match standing(&volume, instance) {
            Standing::Attached => Ok(true),
            Standing::Attaching => Ok(false),
            Standing::Busy(why) => {
                Err(PortError::conflict(format!("the volume {id} cannot be attached to {instance} now: {why}")))
            }
            Standing::Free => self.ask_for_attachment(id, instance).await.map(|()| false),
        }
    }

    async fn ask_for_attachment(&self, id: &VolumeId, instance: &InstanceId) -> PortResult<()> {
        let gone = || PortError::not_found(format!("the instance {instance} does not exist (any more)"));
        let described = self.described(instance).await?.ok_or_else(gone)?;
        let device = free_device(&devices_of(&described), id).ok_or_else(|| {
            PortError::invalid(format!("{instance} has no device name left for {id}: attach it to another instance"))
        })?;
        let call = self.ec2.attach_volume().volume_id(id.as_str()).instance_id(instance.as_str()).device(&device);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(e) if is_taken(code(&e), e.as_service_error().and_then(|e| e.meta().message())) => {
                Err(PortError::conflict(format!(
                    "{device} of {instance} was taken by another volume just now; it is tried again"
                )))
            }
            Err(e) => Err(failed("ec2:AttachVolume", format_args!("{id} to {instance}"), &e)),
        }
    }

    /// See [`rehost_control::ports::Compute::detach_volume`].
    pub(crate) async fn detach(&self, id: &VolumeId, instance: &InstanceId) -> PortResult<()> {
        let Some(volume) = self.volume(id).await? else { return Ok(()) };
        let attached = |a: &&VolumeAttachment| a.instance_id() == Some(instance.as_str());
        let attachment = volume.attachments().iter().find(attached).and_then(VolumeAttachment::state);
        match attachment {
            None | Some(Attachment::Detached | Attachment::Detaching | Attachment::Busy) => return Ok(()),
            Some(Attachment::Attaching) => {
                return Err(PortError::conflict(format!(
                    "the volume {id} is just being attached to {instance}; it is tried again"
                )));
            }
            Some(_) => {}
        }
        let call = self.ec2.detach_volume().volume_id(id.as_str()).instance_id(instance.as_str());
        match call.send().await {
            Ok(_) => Ok(()),
            // It was detached meanwhile, perhaps because the instance ended.
            Err(e)
                if matches!(
                    code(&e),
                    Some("IncorrectState" | "InvalidAttachment.NotFound" | "InvalidVolume.NotFound")
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(failed("ec2:DetachVolume", format_args!("{id} from {instance}"), &e)),
        }
    }
}

/// Where a replication server finds a volume: by the serial number of its NVMe device.
pub(crate) fn location(volume: &VolumeId) -> String {
    format!("nvme:{}", volume.nvme_serial())
}

fn standing(volume: &Volume, instance: &InstanceId) -> Standing {
    if let Some(attachment) = volume.attachments().iter().find(|a| a.state() != Some(&Attachment::Detached)) {
        return standing_of_attachment(attachment, instance);
    }
    match volume.state() {
        Some(VolumeState::Available) => Standing::Free,
        Some(state) => Standing::Busy(format!("it is {state}")),
        None => Standing::Busy("EC2 does not say how it is".to_owned()),
    }
}

fn standing_of_attachment(attachment: &VolumeAttachment, instance: &InstanceId) -> Standing {
    let there = attachment.instance_id().unwrap_or("another instance");
    match attachment.state() {
        Some(Attachment::Attached) if there == instance.as_str() => Standing::Attached,
        Some(Attachment::Attaching) if there == instance.as_str() => Standing::Attaching,
        Some(state) => Standing::Busy(format!("it is {state} at {there}")),
        None => Standing::Busy(format!("it is at {there}")),
    }
}

/// The device names that are in use on an instance.
pub(crate) fn devices_of(instance: &Instance) -> BTreeSet<String> {
    instance.block_device_mappings().iter().filter_map(|mapping| mapping.device_name().map(str::to_owned)).collect()
}

/// EC2 has no code of its own for a device name that is in use.
fn is_taken(code: Option<&str>, message: Option<&str>) -> bool {
    code == Some("InvalidParameterValue") && message.is_some_and(|message| message.contains("already in use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(state: VolumeState, attachment: Option<(Attachment, &InstanceId)>) -> Volume {
        let attachments = attachment
            .map(|(state, instance)| VolumeAttachment::builder().state(state).instance_id(instance.as_str()).build());
        Volume::builder().state(state).set_attachments(Some(attachments.into_iter().collect())).build()
    }

    #[test]
    fn a_volume_is_attached_once_and_waited_for_otherwise() {
        let (here, there) = (InstanceId::generate(), InstanceId::generate());
        let in_use = |state, instance| standing(&volume(VolumeState::InUse, Some((state, instance))), &here);
        assert_eq!(in_use(Attachment::Attached, &here), Standing::Attached);
        assert_eq!(in_use(Attachment::Attaching, &here), Standing::Attaching);
        assert!(matches!(in_use(Attachment::Attached, &there), Standing::Busy(why) if why.contains(there.as_str())));
        for state in [Attachment::Detaching, Attachment::Busy] {
            assert!(matches!(in_use(state, &here), Standing::Busy(_)));
        }
        let alone = |state| standing(&volume(state, None), &here);
        assert_eq!(alone(VolumeState::Available), Standing::Free);
        assert_eq!(alone(VolumeState::Creating), Standing::Busy("it is creating".to_owned()));
        let detached = volume(VolumeState::Available, Some((Attachment::Detached, &here)));
        assert_eq!(standing(&detached, &here), Standing::Free);
    }

    #[test]
    fn a_taken_device_name_is_known_by_its_message() {
        let message = "Invalid value '/dev/sdf' for unixDevice. Attachment point /dev/sdf is already in use";
        assert!(is_taken(Some("InvalidParameterValue"), Some(message)));
        assert!(!is_taken(Some("InvalidParameterValue"), Some("Invalid value 'x' for unixDevice.")));
        assert!(!is_taken(Some("IncorrectState"), Some(message)));
    }
}
