//! What exists on behalf of servers, and what of it nobody needs.

use anyhow::Result;
use rehost_api::leftovers::LeftoversRequest;
use rehost_control::reaper::{Done, Leftovers, Resource};
use rehost_model::Timestamp;

use super::{out, out_json};
use crate::args::LeftoversArgs;
use crate::client::Mgn;
use crate::own;
use crate::show::{Table, brief, duration};

/// How much of an error is shown in a table; characters.
const ERROR_SHOWN: usize = 60;

/// Shows them, or removes them.
pub(super) async fn run(mgn: &Mgn, args: &LeftoversArgs, json: bool) -> Result<()> {
    let found = own::leftovers(&mgn.target, &LeftoversRequest { reap: args.reap }).await?;
    if json { out_json(&found) } else { out(described(&found, args.all)) }
}

fn described(found: &Leftovers, all: bool) -> String {
    let left = found.left().count();
    let in_use = found.resources.len() - left;
    let mut table = Table::new(&["KIND", "ID", "SERVER", "PURPOSE", "AGE", "MONTHLY", "WHY", "DONE"]);
    let shown = found.resources.iter().filter(|resource| all || resource.why.is_some());
    for resource in shown {
        table.row(row(resource, found.checked_date_time));
    }
    let mut text = if left > 0 || all && in_use > 0 { table.to_string() } else { String::new() };
    text.push_str(&format!("{left} left over, {in_use} in use\n"));
    if all && !found.costs.is_empty() {
        let mut costs = Table::new(&["SERVER", "MONTHLY", "SO FAR", ""]);
        for cost in &found.costs {
            let (monthly, so_far) = (format!("{:.2}", cost.monthly), format!("{:.2}", cost.so_far));
            costs.row(vec![cost.server.to_string(), monthly, so_far, cost.currency.clone()]);
        }
        text.push_str(&format!("\n{costs}"));
    }
    text
}

fn row(resource: &Resource, now: Timestamp) -> Vec<String> {
    let age = resource.since.map(|since| duration(now.ms_since(since) / 1000));
    vec![
        name(&resource.kind),
        resource.id.clone().unwrap_or_else(|| "-".to_owned()),
        resource.server.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        resource.purpose.map_or("-", rehost_model::ledger::Purpose::as_tag).to_owned(),
        age.unwrap_or_else(|| "-".to_owned()),
        resource.monthly.map_or_else(|| "-".to_owned(), |monthly| format!("{monthly:.2}")),
        resource.why.map_or_else(|| "-".to_owned(), |why| name(&why).to_lowercase().replace('_', " ")),
        done(&resource.done),
    ]
}

fn done(done: &Done) -> String {
    match done {
        Done::Nothing => "-".to_owned(),
        Done::Removed => "removed".to_owned(),
        Done::StruckOut => "struck out".to_owned(),
        Done::WrittenDown => "written down".to_owned(),
        Done::Marked => "goes the next time".to_owned(),
        Done::Failed(error) => format!("failed: {}", brief(error, ERROR_SHOWN)),
    }
}

/// The name of a variant as it stands in JSON.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rehost_control::reaper::Why;
    use rehost_model::ServerId;
    use rehost_model::ledger::{Purpose, ResourceKind};

    use super::*;

    fn resource(why: Option<Why>) -> Resource {
        Resource {
            kind: ResourceKind::Volume,
            id: Some("vol-00000000000000001".to_owned()),
            server: Some("s-00000000000000001".parse::<ServerId>().unwrap()),
            job: None,
            purpose: Some(Purpose::Staging),
            since: Some(Timestamp::from_unix_ms(0)),
            monthly: Some(8.0),
            why,
            done: Done::Nothing,
        }
    }

    fn found(resources: Vec<Resource>) -> Leftovers {
        Leftovers { checked_date_time: Timestamp::from_unix_ms(7_200_000), resources, costs: vec![] }
    }

    #[test]
    fn only_what_is_left_over_is_shown_unless_all_is_asked_for() {
        let found = found(vec![resource(None), resource(Some(Why::ReplicationEnded))]);
        let text = described(&found, false);
        assert!(text.ends_with("1 left over, 1 in use\n"), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("2h 00m  8.00     replication ended"), "{text}");
        assert_eq!(described(&found, true).lines().count(), 4);
    }

    #[test]
    fn nothing_is_said_in_one_line() {
        assert_eq!(described(&found(vec![]), true), "0 left over, 0 in use\n");
    }
}
