//! Snapshots: waiting for checkpoints by token, whatever is cut off; manifests, schedules and data keys.

use rehost_model::event::EventType;
use rehost_model::link::VolumeManifest;
use rehost_model::replication::Consistency;
use rehost_model::settings::{Retention, SnapshotSchedule};
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{ExecutionId, TaskToken, VolumeId};

use super::*;
use crate::ports::{ExecutionStatus, TaskOutcome};
use crate::{manifest, schedule, snapshots};

impl Source {
    /// Gives the step `request-checkpoint` a token, as the state machine does.
    fn request_input(&self, state: &Value) -> Value {
        let execution = state["execution"].as_str().unwrap().to_owned();
        let mut world = self.fake.world();
        let token = format!("token-{}", world.waiting.len() + world.reported.len() + world.calls_of_tokens);
        world.calls_of_tokens += 1;
        world.reported.remove(&execution);
        world.waiting.retain(|_, waits| *waits != execution);
        world.waiting.insert(token.clone(), execution.clone());
        json!({"token": token, "execution": execution, "sourceServerID": self.id})
    }

    /// What the task that waits for the checkpoint was told; the step is retried as its state machine would.
    async fn await_checkpoint(&mut self, state: &Value) -> Result<Value, StepError> {
        let execution = state["execution"].as_str().unwrap().to_owned();
        loop {
            match run(&self.ports, "request-checkpoint", self.request_input(state)).await {
                Ok(_) => break,
                Err(error) if error.name.starts_with("Retryable") => self.poll().await,
                Err(error) => return Err(error),
            }
        }
        for _ in 0..60 {
            let outcome = self.fake.world().reported.get(&execution).cloned();
            match outcome {
                Some(TaskOutcome::Success(told)) => return Ok(told),
                Some(TaskOutcome::Failure { error, cause }) => return Err(StepError::new(&error, cause)),
                None => {}
            }
            self.fake.world().now_ms += 1000;
            self.poll().await;
            schedule::tick(&self.ports).await.unwrap();
        }
        panic!("nobody told {execution} of its checkpoint: {:#?}", self.server().internal.checkpoint);
    }

    pub(super) async fn drive_snapshot(&mut self, mut state: Value) -> Result<Value, StepError> {
        for _ in 0..10 {
            let told = self.await_checkpoint(&state).await?;
            if told["status"] == "STOPPED" {
                state["status"] = told["status"].clone();
                return Ok(state);
            }
            state = self.drive_step("snapshot", state).await?;
            if state["status"] != "AGAIN" {
                return Ok(state);
            }
        }
        panic!("no snapshot comes about: {state}");
    }

    fn set(&self, execution: &str) -> SnapshotSet {
        self.item(&format!("{}/{execution}", self.id))
    }

    fn sets(&self) -> Vec<SnapshotSet> {
        let world = self.fake.world();
        let mine = world.items.iter().filter(|(key, _)| key.kind == crate::ports::Kind::SnapshotSet);
        mine.map(|(_, item)| serde_json::from_value(item.body.clone()).unwrap()).collect()
    }

    fn snapshot_input(&self, execution: &str) -> Value {
        let input = json!({"execution": execution, "sourceServerID": self.id});
        self.fake.world().executions.insert(execution.to_owned(), ("snapshot".to_owned(), input.clone()));
        input
    }

    fn ended(&self, execution: &str) {
        let status = ExecutionStatus::Succeeded(json!({}));
        self.fake.world().ended.insert(execution.to_owned(), status);
    }

    fn told(&self, execution: &str) -> Option<TaskOutcome> {
        self.fake.world().reported.get(execution).cloned()
    }

    fn resources(&self, wanted: ResourceKind) -> usize {
        self.fake.world().resources.values().filter(|(kind, _)| *kind == wanted).count()
    }

    fn replicator(&self) -> CertificateIdentity {
        self.replicators.values().next().unwrap().clone()
    }
}

#[tokio::test]
async fn the_task_is_told_checkpoint_and_consistency_when_the_volumes_are_held() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    assert_eq!(source.set("snapshot-1").state, SnapshotSetState::Requested);
    assert_eq!(source.told("snapshot-1"), None);
    let shown = serde_json::to_string(&snapshots::list(&source.ports, Some(&source.id)).await.unwrap()).unwrap();
    assert!(!shown.contains("token-"), "{shown}");
    source.poll().await;
    let epoch = source.set("snapshot-1").epoch;
    let answer = json!({"status": "DONE", "epoch": epoch, "consistency": "QUIESCENT"});
    assert_eq!(source.told("snapshot-1"), Some(TaskOutcome::Success(answer)));
    let set = source.set("snapshot-1");
    assert_eq!((set.state, set.token, set.consistency), (SnapshotSetState::Pending, None, Consistency::Quiescent));
    let state = source.drive_step("snapshot", input).await.unwrap();
    assert_eq!((&state["status"], &state["consistency"]), (&json!("DONE"), &json!("QUIESCENT")));
    assert_eq!(source.set("snapshot-1").volumes.len(), 2);
}

#[tokio::test]
async fn a_report_that_was_lost_is_repeated() {
    for after_effect in [false, true] {
        for n in 0.. {
            let mut source = Source::enrol().await;
            source.reach_ready_for_test().await;
            let input = source.snapshot_input("snapshot-1");
            run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
            source.poll_agent().await;
            let (identity, report) = (source.replicator(), source.report());
            let report = ReplicatorReport { port: 1500, version: "0".to_owned(), servers: vec![report] };
            source.fake.fail_call(n, after_effect);
            // A replicator that gets no answer reports again; here it is the last that is heard of it.
            let answered = link::replicator_poll(&source.ports, &identity, &report).await.is_ok();
            source.fake.fail_call(usize::MAX, false);
            if !answered && source.server().internal.checkpoint.held.is_none() {
                link::replicator_poll(&source.ports, &identity, &report).await.unwrap();
            }
            schedule::tick(&source.ports).await.unwrap();
            assert!(matches!(source.told("snapshot-1"), Some(TaskOutcome::Success(_))), "call {n}");
            assert_eq!(source.set("snapshot-1").token, None, "call {n}");
            if answered {
                assert!(n > 5, "{n}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_request_survives_a_failure_at_every_call() {
    for after_effect in [false, true] {
        for n in 0.. {
            let mut source = Source::enrol().await;
            source.reach_ready_for_test().await;
            let input = source.snapshot_input("snapshot-1");
            source.fake.fail_call(n, after_effect);
            let cut_off = run(&source.ports, "request-checkpoint", source.request_input(&input)).await.is_err();
            source.fake.fail_call(usize::MAX, false);
            let state = source.drive_snapshot(input).await.unwrap();
            assert_eq!(state["status"], "DONE", "call {n}");
            assert_eq!(source.sets().len(), 2, "call {n}");
            assert_eq!(source.resources(ResourceKind::Snapshot), 4, "call {n}");
            if !cut_off {
                assert!(n > 5, "{n}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_tick_survives_a_failure_at_every_call() {
    for n in 0.. {
        let mut source = Source::enrol().await;
        source.reach_ready_for_test().await;
        // One whose hold is there, one whose execution is over, and one that is due.
        let input = source.snapshot_input("snapshot-1");
        run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
        source.poll_agent().await;
        let over = source.snapshot_input("snapshot-2");
        run(&source.ports, "request-checkpoint", source.request_input(&over)).await.unwrap();
        source.ended("snapshot-2");
        source.fake.fail_call(n, true);
        let cut_off = schedule::tick(&source.ports).await.is_err();
        source.fake.fail_call(usize::MAX, false);
        source.poll().await;
        schedule::tick(&source.ports).await.unwrap();
        assert!(matches!(source.told("snapshot-1"), Some(TaskOutcome::Success(_))), "call {n}");
        assert_eq!(source.sets().len(), 2, "what was over is gone; call {n}");
        let state = source.drive_step("snapshot", input).await.unwrap();
        assert_eq!(state["status"], "DONE", "call {n}");
        if !cut_off {
            assert!(n > 5, "{n}");
            break;
        }
    }
}

#[tokio::test]
async fn heartbeats_come_while_agent_and_replicator_are_at_work() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    let beats = |source: &Source| source.fake.world().heartbeats.get("snapshot-1").copied().unwrap_or(0);
    // The agent is at work on the checkpoint, and not there yet.
    let (agent, reached) = (source.agent.clone(), source.reached);
    let report = AgentReport { agent_version: "0".to_owned(), phase: AgentPhase::Backlog, ..AgentReport::default() };
    for _ in 0..60 {
        source.fake.world().now_ms += 1000;
        link::agent_poll(&source.ports, &agent, &report).await.unwrap();
        source.poll_replicator().await;
        schedule::tick(&source.ports).await.unwrap();
    }
    let at_work = beats(&source);
    assert!((2..=3).contains(&at_work), "every 20 s, and not with every report: {at_work}");
    // The agent falls silent: the replicator alone does not count.
    for _ in 0..200 {
        source.fake.world().now_ms += 1000;
        source.poll_replicator().await;
        schedule::tick(&source.ports).await.unwrap();
    }
    let silent = beats(&source);
    assert!(silent <= at_work + 3, "{silent}");
    // The replicator falls silent: the agent alone does not count either.
    for _ in 0..60 {
        source.fake.world().now_ms += 1000;
        link::agent_poll(&source.ports, &agent, &report).await.unwrap();
        schedule::tick(&source.ports).await.unwrap();
    }
    assert_eq!((beats(&source), source.reached), (silent, reached));
}

#[tokio::test]
async fn a_hold_that_was_over_before_anybody_noticed_is_asked_for_anew() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    let first = source.set("snapshot-1").epoch;
    source.poll_agent().await;
    // The replicator held it, and gave up, while its reports were lost.
    source.hold_expires = true;
    source.poll_replicator().await;
    (source.hold_expires, source.held) = (false, None);
    schedule::tick(&source.ports).await.unwrap();
    assert!(source.set("snapshot-1").epoch > first);
    assert_eq!(source.told("snapshot-1"), None);
    source.poll().await;
    source.poll().await;
    assert!(matches!(source.told("snapshot-1"), Some(TaskOutcome::Success(_))));
}

#[tokio::test]
async fn two_executions_share_a_checkpoint_or_get_one_each() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let inputs = ["snapshot-1", "snapshot-2"].map(|execution| source.snapshot_input(execution));
    for input in &inputs {
        run(&source.ports, "request-checkpoint", source.request_input(input)).await.unwrap();
    }
    source.poll().await;
    for execution in ["snapshot-1", "snapshot-2"] {
        assert!(matches!(source.told(execution), Some(TaskOutcome::Success(_))), "{execution}");
    }
    for input in inputs {
        let mut state = source.drive_step("snapshot", input).await.unwrap();
        if state["status"] == "AGAIN" {
            state = source.drive_snapshot(state).await.unwrap();
        }
        assert_eq!(state["status"], "DONE");
    }
    assert!(source.sets().iter().all(|set| set.state == SnapshotSetState::Launchable));
}

#[tokio::test]
async fn what_an_execution_left_behind_is_removed_and_its_hold_ends() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    source.poll().await;
    run(&source.ports, "snapshot", input).await.unwrap();
    let before = source.resources(ResourceKind::Snapshot);
    source.ended("snapshot-1");
    schedule::tick(&source.ports).await.unwrap();
    assert_eq!(source.sets().len(), 1, "that of the migration");
    assert!(source.resources(ResourceKind::Snapshot) <= before);
    assert_eq!(source.resources(ResourceKind::Snapshot), 2);
    source.poll().await;
    assert_eq!(source.held, None, "the hold was released");
}

#[tokio::test]
async fn who_waits_is_told_when_the_server_leaves_or_pauses() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    let Some(TaskOutcome::Success(told)) = source.told("snapshot-1") else { panic!("not told") };
    assert_eq!(told["status"], "STOPPED");
    assert!(source.sets().is_empty());
    let answer = run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    assert_eq!(answer["status"], "STOPPED");
    assert!(source.sets().is_empty());
}

#[tokio::test]
async fn a_token_that_nobody_waits_with_any_more_is_forgotten() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    source.fake.world().waiting.clear();
    source.poll().await;
    assert_eq!(source.set("snapshot-1").token, None);
    assert_eq!(source.told("snapshot-1"), None);
    let late = source.ports.workflows.report(&TaskToken("token-0".to_owned()), TaskOutcome::Success(json!(1))).await;
    assert!(late.unwrap_err().is_not_found());
}

#[tokio::test]
async fn due_snapshots_start_once_and_only_where_the_disks_are_followed() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    source.poll().await;
    assert_eq!(source.server().data_replication_info.data_replication_state, DataReplicationState::Continuous);
    source.ended("migrate");
    let due = |source: &Source| source.executions_of("snapshot").len();
    schedule::tick(&source.ports).await.unwrap();
    assert_eq!(due(&source), 0, "an hour has to pass");
    source.fake.world().now_ms += 3_601_000;
    source.poll().await;
    for n in 0..4 {
        source.fake.fail_call(n * 3, true);
        let _ = schedule::tick(&source.ports).await;
        source.fake.fail_call(usize::MAX, false);
    }
    schedule::tick(&source.ports).await.unwrap();
    assert_eq!(due(&source), 1);
    let input = source.executions_of("snapshot")[0].clone();
    source.drive_snapshot(input).await.unwrap();
    schedule::tick(&source.ports).await.unwrap();
    assert_eq!(due(&source), 1, "the next hour begins with it");
    let job = source.start(InitiatedBy::StartTest).await;
    source.fake.world().now_ms += 3_601_000;
    source.poll().await;
    schedule::tick(&source.ports).await.unwrap();
    assert_eq!(due(&source), 1, "the job takes its own");
    source.launch(&job).await.unwrap();
    repo::update_server(&source.ports, &source.id, |server| {
        server.internal.replication.settings.snapshot_schedule = SnapshotSchedule { every_minutes: 0 };
        Ok::<_, StepError>(())
    })
    .await
    .unwrap();
    source.fake.world().now_ms += 100_000_000;
    source.poll().await;
    schedule::tick(&source.ports).await.unwrap();
    assert_eq!(due(&source), 1, "only on demand");
}

#[tokio::test]
async fn retention_keeps_what_it_says_and_what_is_in_use() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let policy = Retention { keep_last: 2, hourly: 0, daily: 0 };
    repo::update_server(&source.ports, &source.id, |server| {
        server.internal.replication.settings.retention = policy;
        Ok::<_, StepError>(())
    })
    .await
    .unwrap();
    for n in 1..=4 {
        let execution = format!("snapshot-{n}");
        let input = source.snapshot_input(&execution);
        source.drive_snapshot(input).await.unwrap();
        if n != 2 {
            source.ended(&execution);
        }
    }
    let left: Vec<String> = source.sets().into_iter().map(|set| set.execution.0).collect();
    let migrate = left.iter().filter(|execution| execution.starts_with("migrate")).count();
    let others: Vec<&str> = left.iter().map(String::as_str).filter(|e| e.starts_with("snapshot")).collect();
    assert_eq!(
        (migrate, others),
        (1, vec!["snapshot-2", "snapshot-3", "snapshot-4"]),
        "2 is still running, and so is migrate"
    );
    assert_eq!(source.resources(ResourceKind::Snapshot), 8);
}

/// A manifest of these bytes in chunks of 4 KiB.
fn manifest_of(server: &ServerId, volume: &VolumeId, epoch: Epoch, bytes: &[u8]) -> VolumeManifest {
    let digests: Vec<_> = bytes
        .chunks(4096)
        .map(|chunk| manifest::digest_of(&blake3::hash(chunk), chunk.iter().all(|byte| *byte == 0)))
        .collect();
    let text = |digest: &[u8; 16]| if *digest == [0; 16] { "-".to_owned() } else { hex::encode(digest) };
    VolumeManifest {
        server: server.clone(),
        volume: volume.clone(),
        epoch,
        consistency: Consistency::Quiescent,
        size_bytes: bytes.len() as u64,
        chunk_bytes: 4096,
        root: manifest::root_of(&digests),
        chunks: digests.iter().map(text).collect(),
    }
}

fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    for (index, chunk) in bytes.chunks_mut(4096).enumerate().filter(|(index, _)| index % 3 == 0) {
        chunk.fill(seed ^ u8::try_from(index % 251).unwrap());
    }
    bytes
}

#[tokio::test]
async fn a_manifest_belongs_to_its_snapshot_and_goes_with_it() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let input = source.snapshot_input("snapshot-1");
    run(&source.ports, "request-checkpoint", source.request_input(&input)).await.unwrap();
    source.poll_agent().await;
    let (epoch, volumes, identity) = (source.reached, source.agent.volumes.clone(), source.replicator());
    let manifests = [3, 4].map(content);
    let made: Vec<_> =
        volumes.iter().zip(&manifests).map(|(volume, bytes)| manifest_of(&source.id, volume, epoch, bytes)).collect();
    // The first one is faster than the report of the hold, the second one comes after the snapshot.
    manifest::receive(&source.ports, &identity, &made[0]).await.unwrap();
    source.poll().await;
    source.drive_step("snapshot", input).await.unwrap();
    let verifiable = async |source: &Source| {
        let views = snapshots::list(&source.ports, Some(&source.id)).await.unwrap();
        views.into_iter().find(|view| view.epoch == epoch).unwrap()
    };
    let view = verifiable(&source).await;
    assert!(!view.verifiable && view.disks[0].root.is_some() && view.disks[1].root.is_none());
    let refused = snapshots::verify(&source.ports, &source.id, &snapshots::VerifyFrom::default()).await.unwrap_err();
    assert!(
        refused.to_string().contains("cannot be verified") || refused.to_string().contains("not verified"),
        "{refused}"
    );
    manifest::receive(&source.ports, &identity, &made[1]).await.unwrap();
    manifest::receive(&source.ports, &identity, &made[1]).await.unwrap();
    assert!(verifiable(&source).await.verifiable);
    assert_eq!(source.fake.world().objects.keys().filter(|key| key.starts_with("manifests/")).count(), 2);

    // The snapshots hold what was promised, until a byte of the second one changes.
    let set = source.set("snapshot-1");
    for (snapshot, bytes) in set.snapshots.iter().zip(manifests) {
        source.fake.world().snapshot_bytes.insert(snapshot.to_string(), bytes);
    }
    let whole = verify_all(&source).await;
    assert_eq!((whole.equal_bytes, whole.total_bytes, whole.difference), (2 * DISK_BYTES, 2 * DISK_BYTES, None));
    for (disk, at) in [(1, 5 * 4096 + 7), (1, DISK_BYTES - 1), (0, 0), (0, 4096 * 1500)] {
        let (name, at) = (set.snapshots[disk].to_string(), usize::try_from(at).unwrap());
        let flip = || source.fake.world().snapshot_bytes.get_mut(&name).unwrap()[at] ^= 1;
        flip();
        let found = verify_all(&source).await.difference.unwrap();
        assert_eq!((found.disk, found.offset_bytes, found.length_bytes), (disk, at as u64 / 4096 * 4096, 4096));
        flip();
    }
    source.fake.world().snapshot_bytes.get_mut(set.snapshots[0].as_str()).unwrap().truncate(4096 * 700 + 9);
    assert_eq!(verify_all(&source).await.difference.unwrap().chunk, 700, "a snapshot that ends early differs there");

    operations::disconnect_from_service(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    assert!(source.fake.world().objects.keys().all(|key| !key.starts_with("manifests/")));
}

async fn verify_all(source: &Source) -> snapshots::Verified {
    let mut from = snapshots::VerifyFrom::default();
    loop {
        let verified = snapshots::verify(&source.ports, &source.id, &from).await.unwrap();
        match verified.next.clone() {
            Some(next) => from = next,
            None => return verified,
        }
    }
}

#[tokio::test]
async fn manifests_that_nobody_waits_for_or_that_contradict_themselves_are_refused() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let set = source.sets().remove(0);
    let (identity, bytes) = (source.replicator(), content(1));
    let good = manifest_of(&source.id, &set.volumes[0], set.epoch, &bytes);
    let receive = async |manifest: VolumeManifest| manifest::receive(&source.ports, &identity, &manifest).await;
    let changed = |change: &dyn Fn(&mut VolumeManifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest
    };
    for (manifest, part) in [
        (changed(&|m| m.epoch = Epoch(set.epoch.0 + 1)), "no snapshot"),
        (changed(&|m| m.volume = VolumeId::generate()), "not served"),
        (changed(&|m| m.server = ServerId::generate()), "not served"),
        (changed(&|m| m.size_bytes -= 4096), "bytes, not"),
        (changed(&|m| m.chunk_bytes = 4097), "power of two"),
        (changed(&|m| m.chunk_bytes = 0), "power of two"),
        (changed(&|m| m.chunk_bytes = 8192), "are expected"),
        (changed(&|m| drop(m.chunks.pop())), "are expected"),
        (changed(&|m| m.chunks[1] = "x".repeat(32)), "hexadecimal"),
        (changed(&|m| m.chunks[1] = "ab".to_owned()), "hexadecimal"),
        (changed(&|m| m.chunks[0] = "-".to_owned()), "root"),
        (changed(&|m| m.root = String::new()), "root"),
    ] {
        let refused = receive(manifest).await.unwrap_err().to_string();
        assert!(refused.contains(part), "expected `{part}`, got `{refused}`");
    }
    assert!(source.fake.world().objects.keys().all(|key| !key.starts_with("manifests/")), "nothing of them stays");
    receive(good.clone()).await.unwrap();
    let agent = source.agent.clone();
    assert!(manifest::receive(&source.ports, &agent, &good).await.is_err(), "an agent has no manifests");
}

#[tokio::test]
async fn each_server_has_a_data_key_that_only_its_replicator_sees() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let report = ReplicatorReport { port: 1500, version: "0".to_owned(), servers: vec![source.report()] };
    let directive = link::replicator_poll(&source.ports, &source.replicator(), &report).await.unwrap();
    let key = directive.data_keys[&source.id].clone();
    assert_ne!(key.0, [0; 32]);
    let again = link::replicator_poll(&source.ports, &source.replicator(), &report).await.unwrap();
    assert_eq!(again.data_keys[&source.id], key);
    let server = source.server();
    let sealed = hex::decode(server.internal.data_key_sealed.clone().unwrap()).unwrap();
    assert_eq!(source.ports.keys.open(&sealed, &format!("data-key/{}", source.id)).await.unwrap(), key.0);
    assert!(source.ports.keys.open(&sealed, "data-key/s-another").await.is_err());
    let text = String::from(key);
    let shown = serde_json::to_string(&server.to_api()).unwrap();
    assert!(!shown.contains(&text) && !shown.contains("dataKey") && !shown.contains("internal"), "{shown}");
    assert!(!format!("{directive:?}").contains(&text));
    let events = source.fake.world().events.clone();
    assert!(!serde_json::to_string(&events).unwrap().contains(&text));
    assert!(events.iter().any(|event| event.detail_type == EventType::Registered));
}

#[tokio::test]
async fn a_data_key_survives_a_failure_at_every_call() {
    for after_effect in [false, true] {
        for n in 0.. {
            let mut source = Source::enrol().await;
            source.reach_ready_for_test().await;
            repo::update_server(&source.ports, &source.id, |server| {
                server.internal.data_key_sealed = None;
                Ok::<_, StepError>(())
            })
            .await
            .unwrap();
            let server = source.server();
            source.fake.fail_call(n, after_effect);
            let first = crate::data_keys::of(&source.ports, &server).await;
            source.fake.fail_call(usize::MAX, false);
            // Another poll that read the server before there was a key gets the same one.
            let second = crate::data_keys::of(&source.ports, &server).await.unwrap();
            assert_eq!(crate::data_keys::of(&source.ports, &source.server()).await.unwrap(), second, "call {n}");
            if let Ok(first) = first {
                assert_eq!(first, second);
                assert!(n > 2, "{n}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_taken_on_demand_and_its_end_is_told() {
    let mut source = Source::enrol().await;
    assert!(snapshots::take(&source.ports, &source.id).await.is_err(), "there is no first copy yet");
    source.reach_ready_for_test().await;
    let execution = snapshots::take(&source.ports, &source.id).await.unwrap();
    assert!(execution.0.len() <= 80);
    let input = source.executions_of("snapshot")[0].clone();
    assert_eq!(input["execution"], execution.0);
    source.drive_snapshot(input).await.unwrap();
    source.ended(&execution.0);
    let taken = snapshots::status(&source.ports, &source.id, &execution).await.unwrap();
    assert_eq!(
        (taken.status, taken.snapshot.unwrap().state),
        (snapshots::TakenStatus::Succeeded, SnapshotSetState::Launchable)
    );
    let failed = ExecutionStatus::Failed { error: "NoSpace".to_owned(), cause: "full".to_owned() };
    source.fake.world().ended.insert("snapshot-x".to_owned(), failed);
    let taken = snapshots::status(&source.ports, &source.id, &ExecutionId("snapshot-x".to_owned())).await.unwrap();
    assert_eq!((taken.status, taken.reason.as_deref()), (snapshots::TakenStatus::Failed, Some("NoSpace: full")));
    assert!(snapshots::status(&source.ports, &source.id, &ExecutionId("absent".to_owned())).await.is_err());
}
