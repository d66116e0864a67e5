//! Invocations that come late, or at the same time as others: what is over stays as it is, and what others did meanwhile counts.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{ExecutionId, JobId};

use super::*;
use crate::ports::{Item, ItemKey, Kind, PortResult, Store, Version};
use crate::schedule;

/// A store that gives what was read before once more, once: as to somebody who was stopped after reading.
struct Stale {
    inner: Arc<dyn Store>,
    items: Mutex<Vec<Item>>,
}

#[async_trait]
impl Store for Stale {
    async fn get(&self, key: &ItemKey) -> PortResult<Option<Item>> {
        let stale = {
            let mut items = self.items.lock().unwrap();
            let at = items.iter().position(|item| item.key == *key);
            at.map(|at| items.remove(at))
        };
        match stale {
            Some(item) => Ok(Some(item)),
            None => self.inner.get(key).await,
        }
    }

    async fn put(&self, key: &ItemKey, body: Value, expected: Option<Version>) -> PortResult<Version> {
        self.inner.put(key, body, expected).await
    }

    async fn delete(&self, key: &ItemKey, expected: Version) -> PortResult<()> {
        self.inner.delete(key, expected).await
    }

    async fn list(&self, kind: Kind, prefix: &str) -> PortResult<Vec<Item>> {
        let stale: Vec<Item> = {
            let mut items = self.items.lock().unwrap();
            let (wanted, others) = items.drain(..).partition(|item| item.key.kind == kind);
            *items = others;
            wanted
        };
        if stale.is_empty() { self.inner.list(kind, prefix).await } else { Ok(stale) }
    }
}

impl Source {
    /// Everything as it is, for somebody who sees only these items as they were.
    fn ports_that_see(&self, items: Vec<Item>) -> Ports {
        let mut ports = self.ports.clone();
        ports.store = Arc::new(Stale { inner: Arc::clone(&self.ports.store), items: Mutex::new(items) });
        ports
    }

    async fn sets_as_they_are(&self) -> Vec<Item> {
        self.ports.store.list(Kind::SnapshotSet, "").await.unwrap()
    }

    /// The server is ready for test, and the snapshot `snapshot-1` waits for its checkpoint.
    async fn waits_for_checkpoint() -> (Self, Value) {
        let mut source = Self::enrol().await;
        source.reach_ready_for_test().await;
        let input = json!({"execution": "snapshot-1", "sourceServerID": source.id});
        source.fake.world().executions.insert("snapshot-1".to_owned(), ("snapshot".to_owned(), input.clone()));
        source.fake.world().waiting.insert("token".to_owned(), "snapshot-1".to_owned());
        let request = json!({"token": "token", "execution": "snapshot-1", "sourceServerID": source.id});
        run(&source.ports, "request-checkpoint", request).await.unwrap();
        (source, input)
    }

    fn snapshot_set(&self) -> SnapshotSet {
        self.item(&format!("{}/snapshot-1", self.id))
    }

    fn has_snapshots_of(&self, set: &SnapshotSet) -> bool {
        let world = self.fake.world();
        !set.snapshots.is_empty() && set.snapshots.iter().all(|s| world.resources.contains_key(s.as_str()))
    }

    async fn tested() -> (Self, Job, Value) {
        let mut source = Self::enrol().await;
        source.reach_ready_for_test().await;
        let job = source.start(InitiatedBy::StartTest).await;
        let state = source.launch_state(&job);
        source.launch(&job).await.unwrap();
        (source, job, state)
    }

    fn launch_status(&self, job: &JobId) -> LaunchStatus {
        self.job(job).participating_servers[0].launch_status
    }
}

#[tokio::test]
async fn a_job_that_is_over_stays_so_whatever_comes_late() {
    let (source, job, mut state) = Source::tested().await;
    let (before, server) = (source.job(&job.job_id), source.server());
    let inventory = source.fake.world().inventory();
    for step in ["begin-job", "prepare-cutover", "convert", "launch-test", "verify"] {
        state["snapshots"] = json!(before.work[&source.id].snapshots);
        assert_eq!(run(&source.ports, step, state.clone()).await.unwrap_err().name, "JobOver", "{step}");
    }
    assert_eq!(run(&source.ports, "complete-job", state.clone()).await.unwrap()["status"], "DONE");
    assert_eq!(run(&source.ports, "fail-job", state).await.unwrap()["status"], "COMMITTED");
    assert_eq!((source.job(&job.job_id), source.server()), (before, server));
    assert_eq!(source.fake.world().inventory(), inventory);
}

#[tokio::test]
async fn a_job_that_failed_stays_so_and_what_it_would_have_replaced_stays_too() {
    let (mut source, _, _) = Source::tested().await;
    source.fake.world().conversion_fails = true;
    let second = source.start(InitiatedBy::StartTest).await;
    let mut state = source.launch_state(&second);
    source.launch(&second).await.unwrap_err();
    source.fake.world().conversion_fails = false;
    let (before, server) = (source.job(&second.job_id), source.server());
    let inventory = source.fake.world().inventory();
    for step in ["begin-job", "prepare-cutover", "convert", "launch-test", "verify", "complete-job"] {
        state["snapshots"] = json!(before.work[&source.id].snapshots);
        assert_eq!(run(&source.ports, step, state.clone()).await.unwrap_err().name, "JobOver", "{step}");
    }
    assert_eq!(run(&source.ports, "fail-job", state).await.unwrap()["status"], "DONE");
    assert_eq!((source.job(&second.job_id), source.server()), (before, server));
    assert_eq!(source.fake.world().inventory(), inventory);
}

#[tokio::test]
async fn a_job_that_was_cut_off_after_its_commit_was_launched_whatever_became_of_its_copy() {
    for step in ["complete-job", "fail-job"] {
        let mut source = Source::enrol().await;
        source.reach_ready_for_test().await;
        let job = source.start(InitiatedBy::StartTest).await;
        let mut state = source.launch_state(&job);
        for step in ["begin-job", "prepare-cutover", "snapshot", "convert", "launch-test", "verify"] {
            state = source.drive(step, state).await.unwrap();
        }
        for n in 0.. {
            source.fake.fail_call(n, true);
            let _ = run(&source.ports, "complete-job", state.clone()).await;
            source.fake.fail_call(usize::MAX, false);
            if source.server().internal.active_job.is_none() {
                break;
            }
        }
        assert_eq!(source.launch_status(&job.job_id), LaunchStatus::InProgress);
        source.mark(LifeCycleState::ReadyForCutover).await;
        run(&source.ports, step, state).await.unwrap();
        assert_eq!(source.launch_status(&job.job_id), LaunchStatus::Launched, "{step}");
        assert_eq!(source.job(&job.job_id).status, JobStatus::Completed);
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_published_is_not_recorded_with_every_attempt() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let job = source.start(InitiatedBy::StartTest).await;
    let state = source.launch_state(&job);
    // Counted without a failure, to know when the event is published.
    source.fake.fail_call(usize::MAX, false);
    run(&source.ports, "begin-job", state.clone()).await.unwrap();
    let (calls, published) = (source.fake.calls(), source.server().internal.event_sequence);
    for _ in 0..5 {
        // The last two calls empty the outbox; before them it is published.
        source.fake.fail_call(calls - 3, false);
        let _ = run(&source.ports, "begin-job", state.clone()).await;
    }
    source.fake.fail_call(usize::MAX, false);
    run(&source.ports, "begin-job", state).await.unwrap();
    assert!(source.server().internal.event_sequence <= published + 2);
    assert!(source.server().internal.outbox.is_empty());
}

#[tokio::test]
async fn a_late_registration_takes_the_server_from_nobody_and_begins_nothing_that_was_stopped() {
    let mut source = Source::enrol().await;
    source.reach_ready_for_test().await;
    let earlier = source.migrate_input();
    operations::stop_replication(&source.ports, &source.id).await.unwrap();
    source.poll().await;
    source.finalize().await;
    let stopped = source.server();
    assert_eq!(stopped.data_replication_info.data_replication_state, DataReplicationState::Stopped);
    assert_eq!(run(&source.ports, "register", earlier.clone()).await.unwrap()["status"], "STOPPED");
    assert_eq!(source.server(), stopped);
    let later = format!("migrate-{}-{}", source.id, stopped.internal.event_sequence);
    let input = json!({"execution": later, "sourceServerID": source.id, "replicate": true});
    assert_eq!(run(&source.ports, "register", input).await.unwrap()["status"], "DONE");
    assert_eq!(run(&source.ports, "register", earlier).await.unwrap()["status"], "STOPPED");
    assert_eq!(source.server().internal.chain, Some(ExecutionId(later)));
}

#[tokio::test]
async fn who_saw_a_set_before_its_snapshots_were_taken_does_not_take_them_away() {
    let (mut source, input) = Source::waits_for_checkpoint().await;
    let seen = source.sets_as_they_are().await;
    source.poll().await;
    run(&source.ports, "snapshot", input).await.unwrap();
    let set = source.snapshot_set();
    assert_eq!(set.state, SnapshotSetState::Confirming);
    schedule::tick(&source.ports_that_see(seen)).await.unwrap();
    assert_eq!(source.snapshot_set(), set);
    assert!(source.has_snapshots_of(&set));
}

#[tokio::test]
async fn who_saw_a_set_before_its_execution_ended_well_does_not_remove_it() {
    let (mut source, input) = Source::waits_for_checkpoint().await;
    source.poll().await;
    run(&source.ports, "snapshot", input.clone()).await.unwrap();
    let seen = source.sets_as_they_are().await;
    source.drive_step("snapshot", input).await.unwrap();
    let ended = crate::ports::ExecutionStatus::Succeeded(json!({}));
    source.fake.world().ended.insert("snapshot-1".to_owned(), ended);
    schedule::tick(&source.ports_that_see(seen)).await.unwrap();
    let set = source.snapshot_set();
    assert_eq!(set.state, SnapshotSetState::Launchable);
    assert!(source.has_snapshots_of(&set));
}

#[tokio::test]
async fn who_takes_snapshots_once_more_does_not_undo_what_was_confirmed_meanwhile() {
    let (mut source, input) = Source::waits_for_checkpoint().await;
    source.poll().await;
    let seen = source.sets_as_they_are().await;
    source.drive_step("snapshot", input.clone()).await.unwrap();
    let set = source.snapshot_set();
    assert_eq!(set.state, SnapshotSetState::Launchable);
    let mine = seen.into_iter().filter(|item| item.key.id.ends_with("/snapshot-1")).collect();
    run(&source.ports_that_see(mine), "snapshot", input).await.unwrap();
    assert_eq!(source.snapshot_set(), set);
    assert!(source.has_snapshots_of(&set));
}

#[tokio::test]
async fn snapshots_that_were_taken_in_time_count_whichever_call_fails_then() {
    for after_effect in [false, true] {
        for n in 0.. {
            let (mut source, input) = Source::waits_for_checkpoint().await;
            source.poll().await;
            let epoch = source.snapshot_set().epoch;
            source.fake.fail_call(n, after_effect);
            let _ = run(&source.ports, "snapshot", input.clone()).await;
            let planted = source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            assert_eq!(source.drive_step("snapshot", input).await.unwrap()["status"], "DONE", "call {n}");
            assert_eq!(source.snapshot_set().epoch, epoch, "call {n}");
            assert!(source.server().internal.checkpoint.released >= epoch, "call {n}");
            if !planted {
                assert!(n > 5);
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_does_not_show_yet_is_waited_for_and_one_that_is_gone_is_not() {
    let (mut source, input) = Source::waits_for_checkpoint().await;
    source.poll().await;
    let state = run(&source.ports, "snapshot", input).await.unwrap();
    // The hold is released with the first poll, and with the second one that is reported.
    source.poll().await;
    source.poll().await;
    let snapshot = source.snapshot_set().snapshots[0].to_string();
    let hidden = source.fake.world().resources.remove(&snapshot).unwrap();
    let state = run(&source.ports, "snapshot", state).await.unwrap();
    assert_eq!(state["status"], "IN_PROGRESS");
    source.fake.world().now_ms += 60_001;
    assert_eq!(run(&source.ports, "snapshot", state.clone()).await.unwrap_err().name, "NotFound");
    source.fake.world().resources.insert(snapshot, hidden);
    assert_eq!(source.drive_step("snapshot", state).await.unwrap()["status"], "DONE");
}

#[tokio::test]
async fn of_two_that_find_no_replication_server_one_makes_it() {
    let one = Source::enrol().await;
    let other = Source::enrol_at(one.fake.clone()).await;
    let lock = ItemKey::new(Kind::Lock, "replication-server");
    one.ports.store.put(&lock, json!({}), None).await.unwrap();
    let seen = vec![one.ports.store.get(&lock).await.unwrap().unwrap()];
    let input = |source: &Source| json!({"execution": "migrate-1", "sourceServerID": source.id});
    for source in [&one, &other] {
        run(&source.ports, "register", input(source)).await.unwrap();
    }
    run(&one.ports, "provision", input(&one)).await.unwrap();
    let chosen = one.server().internal.replicator;
    assert!(chosen.is_some());
    // It read that there is none before the first one made it.
    let replicators = one.ports.store.list(Kind::ReplicationServer, "").await.unwrap();
    let hidden = replicators[0].clone();
    one.fake.world().items.remove(&hidden.key);
    let state = run(&other.ports_that_see(seen), "provision", input(&other)).await.unwrap();
    assert_eq!((&state["status"], &state["waitSeconds"]), (&json!("IN_PROGRESS"), &json!(3)));
    assert_eq!(other.server().internal.replicator, None);
    one.fake.world().items.insert(hidden.key.clone(), hidden);
    run(&other.ports, "provision", input(&other)).await.unwrap();
    assert_eq!(other.server().internal.replicator, chosen);
}

#[tokio::test]
async fn no_more_servers_choose_a_replication_server_than_it_has_room_for() {
    let first = Source::enrol().await;
    let mut sources = Vec::new();
    for _ in 0..8 {
        sources.push(Source::enrol_at(first.fake.clone()).await);
    }
    let before = sources[0].ports.store.list(Kind::ReplicationServer, "").await.unwrap();
    assert!(before.is_empty());
    let mut chosen: BTreeMap<_, usize> = BTreeMap::new();
    for source in &sources {
        // Its replication server is launched; no disk is attached yet.
        let input = json!({"execution": format!("migrate-{}-1", source.id), "sourceServerID": source.id});
        run(&source.ports, "register", input.clone()).await.unwrap();
        assert_eq!(run(&source.ports, "provision", input).await.unwrap()["status"], "IN_PROGRESS");
        *chosen.entry(source.server().internal.replicator).or_default() += 1;
    }
    let mut servers: Vec<_> = chosen.values().copied().collect();
    servers.sort_unstable();
    assert_eq!(servers, [1, 7], "fifteen disks at most, and two of each server");
}
