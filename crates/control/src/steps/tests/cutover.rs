//! A cutover as a transaction: whatever fails on its way, the source is in use again and the server READY_FOR_CUTOVER.

use rehost_model::link::FenceId;

use super::*;

const STEPS: [&str; 7] =
    ["begin-job", "prepare-cutover", "snapshot", "convert", "launch-cutover", "verify", "complete-job"];

impl Source {
    async fn reach_ready_for_cutover(quiesce: bool) -> Self {
        let mut source = Self::enrol().await;
        source.reach_ready_for_test().await;
        source.mark(LifeCycleState::ReadyForCutover).await;
        let settings = operations::ServerSettings {
            quiesce: Some(quiesce),
            verify_timeout_seconds: Some(10),
            ..operations::ServerSettings::default()
        };
        operations::update_server_settings(&source.ports, &source.id, &settings).await.unwrap();
        source.poll().await;
        source
    }

    /// Runs the cutover; at each step a failure ends it, as in the state machine.
    async fn cut_over(&mut self) -> Result<Job, StepError> {
        let job = self.start(InitiatedBy::StartCutover).await;
        self.launch(&job).await.map(|()| job)
    }

    /// The source is in use, the server is where it was, and nothing of the job is left.
    fn assert_rolled_back(&self, before: &std::collections::BTreeSet<(ResourceKind, Option<String>)>, what: &str) {
        let server = self.server();
        assert_eq!(self.fence, FenceState::Open, "{what}");
        assert_eq!(server.internal.fence, None, "{what}");
        assert_eq!(server.life_cycle.state, LifeCycleState::ReadyForCutover, "{what}");
        assert_eq!(server.internal.active_job, None, "{what}");
        assert!(server.launched_instance.is_none(), "{what}");
        assert_eq!(self.fake.world().inventory(), *before, "{what}");
    }
}

fn fenced(job: &Job) -> FenceState {
    FenceState::Fenced { fence: FenceId(job.job_id.to_string()) }
}

#[tokio::test]
async fn the_checkpoint_of_a_quiesced_cutover_is_asked_for_once_the_source_is_fenced() {
    let mut source = Source::reach_ready_for_cutover(true).await;
    let job = source.start(InitiatedBy::StartCutover).await;
    let requested = source.server().internal.checkpoint.requested;
    let state = source.drive("begin-job", source.launch_state(&job)).await.unwrap();
    let answer = run(&source.ports, "prepare-cutover", state.clone()).await.unwrap();
    assert_eq!((&answer["status"], &source.fence), (&json!("IN_PROGRESS"), &FenceState::Open));
    let state = source.drive("prepare-cutover", state).await.unwrap();
    assert_eq!((&state["status"], &source.fence), (&json!("DONE"), &fenced(&job)));
    assert_eq!(source.server().internal.checkpoint.requested, requested, "no checkpoint before the fence");
    source.drive("snapshot", state).await.unwrap();
    assert!(source.server().internal.checkpoint.requested > requested);
}

#[tokio::test]
async fn after_finalize_the_source_stays_fenced() {
    let mut source = Source::reach_ready_for_cutover(true).await;
    let job = source.cut_over().await.unwrap();
    assert_eq!(source.fence, fenced(&job));
    operations::finalize_cutover(&source.ports, &source.id).await.unwrap();
    source.finalize().await;
    assert_eq!(source.told, Some(AgentCommand::Disconnect));
    assert_eq!(source.fence, fenced(&job));
}

#[tokio::test]
async fn taking_a_cutover_back_opens_the_source() {
    let mut source = Source::reach_ready_for_cutover(true).await;
    source.cut_over().await.unwrap();
    source.mark(LifeCycleState::ReadyForCutover).await;
    source.poll().await;
    assert_eq!(source.fence, FenceState::Open);
    assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForCutover);
}

#[tokio::test]
async fn without_quiesce_no_source_is_fenced() {
    let mut source = Source::reach_ready_for_cutover(false).await;
    source.cut_over().await.unwrap();
    assert_eq!((&source.fence, source.server().internal.fence), (&FenceState::Open, None));
}

#[tokio::test]
async fn every_failure_of_a_cutover_opens_the_source_and_goes_back() {
    type Plant = fn(&mut Source);
    let failures: [(&str, Plant); 4] = [
        ("QuiesceFailed", |source| source.fence_fails = true),
        ("QuiesceTimeout", |source| source.fence_hangs = true),
        ("ConversionFailed", |source| source.fake.world().conversion_fails = true),
        ("VerifyFailed", |source| source.fake.world().probes_fail = true),
    ];
    for (name, plant) in failures {
        let mut source = Source::reach_ready_for_cutover(true).await;
        let before = source.fake.world().inventory();
        plant(&mut source);
        let job = source.start(InitiatedBy::StartCutover).await;
        let error =
            if name == "QuiesceTimeout" { source.time_out(&job).await } else { source.launch(&job).await.unwrap_err() };
        assert_eq!(error.name, name);
        source.assert_rolled_back(&before, name);
        let job = source.job(&job.job_id);
        assert_eq!(job.status, JobStatus::Completed);
        let reasons: Vec<_> = job.log.iter().filter_map(|item| item.event_data.raw_error.as_deref()).collect();
        assert!(
            reasons.iter().any(|reason| reason.contains(name) || reason.contains("no root file system")),
            "{reasons:?}"
        );
        // Nothing stands in the way of the next attempt.
        (source.fence_fails, source.fence_hangs) = (false, false);
        (source.fake.world().conversion_fails, source.fake.world().probes_fail) = (false, false);
        source.cut_over().await.unwrap_or_else(|e| panic!("after {name}: {e}"));
    }
}

impl Source {
    /// Waits for scripts that hang until they have had their time, and undoes the job.
    async fn time_out(&mut self, job: &Job) -> StepError {
        let mut state = self.drive("begin-job", self.launch_state(job)).await.unwrap();
        let error = loop {
            match run(&self.ports, "prepare-cutover", state.clone()).await {
                Ok(answer) => state = answer,
                Err(error) => break error,
            }
            self.fake.world().now_ms += 60_000;
            self.poll().await;
        };
        state["error"] = json!({"Error": error.name, "Cause": error.cause});
        self.drive("fail-job", state).await.unwrap();
        error
    }
}

#[tokio::test]
async fn a_source_that_was_in_use_meanwhile_is_not_cut_over() {
    let mut source = Source::reach_ready_for_cutover(true).await;
    let before = source.fake.world().inventory();
    let job = source.start(InitiatedBy::StartCutover).await;
    let mut state = source.launch_state(&job);
    for step in &STEPS[..6] {
        state = source.drive(step, state).await.unwrap();
    }
    // It was rebooted, and fenced once more: what was written in between is not in the copy.
    source.fence = FenceState::Open;
    source.poll().await;
    source.poll().await;
    assert_eq!(source.fence, fenced(&job));
    let error = source.drive("complete-job", state.clone()).await.unwrap_err();
    assert_eq!(error.name, "FenceLost");
    state["error"] = json!({"Error": error.name, "Cause": error.cause});
    source.drive("fail-job", state).await.unwrap();
    source.assert_rolled_back(&before, "FenceLost");
}

#[tokio::test]
async fn what_fails_after_the_commit_is_gone_on_with() {
    let mut source = Source::reach_ready_for_cutover(true).await;
    let job = source.start(InitiatedBy::StartCutover).await;
    let mut state = source.launch_state(&job);
    for step in &STEPS[..6] {
        state = source.drive(step, state).await.unwrap();
    }
    for n in 0.. {
        source.fake.fail_call(n, false);
        let completed = run(&source.ports, "complete-job", state.clone()).await;
        source.fake.fail_call(usize::MAX, false);
        assert!(completed.is_err(), "call {n}");
        if source.server().internal.active_job.is_none() {
            break;
        }
    }
    state["error"] = json!({"Error": "Denied", "Cause": "planted"});
    let answer = source.drive("fail-job", state).await.unwrap();
    assert_eq!(answer["status"], "COMMITTED");
    assert_eq!(source.job(&job.job_id).participating_servers[0].launch_status, LaunchStatus::Launched);
    assert_eq!((source.fence.clone(), source.server().life_cycle.state), (fenced(&job), LifeCycleState::CuttingOver));
}

#[tokio::test]
async fn a_source_that_does_not_answer_holds_a_failed_cutover_up_only_for_a_while() {
    let mut source = Source::reach_ready_for_cutover(true).await;
    source.fake.world().conversion_fails = true;
    let job = source.start(InitiatedBy::StartCutover).await;
    let mut state = source.launch_state(&job);
    for step in &STEPS[..3] {
        state = source.drive(step, state).await.unwrap();
    }
    state["error"] = json!({"Error": "ConversionFailed", "Cause": "planted"});
    // From here on the agent is away.
    for _ in 0..30 {
        state = run(&source.ports, "fail-job", state).await.unwrap();
        if state["status"] == "DONE" {
            break;
        }
        source.fake.world().now_ms += 60_000;
    }
    assert_eq!(state["status"], "DONE");
    assert_eq!(source.server().life_cycle.state, LifeCycleState::ReadyForCutover);
    let log = source.job(&job.job_id).log;
    let told = log.iter().find(|item| item.event == JobLogEvent::CleanupFail).unwrap();
    assert!(told.event_data.raw_error.as_ref().unwrap().contains("rehost-agent unfence"));
}

#[tokio::test]
async fn a_copy_that_is_behind_is_waited_for() {
    let mut source = Source::reach_ready_for_cutover(false).await;
    let job = source.start(InitiatedBy::StartCutover).await;
    let state = source.drive("begin-job", source.launch_state(&job)).await.unwrap();
    repo::update_server(&source.ports, &source.id, |server| {
        server.internal.observed.lag_ms = Some(120_000);
        Ok::<_, crate::PortError>(())
    })
    .await
    .unwrap();
    let answer = run(&source.ports, "prepare-cutover", state.clone()).await.unwrap();
    assert_eq!(answer["status"], "IN_PROGRESS");
    source.poll().await;
    assert_eq!(run(&source.ports, "prepare-cutover", state).await.unwrap()["status"], "DONE");
}

/// Fails call `n` of each step of a quiesced cutover in turn, and expects the same end.
async fn sweep(after_effect: bool) {
    for n in 0.. {
        let mut source = Source::reach_ready_for_cutover(true).await;
        let job = source.start(InitiatedBy::StartCutover).await;
        let mut state = source.launch_state(&job);
        let mut planted = false;
        for step in STEPS {
            source.fake.fail_call(n, after_effect);
            if let Ok(answer) = run(&source.ports, step, state.clone()).await {
                state = answer;
            }
            planted |= source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            state = source.drive(step, state).await.unwrap_or_else(|e| panic!("{step}, call {n}: {e}"));
        }
        assert_eq!(source.fence, fenced(&job), "call {n}");
        assert_eq!(source.job(&job.job_id).status, JobStatus::Completed, "call {n}");
        assert_eq!(source.server().life_cycle.state, LifeCycleState::CuttingOver, "call {n}");
        if !planted {
            assert!(n > 5, "the sweep has to reach every call; it ended at {n}");
            return;
        }
    }
}

#[tokio::test]
async fn a_quiesced_cutover_survives_a_failure_before_every_call() {
    sweep(false).await;
}

#[tokio::test]
async fn a_quiesced_cutover_survives_a_failure_after_every_call() {
    sweep(true).await;
}

/// Gives a cutover up after each of its steps in turn, and fails call `n` of its undoing.
async fn sweep_undo(after_effect: bool) {
    for done in 1..STEPS.len() {
        for n in 0.. {
            let mut source = Source::reach_ready_for_cutover(true).await;
            let before = source.fake.world().inventory();
            let job = source.start(InitiatedBy::StartCutover).await;
            let mut state = source.launch_state(&job);
            for step in &STEPS[..done] {
                state = source.drive(step, state).await.unwrap();
            }
            state["error"] = json!({"Error": "Planted", "Cause": "given up"});
            source.fake.fail_call(n, after_effect);
            if let Ok(answer) = run(&source.ports, "fail-job", state.clone()).await {
                state = answer;
            }
            let planted = source.fake.calls() > n;
            source.fake.fail_call(usize::MAX, false);
            source.drive("fail-job", state).await.unwrap();
            let what = format!("after {}, call {n}", STEPS[done - 1]);
            // The snapshot of the job is as good as any other, and stays.
            let snapshots = |set: &std::collections::BTreeSet<(ResourceKind, Option<String>)>| -> Vec<_> {
                set.iter().filter(|(kind, _)| *kind != ResourceKind::Snapshot).cloned().collect()
            };
            assert_eq!(snapshots(&source.fake.world().inventory()), snapshots(&before), "{what}");
            let now = source.fake.world().inventory();
            source.assert_rolled_back(&now, &what);
            if !planted {
                break;
            }
        }
    }
}

#[tokio::test]
async fn undoing_a_cutover_survives_a_failure_before_every_call() {
    sweep_undo(false).await;
}

#[tokio::test]
async fn undoing_a_cutover_survives_a_failure_after_every_call() {
    sweep_undo(true).await;
}
