use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::service::service_fn;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rehost_model::region::{CONTROL_ROLE, REPLICATOR_ROLE};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

struct Region {
    ca: CertificateDer<'static>,
    endpoint: Endpoint,
}

impl Region {
    /// A control plane that answers `status` and `answer` to everything, under a certificate for `role`.
    async fn start(role: &str, days: (i64, i64), status: u16, answer: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![role.to_owned()]).unwrap();
        let day = |offset| time::OffsetDateTime::now_utc() + time::Duration::days(offset);
        (params.not_before, params.not_after) = (day(days.0), day(days.1));
        let chain = vec![params.signed_by(&key, &ca).unwrap().der().clone(), ca.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), status, answer));
        Self { ca: ca.der().clone(), endpoint }
    }

    async fn good() -> Self {
        Self::start(CONTROL_ROLE, (-1, 1), 200, r#"{"a":1}"#).await
    }

    async fn ask(&self, trust: &Trust) -> Result<Value, ControlError> {
        let client = ControlClient::new(self.endpoint.clone(), trust).unwrap();
        client.post("/x", &json!({}), &Proof::Nothing).await
    }

    async fn ask_pinned(&self) -> Result<Value, ControlError> {
        self.ask(&Trust::Fingerprint(CaFingerprint::of(&self.ca))).await
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, status: u16, answer: &'static str) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.headers()[header::CONTENT_TYPE], "application/json");
                let answer =
                    http::Response::builder().status(status).body(Full::new(Bytes::from_static(answer.as_bytes())));
                Ok::<_, Infallible>(answer.unwrap())
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

#[tokio::test]
async fn a_pinned_or_stored_authority_is_trusted_by_its_role() {
    let region = Region::good().await;
    assert_eq!(region.ask_pinned().await.unwrap(), json!({"a": 1}));
    assert_eq!(region.ask(&Trust::Authority(region.ca.clone())).await.unwrap(), json!({"a": 1}));
}

#[tokio::test]
async fn the_connection_is_kept_and_renewed_when_the_other_side_closed_it() {
    let region = Region::good().await;
    let client = ControlClient::new(region.endpoint.clone(), &Trust::Authority(region.ca.clone())).unwrap();
    for _ in 0..3 {
        let _: Value = client.post("/x", &json!({}), &Proof::Nothing).await.unwrap();
    }
    *client.kept.lock().await = None;
    let _: Value = client.post("/x", &json!({}), &Proof::Nothing).await.unwrap();
}

#[tokio::test]
async fn another_authority_is_refused_and_both_fingerprints_are_shown() {
    let (region, other) = (Region::good().await, Region::good().await);
    let pinned = CaFingerprint::of(&other.ca);
    let error = region.ask(&Trust::Fingerprint(pinned)).await.unwrap_err().to_string();
    assert!(error.contains(&pinned.to_string()), "{error}");
    assert!(error.contains(&CaFingerprint::of(&region.ca).to_string()), "{error}");
    let stored = region.ask(&Trust::Authority(other.ca.clone())).await;
    assert!(matches!(stored, Err(ControlError::Untrusted { .. })), "{stored:?}");
    let public = region.ask(&Trust::PublicRoots).await.unwrap_err().to_string();
    assert!(public.contains("--ca-fingerprint"), "{public}");
}

#[tokio::test]
async fn another_role_of_the_same_authority_is_refused() {
    let region = Region::start(REPLICATOR_ROLE, (-1, 1), 200, "{}").await;
    for refused in [region.ask_pinned().await, region.ask(&Trust::Authority(region.ca.clone())).await] {
        assert!(
            matches!(&refused, Err(ControlError::Untrusted { reason, .. }) if reason.contains("not a control plane")),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_named() {
    for days in [(1, 2), (-2, -1)] {
        let region = Region::start(CONTROL_ROLE, days, 200, "{}").await;
        let error = region.ask_pinned().await.unwrap_err().to_string();
        assert!(error.contains("set this machine's clock"), "{error}");
    }
}

#[tokio::test]
async fn refusals_carry_the_message_of_the_server() {
    let body = r#"{"message":"the key may not enrol","code":"AccessDeniedException"}"#;
    let error = Region::start(CONTROL_ROLE, (-1, 1), 403, body).await.ask_pinned().await.unwrap_err();
    assert!(error.is_denied() && !error.is_retryable());
    assert_eq!(error.to_string(), "the key may not enrol (HTTP 403, AccessDeniedException)");
    let error =
        Region::start(CONTROL_ROLE, (-1, 1), 503, r#"{"message":"later"}"#).await.ask_pinned().await.unwrap_err();
    assert!(error.is_retryable());
}

#[tokio::test]
async fn other_web_servers_are_told_apart() {
    let html = Region::start(CONTROL_ROLE, (-1, 1), 200, "<html>").await.ask_pinned().await;
    assert!(matches!(html, Err(ControlError::NotRehost { status: 200, .. })), "{html:?}");
    let missing = Region::start(CONTROL_ROLE, (-1, 1), 404, "<html>").await.ask_pinned().await;
    assert!(matches!(missing, Err(ControlError::NotRehost { status: 404, .. })), "{missing:?}");
}

#[tokio::test]
async fn a_closed_port_is_refused_and_plain_http_is_not_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let client = ControlClient::new(endpoint, &Trust::PublicRoots).unwrap();
    let ask = async || client.post::<_, Value>("/x", &json!({}), &Proof::Nothing).await;
    let plain = async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 64]).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let (refused, _stream) = tokio::join!(ask(), plain);
    assert!(matches!(refused, Err(ControlError::NotTls { .. })), "{refused:?}");
    drop(listener);
    let refused = ask().await;
    assert!(matches!(refused, Err(ControlError::Refused { .. })), "{refused:?}");
}
