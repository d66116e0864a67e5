//! Volumes and snapshots as sparse files: `volumes/vol-…`, `snapshots/snap-…`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::negative::copy_sparse;

const GIB: u64 = 1 << 30;

/// The files behind EBS.
#[derive(Debug)]
pub(super) struct Disks {
    folder: PathBuf,
}

impl Disks {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let disks = Self { folder: folder.to_owned() };
        for kind in [disks.volumes(), disks.snapshots()] {
            fs::create_dir_all(&kind).context(|| format!("create {}", kind.display()))?;
        }
        Ok(disks)
    }

    /// Where replication servers find their volumes by id.
    pub(super) fn volumes(&self) -> PathBuf {
        self.folder.join("volumes")
    }

    pub(super) fn volume(&self, id: &str) -> PathBuf {
        self.volumes().join(id)
    }

    fn snapshots(&self) -> PathBuf {
        self.folder.join("snapshots")
    }

    pub(super) fn snapshot(&self, id: &str) -> PathBuf {
        self.snapshots().join(id)
    }

    /// An empty volume, or one with a snapshot's content.
    pub(super) fn create(&self, id: &str, gib: u64, snapshot: Option<&str>) -> Result<()> {
        let path = self.volume(id);
        match snapshot {
            Some(snapshot) => copy_sparse(&self.snapshot(snapshot), &path)?,
            None => drop(File::create(&path).context(|| format!("create {}", path.display()))?),
        }
        self.grow(id, gib)
    }

    /// Makes a volume larger; it never shrinks.
    pub(super) fn grow(&self, id: &str, gib: u64) -> Result<()> {
        let path = self.volume(id);
        let what = || format!("grow {}", path.display());
        let file = OpenOptions::new().write(true).open(&path).context(what)?;
        let length = file.metadata().context(what)?.len();
        if length < gib * GIB { file.set_len(gib * GIB).context(what) } else { Ok(()) }
    }

    /// What the volume holds now.
    pub(super) fn take(&self, volume: &str, snapshot: &str) -> Result<()> {
        copy_sparse(&self.volume(volume), &self.snapshot(snapshot))
    }

    pub(super) fn delete_volume(&self, id: &str) {
        // It may be gone with its instance.
        let _ = fs::remove_file(self.volume(id));
    }

    pub(super) fn delete_snapshot(&self, id: &str) {
        let _ = fs::remove_file(self.snapshot(id));
    }

    /// The names of everything that there is.
    pub(super) fn left(&self) -> Vec<PathBuf> {
        let folders = [self.volumes(), self.snapshots()];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let mut left: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        left.sort();
        left
    }
}
