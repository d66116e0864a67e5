//! The image that a copy is launched from, what it is made of, and the end of both.

use rehost_model::ledger::{LedgerEntry, Purpose, ResourceKind};
use rehost_model::{ImageId, InstanceId, SnapshotId};

use super::super::{JobContext, StepError, VISIBLE_AFTER_MS};
use super::firmware;
use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, ImageSpec, ImageState, InstanceState, Ports, SnapshotState};

/// The image of the converted volumes, made as far as it goes; `None` while it is not there yet.
pub(super) async fn make(ports: &Ports, context: &JobContext) -> Result<Option<ImageId>, StepError> {
    let snapshots = take_snapshots(ports, context).await?;
    let now = ports.clock.now();
    let is_new = now.ms_since(context.work.image_began.unwrap_or(now)) < VISIBLE_AFTER_MS;
    for snapshot in &snapshots {
        let state = match ports.compute.snapshot_state(snapshot).await {
            Err(error) if error.is_not_found() && is_new => SnapshotState::Pending,
            state => state?,
        };
        match state {
            SnapshotState::Completed => {}
            SnapshotState::Pending => return Ok(None),
            SnapshotState::Failed => {
                let cause = format!("the snapshot {snapshot} of a converted volume failed; launch again");
                return Err(StepError::new("ImageFailed", cause));
            }
        }
    }
    let image = register(ports, context, snapshots).await?;
    let registered = context.work.image_registered.unwrap_or(now);
    let state = match ports.compute.image_state(&image).await {
        // It shows itself to everybody only after a moment.
        Err(error) if error.is_not_found() && now.ms_since(registered) < VISIBLE_AFTER_MS => ImageState::Pending,
        state => state?,
    };
    match state {
        ImageState::Available => Ok(Some(image)),
        ImageState::Pending => Ok(None),
        ImageState::Failed(why) => {
            Err(StepError::new("ImageFailed", format!("the image {image} could not be made: {why}; launch again")))
        }
    }
}

async fn take_snapshots(ports: &Ports, context: &JobContext) -> Result<Vec<SnapshotId>, StepError> {
    if !context.work.image_snapshots.is_empty() {
        return Ok(context.work.image_snapshots.clone());
    }
    let now = ports.clock.now();
    let token = token(context, "image-disks");
    let planned = planned(context, ResourceKind::Snapshot, &token);
    let tags = planned.tags();
    let mut taken = Vec::new();
    let create = async {
        taken = ports.compute.create_snapshots(&context.work.volumes, &tags, &token).await?;
        Ok(taken.iter().map(SnapshotId::as_str).collect::<Vec<_>>().join(","))
    };
    ledger::make(ports, &planned, create).await?;
    context
        .record(ports, None, |work| {
            work.image_snapshots.clone_from(&taken);
            work.image_began.get_or_insert(now);
        })
        .await?;
    Ok(taken)
}

async fn register(ports: &Ports, context: &JobContext, snapshots: Vec<SnapshotId>) -> Result<ImageId, StepError> {
    if let Some(image) = &context.work.image {
        return Ok(image.clone());
    }
    let token = token(context, "image");
    let planned = planned(context, ResourceKind::Image, &token);
    let spec = ImageSpec {
        name: format!("rehost-{}-{}", context.server.source_server_id, context.job.job_id),
        snapshots,
        firmware: firmware(&context.server),
        tags: planned.tags(),
    };
    let image = ledger::make(ports, &planned, ports.compute.register_image(&spec, &token)).await?;
    let now = ports.clock.now();
    context
        .record(ports, None, |work| {
            work.image = Some(image.clone());
            work.image_registered.get_or_insert(now);
        })
        .await?;
    Ok(image)
}

fn token(context: &JobContext, what: &str) -> ClientToken {
    ClientToken::derive(&[context.job.job_id.as_str(), context.server.source_server_id.as_str(), what])
}

fn planned<'a>(context: &'a JobContext, kind: ResourceKind, token: &'a ClientToken) -> Planned<'a> {
    let (server, job) = (&context.server.source_server_id, Some(&context.job.job_id));
    Planned { server, kind, purpose: Purpose::Conversion, job, token, billed: None }
}

/// Whether the image is still needed for the instance: until that runs, its volumes may not exist.
pub(super) async fn is_needed(ports: &Ports, context: &JobContext, instance: &InstanceId) -> Result<bool, StepError> {
    let now = ports.clock.now();
    let is_new = now.ms_since(context.work.launched_at.unwrap_or(now)) < VISIBLE_AFTER_MS;
    match ports.compute.instance(instance).await? {
        Some(i) if i.state == InstanceState::Pending => Ok(true),
        Some(i) if matches!(i.state, InstanceState::Running | InstanceState::Stopped) => Ok(false),
        None if is_new => Ok(true),
        other => {
            let reason = other.and_then(|i| i.state_reason).unwrap_or_else(|| "it does not exist any more".to_owned());
            Err(StepError::new("LaunchFailed", format!("the copy {instance} ended while it was launched: {reason}")))
        }
    }
}

/// Removes the image and everything that was only there to make it.
pub(super) async fn remove(ports: &Ports, context: &JobContext) -> Result<(), StepError> {
    let entries = ledger::entries(ports, &context.server.source_server_id).await?;
    let mine = |e: &LedgerEntry| e.purpose == Purpose::Conversion && e.job.as_ref() == Some(&context.job.job_id);
    Ok(ledger::remove(ports, entries.into_iter().filter(mine).collect()).await?)
}

/// How long to wait until the image or the instance is looked at again; seconds.
pub(super) fn patience(ports: &Ports, context: &JobContext) -> u64 {
    let now = ports.clock.now();
    ports.polling.patience(now.ms_since(context.work.image_began.unwrap_or(now)), 1)
}
