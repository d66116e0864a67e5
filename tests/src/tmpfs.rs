//! A file system of a chosen size, for tests of a full disk. It needs the right to mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result};
use crate::process::run;

/// A tmpfs; unmounted on drop.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one of `mib` MiB at `path`, which is made.
    ///
    /// # Errors
    /// When this process may not mount.
    pub fn mount(path: &Path, mib: u32) -> Result<Self> {
        std::fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]).arg(path))?;
        Ok(Self(path.to_owned()))
    }

    /// Makes it larger or smaller, with what is in it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, mib: u32) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.0)).map(drop)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may hold a file for a moment longer.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
