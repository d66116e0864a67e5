//! The router over a region in memory, asked as clients ask it.

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use rehost_control::authority::Subject;
use rehost_control::ports::{ItemKey, Kind};
use rehost_link::signature::RequestSigner;
use rehost_model::link::{AgentReport, EnrolResponse, VolumeManifest};
use rehost_model::replication::Consistency;
use rehost_model::snapshot::{SnapshotSet, SnapshotSetState};
use rehost_model::{Epoch, ExecutionId, ReplicatorId, SnapshotId, TaskToken, VolumeId};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::fake::{ADMIN_KEY, ENROL_KEY, Region};

mod gateway;
mod replication;

struct Answer {
    status: StatusCode,
    exception: String,
    body: Value,
}

async fn send(region: &Region, request: Request<Body>) -> Answer {
    let response = region.router().oneshot(request).await.unwrap();
    assert!(response.headers().contains_key("x-amzn-requestid"));
    let header = response.headers().get(error::ERROR_TYPE_HEADER);
    let exception = header.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    let status = response.status();
    let bytes: Bytes = axum::body::to_bytes(response.into_body(), 1 << 22).await.unwrap();
    Answer { status, exception, body: serde_json::from_slice(&bytes).unwrap() }
}

fn signed(region: &Region, key: (&str, &str), path: &str, body: &[u8]) -> Request<Body> {
    let credentials = Credentials::new(key.0, key.1, None, None, "test").into();
    let ms = u64::try_from(region.now().unix_ms()).unwrap();
    let params = SigningParams::builder()
        .identity(&credentials)
        .region("local")
        .name("mgn")
        .time(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(ms))
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let uri = format!("http://127.0.0.1{path}");
    let signable = SignableRequest::new("POST", &uri, std::iter::empty(), SignableBody::Bytes(body)).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    let mut request = Request::post(&uri).header("host", "127.0.0.1").body(Body::from(body.to_vec())).unwrap();
    instructions.apply_to_request_http1x(&mut request);
    request
}

async fn call(region: &Region, path: &str, body: Value) -> Answer {
    send(region, signed(region, ADMIN_KEY, path, body.to_string().as_bytes())).await
}

pub(crate) fn csr() -> (rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    (key, request.pem().unwrap())
}

pub(crate) fn enrolment(csr: &str) -> Value {
    json!({
        "csr": csr,
        "properties": {"identificationHints": {"hostname": "web-1"}},
        "disks": [{"deviceName": "/dev/sda", "sizeBytes": 1 << 30, "isBootDisk": true, "partitionTable": "MBR"}],
        "firmware": "BIOS",
        "replicate": true,
        "agentVersion": "0.1.0",
    })
}

async fn enrol(region: &Region) -> (rcgen::KeyPair, EnrolResponse) {
    let (key, request) = csr();
    let body = enrolment(&request).to_string();
    let answer = send(region, signed(region, ENROL_KEY, link::ENROL_PATH, body.as_bytes())).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    (key, serde_json::from_value(answer.body).unwrap())
}

#[tokio::test]
async fn an_enrolled_server_is_described_in_mgns_shape() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let answer = call(&region, "/DescribeSourceServers", json!({})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let server = &answer.body["items"][0];
    assert_eq!(server["sourceServerID"], enrolled.source_server_id.as_str());
    assert_eq!(server["lifeCycle"]["state"], "NOT_READY");
    assert_eq!(server["sourceProperties"]["identificationHints"]["hostname"], "web-1");
    assert!(server.get("internal").is_none());
    assert!(answer.body.get("nextToken").is_none());
}

#[tokio::test]
async fn listings_are_filtered_and_paged() {
    let region = Region::new().await;
    for _ in 0..3 {
        enrol(&region).await;
    }
    let ids = |answer: &Answer| -> Vec<String> {
        let items = answer.body["items"].as_array().unwrap();
        items.iter().map(|s| s["sourceServerID"].as_str().unwrap().to_owned()).collect()
    };
    let all = ids(&call(&region, "/DescribeSourceServers", json!({})).await);
    let first = call(&region, "/DescribeSourceServers", json!({"maxResults": 2})).await;
    let next = json!({"maxResults": 2, "nextToken": first.body["nextToken"]});
    let second = call(&region, "/DescribeSourceServers", next).await;
    assert_eq!([ids(&first), ids(&second)].concat(), all);
    for (filters, expected) in [
        (json!({"sourceServerIDs": [all[1]]}), vec![all[1].clone()]),
        (json!({"isArchived": true}), vec![]),
        (json!({"lifeCycleStates": ["TESTING", "NOT_READY"]}), all.clone()),
        (json!({"lifeCycleStates": ["CUTOVER"]}), vec![]),
        (json!({"replicationTypes": ["SNAPSHOT_SHIPPING"]}), vec![]),
        (json!({"applicationIDs": ["app-0123456789abcdef0"]}), vec![]),
    ] {
        let answer = call(&region, "/DescribeSourceServers", json!({"filters": filters})).await;
        assert_eq!(ids(&answer), expected, "{filters}");
    }
}

#[tokio::test]
async fn errors_are_those_of_mgn() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let id = enrolled.source_server_id.as_str();
    let absent = "s-00000000000000000";
    let table = [
        ("/StartTest", json!({}), 400, "ValidationException"),
        ("/StartTest", json!({"sourceServerIDs": []}), 400, "ValidationException"),
        ("/StartTest", json!({"sourceServerIDs": ["x"]}), 400, "ValidationException"),
        ("/StartTest", json!({"sourceServerIDs": "x"}), 400, "ValidationException"),
        ("/StartTest", json!({"sourceServerIDs": [id, id]}), 400, "ValidationException"),
        ("/StartTest", json!({"sourceServerIDs": [absent]}), 404, "ResourceNotFoundException"),
        ("/StartTest", json!({"sourceServerIDs": [id]}), 409, "ConflictException"),
        ("/StartTest", json!({"sourceServerIDs": [id], "tags": {"": "x"}}), 400, "ValidationException"),
        ("/StartCutover", json!({"sourceServerIDs": [id]}), 409, "ConflictException"),
        ("/TerminateTargetInstances", json!({"sourceServerIDs": [id]}), 409, "ConflictException"),
        ("/FinalizeCutover", json!({"sourceServerID": id}), 409, "ConflictException"),
        ("/FinalizeCutover", json!({}), 400, "ValidationException"),
        ("/MarkAsArchived", json!({"sourceServerID": id}), 409, "ConflictException"),
        ("/MarkAsArchived", json!({"sourceServerID": absent}), 404, "ResourceNotFoundException"),
        ("/DisconnectFromService", json!({"sourceServerID": absent}), 404, "ResourceNotFoundException"),
        ("/ChangeServerLifeCycleState", json!({"sourceServerID": id}), 400, "ValidationException"),
        (
            "/ChangeServerLifeCycleState",
            json!({"sourceServerID": id, "lifeCycle": {"state": "TESTING"}}),
            400,
            "ValidationException",
        ),
        (
            "/ChangeServerLifeCycleState",
            json!({"sourceServerID": id, "lifeCycle": {"state": "READY_FOR_CUTOVER"}}),
            409,
            "ConflictException",
        ),
        ("/DescribeSourceServers", json!({"maxResults": 0}), 400, "ValidationException"),
        ("/DescribeSourceServers", json!({"nextToken": "x"}), 400, "ValidationException"),
        ("/DescribeSourceServers", json!({"accountID": "111111111111"}), 400, "ValidationException"),
        ("/DescribeSourceServers", json!({"filters": {"lifeCycleStates": ["X"]}}), 400, "ValidationException"),
        ("/DescribeJobs", json!({"filters": {"fromDate": "yesterday"}}), 400, "ValidationException"),
        ("/DescribeJobLogItems", json!({"jobID": "mgnjob-00000000000000000"}), 404, "ResourceNotFoundException"),
        ("/DescribeJobLogItems", json!({}), 400, "ValidationException"),
        ("/CreateWave", json!({}), 404, "UnknownOperationException"),
        (settings::SETTINGS_PATH, json!({"sourceServerID": id, "settings": {"x": 1}}), 400, "ValidationException"),
        (
            settings::SETTINGS_PATH,
            json!({"sourceServerID": id, "settings": {"bandwidthThrottling": 10_001}}),
            400,
            "ValidationException",
        ),
    ];
    for (path, body, status, exception) in table {
        let answer = call(&region, path, body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.exception.as_str()), (status, exception), "{path} {body}");
        assert!(answer.body["message"].as_str().is_some_and(|m| m.len() > 5), "{}", answer.body);
    }
    let conflict = call(&region, "/StartTest", json!({"sourceServerIDs": [id]})).await;
    assert_eq!((&conflict.body["resourceId"], &conflict.body["resourceType"]), (&json!(id), &json!("SourceServer")));
    let field = call(&region, "/StartTest", json!({"sourceServerIDs": ["x"]})).await;
    assert_eq!(field.body["fieldList"][0]["name"], "sourceServerIDs");
}

#[tokio::test]
async fn a_server_is_disconnected_at_once() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let server = json!({"sourceServerID": enrolled.source_server_id});
    let answer = call(&region, "/DisconnectFromService", server.clone()).await;
    assert_eq!(answer.body["lifeCycle"]["state"], "DISCONNECTED", "{}", answer.body);
}

#[tokio::test]
async fn the_installation_key_may_only_enrol() {
    let region = Region::new().await;
    for path in ["/DescribeSourceServers", "/StartTest", settings::SETTINGS_PATH] {
        let answer = send(&region, signed(&region, ENROL_KEY, path, b"{}")).await;
        assert_eq!((answer.status.as_u16(), answer.exception.as_str()), (403, "AccessDeniedException"), "{path}");
    }
}

#[tokio::test]
async fn bodies_are_bounded() {
    let region = Region::new().await;
    let answer = send(&region, signed(&region, ADMIN_KEY, "/DescribeJobs", &vec![b' '; (1 << 20) + 1])).await;
    assert_eq!(answer.exception, "RequestEntityTooLargeException");
    let get = Request::get("/DescribeJobs").body(Body::empty()).unwrap();
    assert_eq!(send(&region, get).await.exception, "UnknownOperationException");
}

#[tokio::test]
async fn settings_are_changed_and_read_back() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let change = json!({
        "sourceServerID": enrolled.source_server_id,
        "settings": {"probes": ["http:80"], "policy": {"autoTest": true}},
    });
    assert_eq!(call(&region, settings::SETTINGS_PATH, change).await.status, StatusCode::OK);
    let read = call(&region, settings::SETTINGS_PATH, json!({"sourceServerID": enrolled.source_server_id})).await;
    assert_eq!(read.body["settings"]["probes"], json!(["http:80/"]));
    assert_eq!(read.body["settings"]["policy"]["autoTest"], true);
}

pub(crate) fn report() -> Vec<u8> {
    let report = AgentReport { agent_version: "0.1.0".to_owned(), ..AgentReport::default() };
    serde_json::to_vec(&report).unwrap()
}

async fn poll(region: &Region, authorization: Option<&str>, path: &str, body: &[u8]) -> Answer {
    let mut request = Request::post(path).body(Body::from(body.to_vec())).unwrap();
    if let Some(value) = authorization {
        request.headers_mut().insert("authorization", value.parse().unwrap());
    }
    send(region, request).await
}

#[tokio::test]
async fn agents_sign_with_their_certificate() {
    let region = Region::new().await;
    let (key, enrolled) = enrol(&region).await;
    let certificate = der(&enrolled.issued.certificate);
    let signer = RequestSigner::new(&certificate, &key.serialize_der()).unwrap();
    let body = report();
    let path = link::AGENT_POLL_PATH;
    let authorization = signer.sign("POST", path, &body, region.now()).unwrap();
    let answer = poll(&region, Some(&authorization), path, &body).await;
    assert_eq!((answer.status, &answer.body["command"]["type"]), (StatusCode::OK, &json!("WAIT")), "{}", answer.body);

    assert_eq!(poll(&region, None, path, &body).await.exception, "MissingAuthenticationTokenException");
    let changed = poll(&region, Some(&authorization), path, b"{}").await;
    assert_eq!(changed.exception, "InvalidSignatureException");
    let elsewhere = poll(&region, Some(&authorization), link::AGENT_RENEW_PATH, &body).await;
    assert_eq!(elsewhere.exception, "InvalidSignatureException");
    let as_replicator = signer.sign("POST", link::REPLICATOR_POLL_PATH, &body, region.now()).unwrap();
    let denied = poll(&region, Some(&as_replicator), link::REPLICATOR_POLL_PATH, b"{}").await;
    assert_eq!(denied.exception, "InvalidSignatureException");
    region.clock.advance_ms(3_600_000);
    assert_eq!(poll(&region, Some(&authorization), path, &body).await.exception, "RequestTimeTooSkewed");
}

#[tokio::test]
async fn a_certificate_of_another_region_is_refused() {
    let (region, other) = (Region::new().await, Region::new().await);
    let (key, enrolled) = enrol(&other).await;
    let signer = RequestSigner::new(&der(&enrolled.issued.certificate), &key.serialize_der()).unwrap();
    let body = report();
    let authorization = signer.sign("POST", link::AGENT_POLL_PATH, &body, region.now()).unwrap();
    let answer = poll(&region, Some(&authorization), link::AGENT_POLL_PATH, &body).await;
    assert_eq!(answer.exception, "UnrecognizedClientException");
}

#[tokio::test]
async fn an_agents_certificate_is_no_replicators_and_a_wrong_token_enrols_nobody() {
    let region = Region::new().await;
    let (key, enrolled) = enrol(&region).await;
    let signer = RequestSigner::new(&der(&enrolled.issued.certificate), &key.serialize_der()).unwrap();
    let path = link::REPLICATOR_POLL_PATH;
    let authorization = signer.sign("POST", path, b"{}", region.now()).unwrap();
    assert_eq!(poll(&region, Some(&authorization), path, b"{}").await.exception, "AccessDeniedException");
    let (_, request) = csr();
    let body = json!({"replicator": "r-00000000000000000", "token": "guess", "csr": request}).to_string();
    let answer = poll(&region, None, link::REPLICATOR_ENROL_PATH, body.as_bytes()).await;
    assert!(answer.status.is_client_error(), "{}", answer.body);
}

/// A server that replicates to a replicator with this certificate, with one launchable snapshot at checkpoint 3.
async fn replicated(region: &Region) -> (RequestSigner, VolumeManifest) {
    let (key, request) = csr();
    let id = ReplicatorId::generate();
    let subject = Subject::Replicator { id: id.clone() };
    let issued = region.authority.issue(&request, &subject, region.now(), 7).unwrap();
    let (_, enrolled) = enrol(region).await;
    let (server, volume) = (enrolled.source_server_id, VolumeId::generate());
    let assignment =
        json!({"server": server, "volume": volume, "sizeBytes": 1 << 20, "location": "/x", "initialized": true});
    let replicator = json!({
        "id": id, "instance": null, "dedicated": false, "enrolTokenSha256": "", "enrolTokenSealed": "",
        "certificateSerials": [issued.serial_hex], "lastSeen": null, "addresses": [], "assignments": [assignment],
        "draining": false,
    });
    put(region, Kind::ReplicationServer, &id, replicator).await;
    let mut set = SnapshotSet::requested(server.clone(), ExecutionId("x".to_owned()), Epoch(3), region.now());
    set.state = SnapshotSetState::Launchable;
    set.token = Some(TaskToken("a-secret-token".to_owned()));
    (set.volumes, set.snapshots) = (vec![volume.clone()], vec![SnapshotId::generate()]);
    put(region, Kind::SnapshotSet, &format!("{server}/x"), json!(set)).await;
    let manifest = VolumeManifest {
        server,
        volume,
        epoch: Epoch(3),
        consistency: Consistency::Frozen,
        size_bytes: 1 << 20,
        chunk_bytes: 1 << 19,
        root: "0fdc0a3d4f80f0ec2a7f8c3ec3ae98a3a8e8f5a7b9c0d1e2f3a4b5c6d7e8f901".to_owned(),
        chunks: vec!["-".to_owned(), "ab".repeat(16)],
    };
    (RequestSigner::new(&der(&issued.certificate_pem), &key.serialize_der()).unwrap(), manifest)
}

async fn put(region: &Region, kind: Kind, id: &impl std::fmt::Display, body: Value) {
    region.state.ports.store.put(&ItemKey::new(kind, id), body, None).await.unwrap();
}

async fn upload(region: &Region, signer: &RequestSigner, body: &[u8]) -> Answer {
    let path = link::REPLICATOR_MANIFEST_PATH;
    let authorization = signer.sign("POST", path, body, region.now()).unwrap();
    poll(region, Some(&authorization), path, body).await
}

#[tokio::test]
async fn a_replicators_manifest_is_shown_with_its_snapshot_and_no_token() {
    let region = Region::new().await;
    let (signer, mut manifest) = replicated(&region).await;
    let wrong = upload(&region, &signer, json!(manifest).to_string().as_bytes()).await;
    assert_eq!(wrong.exception, "ValidationException", "the root is made up: {}", wrong.body);
    let mut root = blake3::Hasher::new();
    root.update(&[0; 16]).update(&[0xab; 16]);
    manifest.root = root.finalize().to_hex().to_string();
    for _ in 0..2 {
        let answer = upload(&region, &signer, json!(manifest).to_string().as_bytes()).await;
        assert_eq!((answer.status, &answer.body), (StatusCode::OK, &json!({})));
    }
    let list = call(&region, snapshots::LIST_PATH, json!({"sourceServerID": manifest.server})).await;
    let item = &list.body["items"][0];
    assert_eq!((&item["verifiable"], &item["disks"][0]["root"]), (&json!(true), &json!(manifest.root)));
    assert!(!list.body.to_string().contains("a-secret-token"), "{}", list.body);

    let later = VolumeManifest { epoch: Epoch(4), ..manifest.clone() };
    let dropped = upload(&region, &signer, json!(later).to_string().as_bytes()).await;
    assert_eq!(dropped.status, StatusCode::CONFLICT, "nobody waits for that checkpoint");
    let foreign = VolumeManifest { volume: VolumeId::generate(), ..manifest.clone() };
    let denied = upload(&region, &signer, json!(foreign).to_string().as_bytes()).await;
    assert_eq!(denied.exception, "AccessDeniedException");
    let unsigned = poll(&region, None, link::REPLICATOR_MANIFEST_PATH, json!(manifest).to_string().as_bytes()).await;
    assert_eq!(unsigned.exception, "MissingAuthenticationTokenException");
}

#[tokio::test]
async fn a_manifest_may_be_longer_than_other_requests_but_not_endless() {
    let region = Region::new().await;
    let (signer, manifest) = replicated(&region).await;
    for (bytes, too_large) in [((2 << 20), false), ((4 << 20) + 1, true)] {
        let mut body = json!(manifest).to_string().into_bytes();
        body.resize(bytes, b' ');
        let answer = upload(&region, &signer, &body).await;
        assert_eq!(answer.status == StatusCode::PAYLOAD_TOO_LARGE, too_large, "{bytes}: {}", answer.body);
    }
}

#[tokio::test]
async fn snapshots_are_asked_for_by_admins_alone() {
    let region = Region::new().await;
    let (_, enrolled) = enrol(&region).await;
    let id = enrolled.source_server_id.as_str();
    for path in [snapshots::LIST_PATH, snapshots::TAKE_PATH, snapshots::STATUS_PATH, snapshots::VERIFY_PATH] {
        let answer = send(&region, signed(&region, ENROL_KEY, path, b"{}")).await;
        assert_eq!(answer.exception, "AccessDeniedException", "{path}");
    }
    let early = call(&region, snapshots::TAKE_PATH, json!({"sourceServerID": id})).await;
    assert_eq!(early.exception, "ConflictException", "{}", early.body);
    let none = call(&region, snapshots::VERIFY_PATH, json!({"sourceServerID": id})).await;
    assert_eq!(none.status, StatusCode::NOT_FOUND, "{}", none.body);
    assert_eq!(call(&region, snapshots::LIST_PATH, json!({})).await.body["items"], json!([]));
    let settings =
        json!({"snapshotSchedule": {"everyMinutes": 15}, "retention": {"keepLast": 5, "hourly": 24, "daily": 7}});
    let request = json!({"sourceServerID": id, "settings": settings});
    let answer = call(&region, settings::SETTINGS_PATH, request).await;
    assert_eq!(answer.body["settings"]["retention"], settings["retention"], "{}", answer.body);
    assert_eq!(answer.body["settings"]["snapshotSchedule"], settings["snapshotSchedule"]);
    for wrong in [json!({"retention": {"keepLast": 0}}), json!({"snapshotSchedule": {"everyMinutes": 40_321}})] {
        let request = json!({"sourceServerID": id, "settings": wrong});
        assert_eq!(call(&region, settings::SETTINGS_PATH, request).await.exception, "ValidationException", "{wrong}");
    }
}

pub(crate) fn der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}
