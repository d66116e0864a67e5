//! What happened to a server, by its events: in words that are the same in every region when the same happened.

use std::collections::BTreeMap;

use serde_json::Value;

/// The events of the server `id`, in their order, without what is by chance: identifiers, times, and the states of the replication,
/// which come and go with what the source writes. A step of the initiation that a region has no need of counts as done.
///
/// `events` are in the envelope of EventBridge (`detail-type`, `detail`); one that was published twice counts once.
#[must_use]
pub fn history(events: &[Value], id: &str) -> Vec<String> {
    let of_server = events.iter().filter(|event| event["detail"]["sourceServerID"] == id);
    let ordered: BTreeMap<u64, &Value> =
        of_server.filter_map(|event| Some((event["detail"]["sequence"].as_u64()?, event))).collect();
    let mut jobs = Vec::new();
    ordered.into_values().filter_map(|event| line(event, &mut jobs)).collect()
}

fn line(event: &Value, jobs: &mut Vec<String>) -> Option<String> {
    let detail = &event["detail"];
    let text = |name: &str| detail[name].as_str().unwrap_or("none");
    let kind = event["detail-type"].as_str().unwrap_or_default().trim_start_matches("Source Server ");
    Some(match kind {
        "Data Replication State Change" => return None,
        "Lifecycle State Change" => format!("{kind}: {} -> {}", text("previousState"), text("state")),
        "Initiation Step Change" => match text("status") {
            "SUCCEEDED" | "SKIPPED" => format!("{kind}: {} done", text("name")),
            "FAILED" => format!("{kind}: {} failed", text("name")),
            _ => return None,
        },
        "Job Change" => {
            format!("{kind}: {} {} {}", job(text("jobID"), jobs), text("status"), text("launchStatus"))
        }
        "Launch Result" => format!("{kind}: {} {}", job(text("jobID"), jobs), text("launchStatus")),
        "Replication Server Change" if detail["replicatorID"].is_null() => format!("{kind}: none"),
        "Replication Server Change" => format!("{kind}: one"),
        _ => kind.to_owned(),
    })
}

/// Jobs are told apart by the order in which they came.
fn job(id: &str, jobs: &mut Vec<String>) -> String {
    let at = jobs.iter().position(|known| known == id).unwrap_or_else(|| {
        jobs.push(id.to_owned());
        jobs.len() - 1
    });
    format!("job {}", at + 1)
}

/// Where two histories part, a line each; nothing when they are the same.
#[must_use]
pub fn difference(one: &[String], other: &[String]) -> Option<String> {
    if one == other {
        return None;
    }
    let at = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    let line = |history: &[String]| history.get(at).cloned().unwrap_or_else(|| "(its end)".to_owned());
    Some(format!("after {at} events: {} / {}", line(one), line(other)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, sequence: u64, mut detail: Value) -> Value {
        detail["sourceServerID"] = json!("s-1");
        detail["sequence"] = json!(sequence);
        json!({"source": "rehost", "detail-type": format!("Source Server {kind}"), "detail": detail})
    }

    #[test]
    fn events_are_told_in_order_once_and_without_identifiers() {
        let events = [
            event("Job Change", 3, json!({"jobID": "mgnjob-b", "status": "PENDING"})),
            event("Registered", 1, json!({})),
            event("Job Change", 2, json!({"jobID": "mgnjob-a", "status": "PENDING"})),
            event("Registered", 1, json!({})),
            event("Launch Result", 4, json!({"jobID": "mgnjob-b", "launchStatus": "LAUNCHED"})),
            event("Data Replication State Change", 5, json!({"state": "BACKLOG"})),
            event("Initiation Step Change", 6, json!({"name": "WAIT", "status": "SKIPPED"})),
            json!({"detail-type": "Source Server Registered", "detail": {"sourceServerID": "s-2", "sequence": 1}}),
        ];
        let told = history(&events, "s-1");
        let expected = [
            "Registered",
            "Job Change: job 1 PENDING none",
            "Job Change: job 2 PENDING none",
            "Launch Result: job 2 LAUNCHED",
            "Initiation Step Change: WAIT done",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_difference_is_named() {
        let history = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert_eq!(difference(&history(&["a"]), &history(&["a"])), None);
        assert_eq!(difference(&history(&["a", "b"]), &history(&["a"])).unwrap(), "after 1 events: b / (its end)");
        assert_eq!(difference(&history(&["a"]), &history(&["c"])).unwrap(), "after 0 events: a / c");
    }
}
