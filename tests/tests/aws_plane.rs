//! What stands behind EC2's emulator: volumes and snapshots hold bytes, replication servers run, and all of it ends.
#![allow(clippy::unwrap_used)] // What cannot be made or read fails the test.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_tests::aws::plane::Emulators;
use rehost_tests::aws::wire::first;
use rehost_tests::aws::{Moto, Plane, Proxy, Routes, Wire};
use rehost_tests::{Result, Workspace};
use serde_json::Value;

/// Many times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);
const BUCKET: &str = "plane";
/// In place of the replicator: it shows its configuration, and stays.
const PROGRAM: &str = "#!/bin/sh\ncat \"$3\"\nexec sleep 600\n";

struct Cloud {
    // Through the proxy, as an SDK.
    ec2: Wire,
    _proxy: Proxy,
    plane: Plane,
    moto: Moto,
}

impl Cloud {
    fn start(space: &Workspace) -> Result<Self> {
        let moto = Moto::start(space.folder())?;
        let wire = Wire::to(moto.port());
        wire.create_bucket(BUCKET)?;
        let plane = Plane::new(&space.path("plane"), Emulators { ec2: wire, s3: wire })?;
        let proxy = Proxy::start(Routes::to(&moto.endpoint()))?;
        proxy.add_hook(plane.hook());
        Ok(Self { ec2: Wire::to(proxy.port()), _proxy: proxy, plane, moto })
    }

    fn volume(&self, more: &[(&str, &str)]) -> Result<String> {
        let base = [("AvailabilityZone", "eu-central-1a"), ("Size", "1")];
        let fields: Vec<_> = base.into_iter().chain(more.iter().copied()).collect();
        Ok(element(&self.ec2.ec2("CreateVolume", &fields)?, "volumeId"))
    }
}

fn element(xml: &str, name: &str) -> String {
    first(xml, name).unwrap_or_else(|| panic!("no {name} in {xml}")).to_owned()
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

fn read_at(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut file = fs::File::open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn volumes_and_snapshots_hold_bytes() -> Result<()> {
    let space = Workspace::new("plane-volumes")?;
    let cloud = Cloud::start(&space)?;
    let volume = cloud.volume(&[])?;
    let file = cloud.plane.volume(&volume);
    assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 30);
    write_at(&file, 1 << 20, b"before");
    let snapshot = element(&cloud.ec2.ec2("CreateSnapshot", &[("VolumeId", &volume)])?, "snapshotId");
    write_at(&file, 1 << 20, b"after!");
    let clone = cloud.volume(&[("SnapshotId", &snapshot)])?;
    assert_eq!(read_at(&cloud.plane.volume(&clone), 1 << 20, 6), b"before");
    assert_eq!(read_at(&file, 1 << 20, 6), b"after!");
    cloud.ec2.ec2("ModifyVolume", &[("VolumeId", &volume), ("Size", "2")])?;
    assert_eq!(fs::metadata(&file).unwrap().len(), 2 << 30);
    assert_eq!(cloud.plane.files().len(), 3);
    for id in [&volume, &clone] {
        cloud.ec2.ec2("DeleteVolume", &[("VolumeId", id)])?;
    }
    cloud.ec2.ec2("DeleteSnapshot", &[("SnapshotId", &snapshot)])?;
    assert_eq!(cloud.plane.files(), Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[test]
fn a_refused_call_changes_nothing() -> Result<()> {
    let space = Workspace::new("plane-refusal")?;
    let cloud = Cloud::start(&space)?;
    assert!(cloud.ec2.ec2("CreateVolume", &[("AvailabilityZone", "eu-central-1a"), ("SnapshotId", "snap-0")]).is_err());
    assert!(cloud.ec2.ec2("DeleteVolume", &[("VolumeId", "vol-0")]).is_err());
    assert!(cloud.plane.files().is_empty());
    Ok(())
}

#[test]
fn a_replication_server_runs_with_its_user_data_until_it_is_terminated() -> Result<()> {
    let space = Workspace::new("plane-replicator")?;
    let cloud = Cloud::start(&space)?;
    let s3 = Wire::to(cloud.moto.port());
    s3.put_object(BUCKET, "software/rehost-replicator", PROGRAM.as_bytes())?;
    let instance_of = |digest: &str| -> Result<String> {
        s3.put_object(
            BUCKET,
            "software/rehost-replicator.sha256",
            format!("{digest}  rehost-replicator\n").as_bytes(),
        )?;
        let config = BASE64.encode(r#"{"replicatorID":"r-1","listen":"0.0.0.0:1500","stateDir":"/var/lib/x"}"#);
        let user_data = BASE64.encode(format!("readonly BUCKET='{BUCKET}'\nreadonly CONFIG_BASE64='{config}'\n"));
        let fields =
            [("ImageId", "ami-12345678"), ("MinCount", "1"), ("MaxCount", "1"), ("UserData", user_data.as_str())];
        cloud.ec2.ec2("RunInstances", &fields)
    };
    let wrong = instance_of(&"0".repeat(64)).unwrap_err().to_string();
    assert!(wrong.contains("sha256sum"), "{wrong}");
    assert!(cloud.plane.instances().is_empty());

    let answer = instance_of(&digest_of(PROGRAM, &space))?;
    let id = element(&answer, "instanceId");
    let address = cloud.plane.address(&id).to_string();
    assert_eq!(element(&answer, "privateIpAddress"), address);
    let described = cloud.ec2.ec2("DescribeInstances", &[("InstanceId.1", &id)])?;
    assert_eq!(element(&described, "privateIpAddress"), address);

    let log = space.path("plane/instances").join(&id).join("replicator.log");
    let config = wait_config(&log);
    assert_eq!(config["listen"], format!("{address}:1500"));
    assert_eq!(config["replicatorID"], "r-1");
    let volumes = config["volumesDirectory"].as_str().unwrap_or_default();
    assert_eq!(Path::new(volumes).join("vol-1"), cloud.plane.volume("vol-1"));

    cloud.ec2.ec2("TerminateInstances", &[("InstanceId.1", &id)])?;
    assert!(cloud.plane.instances().is_empty());
    assert!(!log.exists());
    Ok(())
}

fn digest_of(text: &str, space: &Workspace) -> String {
    let file = space.path("program");
    fs::write(&file, text).unwrap();
    let printed = rehost_tests::process::run(std::process::Command::new("sha256sum").arg(&file)).unwrap();
    printed.split(' ').next().unwrap_or_default().to_owned()
}

fn wait_config(log: &Path) -> Value {
    let started = Instant::now();
    loop {
        let text = fs::read(log).unwrap_or_default();
        if let Ok(config) = serde_json::from_slice(&text) {
            return config;
        }
        assert!(started.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&text));
        std::thread::sleep(Duration::from_millis(20));
    }
}
