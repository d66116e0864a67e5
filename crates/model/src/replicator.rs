//! The replication server: the machine on which a replicator runs, and whom it serves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::settings::{DataPlaneRouting, MAX_DISKS_PER_REPLICATION_SERVER, MAX_DISKS_PER_SERVER, ReplicationSettings};
use crate::{InstanceId, ReplicatorId, SecurityGroupId, ServerId, Timestamp, VolumeId};

/// A replication server: one aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationServer {
    pub id: ReplicatorId,
    pub instance: Option<InstanceId>,
    /// Serves one source server alone.
    pub dedicated: bool,
    /// What its machine was launched by; `None` of one that was made before this was kept.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// SHA-256 (hex) of the one-time token with which it authenticates first.
    pub enrol_token_sha256: String,
    /// The token, sealed (hex), for the launch of the machine.
    pub enrol_token_sealed: String,
    /// Serial numbers (hex) of the certificates that it may use, oldest first; none until it has enrolled. As with agents, a
    /// new one makes the older ones invalid when it is used.
    pub certificate_serials: Vec<String>,
    pub last_seen: Option<Timestamp>,
    /// Addresses (`host:port`) under which agents reach it.
    pub addresses: Vec<String>,
    /// And those under which agents do whose traffic takes the public network; `None` where that makes no difference.
    #[serde(default)]
    pub public_addresses: Option<Vec<String>>,
    pub assignments: Vec<Assignment>,
    /// For how many disks room is kept: of servers that chose it and whose disks are not attached yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reserved: BTreeMap<ServerId, usize>,
    /// No new disks: it is about to be replaced or to go.
    pub draining: bool,
    /// When its machine was launched.
    #[serde(default)]
    pub launched_at: Option<Timestamp>,
    /// How often in a row it was looked for and had not reported.
    #[serde(default)]
    pub missed_checks: u32,
}

impl ReplicationServer {
    /// The addresses for an agent with this routing; none when it has none of that kind.
    #[must_use]
    pub fn addresses_for(&self, routing: DataPlaneRouting) -> &[String] {
        let public = self.public_addresses.as_ref().filter(|_| routing == DataPlaneRouting::PublicIp);
        public.unwrap_or(&self.addresses)
    }

    /// Whether a server with these settings may use it.
    #[must_use]
    pub fn suits(&self, settings: &ReplicationSettings) -> bool {
        let launched_alike = self.placement.as_ref().is_none_or(|placement| *placement == Placement::of(settings));
        launched_alike && self.dedicated == settings.use_dedicated_replication_server
    }

    /// Whether `disks` more disks of `server` fit. A server that has more disks than are ever shared gets one of its own.
    #[must_use]
    pub fn has_room_for(&self, server: &ServerId, disks: usize) -> bool {
        let reserved_by_others = || self.reserved.iter().filter(|(by, _)| *by != server).map(|(_, disks)| disks);
        let of_others = self.assignments.iter().any(|a| a.server != *server) || reserved_by_others().next().is_some();
        let is_closed = self.draining || (self.dedicated && of_others);
        let kept: usize = reserved_by_others().sum();
        let limit = if of_others { MAX_DISKS_PER_REPLICATION_SERVER } else { MAX_DISKS_PER_SERVER };
        !is_closed && self.assignments.len() + kept + disks <= limit
    }
}

/// The settings that a replication server's machine is launched by. Source servers whose settings differ in one of them do not share a
/// machine: its subnet's availability zone alone decides which volumes can be attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    subnet: String,
    instance_type: String,
    security_groups: BTreeSet<SecurityGroupId>,
    default_security_group: bool,
    public_ip: bool,
}

impl Placement {
    /// The placement by these settings.
    #[must_use]
    pub fn of(settings: &ReplicationSettings) -> Self {
        Self {
            subnet: settings.staging_area_subnet_id.clone(),
            instance_type: settings.replication_server_instance_type.clone(),
            security_groups: settings.replication_servers_security_groups_ids.iter().cloned().collect(),
            default_security_group: settings.associate_default_security_group,
            public_ip: settings.create_public_ip,
        }
    }
}

/// A volume that a replication server serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    pub server: ServerId,
    pub volume: VolumeId,
    /// Bytes.
    pub size_bytes: u64,
    /// Where the replication server finds the volume: a path, or `nvme:vol…` with the serial number of
    /// its NVMe disk, as on EC2.
    pub location: String,
    /// The first copy was complete once, perhaps on another replication server: what this one has no record of is compared,
    /// and not copied again.
    #[serde(default)]
    pub initialized: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicator(assigned: usize, dedicated: bool) -> (ReplicationServer, ServerId) {
        let server = ServerId::generate();
        let assignment = || Assignment {
            server: server.clone(),
            volume: VolumeId::generate(),
            size_bytes: 1,
            location: String::new(),
            initialized: false,
        };
        let replicator = ReplicationServer {
            id: ReplicatorId::generate(),
            instance: None,
            dedicated,
            placement: Some(Placement::of(&ReplicationSettings::default())),
            enrol_token_sha256: String::new(),
            enrol_token_sealed: String::new(),
            certificate_serials: vec![],
            last_seen: None,
            addresses: vec![],
            public_addresses: None,
            assignments: (0..assigned).map(|_| assignment()).collect(),
            reserved: BTreeMap::new(),
            draining: false,
            launched_at: None,
            missed_checks: 0,
        };
        (replicator, server)
    }

    #[test]
    fn fifteen_disks_fit_and_no_more() {
        let (shared, _) = replicator(13, false);
        assert!(shared.has_room_for(&ServerId::generate(), 2));
        assert!(!shared.has_room_for(&ServerId::generate(), 3));
    }

    #[test]
    fn a_server_with_more_disks_than_are_shared_has_one_alone() {
        let (fresh, _) = replicator(0, false);
        assert!(fresh.has_room_for(&ServerId::generate(), 20));
        let (its_own, _) = replicator(20, false);
        assert!(!its_own.has_room_for(&ServerId::generate(), 1));
        let (shared, _) = replicator(1, false);
        assert!(!shared.has_room_for(&ServerId::generate(), 20));
    }

    #[test]
    fn servers_of_other_subnets_types_or_groups_do_not_share_one() {
        let (shared, _) = replicator(1, false);
        let same = ReplicationSettings::default();
        assert!(shared.suits(&same));
        let group = "sg-0123456789abcdef0".parse().unwrap();
        let others = [
            ReplicationSettings { staging_area_subnet_id: "subnet-1".to_owned(), ..same.clone() },
            ReplicationSettings { replication_server_instance_type: "m5.large".to_owned(), ..same.clone() },
            ReplicationSettings { replication_servers_security_groups_ids: vec![group], ..same.clone() },
            ReplicationSettings { create_public_ip: !same.create_public_ip, ..same.clone() },
            ReplicationSettings { use_dedicated_replication_server: true, ..same.clone() },
        ];
        for other in others {
            assert!(!shared.suits(&other), "{other:?}");
        }
        let throttled = ReplicationSettings { bandwidth_throttling: 7, ..same };
        assert!(shared.suits(&throttled), "the machine is the same");
    }

    #[test]
    fn a_dedicated_one_serves_nobody_else() {
        let (dedicated, server) = replicator(1, true);
        assert!(dedicated.has_room_for(&server, 1));
        assert!(!dedicated.has_room_for(&ServerId::generate(), 1));
        assert!(!dedicated.suits(&ReplicationSettings::default()));
    }
}
