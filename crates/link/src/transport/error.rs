use std::time::Duration;

use rehost_protocol::ProtocolError;
use thiserror::Error;

/// Why a connection could not be made, or ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The name in an address has no address.
    #[error("cannot resolve `{address}`: {source}; check the name and the DNS settings")]
    Resolve {
        /// `host:port`.
        address: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// Nobody answers at an address.
    #[error("cannot connect to {address}: {source}; is the port open in every firewall between?")]
    Connect {
        /// `host:port`.
        address: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The peer said nothing for too long: it, or the network, is gone.
    #[error("the peer was silent for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The handshake did not end in time.
    #[error("the handshake was not finished in time")]
    HandshakeTimeout,
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The TLS handshake or a record failed.
    #[error("TLS: {0}; both sides need certificates of the same private CA and clocks that agree")]
    Tls(rustls::Error),
    /// A record is not what was sealed: bytes were changed on their way. Another connection may fare better.
    #[error("bytes were changed on their way: {0}; if this comes again, something between the two changes what passes")]
    Damaged(rustls::Error),
    /// A certificate, key or name cannot be used.
    #[error("{what} cannot be used: {reason}")]
    Material {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(std::io::Error),
    /// The peer sent what is no frame.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

impl TransportError {
    pub(crate) fn material(what: &'static str, reason: impl ToString) -> Self {
        Self::Material { what, reason: reason.to_string() }
    }
}

impl From<rustls::Error> for TransportError {
    fn from(error: rustls::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error) } else { Self::Tls(error) }
    }
}

/// What no certificate and no setting can be the reason of. A hello whose bytes were changed may also look like a peer with other
/// settings; that cannot be told apart.
fn is_damage(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error};
    match error {
        Error::DecryptError
        | Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord
        | Error::PeerMisbehaved(_) => true,
        Error::AlertReceived(alert) => matches!(
            alert,
            Alert::UnexpectedMessage
                | Alert::BadRecordMac
                | Alert::RecordOverflow
                | Alert::IllegalParameter
                | Alert::DecodeError
                | Alert::DecryptError
                | Alert::MissingExtension
                | Alert::UnsupportedExtension
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, CertificateError, Error};

    #[test]
    fn damage_is_told_from_certificates() {
        let damage = [Error::DecryptError, Error::AlertReceived(AlertDescription::BadRecordMac)];
        assert!(damage.into_iter().all(|error| matches!(error.into(), TransportError::Damaged(_))));
        let refusals = [
            Error::NoCertificatesPresented,
            Error::InvalidCertificate(CertificateError::Expired),
            Error::AlertReceived(AlertDescription::UnknownCA),
            Error::AlertReceived(AlertDescription::CertificateExpired),
        ];
        assert!(refusals.into_iter().all(|error| matches!(error.into(), TransportError::Tls(_))));
    }
}
