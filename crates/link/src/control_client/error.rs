//! Why the control plane could not be asked, sorted by what the user has to do about it.

use std::io;
use std::time::Duration;

use crate::identity::IdentityError;
use crate::signature::SignatureError;

/// Why a request to the control plane failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("`{text}` is no endpoint: {reason}; give it as https://HOST[:PORT]")]
    Endpoint { text: String, reason: &'static str },
    #[error("cannot find the address of {host}: {source}; check the name in --endpoint and this machine's DNS")]
    Resolve { host: String, source: io::Error },
    #[error("nothing listens at {address} (connection refused); check --endpoint, and that the control plane runs")]
    Refused { address: String },
    #[error("{address} does not answer within {} s; check --endpoint, routes and firewalls (TCP {port} outbound)", waited.as_secs())]
    Unreachable { address: String, port: u16, waited: Duration },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("{address} answers, but does not speak TLS; check the port in --endpoint")]
    NotTls { address: String },
    #[error("{address} cannot be trusted: {reason}")]
    Untrusted { address: String, reason: String },
    #[error("the connection to {address} broke: {reason}")]
    Broken { address: String, reason: String },
    #[error("{address} did not answer the request within {} s", waited.as_secs())]
    Slow { address: String, waited: Duration },
    #[error("{message} (HTTP {status}{})", code.as_ref().map(|c| format!(", {c}")).unwrap_or_default())]
    Refusal { status: u16, code: Option<String>, message: String },
    #[error("{address} answers, but not as a control plane of rehost (HTTP {status}); check --endpoint")]
    NotRehost { address: String, status: u16 },
    #[error("the request cannot be written: {0}")]
    Request(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    SigV4(#[from] crate::sigv4::SigV4Error),
}

impl ControlError {
    /// Whether the same request may succeed later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Connect { .. }
            | Self::NotTls { .. }
            | Self::Untrusted { .. }
            | Self::Broken { .. }
            | Self::Slow { .. }
            | Self::NotRehost { .. } => true,
            Self::Refusal { status, .. } => *status >= 500 || matches!(status, 408 | 409 | 429),
            _ => false,
        }
    }

    /// Whether the control plane was reached and said that the sender may not do this.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Refusal { status: 401 | 403, .. })
    }
}
