//! Holding the filesystems of the replicated disks still, for as long as it takes to read what changed last.
//!
//! A frozen filesystem has everything on its disk that belongs there, and nobody can write to it: a copy that is made
//! meanwhile is whole. But a freeze belongs to nobody. It outlives the process that made it, and a server whose root filesystem
//! stays frozen is dead. Hence the rules of this module:
//!
//! - **A watchdog first.** A process of its own ([`run_thaw_watchdog`]), started long before anything is frozen, holds
//!   descriptors of all that is going to be. It thaws when the time limit is over, and at once when the agent is gone. It is told
//!   of every freeze *before* it is made, so that there is no moment at which a freeze is known to nobody. Without a watchdog
//!   nothing is frozen; one that died or hangs is replaced before the next freeze.
//! - **Little in between.** From the first freeze to the last thaw nothing is logged, forked or written, and this module allocates
//!   nothing. Who works meanwhile on what is frozen does allocate a little: the marks that are collected become lists. An
//!   allocation waits for a frozen filesystem only if memory is so short that the kernel must first write pages of it; then the
//!   watchdog, which allocates nothing once it is armed, thaws when the time is over, and the freeze does not count.
//! - **A second line.** A watchdog that is killed leaves the agent to thaw as ever, and the agent that is killed leaves the
//!   watchdog. If both are killed at once, what is frozen is still named by a note in memory ([`Freezer::with_note_in`]), and
//!   the next start of the agent thaws it; until then writers wait. The watchdog bears another name than the agent and
//!   (with CAP_SYS_RESOURCE) is spared by the OOM killer, so this takes intent, such as `kill -9 -1` or an end of the whole control group. (A unit must
//!   keep systemd's `KillMode=control-group`: it sends the watchdog, which ignores it, a SIGTERM first; `mixed` would send
//!   SIGKILL as soon as the agent is gone.)
//!
//! ```text
//!   agent                                   watchdog
//!     │── Add(descriptor) … ─────────────────> holds them
//!     │── Arm(limit) ────────────────────────> │
//!     │<──────────────────────────── Ready(n) ─│
//!   syncfs of each                             │
//!     │── Try(0) ────────────────────────────> the clock starts
//!   FIFREEZE 0          (failed: NotMine(0))   │
//!     │── Try(1) ────────────────────────────> │            socket closed, or time over:
//!   FIFREEZE 1                                 │            FITHAW of everything tried
//!   … the caller reads …                       │
//!   FITHAW 1, FITHAW 0                         │
//!     │── Disarm ────────────────────────────> lets go
//!     │<────────────────────── Done(thawed) ───│
//! ```
//! Filesystems are frozen in the reverse order of their mounts, and one that lies in a file of another (a loop device) before
//! that other: a frozen filesystem below would never let the flush of the one above end. All are flushed (`syncfs`) before the
//! first is frozen, so that a freeze has little left to flush and the first frozen does not wait for the others.
//!
//! What cannot be frozen is skipped and named: FAT, what somebody else froze, what cannot be reached. It goes on being written
//! to, so who freezes must look (by its tracker) whether anything was.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::syncfs;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};

mod layers;
mod mounts;
mod note;
mod survey;
mod thawer;
mod watchdog;
mod wire;

pub use mounts::DeviceId;
use note::Note;
pub use survey::{Filesystem, SkipReason, Skipped};
use survey::{Survey, survey};
pub use thawer::run_thaw_watchdog;
use watchdog::Watchdog;
pub use watchdog::WatchdogError;

use crate::sys;
use crate::system::System;

/// More are not frozen at once: the watchdog has room for so many.
pub const MAX_FILESYSTEMS: usize = 256;

/// Attempts to thaw before it is left to the watchdog.
const THAW_ATTEMPTS: u32 = 3;

/// Why nothing is frozen. Whatever had been frozen when it came up is thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The checkpoint must do without.
    #[error("no filesystem on the replicated disks can be frozen")]
    NothingToFreeze,
    #[error("cannot read {}: {source}", path.display())]
    Mounts { path: PathBuf, source: io::Error },
    #[error("{count} filesystems are too many to be frozen at once; the limit is {MAX_FILESYSTEMS}")]
    TooMany { count: usize },
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    #[error("cannot write {}: {source}", path.display())]
    Note { path: PathBuf, source: io::Error },
    #[error("cannot flush {}: {source}; see the kernel's log", mount_point.display())]
    Sync { mount_point: PathBuf, source: Errno },
    #[error("cannot freeze {}: {source}; the agent needs CAP_SYS_ADMIN", mount_point.display())]
    Freeze { mount_point: PathBuf, source: Errno },
    #[error("freezing took longer than the {} ms that it may; allow more, or make checkpoints when less is written", limit.as_millis())]
    TooSlow { limit: Duration },
    #[error("cannot lock the agent's memory: {0}; it needs CAP_IPC_LOCK")]
    Lock(Errno),
}

/// Keeps the agent from waiting for a page of itself while the filesystem that it came from is frozen. What is in memory, or
/// comes into it, stays there; what was never used is not fetched.
///
/// # Errors
/// [`FreezeError::Lock`].
pub fn lock_memory() -> Result<(), FreezeError> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(FreezeError::Lock)
}

/// Freezes the filesystems of the replicated disks, again and again.
#[derive(Debug)]
pub struct Freezer {
    system: System,
    disks: Vec<PathBuf>,
    program: PathBuf,
    watchdog: Option<Watchdog>,
    note: Option<Note>,
}

impl Freezer {
    /// Starts the watchdog, `{watchdog_program} thaw-watchdog`: this version of `rehost-agent`, as a rule `/proc/self/exe`.
    /// To be called early; opens nothing of the disks. Disks that are no block devices have no filesystem.
    ///
    /// # Errors
    /// [`FreezeError::Watchdog`].
    pub fn new(disks: &[PathBuf], watchdog_program: &Path) -> Result<Self, FreezeError> {
        Ok(Self {
            system: System::default(),
            disks: disks.to_vec(),
            program: watchdog_program.to_owned(),
            watchdog: Some(Watchdog::start(watchdog_program)?),
            note: None,
        })
    }

    /// Keeps a note of what is frozen in `directory`, which must lie in memory (`/run`), and thaws what an earlier note there
    /// names: gives the mount points of that.
    ///
    /// # Errors
    /// [`FreezeError::Mounts`].
    pub fn with_note_in(mut self, directory: &Path) -> Result<(Self, Vec<PathBuf>), FreezeError> {
        let note = Note::in_directory(directory);
        let thawed = note.thaw_leftovers(&self.system)?;
        self.note = Some(note);
        Ok((self, thawed))
    }

    /// Replaces the disks. (The daemon makes another freezer instead; tests do not.)
    pub fn set_disks(&mut self, disks: &[PathBuf]) {
        self.disks = disks.to_vec();
    }

    /// What would be frozen now, in this order, and what would be skipped: for tests.
    ///
    /// # Errors
    /// [`FreezeError::Mounts`].
    pub fn filesystems(&self) -> Result<(Vec<Filesystem>, Vec<Skipped>), FreezeError> {
        let Survey { filesystems, skipped } = survey(&self.system, &self.disks)?;
        Ok((filesystems, skipped))
    }

    /// The watchdog's process, while it runs: for tests, and for the fault harness, which kills it.
    #[must_use]
    pub fn watchdog_process(&self) -> Option<u32> {
        self.watchdog.as_ref().map(Watchdog::process_id)
    }

    /// Whether the OOM killer passes the watchdog by. Where the agent lacks CAP_SYS_RESOURCE it may take agent and watchdog
    /// at once, and the note is what is left. For tests.
    #[must_use]
    pub fn is_spared_by_oom_killer(&self) -> bool {
        self.watchdog.as_ref().is_some_and(Watchdog::is_spared)
    }

    /// Flushes every filesystem that would be frozen, so that the freeze has less to do. May take long.
    ///
    /// # Errors
    /// [`FreezeError::Mounts`], [`FreezeError::Sync`].
    pub fn presync(&self) -> Result<(), FreezeError> {
        sync_all(&open_all(survey(&self.system, &self.disks)?).0)
    }

    /// Freezes every filesystem of the disks, for at most `limit`, counted from the first freeze on.
    ///
    /// # Errors
    /// [`FreezeError`]; nothing is frozen then. [`FreezeError::NothingToFreeze`] when there is no filesystem to freeze.
    pub fn freeze(&mut self, limit: Duration) -> Result<Frozen<'_>, FreezeError> {
        let (slots, skipped) = open_all(survey(&self.system, &self.disks)?);
        if slots.is_empty() {
            return Err(FreezeError::NothingToFreeze);
        }
        if slots.len() > MAX_FILESYSTEMS {
            return Err(FreezeError::TooMany { count: slots.len() });
        }
        self.arm_watchdog(&slots, limit)?;
        // From here on, however it ends, the watchdog is disarmed and the note removed by the drop of what is made here.
        let mut frozen = Frozen { freezer: self, slots, skipped, since: None, limit, is_over: false };
        frozen.prepare()?;
        match frozen.freeze_all() {
            Ok(()) if frozen.slots.iter().any(|slot| slot.state == State::Frozen) => Ok(frozen),
            Ok(()) => Err(FreezeError::NothingToFreeze),
            Err(error) => Err(frozen.give_up(error)),
        }
    }

    /// The watchdog holds what is going to be frozen. One that died, or does not answer, is replaced.
    fn arm_watchdog(&mut self, slots: &[Slot], limit: Duration) -> Result<(), WatchdogError> {
        let directories = || slots.iter().map(|slot| slot.directory.as_fd());
        // Taken out, so that one that fails is gone, and its process reaped, before the next is started.
        let kept = self.watchdog.take().filter(|watchdog| watchdog.arm(directories(), limit).is_ok());
        let armed = match kept {
            Some(watchdog) => watchdog,
            None => {
                let watchdog = Watchdog::start(&self.program)?;
                watchdog.arm(directories(), limit)?;
                watchdog
            }
        };
        self.watchdog = Some(armed);
        Ok(())
    }
}

/// A filesystem on its way into the freeze and out of it.
#[derive(Debug)]
struct Slot {
    filesystem: Filesystem,
    directory: OwnedFd,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Writable,
    Frozen,
    Skipped(SkipReason),
}

fn open_all(survey: Survey) -> (Vec<Slot>, Vec<Skipped>) {
    let (mut slots, mut skipped) = (Vec::with_capacity(survey.filesystems.len()), survey.skipped);
    for filesystem in survey.filesystems {
        match filesystem.open() {
            Some(directory) => slots.push(Slot { filesystem, directory, state: State::Writable }),
            None => skipped.push(Skipped { mount_point: filesystem.mount_point, reason: SkipReason::Unreachable }),
        }
    }
    (slots, skipped)
}

fn sync_all(slots: &[Slot]) -> Result<(), FreezeError> {
    slots.iter().try_for_each(|slot| {
        let mount_point = || slot.filesystem.mount_point.clone();
        syncfs(&slot.directory).map_err(|source| FreezeError::Sync { mount_point: mount_point(), source })
    })
}

/// What came up between the first freeze and the last thaw: made without allocating.
enum Trouble {
    Watchdog(WatchdogError),
    Freeze(usize, Errno),
    TooSlow,
}

/// The filesystems are frozen; dropped, it thaws them.
#[derive(Debug)]
pub struct Frozen<'a> {
    freezer: &'a mut Freezer,
    slots: Vec<Slot>,
    skipped: Vec<Skipped>,
    /// Just before the first freeze.
    since: Option<Instant>,
    limit: Duration,
    is_over: bool,
}

/// How a freeze ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thawed {
    /// From before the first freeze until after the last thaw: so long writers may have been blocked.
    pub blocked: Duration,
    /// Every filesystem was frozen until it was thawed here. Otherwise the watchdog, or somebody else, was first: what was read
    /// may have changed meanwhile and does not count.
    pub in_time: bool,
    /// What was not frozen.
    pub skipped: Vec<Skipped>,
}

impl Frozen<'_> {
    /// How much of the limit is left: for tests.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.blocked())
    }

    /// Thaws everything.
    #[must_use]
    pub fn thaw(mut self) -> Thawed {
        let (blocked, in_time) = self.finish();
        let mut skipped = std::mem::take(&mut self.skipped);
        skipped.extend(self.slots.iter().filter_map(Slot::skipped));
        Thawed { blocked, in_time, skipped }
    }

    fn blocked(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Everything that may allocate, write or take long.
    fn prepare(&self) -> Result<(), FreezeError> {
        if let Some(note) = &self.freezer.note {
            note.write(self.slots.iter().map(|slot| &slot.filesystem))?;
        }
        sync_all(&self.slots)
    }

    fn freeze_all(&mut self) -> Result<(), Trouble> {
        let Some(watchdog) = &self.freezer.watchdog else { return Ok(()) };
        let since = *self.since.insert(Instant::now());
        for (slot, index) in self.slots.iter_mut().zip(0..) {
            watchdog.will_freeze(index).map_err(Trouble::Watchdog)?;
            slot.state = match sys::freeze::freeze(slot.directory.as_fd()) {
                Ok(()) => State::Frozen,
                Err(Errno::BUSY) => State::Skipped(SkipReason::FrozenAlready),
                Err(Errno::OPNOTSUPP) => State::Skipped(SkipReason::CannotFreeze),
                Err(error) => return Err(Trouble::Freeze(usize::try_from(index).unwrap_or(usize::MAX), error)),
            };
            if slot.state != State::Frozen {
                watchdog.did_not_freeze(index).map_err(Trouble::Watchdog)?;
            }
            if since.elapsed() >= self.limit {
                return Err(Trouble::TooSlow);
            }
        }
        Ok(())
    }

    fn give_up(mut self, trouble: Trouble) -> FreezeError {
        self.finish();
        match trouble {
            Trouble::Watchdog(error) => error.into(),
            Trouble::TooSlow => FreezeError::TooSlow { limit: self.limit },
            Trouble::Freeze(index, source) => {
                let mount_point = self.slots.get(index).map(|slot| slot.filesystem.mount_point.clone());
                FreezeError::Freeze { mount_point: mount_point.unwrap_or_default(), source }
            }
        }
    }

    /// Thaws in the opposite order, then takes leave of the watchdog: how long writers were blocked, and whether in time.
    fn finish(&mut self) -> (Duration, bool) {
        self.is_over = true;
        let mut all = Thaw::Done;
        for slot in self.slots.iter().rev().filter(|slot| slot.state == State::Frozen) {
            all = all.max(thaw(slot));
        }
        let blocked = self.blocked();
        let untouched = self.dismiss_watchdog(all);
        if all != Thaw::Failed
            && let Some(note) = &self.freezer.note
        {
            note.remove();
        }
        (blocked, all == Thaw::Done && untouched)
    }

    /// Whether the watchdog thawed nothing. One that is gone did not: it would have been noticed by the thaw.
    fn dismiss_watchdog(&mut self, all: Thaw) -> bool {
        let Some(watchdog) = self.freezer.watchdog.take() else { return true };
        if all == Thaw::Failed {
            watchdog.abandon();
            return false;
        }
        match watchdog.disarm() {
            Ok(thawed) => {
                self.freezer.watchdog = Some(watchdog);
                thawed == 0
            }
            Err(error) => {
                tracing::warn!(%error, "the watchdog was lost during a freeze");
                true
            }
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.finish();
        }
    }
}

impl Slot {
    fn skipped(&self) -> Option<Skipped> {
        let State::Skipped(reason) = self.state else { return None };
        Some(Skipped { mount_point: self.filesystem.mount_point.clone(), reason })
    }
}

/// How a thaw went, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thaw {
    Done,
    /// It was not frozen any more.
    TooLate,
    /// It may still be frozen: the watchdog is to go on.
    Failed,
}

fn thaw(slot: &Slot) -> Thaw {
    for _ in 0..THAW_ATTEMPTS {
        match sys::freeze::thaw(slot.directory.as_fd()) {
            Ok(()) => return Thaw::Done,
            Err(Errno::INVAL) => return Thaw::TooLate,
            Err(_) => std::thread::yield_now(),
        }
    }
    Thaw::Failed
}
