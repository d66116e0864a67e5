//! A small control plane for tests: real TLS, real signatures, scripted answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, SanType,
};
use rehost_link::control_client::{CaFingerprint, now};
use rehost_link::signature::{self, MAX_CLOCK_SKEW};
use rehost_model::ServerId;
use rehost_model::link::{
    AGENT_POLL_PATH, AGENT_RENEW_PATH, AgentCommand, AgentDirective, AgentReport, ENROL_PATH, EnrolRequest,
    EnrolResponse, IssuedCertificate, RenewRequest,
};
use rehost_model::region::{CONTROL_ROLE, SERVER_URI};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Ca = CertifiedIssuer<'static, KeyPair>;

/// What the control plane saw and what it will answer.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) enrolments: Vec<EnrolRequest>,
    /// The `authorization` headers of enrolments.
    pub(crate) signatures: Vec<String>,
    pub(crate) reports: Vec<AgentReport>,
    pub(crate) renewals: usize,
    /// Answers to the coming polls; the last one stays.
    pub(crate) directives: VecDeque<AgentDirective>,
    /// Refuse everything with this status and message.
    pub(crate) refuse: Option<(u16, &'static str)>,
    /// Certificates are valid for this many days.
    pub(crate) days: i64,
}

/// A running control plane.
pub(crate) struct FakeControl {
    ca: Arc<Ca>,
    pub(crate) address: String,
    pub(crate) server: ServerId,
    pub(crate) script: Arc<Mutex<Script>>,
}

/// A directive with `command`.
pub(crate) fn directive(command: AgentCommand, renew: bool) -> AgentDirective {
    AgentDirective { command, renew, poll_after_ms: 100 }
}

impl FakeControl {
    pub(crate) async fn start() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script = Script { directives: [directive(AgentCommand::Wait, false)].into(), days: 7, ..Script::default() };
        let control = Self {
            address: listener.local_addr().unwrap().to_string(),
            server: ServerId::generate(),
            script: Arc::new(Mutex::new(script)),
            ca,
        };
        tokio::spawn(serve(listener, acceptor(&control.ca), control.answering()));
        control
    }

    pub(crate) fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(self.ca.der())
    }

    pub(crate) fn issue(&self, csr: &str) -> IssuedCertificate {
        self.answering().issue(csr)
    }

    fn answering(&self) -> Answering {
        Answering { ca: Arc::clone(&self.ca), server: self.server.clone(), script: Arc::clone(&self.script) }
    }
}

fn acceptor(ca: &Ca) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![CONTROL_ROLE.to_owned()]).unwrap().signed_by(&key, ca).unwrap();
    let chain = vec![certificate.der().clone(), ca.der().clone()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, answering: Answering) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, answering) = (acceptor.clone(), answering.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let answering = answering.clone();
                async move { Ok::<_, Infallible>(answering.answer(request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[derive(Clone)]
struct Answering {
    ca: Arc<Ca>,
    server: ServerId,
    script: Arc<Mutex<Script>>,
}

impl Answering {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let refuse = self.script.lock().unwrap().refuse;
        if let Some((status, message)) = refuse {
            return json(status, &serde_json::json!({"message": message}));
        }
        let authorization = head.headers[header::AUTHORIZATION].to_str().unwrap();
        let path = head.uri.path();
        if path == ENROL_PATH {
            assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"), "{authorization}");
            self.script.lock().unwrap().signatures.push(authorization.to_owned());
        } else {
            let checked = signature::verify(authorization, "POST", path, &body, self.ca.der(), now(), MAX_CLOCK_SKEW);
            assert_eq!(checked.unwrap().uri_sans, [format!("{SERVER_URI}{}", self.server)]);
        }
        let answer = match path {
            ENROL_PATH => self.enrol(serde_json::from_slice(&body).unwrap()),
            AGENT_POLL_PATH => self.poll(serde_json::from_slice(&body).unwrap()),
            AGENT_RENEW_PATH => self.renew(&serde_json::from_slice(&body).unwrap()),
            other => panic!("unexpected path {other}"),
        };
        json(200, &answer)
    }

    fn enrol(&self, request: EnrolRequest) -> Value {
        let issued = self.issue(&request.csr);
        self.script.lock().unwrap().enrolments.push(request);
        serde_json::to_value(EnrolResponse { source_server_id: self.server.clone(), issued }).unwrap()
    }

    fn poll(&self, report: AgentReport) -> Value {
        let mut script = self.script.lock().unwrap();
        script.reports.push(report);
        let next = script.directives[0].clone();
        if script.directives.len() > 1 {
            script.directives.pop_front();
        }
        serde_json::to_value(next).unwrap()
    }

    fn renew(&self, request: &RenewRequest) -> Value {
        self.script.lock().unwrap().renewals += 1;
        serde_json::to_value(self.issue(&request.csr)).unwrap()
    }

    fn issue(&self, csr: &str) -> IssuedCertificate {
        let days = self.script.lock().unwrap().days;
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let name = format!("{SERVER_URI}{}", self.server);
        request.params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        request.params.not_after = request.params.not_before + time::Duration::days(days);
        let certificate = request.signed_by(&self.ca).unwrap().pem();
        IssuedCertificate { certificate, ca_certificate: self.ca.pem() }
    }
}

fn json(status: u16, value: &Value) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(Bytes::from(value.to_string()))).unwrap()
}
