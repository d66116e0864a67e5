//! How the SDK is set up: every call bounded in time, retried only where that is safe.
//!
//! Every call of this crate may be repeated without harm: reads, writes under a condition that knows its own write again,
//! starts of named executions, events that readers know by their sequence. So the SDK's standard retries are on. Who makes
//! calls that are not idempotent turns them off for these.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};

use crate::RegionConfig;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// How long one attempt of a call may take.
const ATTEMPT: Duration = Duration::from_secs(15);
/// How long a call may take with all its attempts: half of what the shortest step has.
const OPERATION: Duration = Duration::from_secs(30);

const ATTEMPTS: u32 = 3;
/// The longest pause between two attempts: a state machine repeats a step later, and waits without being paid for it.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// The application's name in the user agent, by which its calls are found in CloudTrail.
const APP_NAME: &str = "rehost";

/// The SDK's configuration in this region. Credentials and endpoints are found as the SDK always does.
pub async fn load(config: &RegionConfig) -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(config.region.clone()))
        .timeout_config(timeouts())
        .retry_config(retries());
    match AppName::new(APP_NAME) {
        Ok(name) => loader.app_name(name).load().await,
        Err(_) => loader.load().await,
    }
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .operation_attempt_timeout(ATTEMPT)
        .operation_timeout(OPERATION)
        .build()
}

fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(ATTEMPTS).with_max_backoff(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_one() {
        assert!(AppName::new(APP_NAME).is_ok());
    }

    #[test]
    fn every_wait_is_bounded() {
        let timeouts = timeouts();
        assert!(timeouts.connect_timeout() < timeouts.operation_attempt_timeout());
        assert!(timeouts.operation_attempt_timeout() < timeouts.operation_timeout());
        assert_eq!(retries().max_attempts(), ATTEMPTS);
    }
}
