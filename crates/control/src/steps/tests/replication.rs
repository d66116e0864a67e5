//! Pause, stop and start; disks that come and grow; replication servers that are shared, die and are replaced.

use rehost_model::event::EventType;
use rehost_model::replicator::Assignment;

use super::*;
use crate::monitor;

fn disk(name: &str, size_bytes: u64) -> SourceDisk {
    SourceDisk {
        device_name: name.to_owned(),
        size_bytes,
        is_boot_disk: name == "/dev/sda",
        partition_table: PartitionTable::Mbr,
    }
}

impl Source {
    fn state(&self) -> DataReplicationState {
        self.server().data_replication_info.data_replication_state
    }

    /// Follows the state machine that an initiation after the first one has started.
    async fn provision(&mut self) {
        let name = self.server().internal.provisioning.expect("an initiation is under way");
        let input = self.fake.world().executions[&name.0].1.clone();
        let state = self.drive("provision", input).await.unwrap();
        assert_eq!(state["status"], "DONE");
        self.poll().await;
        self.poll().await;
    }

    fn assignments(&self) -> Vec<Assignment> {
        let replicator = self.server().internal.replicator.unwrap();
        let assignments = self.item::<ReplicationServer>(replicator.as_str()).assignments;
        assignments.into_iter().filter(|a| a.server == self.id).collect()
    }

    fn targets(&self) -> Vec<(u8, String, u64)> {
        let Some(AgentCommand::Replicate { disks, .. }) = &self.told else { return vec![] };
        disks.iter().map(|d| (d.disk_index, d.device_name.clone(), d.size_bytes)).collect()
    }

    fn machine(&self) -> String {
        let replicator = self.server().internal.replicator.unwrap();
        self.item::<ReplicationServer>(replicator.as_str()).instance.unwrap().to_string()
    }

    async fn replicating() -> Self {
        let mut source = Self::enrol().await;
        source.reach_ready_for_test().await;
        source.poll().await;
        source
    }
}

#[tokio::test]
async fn a_pause_is_the_agents_and_costs_nothing_that_was_made() {
    let mut source = Source::replicating().await;
    assert_eq!(source.state(), DataReplicationState::Continuous);
    let before = source.fake.world().inventory();
    operations::pause_replication(&source.ports, &source.id).await.unwrap();
    assert_eq!(source.state(), DataReplicationState::Paused, "at the call");
    source.poll().await;
    source.poll().await;
    assert_eq!((source.told.clone(), source.state()), (Some(AgentCommand::Pause), DataReplicationState::Paused));
    let servers = std::slice::from_ref(&source.id);
    let refused = operations::start_test(&source.ports, servers, BTreeMap::new()).await.unwrap_err();
    assert!(refused.to_string().contains("resume it first"), "{refused}");
    assert!(operations::pause_replication(&source.ports, &source.id).await.is_err());
    operations::resume_replication(&source.ports, &source.id).await.unwrap();
    assert_eq!(source.state(), DataReplicationState::Backlog, "until the agent says otherwise");
    source.poll().await;
    source.poll().await;
    assert_eq!(source.state(), DataReplicationState::Continuous);
    assert_eq!(source.fake.world().inventory(), before);
}

#[tokio::test]
async fn a_paused_initiation_waits_and_goes_on() {
    let mut source = Source::enrol().await;
    let state = source.drive("register", source.migrate_input()).await.unwrap();
    operations::pause_replication(&source.ports, &source.id).await.unwrap();
    let answer = run(&source.ports, "provision", state).await.unwrap();
    assert_eq!(answer["status"], "IN_PROGRESS");
    operations::resume_replication(&source.ports, &source.id).await.unwrap();
    assert_eq!(source.drive("provision", answer).await.unwrap()["status"], "DONE");
}

#[tokio::test]
async fn a_stopped_replication_leaves_nothing_and_starts_anew() {
    let mut source = Source::replicating().await;
    let old_chain = source.migrate_input();
    operations::stop_replication(&source.ports, &source.id).await.unwrap();
    assert_eq!(
        (source.state(), source.server().life_cycle.state),
        (DataReplicationState::Stopped, LifeCycleState::Stopped)
    );
    assert!(operations::start_replication(&source.ports, &source.id).await.is_err(), "its resources are still there");
    source.finalize().await;
    assert_eq!(source.ledger().await, []);
    assert!(source.fake.world().inventory().is_empty());
    assert_eq!((source.state(), source.stopped), (DataReplicationState::Stopped, false), "the agent stays");

    source.fake.world().executions.retain(|_, (machine, _)| machine != "migrate");
    operations::start_replication(&source.ports, &source.id).await.unwrap();
    assert_eq!(source.server().life_cycle.state, LifeCycleState::NotReady);
    source.reach_ready_for_test().await;
    assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForTest);
    let superseded = run(&source.ports, "replication-status", old_chain).await.unwrap();
    assert_eq!(superseded["status"], "STOPPED", "one execution takes the server along");
}

#[tokio::test]
async fn a_stop_that_was_cut_off_is_taken_up_again() {
    let mut source = Source::replicating().await;
    for n in 0.. {
        source.fake.fail_call(n, false);
        let stopped = operations::stop_replication(&source.ports, &source.id).await;
        source.fake.fail_call(usize::MAX, false);
        assert!(stopped.is_err());
        if source.server().internal.stop_requested {
            break;
        }
    }
    crate::jobs::recover(&source.ports).await.unwrap();
    assert_eq!(source.executions_of("finalize").len(), 1);
    source.finalize().await;
    assert_eq!(source.state(), DataReplicationState::Stopped);
}

#[tokio::test]
async fn only_a_stalled_replication_is_retried() {
    let mut source = Source::replicating().await;
    assert!(operations::retry_data_replication(&source.ports, &source.id).await.is_err());
    repo::update_server(&source.ports, &source.id, |server| {
        server.data_replication_info.data_replication_state = DataReplicationState::Stalled;
        Ok::<_, crate::PortError>(())
    })
    .await
    .unwrap();
    operations::retry_data_replication(&source.ports, &source.id).await.unwrap();
    source.poll().await;
    assert_eq!(source.state(), DataReplicationState::Continuous);
}

#[tokio::test]
async fn a_silent_agent_is_told_of_and_its_lag_grows() {
    let mut source = Source::replicating().await;
    source.fake.world().now_ms += 6 * 60 * 1000;
    monitor::check_agents(&source.ports).await.unwrap();
    assert_eq!(source.state(), DataReplicationState::Stalled);
    let filter = operations::ServerFilter::default();
    let shown = operations::describe_source_servers(&source.ports, &filter).await.unwrap().remove(0);
    let lag = serde_json::to_value(shown.data_replication_info.lag_duration).unwrap();
    assert!(lag.as_str().unwrap().starts_with("P0DT0H6M"), "{lag}");
    source.poll().await;
    assert_eq!(source.state(), DataReplicationState::Continuous);
    assert_eq!(source.server().data_replication_info.data_replication_error, None);
}

#[tokio::test]
async fn a_disk_that_came_is_told_of_and_joins_when_asked() {
    let mut source = Source::replicating().await;
    let volumes = source.agent.volumes.clone();
    source.inventory = vec![disk("/dev/sda", DISK_BYTES), disk("/dev/sdb", DISK_BYTES), disk("/dev/sdc", 8 << 20)];
    source.poll().await;
    assert_eq!(source.server().extras().new_disks.len(), 1);
    let told = |source: &Source| {
        let world = source.fake.world();
        let changes = world.events.iter().filter(|e| e.detail_type == EventType::DiskChange);
        changes.map(|e| e.detail.data["change"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(told(&source), [json!("APPEARED")]);
    let unknown = operations::add_disk(&source.ports, &source.id, "/dev/sdx").await.unwrap_err().to_string();
    assert!(unknown.contains("/dev/sdc"), "{unknown}");
    operations::add_disk(&source.ports, &source.id, "/dev/sdc").await.unwrap();
    source.poll_agent().await;
    assert_eq!(source.targets().len(), 2, "the other disks go on meanwhile");
    source.provision().await;
    assert_eq!(source.agent.volumes[..2], volumes);
    assert_eq!(source.targets()[2], (2, "/dev/sdc".to_owned(), 8 << 20));
    assert_eq!(source.assignments().len(), 3);
    assert_eq!(told(&source), [json!("APPEARED"), json!("ADDED")]);
    assert!(source.server().extras().new_disks.is_empty());
}

#[tokio::test]
async fn where_it_is_so_set_disks_join_by_themselves() {
    let mut source = Source::replicating().await;
    let settings = operations::ServerSettings { auto_add_disks: Some(true), ..Default::default() };
    operations::update_server_settings(&source.ports, &source.id, &settings).await.unwrap();
    source.inventory = vec![disk("/dev/sda", DISK_BYTES), disk("/dev/sdb", DISK_BYTES), disk("/dev/sdc", 8 << 20)];
    source.poll().await;
    source.provision().await;
    assert_eq!(source.targets().len(), 3);
}

#[tokio::test]
async fn a_disk_that_grew_is_followed_into_a_larger_volume() {
    let mut source = Source::replicating().await;
    let volumes = source.agent.volumes.clone();
    source.inventory = vec![disk("/dev/sda", DISK_BYTES), disk("/dev/sdb", 2 * DISK_BYTES)];
    source.poll().await;
    assert_eq!(source.targets()[1].2, DISK_BYTES, "not before its volume is larger");
    source.provision().await;
    assert_eq!(source.fake.world().grown, BTreeMap::from([(volumes[1].to_string(), 2 * DISK_BYTES)]));
    assert_eq!(source.agent.volumes, volumes, "the volume is the same");
    assert_eq!(source.targets()[1].2, 2 * DISK_BYTES);
    assert_eq!(source.assignments().iter().map(|a| a.size_bytes).collect::<Vec<_>>(), [DISK_BYTES, 2 * DISK_BYTES]);
}

#[tokio::test]
async fn a_dead_replication_server_is_replaced_with_the_same_volumes() {
    let mut source = Source::replicating().await;
    let (volumes, old) = (source.agent.volumes.clone(), source.machine());
    assert!(source.assignments().iter().all(|a| a.initialized), "the first copy was complete");
    source.fake.world().resources.remove(&old);
    monitor::check_replicators(&source.ports).await.unwrap();
    source.poll_agent().await;
    source.poll_agent().await;
    assert_eq!(source.told, Some(AgentCommand::Pause), "what changes is noted meanwhile");
    source.provision().await;
    assert_ne!(source.machine(), old);
    assert_eq!(source.agent.volumes, volumes);
    assert!(source.assignments().iter().all(|a| a.initialized), "compared, not copied again");
    assert_eq!(source.targets().len(), 2);
    let launched: Vec<_> = source.ledger().await.into_iter().filter(|e| e.kind == ResourceKind::Instance).collect();
    assert_eq!(launched.iter().map(|e| e.resource.clone()).collect::<Vec<_>>(), [Some(source.machine())]);
    assert_eq!(
        source.fake.world().items.keys().filter(|key| key.kind == crate::ports::Kind::ReplicationServer).count(),
        1
    );
    monitor::check_replicators(&source.ports).await.unwrap();
    assert!(source.server().internal.provisioning.is_none(), "once is enough");
}

#[tokio::test]
async fn a_silent_replication_server_is_replaced_after_a_while_and_ended_first() {
    let mut source = Source::replicating().await;
    let old = source.machine();
    source.fake.world().now_ms += 10 * 60 * 1000;
    for _ in 0..9 {
        monitor::check_replicators(&source.ports).await.unwrap();
        assert_eq!(source.machine(), old, "who was away itself has heard of nobody");
    }
    monitor::check_replicators(&source.ports).await.unwrap();
    assert!(!source.fake.world().resources.contains_key(&old));
    source.provision().await;
    assert_ne!(source.machine(), old);
}

#[tokio::test]
async fn a_replication_server_that_never_authenticates_is_replaced() {
    let mut source = Source::enrol().await;
    let input = source.migrate_input();
    run(&source.ports, "register", input.clone()).await.unwrap();
    source.poll_agent().await;
    let waits = run(&source.ports, "provision", input.clone()).await.unwrap();
    assert_eq!(waits["status"], "IN_PROGRESS");
    let (old, first) = (source.machine(), source.server().internal.replicator);
    source.fake.world().now_ms += 11 * 60 * 1000;
    source.poll_agent().await;
    run(&source.ports, "provision", input.clone()).await.unwrap();
    let told = source.server().data_replication_info.data_replication_error.unwrap();
    assert!(told.raw_error.contains("has not authenticated"), "{}", told.raw_error);
    let state = source.drive("provision", input).await.unwrap();
    assert_eq!(state["status"], "DONE");
    assert_ne!(source.server().internal.replicator, first);
    assert_ne!(source.machine(), old);
    assert!(!source.fake.world().resources.contains_key(&old), "nobody uses it any more");
}

#[tokio::test]
async fn a_staging_disk_that_does_not_show_is_waited_for_and_then_made_anew() {
    let mut source = Source::replicating().await;
    let (volumes, old) = (source.agent.volumes.clone(), source.machine());
    source.fake.world().resources.remove(volumes[1].as_str()).unwrap();
    source.fake.world().resources.remove(&old);
    monitor::check_replicators(&source.ports).await.unwrap();
    let name = source.server().internal.provisioning.unwrap();
    let input = source.fake.world().executions[&name.0].1.clone();
    for _ in 0..5 {
        source.poll().await;
        assert_eq!(run(&source.ports, "provision", input.clone()).await.unwrap()["status"], "IN_PROGRESS");
        source.fake.world().now_ms += 1000;
    }
    let staging =
        |source: &Source| source.server().internal.staging.into_iter().map(|disk| disk.volume).collect::<Vec<_>>();
    assert_eq!(staging(&source), volumes.iter().cloned().map(Some).collect::<Vec<_>>(), "it may still show itself");
    let machine = source.machine();
    source.fake.world().now_ms += 61_000;
    source.poll_agent().await;
    run(&source.ports, "provision", input).await.unwrap();
    let told = source.server().data_replication_info.data_replication_error.unwrap();
    assert!(told.raw_error.contains("KMS"), "{}", told.raw_error);
    let initialized: Vec<_> = source.server().internal.staging.iter().map(|disk| disk.initialized).collect();
    assert_eq!(initialized, [true, false], "the new one has to be filled");
    source.provision().await;
    assert_eq!(source.machine(), machine, "nothing is wrong with the replication server");
    assert_eq!(source.agent.volumes[0], volumes[0]);
    assert_ne!(source.agent.volumes[1], volumes[1]);
}

/// Fails call `n` of the replacement and of what it starts, and expects the same end.
async fn sweep_replacement(after_effect: bool) {
    for n in 0.. {
        let mut source = Source::replicating().await;
        let (volumes, old) = (source.agent.volumes.clone(), source.machine());
        source.fake.world().resources.remove(&old);
        source.fake.fail_call(n, after_effect);
        let _ = monitor::check_replicators(&source.ports).await;
        let mut planted = source.fake.calls() > n;
        source.fake.fail_call(usize::MAX, false);
        monitor::check_replicators(&source.ports).await.unwrap();
        let name = source.server().internal.provisioning.unwrap();
        let state = source.fake.world().executions[&name.0].1.clone();
        source.fake.fail_call(n, after_effect);
        let _ = run(&source.ports, "provision", state).await;
        planted |= source.fake.calls() > n;
        source.fake.fail_call(usize::MAX, false);
        source.fake.world().now_ms += 30_000;
        source.provision().await;
        assert_eq!(source.agent.volumes, volumes, "call {n}");
        assert_eq!(source.assignments().len(), 2, "call {n}");
        let machines = {
            let world = source.fake.world();
            world.resources.values().filter(|(kind, _)| *kind == ResourceKind::Instance).count()
        };
        assert_eq!(machines, 1, "call {n}");
        if !planted {
            assert!(n > 10, "the sweep has to reach every call; it ended at {n}");
            return;
        }
    }
}

#[tokio::test]
async fn a_replacement_survives_a_failure_before_every_call() {
    sweep_replacement(false).await;
}

#[tokio::test]
async fn a_replacement_survives_a_failure_after_every_call() {
    sweep_replacement(true).await;
}

#[tokio::test]
async fn a_shared_replication_server_goes_with_the_last_whom_it_serves() {
    let mut first = Source::replicating().await;
    let mut second = Source::enrol_at(first.fake.clone()).await;
    second.replicators = first.replicators.clone();
    second.reach_ready_for_test().await;
    let machine = first.machine();
    assert_eq!(second.machine(), machine);
    for source in [&first, &second] {
        assert!(
            source.ledger().await.iter().any(|e| e.resource.as_deref() == Some(machine.as_str())),
            "in both ledgers"
        );
    }
    operations::disconnect_from_service(&first.ports, &first.id).await.unwrap();
    first.finalize().await;
    assert_eq!(first.ledger().await, []);
    assert!(first.fake.world().resources.contains_key(&machine), "the other one needs it");
    operations::disconnect_from_service(&second.ports, &second.id).await.unwrap();
    second.finalize().await;
    assert_eq!(second.ledger().await, []);
    assert!(second.fake.world().inventory().is_empty());
}

#[tokio::test]
async fn room_that_was_kept_for_a_server_ends_with_it() {
    let first = Source::replicating().await;
    let mut second = Source::enrol_at(first.fake.clone()).await;
    let id = first.server().internal.replicator.unwrap();
    // It was cut off for good while it chose, before it wrote down which one.
    repo::update_replicator(&first.ports, &id, |replicator| {
        replicator.reserved.insert(second.id.clone(), 2);
        Ok(())
    })
    .await
    .unwrap();
    operations::disconnect_from_service(&second.ports, &second.id).await.unwrap();
    second.finalize().await;
    let shared: ReplicationServer = repo::load(&first.ports, id.as_str()).await.unwrap();
    assert!(!shared.reserved.contains_key(&second.id));
    assert!(!shared.draining, "the other one needs it");
}

#[tokio::test]
async fn a_disconnection_survives_a_failure_at_every_call() {
    for after_effect in [false, true] {
        for n in 0.. {
            let mut source = Source::replicating().await;
            operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
            source.poll().await;
            source.poll().await;
            let state = json!({"execution": "finalize", "sourceServerID": source.id});
            source.fake.fail_call(n, after_effect);
            let _ = run(&source.ports, "finalize", state).await;
            let planted = source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            source.finalize().await;
            assert_eq!(source.ledger().await, [], "call {n}");
            assert!(source.fake.world().inventory().is_empty(), "call {n}");
            if !planted {
                assert!(n > 10, "the sweep has to reach every call; it ended at {n}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn settings_reach_the_agent_with_its_next_poll() {
    let mut source = Source::replicating().await;
    let change = operations::ReplicationChange { bandwidth_throttling: Some(80), ..Default::default() };
    operations::update_replication_configuration(&source.ports, &source.id, &change).await.unwrap();
    let settings = operations::ServerSettings {
        checkpoint_interval_ms: Some(3000),
        max_freeze_ms: Some(0),
        hook_timeout_ms: Some(60_000),
        ..Default::default()
    };
    operations::update_server_settings(&source.ports, &source.id, &settings).await.unwrap();
    source.poll().await;
    let Some(AgentCommand::Replicate { throttle_bytes_per_second, checkpoints, .. }) = &source.told else {
        panic!("{:?}", source.told)
    };
    assert_eq!(*throttle_bytes_per_second, 10_000_000);
    assert_eq!((checkpoints.interval_ms, checkpoints.max_freeze_ms, checkpoints.hook_timeout_ms), (3000, 0, 60_000));
    let too_much = operations::ReplicationChange { bandwidth_throttling: Some(10_001), ..Default::default() };
    assert!(operations::update_replication_configuration(&source.ports, &source.id, &too_much).await.is_err());
    let frozen_long = operations::ServerSettings { max_freeze_ms: Some(60_000), ..Default::default() };
    assert!(operations::update_server_settings(&source.ports, &source.id, &frozen_long).await.is_err());
}
