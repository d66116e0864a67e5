//! Tasks that wait for their token.

use super::super::super::errors::{HEARTBEAT_TIMEOUT, PARAMETER_PATH};
use super::super::callback::{NotAwaited, heard, issue, reported, submitted};
use super::*;
use rehost_model::TaskToken;

fn waiting_task(extra: Value) -> Machine {
    let mut state = json!({
        "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken", "Next": "Done",
        "Parameters": {"FunctionName": "${StepFunctionArn}", "Payload": {"t.$": "$$.Task.Token", "x.$": "$.x"}}
    });
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

fn token(text: &str) -> TaskToken {
    TaskToken(text.to_owned())
}

/// A record whose token was issued at 0 s, and whose step has ended.
fn waiting(machine: &Machine) -> Record {
    let mut record = begun(machine, json!({"x": 1}));
    assert_eq!(action(machine, &record, at(0)), Action::Issue);
    issue(machine, &mut record, token("T"), at(0), 0.0);
    submitted(machine, &mut record, at(1));
    record
}

#[test]
fn the_step_is_called_with_the_payload_and_its_answer_does_not_count() {
    let machine = waiting_task(json!({"TimeoutSeconds": 10, "ResultPath": "$.out"}));
    let mut record = begun(&machine, json!({"x": 1}));
    issue(&machine, &mut record, token("T"), at(0), 0.0);
    let run = Action::Run { step: "step".to_owned(), input: json!({"t": "T", "x": 1}), deadline: Some(at(10)) };
    assert_eq!(action(&machine, &record, at(3)), run, "a step that was cut off gets the same token again");
    submitted(&machine, &mut record, at(4));
    assert_eq!(action(&machine, &record, at(4)), Action::Sleep(at(10)));
    reported(&machine, &mut record, &token("T"), Ok(json!(5)), at(6), 0.0).unwrap();
    assert_eq!((record.state.as_str(), &record.input), ("Done", &json!({"x": 1, "out": 5})));
    assert_eq!(record.awaited, None);
}

#[test]
fn a_report_may_come_before_the_step_has_ended() {
    let machine = waiting_task(json!({}));
    let mut record = begun(&machine, json!({"x": 1}));
    issue(&machine, &mut record, token("T"), at(0), 0.0);
    reported(&machine, &mut record, &token("T"), Ok(json!(5)), at(1), 0.0).unwrap();
    assert_eq!(record.state, "Done");
}

#[test]
fn late_doubled_and_foreign_reports_change_nothing() {
    let machine = waiting_task(json!({"TimeoutSeconds": 10}));
    let mut record = waiting(&machine);
    let before = record.clone();
    for (name, when) in [("U", 2), ("", 2), ("T", 10), ("T", 11)] {
        assert_eq!(reported(&machine, &mut record, &token(name), Ok(json!(1)), at(when), 0.0), Err(NotAwaited));
        assert_eq!(heard(&machine, &mut record, &token(name), at(when)), Err(NotAwaited));
        assert_eq!(record, before);
    }
    reported(&machine, &mut record, &token("T"), Ok(json!(1)), at(9), 0.0).unwrap();
    let after = record.clone();
    assert_eq!(reported(&machine, &mut record, &token("T"), Ok(json!(2)), at(9), 0.0), Err(NotAwaited));
    assert_eq!(record, after);
}

#[test]
fn the_clocks_run_from_the_issue_and_from_the_last_heartbeat() {
    let machine = waiting_task(json!({"TimeoutSeconds": 10, "HeartbeatSeconds": 4}));
    let mut record = waiting(&machine);
    assert_eq!(action(&machine, &record, at(3)), Action::Sleep(at(4)));
    heard(&machine, &mut record, &token("T"), at(3)).unwrap();
    assert_eq!(action(&machine, &record, at(4)), Action::Sleep(at(7)));
    let Action::Expire(error) = action(&machine, &record, at(7)) else { panic!("not expired") };
    assert_eq!(error.error, HEARTBEAT_TIMEOUT);
    assert!(error.cause.contains("`step`") && error.cause.contains("4 s"), "{}", error.cause);
    heard(&machine, &mut record, &token("T"), at(6)).unwrap();
    heard(&machine, &mut record, &token("T"), at(9)).unwrap();
    assert_eq!(action(&machine, &record, at(9)), Action::Sleep(at(10)), "heartbeats do not stretch the timeout");
    let Action::Expire(error) = action(&machine, &record, at(10)) else { panic!("not expired") };
    assert_eq!(error.error, TIMEOUT);
}

#[test]
fn a_heartbeat_timeout_is_caught_by_its_name_or_as_a_timeout() {
    for (names, state) in [
        (json!(["States.HeartbeatTimeout"]), Some("Caught")),
        (json!(["States.Timeout"]), Some("Caught")),
        (json!(["States.ALL"]), Some("Caught")),
        (json!(["States.TaskFailed"]), None),
    ] {
        let machine = waiting_task(json!({"HeartbeatSeconds": 4, "Catch": [{"ErrorEquals": names, "Next": "Caught"}]}));
        let mut record = waiting(&machine);
        let Action::Expire(error) = action(&machine, &record, at(4)) else { panic!("not expired") };
        let happenings = task_ended(&machine, &mut record, Err(error), at(4), 0.0);
        assert_eq!(happenings[0].event, "TaskTimedOut");
        assert_eq!(Some(record.state.as_str()).filter(|_| record.status == Status::Running), state);
    }
}

#[test]
fn a_retry_has_a_token_of_its_own() {
    let machine = waiting_task(json!({"Retry": [{"ErrorEquals": ["Boom"], "IntervalSeconds": 5}]}));
    let mut record = waiting(&machine);
    reported(&machine, &mut record, &token("T"), error("Boom"), at(2), 0.0).unwrap();
    assert_eq!(action(&machine, &record, at(3)), Action::Sleep(at(7)));
    assert_eq!(reported(&machine, &mut record, &token("T"), Ok(json!(1)), at(4), 0.0), Err(NotAwaited));
    assert_eq!(action(&machine, &record, at(7)), Action::Issue);
    issue(&machine, &mut record, token("U"), at(7), 0.0);
    assert_eq!(reported(&machine, &mut record, &token("T"), Ok(json!(1)), at(8), 0.0), Err(NotAwaited));
    reported(&machine, &mut record, &token("U"), Ok(json!(2)), at(8), 0.0).unwrap();
    assert_eq!((record.state.as_str(), &record.input), ("Done", &json!(2)));
}

#[test]
fn a_step_that_fails_fails_its_task() {
    let machine = waiting_task(json!({"Catch": [{"ErrorEquals": ["Boom"], "Next": "Caught"}]}));
    let mut record = begun(&machine, json!({"x": 1}));
    issue(&machine, &mut record, token("T"), at(0), 0.0);
    task_ended(&machine, &mut record, error("Boom"), at(1), 0.0);
    assert_eq!((record.state.as_str(), &record.awaited), ("Caught", &None));
}

#[test]
fn a_payload_that_cannot_be_made_is_an_error_that_can_be_caught() {
    let machine = waiting_task(json!({"Catch": [{"ErrorEquals": ["States.ParameterPathFailure"], "Next": "Caught"}]}));
    let mut record = begun(&machine, json!({}));
    issue(&machine, &mut record, token("T"), at(0), 0.0);
    assert_eq!(record.state, "Caught");
    assert!(record.input["Cause"].as_str().unwrap().contains("`$.x`"), "{}", record.input);
    assert_eq!(record.input["Error"], PARAMETER_PATH);
}

#[test]
fn the_token_is_in_no_event() {
    let machine = waiting_task(json!({}));
    let mut record = begun(&machine, json!({"x": 1}));
    let mut happenings = issue(&machine, &mut record, token("SECRET"), at(0), 0.0);
    happenings.extend(submitted(&machine, &mut record, at(1)));
    happenings.extend(reported(&machine, &mut record, &token("SECRET"), Ok(json!(1)), at(1), 0.0).unwrap());
    assert!(!format!("{happenings:?}").contains("SECRET"));
    let events: Vec<_> = happenings.iter().map(|h| h.event.as_str()).collect();
    assert_eq!(events[..4], ["TaskScheduled", "TaskSubmitted", "TaskSucceeded", "TaskStateExited"]);
}
