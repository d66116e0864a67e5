//! What is durable of a volume, in a small JSON file beside it.
//!
//! The order is everything: first the volume's bytes are made durable, then the sidecar says so, then the agent is told.
//! Were the sidecar written first, a power cut would leave a high-water mark above bytes that were never written, and the
//! agent, which keeps no state of its own, would never send them again. Were the agent told first, it could be told
//! something that a restarted replicator knows nothing of. The file is replaced whole (write aside, flush, rename, flush
//! the directory), so a reader finds the old state or the new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rehost_model::{Epoch, VolumeId, replicator::Assignment};
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;

/// What is durable of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Durable {
    /// Version of this file's format.
    format: u32,
    volume: VolumeId,
    size_bytes: u64,
    /// The first copy is complete below this offset.
    pub(super) synced_bytes: u64,
    /// The newest checkpoint.
    pub(super) checkpoint: Epoch,
    /// The checkpoint at which the volume is held and not released.
    pub(super) held: Option<Epoch>,
}

impl Durable {
    /// The state of a volume that nothing is known of.
    pub(super) fn fresh(assignment: &Assignment) -> Self {
        Self {
            format: FORMAT,
            volume: assignment.volume.clone(),
            size_bytes: assignment.size_bytes,
            synced_bytes: 0,
            checkpoint: Epoch::default(),
            held: None,
        }
    }

    /// The recorded state. A sidecar that cannot be used counts as none: everything is then sent once more.
    pub(super) fn load(path: &Path, assignment: &Assignment) -> Self {
        let fresh = Self::fresh(assignment);
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return fresh,
            Err(error) => return unusable(path, &error, fresh),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(found) if found.belongs_to(&fresh) => found,
            Ok(_) => unusable(path, &"it belongs to another volume, size or format", fresh),
            Err(error) => unusable(path, &error, fresh),
        }
    }

    /// Records the state durably.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let aside = path.with_extension("json.new");
        let mut file = File::create(&aside)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(&aside, path)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn belongs_to(&self, fresh: &Self) -> bool {
        self.format == FORMAT
            && self.volume == fresh.volume
            && self.size_bytes == fresh.size_bytes
            && self.synced_bytes <= self.size_bytes
    }
}

/// Where the sidecar of a volume lies.
pub(super) fn path_of(assignment: &Assignment, state_dir: Option<&Path>) -> PathBuf {
    match state_dir {
        Some(directory) => directory.join(format!("{}.sync.json", assignment.volume)),
        None => PathBuf::from(format!("{}.sync.json", assignment.location)),
    }
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display, fresh: Durable) -> Durable {
    tracing::warn!(path = %path.display(), %reason, "unusable sidecar: the volume is sent from its start");
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehost_model::ServerId;

    fn assignment(directory: &Path) -> Assignment {
        Assignment {
            server: ServerId::generate(),
            volume: VolumeId::generate(),
            size_bytes: 1 << 20,
            location: directory.join("v.img").display().to_string(),
            initialized: false,
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let assignment = assignment(directory.path());
        let path = path_of(&assignment, None);
        let mut state = Durable::fresh(&assignment);
        assert_eq!(Durable::load(&path, &assignment), state);
        state.synced_bytes = 4096;
        state.checkpoint = Epoch(2);
        state.held = Some(Epoch(2));
        state.save(&path).unwrap();
        assert_eq!(Durable::load(&path, &assignment), state);
    }

    #[test]
    fn garbage_and_foreign_sidecars_count_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let assignment = assignment(directory.path());
        let fresh = Durable::fresh(&assignment);
        let path = path_of(&assignment, Some(directory.path()));
        fs::write(&path, b"{\"format\":1,").unwrap();
        assert_eq!(Durable::load(&path, &assignment), fresh);
        let mut state = fresh.clone();
        state.synced_bytes = 4096;
        state.save(&path).unwrap();
        let larger = Assignment { size_bytes: 2 << 20, ..assignment.clone() };
        assert_eq!(Durable::load(&path, &larger).synced_bytes, 0);
        state.synced_bytes = state.size_bytes + 1;
        state.save(&path).unwrap();
        assert_eq!(Durable::load(&path, &assignment), fresh);
    }
}
