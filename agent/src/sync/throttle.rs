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
        while let Err(debt) = self.try_take(bytes, control.throttle(), Instant::now()) {
            if control.stopped() {
                return Err(Halt::Stopped);
            }
            control.wait(debt.min(NAP));
        }
        Ok(())
    }

    /// Takes, or says after what time to ask again.
    #[expect(clippy::cast_precision_loss, reason = "bytes of a frame and of a second are far below 2^52")]
    fn try_take(&mut self, bytes: usize, limit: u64, now: Instant) -> Result<(), Duration> {
        if limit == 0 {
            (self.tokens, self.refilled) = (0.0, now);
            return Ok(());
        }
        let limit = limit as f64;
        let gained = now.duration_since(self.refilled).as_secs_f64() * limit;
        self.tokens = (self.tokens + gained).min(limit * BURST.as_secs_f64());
        self.refilled = now;
        if self.tokens < 0.0 {
            let debt = Duration::try_from_secs_f64(-self.tokens / limit).unwrap_or(NAP);
            // Not a nanosecond too early.
            return Err(debt + Duration::from_micros(1));
        }
        self.tokens -= bytes as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent in these milliseconds of a clock that only the test moves, in frames of these sizes, one after the other.
    fn sent_in(milliseconds: u64, frames: &[usize], limit: impl Fn(u64) -> u64) -> f64 {
        let mut throttle = Throttle::new();
        let start = throttle.refilled;
        let mut frames = frames.iter().cycle();
        let mut frame = *frames.next().unwrap();
        let (mut sent, mut now) = (0, start);
        let end = start + Duration::from_millis(milliseconds);
        while now < end {
            let at = u64::try_from((now - start).as_millis()).unwrap();
            match throttle.try_take(frame, limit(at), now) {
                Ok(()) => {
                    sent += frame;
                    frame = *frames.next().unwrap();
                }
                Err(debt) => now += debt.min(NAP),
            }
        }
        f64::from(u32::try_from(sent).unwrap())
    }

    fn assert_within_five_percent(sent: f64, expected: f64) {
        assert!((sent / expected - 1.0).abs() < 0.05, "{sent} bytes instead of {expected}");
    }

    #[test]
    fn the_limit_is_kept_with_frames_of_any_size() {
        for frames in [&[4120][..], &[262_168], &[24, 4120, 200_000, 25]] {
            for limit in [2_000_000, 12_500_000] {
                let sent = sent_in(10_000, frames, |_| limit);
                assert_within_five_percent(sent, 10.0 * f64::from(u32::try_from(limit).unwrap()));
            }
        }
    }

    #[test]
    fn a_new_limit_counts_within_a_tenth_of_a_second() {
        let changing = |at: u64| if at < 5000 { 1_000_000 } else { 20_000_000 };
        assert_within_five_percent(sent_in(5000, &[4120, 65_560], changing), 5e6);
        assert_within_five_percent(sent_in(10_000, &[4120, 65_560], changing), 105e6);
        // A frame that was sent without limit leaves no debt.
        let falling = |at: u64| if at < 100 { 0 } else { 1_000_000 };
        let mut throttle = Throttle::new();
        let start = throttle.refilled;
        assert!((0..100).all(|_| throttle.try_take(1 << 20, falling(0), start).is_ok()));
        assert!(throttle.try_take(4096, falling(200), start + Duration::from_millis(200)).is_ok());
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut throttle = Throttle::new();
        let later = throttle.refilled + Duration::from_secs(60);
        let mut sent = 0;
        while throttle.try_take(1000, 1_000_000, later).is_ok() {
            sent += 1000;
        }
        assert!(sent <= 101_000, "{sent}");
    }

    #[test]
    fn a_real_clock_shows_about_the_same() {
        let control = SyncControl::new();
        control.set_throttle(8_000_000);
        let mut throttle = Throttle::new();
        let started = Instant::now();
        (0..500).for_each(|_| throttle.take(8000, &control).unwrap());
        let seconds = started.elapsed().as_secs_f64();
        println!("4 MB at 8 MB/s took {seconds:.3} s");
    }
}
