//! Launched copies: from an image, with the user's launch template, on an instance type of the right size.

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{InstanceType, InstanceTypeInfo, LocationType, ResponseLaunchTemplateData};
use rehost_control::PortError;
use rehost_control::PortErrorKind;
use rehost_control::ports::{ClientToken, InstanceSpec, InstanceState, PortResult, Tags};
use rehost_model::launch::RightSizing;
use rehost_model::ledger::SERVER_TAG;
use rehost_model::link::BootFirmware;
use rehost_model::{ImageId, InstanceId};

use crate::Ec2Compute;
use crate::errors::failed;
use crate::instances::{instance_id, reason, state_of};
use crate::sizing::{self, Need};
use crate::tags::{self, PORTS_TAG};
use crate::template::{DEFAULT_VERSION, Placement, by_default_version, placement};

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::run_instance`]. EC2 starts whatever it launches: a copy that is to be left stopped is
    /// stopped as soon as it runs.
    pub(crate) async fn run_copy(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId> {
        let id = match self.launched_with(token).await? {
            Some(launched) => instance_id(launched.instance_id())?,
            None => self.launch_copy(spec, token).await?,
        };
        if !spec.start {
            self.stop(&id).await?;
        }
        Ok(id)
    }

    async fn launch_copy(&self, spec: &InstanceSpec, token: &ClientToken) -> PortResult<InstanceId> {
        let image = spec.image.as_ref().ok_or_else(|| {
            PortError::invalid(
                "EC2 launches copies from images, and none is named: register one of the converted volumes first",
            )
        })?;
        let template_id = spec.launch.ec2_launch_template_id.as_deref().filter(|id| !id.is_empty());
        let template = match template_id {
            Some(id) => Some(self.template(id, DEFAULT_VERSION).await?),
            None => None,
        };
        let placed = placement(template.as_ref(), &self.config.target_subnet, spec.private_ip)?;
        let chosen = self.instance_type(spec, image, template.as_ref(), &placed).await?;
        let request = self
            .ec2_once
            .run_instances()
            .image_id(image.as_str())
            .set_launch_template(template_id.map(by_default_version))
            .set_instance_type(chosen)
            .set_subnet_id(placed.subnet)
            .set_private_ip_address(placed.private_ip)
            .set_network_interfaces((!placed.interfaces.is_empty()).then_some(placed.interfaces));
        let subject = format!("a copy from {image}");
        self.launch(request, &subject, &tags_of(spec, &self.config.stack, token), token).await
    }

    /// The type to ask for; `None` where the launch template names it.
    async fn instance_type(
        &self,
        spec: &InstanceSpec,
        image: &ImageId,
        template: Option<&ResponseLaunchTemplateData>,
        placed: &Placement,
    ) -> PortResult<Option<InstanceType>> {
        match spec.launch.target_instance_type_right_sizing_method {
            RightSizing::None if template.is_some_and(|t| t.instance_type().is_some()) => Ok(None),
            RightSizing::None => Err(PortError::invalid(
                "no instance type for the copy: right-sizing is NONE and no launch template names one; choose BASIC, or name a \
                 launch template with an instance type (ec2LaunchTemplateID)",
            )),
            RightSizing::Basic => self.right_size(spec, image, placed).await.map(Some),
        }
    }

    async fn right_size(&self, spec: &InstanceSpec, image: &ImageId, placed: &Placement) -> PortResult<InstanceType> {
        let zone = match &placed.in_subnet {
            Some(subnet) => Some(self.subnet(subnet).await?.zone),
            None => None,
        };
        let offered = match &zone {
            Some(zone) => Some(self.offered_in(zone).await?),
            None => None,
        };
        let need = Need {
            cpus: spec.cpus,
            ram_bytes: spec.ram_bytes,
            firmware: spec.firmware,
            volumes: self.volumes_of_image(image).await?,
            offered: offered.as_ref(),
        };
        let chosen = sizing::smallest(&self.current_types(spec.firmware).await?, &need);
        chosen.ok_or_else(|| nothing_fits(&need, zone.as_deref()))
    }

    async fn offered_in(&self, zone: &str) -> PortResult<BTreeSet<String>> {
        let pages = self
            .ec2
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZone)
            .filters(tags::filter("location", zone))
            .into_paginator()
            .items()
            .send();
        let offerings = pages.collect::<Result<Vec<_>, _>>().await;
        let offerings = offerings.map_err(|e| failed("ec2:DescribeInstanceTypeOfferings", zone, &e))?;
        Ok(offerings.iter().filter_map(|o| Some(o.instance_type()?.as_str().to_owned())).collect())
    }

    async fn current_types(&self, firmware: BootFirmware) -> PortResult<Vec<InstanceTypeInfo>> {
        let boot_mode = match firmware {
            BootFirmware::Bios => "legacy-bios",
            BootFirmware::Uefi => "uefi",
        };
        let pages = self
            .ec2
            .describe_instance_types()
            .filters(tags::filter("current-generation", "true"))
            .filters(tags::filter("bare-metal", "false"))
            .filters(tags::filter("hypervisor", "nitro"))
            .filters(tags::filter("instance-storage-supported", "false"))
            .filters(tags::filter("processor-info.supported-architecture", "x86_64"))
            .filters(tags::filter("supported-boot-mode", boot_mode))
            .into_paginator()
            .items()
            .send();
        let types = pages.collect::<Result<Vec<_>, _>>().await;
        types.map_err(|e| failed("ec2:DescribeInstanceTypes", "a copy's size", &e))
    }

    async fn stop(&self, id: &InstanceId) -> PortResult<()> {
        let gone = || PortError::not_found(format!("the copy {id} does not exist (any more)"));
        let described = self.described(id).await?.ok_or_else(gone)?;
        match state_of(&described) {
            InstanceState::Stopped => Ok(()),
            InstanceState::Running => {
                let call = self.ec2.stop_instances().instance_ids(id.as_str());
                call.send().await.map(|_| ()).map_err(|e| failed("ec2:StopInstances", id, &e))
            }
            InstanceState::Pending => {
                Err(PortError::conflict(format!("the copy {id} is starting; it is stopped as soon as it runs")))
            }
            InstanceState::ShuttingDown | InstanceState::Terminated => {
                let why = reason(&described).unwrap_or_else(|| "EC2 does not say why".to_owned());
                Err(PortError::invalid(format!("the copy {id} ended as soon as it was launched: {why}")))
            }
        }
    }
}

fn nothing_fits(need: &Need<'_>, zone: Option<&str>) -> PortError {
    let mib = need.ram_bytes.div_ceil(1 << 20);
    let message = format!(
        "no current instance type{} has {} vCPUs, {mib} MiB of memory and room for {} volumes, and boots with {:?}; name one in a \
         launch template and choose right-sizing NONE, or launch into another availability zone",
        zone.map(|zone| format!(" in {zone}")).unwrap_or_default(),
        need.cpus,
        need.volumes,
        need.firmware,
    );
    PortError::new(PortErrorKind::Quota, message)
}

fn tags_of(spec: &InstanceSpec, stack: &str, token: &ClientToken) -> Tags {
    let mut all = tags::complete(&spec.tags, stack, token);
    if !spec.ports.is_empty() {
        let ports: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
        all.insert(PORTS_TAG.to_owned(), ports.join(" "));
    }
    let server = spec.tags.get(SERVER_TAG).map(String::as_str).unwrap_or_default();
    tags::named(all, format!("rehost copy of {server}"))
}
