//! Every port call of the whole path failing once, before and after its effect.

use super::*;

/// Fails call `n` of each step of the chain in turn, before and after its effect, and expects the same end.
async fn sweep(after_effect: bool) {
    let steps = ["register", "provision", "replication-status", "snapshot", "ready-for-test"];
    for n in 0.. {
        let mut source = Source::enrol().await;
        source.stage_in("subnet-1").await;
        let mut state = source.migrate_input();
        let mut planted = false;
        for step in steps {
            source.fake.fail_call(n, after_effect);
            // Only the step itself meets the fault; its callers' retry is what `drive` does.
            state = match run(&source.ports, step, state.clone()).await {
                Ok(state) => state,
                Err(error) => {
                    assert!(error.name.starts_with("Retryable"), "{step}, call {n}: {error}");
                    state
                }
            };
            planted |= source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            source.poll().await;
            state = source.drive(step, state).await.unwrap_or_else(|e| panic!("{step}, call {n}: {e}"));
        }
        assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForTest, "call {n}");
        let (volumes, snapshots) = {
            let world = source.fake.world();
            let count = |wanted| world.resources.values().filter(|(kind, _)| *kind == wanted).count();
            (count(ResourceKind::Volume), count(ResourceKind::Snapshot))
        };
        assert_eq!((volumes, snapshots), (2, 2), "call {n}");
        let groups = source.group_entries().await;
        assert!(groups.len() == 1 && groups[0].resource.is_some(), "of replication, call {n}: {groups:?}");
        if !planted {
            assert!(n > 10, "the sweep has to reach every call; it ended at {n}");
            return;
        }
    }
}

#[tokio::test]
async fn replication_survives_a_failure_before_every_call() {
    sweep(false).await;
}

#[tokio::test]
async fn replication_survives_a_failure_after_every_call() {
    sweep(true).await;
}

/// As [`sweep`], for a launch.
async fn sweep_launch(after_effect: bool) {
    for n in 0.. {
        let mut source = Source::enrol().await;
        source.stage_in("subnet-1").await;
        source.reach_ready_for_test().await;
        let job = source.start(InitiatedBy::StartTest).await;
        let mut state = source.launch_state(&job);
        let mut planted = false;
        for step in ["begin-job", "prepare-cutover", "snapshot", "convert", "launch-test", "verify", "complete-job"] {
            source.fake.fail_call(n, after_effect);
            if let Ok(answer) = run(&source.ports, step, state.clone()).await {
                state = answer;
            }
            planted |= source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            state = source.drive(step, state).await.unwrap_or_else(|e| panic!("{step}, call {n}: {e}"));
        }
        let job = source.job(&job.job_id);
        assert_eq!(job.status, JobStatus::Completed, "call {n}");
        assert_eq!(job.log.iter().filter(|item| item.event == JobLogEvent::ConversionStart).count(), 1, "call {n}");
        let instances = {
            let world = source.fake.world();
            let of_server = |tags: &crate::ports::Tags| tags.contains_key(rehost_model::ledger::SERVER_TAG);
            world.resources.values().filter(|(kind, tags)| *kind == ResourceKind::Instance && of_server(tags)).count()
        };
        assert_eq!(instances, 1, "the copy and nothing else, call {n}");
        let groups = source.group_entries().await;
        assert!(groups.len() == 1 && groups[0].resource.is_some(), "of replication, call {n}: {groups:?}");
        if !planted {
            assert!(n > 5, "the sweep has to reach every call; it ended at {n}");
            return;
        }
    }
}

#[tokio::test]
async fn a_launch_survives_a_failure_before_every_call() {
    sweep_launch(false).await;
}

#[tokio::test]
async fn a_launch_survives_a_failure_after_every_call() {
    sweep_launch(true).await;
}
