mod kill;
mod tokens;

use std::sync::atomic::{AtomicI64, AtomicUsize};
use std::time::Instant;

use rehost_control::contract::{self, workflows::Machines};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use rehost_control::SystemClock;

/// A clock that stands still until it is moved.
#[derive(Default)]
struct FakeClock(AtomicI64);

impl FakeClock {
    fn set(&self, to: Timestamp) {
        self.0.store(to.unix_ms(), Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::SeqCst))
    }
}

/// A handler that is a function of step and input.
struct Does<F>(F);

#[async_trait]
impl<F, R> TaskHandler for Does<F>
where
    F: Fn(String, Value) -> R + Send + Sync,
    R: Future<Output = Result<Value, TaskError>> + Send,
{
    fn knows(&self, step: &str) -> bool {
        step != "unknown"
    }

    async fn run(&self, step: &str, input: Value) -> Result<Value, TaskError> {
        (self.0)(step.to_owned(), input).await
    }
}

fn id(name: &str) -> ExecutionId {
    ExecutionId(name.to_owned())
}

fn build(path: &std::path::Path, clock: Arc<dyn Clock>, machines: &[(&str, Value)]) -> PortResult<Engine> {
    Engine::new(EngineOptions {
        database: Database::open(path)?,
        clock,
        machines: machines.iter().map(|(name, definition)| ((*name).to_owned(), definition.to_string())).collect(),
        max_running_steps: 3,
        jitter: || 0.5,
    })
}

fn engine(machines: &[(&str, Value)]) -> (TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let engine = build(&folder.path().join("rehost.db"), Arc::new(SystemClock), machines).unwrap();
    (folder, engine)
}

fn one_task(extra: Value) -> Value {
    let mut state = json!({"Type": "Task", "Resource": "${WorkFunctionArn}", "End": true});
    for (field, value) in extra.as_object().unwrap() {
        state[field] = value.clone();
    }
    json!({"StartAt": "A", "States": {"A": state}})
}

fn waits(seconds: u64) -> Value {
    json!({"StartAt": "A", "States": {"A": {"Type": "Wait", "Seconds": seconds, "End": true}}})
}

async fn end_of(engine: &Engine, name: &str) -> ExecutionStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = engine.status(&id(name)).await.unwrap().unwrap();
        if status != ExecutionStatus::Running {
            return status;
        }
        assert!(Instant::now() < deadline, "{name} does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn failure(status: ExecutionStatus) -> (String, String) {
    match status {
        ExecutionStatus::Failed { error, cause } => (error, cause),
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn keeps_the_contract() {
    let pass = json!({"StartAt": "A", "States": {"A": {"Type": "Pass", "End": true}}});
    let fail = json!({"StartAt": "A", "States": {"A": {"Type": "Fail", "Error": "Refused", "Cause": "as asked"}}});
    let machines = [
        ("echo", pass),
        ("fails", fail),
        ("waits", waits(3600)),
        ("awaits", awaits(json!({"TimeoutSeconds": 3600}))),
        ("listens", awaits(json!({"TimeoutSeconds": 3600, "HeartbeatSeconds": 2}))),
    ];
    let (_folder, engine) = engine(&machines);
    let given = Arc::new(Given::default());
    engine.resume(given.clone()).await.unwrap();
    let machines = Machines { echo: "echo", fails: "fails", waits: "waits", awaits: "awaits", listens: "listens" };
    contract::workflows::suite(&engine, machines, &*given).await;
    engine.shutdown().await;
}

/// Steps that keep the tokens that they are given.
#[derive(Default)]
struct Given {
    tokens: Mutex<HashMap<String, Vec<TaskToken>>>,
    came: Notify,
}

impl Given {
    fn newest(&self, execution: &str) -> Option<TaskToken> {
        self.tokens.lock().unwrap().get(execution)?.last().cloned()
    }
}

#[async_trait]
impl TaskHandler for Given {
    fn knows(&self, _: &str) -> bool {
        true
    }

    async fn run(&self, _: &str, input: Value) -> Result<Value, TaskError> {
        let (execution, token) = (input["execution"].as_str().unwrap(), input["token"].as_str().unwrap());
        let token = TaskToken(token.to_owned());
        self.tokens.lock().unwrap().entry(execution.to_owned()).or_default().push(token);
        self.came.notify_waiters();
        Ok(json!("ignored"))
    }
}

#[async_trait]
impl contract::workflows::Tokens for Given {
    async fn of(&self, execution: &ExecutionId) -> TaskToken {
        loop {
            let came = self.came.notified();
            if let Some(token) = self.newest(&execution.0) {
                return token;
            }
            came.await;
        }
    }
}

/// A machine with one task that waits for its token.
fn awaits(extra: Value) -> Value {
    let payload = json!({"token.$": "$$.Task.Token", "execution.$": "$.execution"});
    let mut state = json!({
        "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
        "Parameters": {"FunctionName": "${AskFunctionArn}", "Payload": payload}, "End": true
    });
    for (field, value) in extra.as_object().unwrap() {
        state[field] = value.clone();
    }
    json!({"StartAt": "A", "States": {"A": state}})
}

#[tokio::test]
async fn a_panic_is_a_failed_task() {
    let catch = json!([{"ErrorEquals": ["States.TaskFailed"], "ResultPath": "$.e", "Next": "B"}]);
    let mut machine = one_task(json!({"Catch": catch}));
    machine["States"]["B"] = json!({"Type": "Succeed"});
    let (_folder, engine) = engine(&[("m", machine)]);
    engine.resume(Arc::new(Does(async |_, _| panic!("out of cheese")))).await.unwrap();
    engine.start("m", &id("x"), json!({})).await.unwrap();
    let ExecutionStatus::Succeeded(output) = end_of(&engine, "x").await else { panic!("caught") };
    let cause = output["e"]["Cause"].as_str().unwrap();
    assert!(cause.contains("`work` panicked: out of cheese"), "{cause}");
}

#[tokio::test]
async fn a_step_that_takes_too_long_is_dropped() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let handler = {
        let dropped = Arc::clone(&dropped);
        Does(move |_, _| {
            let guard = Dropped(Arc::clone(&dropped));
            async move {
                tokio::time::sleep(Duration::from_secs(600)).await;
                drop(guard);
                Ok(json!(1))
            }
        })
    };
    let (_folder, engine) = engine(&[("m", one_task(json!({"TimeoutSeconds": 1}))), ("endless", one_task(json!({})))]);
    engine.resume(Arc::new(handler)).await.unwrap();
    engine.start("m", &id("x"), json!({})).await.unwrap();
    let (error, cause) = failure(end_of(&engine, "x").await);
    assert_eq!(error, "States.Timeout");
    assert!(cause.contains("`work`") && cause.contains("1 s"), "{cause}");
    engine.start("endless", &id("y"), json!({})).await.unwrap();
    while engine.core.permits.available_permits() == 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.stop(&id("y"), "no longer wanted").await.unwrap();
    while dropped.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(engine.status(&id("y")).await.unwrap(), Some(ExecutionStatus::Aborted));
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_allowed() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        Does(move |_, input| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(input)
            }
        })
    };
    let (_folder, engine) = engine(&[("m", one_task(json!({})))]);
    engine.resume(Arc::new(handler)).await.unwrap();
    for number in 0..12 {
        engine.start("m", &id(&format!("x{number}")), json!(number)).await.unwrap();
    }
    for number in 0..12 {
        assert_eq!(end_of(&engine, &format!("x{number}")).await, ExecutionStatus::Succeeded(json!(number)));
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn waiting_executions_are_lines_in_the_agenda() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(FakeClock::default());
    let engine = build(&folder.path().join("rehost.db"), clock.clone(), &[("m", waits(1000))]).unwrap();
    engine.resume(Arc::new(Does(async |_, input| Ok(input)))).await.unwrap();
    for number in 0..100 {
        engine.start("m", &id(&format!("x{number}")), json!(number)).await.unwrap();
    }
    assert_eq!((locked(&engine.core.agenda).len(), locked(&engine.core.drivers).len()), (100, 0));
    clock.set(Timestamp::from_unix_ms(999_999));
    engine.wake();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(locked(&engine.core.agenda).len(), 100);
    clock.set(Timestamp::from_unix_ms(1_000_000));
    engine.wake();
    for number in 0..100 {
        assert_eq!(end_of(&engine, &format!("x{number}")).await, ExecutionStatus::Succeeded(json!(number)));
    }
}

#[tokio::test]
async fn an_execution_keeps_the_definition_that_it_was_started_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rehost.db");
    let clock: Arc<FakeClock> = Arc::default();
    let with_result = |result: &str| {
        json!({"StartAt": "A", "States": {
            "A": {"Type": "Wait", "Seconds": 10, "Next": "B"},
            "B": {"Type": "Pass", "Result": result, "End": true}}})
    };
    let old = build(&path, clock.clone(), &[("m", with_result("old"))]).unwrap();
    old.start("m", &id("x"), json!({})).await.unwrap();
    drop(old);
    let new = build(&path, clock.clone(), &[("m", with_result("new"))]).unwrap();
    clock.set(Timestamp::from_unix_ms(10_000));
    new.resume(Arc::new(Does(async |_, input| Ok(input)))).await.unwrap();
    assert_eq!(end_of(&new, "x").await, ExecutionStatus::Succeeded(json!("old")));
}

#[tokio::test]
async fn a_shutdown_leaves_everything_to_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rehost.db");
    let machines = [("m", one_task(json!({}))), ("w", waits(3600))];
    let first = build(&path, Arc::new(SystemClock), &machines).unwrap();
    let begun = Arc::new(Notify::new());
    let handler = {
        let begun = Arc::clone(&begun);
        Does(move |_, input: Value| {
            let begun = Arc::clone(&begun);
            async move {
                begun.notify_one();
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(input)
            }
        })
    };
    first.resume(Arc::new(handler)).await.unwrap();
    first.start("w", &id("w"), json!({})).await.unwrap();
    first.start("m", &id("x"), json!(7)).await.unwrap();
    begun.notified().await;
    first.shutdown().await;
    assert_eq!(first.status(&id("x")).await.unwrap(), Some(ExecutionStatus::Succeeded(json!(7))), "it got its grace");
    first.start("m", &id("y"), json!(8)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(first.status(&id("y")).await.unwrap(), Some(ExecutionStatus::Running), "nothing begins after it");
    drop(first);
    let second = build(&path, Arc::new(SystemClock), &machines).unwrap();
    second.resume(Arc::new(Does(async |_, input| Ok(input)))).await.unwrap();
    assert_eq!(end_of(&second, "y").await, ExecutionStatus::Succeeded(json!(8)));
    assert_eq!(second.status(&id("w")).await.unwrap(), Some(ExecutionStatus::Running));
}

#[tokio::test]
async fn what_is_unsound_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rehost.db");
    let error = build(&path, Arc::new(SystemClock), &[("m", json!({"StartAt": "A", "States": {}}))]).err().unwrap();
    assert!(error.message.contains("`m`") && error.message.contains("`A`"), "{error}");
    let mut unknown = one_task(json!({}));
    unknown["States"]["A"]["Resource"] = json!("${UnknownFunctionArn}");
    let engine = build(&path, Arc::new(SystemClock), &[("m", unknown)]).unwrap();
    let error = engine.resume(Arc::new(Does(async |_, input| Ok(input)))).await.unwrap_err();
    assert!(error.message.contains("`unknown`"), "{error}");
    for name in ["", "a/b", "a b", &"x".repeat(81)] {
        let error = engine.start("m", &id(name), json!({})).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid, "{name:?}");
    }
}

#[tokio::test]
async fn a_damaged_execution_is_named_and_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rehost.db");
    let engine = build(&path, Arc::new(SystemClock), &[("m", one_task(json!({})))]).unwrap();
    for name in ["bad", "good"] {
        engine.start("m", &id(name), json!({})).await.unwrap();
    }
    let database = Database::open(&path).unwrap();
    for damage in ["definition = 'x'", "input = '{'", "status = 'RUNNING' || char(0)"] {
        let sql = format!("UPDATE execution SET {damage} WHERE name = 'bad'");
        database.transact(move |t| Ok(t.execute(&sql, [])?)).await.unwrap();
        let error = engine.status(&id("bad")).await.unwrap_err();
        assert!(error.message.contains("`bad`") && error.message.contains("rehost.db"), "{error}");
    }
    engine.resume(Arc::new(Does(async |_, input| Ok(input)))).await.unwrap();
    assert_eq!(end_of(&engine, "good").await, ExecutionStatus::Succeeded(json!({})));
}

#[tokio::test]
async fn a_long_history_keeps_its_newest_events() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<FakeClock> = Arc::default();
    let machine = json!({"StartAt": "A", "States": {
        "A": {"Type": "Wait", "Seconds": 1, "Next": "B"},
        "B": {"Type": "Choice", "Choices": [{"Variable": "$", "StringEquals": "x", "Next": "C"}], "Default": "A"},
        "C": {"Type": "Succeed"}}});
    let engine = build(&folder.path().join("rehost.db"), clock.clone(), &[("m", machine)]).unwrap();
    engine.start("m", &id("x"), json!({})).await.unwrap();
    let handler: Arc<dyn TaskHandler> = Arc::new(Does(async |_, input| Ok(input)));
    for _ in 0..3300 {
        if let Turned::Sleeping(until) = engine.core.turn(&handler, "x").await.unwrap() {
            clock.set(until);
        }
    }
    let history = engine.history(&id("x")).await.unwrap();
    let (first, last) = (history[0].sequence, history[history.len() - 1].sequence);
    assert_eq!((history.len(), last - first), (2000, 1999));
    assert!(last > 4000, "{last}");
}
