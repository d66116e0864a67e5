use std::collections::BTreeSet;

use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::ErrorMetadata;

use super::*;

fn answered(code: Option<&str>, status: u16) -> SdkError<PutItemError, HttpResponse> {
    let mut meta = ErrorMetadata::builder().message("because");
    if let Some(code) = code {
        meta = meta.code(code);
    }
    let response = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::empty());
    SdkError::service_error(PutItemError::generic(meta.build()), response)
}

fn kind(code: Option<&str>, status: u16) -> PortErrorKind {
    failed("dynamodb:PutItem", "JOB#1", &answered(code, status)).kind
}

#[test]
fn every_code_means_what_the_table_says_whatever_the_status() {
    for (code, expected) in CODES {
        for status in [400, 403, 500] {
            assert_eq!(kind(Some(code), status), *expected, "{code}");
        }
    }
}

#[test]
fn no_code_stands_twice() {
    let codes: BTreeSet<_> = CODES.iter().map(|(code, _)| code).collect();
    assert_eq!(codes.len(), CODES.len());
}

#[test]
fn what_goes_away_by_itself_is_retryable_and_nothing_else() {
    let retryable = ["ThrottlingException", "SlowDown", "InternalServerError", "ConditionalCheckFailedException"];
    let not = ["AccessDeniedException", "ValidationException", "ExecutionLimitExceeded", "NoSuchKey", "InvalidToken"];
    assert!(retryable.iter().all(|code| kind(Some(code), 400).retryable()));
    assert!(not.iter().all(|code| !kind(Some(code), 400).retryable()));
}

#[test]
fn an_unknown_code_is_judged_by_its_status() {
    let expected = [
        (400, Invalid),
        (401, Denied),
        (403, Denied),
        (404, NotFound),
        (408, Unavailable),
        (409, Conflict),
        (412, Conflict),
        (413, Invalid),
        (429, Throttled),
        (500, Unavailable),
        (503, Unavailable),
    ];
    for (status, expected) in expected {
        assert_eq!(kind(Some("SomethingNew"), status), expected, "{status}");
        assert_eq!(kind(None, status), expected, "{status}");
    }
}

#[test]
fn the_message_says_what_was_asked_for_whom_and_how_to_mend_it() {
    let error = failed("dynamodb:PutItem", "JOB#1", &answered(Some("AccessDeniedException"), 400));
    assert_eq!(
        error.message,
        "dynamodb:PutItem for JOB#1: AccessDeniedException: because; the role needs dynamodb:PutItem, and the use of the key \
         where there is one"
    );
    let error = failed("dynamodb:PutItem", "JOB#1", &answered(None, 503));
    assert_eq!(error.message, "dynamodb:PutItem for JOB#1: status 503: because");
}

#[test]
fn what_was_not_answered_is_unavailable_and_says_why() {
    let connection = ConnectorError::io("connection refused".into());
    let error = failed::<PutItemError>("dynamodb:PutItem", "JOB#1", &SdkError::dispatch_failure(connection));
    assert_eq!(error.kind, Unavailable);
    assert!(error.message.contains("connection refused"), "{error}");
    let error = failed::<PutItemError>("dynamodb:PutItem", "JOB#1", &SdkError::timeout_error("30 s are over"));
    assert_eq!(error.kind, Unavailable);
    let error = failed::<PutItemError>("dynamodb:PutItem", "JOB#1", &SdkError::construction_failure("no key"));
    assert_eq!(error.kind, Invalid);
}

#[test]
fn the_absence_of_what_was_deployed_is_not_that_of_an_item() {
    let error = deployed(failed("dynamodb:PutItem", "JOB#1", &answered(Some("ResourceNotFoundException"), 400)));
    assert_eq!(error.kind, Invalid);
    assert!(error.message.ends_with("deploy the stack again"), "{error}");
    assert_eq!(deployed(PortError::conflict("x")), PortError::conflict("x"));
}
