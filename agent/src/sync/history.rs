//! What is known of the checkpoints and freezes so far: survives sessions, not the agent.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rehost_model::replication::Consistency;

/// Freezes that are remembered.
const FREEZES: usize = 256;

/// Of one machine.
#[derive(Debug, Default)]
pub(super) struct History {
    newest: Option<Newest>,
    freezes: VecDeque<Duration>,
    /// Why the newest checkpoint is not better than it is.
    shortfall: Option<String>,
}

/// The newest acknowledged checkpoint.
#[derive(Clone, Copy, Debug)]
struct Newest {
    /// The moment of which it is the state.
    at: Instant,
    consistency: Consistency,
}

/// How long writers were blocked; milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FreezeStats {
    /// How many freezes these figures are of: the last ones only.
    pub count: u64,
    /// The last one.
    pub last_ms: u64,
    /// Half of them took at most this long.
    pub p50_ms: u64,
    /// 99 of 100 took at most this long.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

impl History {
    pub(super) fn acknowledged(&mut self, at: Instant, consistency: Consistency, shortfall: Option<String>) {
        self.newest = Some(Newest { at, consistency });
        self.shortfall = shortfall;
    }

    pub(super) fn froze(&mut self, blocked: Duration) {
        if self.freezes.len() == FREEZES {
            self.freezes.pop_front();
        }
        self.freezes.push_back(blocked);
    }

    pub(super) fn consistency(&self) -> Option<Consistency> {
        self.newest.map(|newest| newest.consistency)
    }

    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.newest.map(|newest| now.saturating_duration_since(newest.at))
    }

    pub(super) fn shortfall(&self) -> Option<&str> {
        self.shortfall.as_deref()
    }

    pub(super) fn freezes(&self) -> Option<FreezeStats> {
        let last = self.freezes.back()?;
        let mut sorted: Vec<Duration> = self.freezes.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(FreezeStats {
            count: sorted.len() as u64,
            last_ms: milliseconds(*last),
            p50_ms: milliseconds(at(50).unwrap_or_default()),
            p99_ms: milliseconds(at(99).unwrap_or_default()),
            max_ms: milliseconds(at(100).unwrap_or_default()),
        })
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_freezes() {
        let mut history = History::default();
        assert_eq!(history.freezes(), None);
        for milliseconds in (1..=200).rev() {
            history.froze(Duration::from_millis(milliseconds));
        }
        let expected = FreezeStats { count: 200, last_ms: 1, p50_ms: 100, p99_ms: 198, max_ms: 200 };
        assert_eq!(history.freezes(), Some(expected));
        (0..FREEZES).for_each(|_| history.froze(Duration::from_millis(7)));
        let expected = FreezeStats { count: FREEZES as u64, last_ms: 7, p50_ms: 7, p99_ms: 7, max_ms: 7 };
        assert_eq!(history.freezes(), Some(expected));
    }

    #[test]
    fn the_age_counts_from_the_moment_of_the_checkpoint() {
        let mut history = History::default();
        let now = Instant::now();
        assert_eq!(history.age(now), None);
        history.acknowledged(now, Consistency::Frozen, None);
        assert_eq!(history.age(now + Duration::from_secs(3)), Some(Duration::from_secs(3)));
        assert_eq!(history.consistency(), Some(Consistency::Frozen));
    }
}
