//! Keeping the source from changing while it is cut over: the user's quiesce scripts, run once, and undone once.
//!
//! ```text
//!            wanted: f                    the scripts ended well
//!   Open ─────────────────> Closing(f) ────────────────────────────> Fenced(f)
//!    ^                          │ a script failed, the agent died       │ wanted: nothing
//!    │                          v                                       v
//!    │<──────────────────── Failed(f) <──── the server was rebooted   (opening: unquiesce scripts)
//!    │    wanted: nothing                                               │
//!    └──────────────────────────────────────────────────────────────────┘
//! ```
//! - A fence is what the control plane *wants* ([`Fence::follow`]), with each directive; it is named by the cutover that wants
//!   it. A fence that failed stays failed under its name: only another cutover tries again. When another cutover wants a source
//!   that is fenced, it is, under the new name.
//! - The record is on disk before the first script runs. An agent that comes back finds either a source that is fenced, and
//!   runs nothing, or scripts of which nobody knows how far they came: those are undone, and the fence has failed.
//! - Nobody stops services against a reboot: after one the source is in use again, whatever the record says. The boot's id is part
//!   of the record, so that the fence is seen to have failed. The unquiesce scripts run all the same, for what does survive a
//!   reboot (a unit that was disabled, a rule of a firewall); they must bear being run on a source that is in use.
//! - Unquiesce scripts that fail are run again after a while, as the source may be useless until they succeed.
//! - No scripts means nothing to quiesce: the source is fenced at once. What is written to it after the last checkpoint does
//!   then not travel; whether that can happen, the user knows.
//! - Where there is no control plane any more that could take its wish back, a person does: [`unfence`].
//!
//! The scripts run in a thread of their own, one fence at a time; a lock in the state directory keeps [`unfence`] out meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rehost_link::identity::{IdentityError, StateDir};
use rehost_model::link::{FenceId, FenceState};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::hooks::{Hook, HookSet};
use crate::system::{System, text};

/// The record's file in the state directory.
pub const FENCE_FILE: &str = "fence.json";
/// The lock's file in the state directory.
pub const FENCE_LOCK_FILE: &str = "fence.lock";

/// Between two attempts to open a source whose unquiesce scripts fail.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Why the fence cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error(transparent)]
    State(#[from] IdentityError),
    #[error("{} is damaged ({reason}); run the scripts in unquiesce.d by hand, then remove it", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("scripts of the fence are running; try again when they have ended")]
    Busy,
    #[error("{0}; the source may still be out of use: mend it and run this again")]
    Unquiesce(#[from] crate::hooks::HookError),
}

/// What is on disk while the source is not simply in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    fence: FenceId,
    boot_id: String,
    #[serde(flatten)]
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "SCREAMING_SNAKE_CASE")]
enum Stage {
    /// Quiesce scripts run.
    Closing,
    Fenced,
    /// Unquiesce scripts run, for a source that was fenced.
    Opening,
    /// `undone`: the unquiesce scripts ended well. `trouble`: how they did not, the last time.
    Failed {
        reason: String,
        undone: bool,
        trouble: Option<String>,
    },
}

/// What is to be done when nothing is being done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Nothing,
    Close(FenceId),
    /// Another cutover takes over.
    Rename(FenceId),
    /// Run the unquiesce scripts; then the source is open, or the fence stays failed.
    Undo(Afterwards),
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Open,
    Failed,
}

impl Record {
    fn failed(&self, reason: String, undone: bool) -> Self {
        Self { stage: Stage::Failed { reason, undone, trouble: None }, ..self.clone() }
    }

    /// Whether the unquiesce scripts failed at the last attempt.
    fn is_in_trouble(&self) -> bool {
        matches!(self.stage, Stage::Failed { trouble: Some(_), .. })
    }

    /// As an agent takes it that has just started: nobody runs its scripts any more.
    fn found_at_start(self, boot_id: &str) -> Self {
        let reason = match &self.stage {
            Stage::Closing | Stage::Fenced if self.boot_id != boot_id => "the server was restarted: it is in use again",
            Stage::Closing => "the agent was restarted while the quiesce scripts ran; they were undone",
            Stage::Fenced | Stage::Opening | Stage::Failed { .. } => return self,
        };
        self.failed(reason.to_owned(), false)
    }

    fn next(&self, wanted: Option<&FenceId>) -> Action {
        let is_wanted = wanted == Some(&self.fence);
        match (&self.stage, wanted) {
            (Stage::Fenced, Some(other)) if !is_wanted => Action::Rename(other.clone()),
            (Stage::Fenced, None) | (Stage::Opening, _) => Action::Undo(Afterwards::Open),
            (Stage::Failed { undone: false, .. }, _) if is_wanted => Action::Undo(Afterwards::Failed),
            (Stage::Failed { undone: false, .. }, _) => Action::Undo(Afterwards::Open),
            (Stage::Failed { .. }, Some(other)) if !is_wanted => Action::Close(other.clone()),
            (Stage::Failed { .. }, None) => Action::Forget,
            // Nobody closes it any more: the thread died.
            (Stage::Closing, _) => Action::Undo(Afterwards::Failed),
            (Stage::Fenced | Stage::Failed { .. }, Some(_)) => Action::Nothing,
        }
    }

    fn state(&self) -> FenceState {
        let fence = self.fence.clone();
        match &self.stage {
            // While it is opened, the scripts that this fence asked for run just as well.
            Stage::Closing | Stage::Opening => FenceState::Closing { fence },
            Stage::Fenced => FenceState::Fenced { fence },
            Stage::Failed { reason, trouble: None, .. } => FenceState::Failed { fence, reason: reason.clone() },
            Stage::Failed { reason, trouble: Some(trouble), .. } => {
                let reason =
                    format!("{reason}; the source cannot be put back into use, and it is tried again: {trouble}");
                FenceState::Failed { fence, reason }
            }
        }
    }
}

/// Keeps the source fenced for as long as that is wanted.
#[derive(Debug)]
pub struct Fence {
    keeper: Keeper,
    worker: Option<JoinHandle<()>>,
    retry: Option<Instant>,
}

impl Fence {
    /// Takes up what an earlier agent left in `state`.
    ///
    /// # Errors
    /// [`FenceError::State`], [`FenceError::Damaged`].
    pub fn open(state: &StateDir, hooks: HookSet, system: &System) -> Result<Self, FenceError> {
        let keeper = Keeper::new(state, hooks, system);
        let found = keeper.read()?.map(|record| record.found_at_start(&keeper.boot_id));
        if let Some(record) = &found {
            keeper.write(record)?;
        }
        *keeper.record() = found;
        let mut fence = Self { keeper, worker: None, retry: None };
        // What was left half done is undone at once: nobody knows when the control plane will be heard.
        if let FenceState::Failed { fence: id, .. } = fence.state() {
            fence.follow(Some(&id));
        }
        Ok(fence)
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> FenceState {
        self.keeper.record().as_ref().map_or(FenceState::Open, Record::state)
    }

    /// Changes how long a script may take, from the next fence on.
    pub fn set_hook_timeout(&mut self, timeout: Duration) {
        self.keeper.hooks.set_timeout(timeout);
    }

    /// Goes towards what is wanted, and returns at once. To be called with each directive.
    pub fn follow(&mut self, wanted: Option<&FenceId>) {
        if self.worker.as_ref().is_some_and(|worker| !worker.is_finished()) {
            return;
        }
        self.worker = None;
        self.keeper.look_again();
        let action = match (&*self.keeper.record(), wanted) {
            (Some(record), _) => record.next(wanted),
            (None, Some(fence)) => Action::Close(fence.clone()),
            (None, None) => Action::Nothing,
        };
        self.act(action);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Forget => self.keeper.forget(),
            Action::Rename(fence) => self.keeper.rename(fence),
            Action::Close(fence) => {
                if self.keeper.announce(fence) {
                    self.work(Keeper::close);
                }
            }
            Action::Undo(afterwards) => {
                if !self.is_to_wait() {
                    self.retry = Some(Instant::now() + RETRY_PAUSE);
                    self.work(move |keeper| keeper.undo(afterwards));
                }
            }
        }
    }

    /// Scripts that failed to put the source back are not run at every directive.
    fn is_to_wait(&self) -> bool {
        let failed_before = self.keeper.record().as_ref().is_some_and(Record::is_in_trouble);
        failed_before && self.retry.is_some_and(|retry| Instant::now() < retry)
    }

    fn work(&mut self, job: impl FnOnce(&Keeper) + Send + 'static) {
        let keeper = self.keeper.clone();
        let worker = thread::Builder::new().name("fence".to_owned()).spawn(move || job(&keeper));
        match worker {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => self.keeper.fail(&format!("no thread for the scripts: {error}")),
        }
    }
}

/// What the daemon and the thread of the scripts share.
#[derive(Debug, Clone)]
struct Keeper {
    state: StateDir,
    hooks: HookSet,
    boot_id: String,
    record: Arc<Mutex<Option<Record>>>,
}

impl Keeper {
    fn new(state: &StateDir, hooks: HookSet, system: &System) -> Self {
        let boot_id = text(system.proc.join("sys/kernel/random/boot_id")).unwrap_or_default();
        Self { state: state.clone(), hooks, boot_id, record: Arc::default() }
    }

    /// Whoever panicked left a whole record: it is replaced as one.
    fn record(&self) -> MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that scripts are going to run; nothing runs that is not written down.
    fn announce(&self, fence: FenceId) -> bool {
        let record = Record { fence, boot_id: self.boot_id.clone(), stage: Stage::Closing };
        let written = self.write(&record);
        *self.record() = Some(match &written {
            Ok(()) => record,
            Err(error) => record.failed(error.to_string(), true),
        });
        written.is_ok()
    }

    fn close(&self) {
        let Ok(_lock) = self.lock(FlockOperation::LockExclusive).inspect_err(|e| self.fail(&e.to_string())) else {
            return;
        };
        let closed = self.hooks.run(Hook::Quiesce).map_err(|e| e.to_string());
        let kept = closed.and_then(|_| self.advance(Stage::Fenced).map_err(|e| e.to_string()));
        if let Err(reason) = kept {
            self.fail(&reason);
            self.put_back(Afterwards::Failed);
        }
    }

    fn undo(&self, afterwards: Afterwards) {
        // A lock that cannot be had is no reason to leave the source out of use.
        let _lock = self.lock(FlockOperation::LockExclusive);
        if matches!(&*self.record(), Some(Record { stage: Stage::Fenced, .. })) {
            // A source that cannot be opened for want of space on its disk would be worse than one that is opened twice.
            self.note(self.advance(Stage::Opening));
        }
        self.put_back(afterwards);
    }

    fn put_back(&self, afterwards: Afterwards) {
        let reason = self.reason();
        match (self.hooks.run(Hook::Unquiesce), afterwards) {
            (Ok(_), Afterwards::Open) => self.forget(),
            (Ok(_), Afterwards::Failed) => {
                self.note(self.advance(Stage::Failed { reason, undone: true, trouble: None }));
            }
            (Err(error), _) => {
                let trouble = Some(error.to_string());
                self.note(self.advance(Stage::Failed { reason, undone: false, trouble }));
            }
        }
    }

    /// Why the fence failed.
    fn reason(&self) -> String {
        let record = self.record();
        match record.as_ref().map(|record| &record.stage) {
            Some(Stage::Failed { reason, .. }) => reason.clone(),
            Some(Stage::Closing) => "the quiesce scripts were interrupted".to_owned(),
            _ => "the fence was lifted".to_owned(),
        }
    }

    fn fail(&self, reason: &str) {
        self.note(self.advance(Stage::Failed { reason: reason.to_owned(), undone: false, trouble: None }));
    }

    /// Goes on in memory, whatever becomes of the file.
    fn advance(&self, stage: Stage) -> Result<(), FenceError> {
        let mut record = self.record();
        let Some(record) = &mut *record else { return Ok(()) };
        record.stage = stage;
        self.write(record)
    }

    fn rename(&self, fence: FenceId) {
        let mut record = self.record();
        let Some(record) = &mut *record else { return };
        record.fence = fence;
        self.note(self.write(record));
    }

    fn forget(&self) {
        *self.record() = None;
        self.note(self.remove());
    }

    /// [`unfence`] may have been here. For everything else, memory is as new as the file, or newer.
    fn look_again(&self) {
        match self.read() {
            Ok(Some(found)) if matches!(found.stage, Stage::Failed { undone: true, .. }) => {
                *self.record() = Some(found)
            }
            Ok(_) => {}
            Err(error) => self.note(Err(error)),
        }
    }

    fn note(&self, result: Result<(), FenceError>) {
        if let Err(error) = result {
            tracing::error!(%error, "the record of the fence");
        }
    }

    fn read(&self) -> Result<Option<Record>, FenceError> {
        let Some(text) = self.state.read(FENCE_FILE)? else { return Ok(None) };
        let damaged = |e: serde_json::Error| FenceError::Damaged { path: self.path(FENCE_FILE), reason: e.to_string() };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    fn write(&self, record: &Record) -> Result<(), FenceError> {
        let path = self.path(FENCE_FILE);
        let text = serde_json::to_vec_pretty(record);
        let text = text.map_err(|e| FenceError::Damaged { path, reason: e.to_string() })?;
        Ok(self.state.write(FENCE_FILE, &text)?)
    }

    fn remove(&self) -> Result<(), FenceError> {
        let path = self.path(FENCE_FILE);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| File::open(self.state.path())?.sync_all()),
        };
        removed.map_err(|source| FenceError::Io { action: "remove", path, source })
    }

    /// Held while scripts run, and until what is returned is dropped.
    fn lock(&self, operation: FlockOperation) -> Result<File, FenceError> {
        let path = self.path(FENCE_LOCK_FILE);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = opened.map_err(|source| FenceError::Io { action: "open", path: path.clone(), source })?;
        match flock(&file, operation) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FenceError::Busy),
            Err(error) => Err(FenceError::Io { action: "lock", path, source: error.into() }),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }
}

/// Opens the source by hand, whatever the control plane wants. Gives the name of the fence that was there. An agent that runs, or
/// is started later, then tells the control plane that this fence has failed.
///
/// # Errors
/// [`FenceError::Busy`] while scripts run; [`FenceError::Unquiesce`] when one fails: the source stays as it is then.
pub fn unfence(state: &StateDir, hooks: HookSet) -> Result<Option<FenceId>, FenceError> {
    let keeper = Keeper::new(state, hooks, &System::default());
    if keeper.read()?.is_none() {
        return Ok(None);
    }
    let _lock = keeper.lock(FlockOperation::NonBlockingLockExclusive)?;
    // Read again under the lock: it may have been opened meanwhile.
    let Some(record) = keeper.read()? else { return Ok(None) };
    keeper.hooks.run(Hook::Unquiesce)?;
    keeper.write(&record.failed("the source was opened by hand, with `rehost-agent unfence`".to_owned(), true))?;
    Ok(Some(record.fence))
}

#[cfg(test)]
mod tests;
