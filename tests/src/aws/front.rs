//! What stands before the emulator's HTTP API in API Gateway's place: TLS under an authority of its own, and the check of
//! signatures that the emulator does not make.
//!
//! A request to a route of the IAM authoriser passes only with a signature for `execute-api` that is good, checked by
//! rehost-api's own code. Whose access key it is, the emulator itself puts into the event.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rehost_api::{AccessKey, Permission, StaticKeys, verify_signature};
use rehost_control::authority::{Authority, Subject};
use rehost_model::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::error::{Context as _, Error, Result};

/// The service that clients of API Gateway sign for.
const SERVICE: &str = "execute-api";

/// Routes whose callers prove themselves to the function, or by what they send; enrolment of agents is not among them.
const OWN_PROOF: [&str; 2] = ["/rehost/v1/agent/", "/rehost/v1/replicator/"];

/// A TLS record that begins a handshake; anything else is taken for HTTP.
const HANDSHAKE: u8 = 0x16;

/// The front; it runs until it is dropped.
pub struct Front {
    address: SocketAddr,
    fingerprint: String,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    emulator: u16,
    tls: TlsAcceptor,
    client: Client<HttpConnector, Full<Bytes>>,
    behind: RwLock<Behind>,
}

/// What the front learns after its start, when the API has been deployed.
#[derive(Clone, Default)]
struct Behind {
    api: String,
    keys: StaticKeys,
}

impl Front {
    /// Starts it in front of the emulator on this port, on a port that the kernel chooses.
    ///
    /// # Errors
    /// When there is no port, no thread or no certificate.
    pub fn start(emulator: u16) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "bind the front".to_owned())?;
        let address = listener.local_addr().context(|| "find the front's port".to_owned())?;
        listener.set_nonblocking(true).context(|| "prepare the front's socket".to_owned())?;
        let authority = Authority::generate().map_err(unfit)?;
        let tls = acceptor(&authority)?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let shared = Arc::new(Shared { emulator, tls, client, behind: RwLock::default() });
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("aws-front").enable_all().build();
        let runtime = runtime.context(|| "start the front".to_owned())?;
        let entered = runtime.enter();
        let listener = TcpListener::from_std(listener).context(|| "start the front".to_owned())?;
        drop(entered);
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, fingerprint: authority.fingerprint(), shared, runtime: Some(runtime) })
    }

    /// Passes requests on to this API from now on; these access keys are known.
    pub fn open(&self, api: &str, keys: &[(String, String)]) {
        // What a key may do is a matter of its policies, not of the front.
        let add = |keys: StaticKeys, (id, secret): &(String, String)| {
            keys.with(id.clone(), AccessKey::new(secret.clone(), Permission::Enrol))
        };
        let keys = keys.iter().fold(StaticKeys::default(), add);
        *self.shared.behind.write().unwrap_or_else(PoisonError::into_inner) = Behind { api: api.to_owned(), keys };
    }

    /// The URL for agents and replicators.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The URL for clients that know public authorities alone: on this machine it answers without TLS, too.
    #[must_use]
    pub fn plain_endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `sha256:…` of the authority of its certificate.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn unfit(error: impl std::fmt::Display) -> Error {
    Error::Unexpected(format!("the certificate of the front: {error}"))
}

fn acceptor(authority: &Authority) -> Result<TlsAcceptor> {
    let (issued, key) = authority.issue_with_key(&Subject::Control, now(), 2).map_err(unfit)?;
    let leaf = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).map_err(unfit)?;
    let chain = vec![leaf, CertificateDer::from(authority.certificate_der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.map_err(unfit)?.with_no_client_auth().with_single_cert(chain, key).map_err(unfit)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
            // Out of descriptors, most likely: others will close theirs.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    let mut first = [0; 1];
    stream.peek(&mut first).await?;
    if first == [HANDSHAKE] {
        let stream = shared.tls.accept(stream).await?;
        answer(stream, shared).await;
    } else {
        answer(stream, shared).await;
    }
    Ok(())
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.pass(request).await.unwrap_or_else(|refusal| refusal)) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that breaks is what the client sees.
    let _ = connection.await;
}

impl Shared {
    /// Passes a request on; `Err` is the answer to one that is not.
    async fn pass(
        &self,
        request: Request<Incoming>,
    ) -> std::result::Result<Response<Full<Bytes>>, Response<Full<Bytes>>> {
        let behind = self.behind.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|e| plain(StatusCode::BAD_REQUEST, &e.to_string()))?.to_bytes();
        if !OWN_PROOF.iter().any(|prefix| parts.uri.path().starts_with(prefix)) {
            let checked = verify_signature(SERVICE, &behind.keys, now(), &parts, &body).await;
            // What API Gateway says is as short.
            checked.map_err(|error| plain(StatusCode::FORBIDDEN, error.message()))?;
        }
        let host = HeaderValue::from_str(&format!("{}.execute-api.localhost:{}", behind.api, self.emulator));
        parts.headers.insert(header::HOST, host.map_err(|e| plain(StatusCode::BAD_GATEWAY, &e.to_string()))?);
        parts.headers.remove(header::CONNECTION);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("http://127.0.0.1:{}{path}", self.emulator).parse();
        parts.uri = uri.map_err(|_| plain(StatusCode::BAD_REQUEST, "the path cannot be read"))?;
        let answered = self.client.request(Request::from_parts(parts, Full::new(body))).await;
        let (mut parts, body) = answered.map_err(|e| plain(StatusCode::BAD_GATEWAY, &e.to_string()))?.into_parts();
        let body = body.collect().await.map_err(|e| plain(StatusCode::BAD_GATEWAY, &e.to_string()))?.to_bytes();
        for name in [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            parts.headers.remove(name);
        }
        Ok(Response::from_parts(parts, Full::new(body)))
    }
}

fn plain(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({"message": message}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::net::http_request;

    /// Answers one request after the other, and tells their heads.
    fn emulator() -> (u16, mpsc::Receiver<String>) {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, heads) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\npassed";
                let _ = stream.write_all(answer.as_bytes());
                if sender.send(String::from_utf8_lossy(&head[..read]).into_owned()).is_err() {
                    return;
                }
            }
        });
        (port, heads)
    }

    #[test]
    fn only_signed_requests_reach_the_routes_of_iam() {
        let (port, heads) = emulator();
        let front = Front::start(port).unwrap();
        front.open("a1b2c3d4", &[("AKIAEXAMPLE".to_owned(), "secret".to_owned())]);
        let ask = |path: &str, headers: &[(&str, &str)]| {
            http_request(front.address.port(), "POST", path, headers, b"{}", Duration::from_secs(20)).unwrap()
        };
        let forged = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/eu-central-1/execute-api/aws4_request, \
                      SignedHeaders=host;x-amz-date, Signature=00";
        for path in ["/StartTest", "/rehost/v1/enrol", "/rehost/v1/settings"] {
            assert_eq!(ask(path, &[]).status, 403, "{path}");
            assert_eq!(
                ask(path, &[("Authorization", forged), ("X-Amz-Date", "20260101T000000Z")]).status,
                403,
                "{path}"
            );
        }
        assert!(heads.try_recv().is_err(), "nothing was passed on");
        assert_eq!(ask("/rehost/v1/agent/poll", &[]).text(), "passed");
        let head = heads.recv_timeout(Duration::from_secs(20)).unwrap().to_ascii_lowercase();
        assert!(head.contains(&format!("host: a1b2c3d4.execute-api.localhost:{port}")), "{head}");
    }
}
