//! Clones the snapshots, lets a conversion server work on the clones, and takes in its report.

use rehost_model::conversion::ConversionReport;
use rehost_model::job::{JobLogEvent, JobLogEventData};
use rehost_model::ledger::{Billed, Purpose, ResourceKind};
use rehost_model::settings::StagingDiskType;
use rehost_model::{InstanceId, SnapshotId, VolumeId};

use super::{Answer, JobContext, State, StepError, done, groups, in_progress};
use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, ConversionProgress, ConversionSpec, GroupRole, Ports, VolumeSpec};

pub(super) async fn run(ports: &Ports, state: &State) -> Answer {
    let context = JobContext::load_unfinished(ports, state).await?;
    if context.work.conversion_done {
        return done();
    }
    let snapshots: Vec<SnapshotId> = state.member("snapshots")?;
    let volumes = clone_volumes(ports, &context, &snapshots).await?;
    let conversion_server = start(ports, &context, volumes).await?;
    match ports.compute.conversion_progress(&conversion_server).await? {
        ConversionProgress::Running => in_progress(1),
        ConversionProgress::Died(what) => {
            let cause = format!("the conversion server {conversion_server} ended without a report: {what}");
            Err(failed(ports, &context, &conversion_server, &cause).await?)
        }
        ConversionProgress::Reported(report) => take_in(ports, &context, &conversion_server, &report).await,
    }
}

async fn clone_volumes(
    ports: &Ports,
    context: &JobContext,
    snapshots: &[SnapshotId],
) -> Result<Vec<VolumeId>, StepError> {
    let (job, server) = (&context.job.job_id, &context.server.source_server_id);
    if context.work.volumes.len() == snapshots.len() {
        return Ok(context.work.volumes.clone());
    }
    context.record(ports, Some((JobLogEvent::SnapshotEnd, context.event_data())), |_| {}).await?;
    let settings = &context.server.internal.replication.settings;
    // Where they only serve to make an image they go once the copy is there.
    let purpose = if ports.compute.launches_from_images() { Purpose::Conversion } else { context.purpose() };
    let mut volumes = Vec::new();
    for (index, (snapshot, disk)) in snapshots.iter().zip(&context.server.internal.staging).enumerate() {
        let token = ClientToken::derive(&[job.as_str(), server.as_str(), "disk", &index.to_string()]);
        let staging_disk_type = StagingDiskType::Gp3;
        let billed = Some(Billed::volume(staging_disk_type, disk.size_bytes));
        let planned = Planned { server, kind: ResourceKind::Volume, purpose, job: Some(job), token: &token, billed };
        let spec = VolumeSpec {
            size_bytes: disk.size_bytes,
            from_snapshot: Some(snapshot.clone()),
            staging_disk_type,
            staging_subnet_id: settings.staging_area_subnet_id.clone(),
            encryption: settings.ebs_encryption,
            encryption_key_arn: settings.ebs_encryption_key_arn.clone(),
            tags: planned.tags(),
        };
        volumes.push(ledger::make(ports, &planned, ports.compute.create_volume(&spec, &token)).await?);
    }
    context
        .record(ports, None, |work| {
            work.snapshots = snapshots.to_vec();
            work.volumes.clone_from(&volumes);
        })
        .await?;
    Ok(volumes)
}

async fn start(ports: &Ports, context: &JobContext, volumes: Vec<VolumeId>) -> Result<InstanceId, StepError> {
    if let Some(conversion_server) = &context.work.conversion_server {
        return Ok(conversion_server.clone());
    }
    let (job, server) = (&context.job.job_id, &context.server.source_server_id);
    let token = ClientToken::derive(&[job.as_str(), server.as_str(), "convert"]);
    let (kind, purpose) = (ResourceKind::Instance, Purpose::Conversion);
    let planned = Planned { server, kind, purpose, job: Some(job), token: &token, billed: None };
    let request = super::launch::conversion_request(ports, &context.server, &volumes);
    let staging_subnet_id = context.server.internal.replication.settings.staging_area_subnet_id.clone();
    let security_group = groups::ensure(ports, &context.server, GroupRole::Conversion, Some(job)).await?;
    let spec = ConversionSpec { volumes, request, staging_subnet_id, security_group, tags: planned.tags() };
    let conversion_server = ledger::make(ports, &planned, ports.compute.start_conversion(&spec, &token)).await?;
    let data = data(context, &conversion_server, None);
    context
        .record(ports, Some((JobLogEvent::ConversionStart, data)), |work| {
            work.conversion_server = Some(conversion_server.clone());
        })
        .await?;
    Ok(conversion_server)
}

async fn take_in(
    ports: &Ports,
    context: &JobContext,
    conversion_server: &InstanceId,
    report: &ConversionReport,
) -> Answer {
    let key = format!("reports/{}/{}.json", context.job.job_id, context.server.source_server_id);
    let bytes = serde_json::to_vec_pretty(report).unwrap_or_default();
    ports.objects.put(&key, bytes).await?;
    if !report.outcome.is_launchable() {
        let cause = report.failure().unwrap_or_else(|| format!("{:?} without a reason; see {key}", report.outcome));
        return Err(failed(ports, context, conversion_server, &cause).await?);
    }
    remove_conversion_server(ports, context).await?;
    let data = data(context, conversion_server, None);
    context.record(ports, Some((JobLogEvent::ConversionEnd, data)), |work| work.conversion_done = true).await?;
    done()
}

async fn failed(
    ports: &Ports,
    context: &JobContext,
    conversion_server: &InstanceId,
    cause: &str,
) -> Result<StepError, StepError> {
    let data = data(context, conversion_server, Some(cause.to_owned()));
    context.record(ports, Some((JobLogEvent::ConversionFail, data)), |_| {}).await?;
    Ok(StepError::new("ConversionFailed", cause))
}

async fn remove_conversion_server(ports: &Ports, context: &JobContext) -> Result<(), StepError> {
    let entries = ledger::entries(ports, &context.server.source_server_id).await?;
    let mine = |e: &rehost_model::ledger::LedgerEntry| {
        let of_it = matches!(e.kind, ResourceKind::Instance | ResourceKind::SecurityGroup);
        of_it && e.purpose == Purpose::Conversion && e.job.as_ref() == Some(&context.job.job_id)
    };
    Ok(ledger::remove(ports, entries.into_iter().filter(mine).collect()).await?)
}

fn data(context: &JobContext, conversion_server: &InstanceId, raw_error: Option<String>) -> JobLogEventData {
    JobLogEventData { conversion_server_id: Some(conversion_server.clone()), raw_error, ..context.event_data() }
}
