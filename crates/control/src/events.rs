//! What changed in a server becomes events: decided with the write (the outbox), published after it.
//!
//! A crash between the two publishes an event again; readers tell by the sequence, which counts without gaps.

use rehost_model::event::{EVENT_VERSION, Event, EventDetail, EventType};
use rehost_model::replication::{DataReplicationState, InitiationStep};
use rehost_model::{SourceServer, Timestamp};
use serde_json::{Map, Value, json};

use crate::ports::{PortResult, Ports};
use crate::repo;

/// Adds an event to the server's outbox; `data` is a JSON object.
pub(crate) fn record(server: &mut SourceServer, now: Timestamp, detail_type: EventType, data: Value) {
    server.internal.event_sequence += 1;
    let data = match data {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    server.internal.outbox.push(Event {
        source: "rehost".to_owned(),
        detail_type,
        time: now,
        detail: EventDetail {
            version: EVENT_VERSION,
            source_server_id: server.source_server_id.clone(),
            sequence: server.internal.event_sequence,
            data,
        },
    });
}

/// As [`record`], unless the same stands in the outbox already: who comes again because it could not be published would only
/// add to what cannot be published.
pub(crate) fn record_once(server: &mut SourceServer, now: Timestamp, detail_type: EventType, data: Value) {
    let is_same = |e: &Event| e.detail_type == detail_type && data.as_object() == Some(&e.detail.data);
    if !server.internal.outbox.iter().any(is_same) {
        record(server, now, detail_type, data);
    }
}

/// Compares a server before and after a change and records every transition in between.
pub(crate) fn record_changes(before: &SourceServer, after: &mut SourceServer, now: Timestamp) {
    record_initiation_steps(before, after, now);
    record_replication_state(before, after, now);
    let (from, to) = (before.life_cycle.state, after.life_cycle.state);
    if from != to {
        record(after, now, EventType::LifecycleStateChange, json!({"previousState": from, "state": to}));
    }
    let (from, to) =
        (before.data_replication_info.last_snapshot_date_time, after.data_replication_info.last_snapshot_date_time);
    if from != to {
        record(after, now, EventType::SnapshotCreated, json!({"lastSnapshotDateTime": to}));
    }
    record_disks(before, after, now);
    record_replication_server(before, after, now);
    let (from, to) = (&before.internal.observed.fence, after.internal.observed.fence.clone());
    if *from != to {
        record(after, now, EventType::FenceChange, json!({"previous": from, "fence": to}));
    }
}

/// What came, grew, or is replicated from now on; the first plan of an enrolment is none of these.
fn record_disks(before: &SourceServer, after: &mut SourceServer, now: Timestamp) {
    let unreplicated = |server: &SourceServer| -> Vec<_> { server.new_disks().cloned().collect() };
    let known = unreplicated(before);
    for disk in unreplicated(after).iter().filter(|disk| !known.contains(disk)) {
        let data = json!({"change": "APPEARED", "deviceName": disk.device_name, "sizeBytes": disk.size_bytes});
        record(after, now, EventType::DiskChange, data);
    }
    for disk in after.internal.staging.clone() {
        let old = before.internal.staging.iter().find(|old| old.device_name == disk.device_name);
        let change = match old {
            None => "ADDED",
            Some(old) if old.size_bytes < disk.size_bytes => "GROWN",
            Some(_) => continue,
        };
        let data = json!({"change": change, "deviceName": disk.device_name, "sizeBytes": disk.size_bytes});
        record(after, now, EventType::DiskChange, data);
    }
}

fn record_replication_server(before: &SourceServer, after: &mut SourceServer, now: Timestamp) {
    let (from, to) = (before.internal.replicator.clone(), after.internal.replicator.clone());
    if from != to {
        record(after, now, EventType::ReplicationServerChange, json!({"previous": from, "replicatorID": to}));
    }
}

fn record_initiation_steps(before: &SourceServer, after: &mut SourceServer, now: Timestamp) {
    let steps = |server: &SourceServer| -> Vec<InitiationStep> {
        server.data_replication_info.data_replication_initiation.as_ref().map(|i| i.steps.clone()).unwrap_or_default()
    };
    let old = steps(before);
    let changed: Vec<_> = steps(after).into_iter().filter(|step| !old.contains(step)).collect();
    // A new initiation resets every step; its beginning is told by the replication state, not by eleven events.
    if old.is_empty() {
        return;
    }
    for step in changed {
        record(after, now, EventType::InitiationStepChange, json!({"name": step.name, "status": step.status}));
    }
}

fn record_replication_state(before: &SourceServer, after: &mut SourceServer, now: Timestamp) {
    let (from, to) =
        (before.data_replication_info.data_replication_state, after.data_replication_info.data_replication_state);
    if from == to {
        return;
    }
    let error = json!(after.data_replication_info.data_replication_error);
    record(
        after,
        now,
        EventType::DataReplicationStateChange,
        json!({"previousState": from, "state": to, "dataReplicationError": error}),
    );
    let stalled = |state| state == DataReplicationState::Stalled;
    if stalled(from) != stalled(to) {
        let state = if stalled(to) { "STALLED" } else { "NOT_STALLED" };
        record(after, now, EventType::DataReplicationStalledChange, json!({"state": state}));
    }
}

/// Publishes what stands in the outbox of a server that was just written, and empties it.
pub(crate) async fn publish_outbox(ports: &Ports, server: &SourceServer) -> PortResult<()> {
    let Some(last) = server.internal.outbox.last().map(|e| e.detail.sequence) else {
        return Ok(());
    };
    for event in &server.internal.outbox {
        ports.events.publish(event).await?;
    }
    let id = server.source_server_id.as_str();
    let emptied = repo::update(ports, id, |server: &mut SourceServer| {
        server.internal.outbox.retain(|e| e.detail.sequence > last);
        Ok::<_, crate::PortError>(())
    });
    emptied.await.map(|_| ())
}
