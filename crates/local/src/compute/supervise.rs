//! What has to be done again and again while the region is served.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rehost_control::ports::PortResult;
use rustix::fs::{FallocateFlags, fallocate};

use super::machine::{Machine, MachineKind};
use super::{Engine, files, qemu};

/// From this size on the older part of a console is given back to the file system; bytes.
const CONSOLE_MAX: u64 = 8 << 20;

/// What then stays.
const CONSOLE_KEPT: u64 = 2 << 20;

const PAGE: u64 = 4096;

impl Engine {
    /// Looks after every instance once; what fails for one is logged and tried again the next time.
    pub(super) fn look_after_instances(&self) {
        for machine in self.readable_machines() {
            if let Err(error) = self.look_after(&machine) {
                tracing::warn!(%error, instance = %machine.id, "looking after an instance failed");
            }
        }
    }

    fn look_after(&self, machine: &Machine) -> PortResult<()> {
        match &machine.kind {
            _ if machine.terminating => Ok(()),
            MachineKind::Replication { .. } => self.keep_running(machine),
            MachineKind::Conversion { .. } => self.end_if_over_limit(machine).map(|_| ()),
            MachineKind::Copy { .. } => bound_console(&self.layout.instance(&machine.id).join(qemu::CONSOLE)),
        }
    }

    /// Forgets what nobody will ask for any more.
    pub(super) fn sweep(&self) -> PortResult<()> {
        self.sweep_terminated()?;
        self.tokens.sweep(|id| self.exists(id))
    }

    fn exists(&self, id: &str) -> bool {
        let record = format!("{id}.json");
        self.layout.volumes().join(&record).exists()
            || self.layout.snapshots().join(&record).exists()
            || self.layout.instances().join(id).exists()
    }
}

/// Punches the older part out of a console that has grown large. The machine keeps the file open and appends to it: its
/// length must not change.
fn bound_console(path: &Path) -> PortResult<()> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    if metadata.blocks().saturating_mul(512) < CONSOLE_MAX {
        return Ok(());
    }
    let end = metadata.len().saturating_sub(CONSOLE_KEPT) / PAGE * PAGE;
    let failed = |e: std::io::Error| files::io_error("shorten", path, &e);
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, 0, end).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_console_keeps_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut text = vec![b'a'; usize::try_from(CONSOLE_MAX).unwrap()];
        text.extend(b"login:");
        std::fs::write(&path, &text).unwrap();
        bound_console(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), text.len() as u64);
        assert!(metadata.blocks() * 512 < CONSOLE_KEPT + (1 << 20), "{} blocks", metadata.blocks());
        assert!(super::super::machine::tail(&path, 64).unwrap().ends_with("aalogin:"));
    }
}
