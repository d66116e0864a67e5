use std::net::Ipv4Addr;

use rehost_link::control_client::{ControlClient, Proof, Trust};
use rehost_link::signature::RequestSigner;
use rehost_model::link::{AGENT_POLL_PATH, AgentDirective, ENROL_PATH, EnrolResponse};
use rehost_model::region::{CONTROL_ROLE, REPLICATOR_ROLE};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::fake::{ENROL_KEY, Region};

const REQUEST: &[u8] = b"POST /DescribeJobs HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), IdentityError>>,
    region: Region,
}

impl Running {
    async fn start() -> Self {
        Self::start_within(LIMITS).await
    }

    async fn start_within(limits: Limits) -> Self {
        let region = Region::new().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move { drop(stopped.await) };
        let task = tokio::spawn(serve_within(limits, listener, region.state.clone(), shutdown));
        Self { address, stop, task, region }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn connector(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.region.authority.certificate_der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.time_provider = Arc::new(FixedTime(self.region.now()));
        TlsConnector::from(Arc::new(config))
    }
}

#[derive(Debug)]
struct FixedTime(rehost_model::Timestamp);

impl rustls::time_provider::TimeProvider for FixedTime {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let ms = u64::try_from(self.0.unix_ms()).unwrap();
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

fn two_places() -> Bounds {
    Bounds { all: 2, for_loopback: 0, per_address: 2 }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn one_port_speaks_tls_and_plain_http() {
    let service = Running::start().await;
    let plain = ask(TcpStream::connect(service.address).await.unwrap(), REQUEST).await;
    assert!(plain.starts_with("HTTP/1.1 403") && plain.contains("MissingAuthenticationTokenException"), "{plain}");
    let connector = service.connector(&[&rustls::version::TLS13]);
    let stream = TcpStream::connect(service.address).await.unwrap();
    let role = ServerName::try_from(CONTROL_ROLE).unwrap();
    let stream = connector.connect(role, stream).await.unwrap();
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    assert_eq!(certificates.len(), 2, "leaf and authority");
    assert_eq!(certificates[1].as_ref(), service.region.authority.certificate_der());
    let tls = ask(stream, REQUEST).await;
    assert!(tls.starts_with("HTTP/1.1 403"), "{tls}");
}

#[tokio::test]
async fn another_role_is_not_accepted_by_clients() {
    let service = Running::start().await;
    let connector = service.connector(&[&rustls::version::TLS13]);
    let stream = TcpStream::connect(service.address).await.unwrap();
    let role = ServerName::try_from(REPLICATOR_ROLE).unwrap();
    assert!(connector.connect(role, stream).await.is_err());
}

#[tokio::test]
async fn garbage_ends_its_connection_and_nothing_else() {
    let service = Running::start().await;
    for garbage in [&b"\x16\x03\x01garbage that is no handshake"[..], b"\x00\xff\xff", b"GET\r\n\r\n", &[b'A'; 100_000]]
    {
        let stream = TcpStream::connect(service.address).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        drop(write.write_all(garbage).await);
        drop(write.shutdown().await);
        let mut answer = Vec::new();
        drop(read.read_to_end(&mut answer).await);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    let plain = ask(TcpStream::connect(service.address).await.unwrap(), REQUEST).await;
    assert!(plain.starts_with("HTTP/1.1 403"), "{plain}");
}

#[tokio::test]
async fn plain_http_from_elsewhere_is_refused() {
    let region = Region::new().await;
    let identity = ControlIdentity::new(region.authority.clone(), region.now()).unwrap();
    let endpoint =
        Endpoint { clock: region.clock.clone(), identity, router: region.router(), greeting: LIMITS.greeting };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let asked = tokio::spawn(ask(client, REQUEST));
    let greeted = endpoint.greet(stream, "192.0.2.1:5000".parse().unwrap()).await.unwrap();
    drop(endpoint.answer(greeted, GracefulShutdown::new().watcher()).await);
    let answer = asked.await.unwrap();
    assert!(answer.contains("AccessDeniedException") && answer.contains("on this machine only"), "{answer}");
}

#[tokio::test]
async fn it_stops_when_told_to() {
    let service = Running::start().await;
    let idle = TcpStream::connect(service.address).await.unwrap();
    ask(TcpStream::connect(service.address).await.unwrap(), REQUEST).await;
    service.stop.send(()).unwrap();
    timeout(DRAIN_TIMEOUT / 2, service.task).await.unwrap().unwrap().unwrap();
    drop(idle);
    assert!(TcpStream::connect(service.address).await.is_err());
}

#[tokio::test]
async fn it_stops_when_told_to_also_with_every_place_taken() {
    let service = Running::start_within(Limits { connections: two_places(), ..LIMITS }).await;
    let _idle = [service.connect().await, service.connect().await];
    // The third is closed at once, and the first two were accepted by then.
    let third = timeout(LIMITS.greeting / 2, ask(service.connect().await, b"")).await;
    assert_eq!(third.unwrap(), "");
    service.stop.send(()).unwrap();
    timeout(DRAIN_TIMEOUT / 2, service.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn peers_that_say_nothing_give_their_places_back_soon() {
    let greeting = Duration::from_millis(300);
    let service = Running::start_within(Limits { connections: two_places(), greeting }).await;
    let silent = service.connect().await;
    let role = ServerName::try_from(CONTROL_ROLE).unwrap();
    let connector = service.connector(&[&rustls::version::TLS13]);
    let idle = connector.connect(role, service.connect().await).await.unwrap();
    let within = Duration::from_secs(5);
    assert_eq!(timeout(within, ask(silent, b"")).await.unwrap(), "");
    assert_eq!(timeout(within, ask(idle, b"")).await.unwrap(), "");
    let plain = ask(service.connect().await, REQUEST).await;
    assert!(plain.starts_with("HTTP/1.1 403"), "{plain}");
}

#[tokio::test]
async fn a_peer_that_has_asked_may_ask_again_later() {
    let greeting = Duration::from_millis(300);
    let service = Running::start_within(Limits { greeting, ..LIMITS }).await;
    let mut stream = service.connect().await;
    let kept = String::from_utf8_lossy(REQUEST).replace("connection: close\r\n", "");
    stream.write_all(kept.as_bytes()).await.unwrap();
    let mut first = vec![0; 4096];
    assert!(stream.read(&mut first).await.unwrap() > 0);
    tokio::time::sleep(2 * greeting).await;
    let again = ask(stream, REQUEST).await;
    assert!(again.starts_with("HTTP/1.1 403"), "{again}");
}

#[tokio::test]
async fn certificates_are_replaced_in_time() {
    let region = Region::new().await;
    let identity = ControlIdentity::new(region.authority.clone(), region.now()).unwrap();
    let first = identity.acceptor(region.now()).unwrap();
    region.clock.advance_ms(31 * 24 * 3600 * 1000);
    let second = identity.acceptor(region.now()).unwrap();
    assert!(!Arc::ptr_eq(first.config(), second.config()));
    assert!(Arc::ptr_eq(second.config(), identity.acceptor(region.now()).unwrap().config()));
}

#[tokio::test]
async fn the_agents_own_client_enrols_and_polls() {
    let service = Running::start().await;
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    service.region.clock.advance_ms(i64::try_from(wall.as_millis()).unwrap() - service.region.now().unix_ms());
    let trust = Trust::Fingerprint(service.region.authority.fingerprint().parse().unwrap());
    let client = ControlClient::new(format!("https://{}", service.address).parse().unwrap(), &trust).unwrap();
    let access_key = |id: &str| rehost_link::sigv4::AccessKey {
        id: id.to_owned(),
        secret: zeroize::Zeroizing::new(ENROL_KEY.1.to_owned()),
        session_token: None,
    };
    let (key, csr) = crate::tests::csr();
    let request = crate::tests::enrolment(&csr);
    let stranger = access_key("AKIANOBODY");
    let scope = rehost_link::sigv4::SigningScope::of("127.0.0.1", "local", None);
    let refused = Proof::AccessKey { key: &stranger, scope: &scope };
    let error = client.post::<_, EnrolResponse>(ENROL_PATH, &request, &refused).await.err().unwrap();
    assert!(error.is_denied() && error.to_string().contains("AKIANOBODY"), "{error}");
    let installation = access_key(ENROL_KEY.0);
    let proof = Proof::AccessKey { key: &installation, scope: &scope };
    let enrolled: EnrolResponse = client.post(ENROL_PATH, &request, &proof).await.unwrap();
    let certificate = crate::tests::der(&enrolled.issued.certificate);
    let signer = RequestSigner::new(&certificate, &key.serialize_der()).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&crate::tests::report()).unwrap();
    let signed = Proof::Certificate(&signer);
    let directive: AgentDirective = client.post(AGENT_POLL_PATH, &report, &signed).await.unwrap();
    assert_eq!(directive.command, rehost_model::link::AgentCommand::Wait);
}
