//! Where the agent looks at the machine: the kernel's file systems, replaceable so that tests can lay out any machine.

use std::fs;
use std::path::{Path, PathBuf};

/// The roots under which the machine is described.
#[derive(Debug, Clone)]
pub struct System {
    pub sys: PathBuf,
    pub proc: PathBuf,
    pub dev: PathBuf,
    pub etc: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into(), etc: "/etc".into() }
    }
}

impl System {
    /// A machine that is laid out under one directory, with `sys`, `proc`, `dev` and `etc` in it.
    #[must_use]
    pub fn under(root: &Path) -> Self {
        Self { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev"), etc: root.join("etc") }
    }
}

/// The text of a file of the kernel, without white space around it; `None` when it is missing or unreadable.
pub(crate) fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// The number in a file of the kernel.
pub(crate) fn number(path: impl AsRef<Path>) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The names in a directory, sorted; none when it is missing.
pub(crate) fn names(path: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}
