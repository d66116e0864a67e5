//! The client of the control plane: JSON posts over HTTPS, one kept connection, bounded in time and size.
//!
//! Servers are known by their role, not by their address: with a private authority the certificate must carry
//! `control.rehost.internal`, whatever name or address was dialled.

mod endpoint;
mod error;
mod trust;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rehost_model::Timestamp;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::names;
use crate::signature::RequestSigner;
use crate::sigv4::{self, AccessKey, SigningScope};

pub use endpoint::Endpoint;
pub use error::ControlError;
pub use trust::{CaFingerprint, InvalidFingerprint, Trust};

/// How long a TCP connection, and then the TLS handshake, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the control plane may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers hold at most 60 disks or 15 assignments; anything near this is not one of ours.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The longest message of a server that is passed on to the user.
const MAX_MESSAGE_CHARS: usize = 1000;

/// How a request proves who sends it.
pub enum Proof<'a> {
    /// The body itself is the proof (a one-time token).
    Nothing,
    /// A signature by the key of a certificate.
    Certificate(&'a RequestSigner),
    /// A signature by an access key, for a service and a region.
    AccessKey { key: &'a AccessKey, scope: &'a SigningScope },
}

/// A client of one control plane.
pub struct ControlClient {
    endpoint: Endpoint,
    connector: TlsConnector,
    server_name: ServerName<'static>,
    max_answer_bytes: usize,
    kept: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl ControlClient {
    /// A client of the control plane at `endpoint`; connects when it is first used.
    ///
    /// # Errors
    /// [`ControlError::Endpoint`] or [`ControlError::Request`] when endpoint and trust do not fit together.
    pub fn new(endpoint: Endpoint, trust: &Trust) -> Result<Self, ControlError> {
        let connector = TlsConnector::from(Arc::new(trust.client_config()?));
        let server_name = trust.server_name(&endpoint)?;
        Ok(Self { endpoint, connector, server_name, max_answer_bytes: MAX_ANSWER_BYTES, kept: Mutex::new(None) })
    }

    /// Takes longer answers than agents and replicators ever get.
    #[must_use]
    pub fn with_answers_up_to(self, bytes: usize) -> Self {
        Self { max_answer_bytes: bytes, ..self }
    }

    /// Whom this client talks to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Posts `request` as JSON to `path` and reads the answer.
    ///
    /// # Errors
    /// A [`ControlError`] that says what to mend.
    pub async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        request: &Q,
        proof: &Proof<'_>,
    ) -> Result<A, ControlError> {
        let body = serde_json::to_vec(request).map_err(|e| ControlError::Request(e.to_string()))?;
        let request = self.request(path, body.into(), proof)?;
        let (status, answer) = timeout(ANSWER_TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| ControlError::Slow { address: self.address(), waited: ANSWER_TIMEOUT })??;
        self.read_answer(status, &answer)
    }

    fn request(&self, path: &str, body: Bytes, proof: &Proof<'_>) -> Result<Request<Full<Bytes>>, ControlError> {
        let mut builder = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, self.endpoint.authority())
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in self.signature(path, &body, proof)? {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(body)).map_err(|e| ControlError::Request(e.to_string()))
    }

    fn signature(&self, path: &str, body: &[u8], proof: &Proof<'_>) -> Result<Vec<(String, String)>, ControlError> {
        match proof {
            Proof::Nothing => Ok(Vec::new()),
            Proof::Certificate(signer) => {
                let value = signer.sign("POST", path, body, now())?;
                Ok(vec![(header::AUTHORIZATION.to_string(), value)])
            }
            Proof::AccessKey { key, scope } => {
                let url = format!("{}{path}", self.endpoint);
                Ok(sigv4::sign_json(key, scope, "POST", &url, body, SystemTime::now())?)
            }
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ControlError> {
        let mut kept = self.kept.lock().await;
        // Taken out: a request that is cut off leaves no half-used connection behind.
        if let Some(mut sender) = kept.take().filter(|sender| !sender.is_closed())
            && let Ok(answer) = self.send(&mut sender, request.clone()).await
        {
            *kept = Some(sender);
            return Ok(answer);
        }
        // The kept connection may have been closed by the other side just then: a fresh one decides.
        let mut sender = self.connect().await?;
        let answer = self.send(&mut sender, request).await?;
        *kept = Some(sender);
        Ok(answer)
    }

    async fn send(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let broken = |reason: String| ControlError::Broken { address: self.address(), reason };
        sender.ready().await.map_err(|e| broken(e.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), self.max_answer_bytes).collect().await;
        Ok((status, body.map_err(|e| broken(e.to_string()))?.to_bytes()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ControlError> {
        let stream = dial(&self.endpoint).await?;
        let handshake = self.connector.connect(self.server_name.clone(), stream);
        let stream = timeout(CONNECT_TIMEOUT, handshake)
            .await
            .map_err(|_| ControlError::Slow { address: self.address(), waited: CONNECT_TIMEOUT })?
            .map_err(|e| trust::handshake_error(self.address(), &e))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ControlError::Broken { address: self.address(), reason: e.to_string() })?;
        // Ends when the sender is dropped or the other side closes; the next request reports what matters of it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the control plane ended");
            }
        });
        Ok(sender)
    }

    fn read_answer<A: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<A, ControlError> {
        let not_rehost = || ControlError::NotRehost { address: self.address(), status: status.as_u16() };
        if status.is_success() {
            return serde_json::from_slice(body).map_err(|_| not_rehost());
        }
        let refusal: RefusalBody = serde_json::from_slice(body).map_err(|_| not_rehost())?;
        let message = refusal.message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect();
        Err(ControlError::Refusal { status: status.as_u16(), code: refusal.code, message })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.endpoint.host(), self.endpoint.port())
    }
}

/// The body of an error, in the shape of MGN's API.
#[derive(serde::Deserialize)]
struct RefusalBody {
    #[serde(alias = "Message")]
    message: String,
    #[serde(default)]
    code: Option<String>,
}

async fn dial(endpoint: &Endpoint) -> Result<TcpStream, ControlError> {
    let host = endpoint.host();
    let resolve = |source| ControlError::Resolve { host: host.to_owned(), source };
    names::load_nothing();
    let candidates: Vec<_> = tokio::net::lookup_host((host, endpoint.port())).await.map_err(resolve)?.collect();
    let mut failure = resolve(std::io::Error::other("the name has no address"));
    for candidate in candidates {
        let address = candidate.to_string();
        failure = match timeout(CONNECT_TIMEOUT, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => {
                // A request is one write: nothing is won by waiting for more. Failing that, it is merely slower.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => ControlError::Refused { address },
            Ok(Err(source)) => ControlError::Connect { address, source },
            Err(_) => ControlError::Unreachable { address, port: endpoint.port(), waited: CONNECT_TIMEOUT },
        };
    }
    Err(failure)
}

/// The time by this machine's clock.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
