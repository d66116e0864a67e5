use rehost_model::IsoDuration;
use rehost_model::replication::ReplicatedDisk;

use super::*;
use crate::tests::TestRegion;

const AT_MS: u64 = 1_900_000_000_000;

fn outcome(result: &Result<Value, StepError>) -> Value {
    let about = About { function: "snapshot", request_id: "r-1".to_owned(), ..About::default() };
    invocation("rehost", &about, &Outcome::of(result), Duration::from_millis(42), AT_MS)
}

fn failure(name: &str) -> Result<Value, StepError> {
    Err(StepError { name: name.to_owned(), cause: "because".to_owned() })
}

/// What the specification of the format demands of a line.
fn check(line: &Value) {
    let of = &line["_aws"]["CloudWatchMetrics"][0];
    assert_eq!((line["_aws"]["Timestamp"].as_u64(), of["Namespace"].as_str()), (Some(AT_MS), Some("Rehost")));
    for dimension in of["Dimensions"][0].as_array().unwrap() {
        assert!(line[dimension.as_str().unwrap()].is_string(), "{line}");
    }
    for metric in of["Metrics"].as_array().unwrap() {
        let value = &line[metric["Name"].as_str().unwrap()];
        let values = value.as_array().map_or_else(|| vec![value.clone()], Clone::clone);
        assert!(!values.is_empty() && values.len() <= MAX_VALUES && values.iter().all(Value::is_u64), "{line}");
    }
}

#[test]
fn each_outcome_counts_once() {
    let table = [
        (Ok(json!({"status": "DONE"})), "Done", "DONE"),
        (Ok(json!({"other": 1})), "Done", "DONE"),
        (Ok(Value::Null), "Done", "DONE"),
        (Ok(json!({"status": "OPEN"})), "Done", "OPEN"),
        (Ok(json!({"status": "IN_PROGRESS", "waitSeconds": 5})), "InProgress", "IN_PROGRESS"),
        (Ok(json!({"status": "STOPPED"})), "Stopped", "STOPPED"),
        (failure("RetryableThrottled"), "RetryableErrors", "RetryableThrottled"),
        (failure("QuotaExceeded"), "Errors", "QuotaExceeded"),
    ];
    for (result, counter, text) in table {
        let line = outcome(&result);
        check(&line);
        assert_eq!((&line[counter], &line["outcome"]), (&json!(1), &json!(text)));
        let counters = ["Done", "InProgress", "Stopped", "RetryableErrors", "Errors"];
        assert_eq!(counters.iter().filter(|name| line.get(**name).is_some()).count(), 1, "{line}");
        assert_eq!((&line["Function"], &line["Duration"]), (&json!("snapshot"), &json!(42)));
    }
}

fn behind(server: &SourceServer, state: DataReplicationState, lag: Option<u64>, backlog: &[u64]) -> SourceServer {
    let mut server = server.clone();
    let info = &mut server.data_replication_info;
    info.data_replication_state = state;
    info.lag_duration = lag.map(IsoDuration::from_seconds);
    let disk = |bytes: &u64| ReplicatedDisk { backlogged_storage_bytes: *bytes, ..ReplicatedDisk::default() };
    info.replicated_disks = backlog.iter().map(disk).collect();
    server
}

#[tokio::test]
async fn replication_is_told_for_those_that_replicate() {
    use DataReplicationState::{Continuous, Disconnected, Stalled, Stopped};
    let one = TestRegion::new().await.server().await;
    assert!(replication("rehost", &[], AT_MS).is_empty());
    assert!(replication("rehost", &[behind(&one, Disconnected, Some(9), &[1])], AT_MS).is_empty());
    let servers = [
        behind(&one, Continuous, Some(3), &[5, 7]),
        behind(&one, Stalled, Some(600), &[1 << 30]),
        behind(&one, Continuous, None, &[]),
        behind(&one, Stopped, None, &[]),
    ];
    let lines = replication("rehost", &servers, AT_MS);
    lines.iter().for_each(check);
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["ReplicatingServers"], &lines[0]["StalledServers"]), (&json!(3), &json!(1)));
    assert_eq!((&lines[1]["LagSeconds"], &lines[1]["BacklogBytes"]), (&json!([3, 600]), &json!([12, 1 << 30])));
    assert_eq!(lines[1]["servers"], json!([one.source_server_id, one.source_server_id]));
}

#[tokio::test]
async fn many_servers_take_several_lines() {
    let one = TestRegion::new().await.server().await;
    let servers = vec![behind(&one, DataReplicationState::Continuous, Some(1), &[1]); 250];
    let lines = replication("rehost", &servers, AT_MS);
    lines.iter().for_each(check);
    let counts: Vec<_> = lines[1..].iter().map(|line| line["servers"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [100, 100, 50]);
}

#[test]
fn leftovers_are_counted_also_when_there_are_none() {
    for left in [0, 3] {
        let line = leftovers("rehost", left, AT_MS);
        check(&line);
        assert_eq!(line["Leftovers"], left);
    }
}
