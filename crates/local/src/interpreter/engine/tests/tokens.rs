//! Tasks that wait for their token, in a process that is killed at every point.

use std::collections::BTreeSet;

use super::*;

fn machine() -> Value {
    let payload = json!({"token.$": "$$.Task.Token", "execution.$": "$.execution"});
    json!({"StartAt": "Ask", "TimeoutSeconds": 10_000, "States": {
        "Ask": {
            "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
            "Parameters": {"FunctionName": "${AskFunctionArn}", "Payload": payload},
            "TimeoutSeconds": 1000, "HeartbeatSeconds": 100, "ResultPath": "$.answer",
            "Retry": [{"ErrorEquals": ["States.HeartbeatTimeout"], "IntervalSeconds": 7, "MaxAttempts": 1}],
            "Catch": [{"ErrorEquals": ["States.Timeout"], "ResultPath": "$.error", "Next": "GaveUp"}],
            "Next": "Done"
        },
        "GaveUp": {"Type": "Fail", "ErrorPath": "$.error.Error"},
        "Done": {"Type": "Succeed"}
    }})
}

/// A region whose process can die, with what its steps were given.
struct Mortal {
    folder: TempDir,
    clock: Arc<FakeClock>,
    given: Arc<Given>,
    engine: Option<Engine>,
}

impl Mortal {
    async fn begin() -> Self {
        let mut mortal =
            Self { folder: tempfile::tempdir().unwrap(), clock: Arc::default(), given: Arc::default(), engine: None };
        mortal.die();
        mortal.engine().start("m", &id("x"), json!({"execution": "x"})).await.unwrap();
        mortal
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn die(&mut self) {
        self.engine = None;
        let path = self.folder.path().join("rehost.db");
        self.engine = Some(build(&path, self.clock.clone(), &[("m", machine())]).unwrap());
    }

    async fn turn(&self) -> Turned {
        let handler: Arc<dyn TaskHandler> = self.given.clone();
        self.engine().core.turn(&handler, "x").await.unwrap()
    }

    fn token(&self) -> TaskToken {
        self.given.newest("x").unwrap()
    }
}

fn success() -> TaskOutcome {
    TaskOutcome::Success(json!(42))
}

/// Dies after the turns in `killed`; reports as soon as the task waits.
async fn course(killed: &BTreeSet<usize>) -> (ExecutionStatus, Vec<HistoryEntry>, usize) {
    let mut mortal = Mortal::begin().await;
    for turn in 0..20 {
        match mortal.turn().await {
            Turned::Over => break,
            Turned::Sleeping(_) => mortal.engine().report(&mortal.token(), success()).await.unwrap(),
            Turned::On => {}
        }
        if killed.contains(&turn) {
            mortal.die();
        }
    }
    let status = mortal.engine().status(&id("x")).await.unwrap().unwrap();
    let history = mortal.engine().history(&id("x")).await.unwrap();
    let calls = mortal.given.tokens.lock().unwrap()["x"].len();
    (status, history, calls)
}

#[tokio::test]
async fn a_process_killed_after_any_transition_keeps_the_token() {
    let undisturbed = course(&BTreeSet::new()).await;
    assert_eq!(undisturbed.0, ExecutionStatus::Succeeded(json!({"execution": "x", "answer": 42})));
    assert_eq!(undisturbed.2, 1);
    for turn in 0..8 {
        assert_eq!(course(&BTreeSet::from([turn])).await, undisturbed, "killed after turn {turn}");
    }
    assert_eq!(course(&(0..20).collect()).await, undisturbed);
}

#[tokio::test]
async fn a_step_that_was_cut_off_is_called_again_with_the_same_token() {
    let mut mortal = Mortal::begin().await;
    assert_eq!(mortal.turn().await, Turned::On, "the token is issued");
    let hangs: Arc<dyn TaskHandler> = Arc::new(Does({
        let given = mortal.given.clone();
        move |step: String, input: Value| {
            let given = given.clone();
            async move {
                given.run(&step, input).await?;
                std::future::pending().await
            }
        }
    }));
    tokio::select! {
        _ = mortal.engine().core.turn(&hangs, "x") => panic!("it hangs"),
        () = async { while mortal.given.newest("x").is_none() { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
    }
    mortal.die();
    assert_eq!(mortal.turn().await, Turned::On, "the step runs again");
    let tokens = mortal.given.tokens.lock().unwrap()["x"].clone();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0], tokens[1]);
    assert!(matches!(mortal.turn().await, Turned::Sleeping(_)));
    mortal.engine().report(&tokens[0], success()).await.unwrap();
}

#[tokio::test]
async fn deadlines_and_heartbeats_survive_a_kill() {
    let mut mortal = Mortal::begin().await;
    let at = |seconds: i64| Timestamp::from_unix_ms(seconds * 1000);
    while mortal.turn().await == Turned::On {}
    let first = mortal.token();
    mortal.clock.set(at(60));
    mortal.engine().heartbeat(&first).await.unwrap();
    mortal.die();
    assert_eq!(mortal.turn().await, Turned::Sleeping(at(160)), "the heartbeat counts after the kill");
    mortal.clock.set(at(160));
    let late = mortal.engine().report(&first, success()).await.unwrap_err();
    assert_eq!(late.kind, PortErrorKind::NotFound, "its time is up though nobody noticed yet");
    mortal.die();
    assert_eq!(mortal.turn().await, Turned::On);
    assert_eq!(mortal.turn().await, Turned::Sleeping(at(167)), "the retry waits");
    mortal.clock.set(at(167));
    mortal.die();
    while mortal.turn().await == Turned::On {}
    let second = mortal.token();
    assert_ne!(first, second);
    let foreign = mortal.engine().report(&first, success()).await.unwrap_err();
    assert_eq!(foreign.kind, PortErrorKind::NotFound, "the token of an earlier attempt");
    mortal.clock.set(at(267));
    while mortal.turn().await == Turned::On {}
    let status = mortal.engine().status(&id("x")).await.unwrap().unwrap();
    assert_eq!(failure(status).0, "States.HeartbeatTimeout", "caught as a timeout once the retry is used up");
}

#[tokio::test]
async fn a_report_that_comes_while_the_step_runs_is_taken() {
    let (_folder, engine) = engine(&[("m", awaits(json!({"TimeoutSeconds": 600})))]);
    let engine = Arc::new(engine);
    let given = Arc::new(Given::default());
    let handler = Does({
        let (given, engine) = (given.clone(), Arc::downgrade(&engine));
        move |step: String, input: Value| {
            let (given, engine) = (given.clone(), engine.upgrade().unwrap());
            async move {
                given.run(&step, input).await?;
                engine.report(&given.newest("x").unwrap(), success()).await.unwrap();
                Ok(json!("ignored"))
            }
        }
    });
    engine.resume(Arc::new(handler)).await.unwrap();
    engine.start("m", &id("x"), json!({"execution": "x"})).await.unwrap();
    assert_eq!(end_of(&engine, "x").await, ExecutionStatus::Succeeded(json!(42)));
    engine.shutdown().await;
}

#[tokio::test]
async fn many_reports_at_once_end_the_task_once_and_wake_it_at_once() {
    let (_folder, engine) = engine(&[("m", awaits(json!({"TimeoutSeconds": 600})))]);
    let engine = Arc::new(engine);
    let given = Arc::new(Given::default());
    engine.resume(given.clone()).await.unwrap();
    for round in 0..20 {
        let name = format!("x{round}");
        engine.start("m", &id(&name), json!({"execution": name})).await.unwrap();
        let token = contract::workflows::Tokens::of(&*given, &id(&name)).await;
        let mut reports = JoinSet::new();
        for n in 0..4 {
            let (engine, token) = (engine.clone(), token.clone());
            reports.spawn(async move {
                // Refused once another report was taken.
                let _ = engine.heartbeat(&token).await;
                engine.report(&token, TaskOutcome::Success(json!(n))).await.is_ok()
            });
        }
        let taken = reports.join_all().await.into_iter().filter(|ok| *ok).count();
        assert_eq!(taken, 1, "round {round}");
        assert!(matches!(end_of(&engine, &name).await, ExecutionStatus::Succeeded(_)));
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn a_database_of_the_first_layout_is_taken_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rehost.db");
    let engine = build(&path, Arc::new(SystemClock), &[("m", one_task(json!({})))]).unwrap();
    engine.start("m", &id("x"), json!(7)).await.unwrap();
    drop(engine);
    let database = Database::open(&path).unwrap();
    database
        .transact(|t| {
            t.execute_batch(
                "ALTER TABLE execution DROP COLUMN revision; ALTER TABLE execution DROP COLUMN awaited; PRAGMA user_version = 1",
            )?;
            Ok(())
        })
        .await
        .unwrap();
    drop(database);
    let engine = build(&path, Arc::new(SystemClock), &[("m", one_task(json!({})))]).unwrap();
    engine.resume(Arc::new(Does(async |_, input| Ok(input)))).await.unwrap();
    assert_eq!(end_of(&engine, "x").await, ExecutionStatus::Succeeded(json!(7)));
}
