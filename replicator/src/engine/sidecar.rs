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

use rehost_model::{Epoch, VolumeId, replication::Consistency, replicator::Assignment};
use serde::{Deserialize, Serialize};

use super::{
    journal::{Committed, Recorded},
    random_name::RandomName,
};
use crate::planted;

/// 2: with a lineage, and what is known of the newest checkpoint.
const FORMAT: u32 = 2;

/// After the volume's id, or the location of its file.
pub(super) const ENDING: &str = ".sync.json";

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
    /// What this record goes back to: a new one begins whenever it is not known any more what the volume holds.
    pub(super) lineage: RandomName,
    /// The newest checkpoint that was asked for.
    pub(super) checkpoint: Epoch,
    /// What is known of the newest checkpoint, asked for or not.
    pub(super) consistency: Consistency,
    /// The volume is that checkpoint, or the journal makes it so. While this is on disk, nothing but the journal is written to.
    pub(super) consistent: bool,
    /// The journal that may hold changes of the volume.
    pub(super) journal: Option<RandomName>,
    /// The checkpoint at which the volume is held and not released.
    pub(super) held: Option<Epoch>,
}

impl Durable {
    /// The state of a volume that nothing is known of. One that was complete before is compared, and not sent again.
    pub(super) fn fresh(assignment: &Assignment) -> Self {
        Self {
            format: FORMAT,
            volume: assignment.volume.clone(),
            size_bytes: assignment.size_bytes,
            synced_bytes: if assignment.initialized { assignment.size_bytes } else { 0 },
            lineage: RandomName::generate(),
            checkpoint: Epoch::default(),
            consistency: Consistency::None,
            consistent: false,
            journal: None,
            held: None,
        }
    }

    /// The recorded state; None if there is none that can be used.
    pub(super) fn load(path: &Path, assignment: &Assignment) -> Option<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return unusable(path, &error),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(found) if found.belongs_to(assignment) => Some(found),
            Ok(_) => unusable(path, &"it belongs to another volume, size or format"),
            Err(error) => unusable(path, &error),
        }
    }

    /// What the volume holds is not known any more: whoever counted on it has to compare.
    pub(super) fn begin_anew(&mut self) {
        self.lineage = RandomName::generate();
        self.consistent = false;
        self.journal = None;
    }

    /// Notes what the volume is from now on; `journal` is where its changes go then.
    pub(super) fn note(&mut self, what: Recorded, journal: Option<RandomName>) {
        match what {
            Recorded::Inconsistent => self.consistent = false,
            Recorded::Checkpoint(Committed { epoch, consistency }) => {
                self.consistent = true;
                self.consistency = consistency;
                self.journal = journal;
                if epoch > Epoch::default() {
                    self.checkpoint = epoch;
                    self.held = Some(epoch);
                }
            }
        }
    }

    /// Records the state durably.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        planted::io("sidecar")?;
        let text = serde_json::to_vec(self)?;
        let aside = path.with_extension("json.new");
        let mut file = File::create(&aside)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(&aside, path)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn belongs_to(&self, assignment: &Assignment) -> bool {
        self.format == FORMAT
            && self.volume == assignment.volume
            && self.size_bytes == assignment.size_bytes
            && self.synced_bytes <= self.size_bytes
    }
}

/// Where the sidecar of a volume lies.
pub(super) fn path_of(assignment: &Assignment, state_dir: Option<&Path>) -> PathBuf {
    match state_dir {
        Some(directory) => directory.join(format!("{}{ENDING}", assignment.volume)),
        None => PathBuf::from(format!("{}{ENDING}", assignment.location)),
    }
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> Option<Durable> {
    tracing::warn!(path = %path.display(), %reason, "unusable sidecar: the volume's record begins anew");
    None
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
        assert_eq!(Durable::load(&path, &assignment), None);
        let mut state = Durable::fresh(&assignment);
        state.synced_bytes = 4096;
        let committed = Committed { epoch: Epoch(2), consistency: Consistency::Frozen };
        state.note(Recorded::Checkpoint(committed), Some(RandomName([3; 16])));
        assert_eq!((state.checkpoint, state.held, state.consistent), (Epoch(2), Some(Epoch(2)), true));
        state.save(&path).unwrap();
        assert_eq!(Durable::load(&path, &assignment), Some(state));
    }

    #[test]
    fn a_checkpoint_that_nobody_asked_for_has_no_number_and_no_hold() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = Durable::fresh(&assignment(directory.path()));
        let committed = Committed { epoch: Epoch(0), consistency: Consistency::Quiescent };
        state.note(Recorded::Checkpoint(committed), None);
        assert_eq!((state.checkpoint, state.held), (Epoch(0), None));
        assert_eq!((state.consistency, state.consistent), (Consistency::Quiescent, true));
        state.note(Recorded::Inconsistent, None);
        assert!(!state.consistent);
    }

    #[test]
    fn a_volume_that_was_complete_is_compared_under_a_new_lineage() {
        let directory = tempfile::tempdir().unwrap();
        let initialized = Assignment { initialized: true, ..assignment(directory.path()) };
        let (one, other) = (Durable::fresh(&initialized), Durable::fresh(&initialized));
        assert_eq!((one.synced_bytes, one.consistent), (1 << 20, false));
        assert_ne!(one.lineage, other.lineage);
    }

    #[test]
    fn garbage_and_foreign_sidecars_count_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let assignment = assignment(directory.path());
        let path = path_of(&assignment, Some(directory.path()));
        fs::write(&path, b"{\"format\":1,").unwrap();
        assert_eq!(Durable::load(&path, &assignment), None);
        let mut state = Durable::fresh(&assignment);
        state.synced_bytes = 4096;
        state.save(&path).unwrap();
        let larger = Assignment { size_bytes: 2 << 20, ..assignment.clone() };
        assert_eq!(Durable::load(&path, &larger), None);
        state.synced_bytes = state.size_bytes + 1;
        state.save(&path).unwrap();
        assert_eq!(Durable::load(&path, &assignment), None);
    }
}
