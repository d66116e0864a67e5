//! Snapshots. Their creation has no client token: the tag with the token is looked for first, so that nothing is taken twice.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, ResourceType, Snapshot, SnapshotState as Ec2SnapshotState};
use rehost_control::PortError;
use rehost_control::ports::{ClientToken, PortResult, SnapshotState, Tags};
use rehost_model::{SnapshotId, VolumeId};

use crate::Ec2Compute;
use crate::errors::{code, failed};
use crate::tags;

impl Ec2Compute {
    /// See [`rehost_control::ports::Compute::create_snapshots`]. Nobody writes to the volumes meanwhile, so one after the other is
    /// one point; EC2's call for several at once would take what else is attached to the replication server with it.
    pub(crate) async fn take_snapshots(
        &self,
        volumes: &[VolumeId],
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<Vec<SnapshotId>> {
        let taken = oldest_of_each_volume(self.snapshots_where(tags::made_with(token)).await?);
        let tags = tags::complete(tags, &self.config.stack, token);
        let mut snapshots = Vec::with_capacity(volumes.len());
        for volume in volumes {
            snapshots.push(match taken.get(volume.as_str()) {
                Some(snapshot) => snapshot_id(snapshot.snapshot_id())?,
                None => self.take_snapshot(volume, &tags).await?,
            });
        }
        Ok(snapshots)
    }

    async fn take_snapshot(&self, volume: &VolumeId, tags: &Tags) -> PortResult<SnapshotId> {
        let taken = self
            .ec2_once
            .create_snapshot()
            .volume_id(volume.as_str())
            .description(description(&self.config.stack))
            .tag_specifications(tags::specification(ResourceType::Snapshot, tags))
            .send()
            .await
            .map_err(|e| failed("ec2:CreateSnapshot", volume, &e))?;
        snapshot_id(taken.snapshot_id())
    }

    /// All snapshots that the stack made and this filter lets pass.
    pub(crate) async fn snapshots_where(&self, wanted: Filter) -> PortResult<Vec<Snapshot>> {
        let pages = self
            .ec2
            .describe_snapshots()
            .owner_ids("self")
            .filters(wanted)
            .filters(tags::with_tag(tags::STACK_TAG, &self.config.stack))
            .into_paginator()
            .items()
            .send();
        let snapshots = pages.collect::<Result<Vec<_>, _>>().await;
        let mut snapshots = snapshots.map_err(|e| failed("ec2:DescribeSnapshots", "the stack's snapshots", &e))?;
        snapshots.retain(|snapshot| is_own(snapshot, &self.config.stack));
        Ok(snapshots)
    }

    /// See [`rehost_control::ports::Compute::snapshot_state`].
    pub(crate) async fn state_of_snapshot(&self, id: &SnapshotId) -> PortResult<SnapshotState> {
        let described = self.ec2.describe_snapshots().snapshot_ids(id.as_str()).send().await;
        let described = described.map_err(|e| failed("ec2:DescribeSnapshots", id, &e))?;
        let snapshot = described.snapshots().first();
        let state = snapshot
            .ok_or_else(|| PortError::not_found(format!("the snapshot {id} does not exist (any more)")))?
            .state();
        Ok(match state {
            Some(Ec2SnapshotState::Completed) => SnapshotState::Completed,
            Some(Ec2SnapshotState::Error) => SnapshotState::Failed,
            _ => SnapshotState::Pending,
        })
    }

    /// See [`rehost_control::ports::Compute::delete_snapshot`].
    pub(crate) async fn remove_snapshot(&self, id: &SnapshotId) -> PortResult<()> {
        match self.ec2.delete_snapshot().snapshot_id(id.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == Some("InvalidSnapshot.NotFound") => Ok(()),
            Err(e) => Err(failed("ec2:DeleteSnapshot", id, &e)),
        }
    }
}

fn description(stack: &str) -> String {
    format!("rehost {stack}")
}

/// Whether the stack made it: others (AWS Backup, lifecycle policies, a user's copy) may have copied the tags of a volume or of a
/// snapshot of ours, and what they made is not ours to delete.
fn is_own(snapshot: &Snapshot, stack: &str) -> bool {
    let described = snapshot.description().is_some_and(|said| said.starts_with(&description(stack)));
    described && !tags::are_of_another_maker(snapshot.tags())
}

/// Two that took snapshots at the same time agree on the older of them.
fn oldest_of_each_volume(snapshots: Vec<Snapshot>) -> BTreeMap<String, Snapshot> {
    let mut oldest: BTreeMap<String, Snapshot> = BTreeMap::new();
    let age = |s: &Snapshot| (s.start_time().map(|t| (t.secs(), t.subsec_nanos())), s.snapshot_id().map(str::to_owned));
    for snapshot in snapshots {
        let volume = snapshot.volume_id().unwrap_or_default().to_owned();
        if oldest.get(&volume).is_none_or(|known| age(&snapshot) < age(known)) {
            oldest.insert(volume, snapshot);
        }
    }
    oldest
}

fn snapshot_id(text: Option<&str>) -> PortResult<SnapshotId> {
    let unknown = |e| PortError::unavailable(format!("EC2 answered without a snapshot's id: {e}"));
    text.unwrap_or_default().parse().map_err(unknown)
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::primitives::DateTime;
    use aws_sdk_ec2::types::Tag;

    use super::*;

    #[test]
    fn snapshots_of_others_with_our_tags_are_not_ours() {
        let snapshot = |said: Option<&str>, key: &str| {
            let tag = Tag::builder().key(key).value("v").build();
            Snapshot::builder().set_description(said.map(str::to_owned)).tags(tag).build()
        };
        let own = description("s");
        assert!(is_own(&snapshot(Some(&own), tags::STACK_TAG), "s"));
        for (said, key) in [
            (Some("This snapshot is created by the AWS Backup service."), tags::STACK_TAG),
            (Some(""), tags::STACK_TAG),
            (None, tags::STACK_TAG),
            (Some(own.as_str()), "aws:backup:source-resource"),
            (Some(own.as_str()), "aws:dlm:lifecycle-policy-id"),
        ] {
            assert!(!is_own(&snapshot(said, key), "s"), "{said:?} {key}");
        }
    }

    #[test]
    fn of_two_snapshots_of_a_volume_the_older_counts() {
        let snapshot = |id: &str, volume: &str, second| {
            Snapshot::builder().snapshot_id(id).volume_id(volume).start_time(DateTime::from_secs(second)).build()
        };
        let all = vec![snapshot("c", "v", 2), snapshot("b", "v", 1), snapshot("a", "v", 1), snapshot("d", "w", 9)];
        let oldest = oldest_of_each_volume(all);
        let ids: Vec<_> = oldest.values().filter_map(Snapshot::snapshot_id).collect();
        assert_eq!(ids, ["a", "d"]);
    }
}
