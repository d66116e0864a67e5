//! What the rest of the agent tells the engine, and asks it.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rehost_model::{
    Epoch,
    link::{AgentPhase, CheckpointSettings, ReportedError},
    replication::{Consistency, ReplicatedDisk, TrackerKind},
};

use super::{board::Board, history::FreezeStats, machine::TrackerNote};

/// How far replication is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What the engine is doing.
    pub phase: AgentPhase,
    /// Every disk, in the order of the configuration; bytes.
    pub disks: Vec<ReplicatedDisk>,
    /// Payload bytes handed to the network since the control was made.
    pub sent_bytes: u64,
    /// Bytes of disk a second that were replicated or compared lately.
    pub rate_bytes_per_second: u64,
    /// The newest checkpoint that was asked for and that the replicator has acknowledged.
    pub reached: Epoch,
    /// How changes are found: the worst of all disks; none until they were opened.
    pub tracker: Option<TrackerKind>,
    /// Each disk's tracker, and why it is that one.
    pub trackers: Vec<TrackerNote>,
    /// Of the newest acknowledged checkpoint, asked for or not.
    pub consistency: Option<Consistency>,
    /// Why that is not better.
    pub shortfall: Option<String>,
    /// Bytes that are marked as changed.
    pub backlog_bytes: u64,
    /// How old the newest acknowledged checkpoint is if anything changed since, else 0; none before the first.
    pub lag_ms: Option<u64>,
    /// How long writers were blocked by freezes; none before the first.
    pub freezes: Option<FreezeStats>,
}

/// Shared between the engine and its user; every method may be called at any time, by any thread.
#[derive(Default)]
pub struct SyncControl {
    checkpoint: AtomicU64,
    throttle: AtomicU64,
    checkpoints: Mutex<CheckpointSettings>,
    stop: AtomicBool,
    pub(super) board: Board,
    error: Mutex<Option<ReportedError>>,
    /// Guards nothing: wakes the engine when something was told.
    told: (Mutex<()>, Condvar),
}

impl SyncControl {
    /// Nothing requested, no throttle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a checkpoint; an older epoch than before changes nothing.
    pub fn request_checkpoint(&self, epoch: Epoch) {
        self.checkpoint.fetch_max(epoch.0, Ordering::Relaxed);
        self.wake();
    }

    /// Sets the limit in bytes a second; 0 means none.
    pub fn set_throttle(&self, bytes_per_second: u64) {
        self.throttle.store(bytes_per_second, Ordering::Relaxed);
        self.wake();
    }

    /// Sets how checkpoints are made, from the next one on.
    pub fn set_checkpoints(&self, settings: CheckpointSettings) {
        *self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        self.wake();
    }

    /// Ends the engine, for good.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// How far replication is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.board.progress()
    }

    /// The trouble that keeps the engine from replicating, if any.
    #[must_use]
    pub fn error(&self) -> Option<ReportedError> {
        self.error_slot().clone()
    }

    pub(super) fn set_error(&self, error: Option<ReportedError>) {
        *self.error_slot() = error;
    }

    pub(super) fn requested(&self) -> Epoch {
        Epoch(self.checkpoint.load(Ordering::Relaxed))
    }

    pub(super) fn throttle(&self) -> u64 {
        self.throttle.load(Ordering::Relaxed)
    }

    pub(super) fn checkpoints(&self) -> CheckpointSettings {
        *self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, but not longer than until something is told.
    pub(super) fn wait(&self, at_most: Duration) {
        let guard = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stopped() {
            drop(self.told.1.wait_timeout(guard, at_most));
        }
    }

    /// Ends a [`SyncControl::wait`].
    pub(super) fn wake(&self) {
        let _guard = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.told.1.notify_all();
    }

    fn error_slot(&self) -> MutexGuard<'_, Option<ReportedError>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
