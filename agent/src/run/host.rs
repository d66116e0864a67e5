//! What of this machine the daemon keeps from one engine to the next, and puts away at the end.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rehost_model::ServerId;

use crate::freeze::{FreezeError, Freezer, lock_memory};
use crate::hooks::HookSet;
use crate::sync::{Freeze, FreezeLimits, Machine, NotFrozen, Thawed};
use crate::tracker::{self, TrackerOptions};

/// Where bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// Bytes of marks of one disk, unless there are many: 4 KiB granules up to 32 GiB, and 128 KiB on a disk of 1 TiB.
const MAP_BYTES: u64 = 8 << 20;

/// What starts the watchdog: the agent itself, also after an upgrade has replaced its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// How the disks of a server are tracked.
pub(crate) fn tracker_options(server: &ServerId) -> TrackerOptions {
    TrackerOptions { server: server.clone(), bpffs: BPFFS.into(), map_bytes: MAP_BYTES }
}

/// The trackers and the freezer of one server.
pub(super) struct Host {
    options: TrackerOptions,
    hooks: HookSet,
    runtime_dir: PathBuf,
    pub(super) machine: Arc<Machine>,
}

impl Host {
    pub(super) fn new(server: &ServerId, hooks: HookSet, runtime_dir: &Path) -> Self {
        let options = tracker_options(server);
        let machine = Machine::tracked(Box::new(options.clone()));
        Self { options, hooks, runtime_dir: runtime_dir.to_owned(), machine }
    }

    /// Prepares to freeze what is on these disks. Without that, checkpoints are what they are: `say` hears why.
    pub(super) fn prepare(&self, disks: &[PathBuf], say: &mut dyn FnMut(String)) {
        let is_device = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        if !disks.iter().any(is_device) {
            return self.machine.set_freezer(None);
        }
        match self.freezer(disks, say) {
            Ok(freezer) => self.machine.set_freezer(Some(Box::new(freezer))),
            Err(error) => {
                say(format!("file systems are not frozen for checkpoints: {error}"));
                self.machine.set_freezer(None);
            }
        }
    }

    fn freezer(&self, disks: &[PathBuf], say: &mut dyn FnMut(String)) -> Result<HookedFreezer, FreezeError> {
        // The older watchdog goes first.
        self.machine.set_freezer(None);
        let freezer = Freezer::new(disks, Path::new(OWN_PROGRAM))?;
        let (freezer, thawed) = freezer.with_note_in(&self.runtime_dir)?;
        for mount_point in thawed {
            say(format!("{} was still frozen by an agent that was killed: thawed", mount_point.display()));
        }
        // Without that, a page of the agent that is not in memory would have to be read from a frozen file system: which works.
        if let Err(error) = lock_memory() {
            say(format!("the agent's memory is not locked: {error}"));
        }
        Ok(HookedFreezer::new(freezer, self.hooks.clone()))
    }

    /// Leaves nothing pinned, for good.
    pub(super) fn forget(&self) -> std::io::Result<()> {
        self.machine.close();
        tracker::forget(&self.options)
    }
}

/// Freezes between the scripts of the user.
pub struct HookedFreezer {
    freezer: Freezer,
    hooks: HookSet,
}

impl HookedFreezer {
    /// Runs `hooks` around what `freezer` freezes.
    #[must_use]
    pub fn new(freezer: Freezer, hooks: HookSet) -> Self {
        Self { freezer, hooks }
    }
}

impl Freeze for HookedFreezer {
    fn presync(&self) {
        if let Err(error) = self.freezer.presync() {
            tracing::warn!(%error, "the file systems were not flushed before a freeze");
        }
    }

    fn frozen(&mut self, limits: FreezeLimits, work: &mut dyn FnMut()) -> Result<Thawed, NotFrozen> {
        self.hooks.set_timeout(limits.hook);
        let refused = |reason: String| NotFrozen { reason, retryable: false };
        let paused = self.hooks.pause().map_err(|error| refused(error.to_string()))?;
        let frozen = self.freezer.freeze(limits.freeze).map_err(|error| {
            let retryable = matches!(error, FreezeError::TooSlow { .. } | FreezeError::Watchdog(_));
            NotFrozen { reason: error.to_string(), retryable }
        })?;
        work();
        let thawed = frozen.thaw();
        if let Err(error) = paused.resume() {
            tracing::error!(%error, "a script failed after a freeze");
        }
        Ok(Thawed { blocked: thawed.blocked, in_time: thawed.in_time })
    }
}
