//! The replication server: the machine on which a replicator runs, and whom it serves.

use serde::{Deserialize, Serialize};

use crate::settings::{DataPlaneRouting, MAX_DISKS_PER_REPLICATION_SERVER};
use crate::{InstanceId, ReplicatorId, ServerId, Timestamp, VolumeId};

/// A replication server: one aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationServer {
    pub id: ReplicatorId,
    pub instance: Option<InstanceId>,
    /// Serves one source server alone.
    pub dedicated: bool,
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

    /// Whether `disks` more disks of `server` fit.
    #[must_use]
    pub fn has_room_for(&self, server: &ServerId, disks: usize, dedicated: bool) -> bool {
        let of_others = self.assignments.iter().any(|a| a.server != *server);
        let suits = !self.draining && self.dedicated == dedicated && !(dedicated && of_others);
        suits && self.assignments.len() + disks <= MAX_DISKS_PER_REPLICATION_SERVER
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
            enrol_token_sha256: String::new(),
            enrol_token_sealed: String::new(),
            certificate_serials: vec![],
            last_seen: None,
            addresses: vec![],
            public_addresses: None,
            assignments: (0..assigned).map(|_| assignment()).collect(),
            draining: false,
            launched_at: None,
            missed_checks: 0,
        };
        (replicator, server)
    }

    #[test]
    fn fifteen_disks_fit_and_no_more() {
        let (shared, _) = replicator(13, false);
        assert!(shared.has_room_for(&ServerId::generate(), 2, false));
        assert!(!shared.has_room_for(&ServerId::generate(), 3, false));
    }

    #[test]
    fn a_dedicated_one_serves_nobody_else() {
        let (dedicated, server) = replicator(1, true);
        assert!(dedicated.has_room_for(&server, 1, true));
        assert!(!dedicated.has_room_for(&ServerId::generate(), 1, true));
        assert!(!dedicated.has_room_for(&server, 1, false));
    }
}
