//! The requests that the official client does not know: a server's own settings and its disks, signed as the client signs.

use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rehost_api::settings::{ADD_DISK_PATH, AddDiskRequest, SETTINGS_PATH, SettingsRequest, SettingsResponse};
use rehost_api::snapshots;
use rehost_control::snapshots::{TakenSnapshot, Verified};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::target::Target;

/// No answer is longer.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Changes what `request` names and reads the rest.
pub(crate) async fn settings(target: &Target, request: &SettingsRequest) -> Result<SettingsResponse> {
    ask(target, SETTINGS_PATH, request).await
}

/// Replicates one more disk; the server as it is then.
pub(crate) async fn add_disk(target: &Target, request: &AddDiskRequest) -> Result<Value> {
    ask(target, ADD_DISK_PATH, request).await
}

/// Lists snapshots.
pub(crate) async fn snapshots(target: &Target, request: &snapshots::ListRequest) -> Result<snapshots::ListResponse> {
    ask(target, snapshots::LIST_PATH, request).await
}

/// Starts a snapshot.
pub(crate) async fn take_snapshot(
    target: &Target,
    request: &snapshots::TakeRequest,
) -> Result<snapshots::TakeResponse> {
    ask(target, snapshots::TAKE_PATH, request).await
}

/// How far a snapshot is that was started.
pub(crate) async fn snapshot_status(target: &Target, request: &snapshots::StatusRequest) -> Result<TakenSnapshot> {
    ask(target, snapshots::STATUS_PATH, request).await
}

/// Compares a part of a snapshot with its manifests.
pub(crate) async fn verify_snapshot(target: &Target, request: &snapshots::VerifyRequest) -> Result<Verified> {
    ask(target, snapshots::VERIFY_PATH, request).await
}

async fn ask<T: DeserializeOwned>(target: &Target, path: &str, request: &impl Serialize) -> Result<T> {
    let endpoint = target.endpoint().trim_end_matches('/');
    if !endpoint.starts_with("http://") {
        return Err(anyhow!("this is done on the machine of the region only (--home), not at {endpoint}"));
    }
    let uri = format!("{endpoint}{path}");
    let request = signed(target, &uri, serde_json::to_vec(request)?).await?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let answer = client.request(request).await.map_err(|e| target.unreachable(&e.to_string()))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|e| target.unreachable(&e.to_string()))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).with_context(|| format!("{uri} does not answer as a region does"));
    }
    let refusal: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (message, code) = (refusal["message"].as_str().unwrap_or("no message"), refusal["code"].as_str());
    Err(anyhow!("{message} ({})", code.unwrap_or(status.as_str())))
}

async fn signed(target: &Target, uri: &str, body: Vec<u8>) -> Result<http::Request<Full<Bytes>>> {
    let (identity, region) = (target.credentials().await?.into(), target.region());
    let params = SigningParams::builder()
        .identity(&identity)
        .region(&region)
        .name("mgn")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()?
        .into();
    let headers = [("content-type", "application/json")];
    let signable = SignableRequest::new("POST", uri, headers.into_iter(), SignableBody::Bytes(&body))?;
    let (instructions, _) = sign(signable, &params)?.into_parts();
    let mut request = http::Request::post(uri).header("content-type", "application/json");
    if let Some(authority) = uri.parse::<http::Uri>()?.authority() {
        request = request.header("host", authority.as_str());
    }
    let mut request = request.body(Full::from(body))?;
    instructions.apply_to_request_http1x(&mut request);
    Ok(request)
}
