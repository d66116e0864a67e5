//! A token bucket that obeys its setting while it is in use.

use std::time::{Duration, Instant};

use super::{control::SyncControl, error::Halt};

/// How much may be saved up, as time at the limit's rate.
const BURST: Duration = Duration::from_millis(100);
/// A new setting, or the end, is noticed within this.
const NAP: Duration = Duration::from_millis(50);

/// May go into debt for one frame; whoever comes next waits until it is paid.
pub(super) struct Throttle {
    tokens: f64,
    refilled: Instant,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { tokens: 0.0, refilled: Instant::now() }
    }

    /// Waits until `bytes` may be sent.
    pub(super) fn take(&mut self, bytes: usize, control: &SyncControl) -> Result<(), Halt> {
        while !self.try_take(bytes, control.throttle(), Instant::now()) {
            if control.stopped() {
                return Err(Halt::Stopped);
            }
            control.wait(NAP);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of a frame and of a second are far below 2^52")]
    fn try_take(&mut self, bytes: usize, limit: u64, now: Instant) -> bool {
        if limit == 0 {
            (self.tokens, self.refilled) = (0.0, now);
            return true;
        }
        let limit = limit as f64;
        let gained = now.duration_since(self.refilled).as_secs_f64() * limit;
        self.tokens = (self.tokens + gained).min(limit * BURST.as_secs_f64());
        self.refilled = now;
        if self.tokens < 0.0 {
            return false;
        }
        self.tokens -= bytes as f64;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_in(seconds: u64, limit: impl Fn(u64) -> u64) -> u64 {
        let mut throttle = Throttle::new();
        let start = throttle.refilled;
        let mut sent = 0;
        for millisecond in 0..seconds * 1000 {
            let now = start + Duration::from_millis(millisecond);
            while limit(millisecond) > 0 && throttle.try_take(10_000, limit(millisecond), now) {
                sent += 10_000;
            }
        }
        sent
    }

    #[test]
    fn the_limit_is_kept() {
        let sent = sent_in(10, |_| 1_000_000);
        assert!((9_900_000..=10_300_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_new_limit_counts_from_then_on() {
        let sent = sent_in(10, |at| if at < 5000 { 1_000_000 } else { 2_000_000 });
        assert!((14_800_000..=15_500_000).contains(&sent), "{sent}");
    }

    #[test]
    fn no_limit_never_waits() {
        let mut throttle = Throttle::new();
        let now = throttle.refilled;
        assert!((0..1000).all(|_| throttle.try_take(1 << 20, 0, now)));
    }
}
