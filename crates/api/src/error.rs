//! Errors as MGN's clients expect them: an HTTP status, the exception's name in `x-amzn-errortype`, and a JSON body.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rehost_control::operations::OperationError;
use rehost_control::{PortError, PortErrorKind};
use serde::Serialize;

/// The header that names the exception; clients of rest-json services look here first.
pub const ERROR_TYPE_HEADER: &str = "x-amzn-errortype";

/// After how many seconds a client may try again when the other side is busy.
const RETRY_AFTER_SECONDS: u32 = 2;

/// The exceptions that this API raises: MGN's own, and those that every AWS service shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    Validation,
    ResourceNotFound,
    Conflict,
    AccessDenied,
    ServiceQuotaExceeded,
    Throttling,
    InternalServer,
    UnknownOperation,
    MissingAuthenticationToken,
    IncompleteSignature,
    InvalidSignature,
    UnrecognizedClient,
    RequestTimeTooSkewed,
    RequestTooLarge,
}

impl Exception {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Validation => "ValidationException",
            Self::ResourceNotFound => "ResourceNotFoundException",
            Self::Conflict => "ConflictException",
            Self::AccessDenied => "AccessDeniedException",
            Self::ServiceQuotaExceeded => "ServiceQuotaExceededException",
            Self::Throttling => "ThrottlingException",
            Self::InternalServer => "InternalServerException",
            Self::UnknownOperation => "UnknownOperationException",
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::IncompleteSignature => "IncompleteSignatureException",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::RequestTimeTooSkewed => "RequestTimeTooSkewed",
            Self::RequestTooLarge => "RequestEntityTooLargeException",
        }
    }

    /// The HTTP status that goes with it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Validation | Self::IncompleteSignature => StatusCode::BAD_REQUEST,
            Self::ResourceNotFound | Self::UnknownOperation => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::AccessDenied
            | Self::MissingAuthenticationToken
            | Self::InvalidSignature
            | Self::UnrecognizedClient
            | Self::RequestTimeTooSkewed => StatusCode::FORBIDDEN,
            Self::ServiceQuotaExceeded => StatusCode::PAYMENT_REQUIRED,
            Self::Throttling => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalServer => StatusCode::INTERNAL_SERVER_ERROR,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// MGN's `ValidationExceptionReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ValidationReason {
    CannotParse,
    FieldValidationFailed,
    Other,
}

/// The body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    message: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ValidationReason>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    field_list: Vec<Field>,
}

/// MGN's `ValidationExceptionField`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Field {
    name: String,
    message: String,
}

/// An error that is about to be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", exception.name(), body.message)]
pub struct ApiError {
    exception: Exception,
    retry_after: Option<u32>,
    body: Box<Body>,
}

impl ApiError {
    /// An error with nothing but a message: what, where, and how to mend it.
    pub fn new(exception: Exception, message: impl std::fmt::Display) -> Self {
        let body = Body {
            message: message.to_string(),
            code: exception.name(),
            resource_id: None,
            resource_type: None,
            reason: None,
            field_list: Vec::new(),
        };
        Self { exception, retry_after: None, body: Box::new(body) }
    }

    /// A field of the request that will not do.
    pub fn field(name: &str, message: impl std::fmt::Display) -> Self {
        let message = message.to_string();
        let mut error = Self::new(Exception::Validation, format!("{name}: {message}"));
        error.body.reason = Some(ValidationReason::FieldValidationFailed);
        error.body.field_list = vec![Field { name: name.to_owned(), message }];
        error
    }

    /// A body that is not what the operation takes.
    pub fn cannot_parse(message: impl std::fmt::Display) -> Self {
        let mut error = Self::new(Exception::Validation, message);
        error.body.reason = Some(ValidationReason::CannotParse);
        error
    }

    /// The exception.
    #[must_use]
    pub fn exception(&self) -> Exception {
        self.exception
    }

    /// The text for the user.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.body.message
    }

    fn of_resource(mut self, resource_type: &'static str, resource_id: String) -> Self {
        self.body.resource_type = Some(resource_type);
        self.body.resource_id = Some(resource_id);
        self
    }

    fn retryable(mut self) -> Self {
        self.retry_after = Some(RETRY_AFTER_SECONDS);
        self
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        let message = error.to_string();
        match error {
            OperationError::NotFound { resource_type, resource_id } => {
                Self::new(Exception::ResourceNotFound, message).of_resource(resource_type, resource_id)
            }
            OperationError::Conflict { resource_type, resource_id, .. } => {
                Self::new(Exception::Conflict, message).of_resource(resource_type, resource_id)
            }
            OperationError::Validation { message, field } => Self::field(field, message),
            OperationError::Port(error) => error.into(),
        }
    }
}

impl From<PortError> for ApiError {
    fn from(error: PortError) -> Self {
        let raise = |exception| Self::new(exception, &error.message);
        match error.kind {
            PortErrorKind::NotFound => raise(Exception::ResourceNotFound),
            PortErrorKind::Conflict => raise(Exception::Conflict).retryable(),
            PortErrorKind::Throttled => raise(Exception::Throttling).retryable(),
            PortErrorKind::Unavailable => raise(Exception::InternalServer).retryable(),
            PortErrorKind::Denied => raise(Exception::AccessDenied),
            PortErrorKind::Quota => raise(Exception::ServiceQuotaExceeded),
            PortErrorKind::Full => raise(Exception::InternalServer),
            PortErrorKind::Invalid => raise(Exception::Validation),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.exception.status();
        if status.is_server_error() {
            tracing::error!(error = %self, "a request failed");
        }
        let mut response = (status, Json(&self.body)).into_response();
        let headers = response.headers_mut();
        headers.insert(ERROR_TYPE_HEADER, HeaderValue::from_static(self.exception.name()));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_have_mgns_shape() {
        let conflict = OperationError::Conflict {
            message: "the server is busy".to_owned(),
            resource_type: "SourceServer",
            resource_id: "s-1".to_owned(),
        };
        let field = OperationError::Validation { message: "is empty".to_owned(), field: "sourceServerIDs" };
        let missing = OperationError::NotFound { resource_type: "Job", resource_id: "mgnjob-1".to_owned() };
        let table = [
            (
                ApiError::from(conflict),
                409,
                "ConflictException",
                "\"resourceId\":\"s-1\",\"resourceType\":\"SourceServer\"",
            ),
            (field.into(), 400, "ValidationException", "\"reason\":\"fieldValidationFailed\""),
            (missing.into(), 404, "ResourceNotFoundException", "\"resourceType\":\"Job\""),
            (PortError::unavailable("no store").into(), 500, "InternalServerException", "no store"),
            (PortError::new(PortErrorKind::Throttled, "slow down").into(), 429, "ThrottlingException", "slow down"),
            (ApiError::cannot_parse("not JSON"), 400, "ValidationException", "\"reason\":\"cannotParse\""),
        ];
        for (error, status, name, part) in table {
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), status, "{name}");
            assert_eq!(response.headers()[ERROR_TYPE_HEADER], name);
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(body.contains(part) && body.contains("\"message\":"), "{body}");
        }
    }
}
