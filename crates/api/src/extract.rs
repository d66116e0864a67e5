//! Extractors: a body is read within bounds, its sender is authenticated, and only then is it parsed.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header;
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rehost_control::link::CertificateIdentity;
use rehost_link::signature::{MAX_CLOCK_SKEW, SignatureError, VerifiedCertificate, verify};
use rehost_model::region::{REPLICATOR_URI, SERVER_URI, VOLUME_URI};
use serde::de::DeserializeOwned;

use crate::access::{Authentication, Permission};
use crate::error::{ApiError, Exception};
use crate::{ApiState, gateway, sigv4};

/// No operation takes more.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A manifest of as many chunks as a volume may have is some 2.5 MB long.
const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A request of somebody who may do everything.
pub(crate) struct Admin<T>(pub(crate) T);

/// A request of somebody who may at least enrol source servers.
pub(crate) struct Enroller<T>(pub(crate) T);

/// A request signed with a certificate of the region.
pub(crate) struct Certified<T> {
    pub(crate) identity: CertificateIdentity,
    pub(crate) body: T,
}

/// As [`Certified`], for manifests: they may be longer than anything else.
pub(crate) struct CertifiedManifest<T> {
    pub(crate) identity: CertificateIdentity,
    pub(crate) manifest: T,
}

/// A request that proves itself by its content.
pub(crate) struct Unsigned<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<ApiState> for Admin<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let (body, permission) = authenticated(request, state).await?;
        if permission != Permission::Admin {
            let message = "this access key may only enrol source servers; use the region's admin key";
            return Err(ApiError::new(Exception::AccessDenied, message));
        }
        parse(&body).map(Self)
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Enroller<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let (body, Permission::Admin | Permission::Enrol) = authenticated(request, state).await?;
        parse(&body).map(Self)
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Certified<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let (parts, body) = read(request).await?;
        let identity = identity(state, &parts, &body)?;
        Ok(Self { identity, body: parse(&body)? })
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for CertifiedManifest<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let (parts, body) = read_at_most(request, MAX_MANIFEST_BYTES).await?;
        let identity = identity(state, &parts, &body)?;
        Ok(Self { identity, manifest: parse(&body)? })
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Unsigned<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &ApiState) -> Result<Self, ApiError> {
        let (_, body) = read(request).await?;
        parse(&body).map(Self)
    }
}

async fn authenticated(request: Request, state: &ApiState) -> Result<(Bytes, Permission), ApiError> {
    let (parts, body) = read(request).await?;
    let permission = match &state.authentication {
        Authentication::Keys(keys) => sigv4::verify(keys.as_ref(), state.ports.clock.now(), &parts, &body).await?,
        Authentication::Gateway => gateway::verify(&state.ports.account, &parts)?,
    };
    Ok((body, permission))
}

async fn read(request: Request) -> Result<(Parts, Bytes), ApiError> {
    read_at_most(request, MAX_BODY_BYTES).await
}

async fn read_at_most(request: Request, most: usize) -> Result<(Parts, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIMEOUT, read_body(body, most)).await;
    let body =
        read.map_err(|_| ApiError::cannot_parse(format!("the body did not arrive within {BODY_TIMEOUT:?}")))??;
    Ok((parts, body))
}

async fn read_body(body: Body, most: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the body has more than {most} bytes");
            Err(ApiError::new(Exception::RequestTooLarge, message))
        }
        Err(error) => Err(ApiError::cannot_parse(format!("the body ended early: {error}"))),
    }
}

/// Clients send no body at all where every member is optional.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|e| ApiError::cannot_parse(format!("the body is not what is expected: {e}")))
}

fn identity(state: &ApiState, parts: &Parts, body: &[u8]) -> Result<CertificateIdentity, ApiError> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let header = header.ok_or_else(|| refusal(&SignatureError::Missing))?;
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let (ca, now) = (state.authority.certificate_der(), state.ports.clock.now());
    let verified = verify(header, method, path, body, ca, now, MAX_CLOCK_SKEW).map_err(|e| refusal(&e))?;
    Ok(holder(verified))
}

fn holder(certificate: VerifiedCertificate) -> CertificateIdentity {
    let named = |prefix: &'static str| certificate.uri_sans.iter().filter_map(move |uri| uri.strip_prefix(prefix));
    CertificateIdentity {
        server: named(SERVER_URI).find_map(|id| id.parse().ok()),
        replicator: named(REPLICATOR_URI).find_map(|id| id.parse().ok()),
        volumes: named(VOLUME_URI).filter_map(|id| id.parse().ok()).collect(),
        serial: certificate.serial_hex,
    }
}

fn refusal(error: &SignatureError) -> ApiError {
    let exception = match error {
        SignatureError::Missing => Exception::MissingAuthenticationToken,
        SignatureError::Malformed { .. } => Exception::IncompleteSignature,
        SignatureError::ClockSkew { .. } => Exception::RequestTimeTooSkewed,
        SignatureError::Expired { .. } | SignatureError::NotYetValid { .. } | SignatureError::Untrusted { .. } => {
            Exception::UnrecognizedClient
        }
        SignatureError::Mismatch => Exception::InvalidSignature,
        SignatureError::UnusableKey => Exception::InternalServer,
    };
    ApiError::new(exception, error)
}
