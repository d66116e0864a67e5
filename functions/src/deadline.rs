//! Stopping in time: what Lambda cuts off leaves no reason behind, and nothing that a state machine could tell from a bug.

use std::future::Future;
use std::time::Duration;

use rehost_control::steps::StepError;

use crate::clock::since_epoch;

/// So much before Lambda's own limit, work stops: enough to say so.
const MARGIN: Duration = Duration::from_secs(1);

/// The work's result, or `RetryableUnavailable` when it does not end in time. `deadline_ms` is Lambda's, since 1970.
pub(crate) async fn within<T>(
    deadline_ms: u64,
    work: impl Future<Output = Result<T, StepError>>,
) -> Result<T, StepError> {
    let Some(left) = time_left(deadline_ms, since_epoch()) else { return work.await };
    tokio::time::timeout(left, work).await.unwrap_or_else(|_| Err(out_of_time(left)))
}

/// How long work may take; `None` when nobody says (some emulators give no deadline, or one of the past).
fn time_left(deadline_ms: u64, now: Duration) -> Option<Duration> {
    let left = Duration::from_millis(deadline_ms).checked_sub(now).filter(|left| !left.is_zero())?;
    Some(left.saturating_sub(MARGIN.min(left / 4)))
}

fn out_of_time(after: Duration) -> StepError {
    let cause = format!(
        "not done after {} ms, just before the function's time was up; what is done stays, and the next attempt goes on from there",
        after.as_millis()
    );
    StepError { name: "RetryableUnavailable".to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(1_900_000_000_000);

    #[test]
    fn there_is_time_left_to_say_that_there_is_none() {
        for (after_ms, left_ms) in
            [(60_000, Some(59_000)), (4000, Some(3000)), (400, Some(300)), (1, Some(1)), (0, None), (-5, None)]
        {
            let deadline = u64::try_from(1_900_000_000_000_i64 + after_ms).unwrap();
            let left = time_left(deadline, NOW);
            assert_eq!(left.map(|left| left.as_micros().div_ceil(1000)), left_ms, "{after_ms}");
        }
        assert_eq!(time_left(0, NOW), None);
    }

    #[tokio::test]
    async fn what_does_not_end_in_time_may_be_tried_again() {
        let soon = crate::clock::millis(since_epoch()) + 200;
        let error = within(soon, std::future::pending::<Result<(), StepError>>()).await.unwrap_err();
        assert_eq!(error.name, "RetryableUnavailable");
        assert_eq!(within(soon, async { Ok(7) }).await, Ok(7));
        assert_eq!(within(0, async { Ok(7) }).await, Ok(7));
    }
}
