//! When a pass or a checkpoint is due that nobody asked for.

use std::time::{Duration, Instant};

use rehost_model::Epoch;

/// More marked than this is not left to the next checkpoint; bytes.
const PASS_AHEAD: u64 = 16 << 20;
/// No interval is shorter.
const SHORTEST: Duration = Duration::from_millis(200);
/// Disks that nothing tracks are compared at most this often, and rarely in proportion to how long it takes.
const RESCAN_INTERVAL: Duration = Duration::from_secs(15 * 60);
const RESCAN_SHARE: u32 = 20;
/// So many continuous checkpoints in a row may be left out because they would not be consistent: the volumes stay what they
/// are, which is consistent and old. Then one is made all the same.
const MOST_MISSED: u32 = 3;

/// The checkpoint that nobody asked for.
pub(super) const CONTINUOUS: Epoch = Epoch(0);

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Checkpoint(Epoch),
    /// A pass over what is marked.
    Pass,
}

/// Of one session.
#[derive(Debug)]
pub(super) struct Schedule {
    /// When a checkpoint was made, or was tried.
    last: Instant,
    /// How long it took.
    took: Duration,
    missed: u32,
    /// Something was sent that is in no checkpoint; at first, this may have been so in the session before.
    pub(super) unconfirmed: bool,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, took: Duration::ZERO, missed: 0, unconfirmed: true }
    }

    /// `tracked`: every disk's changes are known.
    pub(super) fn due(&self, backlog: u64, tracked: bool, interval: Duration, now: Instant) -> Option<Task> {
        let since = now.saturating_duration_since(self.last);
        let changed = backlog > 0 || self.unconfirmed;
        let due = match tracked {
            true => changed && since >= interval.max(SHORTEST),
            false => since >= RESCAN_INTERVAL.max(self.took * RESCAN_SHARE),
        };
        if due {
            return Some(Task::Checkpoint(CONTINUOUS));
        }
        (backlog > PASS_AHEAD).then_some(Task::Pass)
    }

    /// How long until the interval is over, if it is not.
    pub(super) fn until_due(&self, interval: Duration, now: Instant) -> Duration {
        let left = (self.last + interval.max(SHORTEST)).saturating_duration_since(now);
        if left.is_zero() { Duration::MAX } else { left }
    }

    /// A checkpoint is acknowledged.
    pub(super) fn made(&mut self, began: Instant, now: Instant) {
        *self = Self { last: now, took: now.saturating_duration_since(began), missed: 0, unconfirmed: false };
    }

    /// A continuous checkpoint would not be consistent; says whether it is left out.
    pub(super) fn may_miss(&mut self, began: Instant, now: Instant) -> bool {
        self.last = now;
        self.took = now.saturating_duration_since(began);
        self.missed += 1;
        self.missed <= MOST_MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn a_checkpoint_is_due_when_something_changed_and_the_interval_is_over() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let later = start + INTERVAL;
        assert_eq!(schedule.due(0, true, INTERVAL, later), Some(Task::Checkpoint(CONTINUOUS)));
        schedule.unconfirmed = false;
        assert_eq!(schedule.due(0, true, INTERVAL, later), None);
        assert_eq!(schedule.due(4096, true, INTERVAL, start), None);
        assert_eq!(schedule.due(PASS_AHEAD + 1, true, INTERVAL, start), Some(Task::Pass));
        assert_eq!(schedule.due(4096, true, INTERVAL, later), Some(Task::Checkpoint(CONTINUOUS)));
        schedule.unconfirmed = true;
        assert_eq!(schedule.due(0, true, INTERVAL, later), Some(Task::Checkpoint(CONTINUOUS)));
        schedule.made(later, later);
        assert_eq!(schedule.due(4096, true, INTERVAL, later), None);
        assert_eq!(schedule.until_due(INTERVAL, later), INTERVAL);
    }

    #[test]
    fn untracked_disks_are_compared_rarely() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert_eq!(schedule.due(0, false, INTERVAL, start + INTERVAL), None);
        assert!(schedule.due(0, false, INTERVAL, start + RESCAN_INTERVAL).is_some());
        schedule.made(start, start + RESCAN_INTERVAL);
        assert_eq!(schedule.due(0, false, INTERVAL, start + RESCAN_INTERVAL * 3), None);
    }

    #[test]
    fn only_so_many_checkpoints_are_left_out() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        assert!((0..MOST_MISSED).all(|_| schedule.may_miss(now, now)));
        assert!(!schedule.may_miss(now, now));
    }
}
