//! Metrics in CloudWatch's embedded format: lines of the log that CloudWatch takes apart.
//!
//! Namespace `Rehost`. Of every invocation, by `Stack` and `Function`: `Duration`, and one of `Done`, `InProgress`, `Stopped`,
//! `RetryableErrors` and `Errors` (1 each; nothing where it does not apply, since every metric that exists has its price).
//! Of replication, by `Stack`: `LagSeconds` and `BacklogBytes`, one value a server, and `ReplicatingServers` and
//! `StalledServers`; of each run of the reaper `Leftovers`. Servers' ids stand beside the values and are no dimension: a metric a server would cost more than the
//! functions do. Source: the embedded metric format specification of CloudWatch, of which at most 100 values a metric.

use std::time::Duration;

use rehost_control::steps::StepError;
use rehost_model::SourceServer;
use rehost_model::replication::DataReplicationState;
use serde_json::{Value, json};

use crate::clock::millis;
use crate::invocation::About;

const NAMESPACE: &str = "Rehost";

/// The most values that a metric may have in one line.
const MAX_VALUES: usize = 100;

/// How an invocation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With this `status`, or `DONE` where there is none.
    Answered(String),
    /// With an error of this name.
    Failed(String),
}

impl Outcome {
    pub(crate) fn of(result: &Result<Value, StepError>) -> Self {
        match result {
            Ok(answer) => Self::Answered(answer.get("status").and_then(Value::as_str).unwrap_or("DONE").to_owned()),
            Err(error) => Self::Failed(error.name.clone()),
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Answered(text) | Self::Failed(text) => text,
        }
    }

    fn counter(&self) -> &'static str {
        match self {
            Self::Failed(name) if name.starts_with("Retryable") => "RetryableErrors",
            Self::Failed(_) => "Errors",
            Self::Answered(status) if status == "IN_PROGRESS" => "InProgress",
            Self::Answered(status) if status == "STOPPED" => "Stopped",
            Self::Answered(_) => "Done",
        }
    }
}

/// Writes a line of metrics to standard output.
pub(crate) fn write(line: &Value) {
    use std::io::Write as _;
    // A log that cannot be written to is no reason to fail what was done.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// The line about an invocation.
pub(crate) fn invocation(stack: &str, about: &About, outcome: &Outcome, took: Duration, at_ms: u64) -> Value {
    let counter = outcome.counter();
    let metrics = json!([metric("Duration", "Milliseconds"), metric(counter, "Count")]);
    json!({
        "_aws": header(at_ms, &["Stack", "Function"], &metrics),
        "Stack": stack,
        "Function": about.function,
        "Duration": millis(took),
        counter: 1,
        "outcome": outcome.text(),
        "requestId": about.request_id,
        "xrayTraceId": about.trace_id,
        "execution": about.execution,
        "sourceServerID": about.server,
        "jobID": about.job,
    })
}

/// The lines about the servers that replicate; none when none does.
pub(crate) fn replication(stack: &str, servers: &[SourceServer], at_ms: u64) -> Vec<Value> {
    let states = || servers.iter().map(|server| server.data_replication_info.data_replication_state);
    let active = states().filter(|state| state.is_active()).count();
    if active == 0 {
        return Vec::new();
    }
    let stalled = states().filter(|state| *state == DataReplicationState::Stalled).count();
    let metrics = json!([metric("ReplicatingServers", "Count"), metric("StalledServers", "Count")]);
    let counts = json!({
        "_aws": header(at_ms, &["Stack"], &metrics),
        "Stack": stack,
        "ReplicatingServers": active,
        "StalledServers": stalled,
    });
    let behind: Vec<_> = servers.iter().filter_map(Behind::of).collect();
    std::iter::once(counts).chain(behind.chunks(MAX_VALUES).map(|some| lag(stack, some, at_ms))).collect()
}

/// The line about what the reaper found and could not remove.
pub(crate) fn leftovers(stack: &str, left: usize, at_ms: u64) -> Value {
    let metrics = json!([metric("Leftovers", "Count")]);
    json!({"_aws": header(at_ms, &["Stack"], &metrics), "Stack": stack, "Leftovers": left})
}

/// How far a server's copy is behind.
struct Behind<'a> {
    server: &'a str,
    seconds: u64,
    bytes: u64,
}

impl<'a> Behind<'a> {
    fn of(server: &'a SourceServer) -> Option<Self> {
        let info = &server.data_replication_info;
        let seconds = info.lag_duration.filter(|_| info.data_replication_state.is_active())?.seconds();
        let bytes = info.replicated_disks.iter().map(|disk| disk.backlogged_storage_bytes).sum();
        Some(Self { server: server.source_server_id.as_str(), seconds, bytes })
    }
}

fn lag(stack: &str, behind: &[Behind<'_>], at_ms: u64) -> Value {
    let metrics = json!([metric("LagSeconds", "Seconds"), metric("BacklogBytes", "Bytes")]);
    json!({
        "_aws": header(at_ms, &["Stack"], &metrics),
        "Stack": stack,
        "LagSeconds": behind.iter().map(|one| one.seconds).collect::<Vec<_>>(),
        "BacklogBytes": behind.iter().map(|one| one.bytes).collect::<Vec<_>>(),
        "servers": behind.iter().map(|one| one.server).collect::<Vec<_>>(),
    })
}

fn header(at_ms: u64, dimensions: &[&str], metrics: &Value) -> Value {
    let of = json!({"Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": metrics});
    json!({"Timestamp": at_ms, "CloudWatchMetrics": [of]})
}

fn metric(name: &str, unit: &str) -> Value {
    json!({"Name": name, "Unit": unit})
}

#[cfg(test)]
mod tests;
