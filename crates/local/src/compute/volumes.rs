//! Volumes and snapshots: an image each, and a record beside it that is written first and removed last.
//!
//! An image appears under its name only when it is whole, so the name's existence is the state: a snapshot with a record but without
//! an image is pending, and a crash leaves nothing that could be mistaken for a copy.

use rehost_control::PortError;
use rehost_control::ports::{ClientToken, MAX_SNAPSHOT_READ, PortResult, SnapshotState, Tags, VolumeSpec};
use rehost_model::settings::StagingDiskType;
use rehost_model::{InstanceId, SnapshotId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

use super::copy;
use super::files;
use super::tokens::Made;
use super::{Engine, now};

/// A volume's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeRecord {
    pub(super) id: VolumeId,
    size_bytes: u64,
    from_snapshot: Option<SnapshotId>,
    staging_disk_type: StagingDiskType,
    pub(super) tags: Tags,
    /// The machine of a replication server.
    attached_to: Option<InstanceId>,
    created: Timestamp,
}

/// A snapshot's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotRecord {
    pub(super) id: SnapshotId,
    volume: VolumeId,
    size_bytes: u64,
    pub(super) tags: Tags,
    created: Timestamp,
}

impl Engine {
    /// See [`rehost_control::ports::Compute::create_volume`].
    pub(super) fn create_volume(&self, spec: &VolumeSpec, token: &ClientToken) -> PortResult<VolumeId> {
        let _token = self.locks.lock(token.as_str());
        let reserved = self.tokens.reserve(token, Made::Volume, 1, VolumeId::generate)?;
        let id = only(reserved.ids)?;
        if !reserved.completed {
            self.make_volume(&id, spec)?;
            self.tokens.complete(token)?;
        }
        Ok(id)
    }

    fn make_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> PortResult<()> {
        let image = self.layout.volume_image(id);
        if image.exists() {
            return Ok(());
        }
        let source = spec.from_snapshot.as_ref().map(|snapshot| self.whole_snapshot(snapshot)).transpose()?;
        check_size(spec, source.as_ref())?;
        let record = VolumeRecord {
            id: id.clone(),
            size_bytes: spec.size_bytes,
            from_snapshot: spec.from_snapshot.clone(),
            staging_disk_type: spec.staging_disk_type,
            tags: spec.tags.clone(),
            attached_to: None,
            created: now(),
        };
        files::write_json(&self.layout.volume_record(id), &record)?;
        let made = match source {
            Some(snapshot) => {
                let source = self.layout.snapshot_image(&snapshot.id);
                copy::copy_image(&source, &image, spec.size_bytes).map(|_| ())
            }
            None => copy::make_image(&image, spec.size_bytes),
        };
        made.inspect_err(|_| self.forget_volume(id))
    }

    /// After a failure: what the record describes does not exist.
    fn forget_volume(&self, id: &VolumeId) {
        if let Err(error) = files::remove_file(&self.layout.volume_record(id)) {
            tracing::warn!(%error, volume = %id, "the record of a volume that could not be made stays");
        }
    }

    /// See [`rehost_control::ports::Compute::delete_volume`].
    pub(super) fn delete_volume(&self, id: &VolumeId) -> PortResult<()> {
        let _usage = self.locks.lock(USAGE);
        if let Some(user) = self.user_of_volume(id)? {
            let message = format!("the volume {id} is in use by {user}: terminate or detach it first");
            return Err(PortError::conflict(message));
        }
        files::remove_file(&self.layout.volume_image(id))?;
        files::remove_file(&self.layout.volume_record(id))?;
        files::sync_parent(&self.layout.volume_record(id))
    }

    /// See [`rehost_control::ports::Compute::modify_volume`]. The image grows first: a record never promises more than there is.
    pub(super) fn modify_volume(&self, id: &VolumeId, size_bytes: u64) -> PortResult<()> {
        let _usage = self.locks.lock(USAGE);
        let record = self.volume_record(id)?.ok_or_else(|| no_volume(id))?;
        if record.size_bytes >= size_bytes {
            return Ok(());
        }
        files::grow(&self.layout.volume_image(id), size_bytes)?;
        files::write_json(&self.layout.volume_record(id), &VolumeRecord { size_bytes, ..record })
    }

    /// The instance that has the volume among its disks, or to which it is attached.
    pub(super) fn user_of_volume(&self, id: &VolumeId) -> PortResult<Option<InstanceId>> {
        let attached = self.volume_record(id)?.and_then(|record| record.attached_to);
        if let Some(instance) = attached
            && self.machine(&instance)?.is_some()
        {
            return Ok(Some(instance));
        }
        let machines = self.machines()?;
        Ok(machines.into_iter().find(|machine| self.holds_volume(machine, id)).map(|machine| machine.id))
    }

    /// See [`rehost_control::ports::Compute::attach_volume`].
    pub(super) fn attach_volume(&self, id: &VolumeId, instance: &InstanceId) -> PortResult<String> {
        let _usage = self.locks.lock(USAGE);
        let record = self.volume_record(id)?.ok_or_else(|| no_volume(id))?;
        if self.machine(instance)?.is_none() {
            return Err(PortError::not_found(format!("the replication server {instance} does not exist (any more)")));
        }
        match self.user_of_volume(id)? {
            Some(user) if user != *instance => {
                return Err(PortError::conflict(format!("the volume {id} is in use by {user}: detach it there first")));
            }
            Some(_) => {}
            None => {
                let record = VolumeRecord { attached_to: Some(instance.clone()), ..record };
                files::write_json(&self.layout.volume_record(id), &record)?;
            }
        }
        Ok(self.layout.volume_image(id).display().to_string())
    }

    /// See [`rehost_control::ports::Compute::detach_volume`].
    pub(super) fn detach_volume(&self, id: &VolumeId, instance: &InstanceId) -> PortResult<()> {
        let _usage = self.locks.lock(USAGE);
        match self.volume_record(id)? {
            Some(record) if record.attached_to.as_ref() == Some(instance) => {
                files::write_json(&self.layout.volume_record(id), &VolumeRecord { attached_to: None, ..record })
            }
            _ => Ok(()),
        }
    }

    /// See [`rehost_control::ports::Compute::create_snapshots`].
    pub(super) fn create_snapshots(
        &self,
        volumes: &[VolumeId],
        tags: &Tags,
        token: &ClientToken,
    ) -> PortResult<Vec<SnapshotId>> {
        let _token = self.locks.lock(token.as_str());
        let reserved = self.tokens.reserve(token, Made::Snapshots, volumes.len(), SnapshotId::generate)?;
        if reserved.completed {
            return Ok(reserved.ids);
        }
        let taken = self.take_snapshots(&reserved.ids, volumes, tags);
        match taken.and_then(|()| self.tokens.complete(token)) {
            Ok(()) => Ok(reserved.ids),
            Err(error) => {
                // A part of a set is of no use, and the disk may be full.
                reserved.ids.iter().for_each(|id| self.forget_snapshot(id));
                Err(error)
            }
        }
    }

    fn take_snapshots(&self, ids: &[SnapshotId], volumes: &[VolumeId], tags: &Tags) -> PortResult<()> {
        let records = ids.iter().zip(volumes).map(|(id, volume)| {
            let size_bytes = self.volume_record(volume)?.ok_or_else(|| no_volume(volume))?.size_bytes;
            Ok(SnapshotRecord {
                id: id.clone(),
                volume: volume.clone(),
                size_bytes,
                tags: tags.clone(),
                created: now(),
            })
        });
        let records = records.collect::<PortResult<Vec<_>>>()?;
        for record in &records {
            files::write_json(&self.layout.snapshot_record(&record.id), record)?;
        }
        for record in &records {
            let target = self.layout.snapshot_image(&record.id);
            if !target.exists() {
                let began = std::time::Instant::now();
                let method = copy::copy_image(&self.layout.volume_image(&record.volume), &target, record.size_bytes)?;
                let took_ms = began.elapsed().as_millis();
                tracing::debug!(snapshot = %record.id, volume = %record.volume, ?method, took_ms, "snapshot taken");
            }
        }
        Ok(())
    }

    fn forget_snapshot(&self, id: &SnapshotId) {
        if let Err(error) = self.delete_snapshot(id) {
            tracing::warn!(%error, snapshot = %id, "what is left of a snapshot that failed could not be removed");
        }
    }

    /// See [`rehost_control::ports::Compute::snapshot_state`].
    pub(super) fn snapshot_state(&self, id: &SnapshotId) -> PortResult<SnapshotState> {
        match (self.snapshot_record(id)?, self.layout.snapshot_image(id).exists()) {
            (Some(_), true) => Ok(SnapshotState::Completed),
            (Some(_), false) => Ok(SnapshotState::Pending),
            (None, _) => Err(no_snapshot(id)),
        }
    }

    /// See [`rehost_control::ports::Compute::read_snapshot`].
    pub(super) fn read_snapshot(&self, id: &SnapshotId, offset: u64, length: usize) -> PortResult<Vec<u8>> {
        if length > MAX_SNAPSHOT_READ {
            return Err(PortError::invalid(format!(
                "at most {MAX_SNAPSHOT_READ} bytes can be read at once, not {length}"
            )));
        }
        let record = self.whole_snapshot(id)?;
        let rest = record.size_bytes.saturating_sub(offset);
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(length);
        files::read_at(&self.layout.snapshot_image(id), offset, length)
    }

    /// See [`rehost_control::ports::Compute::delete_snapshot`].
    pub(super) fn delete_snapshot(&self, id: &SnapshotId) -> PortResult<()> {
        files::remove_file(&self.layout.snapshot_image(id))?;
        files::remove_file(&self.layout.snapshot_record(id))?;
        files::sync_parent(&self.layout.snapshot_record(id))
    }

    fn whole_snapshot(&self, id: &SnapshotId) -> PortResult<SnapshotRecord> {
        let record = self.snapshot_record(id)?.ok_or_else(|| no_snapshot(id))?;
        if self.layout.snapshot_image(id).exists() {
            return Ok(record);
        }
        Err(PortError::conflict(format!("the snapshot {id} is not complete yet: wait until it is")))
    }

    pub(super) fn volume_record(&self, id: &VolumeId) -> PortResult<Option<VolumeRecord>> {
        files::read_json(&self.layout.volume_record(id))
    }

    fn snapshot_record(&self, id: &SnapshotId) -> PortResult<Option<SnapshotRecord>> {
        files::read_json(&self.layout.snapshot_record(id))
    }

    /// All volumes of which there is a record.
    pub(super) fn volumes(&self) -> PortResult<Vec<VolumeRecord>> {
        let ids = ids_in(&self.layout.volumes())?;
        ids.iter().filter_map(|id| self.volume_record(id).transpose()).collect()
    }

    /// All snapshots of which there is a record.
    pub(super) fn snapshots(&self) -> PortResult<Vec<SnapshotRecord>> {
        let ids = ids_in(&self.layout.snapshots())?;
        ids.iter().filter_map(|id| self.snapshot_record(id).transpose()).collect()
    }

    /// Makes durable what a machine wrote to these volumes without flushing.
    pub(super) fn sync_volumes(&self, volumes: &[VolumeId]) -> PortResult<()> {
        let there = volumes.iter().map(|id| self.layout.volume_image(id)).filter(|image| image.exists());
        there.into_iter().try_for_each(|image| files::sync_file(&image))
    }
}

/// The lock under which it is decided who uses a volume.
pub(super) const USAGE: &str = "usage of volumes";

fn ids_in<T: std::str::FromStr>(directory: &std::path::Path) -> PortResult<Vec<T>> {
    let names = files::names_with_suffix(directory, ".json")?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

pub(super) fn only<T>(ids: Vec<T>) -> PortResult<T> {
    ids.into_iter().next().ok_or_else(|| PortError::invalid("the client token stands for nothing"))
}

fn check_size(spec: &VolumeSpec, source: Option<&SnapshotRecord>) -> PortResult<()> {
    let least = source.map_or(1, |snapshot| snapshot.size_bytes);
    if spec.size_bytes >= least {
        return Ok(());
    }
    let message = format!("a volume of {} bytes is too small: it needs at least {least}", spec.size_bytes);
    Err(PortError::invalid(message))
}

pub(super) fn no_volume(id: &VolumeId) -> PortError {
    PortError::not_found(format!("the volume {id} does not exist (any more)"))
}

fn no_snapshot(id: &SnapshotId) -> PortError {
    PortError::not_found(format!("the snapshot {id} does not exist (any more)"))
}
