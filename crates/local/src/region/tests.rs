use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rehost_control::ports::{ExecutionStatus, ItemKey, Kind};
use rehost_model::ExecutionId;
use rehost_model::event::{Event, EventType};
use rehost_model::link::{BootFirmware, EnrolRequest, PartitionTable, SourceDisk};
use rehost_model::server::SourceProperties;
use rehost_model::settings::ReplicationTemplate;
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn options(port: u16) -> InitOptions {
    InitOptions::new(SocketAddr::from(([127, 0, 0, 1], port)))
}

async fn made() -> (TempDir, PathBuf, InitReport) {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("region");
    let report = init(&home, &options(8443)).await.unwrap();
    (folder, home, report)
}

async fn opened(home: &Path) -> PortResult<LocalRegion> {
    let [replicator_binary, converter_binary] = ["rehost-replicator", "rehost-converter"].map(PathBuf::from);
    LocalRegion::open(home, OpenOptions { replicator_binary, converter_binary, listen: None }).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn init_makes_a_private_home_with_keys_that_open() {
    let (_folder, home, report) = made().await;
    assert!(!report.already_initialised);
    assert!(report.ca_fingerprint.starts_with("sha256:"));
    assert_eq!(report.config.advertised_hosts, ["127.0.0.1"]);
    for (name, expected) in
        [("", 0o700), ("keys", 0o700), ("keys/master.key", 0o600), ("credentials", 0o600), ("region.json", 0o600)]
    {
        assert_eq!(mode(&home.join(name)), expected, "{name}");
    }
    let region = opened(&home).await.unwrap();
    let text = fs::read_to_string(&report.credentials).unwrap();
    let sections: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(sections, ["[default]", "[agent-installation]"]);
    for key in [&region.access_keys.admin, &region.access_keys.installation] {
        assert_eq!((key.id.len(), &key.id[..4], key.secret.len()), (20, "AKIA", 40));
        assert!(text.contains(&key.id) && text.contains(&key.secret));
        assert!(!format!("{key:?}").contains(&key.secret));
    }
    assert_ne!(region.access_keys.admin.id, region.access_keys.installation.id);
    assert_eq!(region.authority.fingerprint(), report.ca_fingerprint);
    let templates = region.ports.store.list(Kind::ReplicationTemplate, "").await.unwrap();
    assert_eq!(templates.len(), 1);
    serde_json::from_value::<ReplicationTemplate>(templates[0].body.clone()).unwrap();
}

#[tokio::test]
async fn init_again_changes_nothing() {
    let (_folder, home, report) = made().await;
    let before = fs::read(home.join("credentials")).unwrap();
    let again = init(&home, &options(8443)).await.unwrap();
    assert_eq!(again, InitReport { already_initialised: true, ..report });
    let error = init(&home, &options(9999)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Conflict);
    assert!(error.message.contains("127.0.0.1:8443") && error.message.contains("127.0.0.1:9999"), "{error}");
    assert_eq!(fs::read(home.join("credentials")).unwrap(), before);
}

#[tokio::test]
async fn init_keeps_its_hands_off_what_is_no_region() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
    let mode_before = mode(folder.path());
    let error = init(folder.path(), &options(8443)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Conflict);
    assert!(error.message.contains("thesis.txt"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(mode(folder.path()), mode_before);
}

#[tokio::test]
async fn an_init_that_fails_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let config = RegionConfig {
        format: 1,
        listen: SocketAddr::from(([127, 0, 0, 1], 1)),
        advertised_hosts: vec![],
        replication_port: 1500,
        created: clock().now(),
    };
    // A folder where the credentials should be: half of the work is done when it is met.
    fs::create_dir(folder.path().join("credentials")).unwrap();
    init::fill_or_empty(folder.path(), &config).await.unwrap_err();
    fs::remove_dir(folder.path().join("credentials")).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays of it");
    init(folder.path(), &options(8443)).await.unwrap();
}

#[tokio::test]
async fn hosts_that_nobody_could_dial_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for host in ["", "a b", "host:80", "http://x", "a..b", "-\n"] {
        let options = InitOptions { advertised_hosts: vec![host.to_owned()], ..options(8443) };
        assert_eq!(init(folder.path(), &options).await.unwrap_err().kind, PortErrorKind::Invalid, "{host:?}");
    }
    let hosts = ["10.0.2.2", "::1", "host.example.org"].map(str::to_owned).to_vec();
    let options = InitOptions { advertised_hosts: hosts.clone(), ..options(8443) };
    assert_eq!(init(folder.path(), &options).await.unwrap().config.advertised_hosts, hosts);
}

#[tokio::test]
async fn a_region_is_served_once() {
    let (_folder, home, _) = made().await;
    let region = opened(&home).await.unwrap();
    let error = opened(&home).await.err().unwrap();
    assert_eq!(error.kind, PortErrorKind::Conflict);
    assert!(error.message.contains(&std::process::id().to_string()), "{error}");
    drop(region);
    opened(&home).await.unwrap();
}

#[tokio::test]
async fn what_is_missing_or_foreign_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let error = opened(folder.path()).await.err().unwrap();
    assert_eq!(error.kind, PortErrorKind::NotFound);
    assert!(error.message.contains("rehost init"), "{error}");
    let (_folder, home, report) = made().await;
    fs::write(home.join("region.json"), serde_json::to_vec(&RegionConfig { format: 9, ..report.config }).unwrap())
        .unwrap();
    assert!(opened(&home).await.err().unwrap().message.contains("form 9"));
    fs::write(home.join("region.json"), "{").unwrap();
    assert!(opened(&home).await.err().unwrap().message.contains("region.json"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_work_starts_and_stops_and_the_region_can_be_opened_again() {
    let (_folder, home, _) = made().await;
    for _ in 0..2 {
        let region = opened(&home).await.unwrap();
        region.start_background().await.unwrap();
        let key = ItemKey::new(Kind::Lock, clock().now());
        region.ports.store.put(&key, json!(1), None).await.unwrap();
        region.shutdown().await;
    }
}

fn enrolment() -> EnrolRequest {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    EnrolRequest {
        csr: csr.pem().unwrap(),
        source_server_id: None,
        user_provided_id: None,
        tags: [].into(),
        properties: SourceProperties::default(),
        disks: vec![SourceDisk {
            device_name: "/dev/sda".to_owned(),
            size_bytes: 1 << 20,
            is_boot_disk: true,
            partition_table: PartitionTable::Mbr,
        }],
        firmware: BootFirmware::Bios,
        replicate: false,
        agent_version: "0.1.0".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_is_an_event_that_starts_the_chain() {
    let (_folder, home, _) = made().await;
    let region = opened(&home).await.unwrap();
    let enrolled = rehost_control::link::enrol(&region.ports, &enrolment()).await.unwrap();
    let log = fs::read_to_string(home.join("events.jsonl")).unwrap();
    let first: Event = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(
        (first.detail_type, &first.detail.source_server_id),
        (EventType::Registered, &enrolled.source_server_id)
    );
    let execution = ExecutionId(format!("migrate-{}-{}", enrolled.source_server_id, first.detail.sequence));
    let status = async |region: &LocalRegion| region.ports.workflows.status(&execution).await.unwrap().unwrap();
    assert_eq!(status(&region).await, ExecutionStatus::Running);
    // The process dies before anything ran; the next one goes on.
    drop(region);
    let region = opened(&home).await.unwrap();
    region.start_background().await.unwrap();
    let begun = std::time::Instant::now();
    while status(&region).await == ExecutionStatus::Running {
        assert!(begun.elapsed() < Duration::from_secs(30), "the chain of a server without replication ends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = status(&region).await;
    assert!(matches!(ended, ExecutionStatus::Succeeded(_)), "{ended:?}");
    let history = region.engine().history(&execution).await.unwrap();
    assert!(history.iter().any(|entry| entry.event == "TaskSucceeded"), "{history:?}");
    region.shutdown().await;
}
