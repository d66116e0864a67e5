//! A folder for one test, gone when the test is over.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{Context, Result};

/// A temporary folder that is removed on drop. `REHOST_KEEP=1` keeps it, for looking at what a failed test left.
#[derive(Debug)]
pub struct Workspace {
    folder: TempDir,
}

impl Workspace {
    /// Makes a folder whose name begins with `rehost-NAME`.
    ///
    /// # Errors
    /// When the temporary folder cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        let mut folder = tempfile::Builder::new()
            .prefix(&format!("rehost-{name}-"))
            .tempdir()
            .context(|| format!("make a temporary folder for {name}"))?;
        folder.disable_cleanup(std::env::var_os("REHOST_KEEP").is_some());
        Ok(Self { folder })
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path inside the folder; nothing is created.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
