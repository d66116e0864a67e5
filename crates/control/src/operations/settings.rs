//! The settings of one server: those of MGN's replication configuration, and those that only rehost has.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rehost_model::launch::{BootMode, LaunchConfiguration, Probe, RightSizing};
use rehost_model::settings::{
    DataPlaneRouting, EbsEncryption, LargeStagingDiskType, MAX_KEPT, MAX_ROTATION_DAYS, MAX_SNAPSHOT_MINUTES,
    MigrationPolicy, ReplicatedDiskSettings, ReplicationConfiguration, ReplicationSettings, Retention,
    SnapshotSchedule,
};
use rehost_model::{SecurityGroupId, ServerId, SourceServer};
use serde::{Deserialize, Serialize};

use super::{MAX_BANDWIDTH_MBIT, OperationError, OperationResult};
use crate::ports::Ports;
use crate::repo;

/// What is sensible for the settings of checkpoints; milliseconds.
const CHECKPOINT_INTERVAL_MS: RangeInclusive<u64> = 1000..=86_400_000;
const HOOK_TIMEOUT_MS: RangeInclusive<u64> = 1000..=3_600_000;
const MAX_FREEZE_MS: u64 = 30_000;

/// What a user may set for one server; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServerSettings {
    pub probes: Option<Vec<Probe>>,
    pub verify_timeout_seconds: Option<u64>,
    pub policy: Option<MigrationPolicy>,
    pub boot_mode: Option<BootMode>,
    /// Mbit/s; 0 means no limit.
    pub bandwidth_throttling: Option<u64>,
    /// Whether a cutover runs the source's quiesce scripts and keeps it fenced.
    pub quiesce: Option<bool>,
    /// A checkpoint at least this often while anything changes; milliseconds.
    pub checkpoint_interval_ms: Option<u64>,
    /// A freeze is given up after this time; milliseconds. 0 forbids freezing.
    pub max_freeze_ms: Option<u64>,
    /// A script of the hooks is killed after this time; milliseconds.
    pub hook_timeout_ms: Option<u64>,
    /// Whether disks that the source gets are replicated without being asked for.
    pub auto_add_disks: Option<bool>,
    pub snapshot_schedule: Option<SnapshotSchedule>,
    pub retention: Option<Retention>,
    /// The EC2 launch template of the copy; an empty text takes it away.
    #[serde(rename = "ec2LaunchTemplateID")]
    pub ec2_launch_template_id: Option<String>,
    /// Whether the copy gets the source's private address.
    pub copy_private_ip: Option<bool>,
    pub target_instance_type_right_sizing_method: Option<RightSizing>,
    /// After so many days the replication server is replaced; 0: never.
    pub replication_server_rotation_days: Option<u64>,
}

impl ServerSettings {
    /// All settings of a server as they are.
    #[must_use]
    pub fn of(server: &SourceServer) -> Self {
        let internal = &server.internal;
        Self {
            probes: Some(internal.launch.probes.clone()),
            verify_timeout_seconds: Some(internal.launch.verify_timeout_seconds),
            policy: Some(internal.policy.clone()),
            boot_mode: Some(internal.launch.boot_mode),
            bandwidth_throttling: Some(internal.replication.settings.bandwidth_throttling),
            quiesce: Some(internal.launch.quiesce),
            checkpoint_interval_ms: Some(internal.checkpoints.interval_ms),
            max_freeze_ms: Some(internal.checkpoints.max_freeze_ms),
            hook_timeout_ms: Some(internal.checkpoints.hook_timeout_ms),
            auto_add_disks: Some(internal.auto_add_disks),
            snapshot_schedule: Some(internal.replication.settings.snapshot_schedule),
            retention: Some(internal.replication.settings.retention),
            ec2_launch_template_id: Some(internal.launch.ec2_launch_template_id.clone().unwrap_or_default()),
            copy_private_ip: Some(internal.launch.copy_private_ip),
            target_instance_type_right_sizing_method: Some(internal.launch.target_instance_type_right_sizing_method),
            replication_server_rotation_days: Some(internal.replication.settings.replication_server_rotation_days),
        }
    }
}

/// Changes the settings of a server; an empty change reads it.
///
/// # Errors
/// `NotFound`; `Validation` for values out of range.
pub async fn update_server_settings(
    ports: &Ports,
    id: &ServerId,
    settings: &ServerSettings,
) -> OperationResult<SourceServer> {
    let out_of_range = |field, message: &str| Err(OperationError::Validation { field, message: message.to_owned() });
    check_bandwidth(settings.bandwidth_throttling)?;
    if settings.checkpoint_interval_ms.is_some_and(|ms| !CHECKPOINT_INTERVAL_MS.contains(&ms)) {
        return out_of_range("checkpointIntervalMs", "must be 1000 (a second) to 86400000 (a day) milliseconds");
    }
    if settings.max_freeze_ms.is_some_and(|ms| ms > MAX_FREEZE_MS) {
        return out_of_range("maxFreezeMs", "must be 0 (never freeze) to 30000 milliseconds");
    }
    if settings.hook_timeout_ms.is_some_and(|ms| !HOOK_TIMEOUT_MS.contains(&ms)) {
        return out_of_range("hookTimeoutMs", "must be 1000 to 3600000 milliseconds");
    }
    if settings.verify_timeout_seconds.is_some_and(|s| !(10..=86_400).contains(&s)) {
        return out_of_range("verifyTimeoutSeconds", "must be 10 to 86400 seconds");
    }
    if settings.probes.as_ref().is_some_and(|p| p.len() > 16) {
        return out_of_range("probes", "at most 16 probes");
    }
    if settings.snapshot_schedule.is_some_and(|schedule| schedule.every_minutes > MAX_SNAPSHOT_MINUTES) {
        return out_of_range("snapshotSchedule", "everyMinutes must be 0 (only on demand) to 40320 (four weeks)");
    }
    if settings
        .retention
        .is_some_and(|r| r.keep_last == 0 || [r.keep_last, r.hourly, r.daily].iter().any(|n| *n > MAX_KEPT))
    {
        return out_of_range("retention", "keepLast must be 1 to 1000, hourly and daily 0 to 1000");
    }
    if settings.ec2_launch_template_id.as_deref().is_some_and(|id| !id.is_empty() && !is_launch_template(id)) {
        return out_of_range("ec2LaunchTemplateID", "must be a launch template's id, such as lt-0123456789abcdef0");
    }
    if settings.replication_server_rotation_days.is_some_and(|days| days > MAX_ROTATION_DAYS) {
        return out_of_range("replicationServerRotationDays", "must be 0 (never) to 365 days");
    }
    let changed = repo::update_server(ports, id, |server| {
        apply_settings(server, settings);
        Ok::<_, OperationError>(())
    });
    changed.await.map(|(server, ())| server).map_err(|e| e.about("SourceServer", id.as_str()))
}

fn apply_settings(server: &mut SourceServer, settings: &ServerSettings) {
    let internal = &mut server.internal;
    if let Some(probes) = &settings.probes {
        internal.launch.probes.clone_from(probes);
    }
    if let Some(seconds) = settings.verify_timeout_seconds {
        internal.launch.verify_timeout_seconds = seconds;
    }
    if let Some(policy) = &settings.policy {
        internal.policy = policy.clone();
    }
    if let Some(boot_mode) = settings.boot_mode {
        internal.launch.boot_mode = boot_mode;
    }
    if let Some(mbit) = settings.bandwidth_throttling {
        internal.replication.settings.bandwidth_throttling = mbit;
    }
    let replication = &mut internal.replication.settings;
    replication.snapshot_schedule = settings.snapshot_schedule.unwrap_or(replication.snapshot_schedule);
    replication.retention = settings.retention.unwrap_or(replication.retention);
    internal.launch.quiesce = settings.quiesce.unwrap_or(internal.launch.quiesce);
    internal.auto_add_disks = settings.auto_add_disks.unwrap_or(internal.auto_add_disks);
    let days = settings.replication_server_rotation_days;
    replication.replication_server_rotation_days = days.unwrap_or(replication.replication_server_rotation_days);
    apply_launch_settings(&mut internal.launch, settings);
    let checkpoints = &mut internal.checkpoints;
    checkpoints.interval_ms = settings.checkpoint_interval_ms.unwrap_or(checkpoints.interval_ms);
    checkpoints.max_freeze_ms = settings.max_freeze_ms.unwrap_or(checkpoints.max_freeze_ms);
    checkpoints.hook_timeout_ms = settings.hook_timeout_ms.unwrap_or(checkpoints.hook_timeout_ms);
}

fn apply_launch_settings(launch: &mut LaunchConfiguration, settings: &ServerSettings) {
    if let Some(id) = &settings.ec2_launch_template_id {
        launch.ec2_launch_template_id = Some(id.clone()).filter(|id| !id.is_empty());
    }
    launch.copy_private_ip = settings.copy_private_ip.unwrap_or(launch.copy_private_ip);
    let sizing = settings.target_instance_type_right_sizing_method;
    launch.target_instance_type_right_sizing_method = sizing.unwrap_or(launch.target_instance_type_right_sizing_method);
}

/// EC2's form: `lt-` and 8 or 17 hexadecimal digits.
fn is_launch_template(id: &str) -> bool {
    let digits = id.strip_prefix("lt-").unwrap_or_default();
    matches!(digits.len(), 8 | 17) && digits.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

pub(super) fn check_bandwidth(mbit: Option<u64>) -> OperationResult<()> {
    if mbit.is_some_and(|mbit| mbit > MAX_BANDWIDTH_MBIT) {
        let message = "must be 0 (no limit) to 10000 Mbit/s".to_owned();
        return Err(OperationError::Validation { field: "bandwidthThrottling", message });
    }
    Ok(())
}

/// Refuses a key of one's own that is not named.
pub(super) fn check_encryption(settings: &ReplicationSettings) -> OperationResult<()> {
    if settings.ebs_encryption == EbsEncryption::Custom && settings.ebs_encryption_key_arn.is_none() {
        let message = "is needed with the encryption CUSTOM".to_owned();
        return Err(OperationError::Validation { field: "ebsEncryptionKeyArn", message });
    }
    Ok(())
}

/// What MGN's `UpdateReplicationConfiguration` names, or a template's change; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationChange {
    pub staging_area_subnet_id: Option<String>,
    pub associate_default_security_group: Option<bool>,
    #[serde(rename = "replicationServersSecurityGroupsIDs")]
    pub replication_servers_security_groups_ids: Option<Vec<SecurityGroupId>>,
    pub replication_server_instance_type: Option<String>,
    pub use_dedicated_replication_server: Option<bool>,
    pub default_large_staging_disk_type: Option<LargeStagingDiskType>,
    pub ebs_encryption: Option<EbsEncryption>,
    pub ebs_encryption_key_arn: Option<String>,
    pub bandwidth_throttling: Option<u64>,
    pub data_plane_routing: Option<DataPlaneRouting>,
    #[serde(rename = "createPublicIP")]
    pub create_public_ip: Option<bool>,
    pub staging_area_tags: Option<BTreeMap<String, String>>,
    pub replicated_disks: Option<Vec<ReplicatedDiskSettings>>,
}

impl ReplicationChange {
    /// What either names; `later` where both do.
    #[must_use]
    pub fn with(self, later: Self) -> Self {
        Self {
            staging_area_subnet_id: later.staging_area_subnet_id.or(self.staging_area_subnet_id),
            associate_default_security_group: later
                .associate_default_security_group
                .or(self.associate_default_security_group),
            replication_servers_security_groups_ids: later
                .replication_servers_security_groups_ids
                .or(self.replication_servers_security_groups_ids),
            replication_server_instance_type: later
                .replication_server_instance_type
                .or(self.replication_server_instance_type),
            use_dedicated_replication_server: later
                .use_dedicated_replication_server
                .or(self.use_dedicated_replication_server),
            default_large_staging_disk_type: later
                .default_large_staging_disk_type
                .or(self.default_large_staging_disk_type),
            ebs_encryption: later.ebs_encryption.or(self.ebs_encryption),
            ebs_encryption_key_arn: later.ebs_encryption_key_arn.or(self.ebs_encryption_key_arn),
            bandwidth_throttling: later.bandwidth_throttling.or(self.bandwidth_throttling),
            data_plane_routing: later.data_plane_routing.or(self.data_plane_routing),
            create_public_ip: later.create_public_ip.or(self.create_public_ip),
            staging_area_tags: later.staging_area_tags.or(self.staging_area_tags),
            replicated_disks: later.replicated_disks.or(self.replicated_disks),
        }
    }

    fn apply(mut self, configuration: &mut ReplicationConfiguration) {
        for named in self.replicated_disks.take().unwrap_or_default() {
            let mut disks = configuration.replicated_disks.iter_mut();
            if let Some(disk) = disks.find(|disk| disk.device_name == named.device_name) {
                disk.staging_disk_type = named.staging_disk_type;
            }
        }
        self.apply_to(&mut configuration.settings);
    }

    /// Applies all but what it says of disks.
    pub(super) fn apply_to(self, settings: &mut ReplicationSettings) {
        fn set<T>(to: &mut T, from: Option<T>) {
            if let Some(value) = from {
                *to = value;
            }
        }
        set(&mut settings.staging_area_subnet_id, self.staging_area_subnet_id);
        set(&mut settings.associate_default_security_group, self.associate_default_security_group);
        set(&mut settings.replication_servers_security_groups_ids, self.replication_servers_security_groups_ids);
        set(&mut settings.replication_server_instance_type, self.replication_server_instance_type);
        set(&mut settings.use_dedicated_replication_server, self.use_dedicated_replication_server);
        set(&mut settings.default_large_staging_disk_type, self.default_large_staging_disk_type);
        set(&mut settings.ebs_encryption, self.ebs_encryption);
        set(
            &mut settings.ebs_encryption_key_arn,
            self.ebs_encryption_key_arn.map(|arn| Some(arn).filter(|a| !a.is_empty())),
        );
        set(&mut settings.bandwidth_throttling, self.bandwidth_throttling);
        set(&mut settings.data_plane_routing, self.data_plane_routing);
        set(&mut settings.create_public_ip, self.create_public_ip);
        set(&mut settings.staging_area_tags, self.staging_area_tags);
    }
}

/// MGN's `UpdateReplicationConfiguration`. The throttle counts from the agent's next poll on; what concerns the replication server and
/// the staging disks, from when these are made the next time.
///
/// # Errors
/// `NotFound`; `Validation` for values out of range and for disks that are not replicated.
pub async fn update_replication_configuration(
    ports: &Ports,
    id: &ServerId,
    change: &ReplicationChange,
) -> OperationResult<SourceServer> {
    check_bandwidth(change.bandwidth_throttling)?;
    let changed = repo::update_server(ports, id, |server| {
        let configuration = &mut server.internal.replication;
        let known = |name: &String| configuration.replicated_disks.iter().any(|disk| disk.device_name == *name);
        let mut named = change.replicated_disks.iter().flatten().map(|disk| &disk.device_name);
        if let Some(stranger) = named.find(|name| !known(name)) {
            let message = format!("the server {id} does not replicate a disk {stranger}");
            return Err(OperationError::Validation { field: "replicatedDisks", message });
        }
        change.clone().apply(configuration);
        check_encryption(&configuration.settings)
    });
    changed.await.map(|(server, ())| server).map_err(|e| e.about("SourceServer", id.as_str()))
}
