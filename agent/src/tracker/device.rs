//! The block device behind a path, as the kernel knows it.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};

use crate::system::{number, text};

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockDevice {
    pub(super) major: u32,
    pub(super) minor: u32,
    /// As in [`DiskIdentity`].
    pub(super) sequence: u64,
    /// Whether the disk has a request queue; otherwise its driver takes bios as they come.
    pub(super) has_requests: bool,
    /// How many places one request may discard.
    pub(super) most_discards: u16,
    /// Its directory in sysfs.
    pub(super) directory: PathBuf,
}

/// Which disk a path leads to. A disk that was detached and attached again is another one: nobody has marked what was done to
/// it meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskIdentity {
    /// Its device number; 0 for what is no block device.
    pub number: u64,
    /// Differs between any two disks that ever had this number since the start of the kernel.
    pub sequence: u64,
    /// The kernel itself counts its disks. Before 5.15 it does not, and the inode of the device's node is the sequence: devtmpfs
    /// makes a new one for every disk that comes; a directory of nodes that somebody else made does not.
    pub is_counted: bool,
}

impl DiskIdentity {
    /// Of the disk at this path. All that is no block device, or is not there, is the same.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        fs::metadata(path).map(|found| Self::of(&found)).unwrap_or_default()
    }

    /// Of a block device's node.
    pub(crate) fn of(node: &fs::Metadata) -> Self {
        if !node.file_type().is_block_device() {
            return Self::default();
        }
        let counted = number(in_sysfs(node).join("diskseq"));
        Self { number: node.rdev(), sequence: counted.unwrap_or(node.ino()), is_counted: counted.is_some() }
    }
}

/// Why a path is no disk that can be tracked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotADisk {
    #[error("{path} cannot be found: {reason}")]
    Missing { path: String, reason: String },
    #[error("{0} is no block device")]
    NoBlockDevice(String),
    #[error("{0} is a partition: name its whole disk")]
    Partition(String),
    #[error("{0} is not in sysfs")]
    NotInSysfs(String),
}

impl BlockDevice {
    /// The disk at this path; symbolic links are followed.
    pub(super) fn at(path: &Path) -> Result<Self, NotADisk> {
        let name = path.display().to_string();
        let metadata = fs::metadata(path);
        let metadata = metadata.map_err(|e| NotADisk::Missing { path: name.clone(), reason: e.to_string() })?;
        if !metadata.file_type().is_block_device() {
            return Err(NotADisk::NoBlockDevice(name));
        }
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        let directory = in_sysfs(&metadata);
        if directory.join("partition").exists() {
            return Err(NotADisk::Partition(name));
        }
        if !directory.exists() {
            return Err(NotADisk::NotInSysfs(name));
        }
        let sequence = DiskIdentity::of(&metadata).sequence;
        let has_requests = has_requests(&directory);
        let most_discards = number(directory.join("queue/max_discard_segments")).unwrap_or(1);
        // The kernel counts them with 16 bits.
        let most_discards = u16::try_from(most_discards).unwrap_or(u16::MAX);
        Ok(Self { major, minor, sequence, has_requests, most_discards, directory })
    }

    /// Whether one request may discard many places.
    pub(super) fn discards_many(&self) -> bool {
        self.most_discards > 1
    }

    /// How many reads and writes are on their way, if the kernel says.
    pub(super) fn in_flight(&self) -> Option<u64> {
        let counts = text(self.directory.join("inflight"))?;
        let counts: Vec<u64> = counts.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        (!counts.is_empty()).then(|| counts.iter().sum())
    }

    /// Whether the disk is at work on no request: one that it was given is complete, or waits to be given to it again. (Of bios only
    /// some drivers keep count.)
    pub(super) fn is_idle(&self) -> bool {
        let counts_all = self.has_requests && number(self.directory.join("queue/iostats")) == Some(1);
        counts_all && self.in_flight() == Some(0)
    }
}

/// The directory of a block device, given by its node.
fn in_sysfs(node: &fs::Metadata) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(node.rdev()), minor(node.rdev())))
}

/// Before 5.0 there were request queues without `mq`; those let choose a scheduler.
fn has_requests(directory: &Path) -> bool {
    let schedulers = || text(directory.join("queue/scheduler")).unwrap_or_default();
    directory.join("mq").exists() || schedulers().contains('[')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_is_named() {
        let missing = BlockDevice::at(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(missing, NotADisk::Missing { .. }));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(BlockDevice::at(file.path()), Err(NotADisk::NoBlockDevice(_))));
        assert_eq!(DiskIdentity::at(file.path()), DiskIdentity::default());
        assert_eq!(DiskIdentity::at(Path::new("/nonexistent")), DiskIdentity::default());
    }
}
