use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rehost_control::PortErrorKind;
use rehost_control::ports::{ConversionProgress, InstanceSpec, InstanceState};
use rehost_model::ReplicatorId;
use rehost_model::conversion::{ConversionRequest, ConversionTarget, RequestedDisk};
use rehost_model::launch::{BootMode, LaunchConfiguration};
use rehost_model::link::BootFirmware;
use rehost_model::settings::ReplicationSettings;

use super::contract_tests::{tags, token, volume};
use super::machine::Life;
use super::*;

/// A region's compute without KVM, whose replicator is `sleep`.
pub(super) fn compute(home: &Path) -> LocalCompute {
    LocalCompute::open(config(home)).unwrap()
}

fn config(home: &Path) -> LocalComputeConfig {
    let endpoint = "https://127.0.0.1:1".to_owned();
    let replicator = home.join("fake-replicator");
    if !replicator.exists() {
        fs::write(&replicator, "#!/bin/sh\necho started \"$@\"\nexec sleep 600\n").unwrap();
        fs::set_permissions(&replicator, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let converter = PathBuf::from("/nonexistent/rehost-converter");
    LocalComputeConfig {
        accelerator: Some(Accelerator::Tcg),
        conversion_cache: home.join("conversion-cache"),
        ..LocalComputeConfig::new(home.to_owned(), replicator, converter, endpoint, "sha256:00".to_owned())
    }
}

/// Ends every instance of a home when a test is over, also when it failed.
pub(super) struct Region {
    pub(super) engine: Arc<Engine>,
    home: tempfile::TempDir,
}

impl Region {
    pub(super) fn new() -> Self {
        Self::with(|config| config)
    }

    /// A region with another configuration than the usual one.
    pub(super) fn with(change: impl FnOnce(LocalComputeConfig) -> LocalComputeConfig) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { engine: Arc::new(Engine::open(change(config(home.path()))).unwrap()), home }
    }

    /// As a new `rehost serve` would find everything.
    pub(super) fn reopen(&mut self) {
        self.engine = Arc::new(Engine::open(self.engine.config.clone()).unwrap());
    }

    pub(super) fn volume(&self, name: &str, size_bytes: u64) -> VolumeId {
        self.engine.create_volume(&volume(&ServerId::generate(), size_bytes, None), &token(&[name])).unwrap()
    }

    pub(super) fn image(&self, id: &VolumeId) -> PathBuf {
        self.engine.layout.volume_image(id)
    }

    pub(super) fn left_in(&self, directory: &str) -> Vec<String> {
        files::names(&self.home.path().join(directory)).unwrap()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for machine in self.engine.readable_machines() {
            let _ = self.engine.terminate_instance(&machine.id);
        }
    }
}

pub(super) fn copy_of(volumes: &[VolumeId]) -> InstanceSpec {
    InstanceSpec {
        volumes: volumes.to_vec(),
        image: None,
        launch: LaunchConfiguration::default(),
        private_ip: None,
        firmware: BootFirmware::Bios,
        cpus: 1,
        ram_bytes: 0,
        ports: vec![22, 80],
        start: true,
        tags: Tags::new(),
    }
}

fn replication_server(enrol_token: &str) -> ReplicationServerSpec {
    ReplicationServerSpec {
        id: ReplicatorId::generate(),
        settings: ReplicationSettings::default(),
        security_group: None,
        enrol_token: enrol_token.to_owned(),
        tags: Tags::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn snapshots_and_clones_are_identical_and_sparse(
        writes in prop::collection::vec((0u64..2000, 1usize..40_000, any::<u8>()), 0..12),
        size_kib in 8000u64..9000,
    ) {
        let region = Region::new();
        let size = size_kib * 1024 + 512;
        let source = region.volume("source", size);
        let image = fs::OpenOptions::new().write(true).open(region.image(&source)).unwrap();
        for (at, length, byte) in &writes {
            image.write_all_at(&vec![*byte; *length], at * 4001 % (size - 40_000)).unwrap();
        }
        image.sync_all().unwrap();
        let snapshots = region.engine.create_snapshots(std::slice::from_ref(&source), &Tags::new(), &token(&["s"])).unwrap();
        let spec = volume(&ServerId::generate(), size + 4096, snapshots.first().cloned());
        let clone = region.engine.create_volume(&spec, &token(&["clone"])).unwrap();
        let original = fs::read(region.image(&source)).unwrap();
        prop_assert!(fs::read(region.engine.layout.snapshot_image(&snapshots[0])).unwrap() == original);
        let cloned = fs::read(region.image(&clone)).unwrap();
        prop_assert!(cloned[..original.len()] == original[..] && cloned[original.len()..].iter().all(|b| *b == 0));
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
        prop_assert!(blocks(&region.image(&clone)) <= blocks(&region.image(&source)) + 64);
    }
}

#[test]
fn a_crash_after_the_token_leaves_nothing_and_the_token_finds_its_volume() {
    let mut region = Region::new();
    let reserved = region.engine.tokens.reserve(&token(&["v"]), tokens::Made::Volume, 1, VolumeId::generate).unwrap();
    region.reopen();
    assert!(region.left_in("volumes").is_empty());
    assert_eq!(region.volume("v", 4096), reserved.ids[0]);
    assert!(region.image(&reserved.ids[0]).exists());
}

#[test]
fn a_crash_within_a_copy_never_counts_as_a_snapshot() {
    let mut region = Region::new();
    let source = region.volume("v", 1 << 20);
    fs::write(region.image(&source), vec![7u8; 1 << 20]).unwrap();
    let take = |engine: &Engine| engine.create_snapshots(std::slice::from_ref(&source), &Tags::new(), &token(&["s"]));
    let id = take(&region.engine).unwrap().remove(0);
    // As it would be after a kill within the copy: the token is not completed, the image has its temporary name.
    let image = region.engine.layout.snapshot_image(&id);
    fs::rename(&image, files::with_suffix(&image, files::PARTIAL)).unwrap();
    let entry = region.home.path().join("compute/tokens/s.json");
    let text = fs::read_to_string(&entry).unwrap().replace("\"completed\": true", "\"completed\": false");
    fs::write(&entry, text).unwrap();
    region.reopen();
    assert_eq!(region.engine.snapshot_state(&id).unwrap(), SnapshotState::Pending);
    assert_eq!(region.left_in("snapshots"), [format!("{id}.json")]);
    assert_eq!(take(&region.engine).unwrap(), std::slice::from_ref(&id));
    assert_eq!(fs::read(image).unwrap(), vec![7u8; 1 << 20]);
    region.engine.delete_snapshot(&id).unwrap();
    assert!(region.left_in("snapshots").is_empty());
}

#[test]
fn a_token_cannot_be_used_for_something_else() {
    let region = Region::new();
    let id = region.volume("one", 4096);
    let refused = region.engine.create_snapshots(&[id], &Tags::new(), &token(&["one"])).unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Invalid);
    assert!(refused.message.contains("one token for one call"), "{refused}");
}

#[test]
fn calls_with_one_token_at_the_same_time_make_one_volume() {
    let region = Region::new();
    let ids: Vec<VolumeId> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| region.volume("same", 1 << 20))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(region.left_in("volumes").len(), 2);
}

/// A small file system in memory; only root can make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &std::ffi::CStr) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, options).ok()?;
        Some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(disk) = SmallDisk::mount(c"size=4m") else {
        eprintln!("not run: only root can mount a small file system");
        return;
    };
    let engine = Engine::open(config(disk.0.path())).unwrap();
    let source = engine.create_volume(&volume(&ServerId::generate(), 3 << 20, None), &token(&["v"])).unwrap();
    fs::write(engine.layout.volume_image(&source), vec![1u8; 3 << 20]).unwrap();
    let take = || engine.create_snapshots(std::slice::from_ref(&source), &Tags::new(), &token(&["s"]));
    let refused = take().unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Full, "{refused}");
    assert!(refused.message.contains("snap-") && refused.message.contains("free space"), "{refused}");
    assert!(files::names(&engine.layout.snapshots()).unwrap().is_empty());
    // Once there is room, the same call succeeds.
    fs::write(engine.layout.volume_image(&source), vec![1u8; 1 << 20]).unwrap();
    fs::OpenOptions::new().write(true).open(engine.layout.volume_image(&source)).unwrap().set_len(3 << 20).unwrap();
    assert_eq!(engine.snapshot_state(&take().unwrap()[0]).unwrap(), SnapshotState::Completed);
}

#[test]
fn a_copy_may_be_launched_stopped() {
    let region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    let spec = InstanceSpec { start: false, ..copy_of(&[disk]) };
    let id = region.engine.run_instance(&spec, &token(&["run"])).unwrap();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap().state, InstanceState::Stopped);
    region.engine.terminate_instance(&id).unwrap();
}

#[test]
fn a_replication_server_is_configured_restarted_and_removed() {
    let mut region = Region::new();
    let spec = replication_server("a secret");
    let id = region.engine.launch_replication_server(&spec, &token(&["r"])).unwrap();
    let config = region.engine.layout.replicator(&spec.id).join(replicator::CONFIG);
    assert_eq!(fs::metadata(&config).unwrap().mode() & 0o777, 0o600);
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(written["replicatorID"], spec.id.as_str());
    assert_eq!(written["enrolToken"], "a secret");
    let described = region.engine.instance(&id).unwrap().unwrap();
    assert_eq!(described.state, InstanceState::Running);
    assert_eq!(written["listen"], described.endpoints[&REPLICATION_PORT].to_string());

    let disk = region.volume("disk", 1 << 20);
    let location = region.engine.attach_volume(&disk, &id).unwrap();
    assert_eq!(location, region.image(&disk).canonicalize().unwrap().display().to_string());
    assert_eq!(region.engine.attach_volume(&disk, &id).unwrap(), location);
    assert_eq!(region.engine.delete_volume(&disk).unwrap_err().kind, PortErrorKind::Conflict);

    kill(&region.engine, &id);
    region.reopen();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap().state, InstanceState::Pending);
    region.engine.look_after_instances();
    assert_eq!(region.engine.instance(&id).unwrap().unwrap(), described, "the same port again");

    region.engine.terminate_instance(&id).unwrap();
    region.engine.look_after_instances();
    assert!(region.left_in("replicators").is_empty() && region.left_in("instances").is_empty());
    region.engine.delete_volume(&disk).unwrap();
}

#[test]
fn replication_servers_get_ports_of_their_own() {
    let region = Region::new();
    let launch =
        |name: &str| region.engine.launch_replication_server(&replication_server("t"), &token(&[name])).unwrap();
    let (first, second) = (launch("1"), launch("2"));
    let port = |id: &InstanceId| region.engine.instance(id).unwrap().unwrap().endpoints[&REPLICATION_PORT];
    assert_ne!(port(&first), port(&second));
}

#[test]
fn a_replicator_that_keeps_dying_is_started_ever_more_seldom() {
    let region = Region::new();
    let id = region.engine.launch_replication_server(&replication_server("t"), &token(&["r"])).unwrap();
    let mut restarts = 0;
    for _ in 0..20 {
        kill(&region.engine, &id);
        region.engine.look_after_instances();
        let described = region.engine.instance(&id).unwrap().unwrap();
        restarts += usize::from(described.state == InstanceState::Running);
    }
    assert!((1..=5).contains(&restarts), "{restarts} restarts at once");
}

fn kill(engine: &Engine, id: &InstanceId) {
    let machine = engine.machine(id).unwrap().unwrap();
    if let Life::Running(process) = engine.life(&machine).unwrap() {
        assert!(process.terminate(Duration::from_secs(5)));
    }
}

#[test]
fn a_missing_program_is_said() {
    let home = tempfile::tempdir().unwrap();
    let config =
        LocalComputeConfig { replicator_binary: "/nonexistent/rehost-replicator".into(), ..config(home.path()) };
    let engine = Engine::open(config).unwrap();
    let refused = engine.launch_replication_server(&replication_server("t"), &token(&["r"])).unwrap_err();
    assert!(refused.message.contains("/nonexistent/rehost-replicator"), "{refused}");
    assert!(!refused.message.contains("secret"));
    assert!(files::names(&engine.layout.replicators()).unwrap().is_empty());
}

#[test]
fn a_conversion_server_that_is_gone_has_died() {
    let region = Region::new();
    let progress = region.engine.conversion_progress(&InstanceId::generate()).unwrap();
    assert!(matches!(progress, ConversionProgress::Died(_)));
}

#[test]
fn a_converter_that_is_missing_is_said_and_nothing_stays() {
    let region = Region::new();
    let disk = region.volume("disk", 1 << 20);
    let requested = RequestedDisk { serial: disk.nvme_serial(), source_device: Some("/dev/sda".to_owned()) };
    let request = ConversionRequest::new(ConversionTarget::Qemu, BootMode::LegacyBios, vec![requested]);
    let (staging_subnet_id, tags) = (String::new(), tags(&ServerId::generate()));
    let spec = ConversionSpec { volumes: vec![disk.clone()], request, staging_subnet_id, security_group: None, tags };
    let refused = region.engine.start_conversion(&spec, &token(&["c"])).unwrap_err();
    assert!(refused.message.contains("/nonexistent/rehost-converter"), "{refused}");
    assert!(region.left_in("instances").is_empty());
    region.engine.delete_volume(&disk).unwrap();
}

#[test]
fn records_keep_their_form() {
    let machine = machine::Machine {
        id: "i-0123456789abcdef0".parse().unwrap(),
        kind: machine::MachineKind::Copy {
            firmware: BootFirmware::Uefi,
            cpus: 2,
            memory_mib: 512,
            mac: "52:54:00:00:00:01".to_owned(),
            ports: BTreeMap::from([(80, 40080)]),
            start: true,
        },
        volumes: vec!["vol-0123456789abcdef0".parse().unwrap()],
        tags: Tags::new(),
        created: Timestamp::from_unix_ms(0),
        terminating: false,
    };
    let json = serde_json::to_value(&machine).unwrap();
    assert_eq!(json["kind"]["copy"]["memoryMib"], 512);
    let back: machine::Machine = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
}
