//! Which errors a retrier or a catcher answers, and how long a retry waits.

use super::asl::{Catcher, Retrier};

/// Why a task failed: an error's name, which Retry and Catch match on, and its description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskError {
    pub error: String,
    pub cause: String,
}

impl TaskError {
    pub(super) fn new(error: &str, cause: impl Into<String>) -> Self {
        Self { error: error.to_owned(), cause: cause.into() }
    }
}

/// A task, or the whole execution, took longer than its `TimeoutSeconds`.
pub(super) const TIMEOUT: &str = "States.Timeout";
/// A task that waits for its token heard nothing for its `HeartbeatSeconds`.
pub(super) const HEARTBEAT_TIMEOUT: &str = "States.HeartbeatTimeout";
/// A path in the `Parameters` of a task leads nowhere in its input.
pub(super) const PARAMETER_PATH: &str = "States.ParameterPathFailure";
/// A task failed in a way that has no better name.
pub(super) const TASK_FAILED: &str = "States.TaskFailed";
/// The input of a state does not hold what the state needs.
pub(super) const RUNTIME: &str = "States.Runtime";
/// No rule of a choice matched, and it has no default.
pub(super) const NO_CHOICE_MATCHED: &str = "States.NoChoiceMatched";
/// A result could not be put where its `ResultPath` says.
pub(super) const RESULT_PATH: &str = "States.ResultPathMatchFailure";

/// Whether `error` is among `names`. `States.ALL` stands for every error but `States.Runtime`, which nothing catches;
/// `States.TaskFailed` for every one of these but timeouts, `States.Timeout` for these: a missing heartbeat is one.
fn matches(names: &[String], error: &str) -> bool {
    names.iter().any(|name| match name.as_str() {
        "States.ALL" => error != RUNTIME,
        TASK_FAILED => !is_timeout(error) && error != RUNTIME,
        TIMEOUT => is_timeout(error),
        name => name == error,
    })
}

/// Whether the error is that time ran out.
pub(super) fn is_timeout(error: &str) -> bool {
    error == TIMEOUT || error == HEARTBEAT_TIMEOUT
}

/// The first retrier that answers the error, with its place in the list. Only this one counts: when its attempts are used
/// up, a later one that would also match is not asked.
pub(super) fn retrier<'a>(retriers: &'a [Retrier], error: &str) -> Option<(usize, &'a Retrier)> {
    retriers.iter().enumerate().find(|(_, retrier)| matches(&retrier.error_equals, error))
}

/// The first catcher that answers the error.
pub(super) fn catcher<'a>(catchers: &'a [Catcher], error: &str) -> Option<&'a Catcher> {
    catchers.iter().find(|catcher| matches(&catcher.error_equals, error))
}

/// Milliseconds before the retry that follows `earlier` retries. `jitter` is drawn from 0 to 1.
pub(super) fn delay_ms(retrier: &Retrier, earlier: u64, jitter: f64) -> u64 {
    let most = retrier.max_delay_seconds.unwrap_or(MAX_DELAY_SECONDS);
    let exponent = i32::try_from(earlier).unwrap_or(i32::MAX);
    let seconds = seconds(retrier.interval_seconds) * retrier.backoff_rate.powi(exponent);
    let seconds = seconds.min(self::seconds(most));
    let drawn = if retrier.full_jitter { seconds * jitter.clamp(0.0, 1.0) } else { seconds };
    milliseconds(drawn)
}

/// No retry waits longer than this; about a year.
const MAX_DELAY_SECONDS: u64 = 31_622_399;

#[expect(clippy::cast_precision_loss, reason = "at most 99,999,999: exact")]
fn seconds(whole: u64) -> f64 {
    whole as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a year")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn which_names_stand_for_which_errors() {
        let table = [
            ("States.ALL", "RetryableUnavailable", true),
            ("States.ALL", TIMEOUT, true),
            ("States.ALL", TASK_FAILED, true),
            ("States.ALL", RESULT_PATH, true),
            ("States.ALL", RUNTIME, false),
            ("States.TaskFailed", "RetryableUnavailable", true),
            ("States.TaskFailed", TASK_FAILED, true),
            ("States.TaskFailed", TIMEOUT, false),
            ("States.TaskFailed", RUNTIME, false),
            ("States.Timeout", TIMEOUT, true),
            ("States.Timeout", "Timeout", false),
            ("States.Timeout", HEARTBEAT_TIMEOUT, true),
            ("States.HeartbeatTimeout", HEARTBEAT_TIMEOUT, true),
            ("States.HeartbeatTimeout", TIMEOUT, false),
            ("States.TaskFailed", HEARTBEAT_TIMEOUT, false),
            ("States.TaskFailed", PARAMETER_PATH, true),
            ("Conflict", "Conflict", true),
            ("Conflict", "ConflictException", false),
        ];
        for (name, error, expected) in table {
            assert_eq!(matches(&names(&[name]), error), expected, "{name} and {error}");
        }
        assert!(matches(&names(&["A", "B"]), "B"));
    }

    #[test]
    fn delays_grow_to_their_bound() {
        let retrier = Retrier {
            error_equals: names(&["A"]),
            interval_seconds: 2,
            max_attempts: 9,
            backoff_rate: 1.5,
            max_delay_seconds: Some(6),
            full_jitter: false,
        };
        let delays: Vec<u64> = (0..5).map(|earlier| delay_ms(&retrier, earlier, 0.1)).collect();
        assert_eq!(delays, [2000, 3000, 4500, 6000, 6000]);
        let jittered = Retrier { full_jitter: true, ..retrier.clone() };
        assert_eq!([0.0, 0.5, 1.0].map(|jitter| delay_ms(&jittered, 1, jitter)), [0, 1500, 3000]);
        let endless = Retrier { max_delay_seconds: None, ..retrier };
        assert_eq!(delay_ms(&endless, u64::MAX, 0.0), MAX_DELAY_SECONDS * 1000);
    }
}
