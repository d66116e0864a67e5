//! The contract of the state machines.
//!
//! Tasks hand their tokens over by writing them to the table, as Step Functions can by itself. moto loses the cause of a
//! failure that is reported to a task: that part is shown on ministack, which in turn keeps no heartbeats. Both take reports
//! for executions that were stopped, so that a token dies with its execution is shown on neither.

use async_trait::async_trait;
use rehost_aws::{RegionConfig, StepFunctions};
use rehost_control::contract;
use rehost_control::contract::workflows::{Machines, Tokens};
use rehost_model::{ExecutionId, TaskToken};
use rehost_tests::aws::stack::{make_machine, make_table};
use rehost_tests::aws::{Answer, Call, Hook, MiniStack, Wire};
use serde_json::{Value, json};

use crate::world::{World, at};

const TABLE: &str = "tokens";
const MACHINES: Machines<'static> =
    Machines { echo: "echo", fails: "fails", waits: "waits", awaits: "awaits", listens: "listens" };

fn only(state: Value) -> Value {
    json!({"StartAt": "A", "States": {"A": state}})
}

/// Writes its token down and waits. moto takes heartbeats only of tasks that expect some.
fn awaits(heartbeat_seconds: u64) -> Value {
    let item = json!({
        "kind": {"S": "TOKEN"}, "id": {"S.$": "$$.Execution.Name"}, "token": {"S.$": "$$.Task.Token"}
    });
    only(json!({
        "Type": "Task", "Resource": "arn:aws:states:::aws-sdk:dynamodb:putItem.waitForTaskToken",
        "Parameters": {"TableName": TABLE, "Item": item},
        "TimeoutSeconds": 3600, "HeartbeatSeconds": heartbeat_seconds, "End": true
    }))
}

fn make_machines(port: u16) {
    make_table(Wire::to(port), TABLE).unwrap();
    let machines = [
        (MACHINES.echo, only(json!({"Type": "Pass", "End": true}))),
        (MACHINES.fails, only(json!({"Type": "Fail", "Error": "Refused", "Cause": "as asked"}))),
        (MACHINES.waits, only(json!({"Type": "Wait", "Seconds": 3600, "End": true}))),
        (MACHINES.awaits, awaits(1800)),
        (MACHINES.listens, awaits(2)),
    ];
    for (name, definition) in machines {
        make_machine(port, name, &definition).unwrap();
    }
}

/// Reads the tokens from the table.
struct Table(u16);

#[async_trait]
impl Tokens for Table {
    async fn of(&self, execution: &ExecutionId) -> TaskToken {
        let key = json!({"kind": {"S": "TOKEN"}, "id": {"S": execution}});
        loop {
            let (wire, body) = (Wire::to(self.0), json!({"TableName": TABLE, "Key": key, "ConsistentRead": true}));
            let read = move || wire.json("dynamodb", "DynamoDB_20120810.GetItem", &body).unwrap();
            let answer = tokio::task::spawn_blocking(read).await.unwrap();
            if let Some(token) = answer["Item"]["token"]["S"].as_str() {
                return TaskToken(token.to_owned());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_machines_keep_their_contract() {
    let world = World::new().await;
    let port = world.port;
    tokio::task::spawn_blocking(move || make_machines(port)).await.unwrap();
    let workflows = StepFunctions::new(&world.config, &world.sdk);
    contract::workflows::executions(&workflows, MACHINES).await;
    contract::workflows::tasks(&workflows, MACHINES, &Table(port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_fails_as_it_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let start = move || {
        let ministack = MiniStack::start(&path, &[]).unwrap();
        make_machines(ministack.port());
        ministack
    };
    let ministack = tokio::task::spawn_blocking(start).await.unwrap();
    let config = config();
    let workflows = StepFunctions::new(&config, &at(&config, &ministack.endpoint()).await);
    contract::workflows::a_failure_of_a_task(&workflows, MACHINES, &Table(ministack.port())).await;
}

fn config() -> RegionConfig {
    let value = |name: &str| match name {
        "AWS_REGION" => rehost_tests::aws::emulators::REGION,
        "REHOST_ACCOUNT" => rehost_tests::aws::emulators::ACCOUNT,
        "REHOST_STACK" => rehost_tests::aws::stack::STACK,
        "REHOST_KEY_ARN" => "arn:aws:kms:x",
        "REHOST_ENDPOINT" => "https://api.rehost.invalid",
        "REHOST_STAGING_SUBNET" | "REHOST_TARGET_SUBNET" => "subnet-0",
        "REHOST_STAGING_SECURITY_GROUP" => "sg-0",
        "REHOST_STAGING_LAUNCH_TEMPLATE" | "REHOST_CONVERSION_LAUNCH_TEMPLATE" => "lt-0",
        "REHOST_CA_FINGERPRINT" | "REHOST_POLL_SECONDS" => "",
        _ => "unused",
    };
    RegionConfig::read(&|name| Some(value(name).to_owned())).unwrap()
}

/// Answers `PutEvents` as EventBridge does when it has too much to do for an entry.
pub(crate) struct RefuseEntries;

#[async_trait]
impl Hook for RefuseEntries {
    async fn before(&self, call: &Call) -> Option<Answer> {
        let entry = json!({"ErrorCode": "ThrottlingException", "ErrorMessage": "Rate exceeded"});
        let body = json!({"FailedEntryCount": 1, "Entries": [entry]});
        (call.action == "PutEvents").then(|| Answer::new(200, "application/x-amz-json-1.1", body.to_string()))
    }
}
