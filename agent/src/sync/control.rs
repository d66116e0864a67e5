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
    link::{AgentPhase, ReportedError},
    replication::ReplicatedDisk,
};

use super::board::Board;

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
    /// The newest checkpoint that the replicator has acknowledged.
    pub reached: Epoch,
}

/// Shared between the engine and its user; every method may be called at any time, by any thread.
#[derive(Default)]
pub struct SyncControl {
    checkpoint: AtomicU64,
    throttle: AtomicU64,
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
        self.tell();
    }

    /// Sets the limit in bytes a second; 0 means none.
    pub fn set_throttle(&self, bytes_per_second: u64) {
        self.throttle.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Ends the engine, for good.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tell();
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

    fn tell(&self) {
        let _guard = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.told.1.notify_all();
    }

    fn error_slot(&self) -> MutexGuard<'_, Option<ReportedError>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
