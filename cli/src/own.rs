//! The requests that the official client does not know: a server's own settings and its disks, signed as the client signs.

use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rehost_api::leftovers::{LEFTOVERS_PATH, LeftoversRequest};
use rehost_api::settings::{ADD_DISK_PATH, AddDiskRequest, SETTINGS_PATH, SettingsRequest, SettingsResponse};
use rehost_api::snapshots;
use rehost_control::reaper::Leftovers;
use rehost_control::snapshots::{TakenSnapshot, Verified};
use rehost_link::control_client::{ControlClient, ControlError, Proof, Trust};
use rehost_link::sigv4::sign_json;
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

/// Shows, or removes, what nobody needs.
pub(crate) async fn leftovers(target: &Target, request: &LeftoversRequest) -> Result<Leftovers> {
    ask(target, LEFTOVERS_PATH, request).await
}

async fn ask<T: DeserializeOwned>(target: &Target, path: &str, request: &impl Serialize) -> Result<T> {
    if target.endpoint().starts_with("https://") {
        ask_tls(target, path, request).await
    } else {
        ask_plain(target, path, request).await
    }
}

/// Over TLS with a certificate of a public authority, as API Gateway has.
async fn ask_tls<T: DeserializeOwned>(target: &Target, path: &str, request: &impl Serialize) -> Result<T> {
    let client = ControlClient::new(target.endpoint().parse()?, &Trust::PublicRoots)?;
    let key = target.access_key().await?;
    let proof = Proof::AccessKey { key: &key, scope: &target.scope };
    let answer = client.with_answers_up_to(MAX_ANSWER_BYTES).post(path, request, &proof).await;
    answer.map_err(|error| match error {
        ControlError::Refusal { status, code, message } => refusal(&message, code, status),
        other => target.unreachable(&other.to_string()),
    })
}

/// In the clear, as a region of this machine answers on loopback.
async fn ask_plain<T: DeserializeOwned>(target: &Target, path: &str, request: &impl Serialize) -> Result<T> {
    let endpoint = target.endpoint().trim_end_matches('/');
    if !endpoint.starts_with("http://") {
        return Err(anyhow!("this is asked of a region of rehost only (--home or --endpoint-url), not of {endpoint}"));
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
    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
    let code = told["code"].as_str().map(str::to_owned);
    Err(refusal(told["message"].as_str().unwrap_or("no message"), code, status.as_u16()))
}

fn refusal(message: &str, code: Option<String>, status: u16) -> anyhow::Error {
    anyhow!("{message} ({})", code.unwrap_or_else(|| status.to_string()))
}

async fn signed(target: &Target, uri: &str, body: Vec<u8>) -> Result<http::Request<Full<Bytes>>> {
    let key = target.access_key().await?;
    let mut request = http::Request::post(uri).header("content-type", "application/json");
    if let Some(authority) = uri.parse::<http::Uri>()?.authority() {
        request = request.header("host", authority.as_str());
    }
    for (name, value) in sign_json(&key, &target.scope, "POST", uri, &body, SystemTime::now())? {
        request = request.header(name, value);
    }
    Ok(request.body(Full::from(body))?)
}
