use std::{path::PathBuf, sync::Arc};

use rehost_link::transport::{ClientTls, Timeouts};
use rehost_model::{ServerId, VolumeId};
use rehost_protocol::DiskIndex;

use super::machine::Machine;

/// What a session replicates, and to whom.
#[derive(Clone)]
pub struct SyncConfig {
    /// `host:port` of the replicator; tried in order.
    pub addresses: Vec<String>,
    /// Own certificate, which must name the server and every volume, and the private CA.
    pub tls: ClientTls,
    /// The source server.
    pub server: ServerId,
    /// Its disks; at least one.
    pub disks: Vec<DiskSource>,
    /// Limits on the connection; a write may take any time, since a replicator that holds still does not read.
    pub timeouts: Timeouts,
    /// What outlives the session: trackers, and what freezes file systems.
    pub machine: Arc<Machine>,
}

/// A disk and the staging volume it goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSource {
    /// Its number in the session; each once.
    pub index: DiskIndex,
    /// A block device or an image file.
    pub path: PathBuf,
    /// The staging volume.
    pub volume: VolumeId,
    /// The size that was agreed on, in bytes.
    pub size_bytes: u64,
}
