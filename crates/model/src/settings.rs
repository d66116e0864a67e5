//! Replication settings: the template's, a server's own, and the policy of the gates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ReplicationTemplateId, SecurityGroupId};

/// A replication server that several source servers share serves at most this many disks (MGN's documented limit).
pub const MAX_DISKS_PER_REPLICATION_SERVER: usize = 15;

/// A source server has at most this many disks (MGN's documented limit).
pub const MAX_DISKS_PER_SERVER: usize = 60;

/// From this size on a staging disk is "large" and gets the template's type for large ones; bytes (500 GiB).
pub const LARGE_STAGING_DISK_BYTES: u64 = 500 << 30;

/// MGN's `ReplicationConfigurationTemplate`: what a new server starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationTemplate {
    #[serde(rename = "replicationConfigurationTemplateID")]
    pub id: ReplicationTemplateId,
    #[serde(flatten)]
    pub settings: ReplicationSettings,
}

/// What MGN's replication template and a server's replication configuration have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationSettings {
    pub staging_area_subnet_id: String,
    pub associate_default_security_group: bool,
    #[serde(rename = "replicationServersSecurityGroupsIDs")]
    pub replication_servers_security_groups_ids: Vec<SecurityGroupId>,
    pub replication_server_instance_type: String,
    pub use_dedicated_replication_server: bool,
    pub default_large_staging_disk_type: LargeStagingDiskType,
    pub ebs_encryption: EbsEncryption,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ebs_encryption_key_arn: Option<String>,
    /// Mbit/s; 0 means no limit.
    pub bandwidth_throttling: u64,
    pub data_plane_routing: DataPlaneRouting,
    #[serde(rename = "createPublicIP")]
    pub create_public_ip: bool,
    pub staging_area_tags: BTreeMap<String, String>,
    pub snapshot_schedule: SnapshotSchedule,
    pub retention: Retention,
    /// After so many days a replication server is replaced, so that it runs what is current; 0: never. Of servers that share one, the
    /// least counts.
    pub replication_server_rotation_days: u64,
}

/// The longest time after which a replication server is replaced; days.
pub const MAX_ROTATION_DAYS: u64 = 365;

impl ReplicationSettings {
    /// The type of a staging disk of so many bytes for which `chosen` was set; never [`StagingDiskType::Auto`].
    #[must_use]
    pub fn staging_disk_type(&self, chosen: StagingDiskType, size_bytes: u64) -> StagingDiskType {
        match (chosen, self.default_large_staging_disk_type) {
            (StagingDiskType::Auto, _) if size_bytes < LARGE_STAGING_DISK_BYTES => StagingDiskType::Gp3,
            (StagingDiskType::Auto, LargeStagingDiskType::Gp2) => StagingDiskType::Gp2,
            (StagingDiskType::Auto, LargeStagingDiskType::St1) => StagingDiskType::St1,
            (StagingDiskType::Auto, LargeStagingDiskType::Gp3) => StagingDiskType::Gp3,
            (chosen, _) => chosen,
        }
    }
}

/// When snapshots are taken without anybody asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSchedule {
    /// Minutes from one snapshot to the next; 0: only when one is asked for.
    pub every_minutes: u64,
}

/// The longest interval of a schedule in minutes: four weeks.
pub const MAX_SNAPSHOT_MINUTES: u64 = 28 * 24 * 60;

impl Default for SnapshotSchedule {
    fn default() -> Self {
        Self { every_minutes: 60 }
    }
}

/// Which launchable snapshots are kept: those that any of these rules names, and always the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// So many of the newest.
    pub keep_last: u32,
    /// The newest of each of so many hours up to now (UTC).
    pub hourly: u32,
    /// The newest of each of so many days up to now (UTC).
    pub daily: u32,
}

/// The most that each rule of a [`Retention`] may keep.
pub const MAX_KEPT: u32 = 1000;

impl Default for Retention {
    /// As many as MGN keeps.
    fn default() -> Self {
        Self { keep_last: 5, hourly: 0, daily: 0 }
    }
}

impl Default for ReplicationSettings {
    fn default() -> Self {
        Self {
            staging_area_subnet_id: String::new(),
            associate_default_security_group: true,
            replication_servers_security_groups_ids: Vec::new(),
            replication_server_instance_type: "t3.small".to_owned(),
            use_dedicated_replication_server: false,
            default_large_staging_disk_type: LargeStagingDiskType::Gp3,
            ebs_encryption: EbsEncryption::Default,
            ebs_encryption_key_arn: None,
            bandwidth_throttling: 0,
            data_plane_routing: DataPlaneRouting::PrivateIp,
            create_public_ip: false,
            staging_area_tags: BTreeMap::new(),
            snapshot_schedule: SnapshotSchedule::default(),
            retention: Retention::default(),
            replication_server_rotation_days: 30,
        }
    }
}

/// MGN's `ReplicationConfiguration` of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationConfiguration {
    #[serde(flatten)]
    pub settings: ReplicationSettings,
    pub replicated_disks: Vec<ReplicatedDiskSettings>,
}

/// MGN's `ReplicationConfigurationReplicatedDisk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatedDiskSettings {
    pub device_name: String,
    pub is_boot_disk: bool,
    pub staging_disk_type: StagingDiskType,
}

/// MGN's `ReplicationConfigurationDefaultLargeStagingDiskType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LargeStagingDiskType {
    Gp2,
    St1,
    Gp3,
}

/// MGN's `ReplicationConfigurationReplicatedDiskStagingDiskType`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StagingDiskType {
    #[default]
    Auto,
    Gp2,
    Io1,
    Sc1,
    St1,
    Standard,
    Gp3,
    Io2,
}

/// MGN's `ReplicationConfigurationEbsEncryption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EbsEncryption {
    Default,
    Custom,
}

/// MGN's `ReplicationConfigurationDataPlaneRouting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DataPlaneRouting {
    PrivateIp,
    PublicIp,
}

/// Which gates of the chain `migrate` open by themselves. All are closed by default: a person decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationPolicy {
    /// Launch a test as soon as the server is ready for it.
    pub auto_test: bool,
    /// Mark the server ready for cutover when the test instance passed its verification.
    pub auto_ready_for_cutover: bool,
    /// Cut over as soon as the server is ready for it.
    pub auto_cutover: bool,
    /// Finalize once the cutover instance passed its verification.
    pub auto_finalize: bool,
    /// Archive after finalizing.
    pub auto_archive: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_disks_get_the_type_for_large_ones() {
        let settings =
            ReplicationSettings { default_large_staging_disk_type: LargeStagingDiskType::St1, ..Default::default() };
        for (chosen, size_bytes, expected) in [
            (StagingDiskType::Auto, LARGE_STAGING_DISK_BYTES - 512, StagingDiskType::Gp3),
            (StagingDiskType::Auto, LARGE_STAGING_DISK_BYTES, StagingDiskType::St1),
            (StagingDiskType::Io2, LARGE_STAGING_DISK_BYTES, StagingDiskType::Io2),
        ] {
            assert_eq!(settings.staging_disk_type(chosen, size_bytes), expected);
        }
    }
}
