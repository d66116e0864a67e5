//! Snapshots that nobody asks for: when one is due, and the start of it.

use rehost_model::replication::DataReplicationState;
use rehost_model::settings::SnapshotSchedule;
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{ExecutionId, ServerId, SourceServer, Timestamp};
use serde_json::json;

use crate::ports::{PortResult, Ports};
use crate::{repo, steps};

/// The time at which a snapshot was due, if one is by now: whole intervals after the last one. Later calls give the same time
/// until the next interval is over, so that an attempt that failed is not repeated before that.
#[must_use]
pub fn due(now: Timestamp, last: Timestamp, schedule: SnapshotSchedule) -> Option<Timestamp> {
    let every_ms = schedule.every_minutes.checked_mul(60_000).filter(|ms| *ms > 0)?;
    let intervals = now.ms_since(last) / every_ms;
    (intervals > 0).then(|| last.plus_ms(intervals * every_ms))
}

/// Goes on with snapshots that were cut off, and starts those that are due. To be called every few seconds.
///
/// # Errors
/// Those of the ports; what was started until then stays.
pub async fn tick(ports: &Ports) -> PortResult<()> {
    let went_on = steps::go_on_with_snapshots(ports).await;
    for server in repo::list::<SourceServer>(ports, "").await? {
        if let Some(due) = due_for(ports, &server).await? {
            start(ports, &server.source_server_id, due).await?;
        }
    }
    went_on
}

async fn due_for(ports: &Ports, server: &SourceServer) -> PortResult<Option<Timestamp>> {
    let follows = server.data_replication_info.data_replication_state == DataReplicationState::Continuous;
    // A job takes a snapshot of its own; what is leaving needs none.
    if !follows || server.is_leaving() || server.is_archived || server.internal.active_job.is_some() {
        return Ok(None);
    }
    let (now, schedule) = (ports.clock.now(), server.internal.replication.settings.snapshot_schedule);
    // The first one is the migration's own.
    let Some(confirmed) = server.data_replication_info.last_snapshot_date_time else { return Ok(None) };
    if due(now, confirmed, schedule).is_none() {
        return Ok(None);
    }
    let sets: Vec<SnapshotSet> = repo::list(ports, &format!("{}/", server.source_server_id)).await?;
    let under_way = sets.iter().any(|set| set.state != SnapshotSetState::Launchable);
    let last = sets.iter().map(|set| set.created).max().unwrap_or(confirmed);
    Ok(due(now, last, schedule).filter(|_| !under_way))
}

async fn start(ports: &Ports, server: &ServerId, due: Timestamp) -> PortResult<()> {
    let execution = ExecutionId(format!("snapshot-{server}-{}", due.unix_ms() / 1000));
    let input = json!({"execution": execution, "sourceServerID": server});
    ports.workflows.start("snapshot", &execution, input).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_unix_ms(minutes * 60_000)
    }

    fn every(minutes: u64) -> SnapshotSchedule {
        SnapshotSchedule { every_minutes: minutes }
    }

    #[test]
    fn a_snapshot_is_due_when_its_interval_is_over() {
        for (now, schedule, expected) in [
            (at(100), 15, None),
            (at(114), 15, None),
            (at(115), 15, Some(at(115))),
            (at(129), 15, Some(at(115))),
            (at(130), 15, Some(at(130))),
            (at(9), 15, None),
            (at(9_999), 0, None),
            (at(9_999), u64::MAX, None),
        ] {
            assert_eq!(due(now, at(100), every(schedule)), expected, "{now} {schedule}");
        }
    }

    proptest! {
        #[test]
        fn what_is_due_was_due_before_now_and_less_than_an_interval_ago(
            now in 0i64..1_000_000, last in 0i64..1_000_000, minutes in 1u64..50_000,
        ) {
            match due(at(now), at(last), every(minutes)) {
                Some(time) => {
                    prop_assert!(time <= at(now) && time > at(last));
                    prop_assert!(at(now).ms_since(time) < minutes * 60_000);
                    prop_assert_eq!(time.ms_since(at(last)) % (minutes * 60_000), 0);
                }
                None => prop_assert!(at(now).ms_since(at(last)) < minutes * 60_000),
            }
        }
    }
}
