//! What refusals of AWS mean: each code becomes a kind of [`PortError`].
//!
//! The codes are those of the API references of DynamoDB, S3, KMS, EventBridge and Step Functions, with the errors common to
//! all services. A code that is not in the table is judged by its HTTP status.
//!
//! `NotFound` means the very thing that was asked for. Where a call needs something that the deployment made (table, bucket,
//! key, bus), its absence is `Invalid`: nobody may take it for the absence of an item.

use std::error::Error;
use std::fmt::Display;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use rehost_control::{PortError, PortErrorKind};

use PortErrorKind::{Conflict, Denied, Invalid, NotFound, Quota, Throttled, Unavailable};

/// Some refusals come with kilobytes of explanation; characters.
const LONGEST_MESSAGE: usize = 500;

/// The error of a call that failed: `action` as IAM names it (`dynamodb:PutItem`), `subject` is what it was for.
pub(crate) fn failed<E>(action: &str, subject: impl Display, error: &SdkError<E, HttpResponse>) -> PortError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let SdkError::ServiceError(refusal) = error else {
        return unanswered(action, &subject, error);
    };
    let (code, message) = (refusal.err().code(), refusal.err().message().unwrap_or("no reason was given"));
    refused(action, subject, code, message, refusal.raw().status().as_u16())
}

/// The error of a call that was answered with a code.
pub(crate) fn refused(
    action: &str,
    subject: impl Display,
    code: Option<&str>,
    message: &str,
    status: u16,
) -> PortError {
    let kind = kind_of(code.unwrap_or_default(), status);
    let code = code.map_or_else(|| format!("status {status}"), str::to_owned);
    let message = format!("{action} for {subject}: {code}: {}", shortened(message));
    match remedy(kind, action) {
        Some(remedy) => PortError::new(kind, format!("{message}; {remedy}")),
        None => PortError::new(kind, message),
    }
}

/// The code of a refusal, where the call was answered by one.
pub(crate) fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

/// For calls that need what the deployment made: its absence is not that of an item.
pub(crate) fn deployed(error: PortError) -> PortError {
    match error.kind {
        NotFound => PortError::invalid(format!("{}; deploy the stack again", error.message)),
        _ => error,
    }
}

fn unanswered<E>(action: &str, subject: &dyn Display, error: &SdkError<E, HttpResponse>) -> PortError
where
    E: Error + 'static,
{
    let why = shortened(&causes(error));
    match error {
        SdkError::ConstructionFailure(_) => {
            PortError::invalid(format!("{action} for {subject} cannot be asked: {why}"))
        }
        _ => PortError::unavailable(format!("{action} for {subject} was not answered: {why}")),
    }
}

/// An SDK's error says little itself; its sources do.
fn causes(error: &dyn Error) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn shortened(text: &str) -> String {
    text.chars().take(LONGEST_MESSAGE).collect()
}

fn remedy(kind: PortErrorKind, action: &str) -> Option<String> {
    match kind {
        Denied => Some(format!("the role needs {action}, and the use of the key where there is one")),
        Quota => Some("raise the quota or remove what is not needed".to_owned()),
        _ => None,
    }
}

/// What a code means; by the HTTP status where it is unknown.
fn kind_of(code: &str, status: u16) -> PortErrorKind {
    let known = CODES.iter().find(|(known, _)| *known == code);
    known.map_or_else(|| by_status(status), |(_, kind)| *kind)
}

fn by_status(status: u16) -> PortErrorKind {
    match status {
        401 | 403 => Denied,
        404 => NotFound,
        409 | 412 => Conflict,
        408 | 500.. => Unavailable,
        429 => Throttled,
        _ => Invalid,
    }
}

const CODES: &[(&str, PortErrorKind)] = &[
    // All services.
    ("Throttling", Throttled),
    ("ThrottlingException", Throttled),
    ("ThrottledException", Throttled),
    ("TooManyRequestsException", Throttled),
    ("RequestLimitExceeded", Throttled),
    ("RequestThrottled", Throttled),
    ("RequestThrottledException", Throttled),
    ("InternalFailure", Unavailable),
    ("InternalError", Unavailable),
    ("InternalServerError", Unavailable),
    ("InternalException", Unavailable),
    ("ServiceUnavailable", Unavailable),
    ("ServiceUnavailableException", Unavailable),
    ("RequestTimeout", Unavailable),
    ("RequestTimeoutException", Unavailable),
    ("AccessDenied", Denied),
    ("AccessDeniedException", Denied),
    ("ExpiredToken", Denied),
    ("ExpiredTokenException", Denied),
    ("IncompleteSignature", Denied),
    ("InvalidAccessKeyId", Denied),
    ("InvalidClientTokenId", Denied),
    ("InvalidSignatureException", Denied),
    ("MissingAuthenticationToken", Denied),
    ("MissingAuthenticationTokenException", Denied),
    ("NotAuthorized", Denied),
    ("OptInRequired", Denied),
    ("RequestExpired", Denied),
    ("RequestTimeTooSkewed", Denied),
    ("SignatureDoesNotMatch", Denied),
    ("UnrecognizedClientException", Denied),
    ("ValidationError", Invalid),
    ("ValidationException", Invalid),
    ("SerializationException", Invalid),
    ("ResourceNotFoundException", NotFound),
    // DynamoDB.
    ("ConditionalCheckFailedException", Conflict),
    ("TransactionConflictException", Conflict),
    ("ReplicatedWriteConflictException", Conflict),
    ("ProvisionedThroughputExceededException", Throttled),
    ("LimitExceededException", Quota),
    ("ItemCollectionSizeLimitExceededException", Quota),
    // S3.
    ("SlowDown", Throttled),
    ("OperationAborted", Conflict),
    ("ConditionalRequestConflict", Conflict),
    ("PreconditionFailed", Conflict),
    ("NoSuchKey", NotFound),
    ("NoSuchBucket", NotFound),
    ("AllAccessDisabled", Denied),
    ("InvalidObjectState", Invalid),
    ("EntityTooLarge", Invalid),
    ("KeyTooLongError", Invalid),
    ("PermanentRedirect", Invalid),
    ("AuthorizationHeaderMalformed", Invalid),
    ("KMS.DisabledException", Denied),
    ("KMS.KMSInvalidStateException", Denied),
    ("KMS.NotFoundException", Denied),
    // KMS.
    ("DisabledException", Denied),
    ("KMSInvalidStateException", Denied),
    ("InvalidGrantTokenException", Denied),
    ("DependencyTimeoutException", Unavailable),
    ("KMSInternalException", Unavailable),
    ("KeyUnavailableException", Unavailable),
    ("NotFoundException", NotFound),
    ("InvalidCiphertextException", Invalid),
    ("IncorrectKeyException", Invalid),
    ("InvalidKeyUsageException", Invalid),
    // EventBridge.
    ("NotAuthorizedForSourceException", Denied),
    ("NotAuthorizedForDetailTypeException", Denied),
    ("MalformedDetail", Invalid),
    ("InvalidArgument", Invalid),
    // Step Functions.
    ("ExecutionLimitExceeded", Quota),
    ("StateMachineDoesNotExist", NotFound),
    ("StateMachineDeleting", NotFound),
    ("ExecutionDoesNotExist", NotFound),
    ("TaskDoesNotExist", NotFound),
    ("TaskTimedOut", NotFound),
    ("InvalidToken", Invalid),
    ("InvalidArn", Invalid),
    ("InvalidName", Invalid),
    ("InvalidOutput", Invalid),
    ("InvalidExecutionInput", Invalid),
    ("KmsAccessDeniedException", Denied),
    ("KmsInvalidStateException", Denied),
    ("KmsThrottlingException", Throttled),
];

#[cfg(test)]
mod tests;
