//! Snapshots: the list, one of them, one more, and whether one still holds what it held.

use std::time::Duration;

use anyhow::{Result, bail};
use rehost_api::snapshots::{ListRequest, StatusRequest, TakeRequest, VerifyRequest};
use rehost_control::snapshots::{Difference, SnapshotView, TakenStatus, Verified, VerifyFrom};
use rehost_model::snapshot::SnapshotSetState;
use rehost_model::{Epoch, ExecutionId, ServerId};
use tokio::time::Instant;

use super::{out, out_json};
use crate::args::{EpochArgs, SnapshotsArgs, SnapshotsCommand, WaitArgs};
use crate::client::Mgn;
use crate::own;
use crate::show::{Facts, Table, percent, size, time};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Carries out a command on snapshots.
pub(super) async fn run(mgn: &Mgn, args: SnapshotsArgs, json: bool) -> Result<()> {
    match args.command {
        None => list(mgn, args.server.as_deref(), json).await,
        Some(SnapshotsCommand::Show(one)) => show(mgn, &one, json).await,
        Some(SnapshotsCommand::Take(args)) => take(mgn, &args, json).await,
        Some(SnapshotsCommand::Verify(one)) => verify(mgn, &one, json).await,
    }
}

async fn list(mgn: &Mgn, server: Option<&str>, json: bool) -> Result<()> {
    let source_server_id = match server {
        Some(server) => Some(mgn.resolve(server).await?.parse()?),
        None => None,
    };
    let list = own::snapshots(&mgn.target, &ListRequest { source_server_id }).await?;
    if json {
        return out_json(&list);
    }
    if list.items.is_empty() {
        return out("There are no snapshots. `rehost snapshot take SERVER` takes one.\n");
    }
    let mut table = Table::new(&["SERVER", "CHECKPOINT", "TAKEN", "STATE", "CONSISTENCY", "DISKS", "MANIFEST"]);
    for item in &list.items {
        table.row(vec![
            item.source_server_id.to_string(),
            item.epoch.to_string(),
            time(&item.created.to_string()),
            name(&item.state),
            name(&item.consistency),
            item.disks.len().to_string(),
            manifests(item).to_owned(),
        ]);
    }
    out(table)
}

fn manifests(view: &SnapshotView) -> &'static str {
    if view.verifiable {
        "complete"
    } else if view.disks.iter().any(|disk| disk.root.is_some()) {
        "in part"
    } else {
        "none yet"
    }
}

/// The name of a variant as it stands in JSON.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

async fn show(mgn: &Mgn, args: &EpochArgs, json: bool) -> Result<()> {
    let id = mgn.resolve(&args.one.server).await?.parse()?;
    let view = wanted(mgn, &id, args.epoch).await?;
    if json { out_json(&view) } else { out(described(&view)) }
}

async fn wanted(mgn: &Mgn, id: &ServerId, epoch: Option<u64>) -> Result<SnapshotView> {
    let list = own::snapshots(&mgn.target, &ListRequest { source_server_id: Some(id.clone()) }).await?;
    let fits = |view: &SnapshotView| match epoch {
        Some(epoch) => view.epoch == Epoch(epoch),
        None => view.state == SnapshotSetState::Launchable,
    };
    match (list.items.into_iter().find(fits), epoch) {
        (Some(view), _) => Ok(view),
        (None, Some(epoch)) => {
            bail!("{id} has no snapshot at the checkpoint {epoch}; `rehost snapshots {id}` lists them")
        }
        (None, None) => bail!("{id} has no snapshot to launch from; `rehost snapshot take {id}` takes one"),
    }
}

fn described(view: &SnapshotView) -> String {
    let mut facts = Facts::default();
    facts.add("Server", view.source_server_id.to_string());
    facts.add("Checkpoint", view.epoch.to_string());
    facts.add("Taken", time(&view.created.to_string()));
    facts.add("State", name(&view.state));
    facts.add("Consistency", name(&view.consistency));
    let manifest = if view.verifiable { "complete" } else { "not complete: it can be launched from, but not verified" };
    facts.add("Manifest", manifest);
    let disks = view.disks.iter().map(|disk| {
        let volume = disk.volume.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{} of {volume}, root {}", disk.snapshot, disk.root.as_deref().unwrap_or("not known yet"))
    });
    facts.add("Disks", disks.collect::<Vec<_>>().join("\n"));
    facts.add("Execution", view.execution.to_string());
    facts.to_string()
}

async fn take(mgn: &Mgn, args: &WaitArgs, json: bool) -> Result<()> {
    let id: ServerId = mgn.resolve(&args.one.server).await?.parse()?;
    let taken = own::take_snapshot(&mgn.target, &TakeRequest { source_server_id: id.clone() }).await?;
    if !args.wait.wait {
        let execution = &taken.execution;
        return if json {
            out_json(&taken)
        } else {
            out(format_args!("{execution} started; see `rehost snapshots {id}`\n"))
        };
    }
    let view = over(mgn, &id, &taken.execution, args.wait.timeout).await?;
    if json { out_json(&view) } else { out(described(&view)) }
}

async fn over(mgn: &Mgn, id: &ServerId, execution: &ExecutionId, timeout: Duration) -> Result<SnapshotView> {
    let request = StatusRequest { source_server_id: id.clone(), execution: execution.clone() };
    let deadline = Instant::now() + timeout;
    loop {
        let status = own::snapshot_status(&mgn.target, &request).await?;
        match (status.status, status.snapshot) {
            (TakenStatus::Succeeded, Some(view)) => return Ok(view),
            (TakenStatus::Running, _) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
            (TakenStatus::Running, _) => bail!("{execution} is still running after {} s", timeout.as_secs()),
            _ => bail!("no snapshot of {id}: {}", status.reason.unwrap_or_else(|| "it failed".to_owned())),
        }
    }
}

async fn verify(mgn: &Mgn, args: &EpochArgs, json: bool) -> Result<()> {
    let id: ServerId = mgn.resolve(&args.one.server).await?.parse()?;
    let from = VerifyFrom { epoch: args.epoch.map(Epoch), ..VerifyFrom::default() };
    let mut request = VerifyRequest { source_server_id: id.clone(), from };
    let verified = loop {
        let verified = own::verify_snapshot(&mgn.target, &request).await?;
        match verified.next.clone() {
            Some(next) => request.from = next,
            None => break verified,
        }
        if !json {
            let (done, total) = (verified.equal_bytes, verified.total_bytes);
            out(format_args!("{} of {} compared, {} %\n", size(done), size(total), percent(done, total)))?;
        }
    };
    if json {
        out_json(&verified)?;
    }
    verdict(&id, &verified)?;
    if json { Ok(()) } else { out(equal(&id, &verified)) }
}

fn equal(id: &ServerId, verified: &Verified) -> String {
    let (epoch, bytes) = (verified.epoch, size(verified.total_bytes));
    format!("The snapshot of {id} at the checkpoint {epoch} holds what its manifest says ({bytes}).\n")
}

fn verdict(id: &ServerId, verified: &Verified) -> Result<()> {
    let Some(Difference { disk, snapshot, chunk, offset_bytes, length_bytes }) = &verified.difference else {
        return Ok(());
    };
    bail!(
        "the snapshot of {id} at the checkpoint {} differs from its manifest: {snapshot} (disk {disk}), chunk {chunk}, \
         {length_bytes} bytes at {offset_bytes}; do not launch from it, take another with `rehost snapshot take {id}`",
        verified.epoch
    )
}

#[cfg(test)]
mod tests {
    use rehost_control::snapshots::DiskSnapshot;
    use rehost_model::replication::Consistency;
    use rehost_model::{SnapshotId, Timestamp};

    use super::*;

    fn view(root: Option<&str>) -> SnapshotView {
        SnapshotView {
            source_server_id: ServerId::generate(),
            execution: ExecutionId("snapshot-1".to_owned()),
            epoch: Epoch(7),
            created: Timestamp::from_unix_ms(0),
            state: SnapshotSetState::Launchable,
            consistency: Consistency::Frozen,
            disks: vec![DiskSnapshot { snapshot: SnapshotId::generate(), volume: None, root: root.map(str::to_owned) }],
            verifiable: root.is_some(),
        }
    }

    #[test]
    fn a_missing_manifest_is_told() {
        let text = described(&view(None));
        for part in ["Checkpoint", "LAUNCHABLE", "FROZEN", "not verified", "not known yet"] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert_eq!((manifests(&view(None)), manifests(&view(Some("ab")))), ("none yet", "complete"));
        assert!(described(&view(Some("abcd"))).contains("root abcd"));
    }

    #[test]
    fn the_first_difference_fails_the_command_and_says_where() {
        let (id, snapshot) = (ServerId::generate(), SnapshotId::generate());
        let difference = Difference { disk: 1, snapshot, chunk: 3, offset_bytes: 196_608, length_bytes: 65_536 };
        let mut verified = Verified {
            epoch: Epoch(4),
            total_bytes: 1 << 20,
            equal_bytes: 196_608,
            next: None,
            difference: Some(difference),
        };
        let error = verdict(&id, &verified).unwrap_err().to_string();
        assert!(error.contains("chunk 3") && error.contains("196608") && error.contains("disk 1"), "{error}");
        verified.difference = None;
        verdict(&id, &verified).unwrap();
    }
}
