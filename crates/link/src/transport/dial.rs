//! Making a connection: from the agent's side and from the replicator's.

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use rustls::{client::UnbufferedClientConnection, server::UnbufferedServerConnection};

use super::{ClientTls, Receiver, Sender, ServerTls, TransportError, channel::Shared, connection::Connection};
use crate::{names, pki_verify::PeerIdentity};

/// How long each part of a connection's life may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To reach one address.
    pub connect: Duration,
    /// From the first byte until the connection is established, hello and welcome included.
    pub handshake: Duration,
    /// Silence after which the peer counts as gone.
    pub idle: Duration,
    /// How long a write may be stuck; none where a peer may rightly stop reading.
    pub write: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(15),
            write: None,
        }
    }
}

/// Connects to `address` (`host:port`), trying each address of the name, and shakes hands.
///
/// # Errors
/// Nobody answers, or whoever answers has no certificate of the CA for the role.
pub fn connect(address: &str, tls: &ClientTls, timeouts: &Timeouts) -> Result<(Sender, Receiver), TransportError> {
    let socket = dial(address, timeouts.connect)?;
    let connection = UnbufferedClientConnection::new(tls.config.clone(), tls.role.clone())?;
    shake_hands(socket, Connection::Client(connection), timeouts)
}

/// Shakes hands with a client that has just connected, and reads from its certificate who it is.
///
/// # Errors
/// The client has no certificate of the CA, is no client of ours, or takes longer than `timeouts.handshake`.
pub fn accept(
    socket: TcpStream,
    tls: &ServerTls,
    timeouts: &Timeouts,
) -> Result<(Sender, Receiver, PeerIdentity), TransportError> {
    let connection = UnbufferedServerConnection::new(tls.config.clone())?;
    let (sender, receiver) = shake_hands(socket, Connection::Server(connection), timeouts)?;
    let identity = {
        let session = sender.shared.session();
        let certificate = session.connection.peer_certificate();
        let certificate =
            certificate.ok_or_else(|| TransportError::material("the client's certificate", "the client sent none"))?;
        PeerIdentity::from_certificate(certificate)
            .map_err(|e| TransportError::material("the client's certificate", e))?
    };
    Ok((sender, receiver, identity))
}

fn shake_hands(
    socket: TcpStream,
    connection: Connection,
    timeouts: &Timeouts,
) -> Result<(Sender, Receiver), TransportError> {
    socket.set_nodelay(true).map_err(TransportError::Io)?;
    socket.set_write_timeout(Some(timeouts.handshake)).map_err(TransportError::Io)?;
    let shared = Shared::new(socket.try_clone().map_err(TransportError::Io)?, connection);
    let deadline = Some(Instant::now() + timeouts.handshake);
    let mut receiver = Receiver::new(shared.clone(), timeouts.idle, deadline);
    receiver.handshake()?;
    socket.set_write_timeout(timeouts.write).map_err(TransportError::Io)?;
    Ok((Sender { shared }, receiver))
}

fn dial(address: &str, timeout: Duration) -> Result<TcpStream, TransportError> {
    names::load_nothing();
    let resolved =
        address.to_socket_addrs().map_err(|source| TransportError::Resolve { address: address.to_owned(), source })?;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for candidate in resolved.collect::<Vec<SocketAddr>>() {
        match TcpStream::connect_timeout(&candidate, timeout) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(TransportError::Connect { address: address.to_owned(), source: last })
}
