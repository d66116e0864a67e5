use serde_json::json;

use super::*;

fn parse(definition: &Value) -> Result<Machine, AslError> {
    Machine::parse(&definition.to_string())
}

/// A machine with every field that is supported.
fn everything() -> Value {
    json!({
        "Comment": "c", "StartAt": "Do", "TimeoutSeconds": 60,
        "States": {
            "Do": {
                "Type": "Task", "Comment": "c", "Resource": "${ReplicationStatusFunctionArn}", "TimeoutSeconds": 5,
                "Retry": [
                    {"ErrorEquals": ["A", "States.Timeout"], "IntervalSeconds": 2, "MaxAttempts": 0, "BackoffRate": 1.5,
                     "MaxDelaySeconds": 9, "JitterStrategy": "FULL"},
                    {"ErrorEquals": ["States.ALL"]}
                ],
                "Catch": [
                    {"ErrorEquals": ["States.TaskFailed"], "ResultPath": "$.error", "Next": "Broken"},
                    {"ErrorEquals": ["States.ALL"], "Next": "Broken"}
                ],
                "ResultPath": "$.result", "Next": "Look"
            },
            "Look": {
                "Type": "Choice",
                "Choices": [
                    {"Variable": "$.result.status", "StringEquals": "DONE", "Next": "Done"},
                    {"Variable": "$.flag", "BooleanEquals": false, "Next": "Wait"}
                ],
                "Default": "Nap"
            },
            "Wait": {"Type": "Wait", "Seconds": 0, "Next": "Do"},
            "Nap": {"Type": "Wait", "SecondsPath": "$.nap", "Next": "Note"},
            "Note": {"Type": "Pass", "Result": {"a": 1}, "ResultPath": null, "Next": "Do"},
            "Done": {"Type": "Succeed"},
            "Broken": {"Type": "Fail", "ErrorPath": "$.error.Error", "Cause": "why"}
        }
    })
}

#[test]
fn every_supported_field_is_understood() {
    let machine = parse(&everything()).unwrap();
    assert_eq!((machine.timeout_seconds, machine.states.len()), (Some(60), 7));
    assert_eq!(machine.steps().into_iter().collect::<Vec<_>>(), ["replication-status"]);
    let Some(State::Task(task)) = machine.states.get("Do") else { panic!("a task") };
    let [first, second] = task.retry.as_slice() else { panic!("two retriers") };
    assert_eq!((first.max_attempts, first.backoff_rate, first.full_jitter), (0, 1.5, true));
    assert_eq!((second.interval_seconds, second.max_attempts, second.backoff_rate), (1, 3, 2.0));
    assert_eq!((second.max_delay_seconds, second.full_jitter), (None, false));
    let Some(State::Pass(pass)) = machine.states.get("Note") else { panic!("a pass") };
    assert_eq!(pass.result_path, ResultPath::Discard);
}

#[test]
fn a_resource_names_a_step() {
    assert_eq!(step_name("${RegisterFunctionArn}").unwrap(), "register");
    assert_eq!(step_name("${LaunchTest2FunctionArn}").unwrap(), "launch-test2");
    for other in
        ["register", "${FunctionArn}", "${registerFunctionArn}", "${Register}", "${A-bFunctionArn}", "arn:aws:lambda:x"]
    {
        assert!(step_name(other).unwrap_err().contains(other), "{other}");
    }
}

/// The definition with the value at `pointer` replaced, or removed where `value` is null.
fn changed(pointer: &str, field: &str, value: Value) -> Value {
    let mut definition = everything();
    let object = definition.pointer_mut(pointer).and_then(Value::as_object_mut).unwrap();
    if value.is_null() {
        object.remove(field)
    } else {
        object.insert(field.to_owned(), value)
    };
    definition
}

#[test]
fn whatever_is_unsound_is_refused_by_state_and_field() {
    let (task, choice, wait) = ("/States/Do", "/States/Look", "/States/Wait");
    let (retry, catch, rule) = ("/States/Do/Retry/0", "/States/Do/Catch/0", "/States/Look/Choices/0");
    let table = [
        ("", "StartAt", json!("Nowhere"), "`StartAt`: there is no state `Nowhere`"),
        ("", "StartAt", json!(null), "`StartAt`: is missing"),
        ("", "States", json!([]), "`States`: must be an object"),
        ("", "QueryLanguage", json!("JSONata"), "`QueryLanguage`: is not supported"),
        ("", "TimeoutSeconds", json!(0), "`TimeoutSeconds`: must be an integer from 1"),
        ("/States", "", json!({"Type": "Succeed"}), "a name has 1 to 80 characters"),
        ("/States", "Orphan", json!({"Type": "Succeed"}), "state `Orphan`: cannot be reached"),
        ("/States", "Done", json!(null), "state `Look`: field `Choices`: there is no state `Done`"),
        ("/States", "Done", json!({"Type": "Map"}), "state `Done`: field `Type`: `Map` is not supported"),
        ("/States", "Done", json!({"Type": "Succeed", "End": true}), "state `Done`: field `End`: is not supported"),
        ("/States", "Done", json!("Succeed"), "state `Done`: must be an object"),
        (task, "Parameters", json!({}), "state `Do`: field `Parameters`: is not supported"),
        (task, "InputPath", json!("$"), "state `Do`: field `InputPath`: is not supported"),
        (task, "Resource", json!("arn:x"), "state `Do`: field `Resource`: `arn:x`"),
        (task, "Resource", json!(null), "state `Do`: field `Resource`: is missing"),
        (task, "Next", json!("Gone"), "state `Do`: field `Next`: there is no state `Gone`"),
        (task, "Next", json!(null), "state `Do`: field `Next`: is missing"),
        (task, "End", json!(true), "state `Do`: field `End`: must not stand beside"),
        (task, "ResultPath", json!("$.a[0]"), "state `Do`: field `ResultPath`: `$.a[0]`"),
        (task, "ResultPath", json!(1), "state `Do`: field `ResultPath`: must be a path or null"),
        (task, "TimeoutSeconds", json!(1.5), "state `Do`: field `TimeoutSeconds`: must be an integer"),
        (task, "Retry", json!([]), "state `Do`: field `Retry`: must be a list"),
        (task, "Retry", json!([7]), "state `Do`, Retry[0]: must be an object"),
        (retry, "ErrorEquals", json!(["States.ALL"]), "Retry[0]: field `ErrorEquals`: `States.ALL` must stand alone"),
        (retry, "ErrorEquals", json!(["States.Never"]), "Retry[0]: field `ErrorEquals`: `States.Never` never occurs"),
        (retry, "ErrorEquals", json!([]), "Retry[0]: field `ErrorEquals`: must be a list"),
        (retry, "BackoffRate", json!(0.5), "Retry[0]: field `BackoffRate`: must be a number of at least 1.0"),
        (retry, "MaxAttempts", json!(-1), "Retry[0]: field `MaxAttempts`: must be an integer"),
        (retry, "IntervalSeconds", json!(0), "Retry[0]: field `IntervalSeconds`: must be an integer from 1"),
        (retry, "MaxDelaySeconds", json!(1), "Retry[0]: field `MaxDelaySeconds`: must not be less"),
        (retry, "JitterStrategy", json!("SOME"), "Retry[0]: field `JitterStrategy`: must be FULL or NONE"),
        (retry, "Next", json!("Done"), "Retry[0]: field `Next`: is not supported"),
        (
            catch,
            "ErrorEquals",
            json!(["States.ALL", "A"]),
            "Catch[0]: field `ErrorEquals`: `States.ALL` must stand alone",
        ),
        (catch, "Next", json!("Gone"), "state `Do`: field `Catch`: there is no state `Gone`"),
        (catch, "Assign", json!({}), "Catch[0]: field `Assign`: is not supported"),
        (choice, "Choices", json!(null), "state `Look`: field `Choices`: is missing"),
        (choice, "Default", json!("Gone"), "state `Look`: field `Default`: there is no state `Gone`"),
        (choice, "Next", json!("Done"), "state `Look`: field `Next`: is not supported"),
        (rule, "Variable", json!("$.a-b"), "Choices[0]: field `Variable`: `$.a-b`"),
        (rule, "NumericEquals", json!(1), "Choices[0]: field `NumericEquals`: is not supported"),
        (rule, "StringEquals", json!(null), "Choices[0]: field `StringEquals`: is missing"),
        (rule, "BooleanEquals", json!(true), "Choices[0]: field `BooleanEquals`: must not stand beside"),
        (wait, "Seconds", json!(null), "state `Wait`: field `Seconds`: is missing"),
        (wait, "SecondsPath", json!("$.n"), "state `Wait`: field `SecondsPath`: must not stand beside"),
        (wait, "Timestamp", json!("x"), "state `Wait`: field `Timestamp`: is not supported"),
        (wait, "End", json!(false), "state `Wait`: field `End`: must not stand beside"),
        ("/States/Broken", "CausePath", json!("$.x"), "state `Broken`: field `CausePath`: must not stand beside"),
    ];
    for (pointer, field, value, expected) in table {
        let error = parse(&changed(pointer, field, value)).unwrap_err().to_string();
        assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
    }
}

#[test]
fn a_task_may_wait_for_its_token() {
    let resource = "arn:aws:states:::lambda:invoke.waitForTaskToken";
    let parameters = json!({"FunctionName": "${AskFirstFunctionArn}", "Payload": {"t.$": "$$.Task.Token"}});
    let task = json!({"Type": "Task", "Resource": resource, "Parameters": parameters, "HeartbeatSeconds": 5,
        "TimeoutSeconds": 6, "Retry": [{"ErrorEquals": ["States.HeartbeatTimeout"]}], "End": true});
    let with = |pointer: &str, field: &str, value: Value| {
        let mut task = task.clone();
        task.pointer_mut(pointer).unwrap()[field] = value;
        parse(&json!({"StartAt": "A", "States": {"A": task}}))
    };
    let machine = with("", "Comment", json!("c")).unwrap();
    assert_eq!(machine.steps().into_iter().collect::<Vec<_>>(), ["ask-first"]);
    for (pointer, field, value, expected) in [
        ("", "Resource", json!("arn:aws:states:::lambda:invoke"), "field `Resource`: `arn:aws:states:::lambda:invoke`"),
        ("", "Resource", json!("${AskFunctionArn}"), "field `HeartbeatSeconds`: is not supported"),
        ("", "HeartbeatSeconds", json!(6), "field `HeartbeatSeconds`: must be less than TimeoutSeconds"),
        ("", "HeartbeatSecondsPath", json!("$.x"), "field `HeartbeatSecondsPath`: is not supported"),
        ("", "Parameters", json!({}), "state `A`, Parameters: field `FunctionName`: is missing"),
        ("/Parameters", "FunctionName", json!("ask"), "Parameters: field `FunctionName`: `ask`"),
        ("/Parameters", "Payload", json!({"a": 1}), "Parameters: field `Payload`: must hold `$$.Task.Token`"),
        ("/Parameters", "Payload", json!({"a.$": "$$.State.Name"}), "Parameters: field `Payload`: `$$.State.Name`"),
        ("/Parameters", "Qualifier", json!("1"), "Parameters: field `Qualifier`: is not supported"),
    ] {
        let error = with(pointer, field, value).unwrap_err().to_string();
        assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
    }
}

#[test]
fn a_machine_that_cannot_end_is_refused() {
    let definition = json!({"StartAt": "A", "States": {"A": {"Type": "Pass", "Next": "A"}}});
    assert!(parse(&definition).unwrap_err().to_string().contains("no terminal state"));
}

#[test]
fn what_is_no_json_or_stands_twice_is_refused() {
    assert!(Machine::parse("{").unwrap_err().to_string().contains("is not JSON"));
    let twice = r#"{"StartAt": "A", "States": {"A": {"Type": "Succeed"}, "A": {"Type": "Succeed"}}}"#;
    assert!(Machine::parse(twice).unwrap_err().to_string().contains("`A` stands twice"));
}
