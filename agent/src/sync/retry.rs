//! Sessions, one after the other, for as long as the engine runs.

use std::time::{Duration, Instant};

use rehost_model::link::AgentPhase;

use super::{
    config::SyncConfig,
    control::SyncControl,
    error::SyncError,
    session::{SyncEnd, SyncSession},
};

const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Keeps a session up: after an error it waits, longer each time in vain, and tries again. An error that only a person
/// can mend is shown at once and still tried again, slowly: the mending may happen on the other side.
pub struct SyncLoop;

impl SyncLoop {
    /// Runs until it is told to stop. The newest error is in [`SyncControl::error`] until something is acknowledged.
    pub fn run(config: &SyncConfig, control: &SyncControl) -> SyncEnd {
        let mut backoff = Backoff::default();
        while !control.stopped() {
            let mut progressed = false;
            let error = match SyncSession::run_noting(config, control, &mut progressed) {
                Ok(end) => return end,
                Err(error) => error,
            };
            control.set_error(Some(error.reported()));
            control.board.set_phase(AgentPhase::Connecting);
            if progressed {
                backoff = Backoff::default();
            }
            sleep(backoff.next(&error), control);
        }
        SyncEnd::Stopped
    }
}

/// Doubles from [`SHORTEST`] to [`LONGEST`].
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self, error: &SyncError) -> Duration {
        let full = SHORTEST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures += 1;
        if error.retryable() { jittered(full) } else { jittered(LONGEST) }
    }
}

/// Between half of it and all of it, so that the agents of a failed replicator do not come back in step.
fn jittered(full: Duration) -> Duration {
    // Without randomness there is no jitter, and nothing worse.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn sleep(duration: Duration, control: &SyncControl) {
    let until = Instant::now() + duration;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || control.stopped() {
            return;
        }
        control.wait(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehost_protocol::ErrorCode;

    #[test]
    fn waiting_grows_up_to_its_limit() {
        let error = SyncError::NotConverging { passes: 1 };
        let mut backoff = Backoff::default();
        let first = backoff.next(&error);
        assert!(first >= SHORTEST / 2 && first <= SHORTEST, "{first:?}");
        let last = (0..20).map(|_| backoff.next(&error)).last().unwrap();
        assert!(last >= LONGEST / 2 && last <= LONGEST, "{last:?}");
    }

    #[test]
    fn what_a_person_must_mend_is_tried_slowly() {
        let error = SyncError::Refused { code: ErrorCode::SizeMismatch, message: String::new() };
        assert!(Backoff::default().next(&error) >= LONGEST / 2);
    }
}
