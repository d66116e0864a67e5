//! Enrolment is signed like any request to MGN: AWS Signature Version 4, service `mgn`. Behind an HTTP API of API Gateway the
//! service is `execute-api`, since it is the gateway that checks the signature.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use zeroize::Zeroizing;

/// Who checks a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningService {
    /// The control plane itself, as MGN would.
    Mgn,
    /// API Gateway, in front of the control plane.
    ExecuteApi,
}

impl SigningService {
    /// The service's name in the credential scope.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mgn => "mgn",
            Self::ExecuteApi => "execute-api",
        }
    }
}

impl fmt::Display for SigningService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no service which signatures are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected `execute-api` (for an HTTP API of API Gateway) or `mgn` (for every other control plane)")]
pub struct UnknownSigningService;

impl FromStr for SigningService {
    type Err = UnknownSigningService;

    fn from_str(text: &str) -> Result<Self, UnknownSigningService> {
        [Self::Mgn, Self::ExecuteApi].into_iter().find(|s| s.as_str() == text).ok_or(UnknownSigningService)
    }
}

/// What a signature is made for: it holds nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningScope {
    pub service: SigningService,
    pub region: String,
}

impl SigningScope {
    /// The scope of requests to `host`. A host of API Gateway tells service and region itself; of any other host they are
    /// `service` (`mgn` if nobody says otherwise) and `region`.
    #[must_use]
    pub fn of(host: &str, region: &str, service: Option<SigningService>) -> Self {
        let gateway = gateway_region(host);
        let usual = if gateway.is_some() { SigningService::ExecuteApi } else { SigningService::Mgn };
        let service = service.unwrap_or(usual);
        let told = gateway.filter(|_| service == SigningService::ExecuteApi);
        Self { service, region: told.unwrap_or(region).to_owned() }
    }
}

/// The region of a host of API Gateway: `{api}.execute-api.{region}.amazonaws.com`, also in other partitions and through an
/// endpoint of a VPC; `None` for any other host.
#[must_use]
pub fn gateway_region(host: &str) -> Option<&str> {
    let (api, rest) = host.split_once(".execute-api.")?;
    let (region, domain) = rest.split_once('.')?;
    let domain = domain.strip_prefix("vpce.").unwrap_or(domain);
    let is_aws = matches!(domain, "amazonaws.com" | "amazonaws.com.cn");
    (is_aws && !api.is_empty() && !region.is_empty()).then_some(region)
}

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
    scope: &SigningScope,
    method: &str,
    url: &str,
    body: &[u8],
    now: SystemTime,
) -> Result<Vec<(String, String)>, SigV4Error> {
    let failed = |e: &dyn fmt::Display| SigV4Error(e.to_string());
    let token = key.session_token.as_ref().map(|t| t.to_string());
    let identity = Credentials::new(&key.id, key.secret.as_str(), token, None, "rehost").into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(&scope.region)
        .name(scope.service.as_str())
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
        let scope = SigningScope::of("127.0.0.1", "local", None);
        sign_json(&key, &scope, "POST", "https://127.0.0.1:8443/rehost/v1/enrol", b"{}", now).unwrap()
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
    #[test]
    fn hosts_of_the_gateway_tell_service_and_region() {
        use SigningService::{ExecuteApi, Mgn};
        let table = [
            ("a1b2c3.execute-api.eu-west-1.amazonaws.com", None, ExecuteApi, "eu-west-1"),
            ("a1b2c3.execute-api.cn-north-1.amazonaws.com.cn", None, ExecuteApi, "cn-north-1"),
            ("a1b2c3-vpce-0f.execute-api.eu-west-1.vpce.amazonaws.com", None, ExecuteApi, "eu-west-1"),
            ("a1b2c3.execute-api.eu-west-1.amazonaws.com", Some(Mgn), Mgn, "local"),
            ("127.0.0.1", None, Mgn, "local"),
            ("127.0.0.1", Some(ExecuteApi), ExecuteApi, "local"),
            ("rehost.example.com", Some(ExecuteApi), ExecuteApi, "local"),
            ("a.execute-api.eu-west-1.amazonaws.com.evil.example", None, Mgn, "local"),
            ("execute-api.eu-west-1.amazonaws.com", None, Mgn, "local"),
            (".execute-api.eu-west-1.amazonaws.com", None, Mgn, "local"),
            ("a.execute-api..amazonaws.com", None, Mgn, "local"),
        ];
        for (host, said, service, region) in table {
            let scope = SigningScope::of(host, "local", said);
            assert_eq!((scope.service, scope.region.as_str()), (service, region), "{host}");
        }
    }

    #[test]
    fn services_are_read_as_they_are_written() {
        for service in [SigningService::Mgn, SigningService::ExecuteApi] {
            assert_eq!(service.to_string().parse(), Ok(service));
        }
        assert_eq!("ec2".parse::<SigningService>(), Err(UnknownSigningService));
    }
}
