//! Enrolment is signed like any request to MGN: AWS Signature Version 4, service `mgn`.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use zeroize::Zeroizing;

/// The service in the credential scope.
pub const SERVICE: &str = "mgn";

/// An access key; its secret parts are wiped when it is dropped and never shown.
pub struct AccessKey {
    pub id: String,
    pub secret: Zeroizing<String>,
    pub session_token: Option<Zeroizing<String>>,
}

/// A request that could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the request cannot be signed: {0}; check the access key")]
pub struct SigV4Error(String);

/// The headers that sign a request with a JSON body; `url` is the whole URL, with the host that the client will name.
///
/// # Errors
/// [`SigV4Error`] when the key or the URL cannot be put into headers.
pub fn sign_json(
    key: &AccessKey,
    region: &str,
    method: &str,
    url: &str,
    body: &[u8],
    now: SystemTime,
) -> Result<Vec<(String, String)>, SigV4Error> {
    let failed = |e: &dyn std::fmt::Display| SigV4Error(e.to_string());
    let token = key.session_token.as_ref().map(|t| t.to_string());
    let identity = Credentials::new(&key.id, key.secret.as_str(), token, None, "rehost").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|e| failed(&e))?;
    let headers = std::iter::once(("content-type", "application/json"));
    let request = SignableRequest::new(method, url, headers, SignableBody::Bytes(body)).map_err(|e| failed(&e))?;
    let (instructions, _) = sign(request, &params.into()).map_err(|e| failed(&e))?.into_parts();
    Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn headers(session_token: Option<&str>) -> Vec<(String, String)> {
        let key = AccessKey {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Zeroizing::new("secret".to_owned()),
            session_token: session_token.map(|t| Zeroizing::new(t.to_owned())),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        sign_json(&key, "local", "POST", "https://127.0.0.1:8443/rehost/v1/enrol", b"{}", now).unwrap()
    }

    fn value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
        headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn the_scope_names_region_and_service_and_the_secret_stays_out() {
        let headers = headers(None);
        let authorization = value(&headers, "authorization").unwrap();
        assert!(
            authorization.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/local/mgn/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature="
            ),
            "{authorization}"
        );
        assert!(headers.iter().all(|(_, v)| !v.contains("secret")));
        assert!(value(&headers, "x-amz-security-token").is_none());
    }

    #[test]
    fn a_session_token_is_sent_and_signed() {
        let headers = headers(Some("token"));
        assert_eq!(value(&headers, "x-amz-security-token"), Some("token"));
        assert!(value(&headers, "authorization").unwrap().contains("x-amz-security-token"));
    }
}
