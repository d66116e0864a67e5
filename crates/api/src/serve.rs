//! One port for everything: TLS for agents and replicators, plain HTTP for clients on the same machine.
//!
//! The first byte of a connection decides. A TLS record begins with 0x16; anything else is taken for HTTP, and answered only
//! to loopback peers: requests are signed but not secret. Both kinds reach the same router.

mod identity;

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
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::error::{ApiError, Exception};
use crate::{ApiState, router};
use identity::ControlIdentity;

pub use identity::IdentityError;

/// The content type of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Connections at a time; those beyond wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// How long a peer may take for its first byte and, with TLS, for the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take for the head of a request, and a kept connection may be idle.
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
    let identity = ControlIdentity::new(Arc::clone(&state.authority), state.ports.clock.now())?;
    let endpoint = Arc::new(Endpoint { clock: Arc::clone(&state.ports.clock), identity, router: router(state) });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = GracefulShutdown::new();
    // Dropped when the service stops: peers that have not said anything by then are not waited for.
    let (running, stopping) = watch::channel(());
    tokio::pin!(shutdown);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = &mut shutdown => break,
        };
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

struct Endpoint {
    clock: Arc<dyn rehost_control::ports::Clock>,
    identity: ControlIdentity,
    router: Router,
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
        let read = timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await??;
        if read == 1 && first == [TLS_HANDSHAKE] {
            let acceptor = self.identity.acceptor(self.clock.now()).map_err(io::Error::other)?;
            let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
            return Ok(Greeted::Tls(Box::new(stream)));
        }
        let local = peer.ip().to_canonical().is_loopback();
        Ok(if local { Greeted::Plain(stream) } else { Greeted::PlainFromElsewhere(stream) })
    }

    async fn answer(&self, greeted: Greeted, watcher: Watcher) -> io::Result<()> {
        let router = TowerToHyperService::new(self.router.clone());
        let ended = match greeted {
            Greeted::Tls(stream) => watcher.watch(http().serve_connection(TokioIo::new(stream), router)).await,
            Greeted::Plain(stream) => watcher.watch(http().serve_connection(TokioIo::new(stream), router)).await,
            Greeted::PlainFromElsewhere(stream) => {
                let refusal = hyper::service::service_fn(refuse_plain);
                watcher.watch(http().keep_alive(false).serve_connection(TokioIo::new(stream), refusal)).await
            }
        };
        ended.map_err(io::Error::other)
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
