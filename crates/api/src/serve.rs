//! One port for everything: TLS for agents and replicators, plain HTTP for clients on the same machine.
//!
//! The first byte of a connection decides. A TLS record begins with 0x16; anything else is taken for HTTP, and answered only
//! to loopback peers: requests are signed but not secret. Both kinds reach the same router.
//!
//! Until a peer has sent the head of a request it has only seconds, and what it may take of the places is bounded.

mod identity;
mod places;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::error::{ApiError, Exception};
use crate::{ApiState, router};
use identity::ControlIdentity;
use places::{Bounds, Place, Places};

pub use identity::IdentityError;

/// The content type of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is bounded; other values serve tests.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Connections beyond these are closed at once: their peers try again.
    connections: Bounds,
    /// How long a peer may take for its first byte, with TLS for the handshake, and then for the head of its first request.
    greeting: Duration,
}

const LIMITS: Limits =
    Limits { connections: Bounds { all: 1024, for_loopback: 64, per_address: 512 }, greeting: Duration::from_secs(10) };

/// How long a peer that asked before may take for the head of a request; a kept connection may be idle for as long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// The head of a request with a certificate for 60 volumes in its signature has under 16 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// How long requests that are under way may take once the service is to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` until `shutdown` is ready; then answers what is under way, for ten seconds at most.
///
/// # Errors
/// [`IdentityError`] when the authority cannot make the endpoint's certificate.
pub async fn serve(
    listener: TcpListener,
    state: ApiState,
    shutdown: impl Future<Output = ()>,
) -> Result<(), IdentityError> {
    serve_within(LIMITS, listener, state, shutdown).await
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    state: ApiState,
    shutdown: impl Future<Output = ()>,
) -> Result<(), IdentityError> {
    let identity = ControlIdentity::new(Arc::clone(&state.authority), state.ports.clock.now())?;
    let clock = Arc::clone(&state.ports.clock);
    let endpoint = Arc::new(Endpoint { clock, identity, router: router(state), greeting: limits.greeting });
    let mut entrance = Entrance { places: Places::new(limits.connections), turned_away: false };
    let connections = GracefulShutdown::new();
    // Dropped when the service stops: peers that have not said anything by then are not waited for.
    let (running, stopping) = watch::channel(());
    tokio::pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = &mut shutdown => break,
        };
        let Some(place) = entrance.admit(peer) else { continue };
        let (endpoint, watcher, mut stopping) = (Arc::clone(&endpoint), connections.watcher(), stopping.clone());
        tokio::spawn(async move {
            let greeted = tokio::select! {
                greeted = endpoint.greet(stream, peer) => greeted,
                _ = stopping.changed() => return,
            };
            let answered = match greeted {
                Ok(greeted) => endpoint.answer(greeted, watcher).await,
                Err(error) => Err(error),
            };
            if let Err(error) = answered {
                tracing::debug!(%peer, %error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(running);
    if timeout(DRAIN_TIMEOUT, connections.shutdown()).await.is_err() {
        tracing::warn!("some requests were still under way when the service stopped");
    }
    Ok(())
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Gives places to peers, and says so when there are none left.
struct Entrance {
    places: Arc<Places>,
    turned_away: bool,
}

impl Entrance {
    fn admit(&mut self, peer: SocketAddr) -> Option<Place> {
        let place = self.places.take(peer.ip());
        if place.is_none() && !self.turned_away {
            tracing::warn!(%peer, "too many connections: some are closed as they come");
        }
        self.turned_away = place.is_none();
        place
    }
}

struct Endpoint {
    clock: Arc<dyn rehost_control::ports::Clock>,
    identity: ControlIdentity,
    router: Router,
    greeting: Duration,
}

/// What a peer turned out to be.
enum Greeted {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
    PlainFromElsewhere(TcpStream),
}

impl Endpoint {
    async fn greet(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<Greeted> {
        // Answers are small and complete: nothing is won by waiting for more of them.
        stream.set_nodelay(true)?;
        let mut first = [0u8; 1];
        let read = timeout(self.greeting, stream.peek(&mut first)).await??;
        if read == 1 && first == [TLS_HANDSHAKE] {
            let acceptor = self.identity.acceptor(self.clock.now()).map_err(io::Error::other)?;
            let stream = timeout(self.greeting, acceptor.accept(stream)).await??;
            return Ok(Greeted::Tls(Box::new(stream)));
        }
        let local = peer.ip().to_canonical().is_loopback();
        Ok(if local { Greeted::Plain(stream) } else { Greeted::PlainFromElsewhere(stream) })
    }

    async fn answer(&self, greeted: Greeted, watcher: Watcher) -> io::Result<()> {
        let asked = Arc::new(Notify::new());
        let router =
            NotifyingService { inner: TowerToHyperService::new(self.router.clone()), asked: Arc::clone(&asked) };
        match greeted {
            Greeted::Tls(stream) => {
                let connection = http().serve_connection(TokioIo::new(stream), router);
                self.attend(watcher.watch(connection), &asked).await
            }
            Greeted::Plain(stream) => {
                let connection = http().serve_connection(TokioIo::new(stream), router);
                self.attend(watcher.watch(connection), &asked).await
            }
            Greeted::PlainFromElsewhere(stream) => {
                let refusal = hyper::service::service_fn(refuse_plain);
                let connection = http().keep_alive(false).serve_connection(TokioIo::new(stream), refusal);
                self.attend(watcher.watch(connection), &asked).await
            }
        }
    }

    /// Attends to a connection, which ends soon unless it asks for something.
    async fn attend(&self, connection: impl Future<Output = hyper::Result<()>>, asked: &Notify) -> io::Result<()> {
        tokio::pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended.map_err(io::Error::other),
            () = asked.notified() => {}
            () = tokio::time::sleep(self.greeting) => return Err(io::ErrorKind::TimedOut.into()),
        }
        connection.await.map_err(io::Error::other)
    }
}

/// Tells when the head of a request has come.
struct NotifyingService<S> {
    inner: S,
    asked: Arc<Notify>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for NotifyingService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        self.asked.notify_one();
        self.inner.call(request)
    }
}

async fn refuse_plain(_request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let message = "plain HTTP is answered to clients on this machine only; use https and pin the region's authority";
    Ok(ApiError::new(Exception::AccessDenied, message).into_response())
}

fn http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    builder
}

#[cfg(test)]
mod tests;
