//! Conversion servers: they find their task in the bucket, leave their report there and go away.
//!
//! Volumes can be attached only to an instance that runs, and nothing here waits: whoever asks for the progress takes the
//! next step.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_sdk_ec2::types::Instance as Ec2Instance;
use rehost_control::PortError;
use rehost_control::PortErrorKind;
use rehost_control::ledger::TOKEN_TAG;
use rehost_control::ports::{ClientToken, ConversionProgress, ConversionSpec, InstanceState, PortResult};
use rehost_model::conversion::ConversionRequest;
use rehost_model::{InstanceId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::Ec2Compute;
use crate::instances::{instance_id, reason, state_of};
use crate::tags;
use crate::template::{LATEST_VERSION, Placement, by_latest_version, placement};
use crate::user_data::{CONVERTER, render};

/// A conversion server ends by itself after two hours; one that has not is taken for dead a little later.
const LIMIT_SECONDS: i64 = 125 * 60;

/// So much of the console of a server that died is told; characters.
const CONSOLE_TAIL: usize = 2000;

/// `conversions/{token}/spec.json`: the request as the converter reads it, and beside it what is to be attached.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    #[serde(flatten)]
    request: ConversionRequest,
    volumes: Vec<VolumeId>,
}

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::start_conversion`].
    pub(crate) async fn launch_converter(&self, spec: &ConversionSpec, token: &ClientToken) -> PortResult<InstanceId> {
        if let Some(launched) = self.launched_with(token).await? {
            return instance_id(launched.instance_id());
        }
        let task = Task { request: spec.request.clone(), volumes: spec.volumes.clone() };
        let task = serde_json::to_vec(&task).map_err(|e| PortError::invalid(format!("a conversion's task: {e}")))?;
        self.objects.put(&task_key(token.as_str()), task).await?;
        let values =
            [("REGION", self.config.region.as_str()), ("BUCKET", &self.config.bucket), ("TOKEN", token.as_str())];
        let all_tags = tags::complete(&spec.tags, &self.config.stack, token);
        let placed = self.place_converter(spec).await?;
        let request = self
            .ec2_once
            .run_instances()
            .launch_template(by_latest_version(&self.config.conversion_launch_template))
            .set_subnet_id(placed.subnet)
            .set_network_interfaces((!placed.interfaces.is_empty()).then_some(placed.interfaces))
            .user_data(render(CONVERTER, &values)?);
        let all_tags = tags::named(all_tags, "rehost conversion server");
        let launched = self.launch(request, "a conversion server", &all_tags, token).await;
        launched.map_err(|error| self.refused_with(spec.security_group.as_ref(), error))
    }

    /// With its volumes, and reached by nobody. Whether it needs a public address to find the bucket, the launch template's interface
    /// says, which knows what network the stack has.
    async fn place_converter(&self, spec: &ConversionSpec) -> PortResult<Placement> {
        let subnet = self.staging_subnet_id(&spec.staging_subnet_id);
        let template = self.template(&self.config.conversion_launch_template, LATEST_VERSION).await?;
        let placed = placement(Some(&template), subnet, None)?;
        Ok(match &spec.security_group {
            Some(group) => placed.with_group(group.as_str()),
            None => placed,
        })
    }

    /// See [`rehost_control::ports::Compute::conversion_progress`].
    pub(crate) async fn converter_progress(&self, id: &InstanceId) -> PortResult<ConversionProgress> {
        let Some(described) = self.described(id).await? else {
            return Ok(ConversionProgress::Died(format!("the conversion server {id} does not exist (any more)")));
        };
        let state = state_of(&described);
        if state == InstanceState::Pending {
            return Ok(ConversionProgress::Running);
        }
        let token = token_of(id, &described)?;
        // Looked for after the instance: one that has ended has left its report before.
        if let Some(report) = self.objects.get(&report_key(&token)).await? {
            return Ok(match serde_json::from_slice(&report) {
                Ok(report) => ConversionProgress::Reported(Box::new(report)),
                Err(e) => ConversionProgress::Died(format!("its report {} cannot be read: {e}", report_key(&token))),
            });
        }
        if state == InstanceState::Running && age_seconds(&described) <= LIMIT_SECONDS {
            self.attach_all(id, &described, &token).await?;
            return Ok(ConversionProgress::Running);
        }
        Ok(ConversionProgress::Died(self.death(id, &described, state).await))
    }

    async fn attach_all(&self, id: &InstanceId, described: &Ec2Instance, token: &str) -> PortResult<()> {
        let key = task_key(token);
        let task = self.objects.get(&key).await?;
        let task =
            task.ok_or_else(|| PortError::invalid(format!("the conversion's task {key} is gone: launch again")))?;
        let task: Task =
            serde_json::from_slice(&task).map_err(|e| PortError::invalid(format!("{key} cannot be read: {e}")))?;
        let attached = volumes_of(described);
        for volume in task.volumes.iter().filter(|volume| !attached.contains(volume.as_str())) {
            match self.advance_attachment(volume, id).await {
                // Not yet: it is still being made, or detached from elsewhere.
                Err(error) if error.kind == PortErrorKind::Conflict => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn death(&self, id: &InstanceId, described: &Ec2Instance, state: InstanceState) -> String {
        let why = match (state, reason(described)) {
            (InstanceState::Running, _) => format!("it left no report within {} minutes", LIMIT_SECONDS / 60),
            (_, Some(reason)) => format!("it is {state:?}: {reason}"),
            (_, None) => format!("it is {state:?}"),
        };
        // The console explains the death; that it cannot be read must not hide it.
        let console = self.console(id).await.unwrap_or_default();
        let end: Vec<char> = console.trim_end().chars().rev().take(CONSOLE_TAIL).collect();
        let end: String = end.into_iter().rev().collect();
        if end.is_empty() { why } else { format!("{why}; its console ends with: {end}") }
    }
}

fn task_key(token: &str) -> String {
    format!("conversions/{token}/spec.json")
}

fn report_key(token: &str) -> String {
    format!("conversions/{token}/report.json")
}

fn token_of(id: &InstanceId, described: &Ec2Instance) -> PortResult<String> {
    let token = tags::read(described.tags()).remove(TOKEN_TAG);
    token.ok_or_else(|| PortError::invalid(format!("{id} is no conversion server: it has no tag {TOKEN_TAG}")))
}

fn volumes_of(described: &Ec2Instance) -> BTreeSet<&str> {
    described.block_device_mappings().iter().filter_map(|mapping| mapping.ebs()?.volume_id()).collect()
}

fn age_seconds(described: &Ec2Instance) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let launched = described.launch_time().map_or(i64::MAX, |time| time.secs());
    i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(launched)
}

#[cfg(test)]
mod tests {
    use rehost_model::conversion::{ConversionTarget, RequestedDisk};
    use rehost_model::launch::BootMode;

    use super::*;

    #[test]
    fn the_converter_finds_its_request_in_the_task() {
        let volume = VolumeId::generate();
        let disk = RequestedDisk { serial: volume.nvme_serial(), source_device: Some("/dev/sda".to_owned()) };
        let request = ConversionRequest::new(ConversionTarget::Ec2, BootMode::Uefi, vec![disk]);
        let written = serde_json::to_vec(&Task { request: request.clone(), volumes: vec![volume.clone()] }).unwrap();
        assert_eq!(serde_json::from_slice::<ConversionRequest>(&written).unwrap(), request);
        let task: Task = serde_json::from_slice(&written).unwrap();
        assert_eq!((task.request, task.volumes), (request, vec![volume]));
    }
}
