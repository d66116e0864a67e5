//! What EC2 refuses, and answers that are lost: the error says what to change, nothing is left, and nothing is made twice.

use aws_sdk_ec2::types::Filter;
use rehost_control::PortErrorKind;
use rehost_control::ledger::TOKEN_TAG;
use rehost_control::ports::{
    ClientToken, Compute, ImageSpec, InstanceSpec, PortResult, ReplicationServerSpec, VolumeSpec,
};
use rehost_model::launch::{LaunchConfiguration, RightSizing};
use rehost_model::ledger::ResourceKind;
use rehost_model::link::BootFirmware;
use rehost_model::settings::{EbsEncryption, ReplicationSettings};
use rehost_model::{ImageId, SnapshotId, VolumeId};
use rehost_tests::aws::{Failure, Fault};

use crate::lives::{copy_spec, image, replicator_spec, volume, volume_spec};
use crate::world::{World, token};

/// Action, EC2's code, kind, and what the error must tell.
const PLANTED: &[(&str, &str, PortErrorKind, &str)] = &[
    ("CreateVolume", "UnauthorizedOperation", PortErrorKind::Denied, "ec2:CreateVolume"),
    ("CreateVolume", "InvalidKMSKey.InvalidState", PortErrorKind::Denied, "key's policy"),
    ("CreateVolume", "VolumeLimitExceeded", PortErrorKind::Quota, "quota"),
    ("RunInstances", "UnauthorizedOperation", PortErrorKind::Denied, "ec2:RunInstances"),
    ("RunInstances", "InsufficientFreeAddressesInSubnet", PortErrorKind::Quota, "free addresses"),
    ("RunInstances", "InsufficientInstanceCapacity", PortErrorKind::Quota, "another instance type"),
    ("RunInstances", "Unsupported", PortErrorKind::Quota, "availability zone does not offer"),
    ("RunInstances", "VcpuLimitExceeded", PortErrorKind::Quota, "vCPUs"),
    ("RunInstances", "InvalidLaunchTemplateId.NotFound", PortErrorKind::Invalid, "launch template of this account"),
    ("RunInstances", "RequestLimitExceeded", PortErrorKind::Throttled, "tried again"),
    ("CreateSnapshot", "SnapshotLimitExceeded", PortErrorKind::Quota, "retention"),
    ("CreateSnapshot", "ConcurrentSnapshotLimitExceeded", PortErrorKind::Throttled, "tried again"),
];

#[tokio::test]
async fn refusals_say_what_to_change_and_leave_nothing() {
    let world = World::new().await;
    let compute = &world.compute;
    let spec = replicator_spec(&world, ReplicationSettings::default()).await;
    let disk = volume(&world, "disk").await;
    for (number, (action, code, kind, told)) in PLANTED.iter().enumerate() {
        let token = token(&format!("refused-{number}"));
        world.seen.refuse(action, code);
        let error = match *action {
            "CreateVolume" => compute.create_volume(&volume_spec(&world, &token, None), &token).await.unwrap_err(),
            "RunInstances" => compute.launch_replication_server(&spec, &token).await.unwrap_err(),
            _ => compute
                .create_snapshots(std::slice::from_ref(&disk), &world.tags("staging", &token), &token)
                .await
                .unwrap_err(),
        };
        assert_eq!(error.kind, *kind, "{error}");
        assert!(error.message.contains(told) && error.message.contains(code), "{code}: {error}");
    }
    assert_eq!(world.left().await.len(), 1, "the disk alone");
}

#[tokio::test]
async fn settings_that_refer_to_nothing_are_not_taken_for_the_absence_of_the_thing() {
    let world = World::new().await;
    let (compute, made) = (&world.compute, token("none"));
    let no_subnet =
        VolumeSpec { staging_subnet_id: "subnet-0123456789abcdef0".to_owned(), ..volume_spec(&world, &made, None) };
    let no_key = VolumeSpec { encryption: EbsEncryption::Custom, ..volume_spec(&world, &made, None) };
    let image = image(&world, "image", vec![SnapshotId::generate()]).await;
    let launch = |method, template: Option<&str>| InstanceSpec {
        launch: LaunchConfiguration {
            target_instance_type_right_sizing_method: method,
            ec2_launch_template_id: template.map(str::to_owned),
            ..LaunchConfiguration::default()
        },
        ..copy_spec(&world, &image, &made)
    };
    let no_template = launch(RightSizing::None, Some("lt-0123456789abcdef0"));
    let no_type = launch(RightSizing::None, None);
    let no_image = InstanceSpec { image: None, ..launch(RightSizing::Basic, None) };
    let giant = InstanceSpec { cpus: 100_000, ..launch(RightSizing::Basic, None) };
    for (error, kind, told) in [
        (compute.create_volume(&no_subnet, &made).await.unwrap_err(), PortErrorKind::Invalid, "replication settings"),
        (compute.create_volume(&no_key, &made).await.unwrap_err(), PortErrorKind::Invalid, "ebsEncryptionKeyArn"),
        (compute.run_instance(&no_template, &made).await.unwrap_err(), PortErrorKind::Invalid, "launch template"),
        (compute.run_instance(&no_type, &made).await.unwrap_err(), PortErrorKind::Invalid, "right-sizing is NONE"),
        (compute.run_instance(&no_image, &made).await.unwrap_err(), PortErrorKind::Invalid, "images"),
        (compute.run_instance(&giant, &made).await.unwrap_err(), PortErrorKind::Quota, "in eu-central-1b"),
        (
            compute.create_snapshots(&[VolumeId::generate()], &world.tags("staging", &made), &made).await.unwrap_err(),
            PortErrorKind::NotFound,
            "vol-",
        ),
    ] {
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(told), "{told}: {error}");
    }
}

/// A lost answer, at any call, of everything that makes something: the next attempt finds what was made.
#[tokio::test]
async fn nothing_is_made_twice_when_an_answer_is_lost() {
    let world = World::new().await;
    let maker = Maker {
        disks: [volume(&world, "disk-0").await, volume(&world, "disk-1").await],
        image: image(&world, "base", vec![SnapshotId::generate()]).await,
        replicator: replicator_spec(&world, ReplicationSettings::default()).await,
        world: &world,
    };
    for failure in [Failure::Cut, Failure::Internal, Failure::Throttle] {
        for what in Thing::ALL {
            for nth in 0.. {
                let token = token(&format!("{what:?}-{failure:?}-{nth}"));
                world.proxy.faults().plant(Fault { nth, after_effect: true, failure });
                let first = maker.make(what, &token).await;
                let reached = !world.proxy.faults().struck().is_empty();
                world.proxy.faults().clear();
                assert!(first.as_ref().err().is_none_or(|error| error.kind.retryable()), "{token:?}: {first:?}");
                let second = maker.make(what, &token).await.unwrap();
                assert!(first.is_err() || first == Ok(second.clone()), "{token:?}");
                assert_eq!(maker.made(what, &token).await, what.count(), "{token:?}");
                if !reached {
                    break;
                }
            }
        }
    }
}

/// What can be made.
#[derive(Debug, Clone, Copy)]
enum Thing {
    Volume,
    Snapshots,
    Image,
    Copy,
    Replicator,
}

impl Thing {
    const ALL: [Self; 5] = [Self::Volume, Self::Snapshots, Self::Image, Self::Copy, Self::Replicator];

    fn count(self) -> usize {
        if matches!(self, Self::Snapshots) { 2 } else { 1 }
    }
}

struct Maker<'a> {
    world: &'a World,
    disks: [VolumeId; 2],
    image: ImageId,
    replicator: ReplicationServerSpec,
}

impl Maker<'_> {
    async fn make(&self, what: Thing, token: &ClientToken) -> PortResult<String> {
        let (world, compute) = (self.world, &self.world.compute);
        let tags = world.tags("test", token);
        Ok(match what {
            Thing::Volume => compute.create_volume(&volume_spec(world, token, None), token).await?.to_string(),
            Thing::Snapshots => format!("{:?}", compute.create_snapshots(&self.disks, &tags, token).await?),
            Thing::Image => {
                let snapshots = vec![SnapshotId::generate()];
                let spec = ImageSpec { name: token.as_str().to_owned(), snapshots, firmware: BootFirmware::Bios, tags };
                compute.register_image(&spec, token).await?.to_string()
            }
            Thing::Copy => compute.run_instance(&copy_spec(world, &self.image, token), token).await?.to_string(),
            Thing::Replicator => compute.launch_replication_server(&self.replicator, token).await?.to_string(),
        })
    }

    /// How many there are of it, by its token.
    async fn made(&self, what: Thing, token: &ClientToken) -> usize {
        if matches!(what, Thing::Replicator) {
            let mine = Filter::builder().name(format!("tag:{TOKEN_TAG}")).values(token.as_str()).build();
            return self.world.ec2.describe_instances().filters(mine).send().await.unwrap().reservations().len();
        }
        let kind = match what {
            Thing::Volume => ResourceKind::Volume,
            Thing::Snapshots => ResourceKind::Snapshot,
            Thing::Image => ResourceKind::Image,
            Thing::Copy | Thing::Replicator => ResourceKind::Instance,
        };
        let left = self.world.left().await;
        left.iter()
            .filter(|r| r.kind == kind && r.tags.get(TOKEN_TAG).map(String::as_str) == Some(token.as_str()))
            .count()
    }
}
