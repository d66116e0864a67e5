//! Requests and responses as an HTTP API of API Gateway exchanges them with a function: payload format 2.0.
//!
//! Whoever sent a request is told by `requestContext.authorizer.iam` alone. The gateway writes it after its check of the
//! signature; nothing of it comes from the client, whose headers and body stand elsewhere in the event.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rehost_api::{ApiError, GatewayCaller};
use serde::{Deserialize, Serialize};

/// A response of the function has at most 6 MB, of which the envelope takes some.
const MAX_ANSWER_BYTES: usize = 5 << 20;

/// A request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayRequest {
    pub(crate) raw_path: String,
    #[serde(default)]
    pub(crate) raw_query_string: String,
    /// Lower-case names; the values of a header that came more than once are joined by commas.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: Option<String>,
    #[serde(default)]
    pub(crate) is_base64_encoded: bool,
    pub(crate) request_context: RequestContext,
}

/// What the gateway says of a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestContext {
    pub(crate) http: HttpContext,
    #[serde(default)]
    pub(crate) authorizer: Option<Authorizer>,
}

/// The request line.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct HttpContext {
    pub(crate) method: String,
}

/// Of the authorisers only IAM's counts; what another one (a function, a token) says is no caller here.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Authorizer {
    #[serde(default)]
    pub(crate) iam: Option<Iam>,
}

/// The identity behind the signature; nobody unless its ARN and account are there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Iam {
    pub(crate) user_arn: Option<String>,
    pub(crate) account_id: Option<String>,
    pub(crate) access_key: Option<String>,
}

impl GatewayRequest {
    /// The request as HTTP, with the verified caller (if there is one) in its extensions.
    ///
    /// # Errors
    /// A validation error where method, path or body are none of HTTP's.
    pub(crate) fn into_http(self) -> Result<Request<Body>, ApiError> {
        let method = Method::from_bytes(self.request_context.http.method.as_bytes());
        let method = method.map_err(|_| ApiError::cannot_parse("the method is none of HTTP's"))?;
        let query = if self.raw_query_string.is_empty() { "" } else { "?" };
        let uri = format!("{}{query}{}", self.raw_path, self.raw_query_string).parse::<Uri>();
        let uri = uri.map_err(|e| ApiError::cannot_parse(format!("the path cannot be read: {e}")))?;
        let mut request = Request::new(Body::from(bytes(self.body, self.is_base64_encoded)?));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers(&self.headers));
        if let Some(caller) = self.request_context.authorizer.and_then(|authorizer| authorizer.iam?.caller()) {
            request.extensions_mut().insert(caller);
        }
        Ok(request)
    }
}

impl Iam {
    fn caller(self) -> Option<GatewayCaller> {
        let (user_arn, account) = (self.user_arn?, self.account_id?);
        Some(GatewayCaller { user_arn, account, access_key: self.access_key.unwrap_or_default() })
    }
}

fn bytes(body: Option<String>, is_base64: bool) -> Result<Bytes, ApiError> {
    match body {
        None => Ok(Bytes::new()),
        Some(text) if is_base64 => {
            let decoded = BASE64.decode(text).map_err(|_| ApiError::cannot_parse("the body is not base64"))?;
            Ok(decoded.into())
        }
        Some(text) => Ok(text.into()),
    }
}

/// What is no header of HTTP cannot have been sent as one, and is left out.
fn headers(given: &BTreeMap<String, String>) -> HeaderMap {
    let pair = |(name, value): (&String, &String)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    given.iter().filter_map(pair).collect()
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayResponse {
    pub(crate) status_code: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    pub(crate) is_base64_encoded: bool,
}

impl GatewayResponse {
    /// The response as the gateway takes it.
    ///
    /// # Errors
    /// When it is longer than a function's answer may be.
    pub(crate) async fn of(response: Response<Body>) -> Result<Self, ApiError> {
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, MAX_ANSWER_BYTES).await.map_err(|_| {
            let message = "the answer is longer than a function may give; ask for less at once (maxResults)";
            ApiError::new(rehost_api::Exception::InternalServer, message)
        })?;
        let pair =
            |(name, value): (&HeaderName, &HeaderValue)| Some((name.to_string(), value.to_str().ok()?.to_owned()));
        let headers = head.headers.iter().filter_map(pair).collect();
        let (body, is_base64_encoded) = match String::from_utf8(body.into()) {
            Ok(text) => (text, false),
            Err(other) => (BASE64.encode(other.as_bytes()), true),
        };
        Ok(Self { status_code: head.status.as_u16(), headers, body, is_base64_encoded })
    }
}

#[cfg(test)]
pub(crate) mod tests;
