//! AWS Signature Version 4, the server's side: who signed a request, and was it changed since?
//!
//! The signature is computed again from the request as it arrived and compared in constant time. A request counts for five
//! minutes around its own date, so a clock that is off is told so, with the difference.

mod canonical;

use aws_lc_rs::hmac;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use rehost_model::Timestamp;
use time::PrimitiveDateTime;
use time::macros::format_description;

use crate::access::{AccessKeys, Permission};
use crate::error::{ApiError, Exception};
use canonical::{Canonical, sha256_hex, well_ordered};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "mgn";
const DATE_HEADER: &str = "x-amz-date";
const CONTENT_HASH_HEADER: &str = "x-amz-content-sha256";
const SESSION_TOKEN_HEADER: &str = "x-amz-security-token";

/// How far a request's date may be from the clock here.
const MAX_SKEW_MS: u64 = 5 * 60 * 1000;

/// Checks the signature of a request whose body is `body`; gives what its key may do.
///
/// # Errors
/// An [`ApiError`] as AWS's services raise it: no or a malformed signature, an unknown key, a date too far off, a signature
/// that is not that of the key's secret.
pub(crate) async fn verify(
    keys: &dyn AccessKeys,
    now: Timestamp,
    request: &Parts,
    body: &[u8],
) -> Result<Permission, ApiError> {
    verify_for(SERVICE, keys, now, request, body).await
}

/// The same for requests that are signed for another service: for whoever stands in API Gateway's place.
///
/// # Errors
/// As [`verify`].
pub async fn verify_for(
    service: &str,
    keys: &dyn AccessKeys,
    now: Timestamp,
    request: &Parts,
    body: &[u8],
) -> Result<Permission, ApiError> {
    let authorization = Authorization::of(&request.headers)?;
    refuse_session_token(&request.headers)?;
    let scope = Scope::parse(authorization.credential)?;
    let key = keys.find(scope.access_key_id).await?.ok_or_else(|| unknown_key(scope.access_key_id))?;
    let date = signed_date(&request.headers, &authorization)?;
    scope.check(service, date)?;
    check_clock(date, now)?;
    check_content_hash(&request.headers, body)?;
    let canonical = Canonical {
        method: request.method.as_str(),
        path: request.uri.path(),
        query: request.uri.query().unwrap_or(""),
        headers: &request.headers,
        signed_headers: &authorization.signed_headers,
        body,
    };
    let text = canonical.text().ok_or_else(|| incomplete("a header that is said to be signed is missing"))?;
    let expected = string_to_sign(date, &scope, &text);
    let signing_key = signing_key(key.secret(), &scope);
    hmac::verify(&signing_key, expected.as_bytes(), &authorization.signature).map_err(|_| wrong_signature())?;
    Ok(key.permission())
}

/// The `Authorization` header, taken apart.
struct Authorization<'a> {
    credential: &'a str,
    signed_headers: Vec<&'a str>,
    signature: Vec<u8>,
}

impl<'a> Authorization<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, ApiError> {
        let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
            let message = "the request is not signed; sign it with Signature Version 4 and a key of this region";
            ApiError::new(Exception::MissingAuthenticationToken, message)
        })?;
        let text = value.to_str().map_err(|_| incomplete("the Authorization header is not text"))?;
        Self::parse(text)
    }

    fn parse(text: &'a str) -> Result<Self, ApiError> {
        let rest = text
            .strip_prefix(ALGORITHM)
            .ok_or_else(|| incomplete(format!("the Authorization header does not begin with {ALGORITHM}")))?;
        let part = |name: &str| {
            let mut parts = rest.split(',').map(str::trim);
            let value = parts.find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
            value.ok_or_else(|| incomplete(format!("the Authorization header has no {name}")))
        };
        let signature = hex::decode(part("Signature")?).map_err(|_| incomplete("the Signature is not hexadecimal"))?;
        let signed_headers: Vec<_> = part("SignedHeaders")?.split(';').collect();
        if !well_ordered(&signed_headers) {
            return Err(incomplete("SignedHeaders are not lower-case and sorted"));
        }
        Ok(Self { credential: part("Credential")?, signed_headers, signature })
    }
}

/// `KEY/DATE/REGION/SERVICE/aws4_request`.
struct Scope<'a> {
    access_key_id: &'a str,
    day: &'a str,
    region: &'a str,
    service: &'a str,
}

impl<'a> Scope<'a> {
    fn parse(credential: &'a str) -> Result<Self, ApiError> {
        let parts: Vec<_> = credential.split('/').collect();
        match parts[..] {
            [access_key_id, day, region, service, "aws4_request"] => Ok(Self { access_key_id, day, region, service }),
            _ => Err(incomplete("the Credential is not KEY/DATE/REGION/SERVICE/aws4_request")),
        }
    }

    /// Any region will do: the endpoint that was dialled decides, and clients call this one as they like.
    fn check(&self, service: &str, date: &str) -> Result<(), ApiError> {
        if self.service != service {
            let message = format!("the request is signed for the service `{}`; sign it for `{service}`", self.service);
            return Err(ApiError::new(Exception::InvalidSignature, message));
        }
        if !date.starts_with(self.day) || self.day.len() != 8 {
            return Err(ApiError::new(Exception::InvalidSignature, "the Credential's date is not that of X-Amz-Date"));
        }
        Ok(())
    }

    fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.day, self.region, self.service)
    }
}

fn refuse_session_token(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(SESSION_TOKEN_HEADER) {
        let message = "this region has no session tokens, its keys are permanent; leave the session token out";
        return Err(ApiError::new(Exception::UnrecognizedClient, message));
    }
    Ok(())
}

fn signed_date<'a>(headers: &'a HeaderMap, authorization: &Authorization<'_>) -> Result<&'a str, ApiError> {
    for name in ["host", DATE_HEADER] {
        if !authorization.signed_headers.contains(&name) {
            return Err(incomplete(format!("the header {name} is not signed")));
        }
    }
    let value = headers.get(DATE_HEADER).and_then(|v| v.to_str().ok());
    value.ok_or_else(|| incomplete(format!("the header {DATE_HEADER} is missing")))
}

fn check_clock(date: &str, now: Timestamp) -> Result<(), ApiError> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = PrimitiveDateTime::parse(date, &format)
        .map_err(|_| incomplete(format!("{DATE_HEADER} is not of the form 20260131T120000Z")))?;
    let at = Timestamp::from_datetime(at.assume_utc());
    let skew_ms = at.ms_since(now).max(now.ms_since(at));
    if skew_ms <= MAX_SKEW_MS {
        return Ok(());
    }
    let direction = if at > now { "ahead" } else { "behind" };
    let message = format!(
        "clock off by {} s: the request is of {at}, {direction} of this service's {now}; set the source's clock (NTP)",
        skew_ms / 1000
    );
    Err(ApiError::new(Exception::RequestTimeTooSkewed, message))
}

fn check_content_hash(headers: &HeaderMap, body: &[u8]) -> Result<(), ApiError> {
    match headers.get(CONTENT_HASH_HEADER) {
        Some(claimed) if claimed.as_bytes() != sha256_hex(body).as_bytes() => {
            let message = format!("{CONTENT_HASH_HEADER} is not the SHA-256 of the body; it was changed on the way");
            Err(ApiError::new(Exception::InvalidSignature, message))
        }
        _ => Ok(()),
    }
}

fn string_to_sign(date: &str, scope: &Scope<'_>, canonical: &str) -> String {
    format!("{ALGORITHM}\n{date}\n{}\n{}", scope.text(), sha256_hex(canonical.as_bytes()))
}

fn signing_key(secret: &str, scope: &Scope<'_>) -> hmac::Key {
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    for part in [scope.day, scope.region, scope.service, "aws4_request"] {
        key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
    }
    key
}

fn incomplete(message: impl std::fmt::Display) -> ApiError {
    ApiError::new(Exception::IncompleteSignature, message)
}

fn unknown_key(id: &str) -> ApiError {
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    let message = format!(
        "the access key `{id}` is not one of this region; its keys stand in the file `credentials` of the region's home"
    );
    ApiError::new(Exception::UnrecognizedClient, message)
}

fn wrong_signature() -> ApiError {
    let message = "the signature is not that of the key's secret; check the secret access key, and that nothing between \
                   client and service changes requests";
    ApiError::new(Exception::InvalidSignature, message)
}

#[cfg(test)]
mod tests;
