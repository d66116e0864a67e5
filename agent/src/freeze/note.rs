//! A note of what may be frozen, in a directory in memory: the second line of defence.
//!
//! It is there from before the first freeze until after the last thaw. Who finds it at the start knows that the agent and its
//! watchdog were killed together, and thaws what it names. A reboot clears both the note and the freezes.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::FreezeError;
use super::mounts::DeviceId;
use super::survey::{Filesystem, all, mounts};
use crate::sys;
use crate::system::System;

const FILE: &str = "frozen";

/// Where the note is kept.
#[derive(Debug)]
pub(crate) struct Note(PathBuf);

impl Note {
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self(directory.join(FILE))
    }

    /// Writes down the superblocks of what is about to be frozen.
    pub(crate) fn write<'a>(&self, filesystems: impl Iterator<Item = &'a Filesystem>) -> Result<(), FreezeError> {
        let lines: String = filesystems.map(|filesystem| format!("{}\n", filesystem.device)).collect();
        fs::write(&self.0, lines).map_err(|source| FreezeError::Note { path: self.0.clone(), source })
    }

    /// Nothing is frozen any more.
    pub(crate) fn remove(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "the note of what was frozen cannot be removed");
            }
            _ => {}
        }
    }

    /// Thaws what an earlier agent and its watchdog left frozen; gives the mount points.
    pub(crate) fn thaw_leftovers(&self, system: &System) -> Result<Vec<PathBuf>, FreezeError> {
        let Some(named) = self.read() else { return Ok(Vec::new()) };
        let left = all(&mounts(system)?).into_iter().filter(|filesystem| named.contains(&filesystem.device));
        let thawed = left.filter(thaw).map(|filesystem| filesystem.mount_point).collect();
        self.remove();
        Ok(thawed)
    }

    fn read(&self) -> Option<Vec<DeviceId>> {
        Some(fs::read_to_string(&self.0).ok()?.lines().filter_map(DeviceId::parse).collect())
    }
}

fn thaw(filesystem: &Filesystem) -> bool {
    filesystem.open().is_some_and(|directory| sys::freeze::thaw(directory.as_fd()).is_ok())
}
