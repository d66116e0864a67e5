//! A proxy between SDKs and emulators, on the loopback interface: it names and counts every call, plants faults, and lets
//! others do what real services would have done beside answering.
//!
//! Calls go to an emulator by their service. [`Hook`]s see each call before it is passed on and each answer before it is
//! given; [`Faults`] stands around them, so that a planted failure after the effect comes after all effects.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::calls::Call;
use super::faults::{Faults, Struck};
use crate::error::{Context as _, Error, Result};

/// An answer of a service, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// An answer with this content.
    #[must_use]
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        if let Ok(content_type) = content_type.parse() {
            headers.insert(http::header::CONTENT_TYPE, content_type);
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, headers, body: body.into() }
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn into_response(mut self) -> Response<Full<Bytes>> {
        // The body is whole now, whatever it was: hyper says how long it is.
        for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            self.headers.remove(name);
        }
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Sees calls go by.
#[async_trait]
pub trait Hook: Send + Sync {
    /// A call is about to be passed on. With `Some`, it is answered so instead and goes nowhere; no later hook sees it.
    async fn before(&self, call: &Call) -> Option<Answer> {
        let _ = call;
        None
    }

    /// A service answered; what is left in `answer` is what the SDK gets.
    async fn after(&self, call: &Call, answer: &mut Answer) {
        let _ = (call, answer);
    }
}

/// Which emulator plays which service.
#[derive(Debug, Clone)]
pub struct Routes {
    default: String,
    services: BTreeMap<String, String>,
}

impl Routes {
    /// Everything goes to the emulator at this URL (`http://127.0.0.1:PORT`).
    #[must_use]
    pub fn to(endpoint: &str) -> Self {
        Self { default: endpoint.to_owned(), services: BTreeMap::new() }
    }

    /// But this service (as signed: `lambda`, `events`) goes to that one.
    #[must_use]
    pub fn with(mut self, service: &str, endpoint: &str) -> Self {
        self.services.insert(service.to_owned(), endpoint.to_owned());
        self
    }

    fn of(&self, service: &str) -> &str {
        self.services.get(service).unwrap_or(&self.default)
    }
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts it on a port that the kernel chooses. May be called from within a runtime or without one.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start(routes: Routes) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(|| "bind the proxy".to_owned())?;
        let port = listener.local_addr().context(|| "find the proxy's port".to_owned())?.port();
        listener.set_nonblocking(true).context(|| "prepare the proxy's socket".to_owned())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("aws-proxy")
            .enable_all()
            .build()
            .context(|| "start the proxy".to_owned())?;
        let shared = Arc::new(Shared::new(routes));
        let entered = runtime.enter();
        let listener = TcpListener::from_std(listener).context(|| "start the proxy".to_owned())?;
        drop(entered);
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, runtime: Some(runtime) })
    }

    /// What SDKs take for the endpoint of every service.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on `hook` sees every call, after those that were added before it.
    pub fn add_hook(&self, hook: Arc<dyn Hook>) {
        self.shared.hooks.write().unwrap_or_else(PoisonError::into_inner).push(hook);
    }

    /// What fails.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The names (`service:Action`) of all calls since the start or [`Self::forget_calls`], in the order in which they came.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls().clone()
    }

    /// How often each was made.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in self.shared.calls().iter() {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    /// Counts anew from here on.
    pub fn forget_calls(&self) {
        self.shared.calls().clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Waiting for the threads is not allowed within another runtime; nobody misses them.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Shared {
    routes: Routes,
    client: Client<HttpConnector, Full<Bytes>>,
    hooks: RwLock<Vec<Arc<dyn Hook>>>,
    faults: Faults,
    calls: Mutex<Vec<String>>,
    number: AtomicUsize,
}

/// Why a connection is cut.
#[derive(Debug, thiserror::Error)]
#[error("cut as planted")]
struct Cut;

impl Shared {
    fn new(routes: Routes) -> Self {
        Self {
            routes,
            client: Client::builder(TokioExecutor::new()).build_http(),
            hooks: RwLock::default(),
            faults: Faults::default(),
            calls: Mutex::default(),
            number: AtomicUsize::new(0),
        }
    }

    fn calls(&self) -> MutexGuard<'_, Vec<String>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Cut> {
        let (parts, body) = request.into_parts();
        // A client that went away needs no answer.
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        let call = Call::read(self.number.fetch_add(1, Ordering::Relaxed), &parts, body);
        self.calls().push(call.name());
        let fault = self.faults.next(&call);
        if let Some(struck) = fault.as_ref().filter(|fault| !fault.after_effect) {
            return answer_of(struck, &call);
        }
        let answer = self.carry_out(&call).await;
        match fault {
            Some(struck) => answer_of(&struck, &call),
            None => Ok(answer.into_response()),
        }
    }

    async fn carry_out(&self, call: &Call) -> Answer {
        let hooks = self.hooks.read().unwrap_or_else(PoisonError::into_inner).clone();
        for hook in &hooks {
            if let Some(answer) = hook.before(call).await {
                return answer;
            }
        }
        let mut answer = self.forward(call).await.unwrap_or_else(|error| {
            let reason = format!("the proxy cannot pass on {}: {error}", call.name());
            Answer::new(502, "text/plain", reason)
        });
        for hook in &hooks {
            hook.after(call, &mut answer).await;
        }
        answer
    }

    async fn forward(&self, call: &Call) -> Result<Answer> {
        let unexpected = |error: &dyn fmt::Display| Error::Unexpected(error.to_string());
        let query = if call.query.is_empty() { String::new() } else { format!("?{}", call.query) };
        let uri = format!("{}{}{query}", self.routes.of(&call.service), call.path);
        let uri: Uri = uri.parse().map_err(|e| unexpected(&e))?;
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = call.headers.clone();
        for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            request.headers_mut().remove(name);
        }
        let (parts, body) = self.client.request(request).await.map_err(|e| unexpected(&e))?.into_parts();
        let body = body.collect().await.map_err(|e| unexpected(&e))?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

fn answer_of(struck: &Struck, call: &Call) -> std::result::Result<Response<Full<Bytes>>, Cut> {
    struck.failure.answer(call).map(Answer::into_response).ok_or(Cut)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, Arc::clone(&shared)));
            }
            // Out of descriptors, most likely: others will close theirs.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, shared: Arc<Shared>) -> std::result::Result<(), Infallible> {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move {
            // In a task of its own: a call takes its whole effect, also when the client goes away meanwhile.
            tokio::spawn(async move { shared.serve(request).await }).await.unwrap_or(Err(Cut))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that breaks is what the client sees; it tells its test.
    let _ = connection.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Stream;

    use super::super::faults::{Failure, Fault};
    use super::*;

    /// Answers every request with its own body, and counts them.
    struct Echo(Arc<AtomicUsize>);

    #[async_trait]
    impl Hook for Echo {
        async fn before(&self, call: &Call) -> Option<Answer> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Some(Answer::new(200, "application/json", call.body.clone()))
        }
    }

    fn proxy() -> (Proxy, Arc<AtomicUsize>) {
        let proxy = Proxy::start(Routes::to("http://127.0.0.1:1")).unwrap();
        let effects = Arc::new(AtomicUsize::new(0));
        proxy.add_hook(Arc::new(Echo(Arc::clone(&effects))));
        (proxy, effects)
    }

    fn ask(proxy: &Proxy, action: &str) -> String {
        let mut stream = Stream::connect(("127.0.0.1", proxy.port())).unwrap();
        let request = format!(
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-amz-target: X.{action}\r\ncontent-length: 2\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=a/b/c/dynamodb/aws4_request\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn calls_are_counted_and_answered() {
        let (proxy, effects) = proxy();
        assert!(ask(&proxy, "GetItem").ends_with("{}"));
        assert!(ask(&proxy, "PutItem").starts_with("HTTP/1.1 200"));
        assert_eq!(proxy.calls(), ["dynamodb:GetItem", "dynamodb:PutItem"]);
        assert_eq!(effects.load(Ordering::SeqCst), 2);
        proxy.forget_calls();
        assert!(proxy.counts().is_empty());
    }

    #[test]
    fn a_call_fails_before_or_after_its_effect() {
        let (proxy, effects) = proxy();
        for (after_effect, expected) in [(false, 0), (true, 1)] {
            effects.store(0, Ordering::SeqCst);
            proxy.faults().plant(Fault { nth: 0, after_effect, failure: Failure::Cut });
            assert_eq!(ask(&proxy, "PutItem"), "");
            assert_eq!(effects.load(Ordering::SeqCst), expected);
            assert_eq!(proxy.faults().struck(), ["dynamodb:PutItem"]);
            assert!(ask(&proxy, "PutItem").starts_with("HTTP/1.1 200"), "one call fails, no more");
        }
    }

    #[test]
    fn every_call_of_a_work_fails_once() {
        let (proxy, _) = proxy();
        proxy.faults().fail_every_call_once(Failure::Throttle);
        let mut beginnings = 0;
        while !["GetItem", "PutItem", "PutItem"].iter().all(|action| ask(&proxy, action).starts_with("HTTP/1.1 200")) {
            proxy.faults().begin_again();
            beginnings += 1;
        }
        assert_eq!(beginnings, 3);
    }

    #[test]
    fn an_emulator_that_is_not_there_is_told() {
        let proxy = Proxy::start(Routes::to("http://127.0.0.1:1")).unwrap();
        assert!(ask(&proxy, "GetItem").starts_with("HTTP/1.1 502"));
    }
}
