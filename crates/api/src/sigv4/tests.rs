use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use axum::http::Request;

use super::*;
use crate::access::{AccessKey, StaticKeys};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOW_MS: i64 = 1_900_000_000_000;

fn keys() -> StaticKeys {
    StaticKeys::default().with(KEY, AccessKey::new(SECRET, Permission::Admin))
}

struct Call<'a> {
    secret: &'a str,
    service: &'a str,
    at_ms: i64,
    uri: &'a str,
    body: &'a [u8],
    token: Option<&'a str>,
}

const CALL: Call<'static> = Call {
    secret: SECRET,
    service: "mgn",
    at_ms: NOW_MS,
    uri: "http://127.0.0.1:8443/StartTest",
    body: b"{\"sourceServerIDs\":[]}",
    token: None,
};

/// Signs with AWS's own signer.
fn signed(call: &Call<'_>) -> Parts {
    let credentials = Credentials::new(KEY, call.secret, call.token.map(str::to_owned), None, "test").into();
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(call.at_ms).unwrap());
    let params = SigningParams::builder()
        .identity(&credentials)
        .region("eu-central-1")
        .name(call.service)
        .time(time)
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let headers = [("content-type", "application/json"), ("x-note", "  two   words ")];
    let body = SignableBody::Bytes(call.body);
    let signable = SignableRequest::new("POST", call.uri, headers.into_iter(), body).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    let mut request = Request::post(call.uri).header("host", "127.0.0.1:8443").body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    instructions.apply_to_request_http1x(&mut request);
    request.into_parts().0
}

async fn outcome(parts: &Parts, body: &[u8]) -> Result<Permission, Exception> {
    verify(&keys(), Timestamp::from_unix_ms(NOW_MS), parts, body).await.map_err(|e| e.exception())
}

async fn check(call: &Call<'_>) -> Result<Permission, Exception> {
    outcome(&signed(call), call.body).await
}

#[tokio::test]
async fn what_awss_signer_signs_is_accepted() {
    for uri in [
        "http://127.0.0.1:8443/StartTest",
        "http://127.0.0.1:8443/",
        "http://127.0.0.1:8443/a%20b/c?z=1&a=%2F&a=&b",
        "http://127.0.0.1:8443/tags/arn%3Aaws%3Amgn%3Alocal?tagKeys=x%20y&tagKeys=a",
    ] {
        assert_eq!(check(&Call { uri, ..CALL }).await, Ok(Permission::Admin), "{uri}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_apart() {
    let wrong_secret = Call { secret: "not the secret", ..CALL };
    assert_eq!(check(&wrong_secret).await, Err(Exception::InvalidSignature));
    assert_eq!(check(&Call { service: "ec2", ..CALL }).await, Err(Exception::InvalidSignature));
    assert_eq!(check(&Call { token: Some("a-token"), ..CALL }).await, Err(Exception::UnrecognizedClient));
    let parts = signed(&CALL);
    assert_eq!(outcome(&parts, b"{\"sourceServerIDs\":[1]}").await, Err(Exception::InvalidSignature));
    let unknown = verify(&StaticKeys::default(), Timestamp::from_unix_ms(NOW_MS), &parts, CALL.body).await;
    assert_eq!(unknown.unwrap_err().exception(), Exception::UnrecognizedClient);
}

#[tokio::test]
async fn every_signed_part_counts() {
    let changes: [fn(&mut Parts); 5] = [
        |parts| parts.method = axum::http::Method::PUT,
        |parts| parts.uri = "/FinalizeCutover".parse().unwrap(),
        |parts| parts.uri = "/StartTest?force=1".parse().unwrap(),
        |parts| drop(parts.headers.insert("x-note", "other words".parse().unwrap())),
        |parts| drop(parts.headers.insert("host", "elsewhere".parse().unwrap())),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut parts = signed(&CALL);
        change(&mut parts);
        assert_eq!(outcome(&parts, CALL.body).await, Err(Exception::InvalidSignature), "change {i}");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_by_how_much() {
    for off_ms in [-299_000, 299_000] {
        assert!(check(&Call { at_ms: NOW_MS + off_ms, ..CALL }).await.is_ok());
    }
    for (off_ms, direction) in [(-3_600_000, "behind"), (3_600_000, "ahead")] {
        let parts = signed(&Call { at_ms: NOW_MS + off_ms, ..CALL });
        let error = verify(&keys(), Timestamp::from_unix_ms(NOW_MS), &parts, CALL.body).await.unwrap_err();
        assert_eq!(error.exception(), Exception::RequestTimeTooSkewed);
        let message = error.message();
        assert!(message.starts_with("clock off by 3600 s") && message.contains(direction), "{message}");
    }
}

#[tokio::test]
async fn malformed_headers_are_refused() {
    let good = signed(&CALL).headers[header::AUTHORIZATION].to_str().unwrap().to_owned();
    let table = [
        (String::new(), Exception::IncompleteSignature),
        ("Basic YTpi".to_owned(), Exception::IncompleteSignature),
        (good.replace("Signature=", "Sig="), Exception::IncompleteSignature),
        (good.replace("Signature=", "Signature=zz"), Exception::IncompleteSignature),
        (good.replace("/aws4_request", ""), Exception::IncompleteSignature),
        (good.replace("host;", ""), Exception::IncompleteSignature),
        (good.replace("content-type;host", "host;content-type"), Exception::IncompleteSignature),
        (good.replace("content-type;host", "content-type;content-type;host"), Exception::IncompleteSignature),
        (good.replace("content-type;host", "absent;host"), Exception::IncompleteSignature),
        (good.replace(KEY, "NOBODY"), Exception::UnrecognizedClient),
        (good.replace("eu-central-1", "us-east-1"), Exception::InvalidSignature),
        (good.replace("Signature=", "Signature=00"), Exception::InvalidSignature),
    ];
    for (value, expected) in table {
        let mut parts = signed(&CALL);
        parts.headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        assert_eq!(outcome(&parts, CALL.body).await, Err(expected), "{value}");
    }
    let mut parts = signed(&CALL);
    parts.headers.remove(header::AUTHORIZATION);
    assert_eq!(outcome(&parts, CALL.body).await, Err(Exception::MissingAuthenticationToken));
}

/// AWS's published test suite, as far as it applies: the requests are given here, the signatures are AWS's.
#[test]
fn published_vectors() {
    let table = [
        ("GET", "", vec![], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "", vec![], "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "GET",
            "Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
            vec![],
            "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
        ),
        (
            "GET",
            "",
            vec![("my-header1", " value1"), ("my-header2", " \"a   b   c\"")],
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        ("POST", "Param1=value1", vec![], "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"),
    ];
    for (method, query, more, expected) in table {
        assert_eq!(signature(method, query, more), expected, "{method} {query}");
    }
}

fn signature(method: &str, query: &str, more: Vec<(&'static str, &'static str)>) -> String {
    let mut headers = HeaderMap::new();
    for (name, value) in [vec![("host", "example.amazonaws.com"), (DATE_HEADER, "20150830T123600Z")], more].concat() {
        headers.insert(name, value.parse().unwrap());
    }
    let mut signed_headers: Vec<_> = headers.keys().map(axum::http::HeaderName::as_str).collect();
    signed_headers.sort_unstable();
    let canonical =
        Canonical { method, path: "/", query, headers: &headers, signed_headers: &signed_headers, body: b"" };
    let scope = Scope { access_key_id: KEY, day: "20150830", region: "us-east-1", service: "service" };
    let text = string_to_sign("20150830T123600Z", &scope, &canonical.text().unwrap());
    hex::encode(hmac::sign(&signing_key(SECRET, &scope), text.as_bytes()))
}
