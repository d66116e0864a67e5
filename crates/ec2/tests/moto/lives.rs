//! From creation to deletion, each call twice.

use std::net::IpAddr;

use rehost_control::PortErrorKind;
use rehost_control::ports::{
    ClientToken, Compute, ConversionProgress, ConversionSpec, GroupRole, GroupSource, ImageSpec, ImageState,
    InstanceSpec, InstanceState, MAX_SNAPSHOT_READ, Objects, ReplicationServerSpec, SharedGroup, SnapshotState,
    VolumeSpec,
};
use rehost_model::conversion::{
    ConversionOutcome, ConversionReport, ConversionRequest, ConversionTarget, Finding, Severity,
};
use rehost_model::launch::{BootMode, LaunchConfiguration, Probe, RightSizing};
use rehost_model::ledger::ResourceKind;
use rehost_model::link::BootFirmware;
use rehost_model::settings::{EbsEncryption, ReplicationSettings, StagingDiskType};
use rehost_model::{ImageId, InstanceId, ReplicatorId, SecurityGroupId, SnapshotId, VolumeId};

use crate::world::{BUCKET, STACK, World, token};

const GIB: u64 = 1 << 30;

pub(crate) fn volume_spec(world: &World, token: &ClientToken, from: Option<&SnapshotId>) -> VolumeSpec {
    VolumeSpec {
        size_bytes: 3 * GIB - 1,
        from_snapshot: from.cloned(),
        staging_disk_type: StagingDiskType::Gp3,
        staging_subnet_id: String::new(),
        encryption: EbsEncryption::Default,
        encryption_key_arn: None,
        tags: world.tags("staging", token),
    }
}

pub(crate) async fn volume(world: &World, name: &str) -> VolumeId {
    let token = token(name);
    world.compute.create_volume(&volume_spec(world, &token, None), &token).await.unwrap()
}

/// What a step does about a group, but for the ledger.
async fn group(world: &World, settings: &ReplicationSettings, role: GroupRole) -> Option<SecurityGroupId> {
    match world.compute.group_source(settings, role).await.unwrap() {
        GroupSource::Unnamed => None,
        GroupSource::Given(group) => Some(group),
        GroupSource::Shared(network) => Some(world.compute.ensure_shared_group(&network, role).await.unwrap()),
    }
}

/// Replication in another network.
fn far(world: &World) -> ReplicationSettings {
    ReplicationSettings { staging_area_subnet_id: world.far_subnet.clone(), ..ReplicationSettings::default() }
}

pub(crate) async fn replicator_spec(world: &World, settings: ReplicationSettings) -> ReplicationServerSpec {
    ReplicationServerSpec {
        id: ReplicatorId::generate(),
        security_group: group(world, &settings, GroupRole::Replication).await,
        settings,
        enrol_token: "s3cret".to_owned(),
        tags: [("rehost:replicator".to_owned(), "r".to_owned())].into(),
    }
}

async fn replicator(world: &World, name: &str) -> InstanceId {
    let spec = replicator_spec(world, ReplicationSettings::default()).await;
    let token = token(name);
    let launched = world.compute.launch_replication_server(&spec, &token).await.unwrap();
    assert_eq!(world.compute.launch_replication_server(&spec, &token).await.unwrap(), launched);
    launched
}

pub(crate) fn copy_spec(world: &World, image: &ImageId, token: &ClientToken) -> InstanceSpec {
    InstanceSpec {
        volumes: Vec::new(),
        image: Some(image.clone()),
        launch: LaunchConfiguration::default(),
        private_ip: None,
        firmware: BootFirmware::Uefi,
        cpus: 2,
        ram_bytes: 4 * GIB,
        ports: vec![22, 80],
        start: true,
        tags: world.tags("test", token),
    }
}

pub(crate) async fn image(world: &World, name: &str, snapshots: Vec<SnapshotId>) -> ImageId {
    let token = token(name);
    let tags = world.tags("test", &token);
    let spec = ImageSpec { name: format!("rehost-{name}"), snapshots, firmware: BootFirmware::Uefi, tags };
    let registered = world.compute.register_image(&spec, &token).await.unwrap();
    assert_eq!(world.compute.register_image(&spec, &token).await.unwrap(), registered);
    registered
}

#[tokio::test]
async fn staging_volumes_live_and_go() {
    let world = World::new().await;
    let compute = &world.compute;
    let made = token("disk-0");
    let spec = volume_spec(&world, &made, None);
    let first = compute.create_volume(&spec, &made).await.unwrap();
    assert_eq!(compute.create_volume(&spec, &made).await.unwrap(), first);
    let asked = world.seen.last("CreateVolume");
    for (field, value) in [
        ("Size", "3"),
        ("VolumeType", "gp3"),
        ("Encrypted", "true"),
        ("AvailabilityZone", "eu-central-1a"),
        ("ClientToken", made.as_str()),
    ] {
        assert_eq!(asked[field], value, "{field}");
    }
    let listed = world.left().await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].kind, listed[0].tags["rehost:stack"].as_str()), (ResourceKind::Volume, STACK));

    for _ in 0..2 {
        compute.modify_volume(&first, 4 * GIB).await.unwrap();
        compute.modify_volume(&first, GIB).await.unwrap();
    }
    assert_eq!(world.proxy.counts()["ec2:ModifyVolume"], 1);
    let second = volume(&world, "disk-1").await;
    let (here, there) = (replicator(&world, "here").await, replicator(&world, "there").await);
    for _ in 0..2 {
        for volume in [&first, &second] {
            assert_eq!(compute.attach_volume(volume, &here).await.unwrap(), format!("nvme:{}", volume.nvme_serial()));
        }
    }
    assert_eq!(world.proxy.counts()["ec2:AttachVolume"], 2);
    let elsewhere = compute.attach_volume(&first, &there).await.unwrap_err();
    assert_eq!(elsewhere.kind, PortErrorKind::Conflict, "{elsewhere}");
    assert_eq!(compute.delete_volume(&first).await.unwrap_err().kind, PortErrorKind::Conflict);

    let taken = token("snapshots");
    let (volumes, tags) = ([second.clone(), first.clone()], world.tags("staging", &taken));
    let snapshots = compute.create_snapshots(&volumes, &tags, &taken).await.unwrap();
    assert_eq!(compute.create_snapshots(&volumes, &tags, &taken).await.unwrap(), snapshots);
    assert_eq!(compute.snapshot_state(&snapshots[0]).await.unwrap(), SnapshotState::Completed);
    let clone = token("clone");
    let clone = compute.create_volume(&volume_spec(&world, &clone, Some(&snapshots[1])), &clone).await.unwrap();
    assert_eq!(world.seen.last("CreateVolume")["SnapshotId"], snapshots[1].as_str());
    assert_eq!(world.left().await.len(), 5);

    for _ in 0..2 {
        compute.detach_volume(&first, &here).await.unwrap();
        compute.detach_volume(&second, &there).await.unwrap();
    }
    compute.attach_volume(&first, &there).await.unwrap();
    for _ in 0..2 {
        compute.terminate_instance(&here).await.unwrap();
        compute.terminate_instance(&there).await.unwrap();
    }
    assert_eq!(compute.instance(&here).await.unwrap().map(|i| i.state), Some(InstanceState::Terminated));
    for _ in 0..2 {
        for volume in [&first, &second, &clone] {
            compute.delete_volume(volume).await.unwrap();
        }
        for snapshot in &snapshots {
            compute.delete_snapshot(snapshot).await.unwrap();
        }
    }
    assert_eq!(world.left().await, []);
    compute.detach_volume(&first, &here).await.unwrap();
    assert!(compute.attach_volume(&first, &here).await.unwrap_err().is_not_found());
    assert!(compute.snapshot_state(&snapshots[0]).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn replication_servers_are_launched_as_the_settings_say() {
    let world = World::new().await;
    let launched = replicator(&world, "default").await;
    let asked = world.seen.last("RunInstances");
    for (field, value) in [
        ("LaunchTemplate.LaunchTemplateId", world.config.staging_launch_template.as_str()),
        ("LaunchTemplate.Version", "$Latest"),
        ("InstanceType", "t3.small"),
        ("NetworkInterface.1.SubnetId", &world.config.staging_subnet),
        ("NetworkInterface.1.SecurityGroupId.1", &world.config.staging_security_group),
        ("ClientToken", token("default").as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
    ] {
        assert_eq!(asked[field], value, "{field}");
    }
    assert!(!asked.contains_key("NetworkInterface.1.AssociatePublicIpAddress"));
    let script = user_data(&asked["UserData"]);
    let config = script.lines().find_map(|line| line.strip_prefix("readonly CONFIG_BASE64='")?.strip_suffix('\''));
    let config: serde_json::Value = serde_json::from_str(&user_data(config.unwrap())).unwrap();
    assert_eq!((config["enrolToken"].as_str(), config["listen"].as_str()), (Some("s3cret"), Some("0.0.0.0:1500")));
    assert_eq!(config["controlEndpoint"], world.config.endpoint.as_str());
    assert!(config.get("caFingerprint").is_none());
    assert!(script.contains(&format!("BUCKET='{BUCKET}'")));

    let described = world.compute.instance(&launched).await.unwrap().unwrap();
    assert_eq!(described.state, InstanceState::Running);
    assert!(described.private_ip.is_some_and(|ip| ip.to_string().starts_with("10.0.1.")));
    // Nothing of it is a server's own.
    assert_eq!(world.compute.tagged_resources(None).await.unwrap(), []);

    let settings = ReplicationSettings {
        replication_server_instance_type: "m5.large".to_owned(),
        create_public_ip: true,
        ..far(&world)
    };
    let spec = replicator_spec(&world, settings).await;
    let made = spec.security_group.clone().unwrap();
    assert_eq!(group(&world, &spec.settings, GroupRole::Replication).await.as_ref(), Some(&made));
    assert_ne!(made.as_str(), world.config.staging_security_group);
    assert_eq!(world.proxy.counts()["ec2:CreateSecurityGroup"], 1);
    assert_eq!(world.proxy.counts()["ec2:AuthorizeSecurityGroupIngress"], 1);
    world.compute.launch_replication_server(&spec, &token("far")).await.unwrap();
    let asked = world.seen.last("RunInstances");
    assert_eq!(asked["NetworkInterface.1.SecurityGroupId.1"], made.as_str());
    assert_eq!(asked["NetworkInterface.1.AssociatePublicIpAddress"], "true");
    assert_eq!(asked["InstanceType"], "m5.large");
}

fn user_data(base64: &str) -> String {
    use base64::Engine as _;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(base64).unwrap()).unwrap()
}

#[tokio::test]
async fn a_conversion_goes_from_its_task_to_its_report() {
    let world = World::new().await;
    let compute = &world.compute;
    let volumes = [volume(&world, "root").await, volume(&world, "data").await];
    let request = ConversionRequest::new(ConversionTarget::Ec2, BootMode::Uefi, Vec::new());
    let spec = |token: &ClientToken| ConversionSpec {
        volumes: volumes.to_vec(),
        request: request.clone(),
        staging_subnet_id: String::new(),
        security_group: None,
        tags: world.tags("conversion", token),
    };
    let converting = token("convert");
    let server = compute.start_conversion(&spec(&converting), &converting).await.unwrap();
    assert_eq!(compute.start_conversion(&spec(&converting), &converting).await.unwrap(), server);
    let asked = world.seen.last("RunInstances");
    assert_eq!(asked["LaunchTemplate.LaunchTemplateId"], world.config.conversion_launch_template);
    assert_eq!(asked["LaunchTemplate.Version"], "$Latest");
    assert_eq!(asked["SubnetId"], world.config.staging_subnet);
    assert!(user_data(&asked["UserData"]).contains("conversions/test-convert"));
    assert!(!world.proxy.counts().contains_key("ec2:CreateSecurityGroup"));
    assert_eq!(world.objects.keys(), ["conversions/test-convert/spec.json"]);
    let task = world.objects.get("conversions/test-convert/spec.json").await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<ConversionRequest>(&task).unwrap(), request);

    for _ in 0..2 {
        assert_eq!(compute.conversion_progress(&server).await.unwrap(), ConversionProgress::Running);
    }
    assert_eq!(world.proxy.counts()["ec2:AttachVolume"], 2);
    let report = ConversionReport::ended(ConversionOutcome::Converted, Finding::new(Severity::Info, "r", "c", "m"));
    let key = "conversions/test-convert/report.json";
    world.objects.put(key, serde_json::to_vec(&report).unwrap()).await.unwrap();
    let reported = ConversionProgress::Reported(Box::new(report));
    assert_eq!(compute.conversion_progress(&server).await.unwrap(), reported);
    compute.terminate_instance(&server).await.unwrap();
    assert_eq!(compute.conversion_progress(&server).await.unwrap(), reported, "also once it is gone");
    world.objects.put(key, b"{".to_vec()).await.unwrap();
    assert!(matches!(compute.conversion_progress(&server).await.unwrap(), ConversionProgress::Died(_)));

    let dying = token("dies");
    let server = compute.start_conversion(&spec(&dying), &dying).await.unwrap();
    compute.terminate_instance(&server).await.unwrap();
    let ConversionProgress::Died(why) = compute.conversion_progress(&server).await.unwrap() else { panic!("it died") };
    assert!(why.contains("console ends with"), "{why}");
    let unknown = compute.conversion_progress(&InstanceId::generate()).await.unwrap();
    assert!(matches!(unknown, ConversionProgress::Died(_)));
    for volume in &volumes {
        compute.delete_volume(volume).await.unwrap();
    }
    assert_eq!(world.left().await, []);
}

#[tokio::test]
async fn a_conversion_server_in_another_network_gets_a_group_of_that() {
    let world = World::new().await;
    let compute = &world.compute;
    let request = ConversionRequest::new(ConversionTarget::Ec2, BootMode::Uefi, Vec::new());
    let subnet = &world.far_subnet;
    let spec = |security_group: &SecurityGroupId, token: &ClientToken| ConversionSpec {
        volumes: Vec::new(),
        request: request.clone(),
        staging_subnet_id: subnet.clone(),
        security_group: Some(security_group.clone()),
        tags: world.tags("conversion", token),
    };
    let mut made = None;
    for token in [token("far-0"), token("far-1")] {
        let id = group(&world, &far(&world), GroupRole::Conversion).await.unwrap();
        assert_eq!(made.get_or_insert(id.clone()), &id);
        compute.start_conversion(&spec(&id, &token), &token).await.unwrap();
        let asked = world.seen.last("RunInstances");
        assert_eq!(asked["NetworkInterface.1.SubnetId"], *subnet);
        assert_eq!(asked["NetworkInterface.1.SecurityGroupId.1"], id.as_str());
        assert!(!asked.contains_key("SubnetId"));
    }
    let late = token("far-2");
    world.seen.refuse("RunInstances", "InvalidGroup.NotFound");
    let refused = compute.start_conversion(&spec(&made.unwrap(), &late), &late).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Conflict, "the reaper was faster: {refused}");
    assert_eq!(world.proxy.counts()["ec2:CreateSecurityGroup"], 1);
    assert!(!world.proxy.counts().contains_key("ec2:AuthorizeSecurityGroupIngress"));
}

#[tokio::test]
async fn a_group_in_another_network_is_shown_and_goes() {
    let world = World::new().await;
    let compute = &world.compute;
    assert_eq!(compute.shared_groups().await.unwrap(), []);
    let settings = far(&world);
    let role = GroupRole::Replication;
    let GroupSource::Shared(network) = compute.group_source(&settings, role).await.unwrap() else {
        panic!("not shared")
    };
    assert_eq!(compute.shared_groups().await.unwrap(), [], "nothing is made by being asked for");
    let spec = replicator_spec(&world, settings.clone()).await;
    let id = spec.security_group.clone().unwrap();
    let shown = |in_use| SharedGroup { id: id.clone(), network: network.clone(), role, in_use };
    assert_eq!(compute.shared_groups().await.unwrap(), [shown(false)]);
    world.seen.refuse("RunInstances", "InvalidGroup.NotFound");
    let refused = compute.launch_replication_server(&spec, &token("late")).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Conflict, "the reaper was faster: {refused}");
    let instance = compute.launch_replication_server(&spec, &token("far")).await.unwrap();
    assert_eq!(compute.shared_groups().await.unwrap(), [shown(true)]);
    compute.terminate_instance(&instance).await.unwrap();
    assert_eq!(compute.shared_groups().await.unwrap(), [shown(false)]);
    for _ in 0..2 {
        compute.delete_security_group(&id).await.unwrap();
    }
    assert_eq!(compute.shared_groups().await.unwrap(), []);
    let gone = ReplicationSettings { staging_area_subnet_id: "subnet-0123456789abcdef0".to_owned(), ..settings };
    assert_eq!(compute.group_source(&gone, role).await.unwrap_err().kind, PortErrorKind::Invalid);
}

#[tokio::test]
async fn a_copy_is_launched_from_an_image_and_goes() {
    let world = World::new().await;
    let compute = &world.compute;
    assert!(compute.launches_from_images());
    let disks = [volume(&world, "root").await, volume(&world, "data").await];
    let taken = token("converted");
    let snapshots = compute.create_snapshots(&disks, &world.tags("test", &taken), &taken).await.unwrap();
    let image = image(&world, "image", snapshots.clone()).await;
    let asked = world.seen.last("RegisterImage");
    for (field, value) in [
        ("BootMode", "uefi"),
        ("EnaSupport", "true"),
        ("Architecture", "x86_64"),
        ("RootDeviceName", "/dev/sda1"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/sda1"),
        ("BlockDeviceMapping.1.Ebs.SnapshotId", snapshots[0].as_str()),
        ("BlockDeviceMapping.2.DeviceName", "/dev/sdf"),
        ("BlockDeviceMapping.2.Ebs.SnapshotId", snapshots[1].as_str()),
        ("BlockDeviceMapping.2.Ebs.VolumeType", "gp3"),
    ] {
        assert_eq!(asked[field], value, "{field}");
    }
    assert_eq!(compute.image_state(&image).await.unwrap(), ImageState::Available);

    let launching = token("copy");
    let spec = copy_spec(&world, &image, &launching);
    let copy = compute.run_instance(&spec, &launching).await.unwrap();
    assert_eq!(compute.run_instance(&spec, &launching).await.unwrap(), copy);
    let asked = world.seen.last("RunInstances");
    assert_eq!((asked["ImageId"].as_str(), asked["InstanceType"].as_str()), (image.as_str(), "t3.medium"));
    assert_eq!(asked["SubnetId"], world.config.target_subnet);
    assert!(!asked.contains_key("LaunchTemplate.LaunchTemplateId"));
    let described = compute.instance(&copy).await.unwrap().unwrap();
    assert_eq!(described.endpoints.keys().copied().collect::<Vec<_>>(), [22, 80]);
    let kinds: Vec<ResourceKind> = world.left().await.iter().map(|resource| resource.kind).collect();
    assert!(kinds.contains(&ResourceKind::Image) && kinds.contains(&ResourceKind::Instance), "{kinds:?}");
    let boot = compute.probe(&copy, &Probe::Boot).await.unwrap();
    assert!(boot.passed, "{boot:?}");
    assert!(!compute.console_output(&copy).await.unwrap().is_empty());

    for _ in 0..2 {
        compute.terminate_instance(&copy).await.unwrap();
        compute.deregister_image(&image).await.unwrap();
        for (snapshot, disk) in snapshots.iter().zip(&disks) {
            compute.delete_snapshot(snapshot).await.unwrap();
            compute.delete_volume(disk).await.unwrap();
        }
    }
    assert!(!compute.probe(&copy, &Probe::Boot).await.unwrap().passed);
    assert!(compute.image_state(&image).await.unwrap_err().is_not_found());
    assert_eq!(world.left().await, []);
}

#[tokio::test]
async fn launch_settings_are_obeyed() {
    let world = World::new().await;
    let compute = &world.compute;
    let image = image(&world, "image", vec![SnapshotId::generate()]).await;
    let address: IpAddr = "10.0.2.77".parse().unwrap();
    let made = token("address");
    let spec = InstanceSpec { private_ip: Some(address), ..copy_spec(&world, &image, &made) };
    let copy = compute.run_instance(&spec, &made).await.unwrap();
    assert_eq!(compute.instance(&copy).await.unwrap().unwrap().private_ip, Some(address));

    let mut launch = LaunchConfiguration {
        target_instance_type_right_sizing_method: RightSizing::None,
        ec2_launch_template_id: Some(world.user_template.clone()),
        ..LaunchConfiguration::default()
    };
    let made = token("template");
    let spec = InstanceSpec { launch: launch.clone(), ..copy_spec(&world, &image, &made) };
    compute.run_instance(&spec, &made).await.unwrap();
    let asked = world.seen.last("RunInstances");
    assert_eq!(asked["LaunchTemplate.LaunchTemplateId"], world.user_template);
    assert_eq!((asked["SubnetId"].as_str(), asked.get("InstanceType")), (world.config.target_subnet.as_str(), None));

    launch.ec2_launch_template_id = Some(world.template_with_interface.clone());
    let made = token("interface");
    let spec = InstanceSpec { launch: launch.clone(), start: false, ..copy_spec(&world, &image, &made) };
    for _ in 0..2 {
        let copy = compute.run_instance(&spec, &made).await.unwrap();
        assert_eq!(compute.instance(&copy).await.unwrap().unwrap().state, InstanceState::Stopped);
    }
    let asked = world.seen.last("RunInstances");
    assert_eq!(
        (asked["NetworkInterface.1.SubnetId"].as_str(), asked.get("SubnetId")),
        (world.config.target_subnet.as_str(), None)
    );
    assert_eq!(asked["NetworkInterface.1.SecurityGroupId.1"], world.config.staging_security_group);
    assert_eq!(world.proxy.counts()["ec2:StopInstances"], 1);
}

#[tokio::test]
async fn snapshots_are_read_block_by_block() {
    const BLOCK: usize = 512 << 10;
    let world = World::new().await;
    let ebs = aws_sdk_ebs::Client::new(&world.sdk);
    let started = ebs.start_snapshot().volume_size(1).send().await.unwrap();
    let id: SnapshotId = started.snapshot_id().unwrap().parse().unwrap();
    for (index, byte) in [(0, 1_u8), (9, 9), (2047, 47)] {
        put_block(&ebs, &id, index, vec![byte; BLOCK]).await;
    }
    ebs.complete_snapshot().snapshot_id(id.as_str()).changed_blocks_count(3).send().await.unwrap();
    let read = |offset: u64, length: usize| {
        let (compute, id) = (&world.compute, &id);
        async move { compute.read_snapshot(id, offset, length).await }
    };
    let first = read(0, MAX_SNAPSHOT_READ).await.unwrap();
    assert!(first[..BLOCK].iter().all(|byte| *byte == 1) && first[BLOCK..].iter().all(|byte| *byte == 0));
    let second = read(MAX_SNAPSHOT_READ as u64, MAX_SNAPSHOT_READ).await.unwrap();
    assert!(second[BLOCK..2 * BLOCK].iter().all(|byte| *byte == 9) && second[..BLOCK].iter().all(|byte| *byte == 0));
    assert_eq!(world.proxy.counts()["ebs:ListSnapshotBlocks"], 1);
    assert_eq!(world.proxy.counts()["ebs:GetSnapshotBlock"], 2);
    let last = read(GIB - BLOCK as u64, MAX_SNAPSHOT_READ).await.unwrap();
    assert!(last.len() == BLOCK && last.iter().all(|byte| *byte == 47));
    assert_eq!(read(GIB, BLOCK).await.unwrap(), Vec::<u8>::new());
    assert_eq!(read(1, BLOCK).await.unwrap_err().kind, PortErrorKind::Invalid);
    assert_eq!(read(0, 2 * MAX_SNAPSHOT_READ).await.unwrap_err().kind, PortErrorKind::Invalid);
    world.seen.spoil_blocks(true);
    let damaged = read(0, BLOCK).await.unwrap_err();
    assert!(damaged.kind == PortErrorKind::Unavailable && damaged.message.contains("damaged"), "{damaged}");
    world.seen.spoil_blocks(false);
    assert_eq!(read(0, BLOCK).await.unwrap(), vec![1; BLOCK]);
}

async fn put_block(ebs: &aws_sdk_ebs::Client, id: &SnapshotId, index: i32, data: Vec<u8>) {
    use aws_sdk_ebs::types::ChecksumAlgorithm::ChecksumAlgorithmSha256;
    use base64::Engine as _;
    use sha2::Digest as _;
    let checksum = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(&data));
    ebs.put_snapshot_block()
        .snapshot_id(id.as_str())
        .block_index(index)
        .data_length(i32::try_from(data.len()).unwrap())
        .checksum(checksum)
        .checksum_algorithm(ChecksumAlgorithmSha256)
        .block_data(data.into())
        .send()
        .await
        .unwrap();
}
