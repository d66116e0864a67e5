//! Stopping the writers for a moment, as the engine sees it.

use std::time::Duration;

/// Stops what writes to the disks.
pub trait Freeze: Send {
    /// Gives back what lies in memory to the disks, so that little is left to be written when they are frozen.
    fn presync(&self);

    /// Freezes, runs `work`, and thaws, whatever happens; not for longer than `limit`. Scripts that a user wants to be run
    /// before and after are given `hook_limit` each. `work` must neither log, nor write a file, nor wait for whoever does.
    ///
    /// # Errors
    /// Nothing was frozen, and `work` was not run.
    fn frozen(&mut self, limit: FreezeLimits, work: &mut dyn FnMut()) -> Result<Thawed, NotFrozen>;
}

/// How long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeLimits {
    /// Writers are blocked at most this long.
    pub freeze: Duration,
    /// One script of the user may run this long.
    pub hook: Duration,
}

/// How a freeze ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thawed {
    /// How long writers were blocked.
    pub blocked: Duration,
    /// False: the watchdog thawed before the work was done, which therefore does not count.
    pub in_time: bool,
}

/// Why nothing was frozen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotFrozen {
    /// For a person.
    pub reason: String,
    /// Whether another try may do better.
    pub retryable: bool,
}
