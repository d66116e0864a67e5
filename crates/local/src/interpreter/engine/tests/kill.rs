//! An execution that is killed, again and again, ends as one that is not.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What a step's call comes to.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Done,
    InProgress { wait: u64 },
    Error(&'static str),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let error = prop::sample::select(vec!["Busy", "States.Timeout", "Broken", "Unheard"]);
    prop_oneof![
        1 => Just(Outcome::Done),
        3 => (0u64..50).prop_map(|wait| Outcome::InProgress { wait }),
        3 => error.prop_map(Outcome::Error),
    ]
}

fn machine() -> Value {
    json!({"StartAt": "Work", "TimeoutSeconds": 150, "States": {
        "Work": {
            "Type": "Task", "Resource": "${WorkFunctionArn}", "ResultPath": "$.work",
            "Retry": [
                {"ErrorEquals": ["Busy"], "IntervalSeconds": 2, "MaxAttempts": 2, "JitterStrategy": "FULL"},
                {"ErrorEquals": ["States.Timeout"], "MaxAttempts": 1}
            ],
            "Catch": [{"ErrorEquals": ["Broken", "Busy"], "ResultPath": "$.error", "Next": "Repair"}],
            "Next": "Look"
        },
        "Look": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.work.status", "StringEquals": "DONE", "Next": "Done"}],
            "Default": "Nap"
        },
        "Nap": {"Type": "Wait", "SecondsPath": "$.work.wait", "Next": "Work"},
        "Repair": {
            "Type": "Task", "Resource": "${RepairFunctionArn}", "ResultPath": null,
            "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.second", "Next": "GiveUp"}], "Next": "Note"
        },
        "Note": {"Type": "Pass", "Result": true, "ResultPath": "$.repaired", "Next": "Nap"},
        "GiveUp": {"Type": "Fail", "ErrorPath": "$.second.Error", "CausePath": "$.error.Cause"},
        "Done": {"Type": "Succeed"}
    }})
}

/// Steps that end as a script says, and hang when they are to be killed. It survives the kill, as the world does.
struct Script {
    outcomes: Vec<Outcome>,
    /// Calls (by number) that have their effect and then never return.
    hang: BTreeSet<usize>,
    world: Mutex<World>,
    hanging: Notify,
}

#[derive(Default)]
struct World {
    calls: Vec<(String, Value)>,
    ended: usize,
}

#[async_trait]
impl TaskHandler for Script {
    fn knows(&self, _: &str) -> bool {
        true
    }

    async fn run(&self, step: &str, input: Value) -> Result<Value, TaskError> {
        let call = {
            let mut world = self.world.lock().unwrap();
            world.calls.push((step.to_owned(), input));
            world.calls.len() - 1
        };
        if self.hang.contains(&call) {
            self.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        let mut world = self.world.lock().unwrap();
        world.ended += 1;
        match self.outcomes.get(world.ended - 1).copied().unwrap_or(Outcome::Done) {
            Outcome::Done => Ok(json!({"status": "DONE", "wait": 1, "call": world.ended})),
            Outcome::InProgress { wait } => Ok(json!({"status": "IN_PROGRESS", "wait": wait})),
            Outcome::Error(error) => Err(TaskError::new(error, format!("call {}", world.ended))),
        }
    }
}

/// How an execution went.
#[derive(Debug, PartialEq)]
struct Course {
    status: Option<ExecutionStatus>,
    history: Vec<HistoryEntry>,
    calls: Vec<(String, Value)>,
}

/// Runs the machine by single turns; the process "dies" after each turn in `killed`, and in every call in `hang`.
async fn course(outcomes: &[Outcome], killed: &BTreeSet<usize>, hang: BTreeSet<usize>) -> Course {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(FakeClock::default());
    let open = || build(&folder.path().join("rehost.db"), clock.clone(), &[("m", machine())]).unwrap();
    let script =
        Arc::new(Script { outcomes: outcomes.to_vec(), hang, world: Mutex::default(), hanging: Notify::new() });
    let handler: Arc<dyn TaskHandler> = script.clone();
    let mut engine = open();
    engine.start("m", &id("x"), json!({"in": 1, "work": {"wait": 1}})).await.unwrap();
    for turn in 0.. {
        let turned = tokio::select! {
            turned = engine.core.turn(&handler, "x") => Some(turned.unwrap()),
            () = script.hanging.notified() => None,
        };
        match turned {
            Some(Turned::Over) => break,
            Some(Turned::Sleeping(until)) => clock.set(until),
            Some(Turned::On) => {}
            None => engine = open(),
        }
        if killed.contains(&turn) {
            drop(engine);
            engine = open();
        }
    }
    let status = engine.status(&id("x")).await.unwrap();
    let history = engine.history(&id("x")).await.unwrap();
    let calls = std::mem::take(&mut script.world.lock().unwrap().calls);
    Course { status, history, calls }
}

/// The calls without those that were cut off and made again.
fn without_hung(calls: &[(String, Value)], hang: &BTreeSet<usize>) -> Vec<(String, Value)> {
    calls.iter().enumerate().filter(|(number, _)| !hang.contains(number)).map(|(_, call)| call.clone()).collect()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_killed_execution_goes_on_where_it_was(
        outcomes in prop::collection::vec(outcome(), 0..10),
        hang in prop::collection::btree_set(0usize..12, 0..5),
        some in prop::collection::btree_set(0usize..40, 0..10),
    ) {
        let undisturbed = run(course(&outcomes, &BTreeSet::new(), BTreeSet::new()));
        prop_assert!(undisturbed.status.is_some());
        let always = (0..500).collect();
        prop_assert_eq!(&run(course(&outcomes, &always, BTreeSet::new())), &undisturbed);
        let killed = run(course(&outcomes, &some, hang.clone()));
        prop_assert_eq!(without_hung(&killed.calls, &hang), undisturbed.calls);
        prop_assert_eq!(killed.history, undisturbed.history);
        prop_assert_eq!(killed.status, undisturbed.status);
    }
}

#[test]
fn retry_counts_and_deadlines_survive_a_kill_after_every_transition() {
    use Outcome::{Done, Error, InProgress};
    let outcomes =
        [Error("Busy"), Error("States.Timeout"), Error("Busy"), InProgress { wait: 30 }, Error("Broken"), Done];
    let every = (0..100).collect();
    let course = run(course(&outcomes, &every, BTreeSet::from([1, 3])));
    let times = |event: &str| -> Vec<i64> {
        course.history.iter().filter(|entry| entry.event == event).map(|entry| entry.time.unix_ms()).collect()
    };
    assert_eq!(
        times("TaskFailed"),
        [0, 2000, 34_000],
        "delays of 1 s (2 s jittered), 1 s (a timeout), 2 s; a wait of 30 s"
    );
    assert_eq!(times("TaskTimedOut"), [1000]);
    assert_eq!(times("ExecutionSucceeded"), [64_000], "repaired, and waited once more");
    assert_eq!(course.calls.len(), 9, "seven calls and the two that were cut off");
    let Some(ExecutionStatus::Succeeded(output)) = course.status else { panic!("{:?}", course.status) };
    assert_eq!((&output["repaired"], &output["error"]["Error"]), (&json!(true), &json!("Broken")));
}
