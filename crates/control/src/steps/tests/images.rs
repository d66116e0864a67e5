//! Launches by way of an image, as on EC2: what is made for it goes, whatever fails.

use std::collections::BTreeMap as Map;

use super::*;
use crate::ledger::PURPOSE_TAG;

const STEPS: [&str; 7] =
    ["begin-job", "prepare-cutover", "snapshot", "convert", "launch-test", "verify", "complete-job"];

impl Source {
    async fn with_images() -> Self {
        let fake = Fake::default();
        fake.world().has_images = true;
        let mut source = Self::enrol_at(fake).await;
        source.reach_ready_for_test().await;
        source
    }

    /// How many resources there are of each kind and purpose; replication servers have none. Snapshots of the staging volumes are kept
    /// as their retention says, and left out.
    fn census(&self) -> Map<(ResourceKind, String), usize> {
        let world = self.fake.world();
        let mut census = Map::new();
        for (kind, tags) in world.resources.values() {
            let purpose = tags.get(PURPOSE_TAG).cloned().unwrap_or_default();
            if (*kind, purpose.as_str()) == (ResourceKind::Snapshot, "staging") {
                continue;
            }
            *census.entry((*kind, purpose)).or_default() += 1;
        }
        census
    }
}

fn census(of: &[(ResourceKind, &str, usize)]) -> Map<(ResourceKind, String), usize> {
    of.iter().map(|(kind, purpose, count)| ((*kind, (*purpose).to_owned()), *count)).collect()
}

fn after_a_launch(purpose: &str) -> Map<(ResourceKind, String), usize> {
    census(&[
        (ResourceKind::Instance, "", 1),
        (ResourceKind::Instance, purpose, 1),
        (ResourceKind::Volume, "staging", 2),
        (ResourceKind::Volume, purpose, 2),
    ])
}

#[tokio::test]
async fn the_whole_path_leaves_the_users_copy_and_nothing_else() {
    let mut source = Source::with_images().await;
    let test = source.start(InitiatedBy::StartTest).await;
    source.launch(&test).await.unwrap();
    assert_eq!(source.census(), after_a_launch("test"));
    source.mark(LifeCycleState::ReadyForCutover).await;
    let cutover = source.start(InitiatedBy::StartCutover).await;
    source.launch(&cutover).await.unwrap();
    operations::finalize_cutover(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    assert_eq!(source.ledger().await, []);
    assert_eq!(
        source.census(),
        census(&[(ResourceKind::Instance, "cutover", 1), (ResourceKind::Volume, "cutover", 2)])
    );
}

#[tokio::test]
async fn whatever_fails_to_be_made_leaves_nothing() {
    for (kind, error) in [
        (ResourceKind::Snapshot, "SnapshotFailed"),
        (ResourceKind::Image, "ImageFailed"),
        (ResourceKind::Instance, "LaunchFailed"),
    ] {
        let mut source = Source::with_images().await;
        let before = source.census();
        source.fake.world().fails.insert(kind);
        let job = source.start(InitiatedBy::StartTest).await;
        assert_eq!(source.launch(&job).await.unwrap_err().name, error);
        assert_eq!(source.census(), before, "{error}");
        assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForTest);
        assert_eq!(source.job(&job.job_id).status, JobStatus::Completed);
        assert!(source.ledger().await.iter().all(|entry| entry.job.is_none()), "{error}");
    }
}

async fn sweep_launch(after_effect: bool) {
    for n in 0.. {
        let mut source = Source::with_images().await;
        let job = source.start(InitiatedBy::StartTest).await;
        let mut state = source.launch_state(&job);
        let mut planted = false;
        for step in STEPS {
            // A step that is polled meets the fault in each of its calls.
            for _ in 0..20 {
                source.fake.fail_call(n, after_effect);
                if let Ok(answer) = run(&source.ports, step, state.clone()).await {
                    state = answer;
                }
                planted |= source.fake.calls() > n;
                source.fake.fail_call(usize::MAX, false);
                if step != "launch-test" || state["status"] == "DONE" {
                    break;
                }
            }
            state = source.drive(step, state).await.unwrap_or_else(|e| panic!("{step}, call {n}: {e}"));
        }
        assert_eq!(source.job(&job.job_id).status, JobStatus::Completed, "call {n}");
        assert_eq!(source.census(), after_a_launch("test"), "call {n}");
        if !planted {
            assert!(n > 15, "the sweep has to reach every call; it ended at {n}");
            return;
        }
    }
}

#[tokio::test]
async fn it_survives_a_failure_before_every_call() {
    sweep_launch(false).await;
}

#[tokio::test]
async fn it_survives_a_failure_after_every_call() {
    sweep_launch(true).await;
}

/// The launch is given up at call `n` of the step: everything is undone.
async fn sweep_giving_up(after_effect: bool) {
    for n in 0.. {
        let mut source = Source::with_images().await;
        let before = source.census();
        let job = source.start(InitiatedBy::StartTest).await;
        let mut state = source.launch_state(&job);
        for step in &STEPS[..4] {
            state = source.drive(step, state).await.unwrap();
        }
        source.fake.fail_call(n, after_effect);
        let mut failed = false;
        for _ in 0..20 {
            match run(&source.ports, "launch-test", state.clone()).await {
                Ok(answer) if answer["status"] == "DONE" => break,
                Ok(_) => {}
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
        source.fake.fail_call(usize::MAX, false);
        if !failed {
            assert!(n > 15, "the sweep has to reach every call; it ended at {n}");
            return;
        }
        state["error"] = json!({"Error": "Denied", "Cause": "as planted"});
        source.drive("fail-job", state).await.unwrap();
        assert_eq!(source.census(), before, "call {n}");
        assert!(source.ledger().await.iter().all(|entry| entry.job.is_none()), "call {n}");
    }
}

#[tokio::test]
async fn given_up_before_any_call_it_leaves_nothing() {
    sweep_giving_up(false).await;
}

#[tokio::test]
async fn given_up_after_any_call_it_leaves_nothing() {
    sweep_giving_up(true).await;
}

#[tokio::test]
async fn snapshots_that_are_refused_for_now_fail_nothing() {
    let mut source = Source::with_images().await;
    source.fake.world().throttled_snapshots = 20;
    let job = source.start(InitiatedBy::StartTest).await;
    source.launch(&job).await.unwrap();
    assert_eq!(source.fake.world().throttled_snapshots, 0);
}

#[tokio::test]
async fn an_image_that_does_not_show_yet_is_waited_for_and_one_that_is_gone_is_not() {
    let mut source = Source::with_images().await;
    let job = source.start(InitiatedBy::StartTest).await;
    let mut state = source.launch_state(&job);
    for step in ["begin-job", "prepare-cutover", "snapshot", "convert"] {
        state = source.drive(step, state).await.unwrap();
    }
    let image = loop {
        state = run(&source.ports, "launch-test", state).await.unwrap();
        let world = source.fake.world();
        let image = world.resources.iter().find(|(_, (kind, _))| *kind == ResourceKind::Image);
        if let Some((id, _)) = image {
            break id.clone();
        }
    };
    let hidden = source.fake.world().resources.remove(&image).unwrap();
    state = run(&source.ports, "launch-test", state).await.unwrap();
    assert_eq!(state["status"], "IN_PROGRESS");
    source.fake.world().now_ms += 60_001;
    assert_eq!(run(&source.ports, "launch-test", state.clone()).await.unwrap_err().name, "NotFound");
    source.fake.world().resources.insert(image, hidden);
    assert_eq!(source.drive("launch-test", state).await.unwrap()["status"], "DONE");
}
