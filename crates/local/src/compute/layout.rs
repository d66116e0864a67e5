//! Where everything lies in the region's home.
//!
//! ```text
//! volumes/vol-….img    sparse; beside it vol-….json: size, tags, attachment (written first, removed last)
//! snapshots/snap-….img the same
//! instances/i-…/       machine.json, process.json, console.log, qemu.log, qmp.sock, vars.fd (UEFI), report.log (conversion)
//! replicators/r-…/     config.json (a secret), replicator.log, state/
//! compute/tokens/      one file a client token: which resources it stands for
//! compute/terminated/  what is still answered about instances that are gone
//! cache/accel.json     whether KVM works here
//! ```

use std::path::{Path, PathBuf};

use rehost_control::ports::PortResult;
use rehost_model::{InstanceId, ReplicatorId, SnapshotId, VolumeId};

use super::files;

/// Paths in the region's home.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    home: PathBuf,
}

impl Layout {
    /// The layout below `home`, an absolute path; its directories are made.
    pub(super) fn create(home: &Path) -> PortResult<Self> {
        let layout = Self { home: home.to_owned() };
        for directory in [
            layout.volumes(),
            layout.snapshots(),
            layout.instances(),
            layout.replicators(),
            layout.tokens(),
            layout.terminated(),
            layout.cache(),
        ] {
            files::make_directory(&directory)?;
        }
        Ok(layout)
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.home.join("volumes")
    }

    pub(super) fn volume_image(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{id}.img"))
    }

    pub(super) fn volume_record(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{id}.json"))
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.home.join("snapshots")
    }

    pub(super) fn snapshot_image(&self, id: &SnapshotId) -> PathBuf {
        self.snapshots().join(format!("{id}.img"))
    }

    pub(super) fn snapshot_record(&self, id: &SnapshotId) -> PathBuf {
        self.snapshots().join(format!("{id}.json"))
    }

    pub(super) fn instances(&self) -> PathBuf {
        self.home.join("instances")
    }

    pub(super) fn instance(&self, id: &InstanceId) -> PathBuf {
        self.instances().join(id.as_str())
    }

    pub(super) fn replicators(&self) -> PathBuf {
        self.home.join("replicators")
    }

    pub(super) fn replicator(&self, id: &ReplicatorId) -> PathBuf {
        self.replicators().join(id.as_str())
    }

    pub(super) fn tokens(&self) -> PathBuf {
        self.home.join("compute/tokens")
    }

    pub(super) fn terminated(&self) -> PathBuf {
        self.home.join("compute/terminated")
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.home.join("cache")
    }
}
