//! The system's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use rehost_model::Timestamp;

use crate::ports::Clock;

/// [`Clock`] by the machine's own time, in every region.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A clock that stands before 1970 was never set: the beginning of time is as good as any.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_of_this_century_and_goes_on() {
        let first = SystemClock.now();
        assert!(first > Timestamp::from_unix_ms(1_700_000_000_000));
        assert!(SystemClock.now() >= first);
    }
}
