//! rustls' unbuffered connection, client and server alike, driven one step at a time.

use rustls::{
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};
use rustls_pki_types::CertificateDer;

use super::TransportError;

/// What a record costs beyond its plaintext: header, content type, tag.
const RECORD_OVERHEAD: usize = 22;
/// Plaintext of a full record.
const RECORD_LENGTH: usize = 16 * 1024;
/// Room for handshake records that may have to go out before data (a key update).
const CONTROL_RESERVE: usize = 1024;

/// Bytes on their way to the socket. Its memory stays, so that it is zeroed once and not for every frame.
#[derive(Default)]
pub(super) struct OutBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl OutBuffer {
    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// At least `length` bytes to be written into; [`OutBuffer::advance`] then says how many were.
    fn room(&mut self, length: usize) -> &mut [u8] {
        let needed = self.filled + length;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.filled..]
    }

    fn advance(&mut self, length: usize) {
        self.filled += length;
    }
}

/// Where a connection stands after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Call again: there may be more to do with the same input.
    Again,
    /// Nothing to do until more bytes arrive.
    NeedsInput,
    /// The peer will send nothing more.
    Closed,
}

/// One side's TLS state.
pub(super) enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl Connection {
    /// Works on received bytes: plaintext is appended to `plain`, what must be sent to `out`.
    /// `done` grows by the bytes of `incoming` that must not be passed again, also when it fails.
    pub(super) fn receive(
        &mut self,
        incoming: &mut [u8],
        done: &mut usize,
        plain: &mut Vec<u8>,
        out: &mut OutBuffer,
    ) -> Result<Progress, TransportError> {
        match self {
            Self::Client(c) => receive_step(c.process_tls_records(incoming), done, plain, out),
            Self::Server(c) => receive_step(c.process_tls_records(incoming), done, plain, out),
        }
    }

    /// Encrypts `parts` one after the other into `out`.
    pub(super) fn send(&mut self, parts: &[&[u8]], out: &mut OutBuffer) -> Result<(), TransportError> {
        loop {
            let done = match self {
                Self::Client(c) => send_step(c.process_tls_records(&mut []), parts, out)?,
                Self::Server(c) => send_step(c.process_tls_records(&mut []), parts, out)?,
            };
            if done {
                return Ok(());
            }
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        match self {
            Self::Client(c) => c.is_handshaking(),
            Self::Server(c) => c.is_handshaking(),
        }
    }

    pub(super) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        let chain = match self {
            Self::Client(c) => c.peer_certificates(),
            Self::Server(c) => c.peer_certificates(),
        };
        chain?.first()
    }
}

fn receive_step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    done: &mut usize,
    plain: &mut Vec<u8>,
    out: &mut OutBuffer,
) -> Result<Progress, TransportError> {
    *done += status.discard;
    Ok(match status.state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                *done += record.discard;
                plain.extend_from_slice(record.payload);
            }
            Progress::Again
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Progress::NeedsInput,
        ConnectionState::PeerClosed | ConnectionState::Closed => Progress::Closed,
        other => {
            outgoing_step(other, out)?;
            Progress::Again
        }
    })
}

/// Returns whether `parts` were encrypted.
fn send_step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    parts: &[&[u8]],
    out: &mut OutBuffer,
) -> Result<bool, TransportError> {
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            for part in parts {
                encrypt(&mut traffic, part, out)?;
            }
            Ok(true)
        }
        // Whatever arrived is taken by the receiver under the same lock: here it can only be the end.
        ConnectionState::PeerClosed => Ok(false),
        ConnectionState::Closed => Err(TransportError::Closed),
        other => outgoing_step(other, out).map(|()| false),
    }
}

/// Handles the states in which TLS itself has something to send.
fn outgoing_step<D>(state: ConnectionState<'_, '_, D>, out: &mut OutBuffer) -> Result<(), TransportError> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let mut needed = CONTROL_RESERVE;
            loop {
                match data.encode(out.room(needed)) {
                    Ok(written) => {
                        out.advance(written);
                        return Ok(());
                    }
                    Err(EncodeError::InsufficientSize(size)) => needed = size.required_size,
                    Err(error) => return Err(general(&error)),
                }
            }
        }
        // The bytes are in `out`, which goes to the socket in this order before anything later.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(())
        }
        other => Err(general(&format!("unexpected TLS state {other:?}"))),
    }
}

fn encrypt<D>(traffic: &mut WriteTraffic<'_, D>, part: &[u8], out: &mut OutBuffer) -> Result<(), TransportError> {
    let records = part.len().div_ceil(RECORD_LENGTH);
    let mut needed = part.len() + records * RECORD_OVERHEAD + CONTROL_RESERVE;
    loop {
        match traffic.encrypt(part, out.room(needed)) {
            Ok(written) => {
                out.advance(written);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(size)) => needed = size.required_size,
            Err(error) => return Err(general(&error)),
        }
    }
}

fn general(error: &dyn std::fmt::Display) -> TransportError {
    TransportError::Tls(rustls::Error::General(error.to_string()))
}
