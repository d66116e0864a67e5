//! Launches the copy: from its converted volumes, or from an image of them where the region cannot do that.
//!
//! ```text
//! converted volumes ─▶ snapshots ─▶ image ─▶ instance ─▶ (the instance has volumes of its own) ─▶ image, snapshots, volumes go
//! ```
//! Each arrow may take minutes, so the step answers IN_PROGRESS and begins again with what the job has written down.

mod image;

use std::collections::BTreeMap;
use std::net::IpAddr;

use rehost_model::conversion::{ConversionRequest, ConversionTarget, RequestedDisk};
use rehost_model::job::{JobLogEvent, JobLogEventData};
use rehost_model::launch::{BootMode, FirstBoot, LaunchDisposition, LaunchedInstance};
use rehost_model::ledger::ResourceKind;
use rehost_model::link::BootFirmware;
use rehost_model::region::LOCAL_REGION;
use rehost_model::server::StagingDisk;
use rehost_model::{ImageId, InstanceId, SourceServer, VolumeId};

use super::{Answer, JobContext, State, StepError, done, in_progress};
use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, InstanceSpec, Ports};
use crate::repo;

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load_unfinished(ports, state).await?;
    if !ports.compute.launches_from_images() {
        launch(ports, &context, None).await?;
        return done();
    }
    let instance = match &context.work.instance {
        Some(instance) => instance.clone(),
        None => match image::make(ports, &context).await? {
            Some(image) => launch(ports, &context, Some(image)).await?,
            None => return in_progress(image::patience(ports, &context)),
        },
    };
    if image::is_needed(ports, &context, &instance).await? {
        return in_progress(image::patience(ports, &context));
    }
    image::remove(ports, &context).await?;
    // Its addresses are known by now.
    show_instance(ports, &context, &instance).await?;
    done()
}

async fn launch(ports: &Ports, context: &JobContext, image: Option<ImageId>) -> Result<InstanceId, StepError> {
    let (job, server) = (&context.job.job_id, &context.server.source_server_id);
    let token = ClientToken::derive(&[job.as_str(), server.as_str(), "launch"]);
    let (kind, purpose) = (ResourceKind::Instance, context.purpose());
    let planned = Planned { server, kind, purpose, job: Some(job), token: &token, billed: None };
    let spec = instance_spec(context, &planned, image);
    let instance = ledger::make(ports, &planned, ports.compute.run_instance(&spec, &token)).await?;
    let now = ports.clock.now();
    let data = JobLogEventData { target_instance_id: Some(instance.clone()), ..context.event_data() };
    context
        .record(ports, Some((JobLogEvent::LaunchStart, data)), |work| {
            work.instance = Some(instance.clone());
            work.launched_at.get_or_insert(now);
        })
        .await?;
    show_instance(ports, context, &instance).await?;
    Ok(instance)
}

fn instance_spec(context: &JobContext, planned: &Planned<'_>, image: Option<ImageId>) -> InstanceSpec {
    let server = &context.server;
    let launch = &server.internal.launch;
    let mut tags = if launch.copy_tags { server.tags.clone() } else { BTreeMap::new() };
    tags.extend(context.job.tags.clone());
    tags.extend(planned.tags());
    InstanceSpec {
        volumes: if image.is_some() { Vec::new() } else { context.work.volumes.clone() },
        image,
        launch: launch.clone(),
        private_ip: private_ip(server),
        firmware: firmware(server),
        cpus: server.source_properties.cpus.iter().map(|cpu| cpu.cores).sum::<u64>().max(1),
        ram_bytes: server.source_properties.ram_bytes,
        ports: launch.probes.iter().filter_map(rehost_model::launch::Probe::port).collect(),
        start: launch.launch_disposition == LaunchDisposition::Started,
        tags,
    }
}

/// The source's own address, where the copy is to have it: the first of the primary interface that can be one of a VPC.
fn private_ip(server: &SourceServer) -> Option<IpAddr> {
    if !server.internal.launch.copy_private_ip {
        return None;
    }
    let interfaces = &server.source_properties.network_interfaces;
    let primary = interfaces.iter().find(|i| i.is_primary).or(interfaces.first())?;
    let addresses = primary.ips.iter().filter_map(|ip| ip.split('/').next()?.parse::<IpAddr>().ok());
    addresses.into_iter().find(|ip| matches!(ip, IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_link_local()))
}

/// The firmware that the copy boots with.
pub(super) fn firmware(server: &SourceServer) -> BootFirmware {
    match server.internal.launch.boot_mode {
        BootMode::LegacyBios => BootFirmware::Bios,
        BootMode::Uefi => BootFirmware::Uefi,
        BootMode::UseSource => server.internal.firmware,
    }
}

/// What the conversion server is asked to do with these volumes of the server.
pub(super) fn conversion_request(ports: &Ports, server: &SourceServer, volumes: &[VolumeId]) -> ConversionRequest {
    let target = if ports.region == LOCAL_REGION { ConversionTarget::Qemu } else { ConversionTarget::Ec2 };
    let boot_mode = match firmware(server) {
        BootFirmware::Bios => BootMode::LegacyBios,
        BootFirmware::Uefi => BootMode::Uefi,
    };
    let disk = |(volume, disk): (&VolumeId, &StagingDisk)| RequestedDisk {
        serial: volume.nvme_serial(),
        // An image file says nothing of what the server itself calls the disk; then the order counts.
        source_device: Some(disk.device_name.clone()).filter(|name| name.starts_with("/dev/")),
    };
    let disks = volumes.iter().zip(&server.internal.staging).map(disk).collect();
    ConversionRequest::new(target, boot_mode, disks)
}

async fn show_instance(ports: &Ports, context: &JobContext, instance: &InstanceId) -> Result<(), StepError> {
    let described = ports.compute.instance(instance).await?;
    let endpoints = described.map(|i| i.endpoints).unwrap_or_default();
    let launched = LaunchedInstance {
        ec2_instance_id: instance.clone(),
        job_id: context.job.job_id.clone(),
        first_boot: FirstBoot::Waiting,
        endpoints: endpoints.into_iter().map(|(port, address)| (port, address.to_string())).collect(),
    };
    repo::update_server(ports, &context.server.source_server_id, |server| {
        match server.launched_instance.as_mut().filter(|l| l.ec2_instance_id == *instance) {
            Some(known) => known.endpoints.extend(launched.endpoints.clone()),
            None => server.launched_instance = Some(launched.clone()),
        }
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}
