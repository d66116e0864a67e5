use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;

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
use rehost_link::control_client::CaFingerprint;
use rehost_link::signature::{self, MAX_CLOCK_SKEW};
use rehost_model::region::{CONTROL_ROLE, REPLICATOR_ROLE, REPLICATOR_URI};
use rehost_model::{ReplicatorId, ServerId, VolumeId};
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

/// A control plane that enrols one replicator and tells it what to serve.
struct Control {
    ca: Ca,
    address: String,
    replicator: ReplicatorId,
    script: Mutex<Script>,
}

#[derive(Default)]
struct Script {
    enrolments: usize,
    reports: Vec<ReplicatorReport>,
    assignments: Vec<Assignment>,
    away: bool,
}

impl Control {
    async fn start() -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = Arc::new(Self {
            ca,
            address: listener.local_addr().unwrap().to_string(),
            replicator: ReplicatorId::generate(),
            script: Mutex::default(),
        });
        tokio::spawn(serve(listener, acceptor(&control.ca), Arc::clone(&control)));
        control
    }

    fn config(&self, state_dir: &std::path::Path) -> ReplicatorConfig {
        ReplicatorConfig {
            volumes_directory: None,
            replicator: self.replicator.clone(),
            enrol_token: Zeroizing::new("token".to_owned()),
            endpoint: self.address.parse().unwrap(),
            ca_fingerprint: Some(CaFingerprint::of(self.ca.der())),
            listen: ([127, 0, 0, 1], 0).into(),
            state_dir: state_dir.to_owned(),
            hold_timeout: Duration::from_secs(120),
            journal_bytes: None,
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> (u16, serde_json::Value) {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if self.script.lock().unwrap().away {
            return (503, json!({"message": "away"}));
        }
        match head.uri.path() {
            REPLICATOR_ENROL_PATH => self.enrol(&serde_json::from_slice(&body).unwrap()),
            REPLICATOR_POLL_PATH => {
                let proof = head.headers[header::AUTHORIZATION].to_str().unwrap();
                let path = head.uri.path();
                let checked = signature::verify(proof, "POST", path, &body, self.ca.der(), now(), MAX_CLOCK_SKEW);
                assert_eq!(checked.unwrap().dns_sans, [REPLICATOR_ROLE]);
                let mut script = self.script.lock().unwrap();
                script.reports.push(serde_json::from_slice(&body).unwrap());
                let assignments = script.assignments.clone();
                let directive = ReplicatorDirective {
                    assignments,
                    releases: BTreeMap::new(),
                    data_keys: BTreeMap::new(),
                    poll_after_ms: 100,
                };
                (200, serde_json::to_value(directive).unwrap())
            }
            other => panic!("unexpected path {other}"),
        }
    }

    fn enrol(&self, request: &ReplicatorEnrolRequest) -> (u16, serde_json::Value) {
        if request.token != "token" {
            return (403, json!({"message": "the token is wrong"}));
        }
        self.script.lock().unwrap().enrolments += 1;
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        csr.params.subject_alt_names = vec![
            SanType::DnsName(REPLICATOR_ROLE.try_into().unwrap()),
            SanType::URI(format!("{REPLICATOR_URI}{}", self.replicator).try_into().unwrap()),
        ];
        csr.params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        csr.params.not_after = csr.params.not_before + time::Duration::days(7);
        let certificate = csr.signed_by(&self.ca).unwrap().pem();
        let issued = IssuedCertificate { certificate, ca_certificate: self.ca.pem() };
        (200, serde_json::to_value(issued).unwrap())
    }

    async fn until(&self, ready: impl Fn(&Script) -> bool) {
        let seen = async {
            while !ready(&self.script.lock().unwrap()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), seen).await.expect("the replicator reports it in time");
    }

    /// Runs the replicator until `stop` is ready.
    async fn run(&self, config: &ReplicatorConfig, stop: impl Future<Output = ()>) {
        timeout(Duration::from_secs(60), run(config, stop)).await.unwrap().unwrap();
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

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, control: Arc<Control>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, control) = (acceptor.clone(), Arc::clone(&control));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let control = Arc::clone(&control);
                async move {
                    let (status, answer) = control.answer(request).await;
                    let body = Full::new(Bytes::from(answer.to_string()));
                    Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn assignment(directory: &std::path::Path) -> Assignment {
    let volume = VolumeId::generate();
    let location = directory.join(format!("{volume}.img"));
    fs::write(&location, vec![0; 8192]).unwrap();
    Assignment {
        server: ServerId::generate(),
        volume,
        size_bytes: 8192,
        location: location.display().to_string(),
        initialized: false,
    }
}

#[tokio::test]
async fn it_enrols_once_serves_what_it_is_told_and_stops_in_order() {
    let (control, home) = (Control::start().await, tempfile::tempdir().unwrap());
    let config = control.config(&home.path().join("state"));
    let mine = assignment(home.path());
    control.script.lock().unwrap().assignments = vec![mine.clone()];
    let serves = |s: &Script| s.reports.last().is_some_and(|r| r.servers.iter().any(|x| x.server == mine.server));
    control.run(&config, control.until(serves)).await;
    assert_ne!(control.script.lock().unwrap().reports[0].port, 0);
    control.script.lock().unwrap().reports.clear();
    control.run(&config, control.until(serves)).await;
    assert_eq!(control.script.lock().unwrap().enrolments, 1);
}

#[tokio::test]
async fn it_waits_for_an_absent_control_plane_and_outlives_its_absence() {
    let (control, home) = (Control::start().await, tempfile::tempdir().unwrap());
    let config = control.config(home.path());
    control.script.lock().unwrap().away = true;
    let story = async {
        sleep(Duration::from_millis(700)).await;
        control.script.lock().unwrap().away = false;
        control.until(|s| !s.reports.is_empty()).await;
        control.script.lock().unwrap().away = true;
        sleep(Duration::from_millis(700)).await;
        let seen = {
            let mut script = control.script.lock().unwrap();
            script.away = false;
            script.reports.len()
        };
        control.until(|s| s.reports.len() > seen).await;
    };
    control.run(&config, story).await;
    assert_eq!(control.script.lock().unwrap().enrolments, 1);
}

#[tokio::test]
async fn sidecars_of_dropped_volumes_go() {
    let (control, home) = (Control::start().await, tempfile::tempdir().unwrap());
    let config = control.config(home.path());
    let volumes = home.path().join("volumes");
    fs::create_dir_all(&volumes).unwrap();
    let (kept, dropped) = (assignment(home.path()), assignment(home.path()));
    let sidecar = |a: &Assignment| volumes.join(format!("{}{SIDECAR}", a.volume));
    for each in [&kept, &dropped] {
        fs::write(sidecar(each), "{}").unwrap();
    }
    fs::write(volumes.join("notes.txt"), "").unwrap();
    control.script.lock().unwrap().assignments = vec![kept.clone()];
    control.run(&config, control.until(|s| s.reports.len() > 1)).await;
    assert!(sidecar(&kept).exists() && !sidecar(&dropped).exists() && volumes.join("notes.txt").exists());
}

#[tokio::test]
async fn a_wrong_token_ends_it_with_the_reason() {
    let (control, home) = (Control::start().await, tempfile::tempdir().unwrap());
    let config = ReplicatorConfig { enrol_token: Zeroizing::new("no".to_owned()), ..control.config(home.path()) };
    let error = run(&config, std::future::pending()).await.unwrap_err().to_string();
    assert!(error.contains("the token is wrong") && !error.contains("no\""), "{error}");
}
