//! Faults that the proxy plants: one call fails before or after its effect, or every call fails once.
//!
//! A failure looks as the service's own would: throttling and internal errors have codes and statuses of their own in every
//! protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::calls::Call;
use super::proxy::Answer;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The connection is cut.
    Cut,
    /// The service answers that it is broken.
    Internal,
    /// The service answers that there were too many calls.
    Throttle,
}

/// One call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// How manieth call from its planting on; from 0.
    pub nth: usize,
    /// The call takes effect all the same; only its answer is lost.
    pub after_effect: bool,
    pub failure: Failure,
}

/// What struck a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Struck {
    pub(crate) after_effect: bool,
    pub(crate) failure: Failure,
}

/// What the proxy was told to let fail.
#[derive(Debug, Default)]
pub struct Faults {
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Calls since the planting.
    seen: usize,
    what: What,
    /// What has failed once already, and how often each name came since the last new beginning.
    failed: BTreeSet<(String, usize)>,
    occurrences: BTreeMap<String, usize>,
    /// Names of the calls that were struck.
    struck: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
enum What {
    #[default]
    Nothing,
    Single(Fault),
    FirstAttempts {
        after_effect: bool,
        failure: Failure,
    },
    EveryOnce(Failure),
}

impl Faults {
    /// Plants one fault; replaces whatever was planted.
    pub fn plant(&self, fault: Fault) {
        self.set(What::Single(fault));
    }

    /// From now on the SDK's first attempt at every call fails; it says itself which one that is (`amz-sdk-request`).
    pub fn fail_first_attempts(&self, after_effect: bool, failure: Failure) {
        self.set(What::FirstAttempts { after_effect, failure });
    }

    /// From now on every call of a piece of work that is begun again after each failure fails once, without effect: the first
    /// `PutItem`, the second `PutItem`, and so on. See [`Self::begin_again`].
    pub fn fail_every_call_once(&self, failure: Failure) {
        self.set(What::EveryOnce(failure));
    }

    /// The work is begun again: what comes now are its first calls.
    pub fn begin_again(&self) {
        self.plan().occurrences.clear();
    }

    /// Nothing fails any more.
    pub fn clear(&self) {
        self.set(What::Nothing);
    }

    /// How many calls were made since the last planting or clearing.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.plan().seen
    }

    /// The names of the calls that were struck since then.
    #[must_use]
    pub fn struck(&self) -> Vec<String> {
        self.plan().struck.clone()
    }

    /// Whether this call fails.
    pub(crate) fn next(&self, call: &Call) -> Option<Struck> {
        let mut plan = self.plan();
        let number = plan.seen;
        plan.seen += 1;
        let struck = match plan.what {
            What::Nothing => None,
            What::Single(Fault { nth, after_effect, failure }) => {
                (nth == number).then_some(Struck { after_effect, failure })
            }
            What::FirstAttempts { after_effect, failure } => {
                is_first_attempt(call).then_some(Struck { after_effect, failure })
            }
            What::EveryOnce(failure) => plan.is_new(call).then_some(Struck { after_effect: false, failure }),
        };
        if struck.is_some() {
            plan.struck.push(call.name());
        }
        struck
    }

    fn set(&self, what: What) {
        *self.plan() = Plan { what, ..Plan::default() };
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn is_new(&mut self, call: &Call) -> bool {
        let occurrence = self.occurrences.entry(call.name()).or_default();
        *occurrence += 1;
        self.failed.insert((call.name(), *occurrence))
    }
}

fn is_first_attempt(call: &Call) -> bool {
    let attempt = call.headers.get("amz-sdk-request").and_then(|header| header.to_str().ok());
    attempt.is_some_and(|attempt| attempt.starts_with("attempt=1;") || attempt == "attempt=1")
}

impl Failure {
    /// What the service answers; `None` when the connection is cut instead.
    pub(crate) fn answer(self, call: &Call) -> Option<Answer> {
        let (internal, status, code) = match self {
            Self::Cut => return None,
            Self::Internal => (true, 500, internal_code(&call.service)),
            Self::Throttle => (false, throttle_status(&call.service), throttle_code(&call.service)),
        };
        let message = if internal { "an internal error, as planted" } else { "too many calls, as planted" };
        Some(match call.service.as_str() {
            "ec2" => Answer::new(
                status,
                "text/xml",
                format!(
                    "<?xml version=\"1.0\"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error>\
                     </Errors><RequestID>planted</RequestID></Response>"
                ),
            ),
            "s3" => Answer::new(
                status,
                "application/xml",
                format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"),
            ),
            _ => {
                let body = serde_json::json!({"__type": code, "message": message});
                let mut answer = Answer::new(status, "application/x-amz-json-1.0", body.to_string());
                if let Ok(code) = code.parse() {
                    answer.headers.insert("x-amzn-errortype", code);
                }
                answer
            }
        })
    }
}

fn internal_code(service: &str) -> &'static str {
    match service {
        "ec2" | "s3" => "InternalError",
        "dynamodb" | "ssm" => "InternalServerError",
        "kms" => "KMSInternalException",
        "events" => "InternalException",
        "ebs" => "InternalServerException",
        _ => "InternalFailure",
    }
}

fn throttle_code(service: &str) -> &'static str {
    match service {
        "ec2" => "RequestLimitExceeded",
        "s3" => "SlowDown",
        "dynamodb" => "ProvisionedThroughputExceededException",
        "ebs" => "RequestThrottledException",
        "lambda" => "TooManyRequestsException",
        _ => "ThrottlingException",
    }
}

fn throttle_status(service: &str) -> u16 {
    match service {
        "ec2" | "s3" => 503,
        "lambda" => 429,
        _ => 400,
    }
}
