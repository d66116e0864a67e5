//! Which launchable snapshots of a server go: a pure function of what there is, the time and the policy.

use std::collections::BTreeSet;

use rehost_model::settings::Retention;
use rehost_model::{Epoch, Timestamp};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A launchable snapshot, as far as retention is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub epoch: Epoch,
    pub created: Timestamp,
}

/// The indices of those that no rule of the policy keeps, oldest first; never the newest.
#[must_use]
pub fn expendable(sets: &[Kept], now: Timestamp, policy: Retention) -> Vec<usize> {
    let mut newest_first: Vec<(usize, Kept)> = sets.iter().copied().enumerate().collect();
    newest_first.sort_by_key(|(index, set)| std::cmp::Reverse((set.created, set.epoch, *index)));
    let last = usize::try_from(policy.keep_last.max(1)).unwrap_or(usize::MAX);
    let mut kept: BTreeSet<usize> = newest_first.iter().take(last).map(|(index, _)| *index).collect();
    kept.extend(newest_of_each(&newest_first, now, HOUR_MS, policy.hourly));
    kept.extend(newest_of_each(&newest_first, now, DAY_MS, policy.daily));
    newest_first.iter().rev().map(|(index, _)| *index).filter(|index| !kept.contains(index)).collect()
}

/// The newest of each of the last `count` periods, the present one included.
fn newest_of_each(newest_first: &[(usize, Kept)], now: Timestamp, period_ms: i64, count: u32) -> Vec<usize> {
    let period = |time: Timestamp| time.unix_ms().div_euclid(period_ms);
    let oldest = period(now) - i64::from(count);
    let mut seen = BTreeSet::new();
    let recent = newest_first.iter().filter(|(_, set)| count > 0 && period(set.created) > oldest);
    recent.filter(|(_, set)| seen.insert(period(set.created))).map(|(index, _)| *index).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn taken(minutes: &[i64]) -> Vec<Kept> {
        (1..).zip(minutes).map(|(epoch, minute)| Kept { epoch: Epoch(epoch), created: at(minute * 60_000) }).collect()
    }

    fn policy(keep_last: u32, hourly: u32, daily: u32) -> Retention {
        Retention { keep_last, hourly, daily }
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        // At minute 0, 50, 70, 110, 130 and 1500 (the second day).
        let sets = taken(&[0, 50, 70, 110, 130, 1500]);
        let now = at(1510 * 60_000);
        for (policy, expected) in [
            (policy(6, 0, 0), vec![]),
            (policy(5, 0, 0), vec![0]),
            (policy(0, 0, 0), vec![0, 1, 2, 3, 4]),
            (policy(1, 26, 0), vec![0, 2]),
            (policy(1, 25, 0), vec![0, 1, 2]),
            (policy(1, 0, 1), vec![0, 1, 2, 3, 4]),
            (policy(1, 0, 2), vec![0, 1, 2, 3]),
            (policy(2, 24, 2), vec![0, 1, 2, 3]),
        ] {
            assert_eq!(expendable(&sets, now, policy), expected, "{policy:?}");
        }
    }

    #[test]
    fn two_of_one_moment_are_told_apart_by_their_checkpoint() {
        let sets = [Kept { epoch: Epoch(8), created: at(5) }, Kept { epoch: Epoch(7), created: at(5) }];
        assert_eq!(expendable(&sets, at(9), policy(1, 1, 1)), [1]);
    }

    fn sets() -> impl Strategy<Value = Vec<Kept>> {
        let set = (0u64..50, -5_000i64..20_000)
            .prop_map(|(epoch, minute)| Kept { epoch: Epoch(epoch), created: at(minute * 60_000) });
        prop::collection::vec(set, 0..60)
    }

    proptest! {
        #[test]
        fn the_newest_stays_and_repeating_changes_nothing(
            sets in sets(), now in 0i64..20_000, last in 0u32..8, hourly in 0u32..30, daily in 0u32..10,
        ) {
            let (now, policy) = (at(now * 60_000), policy(last, hourly, daily));
            let gone = expendable(&sets, now, policy);
            let left: Vec<Kept> = (0..sets.len()).filter(|i| !gone.contains(i)).map(|i| sets[i]).collect();
            if let Some(newest) = sets.iter().max_by_key(|set| (set.created, set.epoch)) {
                prop_assert!(left.contains(newest));
            }
            prop_assert!(left.len() >= sets.len().min(last.max(1) as usize));
            prop_assert!(left.len() <= (last.max(1) + hourly + daily) as usize + future(&sets, now));
            prop_assert_eq!(expendable(&left, now, policy), Vec::<usize>::new(), "what was kept is kept again");
        }

        #[test]
        fn every_hour_and_day_of_the_policy_that_had_one_still_has_one(
            sets in sets(), now in 0i64..20_000, hourly in 0u32..30, daily in 0u32..10,
        ) {
            let now = at(now * 60_000);
            let gone = expendable(&sets, now, policy(1, hourly, daily));
            for (period_ms, count) in [(HOUR_MS, hourly), (DAY_MS, daily)] {
                let period = |set: &Kept| set.created.unix_ms().div_euclid(period_ms);
                let present = now.unix_ms().div_euclid(period_ms);
                for back in 0..i64::from(count) {
                    let of = |i: &usize| period(&sets[*i]) == present - back;
                    let had = (0..sets.len()).any(|i| of(&i));
                    let has = (0..sets.len()).any(|i| of(&i) && !gone.contains(&i));
                    prop_assert_eq!(had, has, "{} periods of {} ms back", back, period_ms);
                }
            }
        }
    }

    /// A clock that was set back leaves snapshots of the future; each period of it may keep one.
    fn future(sets: &[Kept], now: Timestamp) -> usize {
        sets.iter().filter(|set| set.created > now).count() * 2
    }
}
