//! A server's volumes are held still from a checkpoint until its snapshot is taken.
//!
//! ```text
//!   Open ── checkpoint received ──> Closing ── durable ──> Held ── released ──> Open
//!     ^                                │                     │
//!     └────────── session lost ────────┘                     └── timed out ──> Open, `expired` = epoch
//! ```

use std::time::{Duration, Instant};

use rehost_model::Epoch;

/// Whether changes may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing after the checkpoint is applied, and what came before it is being made durable.
    Closing(Epoch),
    /// The volumes are the checkpoint.
    Held {
        epoch: Epoch,
        until: Instant,
    },
}

/// The hold of one server.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    state: State,
    expired: Epoch,
}

impl Hold {
    /// No hold; `expired` is the one that a restart has cut short, or 0.
    pub(super) fn new(expired: Epoch) -> Self {
        Self { state: State::Open, expired }
    }

    /// The newest hold that ended by itself.
    pub(super) fn expired(&self) -> Epoch {
        self.expired
    }

    /// The checkpoint at which the volumes are held.
    pub(super) fn held(&self) -> Option<Epoch> {
        match self.state {
            State::Held { epoch, .. } => Some(epoch),
            State::Open | State::Closing(_) => None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// How long until the hold ends by itself.
    pub(super) fn remaining(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Held { until, .. } => Some(until.saturating_duration_since(now)),
            State::Open | State::Closing(_) => None,
        }
    }

    /// A checkpoint was received.
    pub(super) fn close(&mut self, epoch: Epoch) {
        self.state = State::Closing(epoch);
    }

    /// The checkpoint is durable.
    pub(super) fn hold(&mut self, epoch: Epoch, until: Instant) {
        if self.state == State::Closing(epoch) {
            self.state = State::Held { epoch, until };
        }
    }

    /// The session ended: a checkpoint that did not become durable never was one. If one up to `recorded` is on record all the same,
    /// since what came after that failed, nobody will make it again: it counts as a hold that ended at once.
    pub(super) fn abandon(&mut self, recorded: Epoch) {
        if let State::Closing(epoch) = self.state {
            self.state = State::Open;
            if epoch <= recorded {
                self.expired = self.expired.max(epoch);
            }
        }
    }

    /// Ends a hold whose time has come.
    pub(super) fn tick(&mut self, now: Instant) {
        if let State::Held { epoch, until } = self.state
            && now >= until
        {
            self.state = State::Open;
            self.expired = self.expired.max(epoch);
        }
    }

    /// Ends a hold at `epoch` or before; false if there is none.
    pub(super) fn release(&mut self, epoch: Epoch, now: Instant) -> bool {
        self.tick(now);
        let releases = self.held().is_some_and(|held| held <= epoch);
        if releases {
            self.state = State::Open;
        }
        releases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn held(epoch: Epoch, now: Instant) -> Hold {
        let mut hold = Hold::new(Epoch::default());
        hold.close(epoch);
        assert!(!hold.is_open());
        hold.hold(epoch, now + LONG);
        hold
    }

    #[test]
    fn a_hold_ends_when_it_is_released() {
        let now = Instant::now();
        let mut hold = held(Epoch(3), now);
        assert_eq!(hold.held(), Some(Epoch(3)));
        assert!(!hold.release(Epoch(2), now));
        assert!(hold.release(Epoch(3), now));
        assert!(!hold.release(Epoch(3), now));
        assert!(hold.is_open());
        assert_eq!(hold.expired(), Epoch::default());
    }

    #[test]
    fn a_hold_that_timed_out_is_expired_even_if_the_release_comes_first() {
        let now = Instant::now();
        let mut hold = held(Epoch(3), now);
        hold.tick(now + LONG / 2);
        assert!(!hold.is_open());
        assert!(!hold.release(Epoch(3), now + LONG));
        assert!(hold.is_open());
        assert_eq!(hold.expired(), Epoch(3));
    }

    #[test]
    fn a_checkpoint_that_never_became_durable_leaves_nothing() {
        let mut hold = Hold::new(Epoch::default());
        hold.close(Epoch(1));
        hold.abandon(Epoch(0));
        assert!(hold.is_open());
        assert_eq!(hold.expired(), Epoch::default());
        let mut durable = held(Epoch(1), Instant::now());
        durable.abandon(Epoch(1));
        assert!(!durable.is_open());
    }

    #[test]
    fn a_checkpoint_on_record_that_was_never_held_is_expired() {
        let mut hold = Hold::new(Epoch::default());
        hold.close(Epoch(2));
        hold.abandon(Epoch(2));
        assert!(hold.is_open());
        assert_eq!(hold.expired(), Epoch(2));
    }
}
