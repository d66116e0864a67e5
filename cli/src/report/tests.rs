use aws_sdk_mgn::types::{
    DataReplicationError, DataReplicationErrorString, DataReplicationInfo, DataReplicationInfoReplicatedDisk as Disk,
    DataReplicationInitiationStep as Step, DataReplicationInitiationStepName as StepName, IdentificationHints,
    LifeCycleLastTest, LifeCycleLastTestInitiated, LifeCycleState,
};

use serde_json::json;

use super::*;

fn disk(total: i64, replicated: i64, rescanned: i64) -> Disk {
    let disk = Disk::builder().device_name("/dev/sda").total_storage_bytes(total);
    disk.replicated_storage_bytes(replicated).rescanned_storage_bytes(rescanned).build()
}

fn server(state: DataReplicationState, disks: Vec<Disk>) -> SourceServer {
    let step = |name, status| Step::builder().name(name).status(status).build();
    let steps = vec![
        step(StepName::Wait, StepStatus::Succeeded),
        step(StepName::CreateStagingDisks, StepStatus::Failed),
        step(StepName::StartDataTransfer, StepStatus::NotStarted),
    ];
    let error = DataReplicationError::builder()
        .error(DataReplicationErrorString::FailedToCreateStagingDisks)
        .raw_error("no space left in /srv; free 3 GiB and retry");
    let info = DataReplicationInfo::builder()
        .data_replication_state(state)
        .set_replicated_disks(Some(disks))
        .data_replication_initiation(DataReplicationInitiation::builder().set_steps(Some(steps)).build())
        .data_replication_error(error.build())
        .lag_duration("P0DT0H0M7S");
    let initiated =
        LifeCycleLastTestInitiated::builder().api_call_date_time("2026-01-31T12:00:00.000Z").job_id("mgnjob-1");
    let life_cycle = LifeCycle::builder()
        .state(LifeCycleState::Testing)
        .last_test(LifeCycleLastTest::builder().initiated(initiated.build()).build());
    let hints = IdentificationHints::builder().hostname("web-1").build();
    SourceServer::builder()
        .source_server_id("s-1")
        .source_properties(SourceProperties::builder().identification_hints(hints).ram_bytes(2 << 30).build())
        .life_cycle(life_cycle.build())
        .data_replication_info(info.build())
        .build()
}

#[test]
fn progress_is_of_all_disks_and_of_what_is_going_on() {
    let disks = vec![disk(1000, 500, 100), disk(3000, 3000, 200)];
    let syncing = Progress::of(&server(DataReplicationState::InitialSync, disks.clone()));
    assert_eq!(syncing, Progress { done: 3500, total: 4000 });
    let rescanning = Progress::of(&server(DataReplicationState::Rescan, disks));
    assert_eq!(rescanning, Progress { done: 300, total: 4000 });
    assert_eq!(Progress::of(&SourceServer::builder().build()).percent_text(), "");
}

#[test]
fn everything_a_user_needs_is_shown() {
    let own = ServerSettings {
        probes: Some(vec!["http:80".parse().unwrap()]),
        policy: Some(MigrationPolicy { auto_test: true, ..MigrationPolicy::default() }),
        ..ServerSettings::default()
    };
    let raw = json!({"launchedInstance": {"endpoints": {"80": "127.0.0.1:40080"}}, "rehost": {
        "tracker": "EBPF", "consistency": "FROZEN", "consistent": true, "journalBytes": 4096, "lastFreezeMs": 40,
        "newDisks": [{"deviceName": "/dev/sdc", "sizeBytes": 1 << 30, "isBootDisk": false, "partitionTable": "NONE"}]}});
    let text = full(
        &server(DataReplicationState::Stalled, vec![disk(2 << 30, 1 << 30, 0)]),
        &raw,
        Some(&own),
        &json!({"bandwidthThrottling": 0}),
    );
    for part in [
        "Server ",
        "web-1",
        "2.0 GiB",
        "STALLED, 50 % of 2.0 GiB, lag 7s",
        "FAILED_TO_CREATE_STAGING_DISKS: no space left in /srv; free 3 GiB and retry",
        "✓ SUCCEEDED    WAIT",
        "✗ FAILED       CREATE_STAGING_DISKS",
        "initiated 2026-01-31 12:00:00Z (mgnjob-1)",
        "http:80/",
        "Opens by itself  test",
        "no limit",
        "port 80: 127.0.0.1:40080",
        "EBPF",
        "FROZEN",
        "4.0 KiB",
        "40 ms",
        "/dev/sdc (1.0 GiB)",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn nothing_is_said_of_what_is_not_known() {
    assert_eq!(full(&SourceServer::builder().build(), &Value::Null, None, &Value::Null), "");
}

#[test]
fn a_volume_between_checkpoints_is_called_so() {
    let raw = serde_json::json!({"rehost": {"consistency": "FROZEN", "consistent": false}});
    assert_eq!(consistency(&extras(&raw).unwrap()), "not before the next checkpoint");
    assert!(extras(&serde_json::json!({})).is_none());
}

#[test]
fn the_replication_configuration_is_told_line_by_line() {
    let told = replication_settings(&json!({
        "stagingAreaSubnetId": "", "replicationServersSecurityGroupsIDs": ["sg-1", "sg-2"], "createPublicIP": false,
        "bandwidthThrottling": 0, "ebsEncryption": "CUSTOM", "stagingAreaTags": {"a": "b", "c": ""},
    }));
    let lines: Vec<_> = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "Staging subnet the region's own",
            "Security groups sg-1, sg-2",
            "Public address no",
            "Bandwidth no limit",
            "Encryption CUSTOM",
            "Staging tags a=b, c=",
        ]
    );
}
