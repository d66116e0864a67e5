mod callback;

use super::*;

const START: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(START + seconds * 1000)
}

fn machine(states: Value) -> Machine {
    Machine::parse(&json!({"StartAt": "A", "States": states}).to_string()).unwrap()
}

fn begun(machine: &Machine, input: Value) -> Record {
    begin("x", "test", "", machine, input, at(0)).0
}

/// Carries a fresh execution on until it needs something or is over.
fn settled(machine: &Machine, input: Value) -> Record {
    let mut record = begun(machine, input);
    while action(machine, &record, at(0)) == Action::Turn {
        turn(machine, &mut record, at(0));
    }
    record
}

fn failed(record: &Record) -> (&str, &str) {
    assert_eq!(record.status, Status::Failed);
    let error = record.error.as_ref().unwrap();
    (&error.error, &error.cause)
}

fn task(extra: Value) -> Machine {
    let mut state = json!({"Type": "Task", "Resource": "${StepFunctionArn}", "Next": "Done"});
    for (field, value) in extra.as_object().unwrap() {
        state[field] = value.clone();
    }
    let caught = state.to_string().contains("Caught");
    let mut states = json!({"A": state, "Done": {"Type": "Succeed"}});
    if caught {
        states["Caught"] = json!({"Type": "Succeed"});
    }
    machine(states)
}

fn error(name: &str) -> Result<Value, TaskError> {
    Err(TaskError::new(name, "why"))
}

#[test]
fn pass_puts_its_result_where_it_says() {
    let table = [
        (json!({"End": true}), json!({"a": 1})),
        (json!({"Result": 5, "End": true}), json!(5)),
        (json!({"Result": 5, "ResultPath": "$.r.x", "End": true}), json!({"a": 1, "r": {"x": 5}})),
        (json!({"Result": 5, "ResultPath": null, "End": true}), json!({"a": 1})),
        (json!({"ResultPath": "$.copy", "End": true}), json!({"a": 1, "copy": {"a": 1}})),
    ];
    for (mut state, expected) in table {
        state["Type"] = json!("Pass");
        let record = settled(&machine(json!({"A": state})), json!({"a": 1}));
        assert_eq!((record.status, record.output), (Status::Succeeded, Some(expected)));
    }
    let nowhere = machine(json!({"A": {"Type": "Pass", "ResultPath": "$.a.b", "End": true}}));
    assert_eq!(failed(&settled(&nowhere, json!({"a": 1}))).0, RESULT_PATH);
}

#[test]
fn choice_takes_the_first_rule_that_holds() {
    let rule = |variable: &str, kind: &str, value: Value, next: &str| {
        let mut rule = json!({"Variable": variable, "Next": next});
        rule[kind] = value;
        rule
    };
    let rules = json!([
        rule("$.s", "StringEquals", json!("x"), "X"),
        rule("$.b", "BooleanEquals", json!(false), "F"),
        rule("$.b", "BooleanEquals", json!(true), "T")
    ]);
    let end = json!({"Type": "Succeed"});
    let states =
        json!({"A": {"Type": "Choice", "Choices": rules, "Default": "D"}, "X": end, "F": end, "T": end, "D": end});
    let table = [
        (json!({"s": "x", "b": true}), "X"),
        (json!({"s": "y", "b": true}), "T"),
        (json!({"s": "y", "b": false}), "F"),
        (json!({"s": 1, "b": "true"}), "D"),
        (json!({"s": null, "b": null}), "D"),
    ];
    for (input, expected) in table {
        let record = settled(&machine(states.clone()), input.clone());
        assert_eq!((record.state.as_str(), record.output), (expected, Some(input)));
    }
    let missing = settled(&machine(states), json!({"s": "y"}));
    let (name, cause) = failed(&missing);
    assert_eq!(name, RUNTIME);
    assert!(cause.contains("`$.b`"), "{cause}");
}

#[test]
fn a_choice_without_a_way_fails() {
    let rules = json!([{"Variable": "$", "StringEquals": "x", "Next": "X"}]);
    let machine = machine(json!({"A": {"Type": "Choice", "Choices": rules}, "X": {"Type": "Succeed"}}));
    assert_eq!(failed(&settled(&machine, json!("y"))).0, "States.NoChoiceMatched");
    assert_eq!(settled(&machine, json!("x")).status, Status::Succeeded);
}

#[test]
fn wait_keeps_its_deadline() {
    for wait in [json!({"Seconds": 7}), json!({"SecondsPath": "$.nap"})] {
        let mut state = wait;
        state["Type"] = json!("Wait");
        state["End"] = json!(true);
        let machine = machine(json!({"A": state}));
        let mut record = begun(&machine, json!({"nap": 7}));
        assert_eq!(action(&machine, &record, at(0)), Action::Sleep(at(7)));
        assert_eq!(action(&machine, &record, at(5)), Action::Sleep(at(7)));
        assert_eq!(action(&machine, &record, at(7)), Action::Turn);
        turn(&machine, &mut record, at(8));
        assert_eq!((record.status, record.output), (Status::Succeeded, Some(json!({"nap": 7}))));
    }
    let state = json!({"Type": "Wait", "SecondsPath": "$.nap", "End": true});
    for nap in [json!(-1), json!("7"), json!(1.5), Value::Null] {
        let record = settled(&machine(json!({"A": state})), json!({"nap": nap}));
        let (name, cause) = failed(&record);
        assert_eq!(name, RUNTIME);
        assert!(cause.contains("SecondsPath"), "{cause}");
    }
}

#[test]
fn fail_tells_what_it_is_told() {
    let input = json!({"error": {"Error": "E", "Cause": "C"}});
    let table = [
        (json!({"Error": "X", "Cause": "Y"}), ("X", "Y")),
        (json!({}), ("", "")),
        (json!({"ErrorPath": "$.error.Error", "CausePath": "$.error.Cause"}), ("E", "C")),
    ];
    for (mut state, expected) in table {
        state["Type"] = json!("Fail");
        assert_eq!(failed(&settled(&machine(json!({"A": state})), input.clone())), expected);
    }
    let absent = machine(json!({"A": {"Type": "Fail", "ErrorPath": "$.absent"}}));
    assert_eq!(failed(&settled(&absent, input)).0, RUNTIME);
}

#[test]
fn a_task_runs_its_step_and_places_its_result() {
    let machine = task(json!({"ResultPath": "$.out", "TimeoutSeconds": 5}));
    let mut record = begun(&machine, json!({"in": 1}));
    let run = Action::Run { step: "step".to_owned(), input: json!({"in": 1}), deadline: Some(at(13)) };
    assert_eq!(action(&machine, &record, at(8)), run, "the attempt's time counts from when it begins");
    task_ended(&machine, &mut record, Ok(json!(2)), at(9), 0.0);
    assert_eq!((record.state.as_str(), &record.input), ("Done", &json!({"in": 1, "out": 2})));
}

#[test]
fn an_error_that_nobody_answers_fails_the_execution() {
    let machine =
        task(json!({"Retry": [{"ErrorEquals": ["Other"]}], "Catch": [{"ErrorEquals": ["Other"], "Next": "Caught"}]}));
    let mut record = begun(&machine, json!({}));
    task_ended(&machine, &mut record, error("Boom"), at(1), 0.0);
    assert_eq!(failed(&record), ("Boom", "why"));
}

#[test]
fn each_retrier_has_its_own_count() {
    let machine = task(json!({"Retry": [
        {"ErrorEquals": ["A"], "IntervalSeconds": 10, "MaxAttempts": 2},
        {"ErrorEquals": ["B", "States.Timeout"], "MaxAttempts": 1, "BackoffRate": 1.0},
        {"ErrorEquals": ["States.ALL"], "MaxAttempts": 9}
    ]}));
    let mut record = begun(&machine, json!({}));
    for (name, expected) in [("A", Some(10)), ("B", Some(1)), ("A", Some(20)), (TIMEOUT, None)] {
        let happenings = task_ended(&machine, &mut record, error(name), at(0), 0.0);
        let event = if name == TIMEOUT { "TaskTimedOut" } else { "TaskFailed" };
        assert_eq!(happenings[0].event, event);
        assert_eq!(record.wake_at, expected.map(at), "{name}");
    }
    assert_eq!(record.status, Status::Failed, "a retrier that is used up is not followed by a later one");
}

#[test]
fn a_retry_waits_and_runs_the_same_again() {
    let machine = task(
        json!({"Retry": [{"ErrorEquals": ["States.TaskFailed"], "JitterStrategy": "FULL", "IntervalSeconds": 8}]}),
    );
    let mut record = begun(&machine, json!({"in": 1}));
    task_ended(&machine, &mut record, error("A"), at(0), 0.5);
    assert_eq!(action(&machine, &record, at(1)), Action::Sleep(at(4)));
    let again = Action::Run { step: "step".to_owned(), input: json!({"in": 1}), deadline: None };
    assert_eq!(action(&machine, &record, at(4)), again);
    assert_eq!(record.input, json!({"in": 1}));
    task_ended(&machine, &mut record, Ok(json!(2)), at(5), 0.5);
    assert_eq!((record.attempts.len(), record.wake_at), (0, None), "a new state begins anew");
}

#[test]
fn a_catcher_gets_error_and_cause() {
    let table = [
        (
            json!({"ErrorEquals": ["Boom"], "ResultPath": "$.e", "Next": "Caught"}),
            json!({"in": 1, "e": {"Error": "Boom", "Cause": "why"}}),
        ),
        (json!({"ErrorEquals": ["States.ALL"], "Next": "Caught"}), json!({"Error": "Boom", "Cause": "why"})),
        (json!({"ErrorEquals": ["States.TaskFailed"], "ResultPath": null, "Next": "Caught"}), json!({"in": 1})),
    ];
    for (catcher, expected) in table {
        let retry = json!([{"ErrorEquals": ["Boom"], "MaxAttempts": 1}]);
        let machine = task(json!({"Retry": retry, "Catch": [catcher], "ResultPath": "$.ignored"}));
        let mut record = begun(&machine, json!({"in": 1}));
        task_ended(&machine, &mut record, error("Boom"), at(0), 0.0);
        assert_eq!(record.state, "A", "retries come first");
        task_ended(&machine, &mut record, error("Boom"), at(9), 0.0);
        assert_eq!((record.state.as_str(), &record.input), ("Caught", &expected));
    }
}

#[test]
fn the_first_catcher_that_answers_is_taken() {
    let catch = json!([
        {"ErrorEquals": ["States.TaskFailed"], "Next": "Done"},
        {"ErrorEquals": ["States.Timeout"], "Next": "Caught"}
    ]);
    for (name, expected) in [("Boom", "Done"), (TIMEOUT, "Caught")] {
        let machine = task(json!({"Catch": catch}));
        let mut record = begun(&machine, json!({}));
        task_ended(&machine, &mut record, error(name), at(0), 0.0);
        assert_eq!(record.state, expected);
    }
}

#[test]
fn a_result_that_cannot_be_placed_is_an_error_that_can_be_caught() {
    let catch = json!([{"ErrorEquals": ["States.ResultPathMatchFailure"], "Next": "Caught"}]);
    let machine = task(json!({"ResultPath": "$.a.b", "Catch": catch}));
    let mut record = begun(&machine, json!({"a": 1}));
    task_ended(&machine, &mut record, Ok(json!(1)), at(0), 0.0);
    assert_eq!(record.state, "Caught");
}

#[test]
fn the_machines_own_time_ends_everything() {
    let text = json!({"StartAt": "A", "TimeoutSeconds": 10, "States": {
        "A": {"Type": "Task", "Resource": "${StepFunctionArn}", "TimeoutSeconds": 60, "Next": "B",
              "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "B"}]},
        "B": {"Type": "Wait", "Seconds": 100, "End": true}}});
    let machine = Machine::parse(&text.to_string()).unwrap();
    let mut record = begun(&machine, json!({}));
    let run = Action::Run { step: "step".to_owned(), input: json!({}), deadline: Some(at(10)) };
    assert_eq!(action(&machine, &record, at(1)), run);
    let mut late = record.clone();
    task_ended(&machine, &mut late, error(TIMEOUT), at(10), 0.0);
    assert_eq!((late.status, late.error.unwrap().error.as_str()), (Status::TimedOut, TIMEOUT), "nothing catches it");
    task_ended(&machine, &mut record, Ok(json!({})), at(9), 0.0);
    assert_eq!(action(&machine, &record, at(9)), Action::Sleep(at(10)), "not until the end of the wait");
    turn(&machine, &mut record, at(10));
    assert_eq!(record.status, Status::TimedOut);
    assert_eq!(action(&machine, &record, at(11)), Action::Over);
}

#[test]
fn the_sequence_counts_every_event() {
    let machine = task(json!({"Retry": [{"ErrorEquals": ["A"]}]}));
    let (mut record, happenings) = begin("x", "test", "", &machine, json!({}), at(0));
    let mut events: Vec<String> = happenings.into_iter().map(|h| h.event).collect();
    events.extend(task_ended(&machine, &mut record, error("A"), at(0), 0.0).into_iter().map(|h| h.event));
    events.extend(task_ended(&machine, &mut record, Ok(json!({})), at(1), 0.0).into_iter().map(|h| h.event));
    events.extend(turn(&machine, &mut record, at(1)).into_iter().map(|h| h.event));
    let expected = [
        "ExecutionStarted",
        "TaskStateEntered",
        "TaskFailed",
        "TaskSucceeded",
        "TaskStateExited",
        "SucceedStateEntered",
        "SucceedStateExited",
        "ExecutionSucceeded",
    ];
    assert_eq!(events, expected);
    assert_eq!(record.sequence, 8);
}
