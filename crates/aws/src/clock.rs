//! The system's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use rehost_control::ports::Clock;
use rehost_model::Timestamp;

/// [`Clock`] by the machine's own time, which AWS keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}
